"""The packed layout and its attention against plain loops over sequences, and dropout's randomness."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers import AutoConfig

import cpu
import packing
import train_clamp2
from packing import Packed
from small_runs import tiny_model

LENGTHS = [5, 8, 0, 9, 24, 1, 13, 8, 48, 33]  # of buckets of 8, 12, 16, 24 and 48, full ones and others
HEADS, SIZE = 2, 4


def packing_of(lengths=LENGTHS) -> packing.Packing:
    return packing.Packing.of_lengths(lengths)


class Layer:
    """What transformers passes on of an attention layer."""

    def __init__(self, is_causal: bool):
        self.is_causal = is_causal


def attention_of_one(query, key, value, causal: bool, scaling: float, drop=lambda weights: weights):
    """[A, T, D] each -> [T, A, D], from the definition."""
    scores = torch.einsum("aid,ajd->aij", query, key) * scaling
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -math.inf)
    return torch.einsum("aij,ajd->iad", drop(scores.softmax(-1)), value)


# --- the layout -------------------------------------------------------------------------------------------------------


def test_bucket_widths_are_the_documented_ones():
    widths = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    for length in range(1, 513):
        [(count, width, real)] = packing_of([length]).buckets().parts
        assert (count, width) == (1, next(width for width in widths if width >= length))
        assert (real is None) == (length == width)


def test_the_layout_is_that_of_a_loop_over_the_rows():
    """Rows with holes too: a token keeps the column where it stands."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((6, 30), generator=generator) < torch.tensor([0.9, 0, 0.2, 1, 0.5, 0.03])[:, None]
    layout = packing.Packing(masks.numpy())
    tokens = [(row, column) for row in range(6) for column in range(30) if masks[row, column]]
    assert list(zip(layout.sequences.tolist(), layout.positions.tolist(), strict=True)) == tokens
    assert layout.lengths.tolist() == [sum(row == r for r, _ in tokens) for row in range(6)]
    assert sum(count for count, _, _ in layout.buckets().parts) == 5  # the empty row is in none
    values = torch.randn((6, 30, 3), generator=generator)
    packed = layout.pack(values)
    torch.testing.assert_close(packed, torch.stack([values[token] for token in tokens]))
    torch.testing.assert_close(layout.unpack(packed), values * masks[..., None])
    mean = layout.mean(packed)
    for row in range(6):
        if any(r == row for r, _ in tokens):
            torch.testing.assert_close(mean[row], values[row][masks[row]].mean(0))
    places = layout.buckets().tokens[layout.buckets().places]
    assert places.tolist() == list(range(len(tokens)))


def test_a_mean_is_added_up_in_float32():
    """256 + 1 is 256 in bfloat16."""
    packed = torch.tensor([[256.0]] + [[1.0]] * 256).to(torch.bfloat16)
    mean = packing_of([257]).mean(packed)
    assert mean.dtype == torch.float32 and mean.item() == pytest.approx(512 / 257, rel=1e-6)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scaling", [None, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_is_that_of_each_sequence_alone(causal, scaling, dtype):
    """With its gradients; in bfloat16 up to its rounding, by the cosine."""
    generator = torch.Generator().manual_seed(0)
    layout, total = packing_of(), sum(LENGTHS)
    given = [torch.randn((1, HEADS, total, SIZE), generator=generator) for _ in range(3)]  # query, key, value
    given = [x.to(dtype).requires_grad_() for x in given]
    weight = torch.randn((total, HEADS, SIZE), generator=generator)
    out, _ = packing.packed_attention(Layer(causal), *given, None, layout, scaling=scaling)
    assert out.shape == (1, total, HEADS, SIZE) and out.dtype == dtype
    expected, start = [], 0
    for length in LENGTHS:
        query, key, value = (x[0, :, start : start + length].float() for x in given)
        expected.append(attention_of_one(query, key, value, causal, scaling or 1 / math.sqrt(SIZE)))
        start += length
    plain = torch.cat(expected)
    compared = [(out[0], plain)]
    compared += zip(*(torch.autograd.grad((x * weight).sum(), given) for x in (out[0], plain)), strict=True)
    for ours, reference in compared:
        if dtype == torch.float32:
            torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)
        else:
            assert F.cosine_similarity(ours.float().flatten(), reference.float().flatten(), dim=0) > 0.9995


def test_a_layer_that_does_not_say_whether_it_is_causal_is_not():
    given = [torch.randn(1, HEADS, 8, SIZE) for _ in range(3)]
    outs = [packing.packed_attention(layer, *given, None, packing_of([8]))[0] for layer in (object(), Layer(False))]
    assert torch.equal(*outs)


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_in_attention_drops_weights(causal):
    """Each weight is 0 or 1 / (1 - p) of what it is, independently. The values are turned unit vectors, which shows them.

    1800 weights or more at p = 0.25: a standard deviation of the share is below 0.0103; five of them are allowed.
    """
    torch.manual_seed(0)
    p, length = 0.25, 60
    query, key = (torch.randn(1, 1, length, length) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(length, length))[0]
    layout = packing_of([length])

    def weights_of(p: float) -> torch.Tensor:
        return (
            packing.packed_attention(Layer(causal), query, key, turn[None, None], None, layout, p, 0.01)[0][0, :, 0]
            @ turn.T
        )

    real = torch.ones(length, length).tril().bool() if causal else torch.ones(length, length).bool()
    weights, dropped, again = weights_of(0), weights_of(p), weights_of(p)
    assert weights[real].min() > 1e-3 and dropped[~real].abs().sum() < 1e-3
    ratio = dropped[real] / weights[real]
    kept = ratio > 0.5
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert ratio[~kept].abs().max() < 1e-3 and abs((~kept).float().mean() - p) < 5 * 0.0103
    assert not torch.equal(again[real] / weights[real] > 0.5, kept)


@pytest.mark.parametrize("causal", [False, True])
def test_elsewhere_than_on_a_cpu_the_fused_kernel_runs_with_all_it_needs(monkeypatch, causal):
    """On tensors without data, in the place of a GPU's: one call a bucket, with a mask where a bucket is not full."""
    calls, kernel = [], cpu.scaled_dot_product_attention

    def counted(query, key, value, **options):
        mask = options.pop("attn_mask")
        calls.append((query.shape, None if mask is None else mask.shape, options))
        return kernel(query, key, value, **options)

    monkeypatch.setattr(cpu, "scaled_dot_product_attention", counted)
    lengths = [8, 8, 11, 3]
    layout = packing_of(lengths).to(torch.device("meta"))
    given = [torch.empty(1, HEADS, sum(lengths), SIZE, device="meta", dtype=torch.bfloat16) for _ in range(3)]
    out, _ = packing.packed_attention(Layer(causal), *given, None, layout, 0.25, 0.5)
    assert out.shape == (1, sum(lengths), HEADS, SIZE) and out.dtype == torch.bfloat16
    options = {"dropout_p": 0.25, "is_causal": causal, "scale": 0.5}
    assert calls == [
        ((3, HEADS, 8, SIZE), None if causal else (3, 1, 1, 8), options),
        ((1, HEADS, 12, SIZE), None if causal else (1, 1, 1, 12), options),
    ]


def test_the_text_models_that_run_packed_and_their_first_position():
    first = {"bert": 0, "roberta": 1 + 1, "xlm-roberta": 1 + 1, "camembert": 1 + 1}  # behind the padding id, 1
    for kind, position in first.items():
        config = AutoConfig.for_model(kind)
        assert packing.packable(config) and packing.first_position(config) == position
    for kind in ("distilbert", "albert", "deberta-v2", "t5"):  # other positions, or an attention of their own
        assert not packing.packable(AutoConfig.for_model(kind))


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "levels"), [(1 - 2 / 65536, 2), (1 - 1.4 / 65536, 1), (1 - 40 / 65536, 40)])
def test_the_share_that_dropout_keeps_is_exact_to_a_level(p, levels):
    """Of 2^23 elements at probability levels / 65536: 128 x levels are expected, with a deviation of its root. With
    another rounding, or one level more or less, it would be 9 deviations away where few levels are kept."""
    torch.manual_seed(1)
    kept = cpu.dropout(torch.ones(2**23), p)
    count, expected = int((kept != 0).sum()), 128 * levels
    assert abs(count - expected) < 4.5 * math.sqrt(expected)
    torch.testing.assert_close(kept[kept != 0], torch.full((count,), 65536 / levels))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_dropout_of_any_number_of_elements(size):
    """Each element is dropped half of the time: 2000 draws, five standard deviations of 22."""
    torch.manual_seed(0)
    draws = torch.stack([cpu.dropout(torch.ones(1, size), 0.5)[0] for _ in range(2000)])
    assert set(draws.unique().tolist()) == {0.0, 2.0}
    assert ((draws == 0).sum(0) - 1000).abs().max() < 5 * 22.4


def test_dropout_that_drops_nothing_draws_nothing():
    for module in (cpu.Dropout(0.0), cpu.Dropout(0.5).eval()):
        torch.manual_seed(0)
        x = torch.ones(5)
        assert torch.equal(module(x), x)
        before = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(torch.rand(1), before)


def test_dropout_in_the_place_of_pytorchs_keeps_each_probability():
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.other = torch.nn.Dropout(0.3), torch.nn.Dropout1d(0.4)

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Inner(), torch.nn.Sequential(torch.nn.Dropout(0.2), Inner()))
    cpu.use_cheap_dropout(model)
    kinds = [(type(m).__name__, m.p) for m in model.modules() if hasattr(m, "p")]
    inner = [("Dropout", 0.3), ("Dropout1d", 0.4)]
    assert kinds == [*inner, ("Dropout", 0.2), *inner]
    assert not any(type(m) is torch.nn.Dropout for m in model.modules())


# --- batches that move as one -----------------------------------------------------------------------------------------


class Record(packing.Tensors):
    """Tensors of several types, one without elements, a further record and a list of records."""

    def __init__(self, depth=2):
        self.name, self.few = "kept", np.array([4])
        self.bytes, self.numbers = torch.arange(5, dtype=torch.uint8), torch.arange(6.0).view(2, 3).double()
        self.none, self.scalar = torch.empty(0, 4, dtype=torch.int64), torch.tensor(depth)
        if depth:
            self.inner, self.parts = Record(depth - 1), [Record(0), Record(depth - 1)]


def tensors_of(record):
    found = []
    record._each(lambda tensor: found.append(tensor) or tensor)
    return found


def blocks_of(record):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(record)}


@pytest.mark.parametrize("move", [lambda r: r.joined(), lambda r: r.to(torch.device("cpu")), lambda r: r.to("meta")])
def test_a_record_moves_as_one_block(move):
    record = Record()
    before = [tensor.clone() for tensor in tensors_of(record)]
    moved = move(record)
    assert type(moved) is Record and moved.inner.name == "kept" and moved.parts[1].few is record.parts[1].few
    assert len(blocks_of(moved)) == 1 and len(blocks_of(record)) > 10
    assert all(map(torch.equal, tensors_of(record), before))
    for tensor, other in zip(tensors_of(moved), before, strict=True):
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        assert tensor.device.type == "meta" or torch.equal(tensor, other)


def test_a_block_is_copied_once():
    """In one copy to a device, and in none where it is there already."""
    record, copies = Record().joined(), []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            copies.append(str(function)) if "copy" in str(function) else None
            return function(*arguments, **(options or {}))

    with Copies():
        record.to("meta")
        assert len(copies) == 1
        assert blocks_of(record.to(torch.device("cpu"))) == blocks_of(record) and len(copies) == 1


def test_a_record_of_one_tensor_that_is_a_view():
    """The bytes of a block are those of its tensors in their order."""
    record = Record(0)
    for name in ("bytes", "numbers", "none", "scalar"):
        delattr(record, name)
    record.turned = torch.arange(6).view(2, 3).t()
    assert torch.equal(record.to(torch.device("cpu")).turned, record.turned)


def test_a_worker_hands_over_one_block():
    """Each block takes a file handle of the reading process; those of a thousand tensors would be too many."""
    loader = DataLoader([Record()], batch_size=None, num_workers=1, collate_fn=lambda record: record.joined())
    [record] = loader
    assert len(blocks_of(record)) == 1
    assert all(map(torch.equal, tensors_of(record), tensors_of(Record())))


def test_buckets_move_to_a_gpu_without_a_wait(monkeypatch):
    """From pinned memory. They are for the precisions in which no kernel of a GPU has dropout."""
    pinned, moved = [], []

    def pin_memory(tensor):
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking=False: moved.append(non_blocking) or x)
    buckets = cpu.Buckets(np.array(LENGTHS), torch.device("cuda"))
    kept = [buckets.tokens, buckets.places, buckets.padding, *(real for _, _, real in buckets.parts)]
    kept = [tensor for tensor in kept if tensor is not None]
    assert sorted(map(id, pinned)) == sorted(map(id, kept)) and moved == [True] * len(kept) and len(kept) > 4


@pytest.mark.parametrize("wrong", [128, 200, -1])
@pytest.mark.parametrize("place", [3, 63])
def test_an_id_that_no_character_has_is_refused(wrong, place):
    """It would be read as a character of another position."""
    patches = np.full((2, 64), 127)
    Packed.of([patches])
    patches[1, place] = wrong
    with pytest.raises(ValueError, match="from 0 to 127"):
        Packed.of([patches])


def test_a_compiled_layer_is_whole_in_distributed_data_parallel(monkeypatch):
    """In parts it would draw other dropout than without, where a micro-batch must have the same."""
    graphs, torch_compile = [], torch.compile

    def backend(graph, inputs):
        graphs.append(sum("dropout" in str(node.target) for node in graph.graph.nodes if "call" in node.op))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: torch_compile(function, dynamic=dynamic, backend=backend))  # fmt: skip
    monkeypatch.setattr(packing, "bucket_attention", lambda query, key, value, *_: value.transpose(1, 2))
    monkeypatch.setattr(cpu, "dropout", F.dropout)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = tiny_model("clamp2")
        names = list(model.state_dict())
        packing.compile_layers(model)
        parallel = torch.nn.parallel.DistributedDataParallel(train_clamp2.PairFeatures(model))
        parallel.bucket_bytes_cap = 1  # of which a layer's parameters fill many
        samples = [{"text": np.arange(4, 4 + n), "music": np.full((n, 64), 70, np.uint8)} for n in (9, 5)]
        sum(x.sum() for x in parallel(train_clamp2.Pairs(samples))).backward()
    finally:
        torch.distributed.destroy_process_group()
        torch._dynamo.reset()
    assert graphs == [2, 2]  # a layer of each tower
    assert list(model.state_dict()) == names


def test_layers_that_cannot_be_compiled_run_as_they_are(monkeypatch):
    """All layers of both towers are handed over, once for all lengths."""
    model = tiny_model("clamp2").eval()
    batch = Packed.of([np.ones((9, 64), np.uint8), np.ones((3, 64), np.uint8)])
    before, handed = model.features(batch, pooled=True), []

    def no_compiler(graph, inputs):
        raise RuntimeError("no C compiler")

    def compile(function, dynamic):
        handed.append(dynamic)
        return torch_compile(function, dynamic=dynamic, backend=no_compiler)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    packing.compile_layers(model)
    assert handed == [True] * (model.config.num_hidden_layers + model.text_model.config.num_hidden_layers)
    torch.testing.assert_close(model.features(batch, pooled=True), before)
