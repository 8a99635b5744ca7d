"""ABC as it is found: any encoding, several tunes a file with free text between them, headers of every habit."""

import re

import abc_line
import overlays
from abc_line import FIELD, has_notes, reads_as_music

_LEFT_OUT = {"s:": "line of symbols", "m:": "macro"}
_FILE_FIELDS = "ILMQUm"  # before the first tune, these hold for all of them
_DROPPED = re.compile(r"[XTCWwZ]:|%%MIDI|I:\s*linebreak")


def read_abc(data: bytes) -> str:
    """Decode an ABC file: UTF-8, with or without BOM, UTF-16 with BOM, else Latin-1; lines end in \\n."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split_file(text: str) -> list[str]:
    """Split a file into the text before the first X: line, and the tunes; blocks of printed text are left out."""
    return re.split(r"^(?=[^\S\n]*X:)", "\n".join(_without_blocks(text.split("\n"))), flags=re.MULTILINE)


def split_tunes(text: str) -> list[str]:
    """Split a file into tunes, each behind the fields that the file's header gives to all; without X: all is one."""
    file_header, *tunes = split_file(text)
    if not tunes:
        return [file_header]
    shared = [line for line in file_header.splitlines() if line[:1] in _FILE_FIELDS and line[1:2] == ":"]
    return ["\n".join([*shared, tune.strip()]) for tune in tunes]


def tidy(tune: str) -> tuple[str, list[str]]:
    """Rewrite a tune of `split_tunes` in plain ABC. Returns it, and what was mended, read on or left out.

    A tune ends at an empty line, and free text follows. But where each line of what follows, up to the next empty line,
    reads as music from end to end, it still belongs to the tune. Each line is tidied by `abc_line.tidy`.
    """
    first, *blocks = re.split(r"\n(?:[^\S\n]*\n)+", tune.strip("\n"))
    user_symbols = "".join(re.findall(r"^U:\s*([H-Wh-w])", tune, re.MULTILINE))
    lines, warnings = _tidy_lines(first)
    fields: list[str] = []  # of the music that may follow, or else of the text
    read_on: list[str] = []
    for block in blocks:
        more, mended = _tidy_lines(block)
        music = [line for line in more if not (line.startswith("%") or FIELD.match(line))]
        if not music:
            fields += more
        elif all(reads_as_music(line, user_symbols) for line in music) and any(map(has_notes, music)):
            warnings += mended
            read_on.append(block.strip())
            lines += fields + more
            fields = []
        else:
            warnings.append(_named("text behind an empty line left out", block.strip()))
    if read_on:
        warnings.append(_named("music goes on behind an empty line", "\n".join(read_on)))
    return "\n".join(overlays.spread(lines)), warnings


def _tidy_lines(block: str) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    warnings: list[str] = []
    left_out = ""
    for line in block.split("\n"):
        found = re.match("[sm]:", line)
        left_out = _LEFT_OUT[found[0]] if found else left_out if line.startswith("+:") else ""
        if left_out:
            warnings.append(f"{left_out} left out: {line}")
            continue
        tidied, mended = abc_line.tidy(line)
        lines.append(tidied)
        warnings += mended
    return lines, warnings


def _named(what: str, block: str) -> str:
    first, *more = block.split("\n")
    lines = "line" if len(more) == 1 else "lines"
    return f"{what}: {first.strip()[:60]!r}" + (f" and {len(more)} more {lines}" if more else "")


def split_header(tune: str) -> tuple[list[str], list[str]]:
    """Split a tidied tune into (header as interleaved ABC has it, body). Without a K: line, the body is empty.

    The header ends at the first line of music behind K:, or at a V: line of a voice that it has defined already.
    """
    header: list[str] = []
    voices: set[str] = set()
    has_key = is_dropped = False
    lines = tune.split("\n")
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
    """Leave out %%begintext ... %%endtext, I:begintext ... and the like: text and PostScript to be printed."""
    ends: dict[int, int] = {}  # of each line that begins a block
    nearest: dict[str, int] = {}  # of each kind of block, going up
    for number in range(len(lines) - 1, -1, -1):
        if found := re.match(r"\s*(?:%%|I:)\s*(begin|end)(\w*)", lines[number]):
            if found[1] == "end":
                nearest[found[2]] = number
            elif found[2] in nearest:
                ends[number] = nearest.pop(found[2])
    kept, end = [], -1
    for number, line in enumerate(lines):
        if number > end and number in ends:
            end = ends[number]
        elif number > end:
            kept.append(line)
    return kept


def voice_id(value: str) -> str:
    """Return the id of a V: field ("1" of `V:1 treble`), without what could not stand in [V:...]."""
    found = re.match(r"\s*([^][\s]+)", value)
    return found[1] if found else "1"


def without_comment(line: str) -> str:
    """Remove the comment of a tidied field line."""
    field, comment, _ = line.partition("%")
    return field.rstrip() if comment else line
