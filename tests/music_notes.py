"""The notes of a MusicXML score, as music21 reads them, and how many of them two scores share."""

from collections import Counter
from fractions import Fraction

import music21
import numpy as np
from scipy.optimize import linear_sum_assignment

Voice = Counter  # of (onset in the bar, duration, pitch), times in quarter notes
Score = list[list[list[Voice]]]  # staff, bar, voice


def read(xml: bytes | str) -> Score:
    """The voices that have notes. Chord symbols are none; grace notes have the duration 0. Empty bars at the start are left out."""
    staves = []
    for part in music21.converter.parseData(xml, format="musicxml").parts:
        bars = []
        for bar in part.getElementsByClass("Measure"):
            voices = [_notes(voice) for voice in list(bar.voices) or [bar]]
            bars.append([voice for voice in voices if voice])
        staves.append(bars)
    first = min((index for staff in staves for index, bar in enumerate(staff) if bar), default=0)
    return [staff[first:] for staff in staves]


def _notes(stream: music21.stream.Stream) -> Voice:
    found = Counter()
    for note in stream.notes:
        if isinstance(note, music21.harmony.ChordSymbol):
            continue
        times = Fraction(note.getOffsetBySite(stream)), Fraction(note.quarterLength)
        if isinstance(note, music21.note.Unpitched | music21.percussion.PercussionChord):
            found[(*times, note.fullName)] += 1
            continue
        for pitch in note.pitches:
            found[(*times, pitch.nameWithOctave)] += 1
    return found


def count(score: Score) -> int:
    return sum(voice.total() for staff in score for bar in staff for voice in bar)


def shared(score: Score, other: Score) -> int:
    """Notes of equal onset, duration and pitch in the same bar and voice; staves and voices are paired at best, whatever
    their numbers are, each with one other."""
    return _best_pairs(score, other, lambda staff, other: sum(map(_shared_in_bar, staff, other)))


def _shared_in_bar(bar: list[Voice], other: list[Voice]) -> int:
    return _best_pairs(bar, other, lambda voice, other: (voice & other).total())


def _best_pairs(items: list, others: list, value) -> int:
    """The greatest sum of values of one-to-one pairs."""
    if not items or not others:
        return 0
    values = np.array([[value(item, other) for other in others] for item in items])
    rows, columns = linear_sum_assignment(values, maximize=True)
    return int(values[rows, columns].sum())


def share(before: Score, after: Score) -> float:
    """Of the notes that either has; a note too many counts as one lost."""
    return shared(before, after) / max(count(before), count(after))
