"""Convert standard ABC (voice after voice) to interleaved ABC (a bar a line) and back (paper, section 3.1).

An interleaved tune is a header and one line for each bar: `[V:1]A2 B2|[V:2]E4|`. So a model that reads a few bars has
them of all voices. `interleave` also takes what is interleaved already, and leaves it as it is.
"""

import re

import overlays
from abc_line import shown
from abc_text import split_file, split_header, split_tunes, tidy
from abc_voices import MAX_BARS, Bar, Reader, Voice, merged
from bar_lengths import rest
from shared import InputError

_NAMES_CLEF = re.compile(r"K:.*(\w=|treble|bass|alto|tenor|perc|soprano|baritone|\S\s+none)")  # or octave=
BARS_A_LINE = 5  # of standard ABC


def interleave(text: str) -> list[tuple[str, list[str]]]:
    """Interleave the tunes of an ABC file: (interleaved tune, warnings) of each.

    A tune that is refused is named in the warnings of the tune before it, or else of the first one.

    Raises:
        InputError: none of the tunes has a K: line and a note.
    """
    found: list[tuple[str, list[str]]] = []
    refused: list[str] = []
    tunes = split_tunes(text)
    for number, tune in enumerate(tunes, 1):
        try:
            found.append(_interleave_tune(tune))
        except InputError as error:
            refused.append(f"tune {number} left out: {error}" if len(tunes) > 1 else str(error))
            if found:
                found[-1][1].append(refused.pop())
    if not found:
        raise InputError("; ".join(refused[:5]) + (f"; and {len(refused) - 5} more" if len(refused) > 5 else ""))
    found[0][1].extend(refused)
    return found


def _interleave_tune(text: str) -> tuple[str, list[str]]:
    header, voices, warnings = _parse(text)
    warnings += _pad(voices)
    _strip(voices)
    warnings += _compare_lengths(voices)
    bars = {name: _written(voice) for name, voice in voices.items()}
    lines = ["".join(f"[V:{name}]{bars[name][index]}" for name in bars) for index in range(_number_of_bars(voices))]
    return shown("\n".join(header + lines) + "\n"), warnings


def deinterleave(text: str) -> tuple[str, list[str]]:
    """Convert interleaved ABC to standard ABC: (text, warnings). `interleave` gives the same text again.

    Raises:
        InputError: it has no K: line or no note.
    """
    header, voices, warnings = _parse("".join(split_file(text)))
    lines = ["X:1", *header]
    for name, voice in voices.items():
        bars = _written(voice)
        lines.append(f"V:{name}")
        for start in range(0, len(bars), BARS_A_LINE):
            line = " ".join(bars[start : start + BARS_A_LINE])
            is_like_field = re.match("[A-Za-z+]:", line)  # G:| would be one for other programs
            lines.append(f"[V:{name}]{line}" if is_like_field else line)
    return shown("\n".join(lines) + "\n"), warnings


def _parse(text: str) -> tuple[list[str], dict[str, Voice], list[str]]:
    """Parse a tune: (header lines, voices by id, warnings); text in them is hidden as by `tidy`."""
    tidied, warnings = tidy(text)
    header, body = split_header(tidied)
    if not body:
        has_key = any(line.startswith("K:") for line in header)
        reason = "no music behind its header" if has_key else "no K: line: no ABC, or damaged"
        raise InputError("; ".join([reason, *warnings]))
    reader = Reader(header)
    in_header = set(reader.defined)
    reader.read(body)
    if not any(bar.has_notes for voice in reader.voices.values() for bar in voice.bars):
        raise InputError("; ".join(["no note in it", *warnings]))
    header += [f"V:{value}" for name, value in reader.defined.items() if name not in in_header]
    if not reader.defined:
        header.append("V:1" if any(map(_NAMES_CLEF.match, header)) else "V:1 treble")
    else:  # what stands before the first V: line of the music is of a voice that no line defines
        header += [f"V:{name}" for name in reader.voices if name not in reader.defined]
    warnings += [f"voice {name} has no music" for name in reader.defined if name not in reader.voices]
    warnings += [f"left out, since a patch would end in it: {text}" for text in reader.cut]
    if reader.strays:
        warnings.append(f"{reader.strays} quotation marks, brackets or the like without a partner left out")
    return header, reader.voices, warnings


def _number_of_bars(voices: dict[str, Voice]) -> int:
    return max(len(voice.bars) for voice in voices.values())


def _written(voice: Voice) -> list[str]:
    bars = [overlays.apart(bar.text) + bar.sign + bar.volta for bar in voice.bars]
    return [voice.opening_fields + voice.opening_sign + bars[0], *bars[1:]]


def _pad(voices: dict[str, Voice]) -> list[str]:
    """Fill voices that end early with rests, as long as the bars of the others."""
    number, warnings = _number_of_bars(voices), []
    if number * len(voices) > MAX_BARS:
        raise InputError(f"{len(voices)} voices of {number} bars: no piece of music")
    longest = next(voice for voice in voices.values() if len(voice.bars) == number)
    for name, voice in voices.items():
        first, number_before = len(voice.bars), len(voice.bars)
        for bar in longest.bars[first:]:
            text = rest(bar.length() or float(voice.meter or 1), voice.unit)
            voice.bars.append(Bar(text, bar.sign, bar.volta, False, False, voice.unit, voice.is_compound))
        if number_before < number:
            warnings.append(f"voice {name} has {number_before} bars, others {number}: filled up with rests at its end")
    return warnings


def _strip(voices: dict[str, Voice]) -> None:
    """Remove the bars at both ends that are empty in all voices; the outer barlines stay."""
    rows = zip(*(voice.bars for voice in voices.values()), strict=True)
    filled = [index for index, bars in enumerate(rows) if any(bar.has_notes or bar.has_marks for bar in bars)]
    first, last = filled[0], filled[-1]
    for voice in voices.values():
        before, behind = voice.bars[:first], voice.bars[last + 1 :]
        voice.bars = voice.bars[first : last + 1]
        if before and before[-1].sign in ("|:", "::"):
            voice.opening_sign = "|:"
        if behind:
            voice.bars[-1].sign = merged(voice.bars[-1].sign, behind[-1].sign)


def _compare_lengths(voices: dict[str, Voice]) -> list[str]:
    if len(voices) == 1:
        return []
    unequal = []
    for number, bars in enumerate(zip(*(voice.bars for voice in voices.values()), strict=True), 1):
        lengths = [bar.length() for bar in bars]
        if max(lengths) - min(lengths) > 1e-3:
            unequal.append(number)
    if not unequal:
        return []
    more = ", ..." if len(unequal) > 5 else ""
    return [f"voices of unequal length in {len(unequal)} bars: {', '.join(map(str, unequal[:5]))}{more}"]
