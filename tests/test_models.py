"""The models against the golden values, and against the plain form of what they compute."""

import ctypes
import math
from copy import deepcopy
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

import config
import cpu
import packing
import utils
from checkpoints import load_checkpoint, load_weights
from embedding import embed, segment_starts
from extraction import read_patches
from files import InputError
from helpers import CODE, KIT, KIT_SIZES, m3_configs, run_script
from texts import join_lines, read_text, tokenize

VALUES = np.load(KIT / "values.npz")
ENCODER, DECODER = m3_configs()


@pytest.fixture(scope="module")
def m3():
    model = utils.M3Model(ENCODER, DECODER)
    path = KIT / "weights_m3_kit.pth"
    load_weights(model, load_checkpoint(path)["model"], path)
    return model.eval()


@pytest.fixture(scope="module")
def clamp2():
    model = utils.CLaMP2Model.from_configs(AutoConfig.from_pretrained(KIT / "tiny-xlmr"), ENCODER, 48)
    path = KIT / "weights_clamp2_kit.pth"
    load_weights(model, load_checkpoint(path)["model"], path)
    return model.eval()


def golden(prefix):
    names = [name.removeprefix(prefix) for name in VALUES if name.startswith(prefix)]
    assert len(names) >= 8
    return names


def array_of(name, tokenizer, keep_unit_length=False):
    if name.endswith(".txt"):
        return tokenize(join_lines(read_text(KIT / "texts" / name), tokenizer), tokenizer)
    path = KIT / ("mtf" if name.endswith(".mtf") else "interleaved") / name
    return read_patches(keep_unit_length, path)


def batch(prefix, *names):
    return [torch.from_numpy(VALUES[f"{prefix}/{name}"]) for name in names]


# --- golden values --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_tokens", [1, 700, 10**6])
def test_golden_m3_features(m3, batch_tokens):
    names = golden("m3/")
    features = dict(embed(m3.encoder, ((name, array_of(name, None)) for name in names), batch_tokens=batch_tokens))
    assert list(features) == names
    for name, feature in features.items():
        np.testing.assert_allclose(feature, VALUES[f"m3/{name}"], atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["clamp2_temporal/", "clamp2_normalized/"])
@pytest.mark.parametrize("batch_tokens", [100, 10**6])
def test_golden_clamp2_features(clamp2, tokenizer, kind, batch_tokens):
    names = golden(kind)
    items = ((name, array_of(name, tokenizer, keep_unit_length=True)) for name in names)
    features = dict(embed(clamp2, items, kind == "clamp2_normalized/", batch_tokens))
    assert list(features) == names
    for name, feature in features.items():
        np.testing.assert_allclose(feature, VALUES[kind + name], atol=1e-4, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")


def test_golden_m3_loss(m3):
    inputs = batch("m3_loss", "input_patches", "input_masks", "selected_indices", "target_patches")
    with torch.no_grad():
        output = m3(*inputs)
    assert abs(output.loss.item() - VALUES["m3_loss/loss"]) < 1e-4
    selected, targets = inputs[2].bool(), inputs[3]
    assert output.characters.item() == (targets[selected][:, 1:] != 0).sum().item()


def test_golden_contrastive_loss():
    loss = utils.ClipLoss()(*batch("clip_loss", "text", "music"), 1)
    assert abs(loss.item() - VALUES["clip_loss/loss"]) < 1e-4


# --- state dicts ----------------------------------------------------------------------------------------------------
def shapes(model):
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def bert_shapes(hidden, layers, words, positions, types):
    """What a BERT checkpoint holds, written down from the architecture."""
    names = {
        "embeddings.word_embeddings.weight": [words, hidden],
        "embeddings.position_embeddings.weight": [positions, hidden],
        "embeddings.token_type_embeddings.weight": [types, hidden],
        "pooler.dense.weight": [hidden, hidden],
        "pooler.dense.bias": [hidden],
    }
    linears = {
        "attention.self.query": 1,
        "attention.self.key": 1,
        "attention.self.value": 1,
        "attention.output.dense": 1,
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}." for i in range(layers)):
        for linear in linears:
            names |= {f"{layer}{linear}.weight": [hidden, hidden], f"{layer}{linear}.bias": [hidden]}
        names |= {
            f"{layer}intermediate.dense.weight": [4 * hidden, hidden],
            f"{layer}intermediate.dense.bias": [4 * hidden],
        }
        names |= {f"{layer}output.dense.weight": [hidden, 4 * hidden], f"{layer}output.dense.bias": [hidden]}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for norm in norms:
        names |= {f"{norm}.weight": [hidden], f"{norm}.bias": [hidden]}
    return names


def m3_encoder_shapes():
    own = {"patch_embedding.weight": [768, 64 * 128], "patch_embedding.bias": [768]}
    return own | {f"base.{name}": shape for name, shape in bert_shapes(768, 12, 1, 512, 2).items()}


def gpt2_shapes():
    names = {"transformer.wte.weight": [128, 768], "transformer.wpe.weight": [64, 768], "lm_head.weight": [128, 768]}
    names |= {"transformer.ln_f.weight": [768], "transformer.ln_f.bias": [768]}
    for layer in (f"transformer.h.{i}." for i in range(3)):
        for norm in ("ln_1", "ln_2"):
            names |= {f"{layer}{norm}.weight": [768], f"{layer}{norm}.bias": [768]}
        for linear, into, out in (
            ("attn.c_attn", 768, 3 * 768),
            ("attn.c_proj", 768, 768),
            ("mlp.c_fc", 768, 3072),
            ("mlp.c_proj", 3072, 768),
        ):
            names |= {f"{layer}{linear}.weight": [into, out], f"{layer}{linear}.bias": [out]}
    return names


def prefixed(prefix, names):
    return {prefix + name: shape for name, shape in names.items()}


XLMR = XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)


def published_models():
    with torch.device("meta"):
        return {
            "m3": utils.M3Model(utils.encoder_config(), utils.decoder_config()),
            "clamp2": utils.CLaMP2Model.from_configs(XLMR, utils.encoder_config()),
        }


def test_state_dicts_of_published_size():
    models = published_models()
    expected = prefixed("encoder.", m3_encoder_shapes()) | prefixed("decoder.base.", gpt2_shapes())
    assert len(expected) == 242 and shapes(models["m3"]) == expected
    expected = prefixed("music_model.", m3_encoder_shapes())
    expected |= prefixed("text_model.", bert_shapes(768, 12, 250002, 514, 1))
    for side in ("text", "music"):
        expected |= {f"{side}_proj.weight": [768, 768], f"{side}_proj.bias": [768]}
    assert len(expected) == 404 and shapes(models["clamp2"]) == expected


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("m3", {"M3_HIDDEN_SIZE": 128}, "M3_HIDDEN_SIZE = 128, these weights have 64"),
        ("m3", {"PATCH_NUM_LAYERS": 3}, "PATCH_NUM_LAYERS = 3, these weights have 2"),
        ("m3", {"TOKEN_NUM_LAYERS": 4}, "TOKEN_NUM_LAYERS = 4, these weights have 1"),
        ("m3", {"PATCH_LENGTH": 256}, "PATCH_LENGTH = 256, these weights have 512"),
        ("m3", {"PATCH_SIZE": 32}, "PATCH_SIZE = 32, these weights have 64"),
        ("clamp2", {"CLAMP2_HIDDEN_SIZE": 7}, "CLAMP2_HIDDEN_SIZE = 7, these weights have 48"),
        (
            "clamp2",
            {"M3_HIDDEN_SIZE": 128, "PATCH_NUM_LAYERS": 1},
            "M3_HIDDEN_SIZE = 128, these weights have 64; PATCH_NUM_LAYERS = 1, these weights have 2",
        ),
        ("clamp2", {"text": 256}, "TEXT_MODEL_NAME = 'some/text', these weights have another text model"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tmp_path, monkeypatch, kind, changes, problem):
    sizes = {"PATCH_LENGTH": 512, "PATCH_SIZE": 64} | KIT_SIZES | changes
    for name, value in sizes.items() - {("text", 256)}:
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(utils, "PATCH_SIZE", sizes["PATCH_SIZE"])
    monkeypatch.setattr(config, "TEXT_MODEL_NAME", "some/text")
    monkeypatch.setenv("CLAMP2_CONFIG", "few.py")
    path = KIT / f"weights_{kind}_kit.pth"
    if kind == "m3":
        model = utils.empty(utils.M3Model, utils.encoder_config(), utils.decoder_config())
    else:
        text = AutoConfig.from_pretrained(KIT / "tiny-xlmr", intermediate_size=changes.get("text", 128))
        model = utils.empty(utils.CLaMP2Model.from_configs, text, utils.encoder_config(), config.CLAMP2_HIDDEN_SIZE)
    with pytest.raises(InputError) as told:
        load_weights(model, load_checkpoint(path)["model"], path)
    assert str(told.value).startswith(f"{path}: does not fit few.py: {problem}; set there what")


def test_entries_that_do_not_fit_are_named(tmp_path):
    path = KIT / "weights_m3_kit.pth"
    weights = load_checkpoint(path)["model"]
    weights["encoder.base.encoder.layer.1.output.dense.bias"] = torch.zeros(7)
    with pytest.raises(
        InputError, match=r"encoder\.layer\.1\.output\.dense\.bias is \[7\], but is \[64\] in .*config\.py"
    ):
        load_weights(utils.M3Model(ENCODER, DECODER), weights, path)
    del weights["encoder.base.encoder.layer.1.output.dense.bias"], weights["encoder.patch_embedding.bias"]
    with pytest.raises(InputError, match=r"2 entries are missing \(the first: encoder\.patch_embedding\.bias\)"):
        load_weights(utils.M3Model(ENCODER, DECODER), weights, path)
    with pytest.raises(InputError, match="these weights are of another model"):
        load_weights(utils.M3Model(ENCODER, DECODER), {f"x.{name}": value for name, value in weights.items()}, path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(InputError, match=r"evil\.pth: not a checkpoint that can be loaded safely"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_damaged_checkpoints(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pth"):
        load_checkpoint(path)


# --- the plain form -------------------------------------------------------------------------------------------------
def test_patch_embedding_is_the_linear_layer_of_the_one_hot_patches(m3):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 128, (50, 64), generator=generator)
    for row, length in enumerate(torch.randint(0, 65, (50,), generator=generator).tolist()):
        patches[row, length:] = 0
    plain = m3.encoder.patch_embedding(F.one_hot(patches, 128).float().flatten(1))
    packed = m3.encoder.embed(packing.Packed.of([patches.to(torch.uint8).numpy()]))
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    parameters = [m3.encoder.patch_embedding.weight, m3.encoder.patch_embedding.bias]
    weight = torch.randn(plain.shape, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad((packed * weight).sum(), parameters),
        torch.autograd.grad((plain * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture
def threads():
    """Sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 30, 500, 3000])
def test_the_gradient_of_the_patch_embedding_is_one_sum_whatever_the_threads(threads, count):
    """Bit for bit: the sum in float32, of one character after another. 3000 patches are 100,000 characters."""
    rng = np.random.default_rng(count)
    patches = rng.choice([3, *range(60, 70)], (count, 64)).astype(np.uint8)
    patches[np.arange(64) >= rng.integers(0, 65, (count, 1))] = 0
    batch = packing.Packed(packing.Packing.of_lengths([count]), patches)
    upstream = rng.standard_normal((count, 64), np.float32)
    used = np.arange(64) < batch.sizes.numpy()[:, None]
    expected = np.zeros((64 * 128, 64), np.float32)
    np.add.at(expected, batch.characters.numpy(), upstream[used.nonzero()[0]])
    encoder = utils.M3PatchEncoder(m3_configs(layers=1)[0])
    whole = []
    for number in (1, 2, 4, 4):
        threads(number)
        table = torch.zeros(64 * 128, 64, requires_grad=True)
        cpu.sum_rows(table, batch.characters, batch.starts).backward(torch.from_numpy(upstream))
        assert np.array_equal(table.grad.numpy(), expected)
        encoder.zero_grad()
        encoder.embed(batch).backward(torch.from_numpy(upstream))
        whole.append(encoder.patch_embedding.weight.grad.clone())
    assert all(torch.equal(gradient, whole[0]) for gradient in whole)


def plain_m3_loss(m3, inputs, masks, selected, targets):
    """M3's loss as the paper says it: padded, one-hot, through transformers' own attention and loss."""
    encoder = BertModel(deepcopy(m3.encoder.base.config), add_pooling_layer=True).eval()
    encoder.set_attn_implementation("eager")
    encoder.load_state_dict(m3.encoder.base.state_dict())
    embedded = m3.encoder.patch_embedding(F.one_hot(inputs.long(), 128).float().flatten(2))
    features = encoder(inputs_embeds=embedded, attention_mask=masks.long()).last_hidden_state
    decoder = type(m3.decoder.base)(deepcopy(m3.decoder.base.config)).eval()
    decoder.set_attn_implementation("eager")
    decoder.load_state_dict(m3.decoder.base.state_dict())
    features, targets = features[selected.bool()], targets[selected.bool()].long()
    embedded = decoder.transformer.wte(targets)
    embedded = torch.cat([features[:, None], embedded[:, 1:]], dim=1)
    labels = targets.masked_fill(targets == 0, -100)
    loss = decoder(inputs_embeds=embedded, attention_mask=(targets != 0).long(), labels=labels).loss
    return loss, dict(encoder.named_parameters()), dict(decoder.named_parameters())


def test_m3_loss_and_gradients_are_those_of_the_plain_form(m3):
    inputs = batch("m3_loss", "input_patches", "input_masks", "selected_indices", "target_patches")
    m3.zero_grad()
    loss = m3(*inputs).loss
    loss.backward()
    ours = {name: p.grad for name, p in m3.named_parameters() if p.grad is not None}
    m3.zero_grad()
    plain, encoder, decoder = plain_m3_loss(m3, *inputs)
    assert abs(plain.item() - loss.item()) < 1e-5
    plain.backward()
    compared = 0
    for prefix, parameters in (("encoder.base.", encoder), ("decoder.base.", decoder)):
        for name, parameter in parameters.items():
            if parameter.grad is not None and prefix + name in ours:
                torch.testing.assert_close(ours[prefix + name], parameter.grad, atol=1e-6, rtol=1e-4, msg=prefix + name)
                compared += 1
    assert compared > 40
    torch.testing.assert_close(ours["encoder.patch_embedding.weight"], m3.encoder.patch_embedding.weight.grad)


def test_packed_text_model_is_the_padded_one():
    config = XLMRobertaConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    padded = XLMRobertaModel(config).eval()
    model = utils.CLaMP2Model.from_configs(config, m3_configs(layers=1)[0], 48).eval()
    model.text_model.load_state_dict(padded.state_dict())
    ids = torch.randint(4, 100, (5, 40))
    masks = torch.arange(40) < torch.tensor([40, 3, 17, 8, 25])[:, None]
    ids[~masks] = 1
    ids[0, 5] = 1  # a padding token that is no padding: the model gives it no position of its own
    expected = padded(input_ids=ids, attention_mask=masks.long()).last_hidden_state
    mean = (expected * masks[..., None]).sum(1) / masks.sum(1, keepdim=True)
    torch.testing.assert_close(model.get_text_features(ids, masks, True), model.text_proj(mean), atol=1e-5, rtol=1e-5)


def test_another_kind_of_text_model_runs_padded():
    config = AutoConfig.for_model(
        "distilbert", vocab_size=100, dim=64, n_layers=2, n_heads=2, hidden_dim=128, max_position_embeddings=64
    )
    torch.manual_seed(0)
    model = utils.CLaMP2Model.from_configs(config, m3_configs(layers=1)[0], 48).eval()
    ids, masks = torch.randint(4, 100, (3, 20)), torch.arange(20) < torch.tensor([20, 5, 11])[:, None]
    together = model.get_text_features(ids, masks, True)
    for row, length in enumerate((20, 5, 11)):
        alone = model.get_text_features(ids[row : row + 1, :length], masks[row : row + 1, :length], True)
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


# --- packing --------------------------------------------------------------------------------------------------------
def test_segments_go_forward_together():
    """Those of the first piece too: 1100 patches are three segments, in one pass with the piece behind them."""
    passes = []

    class Model(torch.nn.Linear):
        def features(self, batch, pooled):
            passes.append(batch.packing.counts.tolist())
            return torch.zeros(len(batch.tokens), 1)

    list(embed(Model(1, 1), enumerate([np.ones((1100, 64), np.uint8), np.ones((3, 64), np.uint8)])))
    assert passes == [[512, 512, 512, 3]]


def test_bucket_widths_waste_at_most_a_third():
    for length in range(8, 513):
        assert length <= cpu.bucket_width(length) <= 1.5 * length


def test_pack_and_unpack():
    masks = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    values = torch.randn(3, 4, 5) * masks[..., None]
    layout = packing.Packing(masks.bool().numpy())
    assert layout.pack(values).shape == (7, 5)
    assert torch.equal(layout.unpack(layout.pack(values)), values)
    torch.testing.assert_close(layout.mean(layout.pack(values)), values.sum(1) / masks.sum(1, keepdim=True))


def test_the_work_is_that_of_the_real_tokens(m3):
    """Linear layers see real patches and characters only; attention at most half as much again, per side."""
    inputs = batch("m3_loss", "input_patches", "input_masks", "selected_indices", "target_patches")
    real = int(inputs[1].sum())
    rows, attended = [], []
    hook = m3.encoder.base.encoder.layer[0].intermediate.register_forward_hook(lambda _, x, __: rows.append(x[0].shape))
    kernel = F.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        attended.append(query.shape[0] * query.shape[2])
        return kernel(query, *args, **kwargs)

    with mock.patch.object(cpu, "scaled_dot_product_attention", counted):
        m3.encoder(inputs[0], inputs[1])
    hook.remove()
    assert rows == [(1, real, 64)]
    assert real * 2 <= sum(attended) <= 1.5 * real * 2  # two layers


# --- what the public methods take -----------------------------------------------------------------------------------
def test_masks_and_ids_of_any_type(m3, clamp2):
    """Whatever `mask != 0` is understood of, bfloat16 too, which NumPy does not know."""
    patches, masks = torch.randint(4, 128, (2, 5, 64)), torch.arange(5) < torch.tensor([5, 3])[:, None]
    ids = torch.randint(4, 300, (2, 5))
    selected = masks.int().cumsum(1) == 2
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64):
        mask = masks.to(dtype)
        whole = patches if dtype == torch.bool else patches.to(dtype)
        for found, wanted in (
            (m3(whole, mask, selected.to(dtype), whole).loss, m3(patches, masks, selected, patches).loss),
            (clamp2.get_music_features(patches, mask), clamp2.get_music_features(patches, masks)),
            (clamp2.get_text_features(ids, mask, True), clamp2.get_text_features(ids, masks, True)),
            (clamp2.avg_pooling(patches.float(), mask), clamp2.avg_pooling(patches.float(), masks)),
        ):
            assert torch.equal(found, wanted), dtype


def test_a_layer_in_the_place_of_the_patch_embedding(m3):
    """LoRA's wraps the linear layer, and has no weight of its own."""
    wrapped = deepcopy(m3)
    wrapped.encoder.patch_embedding = torch.nn.Sequential(wrapped.encoder.patch_embedding)
    patches, masks = torch.randint(4, 128, (2, 5, 64)), torch.ones(2, 5)
    losses = [model(patches, masks, masks, patches).loss for model in (wrapped, m3)]
    torch.testing.assert_close(*losses)


def test_generate_reads_pad_as_a_character(m3):
    """As the published decoder does: its answer for some characters is the transformer's for them and the feature."""
    feature, decoder = torch.randn(64), m3.decoder
    for tokens in ([1, 0, 70], [1, 70, 0], [1], [0, 70], [1] + [70] * 63):
        embeddings = decoder.base.transformer.wte(torch.tensor([tokens])).detach()
        embeddings[0, 0] = feature
        with torch.no_grad():
            plain = decoder.base(inputs_embeds=embeddings).logits[0, -1].softmax(-1)
        torch.testing.assert_close(decoder.generate(feature, torch.tensor(tokens)), plain, rtol=1e-4, atol=1e-6)


# --- attention ------------------------------------------------------------------------------------------------------
def test_every_transformer_runs_the_fused_attention(m3, clamp2):
    """BERT, GPT-2 and XLM-R all call scaled_dot_product_attention, once for each layer and bucket at the least."""
    kernel = F.scaled_dot_product_attention
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return kernel(*args, **kwargs)

    patches, masks = torch.randint(4, 128, (1, 5, 64), dtype=torch.uint8), torch.ones(1, 5)
    with mock.patch.object(cpu, "scaled_dot_product_attention", counted):
        for run, layers in (
            (lambda: m3.encoder(patches, masks), 2),
            (lambda: m3.decoder(torch.randn(5, 64), patches[0]), 1),
            (lambda: clamp2.get_text_features(torch.randint(4, 300, (1, 9)), torch.ones(1, 9)), 2),
        ):
            calls.clear()
            run()
            assert len(calls) == layers


def test_bert_config_is_the_published_one():
    config = utils.M3Model(ENCODER, DECODER).encoder.base.config
    assert config.hidden_dropout_prob == BertConfig().hidden_dropout_prob == 0.1
    assert config.num_attention_heads == 1 and config.intermediate_size == 256


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("causal", [False, True])
def test_plain_attention_is_the_fused_one(causal, p):
    """What dropout leaves over is what the fused kernel computes, and so are its gradients."""
    given = torch.randn(3, 2, 4, 7, 8, requires_grad=True)  # query, key, value
    mask = None if causal else torch.arange(7) < torch.tensor([3, 7])[:, None, None, None]
    with mock.patch.object(cpu, "dropout", lambda x, p: x):
        ours = cpu.plain_attention(*given, mask, p, causal, None)
    fused = F.scaled_dot_product_attention(*given, mask, is_causal=causal)
    torch.testing.assert_close(ours, fused)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), given)[0] for out in (ours, fused)]
    torch.testing.assert_close(*gradients)


# --- dropout --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(p, dtype):
    torch.manual_seed(0)
    x = torch.full((1001, 999), 3.0, dtype=dtype, requires_grad=True)
    y = cpu.Dropout(p)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept].float(), torch.full((int(kept.sum()),), 3 / (1 - p)), rtol=1e-2, atol=0)
    for rate in (1 - kept.float().mean(), *(1 - kept.float().mean(side) for side in (0, 1))):
        count = kept.numel() / rate.numel()
        assert (abs(rate - p) < 5 * math.sqrt(p * (1 - p) / count)).all()  # five standard deviations
    neighbours = (kept[:, 1:] == kept[:, :-1]).float().mean()
    assert abs(neighbours - (p**2 + (1 - p) ** 2)) < 3e-3
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    assert not torch.equal(cpu.Dropout(p)(x) != 0, kept)  # another draw
    assert torch.equal(cpu.Dropout(p).eval()(x), x)


def test_every_dropout_of_a_model_is_replaced(m3, clamp2):
    for model in (m3, clamp2):
        kinds = {type(module) for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert kinds == {cpu.Dropout}


# --- segments -------------------------------------------------------------------------------------------------------
def test_segments():
    assert segment_starts(5, 512) == [0]
    assert segment_starts(512, 512) == [0]
    assert segment_starts(513, 512) == [0, 1]
    assert segment_starts(1024, 512) == [0, 512]
    assert segment_starts(1100, 512) == [0, 512, 588]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc can be asked to")
def test_freed_memory_is_given_back(tmp_path):
    """In a process that keeps it: 64 blocks of 4 MB, of which every other one is freed, so that the heap has holes."""
    script = tmp_path / "holes.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(CODE)!r})\n"
        "import cpu, torch\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "cpu.keep_freed_memory()\n"
        "blocks = [torch.ones(2**20) for _ in range(64)]\n"
        "full = rss(); del blocks[::2]; kept = rss(); cpu.release_freed_memory(); print(full - kept, kept - rss())\n"
    )
    done = run_script(script)
    kept, given_back = map(float, done.stdout.split())
    assert abs(kept) < 10 and 110 < given_back < 140, done
