"""Readers of music that share no code with the conversions: what sounds in a file, as a multiset of notes.

MusicXML is read with ElementTree (`test_second_opinion` compares that with music21), ABC with abc2midi where it is
installed, MIDI with mido and symusic, MTF by its definition.
"""

from fractions import Fraction
from xml.etree import ElementTree

SEMITONES = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))


class XmlNote:
    """A note of MusicXML; times in quarter notes, `onset` from the start of its bar, which begins at `bar_start`."""

    def __init__(self, note, bar, bar_start, onset, length):
        self.bar, self.bar_start, self.onset, self.length = bar, bar_start, onset, length
        place = note.find("pitch") if note.find("pitch") is not None else note.find("unpitched")
        self.step = place.findtext("step") or f"unpitched {place.findtext('display-step')}"
        self.octave = int(place.findtext("octave") or place.findtext("display-octave") or 0)
        self.alter = Fraction(place.findtext("alter") or 0)
        self.is_grace = note.find("grace") is not None
        self.is_hidden = note.get("print-object") == "no"
        self.ties = {tie.get("type") for tie in note.iter("tie")}
        self.voice = note.findtext("voice", "1")

    @property
    def key(self) -> Fraction:
        """MIDI's number of the pitch."""
        return SEMITONES.get(self.step, 0) + self.alter + 12 * self.octave + 12


def xml_notes(xml: str | bytes) -> list[XmlNote]:
    """All parts. Bars are counted from the first in which a part has a note."""
    found: list[XmlNote] = []
    for part in ElementTree.fromstring(xml).iter("part"):
        divisions, bar_start = 1, Fraction(0)
        for bar, measure in enumerate(part.iter("measure")):
            now = end = last = Fraction(0)
            for element in measure:
                if element.tag == "attributes":
                    divisions = Fraction(element.findtext("divisions") or divisions)
                length = Fraction(element.findtext("duration") or 0) / divisions
                if element.tag == "backup":
                    now -= length
                elif element.tag == "forward":
                    now += length
                elif element.tag == "note":
                    is_chord = element.find("chord") is not None
                    onset = last if is_chord else now
                    if element.find("rest") is None and element.find("cue") is None:
                        found.append(XmlNote(element, bar, bar_start, onset, length))
                    if not is_chord:
                        last, now = now, now + length
                end = max(end, now)
            bar_start += end
    first = min((note.bar for note in found), default=0)
    for note in found:
        note.bar -= first
    return found
