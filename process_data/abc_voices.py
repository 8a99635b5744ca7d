"""The music of a tune of ABC, cut into voices and bars, whether it is written voice after voice or bar after bar."""

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from abc_line import ELEMENT, FIELD, has_barline, shown
from abc_text import voice_id, without_comment
from bar_lengths import bar_length, default_unit, read_meter, read_unit, rest
from shared import InputError

MAX_BARS = 1_000_000  # a few letters may stand for millions of rests
_NUMBER = re.compile(r"\s*(\d+(?:[,-]\d+)*)")  # of an ending
_MUSIC_FIELDS = "IKLMPQU"  # these change the music that follows; others, as w:, do not
_TEXT = re.compile(r'"[^"]*"|\[[A-Za-z]:[^][]*\]|%.*')
_GRACE_NOTES = re.compile(r"\{[^{}]*\}")


@dataclass
class Bar:
    """A bar of one voice."""

    text: str  # without its right barline
    sign: str  # that barline
    volta: str  # the number of an ending that begins behind it, or ""
    has_notes: bool  # rests do not count
    has_marks: bool  # chord symbols or inline fields
    unit: Fraction  # at its start: what a length of 1 is, in whole notes
    is_compound: bool  # at its start: the meter is 6/8 or the like

    def length(self) -> float:
        """Return the length in whole notes."""
        return bar_length(self.text, self.unit, self.is_compound)


@dataclass
class Voice:
    """One voice, read from left to right."""

    unit: Fraction
    meter: Fraction | None  # length of a bar in whole notes; None: free
    is_compound: bool
    opening_fields: str = ""  # inline fields before the opening barline
    opening_sign: str = ""
    bars: list[Bar] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin_bar()
        self._text: list[str] = []

    def _begin_bar(self) -> None:
        self._has_notes = self._has_marks = self._has_content = False
        self._multiple_rest: tuple[str, int] = ("", 1)  # (a rest of one bar, how many bars of it)
        self._start = self.unit, self.is_compound

    def add(self, text: str, is_note: bool = False, is_mark: bool = False, is_content: bool = False) -> None:
        """Add text to the present bar. Barlines without content between them are one barline."""
        self._text.append(text)
        self._has_notes |= is_note
        self._has_marks |= is_mark
        self._has_content |= is_note or is_content

    def add_plain(self, text: str) -> None:
        """Add notes, rests, spaces, anything that is one character at a time."""
        if (number := _NUMBER.match(text)) and self.bars and not any(map(str.strip, self._text)):
            self.add_volta(number[1])  # behind a line that ends with |\
            text = text[number.end() :]
        if "Z" in text or "X" in text:
            text = re.sub(r"([ZX])(\d*)", self._one_bar_of, text)
        self.add(text, is_note=re.search("[A-Ga-g]", text) is not None, is_content="z" in text or "x" in text)

    def _one_bar_of(self, multiple_rest: re.Match) -> str:
        letter, number = multiple_rest.groups()
        if len(number) > 5:
            raise InputError(f"{multiple_rest[0][:20]} is a rest of more bars than any piece has")
        one_bar = rest(float(self.meter or 1), self.unit, letter.lower())
        self._multiple_rest = one_bar, max(int(number or 1), 1)
        return one_bar

    def add_quoted(self, text: str) -> None:
        is_chord_symbol = not re.match('"[\\^_<>@"]', text)  # the others are annotations
        self.add(text, is_mark=is_chord_symbol, is_content=is_chord_symbol)

    def add_volta(self, number: str) -> None:
        """Add [1, which belongs to the barline before it, unless something sounds in between."""
        if self.bars and not self._has_content and not self.bars[-1].volta:
            self.bars[-1].volta = number
        elif self.opening_sign and not any(map(str.strip, self._text)):
            self.add(number)
        else:
            self.add(f"[{number}")

    def add_field(self, letter: str, value: str) -> None:
        if letter == "M":
            self.meter, self.is_compound = read_meter(value)
            value = value.replace("C|", "2/2")  # a patch would end at the bar
        elif letter == "L":
            self.unit = read_unit(value) or self.unit
        self.add(f"[{letter}:{re.sub('[][{}]', '', value)}]", is_mark=True)

    def end_bar(self, sign: str, volta: str = "") -> None:
        if self._has_content:
            self._append_bars(sign, volta)
        elif self.bars:
            last = self.bars[-1]
            last.sign, last.volta = merged(last.sign, sign), volta or last.volta
            self._text = ["".join(self._text).strip()]
        else:
            self.opening_sign = merged(self.opening_sign, sign) if self.opening_sign else sign
            self.opening_fields += "".join(self._text).strip()
            self._text = [volta]
            self._begin_bar()

    def _append_bars(self, sign: str, volta: str) -> None:
        rest_of_a_bar, number = self._multiple_rest
        text = "".join(self._text).strip()
        if len(self.bars) + number > MAX_BARS:
            raise InputError(f"over {MAX_BARS:,} bars in one voice: no piece of music")
        self.bars.append(Bar(text, "|", "", self._has_notes, self._has_marks, *self._start))
        for _ in range(number - 1):  # what stood beside Zn stays in the first of its bars
            self.bars.append(Bar(rest_of_a_bar, "|", "", False, False, self.unit, self.is_compound))
        self.bars[-1].sign, self.bars[-1].volta = sign, volta
        self._text = []
        self._begin_bar()

    def end(self) -> None:
        """End the voice: a missing barline becomes |, and what does not sound joins the bar before."""
        if self._has_content:
            self.end_bar("|")
        elif self.bars and (text := "".join(self._text).strip()):
            self.bars[-1].text += " " + text
            self.bars[-1].has_marks |= self._has_marks


def _close_grace(line: str) -> tuple[str, bool]:
    """Close grace notes that a line ends within, as xml2abc may write one. Returns whether there were some, too."""
    before, brace, behind = line.rpartition("{")
    notes = behind.partition("%")[0].rstrip().removesuffix("|").rstrip()
    if not brace or not _is_grace(notes):
        return line, False
    return f"{before}{{{notes}}}{behind[len(notes) :]}", True


def _is_grace(text: str) -> bool:
    return re.search(r'[{}|%"]', text) is None and re.search("[A-Ga-g]", text) is not None


class Reader:
    """Reads the body of a tune, line by line.

    Attributes:
        voices: by id, in the order of the music.
        defined: id -> the value of the first V: of that voice.
        strays: number of brackets and the like without a partner, which are left out.
        cut: text that is left out because a patch would end in it.
    """

    def __init__(self, header: list[str]):
        self.voices: dict[str, Voice] = {}
        self.strays = 0
        self.cut: list[str] = []
        self._grace_is_open = False  # at the end of the last line
        self.defined = {voice_id(line[2:]): line[2:] for line in reversed(header) if line.startswith("V:")}
        fields = {line[:2]: line[2:] for line in header}
        self.meter, self.is_compound = read_meter(fields.get("M:", "4/4"))
        self.unit = read_unit(fields.get("L:", "")) or default_unit(self.meter)
        # A V: line behind K: makes its voice the present one; those before only define theirs.
        names = [line[:2] for line in header]
        behind_key = [line for line in header[names.index("K:") :] if line.startswith("V:")]
        before_key = [line for line in header if line.startswith("V:")]
        self.name = voice_id((behind_key[-1:] or before_key[:1] or ["V:1"])[0][2:])

    def voice(self) -> Voice:
        """Return the present voice."""
        if self.name not in self.voices:
            self.voices[self.name] = Voice(self.unit, self.meter, self.is_compound)
        return self.voices[self.name]

    def read(self, lines: list[str]) -> None:
        for line in lines:
            if is_field := FIELD.match(line):
                self.read_field(is_field[1], without_comment(line)[2:].strip())
            elif not line.startswith("%"):
                self.read_music(line)
        for voice in self.voices.values():
            voice.end()
        self.voices = {name: voice for name, voice in self.voices.items() if voice.bars}

    def read_field(self, letter: str, value: str) -> None:
        if letter == "V" and value:
            self.name = voice_id(value)
            self.defined.setdefault(self.name, value)
        elif letter in _MUSIC_FIELDS and self._without_cut_text(f"[{letter}:{value}]"):
            self.voice().add_field(letter, value)

    def read_music(self, line: str) -> None:
        is_continued = False
        line = self._without_cut_text(line)
        if "{" in line:
            # xml2abc puts a barline (with spaces, as always) into grace notes behind the last note of a bar.
            line = _GRACE_NOTES.sub(lambda grace: re.sub(r"(?<!\s)\s+\|\s*|\|\s+", "} | {", grace[0]), line)
        if self._grace_is_open and _is_grace(line.partition("}")[0]):
            line = "{" + line
        line, self._grace_is_open = _close_grace(line)
        for element in self._elements(line):
            kind, text = element.lastgroup, element[0]
            if kind == "plain":
                self.voice().add_plain(text)
            elif kind in ("sign", "volta"):
                self.voice().end_bar(normal(element["sign"]), element["volta"] or "")
            elif kind == "quoted":
                self.voice().add_quoted(text)
            elif kind == "chord":
                self.voice().add(text, is_note=True)
            elif kind == "atom":
                self.voice().add(text)
            elif kind == "variant":
                self.voice().add_volta(element["variant"])
            elif kind == "value" and element["field"] == "V":
                self.read_field("V", element["value"].strip())
            elif kind == "value":
                self.voice().add_field(element["field"], element["value"])
            elif kind == "continued":
                is_continued = True
        if self.name in self.voices and not is_continued:
            self.voices[self.name].add(" ")

    def _without_cut_text(self, line: str) -> str:
        """Leave out quoted text and inline fields in which a patch would end."""

        def kept(text: re.Match) -> str:
            if text[0].startswith(("%", "[M:", "[V:")) or not has_barline(text[0]):
                return text[0]
            self.cut.append(shown(text[0]))
            return ""

        return _TEXT.sub(kept, line)

    def _elements(self, line: str) -> list[re.Match]:
        """Return the elements of a line without unpaired signs. The rest is parsed again, since its parts meet."""
        while True:
            elements = list(ELEMENT.finditer(line))
            kept = [element for element in elements if element.lastgroup != "stray"]
            if len(kept) == len(elements):
                return elements
            strays = (element[0] for element in elements if element.lastgroup == "stray")
            self.strays += sum(sign != "$" for sign in strays)  # a line break of the printed score
            line = "".join(element[0] for element in kept)


@lru_cache(10_000)
def normal(sign: str) -> str:
    """Convert any barline to one of the seven that patches are cut at: |: :: :| [| || |] |"""
    return _sign(*_parts(sign))


@lru_cache(10_000)
def merged(left: str, right: str) -> str:
    """Merge two adjacent barlines into one."""
    ends, starts, line = _parts(left)
    ends_too, starts_too, line_too = _parts(right)
    return _sign(ends or ends_too, starts or starts_too, max(line, line_too, key=_LINES.index))


_LINES = ("|", "||", "[|", "|]")


def _parts(sign: str) -> tuple[bool, bool, str]:
    """Return (whether a repeat ends, whether one starts, the kind of line)."""
    ends, starts = re.search(r":\|", sign), re.search(r"\|\]?:", sign)
    line = next((line for line in reversed(_LINES) if line in sign and sign != "[|]"), "|")  # [|] is invisible
    return bool(ends) or "::" in sign, bool(starts) or "::" in sign, line


def _sign(ends: bool, starts: bool, line: str) -> str:
    return ("::" if starts else ":|") if ends else "|:" if starts else line
