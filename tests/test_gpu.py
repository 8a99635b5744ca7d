"""The models on a GPU against the golden values, and against themselves on the CPU."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

import cpu
import packing
import utils
from checkpoints import load_checkpoint, load_weights
from embedding import embed
from extraction import read_patches
from helpers import KIT, m3_configs
from texts import join_lines, read_text, tokenize

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
ENCODER, DECODER = m3_configs()


@pytest.fixture(scope="module")
def values():
    return dict(np.load(KIT / "values.npz"))


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_that_of_buckets(causal, dtype, scale):
    """With its gradients; one sequence is empty. Of query, key and value that are parts of one tensor, as GPT-2's are."""
    torch.manual_seed(0)
    lengths = [5, 8, 0, 64, 1, 300]
    layout = packing.Packing.of_lengths(lengths)
    rows = torch.randn(sum(lengths), 3, 2, 64)
    weight = torch.randn(1, sum(lengths), 2, 64)

    def results(attention, device, dtype):
        given = rows.to(device, dtype).requires_grad_()
        parts = (given[:, i].transpose(0, 1)[None] for i in range(3))
        out = attention(*parts, layout.to(device), 0.0, causal, scale)
        (out.float() * weight.to(device)).sum().backward()
        return out.detach().float().cpu(), given.grad.float().cpu()

    limit = 1e-5 if dtype == torch.float32 else 1e-2
    found = results(packing.gpu_attention, GPU, dtype)
    for ours, wanted in zip(found, results(cpu.bucket_attention, torch.device("cpu"), torch.float32), strict=True):
        assert ours.shape == wanted.shape and (ours - wanted).norm() < limit * wanted.norm()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_drops_weights(causal):
    """Values are unit vectors, which show the weights: each is 0, or 1 / (1 - p) of what it is."""
    torch.manual_seed(0)
    layout = packing.Packing.of_lengths([64] * 50).to(GPU)
    zeros = torch.zeros(1, 1, 3200, 64, device=GPU, dtype=torch.bfloat16)
    values = torch.eye(64, device=GPU, dtype=torch.bfloat16).repeat(50, 1)[None, None]
    weights = packing.gpu_attention(zeros, zeros, values, layout, 0.25, causal, None)[0, :, 0].float()  # [N, 64]
    seen = (layout.positions + 1 if causal else torch.full_like(layout.positions, 64))[:, None]
    allowed = torch.arange(64, device=GPU) < seen
    ratio = (weights * seen)[allowed]
    assert not weights[~allowed].any()
    assert (((ratio - 1 / 0.75).abs() < 0.02) | (ratio == 0)).all()
    assert abs((ratio > 0).float().mean().item() - 0.75) < 5 * (0.1875 / len(ratio)) ** 0.5  # standard deviations


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[64] * 20, [5, 300, 0, 64, 130, 1]])
def test_gradients_are_those_of_the_weights_that_dropout_left(lengths, causal, dtype):
    """The same seed drops the same weights of other values. Those that are unit vectors for 64 of a sequence's tokens,
    and zero for the others, show the weights of these; from all weights the gradients follow by hand, in float64."""
    torch.manual_seed(0)
    layout = packing.Packing.of_lengths(lengths).to(GPU)
    shape = (1, 2, sum(lengths), 64)
    given = [torch.randn(shape, device=GPU, dtype=dtype, requires_grad=True) for _ in range(3)]

    def attend(values):
        torch.manual_seed(1)
        return packing.packed_attention(Layer(causal), *given[:2], values, None, layout, dropout=0.25)[0]

    shown = []  # of each 64 columns: the weights of all tokens for them, [A, N, 64]
    for start in range(0, max(lengths), 64):
        columns = layout.columns[:, None] == torch.arange(start, start + 64, device=GPU)
        shown.append(attend(columns.to(dtype).expand(shape).contiguous())[0].detach().transpose(0, 1))
    kept = (torch.cat(shown, 2) != 0).double() / 0.75  # [A, N, longest or more]
    out = attend(given[2])
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), given)
    exact = [x.detach().double().requires_grad_() for x in given]
    outputs = []
    for q, k, v, mask in zip(*(x[0].split(lengths, 1) for x in exact), kept.split(lengths, 1), strict=True):
        scores = q @ k.transpose(1, 2) / 8
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        outputs.append((scores.softmax(2) * mask[..., : q.shape[1]] @ v).transpose(0, 1))
    plain = torch.cat(outputs)[None]
    wanted = torch.autograd.grad((plain * weight).sum(), exact)
    for ours, right in zip((out, *found), (plain, *wanted), strict=True):
        limit = 1e-4 if dtype == torch.float32 else 2e-2
        assert (ours.double() - right).norm() < limit * right.norm()


class Layer:
    """What transformers passes on of an attention layer."""

    def __init__(self, is_causal):
        self.is_causal = is_causal


def m3(device):
    return with_weights(utils.M3Model(ENCODER, DECODER), "weights_m3_kit.pth", device)


def clamp2(device):
    text = AutoConfig.from_pretrained(KIT / "tiny-xlmr")
    return with_weights(utils.CLaMP2Model.from_configs(text, ENCODER, 48), "weights_clamp2_kit.pth", device)


def with_weights(model, name, device):
    load_weights(model, load_checkpoint(KIT / name)["model"], KIT / name)
    return model.eval().to(device)


def arrays(names, keep_unit_length=True):
    """What the models read of the kit's pieces and texts."""
    tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
    return [
        tokenize(join_lines(read_text(KIT / "texts" / name), tokenizer), tokenizer)
        if name.endswith(".txt")
        else read_patches(keep_unit_length, KIT / ("mtf" if name.endswith(".mtf") else "interleaved") / name)
        for name in names
    ]


def gradients(model, *inputs):
    """The loss and all gradients of a padded batch, on the CPU."""
    loss = model(*(tensor.to(model.device) for tensor in inputs))
    loss = loss if isinstance(loss, torch.Tensor) else loss.loss
    loss.backward()
    return {"loss": loss.detach().cpu()} | {
        name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_same(found, wanted):
    assert found.keys() == wanted.keys() and len(wanted) > 20
    for name, value in wanted.items():
        # a bias that softmax cancels out has a gradient of rounding errors alone
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5 + 1e-4 * value.abs().max().item(), msg=name)


def m3_batch(values):
    names = ("input_patches", "input_masks", "selected_indices", "target_patches")
    return [torch.from_numpy(values[f"m3_loss/{name}"]) for name in names]


def test_m3_loss_and_gradients(values):
    found = gradients(m3(GPU), *m3_batch(values))
    assert abs(found["loss"].item() - values["m3_loss/loss"]) < 1e-4
    assert_same(found, gradients(m3(torch.device("cpu")), *m3_batch(values)))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_with_dropout_are_slopes(values, compiled):
    """Of the loss of a training step, along the gradient: the backward pass drops what the forward pass dropped."""
    model = m3(GPU).train()
    if compiled:
        for layer in [*model.encoder.base.encoder.layer, *model.decoder.base.transformer.h]:
            (layer.attention.self.dropout if hasattr(layer, "attention") else layer.attn.attn_dropout).p = 0.0
        packing.compile_layers(model)  # in float32 only attention without dropout is one kernel
    batch = [tensor.to(GPU) for tensor in m3_batch(values)]

    def loss():
        torch.manual_seed(0)
        return model(*batch).loss

    loss().backward()
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    found = []
    with torch.no_grad():
        for distance in (0.01, -0.02):
            for parameter in parameters:
                parameter += distance / norm * parameter.grad
            found.append(loss().item())
    model.eval()
    assert abs((found[0] - found[1]) / 0.02 / norm.item() - 1) < 0.02
    assert abs(model(*batch).loss.item() - found[1]) > 1e-4  # there was dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_layers_have_the_same_gradients(values, dtype):
    model = m3(GPU)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        wanted = gradients(model, *m3_batch(values))
        model.zero_grad()
        packing.compile_layers(model)
        found = gradients(model, *m3_batch(values))
    if dtype == torch.float32:
        assert_same(found, wanted)
    exact = gradients(m3(GPU), *m3_batch(values))  # in float32
    for name, gradient in exact.items():  # compiled, no further off than before
        if gradient.norm() > 1e-3:
            assert (found[name] - gradient).norm() < 2 * (wanted[name] - gradient).norm() + 1e-3 * gradient.norm(), name


def test_clamp2_loss_and_gradients():
    texts = arrays(["lines.txt", "long.txt", "one_line.txt"])
    music = arrays(["duo.abc", "long.mtf", "solo_jig.abc"])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row[:100]) for row in texts], True, 1)
    patches = torch.nn.utils.rnn.pad_sequence([torch.tensor(row[:300]) for row in music], True)
    inputs = (ids, ids != 1, patches, patches.any(2))
    assert_same(gradients(clamp2(GPU), *inputs), gradients(clamp2(torch.device("cpu")), *inputs))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamp2_features(values, pooled, dtype):
    kind = "clamp2_normalized/" if pooled else "clamp2_temporal/"
    assert_golden(clamp2(GPU), values, kind, pooled, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_m3_features(values, dtype):
    assert_golden(m3(GPU).encoder, values, "m3/", False, dtype)


def assert_golden(model, values, kind, pooled, dtype):
    names = [name.removeprefix(kind) for name in values if name.startswith(kind)]
    assert len(names) >= 8
    items = zip(names, arrays(names, keep_unit_length=kind != "m3/"), strict=True)
    features = dict(embed(model, items, pooled, dtype=dtype))
    assert list(features) == names
    for name, feature in features.items():
        wanted = values[kind + name]
        if dtype == torch.float32:
            np.testing.assert_allclose(feature, wanted, atol=1e-4, rtol=0, err_msg=name)
        else:
            assert feature.shape == wanted.shape, name
            cosine = (feature * wanted).sum() / np.linalg.norm(feature) / np.linalg.norm(wanted)
            assert cosine > 0.999, name
