"""Tell apart the notations that the model reads: interleaved ABC and MTF. Shared by `code/` and `process_data/`."""


def is_interleaved(text: str) -> bool:
    """Whether ABC is interleaved: its body lines begin with a voice, `[V:1]`, and there is no X: line."""
    lines = "\n" + text
    return "\n[V:" in lines and "\nX:" not in lines


def is_mtf(text: str) -> bool:
    """Whether a text is in MIDI Text Format."""
    return text.startswith("ticks_per_beat ")
