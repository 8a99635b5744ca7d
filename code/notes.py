"""The notes, bars and tempos of music files of any type (repeats once), and the melody of them. Imports no torch."""

import math
from collections import deque
from itertools import accumulate, zip_longest
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
MOMENT = 1 / 8  # of a quarter note: by so much, notes of a melody may overlap and those of a chord come apart
SHORTEST = 16  # notes of a melody that can be compared; fewer are found in too many pieces
BEATS = {"whole": 4, "half": 2, "quarter": 1, "eighth": 1 / 2, "16th": 1 / 4}  # in quarter notes
Note = tuple[float, float, int, int]  # start, end, voice or MIDI channel, MIDI pitch
Tempo = tuple[float, float]  # time, quarter notes a minute from there on


def read(path: Path) -> list[tuple[str, list[Note], str]]:
    """Return (title, notes, why there are none) of each piece of a file; the times are in quarter notes.

    Raises InputError, and whatever a converter may raise.
    """
    files.require_piece(path)
    data, kind = path.read_bytes(), pieces.kind(path)
    if kind == ".xml":
        xml, _ = musicxml.read(data)
        return [(pieces.score_title(xml), of_musicxml(xml)[0], "")]
    if kind == ".mid":
        return [("", _pitched(midi_to_mtf(data, "carry_delta")[0]), "")]  # with the times of left-out messages
    return [_of_piece(piece, kind) for piece in (pieces.tunes if kind == ".abc" else pieces.read)(data, kind)]


def notated(source: Path) -> tuple[str, str]:
    """Return one piece, `#N` of a tune included, as ".xml", ".abc" (interleaved) or ".mtf", and its text.

    Raises InputError, and whatever a converter may raise.
    """
    path, number = pieces.locate(source)
    files.require_piece(path)
    data, kind = path.read_bytes(), pieces.kind(path)
    if kind == ".xml":
        return kind, musicxml.read(data)[0]
    if kind == ".mid":
        return ".mtf", midi_to_mtf(data, "carry_delta")[0]  # at the true times, which features are not of
    piece = (pieces.tunes if kind == ".abc" else pieces.read)(data, kind)[(number or 1) - 1]
    if not piece.ok:
        raise InputError(piece.error)
    return kind, piece.text


def _of_piece(piece: pieces.Piece, kind: str) -> tuple[str, list[Note], str]:
    try:
        if not piece.ok:
            raise InputError(piece.error)
        to_notes = _pitched if kind == ".mtf" else lambda abc: of_musicxml(xml_abc.abc_to_musicxml(abc))[0]
        return piece.title, to_notes(piece.text), ""
    except InputError as error:
        return piece.title, [], str(error)


def _pitched(mtf: str) -> list[Note]:
    """Return the notes of MTF in quarter notes, without drums."""
    ticks, _, _, found = of_mtf(mtf)
    beat = quarter(ticks)
    return [(start / beat, end / beat, channel, pitch) for start, end, channel, pitch in found if channel != DRUMS]


def quarter(ticks_per_beat: int) -> float:
    """Return the ticks of a quarter note, which of SMPTE time is half a second."""
    return ticks_per_beat if ticks_per_beat > 0 else smpte_ticks(ticks_per_beat) / 2 or 1


def smpte_ticks(ticks_per_beat: int) -> int:
    """Return the ticks of a second, of SMPTE time."""
    return -(ticks_per_beat >> 8) * (ticks_per_beat & 0xFF)


def of_mtf(mtf: str) -> tuple[int, list[tuple[int, int, int]], list[Tempo], list[tuple[int, int, int, int]]]:
    """Return ticks in a beat, meters (time, numerator, denominator), tempos and notes, all in ticks.

    Raises InputError.
    """
    from mido.messages import SPEC_BY_TYPE

    head, *lines = mtf.splitlines()
    ticks_per_beat = int(head.split()[1])
    time, meters, notes = 0, [], []
    tempos: list[Tempo] = []
    sounding: dict[tuple[int, int], list[int]] = {}  # (channel, pitch) -> starts
    for line in lines:
        kind, *values = line.split(" ")
        try:
            time += int(values[0] if kind in SPEC_BY_TYPE else values[-1])  # metas end with their time
            if kind == "time_signature":
                meters.append((time, int(values[0]), int(values[1])))
            elif kind == "set_tempo" and values[0] != "0":
                tempos.append((time, 60e6 / int(values[0])))
            elif kind in ("note_on", "note_off"):
                channel, pitch, velocity = map(int, values[1:])
                if kind == "note_on" and velocity > 0:
                    sounding.setdefault((channel, pitch), []).append(time)
                elif sounding.get((channel, pitch)):
                    notes.append((sounding[channel, pitch].pop(0), time, channel, pitch))
        except (ValueError, IndexError):
            raise InputError(f"not MTF: {line[:60]!r}") from None
    notes += [(start, time, *where) for where, starts in sounding.items() for start in starts]
    return ticks_per_beat, meters, tempos, sorted(notes)


def of_musicxml(score: str | bytes) -> tuple[list[Note], list[float], list[Tempo]]:
    """Return the notes of all parts as they sound, the bar lines, the last included, and the tempos, in quarter notes.

    Tied notes are joined, grace notes and drums left out. A bar is as long as in the part that has most in it.
    """
    parts = [_bars(part) for part in ElementTree.fromstring(score).iter("part")]
    lines = [0.0, *accumulate(max(length for length, *_ in bars) for bars in zip_longest(*parts, fillvalue=(0.0,)))]
    notes: list[Note] = []
    tempos: list[Tempo] = []
    voices: dict[tuple[int, str], int] = {}
    for number, part in enumerate(parts):
        tied: dict[tuple[str, int], int] = {}  # (voice, pitch) -> the note that a tie leads on from
        for line, (_, found, changes) in zip(lines, part, strict=False):
            tempos += [(line + time, tempo) for time, tempo in changes]
            for onset, length, name, pitch, ties in found:
                key, end = (name, pitch), line + onset + length
                if "stop" in ties and key in tied:
                    notes[tied[key]] = (notes[tied[key]][0], end, *notes[tied[key]][2:])
                else:
                    tied[key] = len(notes)
                    notes.append((line + onset, end, voices.setdefault((number, name), len(voices)), pitch))
                if "start" not in ties:
                    del tied[key]
    return sorted(notes), lines, sorted(tempos)


def _bars(part: Element) -> list[tuple[float, list[tuple[float, float, str, int, set]], list[Tempo]]]:
    """Return the length, notes (onset, length, voice, pitch, ties) and tempos of each bar, by the time within it."""
    bars = []
    divisions, transposition = 1.0, 0
    for measure in part.iterfind("measure"):
        now = end = onset = 0.0
        notes: list[tuple[float, float, str, int, set]] = []
        tempos: list[Tempo] = []
        for element in measure:
            divisions = float(element.findtext("divisions", divisions))
            if (transpose := element.find("transpose")) is not None:
                octaves = float(transpose.findtext("octave-change", "0"))
                transposition = round(float(transpose.findtext("chromatic", "0")) + 12 * octaves)
            if element.tag in ("direction", "sound") and (tempo := _tempo(element)):
                tempos.append((now, tempo))
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
            if pitch is not None and length:
                ties = {tie.get("type") for tie in element.iterfind("tie")}
                sounding = _midi_pitch(pitch) + transposition
                notes.append((onset, length, element.findtext("voice", "1"), sounding, ties))
        bars.append((end, notes, tempos))
    return bars


def _tempo(element: Element) -> float:
    """Return the quarter notes a minute that a direction asks for, or 0."""
    sound = element if element.tag == "sound" else element.find("sound")
    try:
        if sound is not None and sound.get("tempo"):
            return float(sound.get("tempo", ""))
        dot = 1 if element.find(".//beat-unit-dot") is None else 1.5
        return float(element.findtext(".//per-minute", "")) * dot * BEATS[element.findtext(".//beat-unit", "")]
    except (ValueError, KeyError):  # a metronome mark of "c. 60", or of two note values
        return 0


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
