"""Readers of music that share no code with the conversions: what sounds in a file, as a multiset of notes.

MusicXML is read with ElementTree (`test_second_opinion` compares that with music21), ABC with abc2midi where it is
installed, MIDI with mido and symusic, MTF by its definition.
"""

from fractions import Fraction
from xml.etree import ElementTree

import io, mido, symusic
from collections import *
from mtf import NOT_M3

SEMITONES = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))


class XmlNote:
    """A note of MusicXML; times in quarter notes, `onset` from the start of its bar, which begins at `bar_start`."""

    def __init__(self, part, note, bar, bar_start, onset, length):
        self.part = part
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
                    if element.find("rest") is None:
                        found.append(XmlNote(part.get("id"), element, bar, bar_start, onset, length))
                    if not is_chord:
                        last, now = now, now + length
                end = max(end, now)
            bar_start += end
    first = min((note.bar for note in found), default=0)
    for note in found:
        note.bar -= first
    return found


def mtf_notes(text: str) -> Counter:
    """(onset, length, pitch, velocity) of the notes of MTF, in ticks."""
    now, events = 0, []
    for line in text.split("\n")[1:]:
        kind, *values = line.split(" ")
        in_front = kind in CHANNEL_TYPES
        now += int(values[0] if in_front else values[-1])
        if kind in ("note_on", "note_off"):
            events.append((now, kind == "note_on" and values[3] != "0", *map(int, values[1:])))
    return _paired(events)


CHANNEL_TYPES = {"note_on", "note_off", "polytouch", "control_change", "program_change", "aftertouch", "pitchwheel", "sysex",
                 "quarter_frame", "songpos", "song_select", "tune_request", "clock", "start", "continue", "stop",
                 "active_sensing", "reset"}  # fmt: skip


def mido_notes(data: bytes) -> tuple[Counter, int]:
    """The same of a MIDI file; and the ticks that are left out with the messages that M3 does not read."""
    now, lost, events = 0, 0, []
    for message in mido.MidiFile(file=io.BytesIO(data)).merged_track:
        now += message.time
        if message.type in ("note_on", "note_off"):
            is_on = message.type == "note_on" and message.velocity > 0
            events.append((now, is_on, message.channel, message.note, message.velocity))
        elif message.type in NOT_M3 :
            lost += message.time
    return _paired(events), lost


def symusic_notes(data: bytes) -> Counter:
    score = symusic.Score.from_midi(data)
    return Counter((n.time, n.duration, n.pitch, n.velocity) for track in score.tracks for n in track.notes)


def _paired(events) -> Counter:
    """A note ends at the next end of its pitch in its channel; of two that sound, the first ends first."""
    found, sounding = Counter(), defaultdict(deque)
    for time, is_on, channel, pitch, velocity in events:
        if is_on:
            sounding[channel, pitch].append((time, velocity))
        elif sounding[channel, pitch]:
            onset, loudness = sounding[channel, pitch].popleft()
            found[onset, time - onset, pitch, loudness] += 1
    return found
