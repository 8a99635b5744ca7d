"""ABC as it is found: any encoding, several tunes a file with free text between them, headers of every habit."""

import re

_FILE_FIELDS = "ILMQUm"  # before the first tune, these hold for all of them
_DROPPED = re.compile(r"[XTCWwZ]:|%%MIDI|I:\s*linebreak")
FIELD = re.compile(r"([A-Za-z+]):(?![|:])")  # but G:| is a note and a barline


def read_abc(data: bytes) -> str:
    """The text of an ABC file: UTF-8, with or without BOM, UTF-16 with BOM, else Latin-1; lines end in \\n."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_tunes(text: str) -> list[str]:
    """The tunes of a file, each from its X: line on, behind the fields that the file's header gives to all of them.

    A tune ends at an empty line; text between tunes is no music. But where lines with barlines follow the empty line,
    they and the fields among them still belong to the tune. A text without X: is one tune.
    """
    file_header, *tunes = re.split(r"^(?=[^\S\n]*X:)", text, flags=re.MULTILINE)
    if not tunes:
        return [text]
    shared = [line for line in file_header.splitlines() if line[:1] in _FILE_FIELDS and line[1:2] == ":"]
    return ["\n".join(shared + _without_free_text(tune)) for tune in tunes]


def _without_free_text(tune: str) -> list[str]:
    lines = tune.strip().split("\n")
    end = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
    more = [line for line in lines[end:] if "|" in line or FIELD.match(line)]
    while more and ("|" not in more[-1] or FIELD.match(more[-1])):
        more.pop()
    return lines[:end] + more


def split_header(tune: str) -> tuple[list[str], list[str]]:
    """The lines of a tune -> (header as interleaved ABC has it, body). The body is empty if there is no K: line.

    The header ends at the first line of music behind K:, or at a V: line of a voice that it has defined already.
    """
    header: list[str] = []
    voices: set[str] = set()
    has_key = is_dropped = False
    lines = _without_blocks(tune.split("\n"))
    for number, line in enumerate(lines):
        if not line.strip() or (line.startswith("%") and not line.startswith("%%")):
            continue
        is_field = FIELD.match(line)
        if not (is_field or line.startswith("%%")):
            if has_key:
                return header, lines[number:]
            continue  # the old way to write a long H: or N: field
        if line.startswith("V:"):
            if has_key and voice_id(line[2:]) in voices:
                return header, lines[number:]
            voices.add(voice_id(line[2:]))
        has_key |= line.startswith("K:")
        is_dropped = is_dropped if line.startswith("+:") else _DROPPED.match(line) is not None
        if not is_dropped:
            header.append(without_comment(line) if is_field else line)
    return header, []


def _without_blocks(lines: list[str]) -> list[str]:
    """Without %%begintext ... %%endtext and the like: text and PostScript to be printed."""
    last = {line.split()[0]: number for number, line in enumerate(lines) if line.startswith("%%end")}
    kept, end = [], ""
    for number, line in enumerate(lines):
        if end:
            end = "" if line.startswith(end) else end
        elif line.startswith("%%begin") and last.get("%%end" + line.split()[0][7:], 0) > number:
            end = "%%end" + line.split()[0][7:]
        else:
            kept.append(line)
    return kept


def voice_id(value: str) -> str:
    """The id in what follows V: ("1" in `V:1 treble`), without what could not stand in [V:...]."""
    found = re.match(r"\s*([^][\s]+)", value)
    return found[1] if found else "1"


def without_comment(line: str) -> str:
    """A field line without its comment; a % in quotes is none."""
    comment = re.match(r'((?:"[^"]*"|\\.|[^%"\\])*)%', line)
    return comment[1].rstrip() if comment else line
