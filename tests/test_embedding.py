"""Segments, passes and pooling, against what is worked out by hand. The model is a stand-in that shows what it reads."""

import numpy as np
import pytest
import torch
from torch import nn

import config
from embedding import embed, segment_starts

PATCHES, TOKENS = config.PATCH_LENGTH, config.MAX_TEXT_LENGTH  # of a segment


class Mirror(nn.Module):
    """A token's feature is (its value, its position in the segment). Notes each pass: the lengths of its segments."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.passes: list[tuple[bool, list[int]]] = []

    def features(self, batch, pooled=False):
        assert torch.is_inference_mode_enabled()
        packing, tokens = batch.packing, batch.tokens
        is_music = tokens.ndim == 2
        self.passes.append((is_music, packing.lengths.tolist()))
        values = (tokens[:, 0] if is_music else tokens).float()
        hidden = torch.stack([values, packing.positions.float()], dim=1)
        return packing.mean(hidden) if pooled else hidden


def music(length: int, first: int = 0) -> np.ndarray:
    return np.repeat((np.arange(first, first + length) % 128).astype(np.uint8)[:, None], 64, axis=1)


def text(length: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int64)


def values_of(item: np.ndarray) -> np.ndarray:
    return (item[:, 0] if item.ndim == 2 else item).astype(np.float32)


def lengths_of(model: Mirror) -> list[list[int]]:
    return [lengths for _, lengths in model.passes]


# --- segments ---------------------------------------------------------------------------------------------------------


def test_segments_cover_a_piece_and_the_last_one_is_full():
    for limit in (1, 2, 7):
        for length in range(1, 40):
            starts = segment_starts(length, limit)
            expected = [number * limit for number in range(-(-length // limit))]  # rounded up
            if length > limit:
                expected[-1] = length - limit
            assert starts == expected


@pytest.mark.parametrize("length", [1, TOKENS - 1, TOKENS, TOKENS + 1, 2 * TOKENS, 2 * TOKENS + 5])
def test_each_token_is_there_once_as_the_earliest_segment_has_it(length):
    item = text(length, 1000)
    [(_, feature)] = embed(Mirror(), [("", item)])
    assert feature.dtype == np.float32 and feature.shape == (length, 2)
    np.testing.assert_array_equal(feature[:, 0], item)
    whole = length // TOKENS * TOKENS if length >= TOKENS else 0  # tokens of segments that begin at a multiple
    places = np.arange(length)
    expected = np.where(places < max(whole, min(length, TOKENS)), places % TOKENS, places - (length - TOKENS))
    np.testing.assert_array_equal(feature[:, 1], expected)


@pytest.mark.parametrize(("make", "limit"), [(music, PATCHES), (text, TOKENS)])
def test_music_and_text_have_segments_of_their_own_length(make, limit):
    model = Mirror()
    list(embed(model, [("", make(2 * limit + 3))], batch_tokens=10**6))
    assert lengths_of(model) == [[limit, limit, limit]]


@pytest.mark.parametrize("extra", [1, 40, TOKENS - 1, TOKENS])
def test_a_pooled_feature_weights_each_segment_by_what_it_adds(extra):
    """Two full segments and one that adds `extra` tokens, whose mean is that of the last TOKENS of all."""
    length = 2 * TOKENS + extra
    item = text(length, 5)
    [(_, feature)] = embed(Mirror(), [("", item)], pooled=True)
    means = [item[:TOKENS].mean(), item[TOKENS : 2 * TOKENS].mean(), item[-TOKENS:].mean()]
    expected = (means[0] * TOKENS + means[1] * TOKENS + means[2] * extra) / length
    assert feature.dtype == np.float32 and feature.shape == (2,)
    assert feature[0] == pytest.approx(expected, rel=1e-6)


def test_a_pooled_feature_of_one_segment_is_its_mean():
    items = [music(length, 3) for length in (1, 2, 7, PATCHES)]
    found = dict(embed(Mirror(), enumerate(items), pooled=True))
    assert {key: feature[0] for key, feature in found.items()} == pytest.approx(
        {key: values_of(item).mean() for key, item in enumerate(items)}
    )


# --- passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_tokens", "passes"),
    [
        (1, [[3], [4], [5], [2]]),
        (3, [[3], [4], [5], [2]]),
        (4, [[3, 4], [5], [2]]),  # a pass is full when it has the tokens, not when one more would be too many
        (7, [[3, 4], [5, 2]]),
        (8, [[3, 4, 5], [2]]),
        (12, [[3, 4, 5], [2]]),
        (13, [[3, 4, 5, 2]]),
    ],
)
def test_a_pass_is_full_at_batch_tokens(batch_tokens, passes):
    model = Mirror()
    items = [text(length, 10 * length) for length in (3, 4, 5, 2)]
    found = list(embed(model, enumerate(items), batch_tokens=batch_tokens))
    assert lengths_of(model) == passes
    assert [key for key, _ in found] == list(range(len(items)))
    for item, (_, feature) in zip(items, found, strict=True):
        np.testing.assert_array_equal(feature[:, 0], item)


def test_a_pass_holds_one_kind_and_the_order_stays():
    model = Mirror()
    items = [music(3, 1), text(4, 2), text(5, 3), music(PATCHES + 2, 4), music(6, 5), text(7, 6)]
    found = list(embed(model, enumerate(items), batch_tokens=10**6))
    assert model.passes == [(True, [3]), (False, [4, 5]), (True, [PATCHES, PATCHES, 6]), (False, [7])]
    assert [key for key, _ in found] == list(range(len(items)))
    for item, (_, feature) in zip(items, found, strict=True):
        np.testing.assert_array_equal(feature[:, 0], values_of(item))


def test_segments_of_a_piece_may_be_in_several_passes():
    model = Mirror()
    items = [text(10, 7), text(3 * TOKENS + 9, 50), text(4, 900)]
    found = list(embed(model, enumerate(items), batch_tokens=TOKENS))
    assert lengths_of(model) == [[10, TOKENS], [TOKENS], [TOKENS], [TOKENS], [4]]
    assert [key for key, _ in found] == list(range(len(items)))
    for item, (_, feature) in zip(items, found, strict=True):
        np.testing.assert_array_equal(feature[:, 0], item)


def test_features_come_while_items_are_read():
    """One pass is behind: at the third item's pass, the first is done. Memory does not grow with the number of items."""
    read: list[int] = []

    def items():
        for number in range(10):
            read.append(number)
            yield number, text(TOKENS, number)

    for number, _ in embed(Mirror(), items(), batch_tokens=TOKENS):
        assert len(read) <= number + 3
    assert number == 9


def test_nothing_in_nothing_out():
    model = Mirror()
    assert list(embed(model, [])) == [] == model.passes


def test_the_type_of_the_computation():
    """257 is 256 in bfloat16; the features are float32 in either case."""

    class Product(Mirror):
        def features(self, batch, pooled=False):
            return batch.tokens.float()[:, None] @ self.weight

    for dtype, value in ((torch.float32, 257), (torch.bfloat16, 256)):
        [(_, feature)] = embed(Product(), [("", text(1, 257))], dtype=dtype)
        assert feature.dtype == np.float32 and feature.item() == value
