"""Splits, shares and measures of labelled pieces against values worked out by hand."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

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
    """It is no part of the mean, as in scikit-learn; one that is given to a piece counts 0."""
    matrix = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert labels.scores(matrix) == pytest.approx({"accuracy": 2 / 3, "macro_f1": (4 / 6 * 2) / 2, "majority": 2 / 3})
    matrix = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    expected = {"accuracy": 2 / 3, "macro_f1": (2 / 3 + 1) / 3, "majority": 2 / 3}
    assert labels.scores(matrix) == pytest.approx(expected)


def test_intervals_of_measures_are_those_of_pieces_drawn_one_by_one():
    """A second bootstrap, with scikit-learn's measures: 60 pieces, of which some have two or three files."""
    rng = np.random.default_rng(0)
    pieces = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    truth = (pieces % 4).tolist()
    guesses = np.where(rng.random(60) < 0.6, np.arange(60) % 4, rng.integers(0, 4, 60))
    predicted = guesses[pieces].tolist()
    found = labels.score_intervals(truth, predicted, pieces.tolist())
    drawn = []
    for _ in range(150):
        rows = np.concatenate([np.flatnonzero(pieces == piece) for piece in rng.integers(0, 60, 60)])
        one, other = np.array(truth)[rows], np.array(predicted)[rows]
        drawn.append((metrics.accuracy_score(one, other), metrics.f1_score(one, other, average="macro")))
    for values, name in zip(np.array(drawn).T, ("accuracy", "macro_f1"), strict=True):
        assert found[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.03)
    alone = labels.score_intervals(truth, predicted, list(range(len(pieces))))
    assert np.ptp(alone["accuracy"]) < 0.85 * np.ptp(found["accuracy"])


# --- groups and given splits ------------------------------------------------------------------------------------------

EMOPIA = re.compile(r"^Q\d_(.{11})_")


def clips(*names: str) -> list[Example]:
    return [Example(Path(f"{name}.npy"), name, labels.from_name(name)) for name in names]


def test_the_clips_of_a_song_are_one_piece_of_its_most_frequent_label():
    """Ids of songs may hold _ and -; one song has clips of two labels, as often, and the first in the alphabet counts."""
    songs = clips(
        "x/Q1_a_b-c_d-e_f_0", "x/Q2_a_b-c_d-e_f_1", "Q2_a_b-c_d-e_f_12", "Q4_00000000000_0", "Q3_00000000000_1"
    )
    found = labels.group(songs, EMOPIA)
    assert [example.piece for example in found] == [("Q2", "a_b-c_d-e_f")] * 3 + [("Q3", "00000000000")] * 2
    assert [example.label for example in found] == ["Q1", "Q2", "Q2", "Q4", "Q3"]
    with pytest.raises(InputError, match=r"Q1_short_0\.npy: --groups .* does not match its name"):
        labels.group(clips("Q1_short_0"), EMOPIA)


def test_no_song_is_on_both_sides_of_a_split():
    rng = np.random.default_rng(0)
    names = [f"Q{rng.integers(1, 5)}_{song:011d}_{clip}" for song in range(60) for clip in range(rng.integers(1, 6))]
    songs = labels.group(clips(*names), EMOPIA)
    splits = [labels.hold_out(songs, 0.2, rng), *labels.folds(songs, 5, rng), labels.random_split(songs, 0.2, 42)]
    for others, held_out in splits:
        assert not {song.key[3:14] for song in others} & {song.key[3:14] for song in held_out}
        assert Counter([*others, *held_out]) == Counter(songs)
        assert 10 <= len({song.piece for song in held_out}) <= 14  # of 60 songs


@pytest.mark.parametrize(("count", "held"), [(204, 41), (411, 83), (1010, 202)])
def test_a_random_split_holds_out_a_fifth_rounded_up(count, held):
    """As many as the published accuracies are fractions of: 33/41 = .8049, 74/83 = .8916, 94/202 = .4653."""
    pieces = pieces_of({"a": count - 20, "b": 20})
    others, held_out = labels.random_split(pieces, 0.2, 42)
    assert (len(others), len(held_out)) == (count - held, held)
    assert labels.random_split(pieces[::-1], 0.2, 42)[1] == held_out[::-1]
    drawn = [sum(p.label == "b" for p in labels.random_split(pieces, 0.2, seed)[1]) for seed in range(30)]
    assert len(set(drawn)) > 3 and 2 < np.mean(drawn) < 6  # not stratified


def test_a_split_that_folders_give():
    """Names may be numbers that begin anew in each part; groups may not."""
    pieces = clips("train/a_1", "train/deep/b_1", "test/a_1", "validation/b_2")
    parts = labels.given_split(pieces)
    assert {name: [piece.key for piece in part] for name, part in parts.items()} == {
        "train": ["train/a_1", "train/deep/b_1"],
        "validation": ["validation/b_2"],
        "test": ["test/a_1"],
    }
    for names, problem in (
        (["train/a_1", "a_2"], "subfolders: train, validation, test"),
        (["train/a_1", "other/a_2"], "subfolders: train, validation, test"),
        (["train/a_1", "validation/a_2"], "files in train/ and in test/"),
    ):
        with pytest.raises(InputError, match=problem):
            labels.given_split(clips(*names))
    songs = labels.group(clips("train/Q1_00000000000_0", "test/Q2_00000000000_1"), EMOPIA)
    with pytest.raises(InputError, match="00000000000 is in train/ too"):
        labels.given_split(songs)


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
