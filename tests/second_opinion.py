"""Readers of music that share no code with the conversions: what sounds in a file, as a multiset of notes.

MusicXML is read by its definition (`test_second_opinion` compares that with music21), ABC by abc2midi of the package
abcmidi where it is installed, else by music21, MIDI by mido and by symusic, MTF by its definition.
"""

import io
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import mido
import music21
import symusic
from mido.messages import SPEC_BY_TYPE

SEMITONES = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))
GRID = 16  # a quarter note; abc2midi rounds to ticks
LEFT_OUT = {"text", "copyright", "track_name", "instrument_name", "lyrics", "marker", "cue_marker", "device_name",
            "sequencer_specific", "sysex"}  # fmt: skip


# -- MusicXML -------------------------------------------------------------------------------------------------------


@dataclass
class XmlNote:
    """Times in quarter notes; `onset` from the start of the bar, which begins at `bar_start`."""

    part: str
    bar: int
    bar_start: Fraction
    onset: Fraction
    length: Fraction
    step: str
    alter: Fraction
    octave: int
    is_grace: bool
    ties: frozenset[str]

    @property
    def key(self) -> Fraction:
        """MIDI's number of the pitch."""
        return SEMITONES.get(self.step, 0) + self.alter + 12 * self.octave + 12


def xml_notes(xml: str | bytes) -> list[XmlNote]:
    """All notes that are to be seen, of all parts; bars are counted from the first that has one."""
    found = []
    for part in ElementTree.fromstring(xml).iter("part"):
        divisions, bar_start = Fraction(1), Fraction(0)
        for bar, measure in enumerate(part.iter("measure")):
            now = end = last = Fraction(0)
            for item in measure:
                if item.tag == "attributes":
                    divisions = Fraction(item.findtext("divisions") or divisions)
                length = Fraction(item.findtext("duration") or 0) / divisions
                if item.tag in ("backup", "forward"):
                    now += length if item.tag == "forward" else -length
                elif item.tag == "note":
                    if item.find("chord") is None:
                        last, now = now, now + length
                    if item.find("rest") is None and item.get("print-object") != "no":
                        found.append(_xml_note(item, part.get("id", ""), bar, bar_start, last, length))
                end = max(end, now)
            bar_start += end
    first = min((note.bar for note in found), default=0)
    for note in found:
        note.bar -= first
    return found


def _xml_note(item: ElementTree.Element, part: str, bar: int, *times: Fraction) -> XmlNote:
    step = item.findtext("pitch/step") or f"unpitched {item.findtext('unpitched/display-step')}"
    octave = int(item.findtext("pitch/octave") or item.findtext("unpitched/display-octave") or 0)
    alter = Fraction(item.findtext("pitch/alter") or 0)
    ties = frozenset(tie.get("type", "") for tie in item.iter("tie"))
    return XmlNote(part, bar, *times, step, alter, octave, item.find("grace") is not None, ties)


def tied(notes: list[XmlNote]) -> Counter:
    """(onset, length, key) from the first note of the piece, without grace notes; tied notes are one."""
    ends: defaultdict[tuple, list] = defaultdict(list)
    found = []
    for note in sorted((note for note in notes if not note.is_grace), key=lambda note: note.bar_start + note.onset):
        onset = note.bar_start + note.onset
        if "stop" in note.ties and (before := ends[note.part, note.key, onset]):
            entry = before.pop()
            entry[1] += note.length
        else:
            entry = [onset, note.length, note.key]
            found.append(entry)
        if "start" in note.ties:
            ends[note.part, note.key, onset + note.length].append(entry)
    return _on_grid(found)


def _on_grid(notes: Iterable) -> Counter:
    notes = list(notes)
    first = min((onset for onset, _, _ in notes), default=0)
    return Counter((round((onset - first) * GRID), round(length * GRID), key) for onset, length, key in notes)


# -- ABC ------------------------------------------------------------------------------------------------------------


def abc_notes(abc: str) -> Counter:
    """The same as `tied` of one tune of ABC, in the order in which it is written: repeats are not played."""
    return _abc2midi(_plain(abc)) if shutil.which("abc2midi") else _music21(_plain(abc))


def _abc2midi(abc: str) -> Counter:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "tune.abc", Path(folder) / "tune.mid"
        source.write_text(abc, encoding="utf-8")
        subprocess.run(["abc2midi", source, "-o", target, "-NFNP", "-RS"], stdout=subprocess.PIPE, check=False)
        score = symusic.Score.from_midi(target.read_bytes())
    ticks = Fraction(score.ticks_per_quarter)
    notes = (note for track in score.tracks for note in track.notes)
    return _on_grid((note.time / ticks, note.duration / ticks, note.pitch) for note in notes)


def _music21(abc: str) -> Counter:
    score = music21.converter.parseData(abc, format="abc").stripTies()
    notes = ((note, pitch) for note in score.recurse().notes for pitch in note.pitches)
    return _on_grid((Fraction(n.getOffsetInHierarchy(score)), Fraction(n.quarterLength), p.midi) for n, p in notes)


def _plain(abc: str) -> str:
    """Without what has no part in (onset, length, key), but is played: chords of accompaniment, ornaments, repeats."""
    lines = []
    for written in abc.split("\n"):
        line = re.sub(r'"[^"]*"|![^!\s|]+!|\{[^}]*\}', "", written)
        if re.match(r"[PRQwW]:(?![|:])|%%MIDI", line):
            continue
        if not re.match(r"%|[A-Za-z+]:(?![|:])", line):
            line = re.sub(r"(\[[^]PQR]:[^]]*\])|\[[PQR]:[^]]*\]|[~.HLMOPSTuv]", r"\1", line.partition("%")[0])
            line = re.sub(r":*(?:\[?\|[|\]]*:*)+(?:\s*\[?\d+(?:[,-]\d+)*)?|::+|\[\d+(?:[,-]\d+)*", "|", line)
        if line.strip() or not written.strip():  # an empty line would end the tune
            lines.append(line)
    return "\n".join(lines)


# -- MIDI -----------------------------------------------------------------------------------------------------------


def mtf_notes(text: str) -> Counter:
    """(onset, length, pitch, velocity) of the notes of MTF, in ticks."""
    now, events = 0, []
    for line in text.split("\n")[1:]:
        kind, *values = line.split(" ")
        now += int(values[0 if kind in SPEC_BY_TYPE else -1])
        if kind in ("note_on", "note_off"):
            _, channel, pitch, velocity = map(int, values)
            events.append((now, kind == "note_on" and velocity > 0, channel, pitch, velocity))
    return _paired(events)


def mido_notes(data: bytes) -> tuple[Counter, int]:
    """The same of a MIDI file, and the ticks before messages that M3 does not read."""
    now, lost, events = 0, 0, []
    for message in mido.MidiFile(file=io.BytesIO(data)).merged_track:
        now += message.time
        if message.type in ("note_on", "note_off"):
            is_on = message.type == "note_on" and message.velocity > 0
            events.append((now, is_on, message.channel, message.note, message.velocity))
        lost += message.time if message.type in LEFT_OUT else 0
    return _paired(events), lost


def symusic_notes(data: bytes) -> Counter:
    tracks = symusic.Score.from_midi(data).tracks
    return Counter((note.time, note.duration, note.pitch, note.velocity) for track in tracks for note in track.notes)


def _paired(events: list[tuple]) -> Counter:
    """A note ends at the next end of its pitch in its channel; of two that sound, the first ends first."""
    found: Counter = Counter()
    sounding: defaultdict[tuple, deque] = defaultdict(deque)
    for time, is_on, channel, pitch, velocity in events:
        if is_on:
            sounding[channel, pitch].append((time, velocity))
        elif sounding[channel, pitch]:
            onset, loudness = sounding[channel, pitch].popleft()
            found[onset, time - onset, pitch, loudness] += 1
    return found
