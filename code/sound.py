"""The notes of a piece that the page of hits plays, in milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np

import notes
import pictures
from conversions import xml_abc
from files import InputError

MOST = 3000  # notes of a piece that are in the page
DEFAULT_TEMPO = 120.0  # quarter notes a minute, as in MIDI


def read(source: Path) -> dict[str, Any]:
    """Read one piece of music, `#N` of a tune included, from the first bar of its picture on.

    Returns:
        notes: (start, length, MIDI pitch) of the first MOST ones; drums are left out.
        bars: the bar lines that the picture shows.
        count: how many notes there are in all.

    Raises InputError, and whatever a converter may raise.
    """
    kind, text = notes.notated(source)
    if kind == ".mtf":
        found, lines, tempos = _of_mtf(text)
    else:
        found, lines, tempos = notes.of_musicxml(xml_abc.abc_to_musicxml(text) if kind == ".abc" else text)
    if not found:
        raise InputError("there is no note of a definite pitch in it")
    spans = np.array([note[:2] for note in found])  # [N, 2]
    shown = lines[: pictures.BARS + 1]
    times = milliseconds(np.array([*shown, *spans.flat]), tempos)
    times = np.rint(times - times[0]).astype(int)
    starts, ends = times[len(shown) :].reshape(-1, 2).T
    events = [[int(start), int(end - start), note[3]] for start, end, note in zip(starts, ends, found, strict=True)]
    return {"notes": events[:MOST], "bars": times[: len(shown)].tolist(), "count": len(events)}


def _of_mtf(mtf: str) -> tuple[list[notes.Note], list[float], list[notes.Tempo]]:
    """Return the notes without drums, the lines of the piano roll and the tempos, in quarter notes."""
    ticks, meters, tempos, found = notes.of_mtf(mtf)
    pitched = [note for note in found if note[2] != notes.DRUMS]
    if not pitched:
        return [], [], []
    beat = notes.quarter(ticks)
    lines = [float(line / beat) for line in pictures.roll_lines(ticks, meters, pitched)[1]]
    changes = [(time / beat, tempo) for time, tempo in tempos if ticks > 0]  # SMPTE time has no beats
    in_beats = [(start / beat, end / beat, channel, pitch) for start, end, channel, pitch in pitched]
    return in_beats, lines, changes


def milliseconds(times: np.ndarray, tempos: list[notes.Tempo]) -> np.ndarray:
    """Return times in quarter notes as milliseconds."""
    changes = [(0.0, DEFAULT_TEMPO), *((time, tempo) for time, tempo in tempos if 0 < tempo < np.inf)]
    beats = np.array([*(time for time, _ in changes), max(times.max(), changes[-1][0])])
    lengths = np.diff(beats) * 60_000 / [tempo for _, tempo in changes]
    return np.interp(times, beats, np.cumsum([0.0, *lengths]))
