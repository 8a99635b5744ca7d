"""Tidied ABC in forms that abc2xml reads right: grace notes with rests in them, chords with text, nested tuplets."""

import math
import re
from collections import Counter
from fractions import Fraction
from itertools import groupby

from abc_line import DECORATION, FIELD
from bar_lengths import IN_TIME_OF, read_meter

_GRACE = re.compile(r"\{(/?)([^{}]*)\}")
_CHORD = re.compile(r"\[(?![|\d]|[A-Za-z]:)([^][]*)\]")
_TEXT = re.compile(r'"[^"]*"')
_IN_GRACE = re.compile(
    rf'(?P<kept>{DECORATION})|(?P<outside>"[^"]*"|\[[A-Za-z]:[^][]*\])|(?P<rest>[xzXZ]\d*/*\d*)|\(\d[\d:]*|[<>]'
)
_TUPLET = re.compile(
    rf'"[^"]*"|{DECORATION}|\{{[^{{}}]*\}}|\[M:(?P<meter>[^][]*)\]|\[[A-Za-z]:[^][]*\]'
    r"|\((?P<p>[1-9]\d?)(?::(?P<q>\d*))?(?::(?P<r>\d*))?|(?P<bar>\|)|(?P<note>\[(?![|\d])[^]]*\]|(?:[_^=]*[A-Ga-g]|[xz])[,']*)|."
)


def simplified(text: str) -> tuple[str, list[str]]:
    """Rewrite a tune for abc2xml. Returns it, and what was left out, one line each."""
    done: Counter[str] = Counter()
    lines, is_compound = text.split("\n"), False
    for number, line in enumerate(lines):
        if line.startswith("M:"):
            is_compound = read_meter(line[2:])[1]
        elif not (line.startswith("%") or FIELD.match(line)):
            if '"' in line:
                line = _CHORD.sub(_text_before, line)
            if "{" in line:
                line = _GRACE.sub(lambda grace: _grace_notes(grace, done), line)
            if "(" in line:
                line = _flat_tuplets(line, is_compound)
            lines[number] = line
    return "\n".join(lines), [f"{times} × {what}" for what, times in done.items() if times]


def _grace_notes(grace: re.Match, done: Counter[str]) -> str:
    """Remove rests, which would take time; put text and fields, such as a change of staff, between two groups."""

    def replaced(mark: re.Match) -> str:
        done["rest in grace notes left out"] += bool(mark["rest"])
        return f"}}{mark[0]}{{{grace[1]}" if mark["outside"] else mark["kept"] or ""

    return re.sub(r"\{/?\s*\}", "", f"{{{grace[1]}{_IN_GRACE.sub(replaced, grace[2])}}}")


def _text_before(chord: re.Match) -> str:
    """Write ["C"EG] as "C"[EG]."""
    notes = _TEXT.sub("", chord[1])
    return "".join(_TEXT.findall(chord[1])) + (f"[{notes}]" if notes else "")


def _flat_tuplets(line: str, is_compound: bool) -> str:
    """Write nested tuplets one after another: (3:2:4(3CDEF as (9:4:3CDE(3:2:1F."""
    parts: list[str] = []
    tuplets: list[list] = []  # the open ones: [ratio, number of notes left]
    begins: list[int] = []  # the parts that begin them and those before them, since none was open
    notes: list[tuple[int, Fraction]] = []  # the parts that are notes since then, and their ratios
    for token in _TUPLET.finditer(line):
        if token["meter"]:
            is_compound = read_meter(token["meter"])[1]
        elif token["p"]:
            in_time_of = int(token["q"] or 0) or IN_TIME_OF.get(token["p"], 3 if is_compound else 2)
            tuplets.append([Fraction(in_time_of, int(token["p"])), int(token["r"] or token["p"])])
            begins.append(len(parts))
        elif token["note"] and tuplets:
            notes.append((len(parts), math.prod(ratio for ratio, _ in tuplets)))
            tuplets = [[ratio, left - 1] for ratio, left in tuplets if left > 1]
        elif token["bar"]:
            tuplets = []
        parts.append(token[0])
        if not tuplets:
            _flatten(parts, begins, notes)
            begins, notes = [], []
    _flatten(parts, begins, notes)
    return "".join(parts)


def _flatten(parts: list[str], begins: list[int], notes: list[tuple[int, Fraction]]) -> None:
    if len(begins) < 2:
        return
    for begin in begins:
        parts[begin] = ""
    for ratio, same in groupby(notes, key=lambda note: note[1]):
        first, *others = same
        if ratio != 1:
            parts[first[0]] = f"({ratio.denominator}:{ratio.numerator}:{1 + len(others)}{parts[first[0]]}"
