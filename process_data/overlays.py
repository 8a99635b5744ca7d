"""Overlays over several bars of ABC, && and (& ... &), written as an overlay (&) in each of the bars."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

from abc_line import DECORATION, FIELD
from bar_lengths import bar_length, rest

_TOKEN = re.compile(
    rf'"[^"]*"|\[V:\s*(?P<voice>[^][\s]+)[^][]*\]|\[[A-Za-z]:[^][]*\]|\[(?![|\d])[^][]*\]|\{{[^{{}}]*\}}|{DECORATION}'
    r"|(?P<ignored>%.*|\\\s*$)|(?P<begin>\(&)|(?P<end>&\))|(?P<back>&+)|(?P<bar>(?<![\[:])[\[:]*\|[|\]:]*|::)"
    r'|[^]["{}!%\\(&|:]+|.'
)


@dataclass
class _Voice:
    ends: list[int] = field(default_factory=list)  # of each bar, the part at its end: what is overlaid
    text: str = ""  # since the last barline
    at: int | None = None  # the bar into which it is overlaid at present
    begin: int | None = None  # the bar of the last (&
    gap: str = ""  # a rest as long as what stands before (& in its bar


def spread(lines: list[str]) -> list[str]:
    """Spread overlays over their bars: && goes back one bar more than &; & within (& ... &), to the bar of its (&."""
    if not any("&&" in line or "(&" in line for line in lines):
        return lines
    parts: list[str] = []
    voices: defaultdict[str, _Voice] = defaultdict(_Voice)
    name = ""
    for line in lines:
        if line.startswith("%") or FIELD.match(line):
            name = line[2:].split()[0] if re.match(r"V:\s*\S", line) else name
            parts.append(line)
        else:
            for token in _TOKEN.finditer(line):
                name = token["voice"] or name
                if token["voice"] or token["ignored"]:
                    parts.append(token[0])
                else:
                    _read(token, voices[name], parts)
        parts.append("\n")
    for voice in voices.values():
        if voice.at is not None:
            _put(voice, parts)
    return [line for line in "".join(parts).split("\n") if line.strip()]


def apart(text: str) -> str:
    """Separate signs of a bar that have come together, as ( and &, and would begin an overlay over several bars."""
    return re.sub(r"\((?=&)|&(?=[&)])", r"\g<0> ", text) if "&" in text else text


def _read(token: re.Match, voice: _Voice, parts: list[str]) -> None:
    if token["begin"]:
        voice.begin, length = len(voice.ends), bar_length(voice.text, Fraction(1))
        voice.gap = rest(length, Fraction(1), "x") if length else ""
    elif token["end"]:
        voice.begin = None
    elif token["back"] and (voice.begin is not None or len(token[0]) > 1):
        if voice.at is None:
            voice.ends.append(len(parts))
            parts.append("")
        else:
            _put(voice, parts)
        voice.at = max(len(voice.ends) - len(token[0]), 0) if voice.begin is None else voice.begin
        voice.text = "" if voice.begin is None else voice.gap
    elif token["bar"]:
        _end_bar(token[0], voice, parts)
    else:
        voice.text += token[0]
        if voice.at is None:
            parts.append(token[0])


def _end_bar(sign: str, voice: _Voice, parts: list[str]) -> None:
    if voice.at is None:
        if voice.text.strip():
            voice.ends.append(len(parts))
            parts.append("")
        parts.append(sign)
    elif voice.text.strip():
        _put(voice, parts)
        voice.at += 1
        if voice.at == len(voice.ends):  # the bar in which the overlay was written
            voice.at = None
            parts.append(sign)
    voice.text = ""


def _put(voice: _Voice, parts: list[str]) -> None:
    if voice.text.strip():
        parts[voice.ends[voice.at or 0]] += "&" + voice.text
    voice.text = ""
