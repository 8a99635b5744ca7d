"""What makes the models fast on a CPU, where PyTorch has no kernel for it. An NVIDIA GPU needs none of this.

* Dropout: PyTorch draws a number in double precision for each element, on one core. Here 16 random bits decide about an
  element, so that a probability is rounded to a multiple of 2**-16 (0.1 to 0.100006).
* Attention within the sequences of a packed row: they are laid out in buckets of similar length, and each bucket is
  attended to at once, as a padded batch.
* The patch embedding's gradient: PyTorch adds it up in an order that it does not promise. Here it is that of the
  characters, whatever the number of threads, so that a run can be repeated bit for bit.
* Memory: what tensors free is kept for the next ones.

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
    """Zeroes each element with probability p and scales the others so that the mean stays. A GPU has its own kernel."""
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
    """Puts this dropout in the place of PyTorch's in a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


def sum_rows(table: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    """Sums of rows of a table, those numbered in `rows` from one start to the next: [R, H] -> [N, H].

    A GPU has its own kernel.
    """
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
        """A row's gradient is the sum of those of the sums it is in, so that this is a sum of rows again."""
        rows, starts = (saved.numpy() for saved in ctx.saved_tensors)
        sums = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(rows)))  # in which sum each one is
        small = rows.astype(np.min_scalar_type(ctx.count))  # 16 bits are sorted fast
        counts = np.bincount(rows, minlength=ctx.count)
        order, firsts = torch.from_numpy(sums[small.argsort(kind="stable")]), torch.from_numpy(counts.cumsum() - counts)
        return F.embedding_bag(order, gradient, firsts, mode="sum"), None, None


class Buckets:
    """Where the tokens of a packed row stand in buckets of sequences of similar length, one bucket after another.

    Attributes: `tokens` [M], the token of a place (of filler, its sequence's first); `places` [N], the
    place of a token; `parts`, for each bucket (b sequences, width, which places [b, width] are real; None: all).
    """

    def __init__(self, lengths: np.ndarray, device: torch.device):
        starts = lengths.cumsum() - lengths
        widths = np.array([bucket_width(length) for length in lengths], int)
        tokens, reals = [np.zeros(0, int)], [np.zeros(0, bool)]
        self.parts: list[tuple[int, int, Tensor | None]] = []
        for width in np.unique(widths[lengths > 0]).tolist():
            members = np.flatnonzero((widths == width) & (lengths > 0))
            columns = np.arange(width)
            real = columns < lengths[members, None]  # [b, width]
            tokens.append((starts[members, None] + columns * real).ravel())
            reals.append(real.ravel())
            self.parts.append((len(members), width, None if real.all() else torch.from_numpy(real).to(device)))
        all_tokens = np.concatenate(tokens)
        real_places = np.flatnonzero(np.concatenate(reals))  # [N]
        places = np.empty_like(real_places)
        places[all_tokens[real_places]] = real_places
        self.tokens, self.places = torch.from_numpy(all_tokens).to(device), torch.from_numpy(places).to(device)


def bucket_width(length: int) -> int:
    """The next of 8, 12, 16, 24, 32, 48, ...: few shapes, and at most a third of a bucket is padding."""
    width = 8
    while width < length:
        width += width // 2 if width & (width - 1) == 0 else width // 3
    return width


def bucket_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: "Packing", p: float, causal: bool, scale: float | None
) -> Tensor:
    """Attention [1, A, N, D] -> [1, N, A, D] within each sequence of a packed row, a bucket at a time.

    What only fills up a bucket stands at its end, so that a causal kernel needs no mask for it.
    """
    buckets = packing.buckets()
    heads = query.shape[1]
    sizes = [count * width for count, width, _ in buckets.parts]
    query, key, value = (_ToPlaces.apply(x[0].transpose(0, 1).flatten(1), buckets) for x in (query, key, value))
    outputs = []
    for (count, width, real), *parts in zip(buckets.parts, *(x.split(sizes) for x in (query, key, value)), strict=True):
        q, k, v = (x.view(count, width, heads, -1).transpose(1, 2) for x in parts)  # [b, A, width, D]
        mask = None if causal or real is None else real[:, None, None, :]  # [b, 1, 1, width]
        if q.device.type == "cpu" and (p or q.dtype != torch.float32):
            out = plain_attention(q, k, v, mask, p, causal, scale)
        else:
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(count * width, -1))
    packed = _FromPlaces.apply(torch.cat(outputs), buckets)  # [N, H]
    return packed.view(1, len(packed), heads, -1)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, causal: bool, scale: float | None
) -> Tensor:
    """`scaled_dot_product_attention` written out: on a CPU, PyTorch has no fused kernel with dropout, and its bfloat16
    kernel is slower than this."""
    scores = query * (scale or query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores.masked_fill_(~mask, -math.inf)
    weights = scores.softmax(-1)
    return (dropout(weights, p) if p else weights) @ value


class _ToPlaces(torch.autograd.Function):
    """[N, H] -> [M, H]. Attention gives what only fills up a bucket no gradient, so that each token has one place's."""

    @staticmethod
    def forward(ctx, packed: Tensor, buckets: Buckets) -> Tensor:
        ctx.buckets = buckets
        return packed.index_select(0, buckets.tokens)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.buckets.places), None


class _FromPlaces(torch.autograd.Function):
    """[M, H] -> [N, H]"""

    @staticmethod
    def forward(ctx, placed: Tensor, buckets: Buckets) -> Tensor:
        ctx.buckets = buckets
        return placed.index_select(0, buckets.places)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        zeros = gradient.new_zeros((len(ctx.buckets.tokens), gradient.shape[1]))
        return zeros.index_copy_(0, ctx.buckets.places, gradient), None


def keep_freed_memory() -> None:
    """Has the C library keep what tensors free, for the next ones.

    By default glibc gives large blocks back to the system at once, and a third or more of a training step goes by with
    the kernel handing out zeroed pages again.
    """
    library = ctypes.CDLL(None)
    if _is_glibc(library):  # only it knows these numbers
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
        library.mallopt(trim_threshold, -1)  # never give the heap's end back
        library.mallopt(mmap_max, 0)  # no block outside the heap


def release_freed_memory() -> None:
    """Gives what `keep_freed_memory` has kept back. Without it, batches of ever other shapes leave ever more holes."""
    library = ctypes.CDLL(None)
    if _is_glibc(library):
        library.malloc_trim(0)


def _is_glibc(library: ctypes.CDLL) -> bool:
    return hasattr(library, "gnu_get_libc_version")
