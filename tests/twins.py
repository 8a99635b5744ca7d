"""How well find_twins.py finds planted twins among 1,000 tunes of Ryan's and O'Neill's collections, and how fast.

Not a test; by hand, with a folder for the files:

    python tests/twins.py /tmp/twins [TUNES]

music21 reads the tunes and mido writes their twins, so that nothing here is shared with the code that is measured. Each
tune gets one twin, by turns of each kind. Prints a table in Markdown, and the pairs of tunes that nobody has planted.
"""

import io
import itertools
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import mido

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "code"), str(ROOT / "process_data")]

import find_twins
import interleaving
import mtf

TICKS = 480
Notes = list[tuple[float, float, int]]  # onset and length in quarter notes, MIDI pitch


def transposed(semitones: int) -> Callable[[Notes], Notes]:
    return lambda notes: [(onset, length, pitch + semitones) for onset, length, pitch in notes]


def slower(factor: float) -> Callable[[Notes], Notes]:
    return lambda notes: [(onset * factor, length * factor, pitch) for onset, length, pitch in notes]


def half_an_octave_down(notes: Notes) -> Notes:
    half = len(notes) // 2
    return notes[:half] + transposed(-12)(notes[half:])


def other_pitches(notes: Notes) -> Notes:
    changed = set(random.sample(range(len(notes)), round(len(notes) / 10)))
    moves = [-4, -3, -2, -1, 1, 2, 3, 4]
    return [(*note[:2], note[2] + random.choice(moves) * (row in changed)) for row, note in enumerate(notes)]


def left_out(notes: Notes) -> Notes:
    removed = set(random.sample(range(len(notes)), round(len(notes) / 10)))
    return [note for row, note in enumerate(notes) if row not in removed]


def other_lengths(notes: Notes) -> Notes:
    """One in ten pairs of notes shares its time 3:1."""
    result = list(notes)
    for row in random.sample(range(len(notes) - 1), len(notes) // 10):
        (first, length, pitch), (second, other, next_pitch) = result[row], result[row + 1]
        move = (length + other) / 4 if length > other / 2 else 0
        result[row], result[row + 1] = (first, length - move, pitch), (second - move, other + move, next_pitch)
    return result


def in_chords(notes: Notes) -> Notes:
    """A third and an octave below each note, and a bass."""
    below = [(onset, length, pitch - down) for onset, length, pitch in notes for down in (4, 12)]
    return notes + below + [(beat, 1.0, 40 + 7 * (beat % 2)) for beat in range(int(notes[-1][0]))]


def played(notes: Notes) -> Notes:
    """Nobody plays exactly, and legato notes overlap."""
    return [(max(0, onset + random.gauss(0, 0.02)), length * random.uniform(0.7, 1.1), p) for onset, length, p in notes]


def all_at_once(notes: Notes) -> Notes:
    return slower(1.5)(transposed(5)(in_chords(other_pitches(notes))))


KINDS: dict[str, Callable[[Notes], Notes]] = {
    **{f"{semitones} semitones up": transposed(semitones) for semitones in range(1, 13)},
    **{f"note values x {factor}": slower(factor) for factor in (0.5, 0.75, 1.5, 2)},
    "an octave down": transposed(-12),
    "its second half an octave down": half_an_octave_down,
    "10 % of the pitches changed": other_pitches,
    "10 % of the notes left out": left_out,
    "10 % of the lengths changed": other_lengths,
    "in chords, with a bass": in_chords,
    "played by hand": played,
    "its first half": lambda notes: notes[: len(notes) // 2],
    "changed, in chords, transposed and slower": all_at_once,
    "MIDI": list,
    "MTF": list,
    "MusicXML": list,
    "interleaved ABC": list,
    "ABC with another title": list,
}


def midi(notes: Notes) -> bytes:
    ends = [(round((onset + length) * TICKS), 0, pitch) for onset, length, pitch in notes]
    track, now = mido.MidiTrack(), 0
    for tick, velocity, pitch in sorted(ends + [(round(onset * TICKS), 80, pitch) for onset, _, pitch in notes]):
        track.append(mido.Message("note_on", note=pitch, velocity=velocity, time=tick - now))
        now = tick
    buffer = io.BytesIO()
    mido.MidiFile(ticks_per_beat=TICKS, tracks=[track]).save(file=buffer)
    return buffer.getvalue()


def plant(kind: str, tune: str, score, path: Path) -> None:
    """Writes the twin of a tune, which is also given as music21 reads it."""
    if kind == "MusicXML":
        score.write("musicxml", path.with_suffix(".musicxml"))
    elif kind == "interleaved ABC":
        path.with_suffix(".abc").write_text(interleaving.interleave(tune)[0][0])
    elif kind == "ABC with another title":
        path.with_suffix(".abc").write_text(re.sub(r"(?m)^T:.*", "T: The Twin", tune))
    else:
        notes = notes_of(score)
        data = midi(KINDS[kind](notes))
        if kind == "MTF":
            path.with_suffix(".mtf").write_text(mtf.midi_to_mtf(data)[0])
        else:
            path.with_suffix(".mid").write_bytes(data)


def notes_of(score) -> Notes:
    """The notes of a tune of one voice that music21 has read, without grace notes; tied ones are joined (stripTies takes half a second)."""
    notes: Notes = []
    for note in score.recurse().notes:
        onset, length = float(note.getOffsetInHierarchy(score)), float(note.quarterLength)
        for pitch in note.pitches if length else ():
            if note.tie and note.tie.type != "start" and notes and notes[-1][2] == pitch.midi:
                notes[-1] = (notes[-1][0], notes[-1][1] + length, pitch.midi)
            else:
                notes.append((onset, length, pitch.midi))
    return notes


def tunes_of_corpus() -> list[str]:
    import music21

    corpus = Path(music21.__file__).parent / "corpus"
    books = sorted([*corpus.glob("ryansMammoth/*.abc"), *corpus.glob("oneills1850/*.abc")])
    tunes = [tune for book in books for tune in re.split(r"(?m)^(?=X:)", book.read_text(errors="replace"))]
    return [tune for tune in tunes if tune.startswith("X:")]


def title(tune: str) -> str:
    """The letters of the title, without the dance."""
    words = re.findall(r"[a-z']+", re.search(r"(?m)^T:(.*)", tune)[1].lower())
    return "".join(word for word in words if word not in ("the", "reel", "jig", "hornpipe", "clog", "fling"))


def main() -> None:
    import music21

    folder, count = Path(sys.argv[1]), int((sys.argv[2:] or [1000])[0])
    random.seed(0)
    tunes = tunes_of_corpus()
    random.shuffle(tunes)
    folder.mkdir()
    planted: dict[int, str] = {}
    kinds = itertools.cycle(KINDS)
    for tune in tunes[:count]:
        number = len(planted)
        (folder / f"{number:04d}.abc").write_text(tune)
        planted[number] = next(kinds)
        score = music21.converter.parse(tune, format="abc")
        plant(planted[number], tune, score, folder / f"{number:04d}_twin")
    began = time.monotonic()
    melodies, skipped = find_twins.read_folder(folder)
    read = time.monotonic() - began
    twins = find_twins.find(melodies)
    print(f"{len(melodies)} pieces: {read:.1f} s to read, {time.monotonic() - began - read:.1f} s to compare", *skipped)
    number_of = [int(Path(melody.name).name[:4]) for melody in melodies]
    found, others = set(), defaultdict(list)
    for pair in twins:
        numbers = sorted((number_of[pair.first], number_of[pair.second]))
        if numbers[0] == numbers[1]:
            found.add(numbers[0])
        else:
            others[tuple(numbers)].append(pair.shared)
    of_kind, found_of_kind = Counter(planted.values()), Counter(planted[number] for number in found)
    print("| twins | planted | found |\n|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {of_kind[kind]} | {found_of_kind[kind]} |")
    print(f"| all | {len(planted)} | {len(found)} |")
    same = [pair for pair in others if title(tunes[pair[0]]) == title(tunes[pair[1]])]
    print(f"{len(others)} other pairs of tunes, {len(same)} of them with one title; the rest:")
    for first, second in sorted(set(others) - set(same), key=lambda pair: max(others[pair])):
        print(
            f"  {max(others[first, second]):.2f} {first:04d} {second:04d} {title(tunes[first])}, {title(tunes[second])}"
        )
    backwards = [find_twins.Melody(m.name, "", m.pitches[::-1], m.lengths[::-1]) for m in melodies]
    false = find_twins.find(melodies + backwards, len(melodies))
    print(f"{len(false)} twins among {len(melodies) ** 2:,} pairs of a piece and one played backwards")


if __name__ == "__main__":
    main()
