"""Rewrite correct, or nearly correct, MusicXML that xml2abc cannot read.

Each rule is for something at which xml2abc 143 stops, or which it silently writes as something else; nothing else is
changed. Notes and their durations stay; left out is notation that standard ABC, as xml2abc writes it, has no place for
anyway. Numbers are in xml_values.py.
"""

import copy
import re
from collections import Counter
from xml.etree.ElementTree import Element, SubElement

import xml_values
from abc_line import DECORATION

_SPANS = ("wedge", "octave-shift", "pedal")
_SPAN_TYPES = ("up", "down", "crescendo", "diminuendo", "start", "stop")
_ACCIDENTALS = ("double-flat", "flat-flat", "flat", "natural", "sharp", "sharp-sharp", "double-sharp")

# The modes of xml2abc -> the most flats it has a name for; it has 21 names of keys.
_FLATS = ((7, "lyd"), (8, "maj ion non"), (9, "mix"), (10, "dor"), (11, "m min aeo"), (12, "phr"), (13, "loc"))
_MODES = {mode: flats for flats, modes in _FLATS for mode in modes.split()}
_NEEDED = {
    "time-modification": ("actual-notes", "normal-notes"),
    "clef": ("sign",),
    "backup": ("duration",),
    "forward": ("duration",),
    "staff-tuning": ("tuning-step", "tuning-octave"),
}  # element -> what xml2abc takes from it

_LYRIC = re.compile(r"(<text\b[^>]*>)([^<]*)(?=</text>)")
_LINE_BREAK = re.compile(r"\s*(?:[\n\r\x85\u2028\u2029]|&#(?:0*1[03]|x0*[aAdD]);)\s*")
_CARRIAGE_RETURN = re.compile(r"\r\n?|&#(?:0*13|x0*[dD]);(?:\n|&#(?:0*10|x0*[aA]);)?")


def join_lines(xml: str) -> tuple[str, list[str]]:
    """Replace line breaks in lyrics: xml2abc copies them, and the rest of the line would be read as notes."""
    xml = _CARRIAGE_RETURN.sub("\n", xml)
    number = 0

    def joined(lyric: re.Match) -> str:
        nonlocal number
        text, breaks = _LINE_BREAK.subn(" ", lyric[2])
        number += bool(breaks)
        return lyric[1] + (text.strip() if breaks else text)

    xml = _LYRIC.sub(joined, xml)
    return xml, [f"{number} × line break in the lyrics taken for a space"] if number else []


def mend(score: Element) -> list[str]:
    """Apply all rules in place. Returns what was changed, one line each.

    Raises InputError if the lengths of notes are unknown.
    """
    done: Counter[str] = Counter()
    for rule in _RULES:
        rule(score, done)
    return [f"{times} × {what}" for what, times in done.items() if times]


def _namespace(score: Element, done: Counter[str]) -> None:
    """Drop the default namespace that the root element may declare."""
    if score.tag.startswith("{"):
        for element in score.iter():
            element.tag = element.tag.rpartition("}")[2]


def _directions(score: Element, done: Counter[str]) -> None:
    """Leave out pedal changes, middles of hairpins and octave lines, and tempo marks without beats per minute."""
    for direction_type in score.iter("direction-type"):
        for sign in list(direction_type):
            if sign.tag in _SPANS and sign.get("type", "") not in _SPAN_TYPES:
                left_out = f"{sign.tag} of type {sign.get('type', '')!r} left out"
            elif sign.tag == "metronome" and not sign.findtext("per-minute"):
                left_out = "metronome mark without beats per minute left out"
            else:
                continue
            direction_type.remove(sign)
            done[left_out] += 1


def _accidentals(score: Element, done: Counter[str]) -> None:
    """Leave out other signs than flats, naturals and sharps: the pitch decides, rounded towards the natural."""
    for note in score.iter("note"):
        sign = note.find("accidental")
        if sign is not None and sign.text not in _ACCIDENTALS:
            done[f"accidental {sign.text!r} left out, the pitch rounded to semitones"] += 1
            note.remove(sign)


def _fingerings(score: Element, done: Counter[str]) -> None:
    """Leave out fingerings that would be no decoration in ABC: with a barline or a space they would become music."""
    for technical in score.iter("technical"):
        for fingering in technical.findall("fingering"):
            fingering.text = (fingering.text or "").strip()
            if not re.fullmatch(DECORATION, f"!{fingering.text}!"):
                technical.remove(fingering)
                done[f"fingering {fingering.text!r} left out"] += 1


def _incomplete(score: Element, done: Counter[str]) -> None:
    """Leave out elements without a child that xml2abc reads."""
    for parent in score.iter():
        for element in list(parent):
            missing = [tag for tag in _NEEDED.get(element.tag, ()) if element.find(tag) is None]
            if missing:
                parent.remove(element)
                done[f"{element.tag} without {missing[0]} left out"] += 1


def _keys(score: Element, done: Counter[str]) -> None:
    """Leave out modes and numbers of sharps or flats that xml2abc has no name for."""
    for key in score.iter("key"):
        mode, fifths = key.find("mode"), key.find("fifths")
        name = "maj" if mode is None else (mode.text or "").lower()[:3]
        if mode is not None and name not in _MODES:
            key.remove(mode)
            done[f"mode {mode.text or ''!r} left out"] += 1
        if fifths is not None and not 0 <= _MODES.get(name, 8) + int(fifths.text or 0) <= 20:
            key.remove(fifths)
            done[f"fifths {fifths.text!r} left out"] += 1


def _notes(score: Element, done: Counter[str]) -> None:
    """Leave out starts of tuplets on notes that xml2abc takes for plain ones, and chord marks without a first note."""
    for note in score.iter("note") if next(score.iter("tuplet"), None) is not None else ():
        if not any(tuplet.get("type") == "start" for tuplet in note.iterfind("notations/tuplet")):
            continue
        tremolo = note.find("notations").find("ornaments/tremolo")  # type: ignore[union-attr]
        has_tremolo = tremolo is not None and tremolo.get("type") != "single"
        if has_tremolo or note.find("time-modification") is None:
            for notations in note.findall("notations"):
                for tuplet in notations.findall("tuplet"):
                    notations.remove(tuplet)
            done[f"tuplet on a note {'with a tremolo' if has_tremolo else 'without time-modification'} left out"] += 1
    for measure in score.iter("measure"):
        first = measure.find("note")
        if first is not None and (chord := first.find("chord")) is not None:
            first.remove(chord)
            done["chord without a first note: its notes one after another"] += 1


def _measure_repeats(score: Element, done: Counter[str]) -> None:
    """Leave out ends of measure repeats that do not begin, and numbers of measures that are none."""
    for part in score.iter("part"):
        begun = set()
        for style in part.iter("measure-style"):
            staff = style.get("number", "1")
            for sign in style.findall("measure-repeat"):
                if sign.text and not re.fullmatch(r"\s*0*[1-9]\d{0,3}\s*", sign.text):
                    done[f"measure-repeat of {sign.text!r} measures: the number left out"] += 1
                    sign.text = ""
                if sign.get("type") == "start":
                    begun.add(staff)
                elif sign.get("type") == "stop" and staff not in begun:
                    style.remove(sign)
                    done["end of a measure-repeat without its begin left out"] += 1
                else:
                    begun.discard(staff)


def _harmonies(score: Element, done: Counter[str]) -> None:
    """Write "no chord" without a root, and a kind of three words, which xml2abc cannot split, with spaces."""
    for harmony in score.iter("harmony"):
        kind = harmony.find("kind")
        if kind is None:
            continue
        root = harmony.find("root")
        if kind.text == "none" and root is not None:
            for element in [*harmony.findall("root"), *harmony.findall("bass")]:
                harmony.remove(element)
            kind.set("text", kind.get("text") or "N.C.")
            done["chord symbol of kind 'none' written as no chord"] += 1
        elif (kind.text or "").count("-") > 1:
            done[f"chord symbol of kind {kind.text!r} written in words"] += 1
            kind.text = (kind.text or "").replace("-", " ")


def _offsets(score: Element, done: Counter[str]) -> None:
    """Move chord symbols with an offset before the note at that time, or between the parts of a rest."""
    for measure in score.iter("measure"):
        if measure.find("harmony/offset") is None:
            continue
        notes: list[tuple[int, Element]] = []  # the time of each
        moved: list[tuple[int, Element]] = []
        now = 0
        for item in measure:
            if item.tag == "harmony" and (offset := item.find("offset")) is not None:
                item.remove(offset)
                shift = xml_values.whole(offset.text or "")
                if shift:
                    moved.append((now + shift, item))
                elif shift is None:
                    done[f"offset {offset.text or ''!r} of a chord symbol left out"] += 1
            elif (
                item.tag in ("note", "forward", "backup") and item.find("chord") is None and item.find("grace") is None
            ):
                notes += [(now, item)] if item.tag == "note" else []
                length = int(item.findtext("duration") or 0)
                now += -length if item.tag == "backup" else length
        for time, harmony in moved:
            staff = harmony.findtext("staff", "1")
            notes.sort(key=lambda note: note[1].findtext("staff", "1") != staff)  # of this staff, if there is one
            here = next((note for start, note in notes if start == time), None)
            if here is None:
                here = _split_rest(measure, notes, time)
            if here is None:
                done["offset of a chord symbol to within a note left out"] += 1
            else:
                measure.remove(harmony)
                measure.insert(list(measure).index(here), harmony)


def _split_rest(measure: Element, notes: list[tuple[int, Element]], time: int) -> Element | None:
    """Split the rest at a time in two. Returns its second part, or None if there is no rest."""
    for start, note in notes:
        length = int(note.findtext("duration") or 0)
        if start < time < start + length and note.find("rest") is not None and note.find("time-modification") is None:
            second = copy.deepcopy(note)
            for part, its_length in ((note, time - start), (second, start + length - time)):
                part.find("duration").text = str(its_length)  # type: ignore[union-attr]
            measure.insert(list(measure).index(note) + 1, second)
            notes.append((time, second))
            return second
    return None


def _staves(score: Element, done: Counter[str]) -> None:
    """Move directions and chord symbols off a staff without notes, to the first that has some; leave out its clefs."""
    for part in score.iter("part"):
        used = {int(note.findtext("staff", "1")) for note in part.iter("note")}
        for attributes in list(part.iter("attributes"))[1:]:
            for item in (*attributes.findall("clef"), *attributes.findall("measure-style")):
                if int(item.get("number", "1")) not in used:
                    attributes.remove(item)
                    done[f"{item.tag} on a staff without notes left out"] += 1
        for measure in part:
            for item in [item for item in measure if item.tag in ("direction", "harmony", "sound")]:
                if int(item.findtext("staff", "1")) in used:
                    continue
                done[f"{item.tag} on a staff without notes {'moved' if used else 'left out'}"] += 1
                if not used:
                    measure.remove(item)
                    continue
                for staff in item.findall("staff"):
                    item.remove(staff)
                SubElement(item, "staff").text = str(min(used))


def _part_list(score: Element, done: Counter[str]) -> None:
    """Add missing parts to the part list, without a name."""
    part_list = score.find("part-list")
    if part_list is None:
        part_list = Element("part-list")
        score.insert(0, part_list)
    listed = {entry.get("id") for entry in part_list.iter("score-part")}
    parts = score.findall("part")
    if len(part_list.findall("score-part")) >= len(parts):
        return
    for part in parts:
        if part.get("id") not in listed:
            entry = SubElement(part_list, "score-part", id=part.get("id", ""))
            SubElement(entry, "part-name")
            done["part that is missing in the part list added there"] += 1


_RULES = (
    _namespace,
    xml_values.numbers,
    xml_values.voices_and_verses,
    xml_values.pitches,
    xml_values.alters,
    xml_values.meters,
    xml_values.durations,
    _directions,
    _accidentals,
    _fingerings,
    _incomplete,
    _keys,
    _notes,
    _measure_repeats,
    _harmonies,
    _offsets,
    _staves,
    _part_list,
)
