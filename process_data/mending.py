"""Mends what xml2abc cannot cope with though it is correct, or nearly correct, MusicXML.

`join_lines` is for all scores, `mend` only for those at which xml2abc has failed: each of its rules is for an exception
that xml2abc 143 raises on published scores. Notes and their durations stay as they are; what is left out is notation
that standard ABC, as xml2abc writes it, has no place for anyway.
"""

import re
from collections import Counter
from xml.etree import ElementTree

_SPANS = ("wedge", "octave-shift", "pedal")
_SPAN_TYPES = ("up", "down", "crescendo", "diminuendo", "start", "stop")
_ACCIDENTALS = ("double-flat", "flat-flat", "flat", "natural", "sharp", "sharp-sharp", "double-sharp")

_LYRIC = re.compile(r"(<text\b[^>]*>)([^<]*)(?=</text>)")
_LINE_BREAK = re.compile(r"\s*(?:[\n\r\x85\u2028\u2029]|&#(?:0*1[03]|x0*[aAdD]);)\s*")
_CARRIAGE_RETURN = re.compile(r"\r\n?|&#(?:0*13|x0*[dD]);(?:\n|&#(?:0*10|x0*[aA]);)?")


def join_lines(xml: str) -> tuple[str, list[str]]:
    """Takes the line breaks out of lyrics: xml2abc copies them, and the rest of the line would be read as notes."""
    xml = _CARRIAGE_RETURN.sub("\n", xml)
    number = 0

    def joined(lyric: re.Match) -> str:
        nonlocal number
        text, breaks = _LINE_BREAK.subn(" ", lyric[2])
        number += bool(breaks)
        return lyric[1] + (text.strip() if breaks else text)

    xml = _LYRIC.sub(joined, xml)
    return xml, [f"{number} × line break in the lyrics taken for a space"] if number else []


def mend(text: str) -> tuple[str, list[str]]:
    """The score with all that xml2abc is known to stop at put right, and what was done, one line each."""
    score = ElementTree.fromstring(text)
    done: Counter[str] = Counter()
    for rule in (_spans, _accidentals, _metronomes, _beats, _staves, _part_list):
        rule(score, done)
    return ElementTree.tostring(score, encoding="unicode"), [f"{times} × {what}" for what, times in done.items()]


def _spans(score: ElementTree.Element, done: Counter[str]) -> None:
    """Pedal changes, and pieces in the middle of a hairpin or an octave line."""
    for direction_type in score.iter("direction-type"):
        for span in list(direction_type):
            if span.tag in _SPANS and span.get("type", "") not in _SPAN_TYPES:
                direction_type.remove(span)
                done[f"{span.tag} of type {span.get('type', '')!r} left out"] += 1


def _accidentals(score: ElementTree.Element, done: Counter[str]) -> None:
    """Other signs than flats, naturals and sharps: the pitch decides, a quarter tone is rounded towards the natural."""
    for note in score.iter("note"):
        sign = note.find("accidental")
        if sign is not None and sign.text not in _ACCIDENTALS:
            done[f"accidental {sign.text!r} left out, the pitch rounded to semitones"] += 1
            note.remove(sign)


def _metronomes(score: ElementTree.Element, done: Counter[str]) -> None:
    """A note value equal to another note value, in place of a number of beats a minute."""
    for direction_type in score.iter("direction-type"):
        for metronome in direction_type.findall("metronome"):
            if not metronome.findtext("per-minute"):
                direction_type.remove(metronome)
                done["metronome mark without beats per minute left out"] += 1


def _beats(score: ElementTree.Element, done: Counter[str]) -> None:
    """3+2 beats are five."""
    for beats in score.iter("beats"):
        text = beats.text or ""
        if re.fullmatch(r"\s*\d+(\s*\+\s*\d+)+\s*", text):
            beats.text = str(sum(map(int, text.split("+"))))
            done[f"{text} beats written as {beats.text}"] += 1


def _staves(score: ElementTree.Element, done: Counter[str]) -> None:
    """A direction or chord symbol on a staff that has no note: on the first that has."""
    for part in score.iter("part"):
        used = {note.findtext("staff", "1") for note in part.iter("note")}
        for measure in part:
            for item in [item for item in measure if item.tag in ("direction", "harmony", "sound")]:
                if item.findtext("staff", "1") in used:
                    continue
                done[f"{item.tag} on a staff without notes {'moved' if used else 'left out'}"] += 1
                if not used:
                    measure.remove(item)
                    continue
                for staff in item.findall("staff"):
                    item.remove(staff)
                ElementTree.SubElement(item, "staff").text = min(used)


def _part_list(score: ElementTree.Element, done: Counter[str]) -> None:
    """More parts than the part list has: parts without a name."""
    part_list = score.find("part-list")
    if part_list is None:
        part_list = ElementTree.Element("part-list")
        score.insert(0, part_list)
    listed = {entry.get("id") for entry in part_list.iter("score-part")}
    for part in score.findall("part"):
        if part.get("id") not in listed:
            entry = ElementTree.SubElement(part_list, "score-part", id=part.get("id", ""))
            ElementTree.SubElement(entry, "part-name")
            done["part that is missing in the part list added there"] += 1
