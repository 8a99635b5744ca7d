"""Ways to attend within sequences of different lengths that stand in one packed row, for `gpu.py`.

Each is checked against a plain computation in float64, a sequence at a time, and timed. Symbols: N tokens of all
sequences, A heads of D, B sequences, T positions.
"""

import contextlib
import functools
import inspect
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import cpu
import gpu
import packing

HEADS, SIZE = 12, 64


class Layout:
    """Where the sequences stand."""

    def __init__(self, lengths: list[int], causal: bool, device: torch.device):
        self.lengths, self.causal, self.longest, self.shortest = lengths, causal, max(lengths), min(lengths)
        counts = torch.tensor(lengths)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).to(device)  # [B + 1]
        self.ends = self.offsets.int()
        masks = torch.arange(self.longest) < counts[:, None]  # [B, T]
        self.sequences, self.positions = (index.to(device) for index in masks.nonzero(as_tuple=True))  # [N]
        self.mask = masks.to(device)
        self.is_causal = causal  # what packed_attention asks of a layer

    @functools.cached_property
    def packing(self) -> packing.Packing:
        """Our models' own."""
        return packing.Packing.of_lengths(self.lengths).to(self.mask.device)

    def operations(self) -> int:
        """Of the products of a forward pass."""
        return sum(4 * HEADS * SIZE * length**2 for length in self.lengths) // (2 if self.causal else 1)


def nested(backends: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    """SDPA on jagged nested tensors; with one of the backends, if some are given."""
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            x, layout.offsets, min_seqlen=layout.shortest, max_seqlen=layout.longest
        ).transpose(1, 2)
        for x in (q, k, v)
    )
    with sdpa_kernel(backends) if backends else contextlib.nullcontext():
        out = scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=layout.causal)
    return out.transpose(1, 2).values()


def varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if p:
        raise NotImplementedError("varlen_attn has no dropout")
    if "is_causal" in inspect.signature(varlen_attn).parameters:
        causal = {"is_causal": layout.causal}
    else:
        causal = {"window_size": (-1, 0 if layout.causal else -1)}
    return varlen_attn(q, k, v, layout.ends, layout.ends, layout.longest, layout.longest, **causal)


def buckets(q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    """What a CPU runs: a padded call for each bucket of similar length."""
    parts = (x.transpose(0, 1)[None] for x in (q, k, v))
    return cpu.bucket_attention(*parts, layout.packing, p, layout.causal, None)[0]


def present(q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    """Our models' own, as it is now."""
    parts = (x.transpose(0, 1)[None] for x in (q, k, v))
    return packing.packed_attention(layout, *parts, None, packing=layout.packing, dropout=p)[0][0]


def padded(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    """SDPA on padded sequences, with a mask where attention is not causal; padding and the way back included."""
    places = (layout.sequences, layout.positions)
    shape = (len(layout.lengths), layout.longest, HEADS, SIZE)
    q, k, v = (x.new_zeros(shape).index_put(places, x).transpose(1, 2) for x in (q, k, v))
    mask = None if layout.causal else layout.mask[:, None, None, :].expand(-1, HEADS, layout.longest, -1)
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=layout.causal)
    return out.transpose(1, 2)[places]


def flash(q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    most = layout.longest
    return torch.ops.aten._flash_attention_forward(
        q, k, v, layout.ends, layout.ends, most, most, p, layout.causal, False
    )[0]


def efficient(q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    q, k, v, most = q[None], k[None], v[None], layout.longest
    kind = 1 if layout.causal else 0  # of mask: causal from the first position
    return torch.ops.aten._efficient_attention_forward(
        q, k, v, None, layout.ends, layout.ends, most, most, p, kind, True
    )[0][0]


def cudnn(q: Tensor, k: Tensor, v: Tensor, layout: Layout, p: float) -> Tensor:
    most = layout.longest
    return torch.ops.aten._cudnn_attention_forward(
        q, k, v, None, layout.ends, layout.ends, most, most, True, p, layout.causal, False
    )[0]


CANDIDATES: dict[str, Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]] = {
    "present": present,
    "buckets": buckets,
    "varlen_attn": varlen,
    "jagged": functools.partial(nested, []),
    "jagged, efficient": functools.partial(nested, [SDPBackend.EFFICIENT_ATTENTION]),
    "jagged, cudnn": functools.partial(nested, [SDPBackend.CUDNN_ATTENTION]),
    "aten flash": flash,
    "aten efficient": efficient,
    "padded, flash": functools.partial(padded, SDPBackend.FLASH_ATTENTION),
    "padded, efficient": functools.partial(padded, SDPBackend.EFFICIENT_ATTENTION),
    "padded, cudnn": functools.partial(padded, SDPBackend.CUDNN_ATTENTION),
    "aten cudnn": cudnn,  # the last: least tried by others, and a fault in a kernel ends the stage
}


def reference(inputs: list[Tensor], gradient: Tensor, layout: Layout) -> list[Tensor]:
    """The output, and the gradients of query, key and value, in float64, from the definition."""
    inputs = [x.detach().double().requires_grad_() for x in inputs]
    outputs = []
    for q, k, v in zip(*(x.split(layout.lengths) for x in inputs), strict=True):
        scores = torch.einsum("iad,jad->aij", q, k) * SIZE**-0.5
        if layout.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], device=q.device).triu(1).bool(), -torch.inf)
        outputs.append(torch.einsum("aij,jad->iad", scores.softmax(-1), v))
    output = torch.cat(outputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient.double())]


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def measure(bench: "gpu.Bench", cases: dict[str, tuple[list[int], bool]]) -> None:
    """cases: lengths of the sequences, and whether attention is causal. Prints and reports a row for each candidate."""
    warnings.simplefilter("ignore")  # of each kernel that is not used, and why
    logging.getLogger("torch.nested").setLevel(logging.ERROR)
    layouts, data = {}, {}
    for case, (lengths, causal) in cases.items():
        torch.manual_seed(0)
        layouts[case] = Layout(lengths, causal, bench.device)
        for dtype in (torch.bfloat16, torch.float32):
            shape = (sum(lengths), HEADS, SIZE)
            rows = [torch.randn(shape, device=bench.device, dtype=dtype) for _ in range(4)]
            data[case, dtype] = rows, reference(rows[:3], rows[3], layouts[case])
        gpu.say(f"{case}: {len(lengths)} sequences of {min(lengths)} to {max(lengths)}, {sum(lengths)} in all")
    gpu.say(
        "candidate          case           type     dropout  forward ms  + backward  host  TFLOP/s  errors: out, grads"
    )
    # in training bfloat16 with dropout, in extraction both types without
    for name, candidate in CANDIDATES.items():
        for case, layout in layouts.items():
            for dtype, p in ((torch.bfloat16, 0.1), (torch.bfloat16, 0.0), (torch.float32, 0.0)):
                label = f"{name:18} {case:14} {str(dtype)[6:]:8} {p:4}"
                try:
                    row = _row(bench, candidate, layout, *data[case, dtype], p)
                except Exception as problem:  # noqa: BLE001 - whatever a candidate does not take
                    gpu.say(f"{label}     {gpu.one_line(problem)}")
                    bench.report(" ".join(label.split()), gpu.one_line(problem))
                    gpu.synchronize(bench.device)  # a fault of the card itself ends the stage here
                    continue
                gpu.say(
                    f"{label}  {row['forward ms']:11.3f} {row['both ms']:11.3f} {row['host ms']:6.2f}"
                    f" {row['TFLOP/s']:8.1f}  {row['errors']}"
                )
                bench.report(" ".join(label.split()), row)


def _row(
    bench: "gpu.Bench", candidate: Callable, layout: Layout, rows: list[Tensor], wanted: list[Tensor], p: float
) -> dict:
    """Times of a candidate. Its errors are those without dropout."""
    inputs, gradient = [x.requires_grad_() for x in rows[:3]], rows[3]

    def forward() -> Tensor:
        with torch.no_grad():
            return candidate(*inputs, layout, p)

    def both() -> list[Tensor]:
        output = candidate(*inputs, layout, p)
        return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]

    errors = "" if p else " ".join(f"{error(*pair):.0e}" for pair in zip(both(), wanted, strict=True))
    seconds, _ = gpu.timed(bench.device, forward, 0.05)
    together, host = gpu.timed(bench.device, both, 0.05)
    return {"forward ms": seconds * 1e3, "both ms": together * 1e3, "host ms": host * 1e3, "errors": errors,
            "TFLOP/s": 3.5 * layout.operations() / together / 1e12}  # fmt: skip
