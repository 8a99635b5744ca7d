"""Find twins: the same tune in another key, octave, tempo, voicing or file type, or under another title.

examples:
  python find_twins.py music/                                       # duplicates within a collection
  python find_twins.py music/ --drop drop.txt --json twins.json     # the names to drop, and all evidence
  python find_twins.py train/ --other test/ --drop drop.txt         # the pieces of train/ that test/ holds, too

Two pieces are twins if their melodies share half of their steps (--shared): the same intervals in the same rhythm and
in the same order, five notes or more in a row. It is half of the shorter piece, so that an excerpt is a twin of the
whole. The melody is what sounds highest; octaves, the key and a factor of all note values make no difference. No model
is needed. Of each group the piece with most notes is kept; with --other, the pieces of OTHER are.

Folders hold music (.abc .mtf .mid .midi .kar .rmi .xml .musicxml .mxl, in any mix); `book.abc#2` is the second tune of
a book. Files that cannot be used are counted and named. Exit status: 0; 1 if a file was left out; 2 if nothing could be
done.
"""

import argparse
import functools
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports below, which take a while

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

import features
import files
import notes
import pieces
from conversions import workers
from files import InputError

SUFFIXES = tuple(suffix for suffix in features.INPUT_SUFFIXES if suffix != ".txt")
RARE_RUN, RUN = 8, 4  # steps in a row: that make two pieces candidates, and that count as shared
CANDIDATES = 0.1  # of the shorter piece's rare runs are shared by candidates; twins share far more
SHARED = 0.5  # of the shorter piece's steps are shared by twins
COMMON = 50  # occurrences in a piece: a more frequent run begins no match, or tremolos would take hours
RHYTHM = 1.4  # a shared note may be longer or shorter by this factor, which is less than a dot
CHUNK = 512  # pieces compared with all others at a time
TIMEOUT = 600  # seconds for a file: a book of 5,000 tunes takes six minutes


@dataclass
class Melody:
    """The melody of a piece, its highest notes: N notes, and the N - 1 steps between them."""

    name: str
    title: str
    pitches: np.ndarray  # [N] MIDI pitches
    lengths: np.ndarray  # [N - 1] from the start of a note to that of the next one

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Intervals [N - 1] in semitones, without octaves: 0..11."""
        return np.diff(self.pitches) % 12

    def runs(self, length: int) -> np.ndarray:
        """Each `length` steps in a row as one number [N - length]."""
        return np.lib.stride_tricks.sliding_window_view(self.steps, length) @ 12 ** np.arange(length)


@dataclass
class Twins:
    """The rows of two melodies, and why they are one tune. Values are of the second relative to the first."""

    first: int
    second: int
    shared: float  # of the steps of the shorter one
    semitones: int
    note_values: float  # times as long


def read_folder(folder: Path) -> tuple[list[Melody], list[str]]:
    """Return the melodies of a folder or file, and "name: reason" of what was left out. Raises InputError, OSError."""
    found, others = files.list_files(folder, SUFFIXES)
    if not found:
        hint = "; features hold no notes" if any(path.suffix.lower() == ".npy" for path in others) else ""
        raise InputError(
            f"{folder}: there is no music in it ({files.counted(len(others), 'files of other types')}{hint})"
        )
    if others:
        print(
            files.printable(f"{folder}: {files.counted(len(others), 'files of other types')} left alone"),
            file=sys.stderr,
        )
    base = folder.parent if folder.is_file() else folder
    answers = workers.run(notes.melodies, [base / path for path in found], TIMEOUT)
    melodies, skipped = [], []
    for path, answer in tqdm(answers, f"reading {folder.name}", len(found), unit="file", delay=2, disable=None):
        if isinstance(answer, workers.Failed):
            skipped.append(f"{path}: {answer.reason}")
            continue
        for name, (title, pitches, lengths, error) in zip(pieces.names(str(path), len(answer)), answer, strict=True):
            if error:
                skipped.append(f"{name}: {error}")
            else:
                melodies.append(Melody(name, title, pitches, lengths))
    if not melodies:
        raise InputError(
            f"{folder}: of its {files.counted(len(found), 'files')}, none can be used; the first: {min(skipped)}"
        )
    return sorted(melodies, key=lambda melody: melody.name), sorted(skipped)


# --- comparing --------------------------------------------------------------------------------------------------------


def candidates(melodies: list[Melody], others: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the rows of two melodies that share CANDIDATES of the rare runs of the one that has fewer.

    others: so many, the first ones, are of another collection; only pairs between the two are wanted.
    """
    runs = [np.unique(melody.runs(RARE_RUN)) for melody in melodies]
    sizes = np.array([len(of_one) for of_one in runs])
    columns = np.unique(np.concatenate(runs), return_inverse=True)[1]
    holds = csr_matrix((np.ones(len(columns), np.int32), columns, np.concatenate([[0], np.cumsum(sizes)])))
    held_by = holds[: others or None].T.tocsr()
    for start in range(others, len(melodies), CHUNK):
        shared = (holds[start : start + CHUNK] @ held_by).tocoo()
        first, second = shared.col, shared.row + start
        wanted = (first < second) & (shared.data >= CANDIDATES * np.minimum(sizes[first], sizes[second]))
        yield from zip(first[wanted].tolist(), second[wanted].tolist(), strict=True)


def compare(first: Melody, second: Melody) -> tuple[float, int, float]:
    """Align two melodies. Returns the shared part of the shorter one's steps, semitones and factor of note values."""
    runs = second.runs(RUN).tolist()
    count = Counter(runs)
    matcher = SequenceMatcher(lambda run: count[run] > COMMON, first.runs(RUN).tolist(), runs, autojunk=False)
    partner: dict[int, int] = {}  # row of a step -> that of the same one of the other
    for start, other, size in matcher.get_matching_blocks():
        partner |= {start + step: other + step for step in range(size + RUN - 1 if size else 0)}
    if not partner:
        return 0.0, 0, 1.0
    rows, others = np.array(list(partner.items())).T
    factors = second.lengths[others] / first.lengths[rows]
    factor = float(np.median(factors))
    in_rhythm = (factors < factor * RHYTHM) & (factors > factor / RHYTHM)
    shared = min(len(np.unique(rows[in_rhythm])), len(np.unique(others[in_rhythm])))
    semitones = statistics.mode((second.pitches[others] - first.pitches[rows]).tolist())
    return shared / min(len(first.steps), len(second.steps)), semitones, factor


def find(melodies: list[Melody], others: int = 0, threshold: float = SHARED) -> list[Twins]:
    """Return the pairs of melodies that are twins; `others` as in `candidates`."""
    compared = (Twins(a, b, *compare(melodies[a], melodies[b])) for a, b in candidates(melodies, others))
    return [pair for pair in compared if pair.shared >= threshold]


# --- reporting --------------------------------------------------------------------------------------------------------


def groups_of(melodies: list[Melody], twins: list[Twins], others: int = 0) -> list[dict]:
    """Group melodies that are twins, directly or by way of others, and choose which to keep.

    The `others` are all kept. Of the rest, from most notes to fewest, a melody is kept unless it is a twin of one that
    is kept; a dropped one is listed with the most similar of those.
    """
    rows, columns = [pair.first for pair in twins], [pair.second for pair in twins]
    graph = csr_matrix((np.ones(len(twins)), (rows, columns)), (len(melodies), len(melodies)))
    labels = connected_components(graph, directed=False)[1]
    twins_of: dict[int, list[tuple[float, int, int, float]]] = defaultdict(list)  # (shared, row, ...) against that row
    for pair in twins:
        twins_of[pair.second].append((pair.shared, pair.first, pair.semitones, pair.note_values))
        twins_of[pair.first].append((pair.shared, pair.second, -pair.semitones, 1 / pair.note_values))
    kept: set[int] = set()
    groups: dict[int, dict] = defaultdict(lambda: {"keep": [], "drop": []})
    for row in sorted(twins_of, key=lambda row: (row >= others, -len(melodies[row].pitches), row)):
        melody, group = melodies[row], groups[labels[row]]
        about = {"name": melody.name, "title": melody.title, "notes": len(melody.pitches)}
        best = max((twin for twin in twins_of[row] if twin[1] in kept), default=None)
        if best is None:
            kept.add(row)
            group["keep"].append(about)
        else:
            shared, twin, semitones, values = best
            evidence = {"twin": melodies[twin].name, "shared": round(shared, 4), "semitones": semitones}
            group["drop"].append(about | evidence | {"note_values": round(values, 4)})
    return list(groups.values())


def print_group(group: dict) -> None:
    for action in ("keep", "drop"):
        for piece in group[action]:
            line = f"  {action}  {piece['name']}  {piece['title']}".rstrip() + f" ({piece['notes']} notes)"
            if action == "drop":
                line += f": {piece['shared']:.0%} shared with {piece['twin']}"
                if piece["semitones"]:
                    line += f", {abs(piece['semitones'])} semitones {'up' if piece['semitones'] > 0 else 'down'}"
                if abs(piece["note_values"] - 1) > 0.01:
                    line += f", note values x {piece['note_values']:.3g}"
            print(files.printable(line))
    print()


def find_twins(args: argparse.Namespace) -> int:
    if args.other and (_holds(args.music, args.other) or _holds(args.other, args.music)):
        raise InputError(f"{args.music} and {args.other}: one holds the other, whose pieces would be their own twins")
    melodies, skipped = read_folder(args.music)
    left_out = {str(args.music): skipped}
    others: list[Melody] = []
    if args.other:
        others, left_out[str(args.other)] = read_folder(args.other)
    elif len(melodies) < 2:
        raise InputError(f"{args.music}: holds one piece that can be used; a second one, or --other, is needed")
    melodies = others + melodies
    twins = find(melodies, len(others), args.shared)
    groups = groups_of(melodies, twins, len(others))
    for group in groups:
        print_group(group)
    dropped = [piece["name"] for group in groups for piece in group["drop"]]
    where = f" with {len(others)} of {args.other}" if args.other else ""
    compared = f"{len(melodies) - len(others)} pieces of {args.music} compared{where}"
    print(files.printable(f"{compared}: pairs of twins: {len(twins)}, groups: {len(groups)}, to drop: {len(dropped)}"))
    if args.drop:
        with files.atomic_write(args.drop, "w", encoding="utf-8", errors="surrogateescape") as file:  # as on the disk
            file.writelines((files.printable(name) if "\n" in name else name) + "\n" for name in sorted(dropped))
    for folder, names in left_out.items():
        features.report(f"of {folder} left out", names)
    if args.json:
        pairs = [
            asdict(pair) | {"first": melodies[pair.first].name, "second": melodies[pair.second].name} for pair in twins
        ]
        features.write_json(args.json, {"groups": groups, "twins": pairs, "skipped": left_out})
    return 1 if any(left_out.values()) else 0


def _holds(folder: Path, other: Path) -> bool:
    return other.resolve().is_relative_to(folder.resolve())


def get_args_parser() -> argparse.ArgumentParser:
    parser = command_line.summarized(__doc__)
    parser.set_defaults(run=find_twins)
    parser.add_argument("music", metavar="MUSIC", type=Path, help="a folder of music, or one file")
    parser.add_argument(
        "--other", metavar="OTHER", type=Path, help="find the twins between MUSIC and this folder instead"
    )
    about = f"of the shorter piece, which twins share (default: {SHARED})"
    parser.add_argument("--shared", metavar="PART", type=part, default=SHARED, help=about)
    parser.add_argument(
        "--drop", metavar="FILE", type=Path, help="write the names of the pieces to drop there, one a line"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write groups, all pairs and what was left out there")
    return parser


def part(text: str) -> float:
    number = float(text)  # argparse reports a ValueError
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text}: not a part, from 0 to 1")
    return number


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
