"""Compute the lengths of bars of ABC, in whole notes: for rests of n bars, padding and the check of voices."""

import re
from fractions import Fraction
from functools import lru_cache

_ELEMENT = re.compile(
    r"""
    "[^"]*" | ![^!\s]*! | \{[^{}]*\}                # what has no length; a letter in it is no note
    |\[(?P<field>[A-Za-z]):(?P<value>[^\]]*)\]
    |\((?P<p>[1-9]\d?)(?::(?P<q>\d*))?(?::(?P<r>\d*))?  # a tuplet: p notes in the time of q, for the next r notes
    |\[(?P<chord>(?:"[^"]*"|![^!\s]*!|[^\]"!])*)\](?P<times>\d*/*\d*)
    |[A-Ga-gzx][,']*(?P<length>\d*/*\d*)
    |(?P<broken><+|>+)
    |(?P<overlay>&)
    """,
    re.VERBOSE,
)
IN_TIME_OF = {"2": 3, "3": 2, "4": 3, "6": 2, "8": 3}  # of the other tuplets: 2, or 3 in compound meters
MAX_FACTOR = 10**6  # no note is longer; a larger number is a mistake


def bar_length(text: str, unit: Fraction, is_compound: bool = False) -> float:
    """Compute the length of a bar, in whole notes; of several overlaid voices (&), that of the longest.

    Args:
        text: without barlines and multi-bar rests; inline L: and M: fields in it hold from their place on.
        unit: length of a note without a number (L:), in whole notes.
        is_compound: whether the meter is 6/8 or the like: tuplets of 5, 7 and 9 notes are in the time of 3 then.
    """
    longest = total = last = 0.0
    factor = 1.0  # of the next note, from a broken rhythm before it
    tuplet, tuplet_notes = 1.0, 0
    for element in _ELEMENT.finditer(text):
        kind = element.lastgroup
        if kind in ("length", "times"):
            last = _factor(element[kind]) * float(unit) * factor
            if kind == "times":
                first = re.search(r"[A-Ga-gzx][,']*(\d*/*\d*)", re.sub(r'"[^"]*"|![^!]*!', "", element["chord"]))
                last *= _factor(first[1]) if first else 0
            if tuplet_notes:
                last *= tuplet
                tuplet_notes -= 1
            total += last
            factor = 1.0
        elif kind == "broken":
            short = 0.5 ** len(element[kind])
            before, factor = (2 - short, short) if element[kind][0] == ">" else (short, 2 - short)
            total += last * (before - 1)
        elif element["p"]:
            in_time_of = int(element["q"] or IN_TIME_OF.get(element["p"], 3 if is_compound else 2))
            tuplet, tuplet_notes = in_time_of / int(element["p"]), int(element["r"] or element["p"])
        elif kind == "value" and element["field"] == "L":
            unit = read_unit(element["value"]) or unit
        elif kind == "value" and element["field"] == "M":
            _, is_compound = read_meter(element["value"])
        elif kind == "overlay":
            longest, total = max(longest, total), 0.0
    return max(longest, total)


@lru_cache(1000)
def _factor(number: str) -> float:
    """Read the number behind a note: "" 1, "3" 3, "/" 1/2, "//" 1/4, "3/4" 3/4."""
    above, slashes, below = number.partition("/")
    if not slashes:
        return float(min(int(above or 1), MAX_FACTOR))
    digits = below.lstrip("/")
    divisor = int(digits) if digits else 2 ** min(1 + below.count("/"), 20)
    return min(int(above or 1), MAX_FACTOR) / max(divisor, 1)


def rest(length: float, unit: Fraction, letter: str = "z") -> str:
    """Write a rest of `length` whole notes: z8, z3/2, z."""
    number = (Fraction(length) / unit).limit_denominator(256)
    return letter + (f"{number}" if number != 1 else "")


def read_unit(value: str) -> Fraction | None:
    """Read the unit length of an L: field, in whole notes; None if it gives none."""
    return _fraction(value.strip())


def read_meter(value: str) -> tuple[Fraction | None, bool]:
    """Read an M: field: (length of a bar in whole notes, None if the meter is free; whether it is compound)."""
    value = value.strip()
    if value in ("C", "c"):
        return Fraction(1), False
    if value in ("C|", "c|"):
        return Fraction(1), False
    above, _, below = value.replace(" ", "").partition("/")
    beats = re.findall(r"\d+", above)
    length = _fraction(f"{sum(map(int, beats))}/{below}") if len(value) < 30 and beats else None
    return length, length is not None and below == "8" and sum(map(int, beats)) in (6, 9, 12)


def default_unit(meter: Fraction | None) -> Fraction:
    """Return the unit length of a tune without L: (ABC standard 2.1, section 3.1.7)."""
    return Fraction(1, 16) if meter is not None and meter < Fraction(3, 4) else Fraction(1, 8)


def _fraction(text: str) -> Fraction | None:
    match = re.fullmatch(r"(\d{1,4})(?:/(\d{1,4}))?", text)
    if not match or not int(match[1]) or (match[2] and not int(match[2])):
        return None
    return Fraction(int(match[1]), int(match[2] or 1))
