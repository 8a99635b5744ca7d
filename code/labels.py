"""Labelled features: the label of each feature file, stratified splits, scores of predictions."""

import csv
import math
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

import features
import intervals
from features import without_suffix
from files import InputError

PARTS = ("train", "validation", "test")  # subfolders of a split that is given


@dataclass(frozen=True)
class Example:
    """A feature file. Files with the same key and label are one piece, perhaps in ABC and in MTF.

    Files of one group, the segments of a song, say, count as one piece too, of the label that most of them have.
    """

    path: Path
    key: str  # see features.without_suffix
    label: str | None = None
    group: tuple[str, str] | None = None  # its most frequent label, its name

    @property
    def piece(self) -> tuple[str, str]:
        return self.group or (str(self.label), self.key)


def from_name(name: str) -> str | None:
    """Return the file name up to its first underscore, `folder/jig_17.npy` -> `jig`; None if nothing precedes one."""
    label, underscore, _ = PurePosixPath(name).name.partition("_")
    return label if underscore and label else None


def from_csv(path: Path) -> dict[str, str]:
    """Read a CSV of two columns, file and label, as {without_suffix(file): label}; a header line is optional.

    Skips rows with an empty label. Raises InputError and OSError.
    """
    labels: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(reader := csv.reader(file, strict=True)):
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != 2:
                    raise InputError(f"{path}, line {reader.line_num}: {len(row)} columns, not two (file, label)")
                name, label = without_suffix(row[0].strip()), row[1].strip()
                if number == 0 and label.lower() == "label":
                    continue
                if label and (before := labels.setdefault(name, label)) != label:
                    raise InputError(f"{path}, line {reader.line_num}: {row[0]} is {label} here, {before} further up")
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not labels:
        raise InputError(f"{path}: no label in it; a line is: file,label")
    return labels


def assign(names: list[tuple[Path, str]], labels: dict[str, str] | None) -> list[str | None]:
    """Find the label, or None, of each (folder, name in it): by path, else by stem; in the name if `labels` is None.

    Raises InputError if one entry of `labels` fits two pieces.
    """
    if labels is None:
        return [from_name(name) for _, name in names]
    assigned: list[str | None] = []
    users: dict[str | None, set[str]] = defaultdict(set)
    for root, name in names:
        piece = without_suffix(name)
        entries = [piece, (root / piece).as_posix(), PurePosixPath(piece).name]
        entry = next((entry for entry in entries if entry in labels), None)
        assigned.append(labels[entry] if entry else None)
        users[entry].add(piece)
    for entry, pieces in users.items():
        if entry and len(pieces) > 1:
            some = " and ".join(sorted(pieces)[:2])
            raise InputError(f"the label of {entry!r} fits {len(pieces)} pieces, {some}: name them by their paths")
    return assigned


def gather(
    roots: list[Path],
    labelled: bool,
    csv_file: Path | None,
    width: int = 0,
    groups: re.Pattern | None = None,
) -> tuple[list[Example], list[str]]:
    """List the usable feature files below `roots`, with their labels if `labelled`; and why others were left out.

    Raises InputError if nothing is left, if a width is not `width` (0: that of the first), or if `groups`, see `group`,
    does not fit a name.
    """
    paths = [(root, path) for root in roots for path in features.find(root)]
    names = [(root, features.relative_name(path, root)) for root, path in paths]
    known = from_csv(csv_file) if labelled and csv_file else None
    of_file = assign(names, known) if labelled else [None] * len(names)
    examples: list[Example] = []
    left_out: list[str] = []
    whose = f"the model has {width}"
    files = list(zip(paths, names, of_file, strict=True))
    for (_, path), (_, name), label in tqdm(files, desc="checking", unit="file", delay=2, disable=None):
        try:
            if labelled and label is None:
                raise InputError(f"{path}: no label" + ("" if csv_file else " before an underscore in its name"))
            found = features.read(path).shape[-1]
        except InputError as error:
            left_out.append(str(error))
            continue
        if not width:
            width, whose = found, f"{path} has {found}"
        if found != width:
            raise InputError(f"{path}: width {found}, but {whose}: these are features of two models")
        examples.append(Example(path, without_suffix(name), label))
    if not examples:
        raise InputError(f"none of {len(files)} feature files can be used; the first: {left_out[0]}")
    return group(examples, groups) if groups else examples, left_out


def group(examples: list[Example], pattern: re.Pattern) -> list[Example]:
    """Group the files in whose stems the first group of `pattern` is the same. Raises InputError where it fails."""
    names = []
    for example in examples:
        found = pattern.search(PurePosixPath(example.key).name)
        if not found:
            raise InputError(f"{example.path}: --groups {pattern.pattern!r} does not match its name")
        names.append(found[1])
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for example, name in zip(examples, names, strict=True):
        sizes[name][str(example.label)] += 1
    most = {name: max(sorted(found), key=found.__getitem__) for name, found in sizes.items()}
    return [replace(example, group=(most[name], name)) for example, name in zip(examples, names, strict=True)]


def drop_small_classes(examples: list[Example], smallest: int) -> tuple[list[Example], list[str]]:
    """Keep the classes of at least `smallest` pieces; also returns why the other files were left out.

    Raises InputError if fewer than two classes are kept.
    """
    sizes = Counter(str(label) for label, _ in {(example.label, example.piece) for example in examples})
    if sum(size >= smallest for size in sizes.values()) < 2:
        there = ", ".join(f"{label} {size}" for label, size in sizes.most_common(10))
        raise InputError(f"a probe needs two classes of {smallest} pieces or more; there are: {there}")
    kept = [example for example in examples if sizes[str(example.label)] >= smallest]
    small = [example for example in examples if sizes[str(example.label)] < smallest]
    return kept, [f"{item.path}: its class, {item.label}, has fewer than {smallest} pieces" for item in small]


def hold_out(examples: list[Example], share: float, rng: np.random.Generator) -> tuple[list[Example], list[Example]]:
    """Hold out `share` of each class, rounded: at least one piece, but never all. Returns (the others, held out).

    Files of one piece stay together. (A stratified split by scikit-learn may hold out nothing of a small class.)
    """
    held_out = set()
    for pieces in _shuffled_classes(examples, rng):
        count = min(max(1, round(share * len(pieces))), len(pieces) - 1)
        held_out.update(pieces[:count])
    return _split(examples, held_out)


def folds(examples: list[Example], number: int, rng: np.random.Generator) -> list[tuple[list[Example], list[Example]]]:
    """Hold out each piece in one of `number` folds, which differ by one piece of a class at most; see `hold_out`."""
    dealt = [piece for pieces in _shuffled_classes(examples, rng) for piece in pieces]
    return [_split(examples, set(dealt[fold::number])) for fold in range(number)]


def random_split(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out `share` of all pieces, rounded up and whatever their classes, as the published script does."""
    pieces = sorted({example.piece for example in examples}, key=lambda piece: piece[::-1])
    random.Random(seed).shuffle(pieces)
    return _split(examples, set(pieces[: math.ceil(share * len(pieces))]))


def given_split(examples: list[Example]) -> dict[str, list[Example]]:
    """Return the examples below train/, validation/ and test/. Raises InputError for a group that is in two of them."""
    parts: dict[str, list[Example]] = {name: [] for name in PARTS}
    part_of: dict[tuple[str, str], str] = {}
    for example in examples:
        part, _, rest = example.key.partition("/")
        if part not in parts or not rest:
            raise InputError(f"{example.path}: --split needs files in subfolders: {', '.join(PARTS)}")
        if example.group and (other := part_of.setdefault(example.group, part)) != part:
            raise InputError(f"{example.path}: {example.group[1]} is in {other}/ too; a group belongs in one part")
        parts[part].append(example)
    if not (parts["train"] and parts["test"]):
        raise InputError("--split needs files in train/ and in test/")
    return parts


def _shuffled_classes(examples: list[Example], rng: np.random.Generator) -> list[list[tuple[str, str]]]:
    """Shuffle the pieces of each class; the order of the files does not matter."""
    classes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for piece in sorted({example.piece for example in examples}):
        classes[piece[0]].append(piece)
    return [[pieces[index] for index in rng.permutation(len(pieces))] for pieces in classes.values()]


def _split(examples: list[Example], held_out: set[tuple[str, str]]) -> tuple[list[Example], list[Example]]:
    others = [example for example in examples if example.piece not in held_out]
    return others, [example for example in examples if example.piece in held_out]


def scores(confusion: np.ndarray) -> dict[str, float]:
    """Compute accuracy, macro-F1 (0: a class never right) and the largest class's share of [C true, C predicted].

    As in scikit-learn, the mean of macro-F1 is over the classes that some piece has or is given.
    """
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    there = true + predicted > 0
    f1 = 2 * confusion.diagonal()[there] / (true + predicted)[there]
    accuracy, majority = confusion.trace() / true.sum(), true.max() / true.sum()
    return {"accuracy": float(accuracy), "macro_f1": float(f1.mean()), "majority": float(majority)}


def score_intervals(truth: list[int], predicted: list[int], pieces: list) -> dict[str, list[float]]:
    """Compute 95 % intervals of accuracy and macro-F1.

    Args:
        truth, predicted: the number of the class of each file.
        pieces: the piece that each file is of; its files are drawn together.
    """
    count = 1 + max(truth + predicted)
    cells = np.array(truth) * count + predicted

    def drawn(counts: np.ndarray) -> dict[str, float]:
        return scores(np.bincount(cells, counts, count**2).reshape(count, count))

    found = intervals.of_groups(drawn, pieces, np.random.default_rng(0))
    return {name: found[name] for name in ("accuracy", "macro_f1")}
