"""The notes of music files of any type, as written (repeats once), and the melody among them. Imports no torch."""

import math
from collections import deque
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

import files
import pieces
from conversions import midi_to_mtf, musicxml, xml_abc
from files import InputError

DRUMS = 9  # the MIDI channel whose notes have no pitch
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
MOMENT = 1 / 8  # of a quarter note: the most that notes of a melody overlap, or that notes of a chord are apart
SHORTEST = 16  # notes of a melody that can be compared; a shorter one is found in too many pieces
Note = tuple[float, float, int, int]  # start, end, voice or MIDI channel, MIDI pitch


def read(path: Path) -> list[tuple[str, list[Note], str]]:
    """Return (title, notes, why there are none) of each piece of a file; the times are in quarter notes.

    Raises InputError, and whatever a converter may raise.
    """
    files.require_piece(path)
    data, kind = path.read_bytes(), pieces.kind(path)
    if kind == ".xml":
        xml, _ = musicxml.read(data)
        return [(pieces.score_title(xml), of_musicxml(xml), "")]
    if kind == ".mid":
        return [("", _pitched(midi_to_mtf(data, "carry_delta")[0]), "")]  # with the times of left-out messages
    return [_of_piece(piece, kind) for piece in (pieces.tunes if kind == ".abc" else pieces.read)(data, kind)]


def _of_piece(piece: pieces.Piece, kind: str) -> tuple[str, list[Note], str]:
    try:
        if not piece.ok:
            raise InputError(piece.error)
        to_notes = _pitched if kind == ".mtf" else lambda abc: of_musicxml(xml_abc.abc_to_musicxml(abc))
        return piece.title, to_notes(piece.text), ""
    except InputError as error:
        return piece.title, [], str(error)


def _pitched(mtf: str) -> list[Note]:
    """Return the notes of MTF in quarter notes, without drums. In SMPTE time, a quarter note is half a second."""
    ticks, _, found = of_mtf(mtf)
    beat = ticks if ticks > 0 else -(ticks >> 8) * (ticks & 0xFF) / 2 or 1
    return [(start / beat, end / beat, channel, pitch) for start, end, channel, pitch in found if channel != DRUMS]


def of_mtf(mtf: str) -> tuple[int, list[tuple[int, int, int]], list[tuple[int, int, int, int]]]:
    """Return ticks in a beat, meters (time, numerator, denominator) and notes, in ticks. Raises InputError."""
    from mido.messages import SPEC_BY_TYPE

    head, *lines = mtf.splitlines()
    ticks_per_beat = int(head.split()[1])
    time, meters, notes = 0, [], []
    sounding: dict[tuple[int, int], list[int]] = {}  # (channel, pitch) -> starts
    for line in lines:
        kind, *values = line.split(" ")
        try:
            time += int(values[0] if kind in SPEC_BY_TYPE else values[-1])  # metas end with their time
            if kind == "time_signature":
                meters.append((time, int(values[0]), int(values[1])))
            elif kind in ("note_on", "note_off"):
                channel, pitch, velocity = map(int, values[1:])
                if kind == "note_on" and velocity > 0:
                    sounding.setdefault((channel, pitch), []).append(time)
                elif sounding.get((channel, pitch)):
                    notes.append((sounding[channel, pitch].pop(0), time, channel, pitch))
        except (ValueError, IndexError):
            raise InputError(f"not MTF: {line[:60]!r}") from None
    notes += [(start, time, *where) for where, starts in sounding.items() for start in starts]
    return ticks_per_beat, meters, sorted(notes)


def of_musicxml(score: str | bytes) -> list[Note]:
    """Return the notes of all parts, in quarter notes: tied ones are joined, grace notes and drums left out."""
    notes: list[Note] = []
    voices: dict[tuple[int, str], int] = {}
    for number, part in enumerate(ElementTree.fromstring(score).iter("part")):
        for start, end, name, pitch in _of_part(part):
            notes.append((start, end, voices.setdefault((number, name), len(voices)), pitch))
    return sorted(notes)


def _of_part(part: Element) -> list[tuple[float, float, str, int]]:
    notes: list[tuple[float, float, str, int]] = []
    tied: dict[tuple[str, int], int] = {}  # (voice, pitch) -> the note that a tie leads on from
    divisions, start = 1.0, 0.0
    for measure in part.iterfind("measure"):
        now = end = onset = start
        for element in measure:
            divisions = float(element.findtext("divisions", divisions))
            if element.tag not in ("note", "backup", "forward"):
                continue
            length = float(element.findtext("duration", "0")) / divisions
            if element.tag == "backup":
                now -= length
                continue
            if element.find("chord") is None:
                onset, now = now, now + length
            end = max(end, now)
            pitch = element.find("pitch")
            if pitch is None or not length:
                continue
            key = element.findtext("voice", "1"), _midi_pitch(pitch)
            ties = {tie.get("type") for tie in element.iterfind("tie")}
            if "stop" in ties and key in tied:
                notes[tied[key]] = (notes[tied[key]][0], onset + length, *key)
            else:
                tied[key] = len(notes)
                notes.append((onset, onset + length, *key))
            if "start" not in ties:
                del tied[key]
        start = end
    return notes


def _midi_pitch(pitch: Element) -> int:
    alter = math.floor(float(pitch.findtext("alter", "0")))  # a quarter tone is heard as the pitch below
    return 12 * (int(pitch.findtext("octave", "4")) + 1) + SEMITONES[pitch.findtext("step", "C").strip()] + alter


def melody_of(notes: list[Note]) -> tuple[np.ndarray, np.ndarray]:
    """Return pitches [N] and lengths [N - 1], to the next start, of the notes that nothing sounds above.

    Judged a moment after a note's start.
    """
    coming = deque(sorted(notes))
    moments = sorted((start + min((end - start) / 2, MOMENT), start, pitch) for start, end, _, pitch in notes)
    sounding: list[Note] = []
    melody: list[tuple[float, int]] = []
    for moment, start, pitch in moments:
        while coming and coming[0][0] <= moment:
            sounding.append(coming.popleft())
        sounding = [note for note in sounding if note[1] > moment]
        is_double = melody and start - melody[-1][0] < MOMENT / 4
        if not is_double and all(pitch >= note[3] for note in sounding):
            melody.append((start, pitch))
    starts = [start for start, _ in melody]
    return np.array([pitch for _, pitch in melody], np.int64), np.diff(starts)


def melodies(path: Path) -> list[tuple[str, np.ndarray, np.ndarray, str]]:
    """Return (title, pitches and lengths of the melody, why it cannot be used) of each piece of a file, as `read`."""
    found = []
    for title, notes, error in read(path):
        pitches, lengths = melody_of(notes)
        if not error and len(pitches) < SHORTEST:
            error = f"its melody has {len(pitches)} notes; fewer than {SHORTEST} cannot be compared"
        found.append((title, pitches, lengths, error))
    return found
