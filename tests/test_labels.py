"""Splits, shares and measures of labelled pieces against values worked out by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import labels
from files import InputError
from labels import Example


def pieces_of(sizes: dict[str, int], copies: int = 1) -> list[Example]:
    """`copies` files of each piece. Keys are numbers: pieces of two classes may have the same one."""
    return [
        Example(Path(f"{copy}/{label}{index}.npy"), str(index), label)
        for label, size in sizes.items()
        for index in range(size)
        for copy in range(copies)
    ]


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "held"),
    [
        (0.2, {1: 0, 2: 1, 3: 1, 7: 1, 8: 2, 12: 2, 13: 3, 18: 4}),  # 1.4, 1.6, 2.4, 2.6 and 3.6 are rounded
        (0.1, {1: 0, 2: 1, 14: 1, 16: 2, 24: 2, 26: 3}),
        (0.9, {1: 0, 2: 1, 3: 2, 4: 3, 30: 27}),  # one is left
    ],
)
@pytest.mark.parametrize("copies", [1, 3])
def test_the_share_that_is_held_out_is_rounded(share, held, copies):
    sizes = {f"class {size}": size for size in held}
    pieces = pieces_of(sizes, copies)
    others, held_out = labels.hold_out(pieces, share, np.random.default_rng(0))
    counts = Counter(piece.label for piece in held_out)
    assert {size: counts[f"class {size}"] for size in held} == {size: count * copies for size, count in held.items()}
    assert Counter(others) + Counter(held_out) == Counter(pieces)
    assert not {(p.label, p.key) for p in others} & {(p.label, p.key) for p in held_out}


def test_the_order_of_the_files_does_not_matter():
    pieces = pieces_of({"a": 9, "b": 14})
    for split in (labels.hold_out, lambda p, share, rng: labels.folds(p, 3, rng)[0]):
        first = split(pieces, 0.2, np.random.default_rng(5))[1]
        again = split(pieces[::-1], 0.2, np.random.default_rng(5))[1]
        assert set(first) == set(again)


def test_folds_differ_by_one_of_each_class_and_are_drawn():
    pieces = pieces_of({"a": 11, "b": 5, "c": 4}, copies=2)
    splits = labels.folds(pieces, 4, np.random.default_rng(0))
    for label, sizes in (("a", [2, 3, 3, 3]), ("b", [1, 1, 1, 2]), ("c", [1] * 4)):
        assert sorted(sum(piece.label == label for piece in held) // 2 for _, held in splits) == sizes
    assert sorted(len(held) // 2 for _, held in splits) == [5] * 4
    assert Counter(piece for _, held in splits for piece in held) == Counter(pieces)
    for others, held in splits:
        assert Counter(others) + Counter(held) == Counter(pieces)
    keys = [{piece.key for piece in held if piece.label == "a"} for _, held in splits]
    in_order = [{str(index) for index in range(first, 11, 4)} for first in range(4)]
    assert keys != in_order != sorted(keys, key=sorted)


def test_every_two_pieces_are_held_out_together_equally_often():
    """Of 10 pieces, 2 together in 1 of 45 draws: of 4500, 100 with a deviation of 9.9; five of them are allowed."""
    rng, pieces = np.random.default_rng(0), pieces_of({"a": 10, "b": 10})
    pairs = Counter()
    for _ in range(4500):
        held_out = labels.hold_out(pieces, 0.2, rng)[1]
        pairs[tuple(sorted(int(piece.key) for piece in held_out if piece.label == "a"))] += 1
    assert len(pairs) == 45 and all(50 < count < 150 for count in pairs.values())


# --- classes ----------------------------------------------------------------------------------------------------------


def test_a_class_of_just_enough_pieces_stays():
    pieces = pieces_of({"a": 5, "b": 3, "c": 2, "d": 1})
    kept, left_out = labels.drop_small_classes(pieces, 3)
    assert Counter(piece.label for piece in kept) == {"a": 5, "b": 3}
    assert left_out == [
        *(f"0/c{index}.npy: its class, c, has fewer than 3 pieces" for index in range(2)),
        "0/d0.npy: its class, d, has fewer than 3 pieces",
    ]
    with pytest.raises(InputError, match="two classes of 4 pieces or more; there are: a 5, b 3, c 2, d 1"):
        labels.drop_small_classes(pieces, 4)


def test_a_class_is_measured_in_pieces_not_in_files():
    pieces = pieces_of({"a": 3, "b": 3}) + pieces_of({"c": 2}, copies=5)
    kept, left_out = labels.drop_small_classes(pieces, 3)
    assert {piece.label for piece in kept} == {"a", "b"} and len(left_out) == 10


# --- measures ---------------------------------------------------------------------------------------------------------


def test_measures_worked_out_by_hand():
    """Three classes of 5, 4 and 1; the last is never predicted."""
    scores = labels.scores(np.array([[3, 2, 0], [1, 3, 0], [0, 1, 0]]))
    f1 = [2 * 3 / (5 + 4), 2 * 3 / (4 + 6), 0]  # twice the hits by those there are and those predicted
    assert scores == pytest.approx({"accuracy": 0.6, "macro_f1": sum(f1) / 3, "majority": 0.5})


def test_measures_of_a_class_that_is_nowhere():
    matrix = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert labels.scores(matrix) == pytest.approx({"accuracy": 2 / 3, "macro_f1": (4 / 6 * 2) / 3, "majority": 2 / 3})


# --- labels -----------------------------------------------------------------------------------------------------------


def test_only_the_first_line_of_a_csv_is_a_header(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("a,Label\nb,label\nc,x\nc.npy,x\nd,\nd,y\n")
    assert labels.from_csv(table) == {"b": "label", "c": "x", "d": "y"}
    table.write_text("\ufeffa,x\nb,label\n", encoding="utf-8")
    assert labels.from_csv(table) == {"a": "x", "b": "label"}


def test_the_path_of_a_file_counts_before_its_stem():
    names = [(Path("one"), "x/a.npy"), (Path("two"), "a.npy"), (Path("three"), "y/a.abc.npy")]
    assert labels.assign(names[:2], {"x/a": "path", "two/a": "folder", "a": "stem"}) == ["path", "stem"]
    assert labels.assign(names[2:], {"one/y/a": "another folder", "a": "stem"}) == ["stem"]
    assert labels.assign(names, {"x/a": "path", "two/a": "folder", "three/y/a": "whole"}) == ["path", "folder", "whole"]


def test_gathered_pieces_have_the_key_and_label_of_their_names(tmp_path):
    for name, length in (("a/jig_1.abc.npy", 1), ("a/jig_1.npy", 4), ("b/slow_reel_2.npy", 2), ("c/none.npy", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.ones((1, length, 3), np.float32))
    pieces, left_out = labels.gather([tmp_path], True, None)
    assert [(piece.key, piece.label) for piece in pieces] == [
        ("a/jig_1", "jig"),
        ("a/jig_1", "jig"),
        ("b/slow_reel_2", "slow"),
    ]
    assert left_out == [f"{tmp_path}/c/none.npy: no label before an underscore in its name"]
    unlabelled, left_out = labels.gather([tmp_path / "a", tmp_path / "c" / "none.npy"], False, None, 3)
    assert [(piece.key, piece.label) for piece in unlabelled] == [("jig_1", None), ("jig_1", None), ("none", None)]
    assert left_out == []
