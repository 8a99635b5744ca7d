"""Every random choice in training has its distribution, and every choice in evaluation is the one that is documented.

A share is checked to five standard deviations of its number of draws, and the nearest plausible wrong share must be
five of its own away from that bound, so that no seed decides.
"""

import functools
import json
import math
import random
from collections import Counter
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import config
import train_clamp2
import train_m3
from files import InputError
from helpers import KIT
from loading import Batches, PieceDataset
from patches import BOS, EOS, MASK, PAD, M3Patchilizer, corrupt_patches, remove_instrument_info
from processes import Processes
from texts import tokenize
from train_clamp2 import choose_text
from utils import split_data

TOKENIZER = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
VIOLIN = 'K:C\nV:1 treble nm="Violin" snm="Vl."\n[V:1]AB|c2|\n'
STRINGS = "ticks_per_beat 480\nprogram_change 0 0 48\nnote_on 0 0 60 64\nnote_on 480 0 60 0\nend_of_track 0\n"
CELLO = 'K:G\nV:1 bass nm="Cello"\n[V:1]E|\n'
BARS = "K:C\n[V:1]" + "".join(f"{note}|" for note in "ABcdef") + "\n"  # nine patches, with the special ones


def assert_shares(outcomes, shares):
    """shares: outcome -> (its share, the nearest wrong one). There is no other outcome."""
    counts = Counter(outcomes)
    total = counts.total()
    assert counts.keys() <= shares.keys()
    for outcome, (share, wrong) in shares.items():
        bound, of_wrong = (5 * math.sqrt(total * p * (1 - p)) for p in (share, wrong))
        assert abs(share - wrong) * total > bound + of_wrong, "too few draws"
        assert abs(counts[outcome] - share * total) < bound, (outcome, counts[outcome] / total, share)


@functools.cache
def patches_of(text):
    return np.asarray(M3Patchilizer().encode(text, add_special_patches=True))


def same(array, other):
    return np.array_equal(np.asarray(array), np.asarray(other))


def m3_dataset(folder, texts, train=True, seed=0):
    """texts: name -> content."""
    for name, text in texts.items():
        (folder / name).write_text(text)
    return train_m3.M3Dataset([str(folder / name) for name in texts], train, seed)


def clamp2_dataset(folder, texts, records, train=True, seed=0):
    for name, text in texts.items():
        (folder / name).write_text(text)
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return train_clamp2.CLaMP2Dataset(train_clamp2.Jsonl(path), list(range(len(records))), TOKENIZER, train, seed)


def dataset_of(model, folder, text, train=True, seed=0, copies=1, title="x"):
    """A dataset of either training whose every piece is `text`."""
    suffix = ".mtf" if text.startswith("ticks_per_beat ") else ".abc"
    names = [f"{number}{suffix}" for number in range(copies)]
    texts = dict.fromkeys(names, text)
    if model == "m3":
        return m3_dataset(folder, texts, train, seed)
    return clamp2_dataset(folder, texts, [{"title": title, "filepaths": [name]} for name in names], train, seed)


def music_of(sample):
    """The patches of a sample of either training, not corrupted."""
    return np.asarray(sample["target"] if "target" in sample else sample["music"])


def removal(sample, text):
    """Whether a sample of this text is without its instruments."""
    with_instruments, without = patches_of(text), patches_of(remove_instrument_info(text))
    music = music_of(sample)
    assert same(music, without) != same(music, with_instruments)
    return same(music, without)


def kind_of(corrupted, patches, selected):
    """What was done to the selected patches of a piece."""
    corrupted, patches, selected = map(np.asarray, (corrupted, patches, selected))
    if (corrupted[selected] == MASK).all():
        return "mask"
    return "as it was" if same(corrupted, patches) else "shuffle"


both = pytest.mark.parametrize("model", ["m3", "clamp2"])


# --- the text of a piece in training --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("english", "other", "shares"),
    [
        # wrong: metadata no likelier than each kind of summaries; every summary as likely as the others
        ("e", {"summary": "o"}, {"e": (1 / 4, 1 / 3), "o": (1 / 4, 1 / 3)}),
        ("e", [{"summary": x} for x in "opq"], {"e": (1 / 4, 1 / 8), **dict.fromkeys("opq", (1 / 12, 1 / 8))}),
        (["d", "e", "f"], [{"summary": "o"}], {"o": (1 / 4, 1 / 8), **dict.fromkeys("def", (1 / 12, 1 / 8))}),
    ],
)
def test_half_of_the_texts_are_metadata_and_a_quarter_summaries_of_each_kind(english, other, shares):
    """However many summaries there are of a kind: they share its quarter."""
    record = {"title": "meta", "summary_en": english, "summary_nen": other}
    rng = random.Random(0)
    texts = [choose_text(record, rng) for _ in range(10_000)]
    assert all(len(lines) == 1 for lines in texts)
    assert_shares((lines[0] for lines in texts), {"meta": (1 / 2, 0.45), **shares})


@pytest.mark.parametrize("field", ["summary_en", "summary_nen"])
def test_summaries_of_one_kind_have_the_half_that_is_not_metadata(field):
    record = {"title": "meta", field: ["s0", "s1"] if field == "summary_en" else [{"summary": "s0"}, {"summary": "s1"}]}
    rng = random.Random(0)
    shares = {"meta": (1 / 2, 0.45), "s0": (1 / 4, 1 / 3), "s1": (1 / 4, 1 / 3)}
    assert_shares((choose_text(record, rng)[0] for _ in range(10_000)), shares)


def test_each_line_of_metadata_is_kept_with_probability_one_half_and_all_if_none_was_in_any_order():
    """The whole distribution for three lines: every subset, in every order."""
    lines = ("a", "b", "c")
    orders = {order: None for size in (1, 2, 3) for order in permutations(lines, size)}
    for order in orders:
        # wrong: one line where none was kept; no order but the given one, or only rotations of it
        orders[order] = {1: (1 / 8, 1 / 8 + 1 / 24), 2: (1 / 16, 1 / 8), 3: (1 / 4 / 6, 1 / 4 / 3)}[len(order)]
    rng = random.Random(0)
    record = {"title": "a", "genres": ["b"], "description": "c"}
    assert_shares((tuple(choose_text(record, rng)) for _ in range(9000)), orders)


def test_a_line_among_many_is_kept_with_probability_one_half():
    record = {"tags": [f"line {number}" for number in range(10)]}
    rng = random.Random(0)
    kept = sum(len(choose_text(record, rng)) for _ in range(2000))
    share = 1 / 2 + 2**-10  # all ten instead of none, once in 1024
    assert_shares([True] * kept + [False] * (20_000 - kept), {True: (share, 0.45), False: (1 - share, 0.55)})


# --- the music of a piece in training -------------------------------------------------------------------------------
def test_m3_keeps_the_instruments_and_corrupts_nine_pieces_in_ten(tmp_path):
    texts = [VIOLIN, STRINGS]
    dataset = m3_dataset(tmp_path, {"a.abc": VIOLIN, "b.mtf": STRINGS})
    samples = [(text, dataset[epoch, index]) for epoch in range(2250) for index, text in enumerate(texts)]
    assert not any(removal(sample, text) for text, sample in samples)
    kinds = (kind_of(sample["input"], sample["target"], sample["selected"]) for _, sample in samples)
    assert_shares(kinds, {"mask": (0.8, 0.9), "shuffle": (0.1, 0.2), "as it was": (0.1, 0.2)})


def test_clamp2_draws_text_and_file_and_the_removal_of_instruments_apart(tmp_path):
    """Each with its share, and each pair with the product of its shares."""
    texts = {"a.abc": VIOLIN, "b.mtf": STRINGS, "c.abc": CELLO}
    record = {"summary_en": "one", "summary_nen": {"summary": "other"}, "filepaths": list(texts)}
    dataset = clamp2_dataset(tmp_path, texts, [record])
    one, other = (tokenize(text, TOKENIZER) for text in ("one", "other"))
    seen = []
    for epoch in range(4500):
        sample = dataset[epoch, 0]
        name = Path(sample["name"]).name
        assert same(sample["text"], one) or same(sample["text"], other)
        seen.append((same(sample["text"], one), name, removal(sample, texts[name])))
    assert_shares((removed for _, _, removed in seen), {True: (0.9, 0.85), False: (0.1, 0.15)})
    assert_shares((name for _, name, _ in seen), dict.fromkeys(texts, (1 / 3, 1 / 4)))
    assert_shares((is_one for is_one, _, _ in seen), {True: (1 / 2, 0.4), False: (1 / 2, 0.6)})
    # wrong: one of two decides the other
    share = {True: 0.9, False: 0.1}
    assert_shares((pair[:2] for pair in seen), {(t, name): (1 / 6, 1 / 3) for t in share for name in texts})
    assert_shares((pair[1:] for pair in seen), {(name, r): (share[r] / 3, share[r]) for name in texts for r in share})
    assert_shares((pair[::2] for pair in seen), {(t, r): (share[r] / 2, share[r]) for t in share for r in share})


@both
def test_a_long_piece_is_cut_to_its_head_its_tail_or_a_random_part_equally_likely(tmp_path, model):
    dataset = dataset_of(model, tmp_path, BARS)
    dataset.patchilizer = M3Patchilizer(patch_length=6)
    whole = patches_of(BARS)
    assert len(whole) == 9  # so that a part begins at 0, 1, 2 or 3
    starts = []
    for epoch in range(3500):
        part = music_of(dataset[epoch, 0])
        starts += [start for start in range(4) if same(part, whole[start : start + 6])]
        assert len(starts) == epoch + 1
    # wrong: a random part that is never the head, or the tail, or neither; a fourth each
    shares = {0: (1 / 3 + 1 / 12, 1 / 3), 1: (1 / 12, 1 / 6), 2: (1 / 12, 1 / 6), 3: (1 / 3 + 1 / 12, 1 / 3)}
    assert_shares(starts, shares)


@both
@pytest.mark.parametrize("train", [True, False])
def test_a_piece_as_long_as_the_limit_is_not_cut(tmp_path, model, train):
    dataset = dataset_of(model, tmp_path, BARS, train)
    dataset.patchilizer = M3Patchilizer(patch_length=9)
    assert all(same(music_of(dataset[epoch, 0]), patches_of(BARS)) for epoch in range(20))


@both
def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(tmp_path, model):
    """Nor on how these are written in a row (1 11 and 11 1), nor on the state of the process."""
    text = "K:C\n[V:1]" + "AB|" * 200 + "\n"
    title = "\n".join(map("".join, product("aeiou", "lmnrst")))

    def drawn(seed, epoch, index):
        dataset = dataset_of(model, tmp_path, text, seed=seed, copies=12, title=title)
        sample = dataset[epoch, index]
        return bytes(np.asarray(sample["selected" if model == "m3" else "text"]))

    keys = list(product((0, 1, 11), (1, 11), (1, 11)))
    random.seed(1)
    np.random.seed(1)
    first = [drawn(*key) for key in keys]
    assert len(set(first)) == len(keys)
    random.seed(2)
    np.random.seed(2)
    assert [drawn(*key) for key in reversed(keys)] == first[::-1]


@both
def test_the_part_of_a_long_piece_depends_on_the_key_alone(tmp_path, model):
    dataset = dataset_of(model, tmp_path, BARS)
    dataset.patchilizer = M3Patchilizer(patch_length=6)
    random.seed(1)
    parts = [music_of(dataset[epoch, 0]).tobytes() for epoch in range(40)]
    random.seed(2)
    assert [music_of(dataset[epoch, 0]).tobytes() for epoch in range(40)] == parts


# --- the music and the text of a piece in evaluation ----------------------------------------------------------------
@both
@pytest.mark.parametrize("text", [VIOLIN, STRINGS, BARS])
def test_evaluation_takes_the_head_of_a_piece_with_its_instruments(tmp_path, model, text):
    for seed in range(8):
        dataset = dataset_of(model, tmp_path, text, False, seed, copies=3)
        dataset.patchilizer = M3Patchilizer(patch_length=5)
        for index in range(3):
            sample = dataset[0, index]
            assert same(music_of(sample), patches_of(text)[:5])
            if model == "m3":  # nothing is corrupted: the decoder restores patches from what the encoder has seen
                assert same(sample["input"], sample["target"])
                assert np.asarray(sample["selected"]).sum() == math.ceil(0.45 * len(sample["target"]))


METADATA = {"title": "A title", "tags": ["second", "third"]}
ONE = {"language": "French", "summary": "un"}
TWO = [{"language": "German", "summary": "eins"}, ONE]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"summary_en": "one", "summary_nen": ONE}, "one"),
        ({"summary_en": ["one", "two"], "summary_nen": TWO}, "one"),
        ({"summary_en": [None, "", "two"], "summary_nen": TWO}, "two"),
        ({"summary_nen": ONE}, "un"),
        ({"summary_en": None, "summary_nen": TWO}, "eins"),
        ({"summary_en": " ", "summary_nen": TWO}, "eins"),
        ({"summary_en": [], "summary_nen": [{"language": "German", "summary": None}, ONE]}, "un"),
        ({}, "A title</s>second</s>third"),
        ({"summary_en": None, "summary_nen": {"language": None, "summary": None}}, "A title</s>second</s>third"),
    ],
)
def test_text_in_evaluation_and_in_training_without_text_dropout(tmp_path, monkeypatch, train, fields, expected):
    monkeypatch.setattr(config, "TEXT_DROPOUT", not train)
    for number in range(4):
        record = METADATA | fields | {"filepaths": ["a.abc"]}
        dataset = clamp2_dataset(tmp_path, {"a.abc": VIOLIN}, [record], train, seed=number)
        assert same(dataset[number, 0]["text"], tokenize(expected, TOKENIZER))


@pytest.mark.parametrize("train", [True, False])
def test_a_record_without_text_is_bad(tmp_path, train):
    records = [{"filepaths": ["a.abc"], "tags": [], "summary_en": ""}, {"title": "x", "filepaths": ["a.abc"]}]
    sample = clamp2_dataset(tmp_path, {"a.abc": VIOLIN}, records, train)[0, 0]
    assert same(sample["text"], tokenize("x", TOKENIZER))
    assert "records.jsonl, line 1: there is no text in it" in sample["problems"][0]


def test_a_dataset_of_some_lines_of_a_file(tmp_path):
    """As the split gives them: the records of those lines, and nothing of the others."""
    records = [{"title": word, "filepaths": ["a.abc"]} for word in ("one", "two", "other", "me", "you")]
    whole = clamp2_dataset(tmp_path, {"a.abc": VIOLIN}, records)
    some = train_clamp2.CLaMP2Dataset(whole.records, [3, 1], TOKENIZER, True, 0)
    assert len(some) == 2
    assert [TOKENIZER.decode(some[0, index]["text"], skip_special_tokens=True) for index in (0, 1)] == ["me", "two"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.mtf", "b.abc", "c.abc"], "b.abc"),
        (["c.abc", "b.abc", "a.mtf"], "c.abc"),
        (["a.mtf", "d.ABC"], "d.ABC"),
        (["a.mtf", "e.mtf"], "a.mtf"),
        (["e.mtf", "a.mtf"], "e.mtf"),
    ],
)
def test_evaluation_takes_the_first_abc_file_or_else_the_first_file(tmp_path, files, expected):
    texts = {name: STRINGS if name.endswith(".mtf") else VIOLIN for name in files}
    for seed in range(6):
        dataset = clamp2_dataset(tmp_path, texts, [{"title": "x", "filepaths": files}], False, seed)
        assert Path(dataset[seed, 0]["name"]) == tmp_path / expected


@pytest.mark.parametrize("train", [True, False])
def test_a_long_text_is_cut_to_the_length_in_config(tmp_path, monkeypatch, train):
    monkeypatch.setattr(config, "MAX_TEXT_LENGTH", 16)
    text = " ".join(f"word{number}" for number in range(40))
    whole = tokenize(text, TOKENIZER)
    dataset = clamp2_dataset(tmp_path, {"a.abc": VIOLIN}, [{"summary_en": text, "filepaths": ["a.abc"]}], train)
    for epoch in range(20):
        tokens = dataset[epoch, 0]["text"]
        places = [start for start in range(len(whole) - 15) if same(whole[start : start + 16], tokens)]
        assert len(tokens) == 16 < len(whole) and places
        assert train or 0 in places  # test_loading.py has the shares of head, tail and middle


# --- corruption -----------------------------------------------------------------------------------------------------
def a_patch(*ids):
    return [BOS, *ids, *[PAD] * (63 - len(ids))]


MARK = [BOS, *range(40, 103)]  # a shuffle leaves it as it was once in 63!


def test_a_piece_is_masked_or_shuffled_or_left_as_it_was():
    """One draw for all selected patches of a piece; the others are never touched."""
    patches = np.array([MARK] * 5, np.uint8)
    before = patches.copy()
    rng = np.random.default_rng(0)
    kinds = []
    for _ in range(6500):
        corrupted, selected = corrupt_patches(patches, rng)
        assert same(corrupted[~selected], before[~selected]) and same(patches, before)
        kinds.append(kind_of(corrupted, before, selected))
        if kinds[-1] == "shuffle":
            assert (corrupted[selected] != before[selected]).any(1).all()
            assert same(np.sort(corrupted, 1), np.sort(before, 1))
    assert_shares(kinds, {"mask": (0.8, 0.85), "shuffle": (0.1, 0.15), "as it was": (0.1, 0.15)})


def test_every_set_of_patches_is_selected_as_often_as_the_others():
    patches = np.array([MARK] * 5, np.uint8)
    rng = np.random.default_rng(0)
    sets = [tuple(corrupt_patches(patches, rng)[1].nonzero()[0].tolist()) for _ in range(3000)]
    # wrong: neighbours (a fifth each), never the first or the last (a fourth each)
    assert_shares(sets, dict.fromkeys(combinations(range(5), 3), (1 / 10, 1 / 5)))


@pytest.mark.parametrize("train", [True, False])
def test_the_number_of_selected_patches_is_rounded_up(train):
    rng = np.random.default_rng(0)
    for count in range(1, 130):
        patches = np.full((count, 8), 40, np.uint8)
        for options, percent in (({}, 45), ({"mask_ratio": 0.25}, 25), ({"mask_ratio": 1.0}, 100)):
            corrupted, selected = corrupt_patches(patches, rng, train, **options)
            assert selected.dtype == bool and selected.sum() == -(-percent * count // 100)
            assert train or same(corrupted, patches)


def shuffles(patches, draws):
    """Shuffles of these patches, all of them selected: [draws, T, P]."""
    patches = np.array([*patches, MARK], np.uint8)
    rng = np.random.default_rng(0)
    found = []
    while len(found) < draws:
        corrupted, selected = corrupt_patches(patches, rng, mask_ratio=1.0)
        if kind_of(corrupted, patches, selected) == "shuffle":
            found.append(corrupted[:-1])
    return np.array(found)


def test_characters_between_bos_and_eos_are_shuffled_into_any_order_in_each_patch():
    patches = np.array([a_patch(70, 71, 72, EOS), a_patch(80, 81, 82, EOS)], np.uint8)
    found = shuffles(patches, 900)
    assert all(same(one[:, [0, *range(4, 64)]], patches[:, [0, *range(4, 64)]]) for one in found)
    orders = [tuple((one[:, 1:4] - patches[:, 1:2]).flatten().tolist()) for one in found]
    every = [first + second for first, second in product(permutations(range(3)), repeat=2)]
    # wrong: rotations only (a ninth each), one order for all patches (a sixth each)
    assert_shares(orders, dict.fromkeys(every, (1 / 36, 1 / 9)))


@pytest.mark.parametrize("ids", [(70, 71, EOS, 72, EOS), (70, 71, 72)])
def test_a_patch_without_exactly_one_eos_is_shuffled_to_its_end(ids):
    found = shuffles([a_patch(*ids)], 1500)[:, 0]
    assert (found[:, 0] == BOS).all()
    places = (found == 71).argmax(1).tolist()
    assert set(places) == set(range(1, 64))  # one is missed by chance once in 400 million
    # wrong: to the first EOS
    assert_shares((place % 3 for place in places), dict.fromkeys(range(3), (1 / 3, 1 / 2)))


# --- pieces of an epoch ---------------------------------------------------------------------------------------------
class Pieces(PieceDataset):
    """Pieces 0, 1, ... of which some are bad."""

    def __init__(self, count, bad=(), seed=0):
        super().__init__(True, seed)
        self.count, self.bad, self.asked = count, bad, []

    def __len__(self):
        return self.count

    def load(self, index, rng):
        self.asked.append(index)
        if index in self.bad:
            raise InputError(f"piece {index} is bad")
        return {"name": index}


def test_any_other_piece_stands_in_for_a_bad_one_equally_likely():
    dataset = Pieces(6, bad=(2, 4))
    samples = [dataset[epoch, 2] for epoch in range(3500)]
    # wrong: the neighbours only, never the first, never the last (a third each)
    assert_shares((sample["name"] for sample in samples), dict.fromkeys((0, 1, 3, 5), (1 / 4, 1 / 3)))
    # each piece that is tried is reported; of the pieces tried next, a third is bad
    shares = {True: (2 / 3, 1 / 2), False: (1 / 3, 1 / 2)}
    assert_shares((sample["problems"] == ["piece 2 is bad"] for sample in samples), shares)
    assert dataset[7, 2] == dataset[7, 2]


def test_a_hundred_pieces_are_tried_before_the_data_are_called_bad():
    dataset = Pieces(3, bad=(0, 1, 2))
    assert set(dataset[0, 1]) == {"fatal"}
    assert len(dataset.asked) == 100 and dataset.asked[0] == 1 and set(dataset.asked) == {0, 1, 2}


def order_of(epoch, seed, count=4):
    batches = Batches(count, 1, Processes(0, 0, 1), seed, True)
    batches.epoch = epoch
    keys = [key for batch in batches for key in batch]
    assert {key[0] for key in keys} == {epoch}
    return tuple(index for _, index in keys)


def test_the_order_of_an_epoch_is_any_permutation_equally_likely():
    orders = [order_of(epoch, 0) for epoch in range(1, 2501)]
    # wrong: rotations only (a fourth each), the first or the last never moved (a sixth each)
    assert_shares(orders, dict.fromkeys(permutations(range(4)), (1 / 24, 1 / 6)))


def test_the_order_depends_on_seed_and_epoch():
    """Neither on their sum, nor on their digits in a row."""
    pairs = list(product((0, 1, 2, 11), (1, 2, 3, 11)))
    assert len({order_of(epoch, seed, 40) for seed, epoch in pairs}) == len(pairs)
    assert order_of(3, 2, 40) == order_of(3, 2, 40)


def test_evaluation_draws_the_same_after_every_epoch():
    batches = Batches(7, 2, Processes(1, 1, 2), 5, False)
    for epoch in (0, 3, 8):
        batches.epoch = epoch
        assert list(batches) == [[(0, 1), (0, 3)], [(0, 5)]]


@pytest.mark.parametrize("model", ["m3", "clamp2"])
def test_standard_abc_is_a_bad_piece(tmp_path, model):
    dataset = dataset_of(model, tmp_path, (KIT / "abc" / "duo.abc").read_text())
    with pytest.raises(InputError, match=r"0\.abc: not interleaved ABC"):
        dataset.load(0, random.Random(0))


# --- the split ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "ratio", "held_out"),
    [
        (2, 0.01, 1),
        (99, 0.01, 1),
        (199, 0.01, 1),
        (200, 0.01, 2),
        (1000, 0.1, 100),
        (10, 0.99, 9),
        (2, 0.99, 1),
        (3, 0, 1),
        (5, 1, 4),
    ],
)
def test_sizes_of_the_split(count, ratio, held_out):
    names = [f"{number}.abc" for number in range(count)]
    before = list(names)
    random.seed(1)
    train, evaluation = split_data(names, ratio)
    assert names == before and sorted(train + evaluation) == sorted(names)
    assert len(evaluation) == held_out
    random.seed(2)  # every process has its own random state, and the same split
    assert split_data(names, ratio) == (train, evaluation)


def test_one_piece_in_a_hundred_is_held_out_by_default():
    assert len(split_data(range(5000))[1]) == 50


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_to_split(count):
    with pytest.raises(InputError, match=rf"{count} piece\(s\) cannot be split"):
        split_data(range(count))


def test_what_is_held_out_is_drawn_from_everywhere():
    held_out = split_data(range(5000), 0.5)[1]
    assert_shares((5 * index // 5000 for index in held_out), dict.fromkeys(range(5), (1 / 5, 2 / 5)))
