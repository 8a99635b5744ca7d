"""Features of music and text of any length, computed in packed batches of segments, for extraction and search.

Search caches features: raise FEATURE_VERSION in cache.py when a change here makes other ones.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import nn

import config
from packing import Packed
from processes import OnItsWay, autocast

BATCH_TOKENS_CPU, BATCH_TOKENS_GPU = 4096, 32768
Key = TypeVar("Key")


def segment_starts(length: int, limit: int) -> list[int]:
    """Return the starts of a piece's segments: every `limit` patches; the last segment is the last `limit` patches."""
    return [0] if length <= limit else [*range(0, length - limit, limit), length - limit]


def embed(
    model: nn.Module,
    items: Iterable[tuple[Key, np.ndarray]],
    pooled: bool = False,
    batch_tokens: int = config.EXTRACT_BATCH_TOKENS,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Key, np.ndarray]]:
    """Embed pieces and texts of any length, in their order (paper, section 4: long inputs are cut into segments).

    Args:
        model: a CLaMP2Model, or an M3PatchEncoder (not pooled).
        items: (any key, which comes back with the feature; patches, uint8 [T, P], or token ids, int64 [T]).
        pooled: one vector for an item, float32 [CLAMP2_HIDDEN_SIZE]: the mean of its segments' projected means,
            weighted by the patches that each adds. Else float32 [T, H]; where the last two segments overlap, the
            earlier one's features.
        batch_tokens: patches or tokens in a forward pass, about; -1: as many as keep the model's device busy.
    """
    if batch_tokens < 0:
        batch_tokens = BATCH_TOKENS_CPU if next(model.parameters()).is_cpu else BATCH_TOKENS_GPU
    running: list[_Pass] = []
    for segments in _passes(items, batch_tokens):
        running.append(_Pass(model, segments, pooled, dtype))  # a GPU computes it while the next one is collected
        if len(running) > 1:
            yield from running.pop(0).finish()
    for last in running:
        yield from last.finish()


def _passes(items: Iterable[tuple[Key, np.ndarray]], batch_tokens: int) -> Iterator[list[tuple["_Item", np.ndarray]]]:
    """Group the segments of items, in their order, into forward passes of one kind."""
    segments: list[tuple[_Item, np.ndarray]] = []
    size = 0
    for key, array in items:
        item = _Item(key, len(array), config.PATCH_LENGTH if array.ndim == 2 else config.MAX_TEXT_LENGTH)
        for start in item.starts:
            if segments and (size >= batch_tokens or segments[-1][1].ndim != array.ndim):
                yield segments
                segments, size = [], 0
            segments.append((item, array[start : start + item.limit]))
            size += len(segments[-1][1])
    if segments:
        yield segments


class _Item:
    """A piece or a text, and the features of its segments so far."""

    def __init__(self, key: object, length: int, limit: int):
        self.key, self.length, self.limit = key, length, limit
        self.starts = segment_starts(length, limit)
        self.features: list[np.ndarray] = []

    def merge(self, pooled: bool) -> np.ndarray:
        new = self.length - (len(self.starts) - 1) * self.limit  # what the last segment adds
        if not pooled:
            return np.concatenate([*self.features[:-1], self.features[-1][-new:]])
        weights = [self.limit] * (len(self.starts) - 1) + [new]
        return np.average(self.features, axis=0, weights=weights).astype(np.float32)


class _Pass:
    """A forward pass over segments of one kind, started by its construction."""

    @torch.inference_mode()
    def __init__(self, model: nn.Module, segments: list[tuple[_Item, np.ndarray]], pooled: bool, dtype: torch.dtype):
        self.items, self.pooled = [item for item, _ in segments], pooled
        self.lengths = [len(segment) for _, segment in segments]
        device = next(model.parameters()).device
        packed = Packed.of([segment for _, segment in segments])
        packed = (packed.pin_memory() if device.type == "cuda" else packed).to(device)
        with autocast(device, dtype):
            features = model.features(packed, pooled)  # type: ignore[operator]
        self.features = OnItsWay(features.float())

    def finish(self) -> Iterator[tuple]:
        """Wait for the pass; yield (key, feature) of each item whose last segment was in it."""
        array = self.features.read().numpy()
        parts = array if self.pooled else np.split(array, np.cumsum(self.lengths)[:-1])
        for item, part in zip(self.items, parts, strict=True):
            item.features.append(part)
            if len(item.features) == len(item.starts):
                yield item.key, item.merge(self.pooled)
