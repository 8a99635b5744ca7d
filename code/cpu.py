"""Fast operations for the CPU, where PyTorch has no kernel for them. An NVIDIA GPU uses its own.

* Dropout: PyTorch draws a double for each element, on one core. Here 16 random bits decide, so that a probability is
  rounded to a multiple of 2**-16 (0.1 to 0.100006).
* Packed attention: sequences of similar length are laid out in a bucket, which is computed as a padded batch.
* The patch embedding's gradient: summed in the order of the characters, whatever the number of threads, so that a run
  can be repeated bit for bit; PyTorch promises no order.
* Memory: freed tensors' memory is kept for the next ones.

Symbols as in packing.py; M places of all buckets.
"""

import ctypes
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from packing import Packing

_LEVELS = 2**16


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and scale the others, so that the mean stays."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * _LEVELS)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # 64 random bits each
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training and self.p else input


def use_cheap_dropout(model: nn.Module) -> None:
    """Replace PyTorch's dropout in a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


def sum_rows(table: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    """Sum rows of a table, those numbered in `rows` from one start to the next: [R, H] -> [N, H]."""
    if table.device.type != "cpu":
        return F.embedding_bag(rows, table, starts, mode="sum")
    return _SumRows.apply(table, rows, starts)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(rows, starts)
        ctx.count = len(table)
        return F.embedding_bag(rows, table, starts, mode="sum")

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Sum rows again: a row's gradient is the sum of the gradients of its sums."""
        rows, starts = (saved.numpy() for saved in ctx.saved_tensors)
        sums = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))  # the sum that each row is in
        small = rows.astype(np.min_scalar_type(ctx.count))  # 16 bits are sorted fast
        counts = np.bincount(rows, minlength=ctx.count)
        order, firsts = torch.from_numpy(sums[small.argsort(kind="stable")]), torch.from_numpy(counts.cumsum() - counts)
        return F.embedding_bag(order, gradient, firsts, mode="sum"), None, None


class Buckets:
    """Places for the tokens of a packed row in buckets of sequences of similar length, one bucket after another.

    Attributes: `tokens` [M], the token of a place (of padding, its sequence's first); `places` [N], the place of a
    token; `padding`, the places that hold none; `parts`, for each bucket (b sequences, width, which places [b, width]
    hold a token; None: all).
    """

    def __init__(self, lengths: np.ndarray, device: torch.device):
        starts = lengths.cumsum() - lengths

        def move(array: np.ndarray) -> Tensor:
            tensor = torch.from_numpy(array)
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        widths = np.array([bucket_width(length) if length else 0 for length in lengths], int)
        tokens, reals = [np.zeros(0, int)], [np.zeros(0, bool)]
        self.parts: list[tuple[int, int, Tensor | None]] = []
        for width in np.unique(widths[widths > 0]).tolist():
            members = np.flatnonzero(widths == width)
            columns = np.arange(width)
            real = columns < lengths[members, None]  # [b, width]
            tokens.append((starts[members, None] + columns * real).ravel())
            reals.append(real.ravel())
            self.parts.append((len(members), width, None if real.all() else move(real)))
        all_tokens, all_real = np.concatenate(tokens), np.concatenate(reals)  # [M]
        real_places = np.flatnonzero(all_real)  # [N]
        places = np.empty_like(real_places)
        places[all_tokens[real_places]] = real_places
        arrays = (all_tokens, places, np.flatnonzero(~all_real))
        self.tokens, self.places, self.padding = (move(array) for array in arrays)


def bucket_width(length: int) -> int:
    """Return the next of 8, 12, 16, 24, 32, 48, ...: few shapes, and at most a third of a bucket is padding."""
    width = 8
    while width < length:
        width += width // 2 if width & (width - 1) == 0 else width // 3
    return width


def bucket_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: "Packing", p: float, causal: bool, scale: float | None
) -> Tensor:
    """Attend within each sequence of a packed row, a bucket at a time: [1, A, N, D] -> [1, N, A, D].

    Padding is at the end of its row, so that a causal kernel needs no mask.
    """
    buckets = packing.buckets()
    heads = query.shape[1]
    sizes = [count * width for count, width, _ in buckets.parts]
    query, key, value = (
        _Move.apply(x[0].transpose(0, 1).flatten(1), buckets.tokens, buckets.places, None) for x in (query, key, value)
    )  # [M, H]; padding receives no gradient, so that each token has that of its place
    outputs = []
    for (count, width, real), *parts in zip(buckets.parts, *(x.split(sizes) for x in (query, key, value)), strict=True):
        q, k, v = (x.view(count, width, heads, -1).transpose(1, 2) for x in parts)  # [b, A, width, D]
        mask = None if causal or real is None else real[:, None, None, :]  # [b, 1, 1, width]
        if q.device.type == "cpu" and (p or q.dtype != torch.float32):
            out = plain_attention(q, k, v, mask, p, causal, scale)
        else:
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(count * width, -1))
    packed = _Move.apply(torch.cat(outputs), buckets.places, buckets.tokens, buckets.padding)  # [N, H]
    return packed.view(1, len(packed), heads, -1)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, causal: bool, scale: float | None
) -> Tensor:
    """Compute `scaled_dot_product_attention`: PyTorch has no kernel with dropout for CPUs, and a slow bfloat16 one."""
    scores = query * (scale or query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores.masked_fill_(~mask, -math.inf)
    weights = scores.softmax(-1)
    return (dropout(weights, p) if p else weights) @ value


class _Move(torch.autograd.Function):
    """Selects rows; its gradient selects rows too, and sets those in `zero` to 0. It adds nothing up: fast on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, gradient_rows: Tensor, zero: Tensor | None) -> Tensor:
        ctx.gradient_rows, ctx.zero = gradient_rows, zero
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        moved = gradient.index_select(0, ctx.gradient_rows)
        return moved if ctx.zero is None else moved.index_fill_(0, ctx.zero, 0), None, None, None


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: returning large blocks at once costs a third or more of a training step.

    Does nothing with another C library, such as a Mac's.
    """
    if hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
        library.mallopt(trim_threshold, -1)  # never return the heap's end
        library.mallopt(mmap_max, 0)  # no block outside the heap


def release_freed_memory() -> None:
    """Return the memory that `keep_freed_memory` has kept; batches of ever new shapes leave ever more holes in it."""
    if hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        library.malloc_trim(0)
