"""Rewrite the numbers in MusicXML so that xml2abc can read them.

xml2abc 143 expects whole numbers in plain digits, stops at anything else, and rounds some silently. A score that it can
read is not changed. Each rule takes the root element and counts its changes, by description.
"""

import math
import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from itertools import zip_longest
from xml.etree.ElementTree import Element

from shared import InputError


def _places(ranges: dict[tuple[float, float], str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Index ranges, {(lowest, highest): "tag tag/attribute ..."}, by (tag, attribute or "" for the text)."""
    return {place.partition("/")[::2]: limits for limits, places in ranges.items() for place in places.split()}


_WHOLE = _places(
    {
        (1, 99): "staff clef/number measure-style/number staff-details/number",
        (1, 9999): "actual-notes normal-notes",
        (0, 8): "tremolo",
        (0, 99): "staff-lines",
        (-99, 99): "fifths chromatic",
        (-9, 9): "octave-change",
        (-2, 2): "clef-octave-change",
        (-1, 1): "root-alter bass-alter degree-alter",
        (-9999, 9999): "midi-channel midi-program midi-unpitched",
    }
)
_DECIMAL = _places(
    {(0, 9999): "per-minute sound/tempo", (-math.inf, math.inf): "volume pan words/default-y rehearsal/default-y"}
)
_READ: dict[str, list[str]] = {}  # element -> its attributes that xml2abc reads
for _tag, _attribute in (*_WHOLE, *_DECIMAL):
    _READ.setdefault(_tag, []).append(_attribute)
_TYPES = {"breve": Fraction(8), "whole": Fraction(4), "half": Fraction(2), "quarter": Fraction(1)} | {
    name: Fraction(1, 2**power) for power, name in enumerate(("eighth", "16th", "32nd", "64th", "128th", "256th"), 1)
}  # in quarter notes
_MAX_ALTER = 12  # semitones
_STEPS = ("C", "D", "E", "F", "G", "A", "B")
_SEMITONES = (0, 2, 4, 5, 7, 9, 11)  # of each


def numbers(score: Element, done: Counter[str]) -> None:
    """Replace a value that is not a number by the first number in it; without one, leave it out."""
    for parent in score.iter():
        left_out = []
        for child in parent:
            for attribute in _READ.get(child.tag, ()):
                text = child.get(attribute) if attribute else child.text or ""
                if text is None:
                    continue
                name = f"{child.tag} {attribute}".rstrip()
                number = _number(text, child.tag, attribute)
                if number is None:
                    done[f"{name} {text!r} left out"] += text != ""
                    if attribute:
                        del child.attrib[attribute]
                    else:
                        left_out.append(child)
                elif number != text:
                    done[f"{name} {text!r} read as {number}"] += number != text.strip()
                    if attribute:
                        child.set(attribute, number)
                    else:
                        child.text = number
        for child in left_out:
            parent.remove(child)


def _number(text: str, tag: str, attribute: str) -> str | None:
    is_whole = (tag, attribute) in _WHOLE
    lowest, highest = _WHOLE.get((tag, attribute)) or _DECIMAL[tag, attribute]
    first = re.search(r"[.\d]+", text) if tag == "per-minute" else None  # which is how xml2abc looks for it
    if _is_number(first[0] if first else text, is_whole, lowest, highest):
        return text.strip() if tag.endswith("-alter") else text
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    if found and _is_number(found[0], False, lowest, highest) and not (is_whole and float(found[0]) % 1):
        return f"{float(found[0]):g}"
    return None


def _is_number(text: str, is_whole: bool, lowest: float, highest: float) -> bool:
    try:
        number = int(text) if is_whole else float(text)
    except ValueError:
        return False
    return lowest <= number <= highest and math.isfinite(number)


def whole(text: str) -> int | None:
    """Read a whole number, "2.0" included; None if it is none."""
    return int(float(text)) if _is_number(text, False, -(2**31), 2**31) and not float(text) % 1 else None


def voices_and_verses(score: Element, done: Counter[str]) -> None:
    """Give a voice or a verse that has a name in place of a number a number of its own."""
    for part in score.iter("part"):
        voices = list(part.iter("voice"))
        free = _free_numbers([voice.text or "" for voice in voices], range(-9999, 9999))
        for voice in voices:
            if (name := voice.text or "") in free:
                voice.text = free[name]
                done[f"voice {name!r} numbered {free[name]}"] += 1
    lyrics = list(score.iter("lyric"))
    free = _free_numbers([lyric.get("number", "1") for lyric in lyrics], range(100), ".*verse")  # as xml2abc reads it
    for lyric in lyrics:
        if (name := lyric.get("number", "1")) in free:
            lyric.set("number", free[name])
            done[f"lyric number {name!r} numbered {free[name]}"] += 1
    for note in score.iter("note"):
        taken: set[str] = set()
        for lyric in note.findall("lyric"):
            if (name := lyric.get("number", "1")) in taken:  # xml2abc would keep the last one alone
                lyric.set("number", next(number for number in map(str, range(1, 1000)) if number not in taken))
                done[f"second lyric {name!r} of a note numbered {lyric.get('number')}"] += 1
            taken.add(lyric.get("number", "1"))


def _free_numbers(names: list[str], allowed: range, before: str = "") -> dict[str, str]:
    """Assign a number to each name that is none."""
    taken, odd = 0, []
    for name in dict.fromkeys(names):
        try:
            number = int(re.sub(f"^{before}", "", name))
        except ValueError:
            odd.append(name)
            continue
        if number in allowed:
            taken = max(taken, number)
        else:
            odd.append(name)
    return {name: str(number) for number, name in enumerate(odd, taken + 1)}


def alters(score: Element, done: Counter[str]) -> None:
    """Round microtones towards the natural, and respell three sharps or flats as a neighbouring note."""
    for pitch in score.iter("pitch"):
        alter = pitch.find("alter")
        if alter is None or alter.text in ("0", "1", "-1", "2", "-2"):
            continue
        text = alter.text or ""
        if not _is_number(text, False, -_MAX_ALTER, _MAX_ALTER):
            pitch.remove(alter)
            done[f"alter {text!r} left out"] += 1
            continue
        semitones = int(float(text))
        if semitones != float(text):
            alter.text = str(semitones)
            done[f"alter {text!r} left out, the pitch rounded to semitones"] += 1
        if abs(semitones) > 2:
            _respell(pitch, semitones)
            done[f"alter {text!r} written as that of another note of the same pitch"] += 1


def _respell(pitch: Element, semitones: int) -> None:
    step, octave, alter = (pitch.find(tag) for tag in ("step", "octave", "alter"))
    assert step is not None and octave is not None and alter is not None

    def key(place: int) -> int:
        return 12 * (place // 7) + _SEMITONES[place % 7]

    place = 7 * int(octave.text or 0) + _STEPS.index(step.text or "")
    sounding = key(place) + semitones
    while abs(sounding - key(place)) > 1:
        place += 1 if semitones > 0 else -1
    step.text, octave.text, alter.text = _STEPS[place % 7], str(place // 7), str(sounding - key(place))


def meters(score: Element, done: Counter[str]) -> None:
    """Add up meters: 3+2 beats are five, and 3/4+2/4 is 5/4."""
    for time in score.iter("time"):
        beats, types = time.findall("beats"), time.findall("beat-type")
        if not beats:
            continue
        written = [element.text or "" for element in beats]
        try:
            sums = [sum(map(int, text.split("+"))) for text in written]
            units = [int(element.text or "") for element in types]
            if len(sums) != len(units) or min(sums + units) <= 0:
                raise ValueError
        except ValueError:
            done[f"time signature {' '.join(element.text or '' for element in [*beats, *types])!r} left out"] += 1
            for element in [*beats, *types]:
                time.remove(element)
            continue
        if len(beats) > 1:
            unit = math.lcm(*units)
            total = sum(number * unit // each for number, each in zip(sums, units, strict=True))
            all_written = "+".join(f"{text}/{each}" for text, each in zip(written, units, strict=True))
            done[f"{all_written} written as {total}/{unit}"] += 1
            beats[0].text, types[0].text = str(total), str(unit)
            for element in [*beats[1:], *types[1:]]:
                time.remove(element)
        elif "+" in written[0]:
            beats[0].text = str(sums[0])
            done[f"{written[0]} beats written as {sums[0]}"] += 1


def durations(score: Element, done: Counter[str]) -> None:
    """Rewrite a part with decimal durations, or with divisions that change within a measure, in smaller divisions.

    A note whose duration cannot be read gets that of its type. Raises InputError if divisions are missing or no number.
    """
    for part in score.iter("part"):
        if all(note.find("rest") is not None for note in part.iter("note")):
            continue
        times: list[tuple[Element, Fraction, Fraction]] = []  # a duration or <divisions>, its value, its divisions
        divisions, must_change = Fraction(0), False
        for number, measure in enumerate(part.iter("measure"), 1):
            has_notes = False
            for item in measure:
                if item.tag == "note":
                    _duration_of_type(item, divisions, done)
                element = item.find("divisions" if item.tag == "attributes" else "duration")
                if element is None or (item.tag == "attributes" and not element.text):
                    continue
                value = _length(element.text or "")
                # a negative duration goes back in time, as some programs write notes that overlap
                if value is None or (value <= 0 and element.tag == "divisions"):
                    place = f"part {part.get('id', '')}, measure {measure.get('number', number)}"
                    raise InputError(f"{place}: {element.tag} {element.text!r} is no length")
                must_change |= not (element.text or "").strip().removeprefix("-").isdigit()
                if element.tag == "duration":
                    has_notes = True
                else:
                    must_change |= has_notes and value != divisions
                    divisions = value
                times.append((element, value, divisions))
        if times and not divisions:
            raise InputError(f"part {part.get('id', '')} has no <divisions>: the length of its notes is unknown")
        if must_change:
            first = next(per for *_, per in times if per)  # also of what stands before it
            times = [(element, value, per or first) for element, value, per in times]
            parts = math.lcm(*((value / per).denominator for element, value, per in times if element.tag == "duration"))
            for element, value, per in times:
                element.text = str(parts if element.tag == "divisions" else int(value / per * parts))
            done[f"divisions in part {part.get('id', '')} written as {parts}"] += 1


def _duration_of_type(note: Element, divisions: Fraction, done: Counter[str]) -> None:
    """Replace a duration that is missing, unreadable or 0."""
    element = note.find("duration")
    value = Fraction(0) if element is None else _length(element.text or "")
    if value or note.find("grace") is not None or (value == 0 and note.find("chord") is not None):
        return
    written = "" if element is None else element.text or ""
    name = note.findtext("type", "").strip()
    if not divisions:
        return
    if name not in _TYPES:
        if value == 0:
            done[f"note of duration {written!r} written as an eighth note"] += 1
        return
    dots = len(note.findall("dot"))
    quarters = _TYPES[name] * (2 - Fraction(1, 2**dots))
    actual, normal = (note.findtext(f"time-modification/{tag}-notes", "1") for tag in ("actual", "normal"))
    if actual.isdigit() and normal.isdigit() and int(actual):
        quarters *= Fraction(int(normal), int(actual))
    if element is None:
        element = Element("duration")
        place = next((at for at, each in enumerate(note) if each.tag in ("pitch", "rest", "unpitched")), -1)
        note.insert(place + 1, element)
    element.text = str(quarters * divisions)
    done[f"duration {written!r} of a note left out: it is that of its type, {name}"] += 1


@lru_cache(10_000)
def _length(text: str) -> Fraction | None:
    try:
        return Fraction(text.strip()).limit_denominator(10_000)
    except (ValueError, ZeroDivisionError):
        return None


def pitches(score: Element, done: Counter[str]) -> None:
    """Replace a note without a readable step or octave by a rest, or leave it out of its chord."""
    for measure in score.iter("measure"):
        notes = measure.findall("note")
        for note, following in zip_longest(notes, notes[1:]):
            pitch, rest, unpitched = note.find("pitch"), note.find("rest"), note.find("unpitched")
            if pitch is None:
                for place in (rest, unpitched):
                    if place is not None and len(place) and not _read_pitch(place, "display-", done):
                        done[f"place on the staff {_text_of(place)!r} left out"] += 1
                        for element in list(place):
                            place.remove(element)
                continue
            if _read_pitch(pitch, "", done):
                continue
            done[f"note of pitch {_text_of(pitch)!r} left out"] += 1
            chord = None if following is None else following.find("chord")
            if note.find("chord") is not None:
                measure.remove(note)
            elif following is not None and chord is not None:
                measure.remove(note)
                following.remove(chord)
            else:
                note[list(note).index(pitch)] = Element("rest")


def _read_pitch(pitch: Element, kind: str, done: Counter[str]) -> bool:
    """Normalize step and octave: "c" is C, "4.0" is 4. Returns whether both are there."""
    step, octave = pitch.find(f"{kind}step"), pitch.find(f"{kind}octave")
    if step is None or octave is None:
        return False
    letter, number = (step.text or "").strip().upper(), whole(octave.text or "")
    if letter not in _STEPS or number is None or not -9 <= number <= 19:
        return False
    if letter != (step.text or "").strip():
        done[f"step {step.text!r} read as {letter}"] += 1
    step.text = letter
    octave.text = str(number)
    return True


def _text_of(element: Element) -> str:
    return " ".join(" ".join(element.itertext()).split())
