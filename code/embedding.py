"""Features of music and text of any length, made in packed batches of segments. What extraction and search are built
on."""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from config import EXTRACT_BATCH_TOKENS, MAX_TEXT_LENGTH, PATCH_LENGTH
from packing import Packed
from processes import OnItsWay, autocast

BATCH_TOKENS_CPU, BATCH_TOKENS_GPU = 4096, 32768


def segment_starts(length: int, limit: int) -> list[int]:
    """Where the segments of a piece of `length` patches begin: every `limit`, the last one being the last `limit`
    patches."""
    if length <= limit:
        return [0]
    return [*range(0, length - limit, limit), length - limit]


def embed(
    model: nn.Module,
    items: Iterable[np.ndarray],
    pooled: bool = False,
    batch_tokens: int = EXTRACT_BATCH_TOKENS,
    dtype: torch.dtype = torch.float32,
) -> Iterator[np.ndarray]:
    """Features of pieces and texts of any length, in their order (paper, section 4: long inputs are cut into segments).

    Args:
        model: a CLaMP2Model, or an M3PatchEncoder (not pooled).
        items: patches, uint8 [T, P], or token ids, int64 [T].
        pooled: one vector for an item, float32 [CLAMP2_HIDDEN_SIZE]: its segments' means, projected, and weighted by
            how many patches each adds. Else float32 [T, H]; where the last two segments overlap, the earlier one's
            features.
        batch_tokens: patches or tokens in a forward pass, about; -1: as many as keep the model's device busy.
    """
    if batch_tokens < 0:
        batch_tokens = BATCH_TOKENS_GPU if next(model.parameters()).is_cuda else BATCH_TOKENS_CPU
    open_items: deque[_Item] = deque()
    batch: list[tuple[_Item, np.ndarray]] = []
    running: list[_Pass] = []  # the pass before, which a GPU computes while the next one is being put together
    size = 0

    def run() -> None:
        running.append(_Pass(model, batch, pooled, dtype))
        if len(running) > 1:
            running.pop(0).finish()

    for array in items:
        kind_changes = bool(batch) and batch[-1][1].ndim != array.ndim
        item = _Item(len(array), PATCH_LENGTH if array.ndim == 2 else MAX_TEXT_LENGTH)
        open_items.append(item)
        for start in item.starts:
            if kind_changes or size >= batch_tokens:
                run()
                batch, size, kind_changes = [], 0, False
            batch.append((item, array[start : start + item.limit]))
            size += len(batch[-1][1])
        while open_items and open_items[0].complete:
            yield open_items.popleft().merge(pooled)
    if batch:
        run()
    for last in running:
        last.finish()
    for item in open_items:
        yield item.merge(pooled)


class _Item:
    """A piece or a text, and the features of its segments as far as they are there."""

    def __init__(self, length: int, limit: int):
        self.length, self.limit = length, limit
        self.starts = segment_starts(length, limit)
        self.features: list[np.ndarray] = []

    @property
    def complete(self) -> bool:
        return len(self.features) == len(self.starts)

    def merge(self, pooled: bool) -> np.ndarray:
        new = self.length - (len(self.starts) - 1) * self.limit  # what the last segment adds
        if not pooled:
            return np.concatenate([*self.features[:-1], self.features[-1][-new:]])
        weights = [self.limit] * (len(self.starts) - 1) + [new]
        return np.average(self.features, axis=0, weights=weights).astype(np.float32)


class _Pass:
    """A forward pass over segments of one kind. `finish` waits for it, and hands each segment's item its features."""

    @torch.inference_mode()
    def __init__(self, model: nn.Module, batch: list[tuple[_Item, np.ndarray]], pooled: bool, dtype: torch.dtype):
        self.items, self.pooled = [item for item, _ in batch], pooled
        self.lengths = [len(segment) for _, segment in batch]
        device = next(model.parameters()).device
        packed = Packed.of([segment for _, segment in batch])
        packed = (packed.pin_memory() if device.type == "cuda" else packed).to(device)
        with autocast(device, dtype):
            features = model.features(packed, pooled)  # type: ignore[operator]
        self.features = OnItsWay(features.float())

    def finish(self) -> None:
        array = self.features.read().numpy()
        parts = array if self.pooled else np.split(array, np.cumsum(self.lengths)[:-1])
        for item, part in zip(self.items, parts, strict=True):
            item.features.append(part)
