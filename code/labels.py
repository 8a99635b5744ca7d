"""Labelled pieces: the label of each feature file, splits that keep the share of a class, measures of predictions."""

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

import features
from features import key
from files import InputError


@dataclass(frozen=True)
class Piece:
    path: Path
    key: str  # see features.key: files with the same key and label are one piece, in ABC and MTF, say
    label: str | None = None


def from_name(name: str) -> str | None:
    """`folder/jig_17.npy` -> `jig`: what stands before the first underscore; None if nothing does."""
    label, underscore, _ = PurePosixPath(name).name.partition("_")
    return label if underscore and label else None


def from_csv(path: Path) -> dict[str, str]:
    """A CSV of two columns, file and label (with or without a header line) -> {key(file): label}.

    Entries without a label are left out. Raises InputError and OSError.
    """
    labels: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(reader := csv.reader(file, strict=True)):
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != 2:
                    raise InputError(f"{path}, line {reader.line_num}: {len(row)} columns, not two (file, label)")
                name, label = key(row[0].strip()), row[1].strip()
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
    """The label of each (folder, name in it): from the file name if `labels` is None, else by path, else by stem.

    None where there is no label. Raises InputError if one entry of `labels` fits two pieces.
    """
    if labels is None:
        return [from_name(name) for _, name in names]
    assigned: list[str | None] = []
    users: dict[str, set[str]] = defaultdict(set)
    for root, name in names:
        piece = key(name)
        entries = [piece, (root / piece).as_posix(), PurePosixPath(piece).name]
        entry = next((entry for entry in entries if entry in labels), None)
        assigned.append(None if entry is None else labels[entry])
        if entry is not None:
            users[entry].add(piece)
    for entry, pieces in users.items():
        if len(pieces) > 1:
            some = " and ".join(sorted(pieces)[:2])
            raise InputError(f"the label of {entry!r} fits {len(pieces)} pieces, {some}: name them by their paths")
    return assigned


def gather(roots: list[Path], labelled: bool, csv_file: Path | None, width: int = 0) -> tuple[list[Piece], list[str]]:
    """The usable feature files below `roots`, with their labels if `labelled`; and what was left out, and why.

    Every file is read once. Raises InputError if nothing is left, or if a width is not `width` (0: that of the first).
    """
    found = [(root, path) for root in roots for path in features.find(root)]
    names = [(root, features.relative_name(path, root)) for root, path in found]
    of_file: list[str | None] = [None] * len(found)
    if labelled:
        of_file = assign(names, from_csv(csv_file) if csv_file else None)
    pieces: list[Piece] = []
    left_out: list[str] = []
    whose = f"the model has {width}"
    for number, label in enumerate(tqdm(of_file, desc="checking", unit="file", delay=2, disable=None)):
        path, name = found[number][1], names[number][1]
        if labelled and label is None:
            left_out.append(f"{path}: no label" + ("" if csv_file else " before an underscore in its name"))
            continue
        try:
            found_width = features.read(path).shape[-1]
        except InputError as error:
            left_out.append(str(error))
            continue
        if not width:
            width, whose = found_width, f"{path} has {found_width}"
        if found_width != width:
            raise InputError(f"{path}: width {found_width}, but {whose}: these are features of two models")
        pieces.append(Piece(path, key(name), label))
    if not pieces:
        raise InputError(f"none of {len(found)} feature files can be used; the first: {left_out[0]}")
    return pieces, left_out


def drop_small_classes(pieces: list[Piece], smallest: int) -> tuple[list[Piece], list[str]]:
    """The pieces of the classes that are large enough to be in every part of a split; and what was left out.

    Raises InputError if fewer than two classes are.
    """
    sizes = Counter(label for label, _ in {(piece.label, piece.key) for piece in pieces})
    kept = {label for label, size in sizes.items() if size >= smallest}
    if len(kept) < 2:
        there = ", ".join(f"{label} {size}" for label, size in sizes.most_common(10))
        raise InputError(f"a probe needs two classes of {smallest} pieces or more; there are: {there}")
    left_out = [
        f"{piece.path}: its class, {piece.label}, has fewer than {smallest} pieces"
        for piece in pieces
        if piece.label not in kept
    ]
    return [piece for piece in pieces if piece.label in kept], left_out


# --- splits -----------------------------------------------------------------------------------------------------------


def hold_out(pieces: list[Piece], share: float, rng: np.random.Generator) -> tuple[list[Piece], list[Piece]]:
    """(the others, `share` of each class): one piece at least, but never all; files of one piece stay together."""
    held_out: set[tuple[str | None, str]] = set()
    for members in _by_class(pieces, rng):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out.update(members[:count])
    return _split(pieces, held_out)


def folds(pieces: list[Piece], number: int, rng: np.random.Generator) -> list[tuple[list[Piece], list[Piece]]]:
    """`number` times (the others, those held out): each file is held out once; files of one piece stay together.

    The pieces of a class are dealt out one by one, so that the folds differ by one of each class at most.
    """
    dealt = [member for members in _by_class(pieces, rng) for member in members]
    return [_split(pieces, set(dealt[fold::number])) for fold in range(number)]


def _by_class(pieces: list[Piece], rng: np.random.Generator) -> list[list[tuple[str | None, str]]]:
    """(label, key) of the pieces of each class, shuffled; a piece of several files once."""
    classes: dict[str, list] = defaultdict(list)
    for member in sorted({(str(piece.label), piece.key) for piece in pieces}):
        classes[member[0]].append(member)
    return [[members[index] for index in rng.permutation(len(members))] for members in classes.values()]


def _split(pieces: list[Piece], held_out: set[tuple[str | None, str]]) -> tuple[list[Piece], list[Piece]]:
    return (
        [piece for piece in pieces if (piece.label, piece.key) not in held_out],
        [piece for piece in pieces if (piece.label, piece.key) in held_out],
    )


# --- measures ---------------------------------------------------------------------------------------------------------


def confusion_matrix(truth: list[int], predicted: list[int], num_classes: int) -> np.ndarray:
    """[C, C], C classes: how many of a true class (row) were taken for each class (column)."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def scores(confusion: np.ndarray) -> dict[str, float]:
    """Accuracy, mean F1 of the classes (0 for one that is never right), and the share of the largest class."""
    f1 = 2 * confusion.diagonal() / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1), 1)
    return {
        "accuracy": float(confusion.trace() / confusion.sum()),
        "macro_f1": float(f1.mean()),
        "majority": float(confusion.sum(axis=1).max() / confusion.sum()),
    }
