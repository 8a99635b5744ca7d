"""The calls that programs written for the published `utils.py` and `config.py` make, against what the published code gives.

`kit/published_calls.npz` holds its results on the kit (CPU, float32, without dropout).
"""

import copy
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import utils
from helpers import CODE, KIT, m3_configs, run
from utils import CLaMP2Model, ClipLoss, M3Model, M3PatchEncoder, M3Patchilizer, M3TokenDecoder

PUBLISHED = np.load(KIT / "published_calls.npz")
VALUES = np.load(KIT / "values.npz")
ENCODER, DECODER = m3_configs()
ABC = (KIT / "interleaved" / "duo.abc").read_text()
MTF = (KIT / "mtf" / "two_tracks.mtf").read_text()


def assert_published(call, value):
    expected = PUBLISHED[call]
    value = value.detach().numpy() if torch.is_tensor(value) else np.array(value)
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, atol=1e-4, rtol=0)


def codes(text):
    return [ord(character) for character in text]


def weights(name):
    return torch.load(KIT / f"weights_{name}_kit.pth", map_location="cpu", weights_only=True)["model"]


@pytest.fixture(scope="module")
def m3():
    model = M3Model(ENCODER, DECODER)
    model.load_state_dict(weights("m3"))
    return model.eval()


def a_clamp2(**arguments):
    model = CLaMP2Model(ENCODER, text_model_name=str(KIT / "tiny-xlmr"), hidden_size=48, load_m3=False, **arguments)
    model.load_state_dict(weights("clamp2"))
    return model.eval()


@pytest.fixture(scope="module")
def clamp2():
    return a_clamp2()


@pytest.fixture(scope="module")
def music():
    """Patches and masks of two pieces, padded as such programs pad."""
    rows = [torch.tensor(M3Patchilizer().encode(text, add_special_patches=True)) for text in (ABC, MTF)]
    masks = [torch.ones(len(row)) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(masks, batch_first=True)


@pytest.fixture(scope="module")
def texts():
    tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
    batch = tokenizer(["A lively reel.", "Une valse lente en sol majeur"], return_tensors="pt", padding=True)
    return batch["input_ids"], batch["attention_mask"].float()


# --- patches --------------------------------------------------------------------------------------------------------
def test_encode():
    patches = M3Patchilizer().encode(ABC, add_special_patches=True)
    assert isinstance(patches, list) and isinstance(patches[0], list) and torch.tensor(patches).dtype == torch.int64
    assert_published("encode", patches)
    assert_published("encode, patch size second", M3Patchilizer().encode(ABC, 64, True))
    keywords = {"patch_size": 64, "add_special_patches": False, "truncate": True, "random_truncate": False}
    assert_published("encode, keywords", M3Patchilizer().encode(item=MTF, **keywords))
    assert_published("encode, another patch size", M3Patchilizer().encode(ABC, patch_size=32))


def test_the_parts_of_a_patchilizer():
    patchilizer = M3Patchilizer()
    ids = [getattr(patchilizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")]
    assert_published("patchilizer's parts:ids", ids)
    assert_published("patchilizer's parts:delimiters", codes(" ".join(patchilizer.delimiters)))
    assert isinstance(patchilizer.delimiters, list) and re.split(patchilizer.regexPattern, "A|:B") == ["A", "|:", "B"]
    assert_published("patchilizer's parts:bars", codes("\n".join(patchilizer.split_bars("|:CDEF|GABc:|c8|]"))))
    patch = patchilizer.bar2patch("C2 D2|")
    assert isinstance(patch, list)
    assert_published("patchilizer's parts:bar2patch", patch)
    assert_published("patchilizer's parts:patch2bar", codes(patchilizer.patch2bar(patch)))
    assert_published("decode", codes(patchilizer.decode(patchilizer.encode(ABC))))


def test_mask_patches():
    patchilizer = M3Patchilizer()
    patches = patchilizer.encode(ABC, add_special_patches=True)
    inputs, selected = utils.mask_patches(patches, patchilizer, "eval")
    assert inputs.dtype == torch.int64 and selected.dtype == torch.float32
    assert_published("mask_patches(list, patchilizer, mode):inputs", inputs)
    assert_published("mask_patches(list, patchilizer, mode):how many", selected.sum())
    random.seed(0)
    draws = [utils.mask_patches(torch.tensor(patches), patchilizer, "train") for _ in range(30)]
    for inputs, selected in draws:
        assert_published("mask_patches in training:shape", list(inputs.shape))
        assert_published("mask_patches in training:how many", selected.sum())
        assert torch.equal(inputs[selected == 0], torch.tensor(patches)[selected == 0])
    assert any((inputs[selected == 1] == 3).all() for inputs, selected in draws)
    assert len({bytes(selected.numpy()) for _, selected in draws}) == 30
    random.seed(0)
    again = utils.mask_patches(patches, patchilizer, "train")  # the randomness is that of Python's `random`
    assert all(torch.equal(ours, first) for ours, first in zip(again, draws[0], strict=True))


def test_functions():
    for kind, text in (("abc", ABC), ("mtf", MTF)):
        assert_published(f"remove_instrument_info:{kind}", codes(utils.remove_instrument_info(text)))
    train, evaluation = utils.split_data(list(range(100)), 0.1)
    assert_published("split_data(list, ratio)", [len(train), len(evaluation)])
    assert sorted(train + evaluation) == list(range(100))


# --- models ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_patch_encoder(m3, music):
    model = M3PatchEncoder(ENCODER)
    stripped = {k.removeprefix("encoder."): v for k, v in weights("m3").items() if k.startswith("encoder.")}
    model.load_state_dict(stripped)
    model.eval()
    output = model(*music)
    assert torch.equal(output["last_hidden_state"], output.last_hidden_state)
    assert_published("M3PatchEncoder(config)(patches, masks)", output.last_hidden_state * music[1][..., None])


@torch.no_grad()
def test_m3_loss(m3):
    names = ("input_patches", "input_masks", "selected_indices", "target_patches")
    inputs, masks, selected, targets = (torch.tensor(VALUES[f"m3_loss/{name}"].astype(np.int64)) for name in names)
    masks, selected = masks.float(), selected.float()
    assert_published("M3Model(config, config)(...).loss", m3(inputs, masks, selected, targets).loss)
    flat = m3(inputs.reshape(len(inputs), -1), masks, selected, targets.reshape(len(targets), -1))
    assert_published("M3Model, patches flattened as the published trainer passes them", flat.loss)
    assert flat["loss"] == flat.loss


def test_token_decoder_generates(m3):
    decoder = M3TokenDecoder(DECODER)
    decoder.load_state_dict(m3.decoder.state_dict())
    decoder.eval()
    probabilities = decoder.generate(torch.linspace(-1, 1, 64), torch.tensor([1, 67, 50, 32]))
    assert_published("M3TokenDecoder(config).generate", probabilities)


@torch.no_grad()
def test_features(clamp2, music, texts):
    for kind, (inputs, masks) in (("music", music), ("text", texts)):
        get = getattr(clamp2, f"get_{kind}_features")
        assert_published(f"get_{kind}_features, temporal by default", get(inputs, masks) * masks[..., None])
        named = {f"{kind}_inputs": inputs, f"{kind}_masks": masks}
        assert_published(f"get_{kind}_features, normalized, by keyword", get(**named, get_normalized=True))
    flat = clamp2.get_music_features(music[0].reshape(2, -1), music[1], get_normalized=True)
    assert_published("get_music_features, normalized, by keyword", flat)


@torch.no_grad()
def test_the_inner_models_take_padded_batches(clamp2, music, texts):
    """Programs call them directly too."""
    hidden = clamp2.text_model(input_ids=texts[0], attention_mask=texts[1]).last_hidden_state
    assert_published("get_text_features, temporal by default", hidden * texts[1][..., None])
    patches, masks = music
    one_hot = torch.nn.functional.one_hot(patches, 128).float().flatten(2)
    embedded = clamp2.music_model.patch_embedding(one_hot)
    hidden = clamp2.music_model.base(inputs_embeds=embedded, attention_mask=masks)["last_hidden_state"]
    assert_published("get_music_features, temporal by default", hidden * masks[..., None])
    hidden = clamp2.music_model(patches, masks)["last_hidden_state"]  # and as usual again
    assert_published("get_music_features, temporal by default", hidden * masks[..., None])


def test_threads_share_a_model(clamp2, music):
    """With padded calls of the inner model among them."""
    patches, masks = music
    one_hot = torch.nn.functional.one_hot(patches, 128).float().flatten(2)

    @torch.no_grad()
    def call(number):
        if number % 2:
            embedded = clamp2.music_model.patch_embedding(one_hot)
            hidden = clamp2.music_model.base(inputs_embeds=embedded, attention_mask=masks)["last_hidden_state"]
        else:
            hidden = clamp2.get_music_features(patches, masks)
        return hidden * masks[..., None]

    with ThreadPoolExecutor(4) as pool:
        for hidden in pool.map(call, range(24)):
            assert_published("get_music_features, temporal by default", hidden)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(music, texts, use_reentrant):
    model = a_clamp2().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for inner in (model.text_model, model.music_model.base):
        inner.config.attention_probs_dropout_prob = 0.0
        for layer in inner.encoder.layer:
            layer.attention.self.dropout.p = 0.0

    def gradients():
        model.zero_grad()
        model(*texts, *music).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    for inner in (model.text_model, model.music_model.base):
        inner.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    again = gradients()
    assert plain.keys() == again.keys() and len(plain) > 60
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], atol=1e-6, rtol=1e-4, msg=name)


@torch.no_grad()
def test_texts_padded_on_the_left(clamp2, texts):
    """The text model counts tokens, not columns."""
    tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr", padding_side="left")
    batch = tokenizer(["A lively reel.", "Une valse lente en sol majeur"], return_tensors="pt", padding=True)
    assert batch["attention_mask"][0, 0] == 0
    features = clamp2.get_text_features(batch["input_ids"], batch["attention_mask"], get_normalized=True)
    assert_published("get_text_features, normalized, by keyword", features)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precisions(clamp2, music, texts, dtype):
    model = copy.deepcopy(clamp2).to(dtype)
    for kind, inputs in (("music", music), ("text", texts)):
        features = getattr(model, f"get_{kind}_features")(*inputs, get_normalized=True)
        assert features.dtype == dtype
        expected = torch.from_numpy(PUBLISHED[f"get_{kind}_features, normalized, by keyword"])
        assert torch.nn.functional.cosine_similarity(features.float(), expected).min() > 0.999
    x = torch.arange(24.0, dtype=dtype).reshape(2, 3, 4)
    assert model.avg_pooling(x, torch.ones(2, 3)).dtype == dtype


@torch.no_grad()
def test_a_layer_in_place_of_the_patch_embedding_is_run(m3, music):
    class Twice(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, one_hot):
            return 2 * self.inner(one_hot)

    model = copy.deepcopy(m3.encoder)
    model.patch_embedding = Twice(model.patch_embedding)
    patches, masks = music
    embedded = 2 * m3.encoder.patch_embedding(torch.nn.functional.one_hot(patches, 128).float().flatten(2))
    expected = m3.encoder.base(inputs_embeds=embedded, attention_mask=masks)["last_hidden_state"]
    torch.testing.assert_close(
        model(patches, masks)[0] * masks[..., None], expected * masks[..., None], atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_forward_is_the_loss(clamp2, music, texts):
    assert_published("CLaMP2Model(...)(texts, masks, music, masks) is the loss", clamp2(*texts, *music))
    ranked = a_clamp2(global_rank=0, world_size=1)
    assert_published("CLaMP2Model with rank and world size", ranked(*texts, *music))


def test_attributes(clamp2):
    assert str(clamp2.device) == "cpu" and clamp2.config.hidden_size == 64
    x, masks = torch.arange(24.0).reshape(2, 3, 4), torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    assert_published("avg_pooling, device, config, loss_fn:pooled", clamp2.avg_pooling(x, masks))
    assert_published("avg_pooling, device, config, loss_fn:loss", clamp2.loss_fn(torch.eye(3), torch.eye(3) * 2, 1))


def test_contrastive_loss():
    loss = ClipLoss(
        local_loss=False, gather_with_grad=True, cache_labels=False, rank=0, world_size=1, use_horovod=False
    )
    a, b = torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(1, -1, 12).reshape(3, 4) ** 2
    assert_published("ClipLoss(...)(text, music, scale, output_dict):plain", loss(a, b, 2))
    told = loss(a, b, 2, output_dict=True)
    assert_published("ClipLoss(...)(text, music, scale, output_dict):dict", told["contrastive_loss"])
    with pytest.raises(ValueError, match="Horovod"):
        ClipLoss(use_horovod=True)


@pytest.mark.parametrize("local_loss", [True, False])
@pytest.mark.parametrize("gather_with_grad", [True, False])
def test_contrastive_loss_of_one_of_two_processes(monkeypatch, local_loss, gather_with_grad):
    """Against the whole batch at once. Without gathered gradients, what comes from elsewhere is a constant."""
    generator = torch.Generator().manual_seed(0)
    own, others = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))  # text and music, 3 pairs of 4 numbers
    text, music = (side.clone().requires_grad_() for side in own)
    sent = iter([])

    def all_gather(parts, mine):
        parts[0].copy_(mine)
        parts[1].copy_(next(sent))

    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    # the other rank's loss is 5; its gradients are left out
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor if tensor.ndim else tensor.add_(5.0))
    loss_function = ClipLoss(local_loss=local_loss, gather_with_grad=gather_with_grad, rank=0, world_size=2)
    sent = iter([others[0], others[1]])  # texts are gathered first
    loss = loss_function(text, music, 2)
    loss.backward()

    def rows(first, second, count):
        logits = 2 * first[:count] @ second.T
        return torch.nn.functional.cross_entropy(logits, torch.arange(count))

    a, b = (side.clone().requires_grad_() for side in own)
    all_a, all_b = torch.cat([a, others[0]]), torch.cat([b, others[1]])
    if gather_with_grad:
        expected = (rows(all_a, all_b, 3) + rows(all_b, all_a, 3)) / 2
    elif local_loss:
        fixed_a, fixed_b = all_a.detach(), all_b.detach()
        expected = (rows(all_a, fixed_b, 3) + rows(all_b, fixed_a, 3)) / 2
    else:
        expected = (rows(all_a, all_b, 6) + rows(all_b, all_a, 6)) / 2
    expected.backward()
    mine = expected.item() if local_loss else (expected.item() + 5.0) / 2
    assert abs(loss.item() - mine) < 1e-6
    for ours, theirs in ((text, a), (music, b)):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_names_that_a_star_import_brings():
    """And sizes that a program sets in `config` before it imports `utils`."""
    names = "torch re os math random F unidecode AutoModel BertModel GPT2LMHeadModel PreTrainedModel GPT2Config dist"
    names += " has_distributed ClipLoss M3Patchilizer M3PatchEncoder M3TokenDecoder M3Model CLaMP2Model split_data"
    names += " mask_patches remove_instrument_info"
    constants = "PATCH_SIZE PATCH_LENGTH M3_HIDDEN_SIZE TEXT_MODEL_NAME CLAMP2_WEIGHTS_PATH LOGIT_SCALE WANDB_KEY"
    program = f"""
import config
config.M3_HIDDEN_SIZE = 128
from utils import *
missing = [name for name in {(names + " " + constants).split()} if name not in globals()]
assert not missing, missing
assert M3_HIDDEN_SIZE == 128 and unidecode("é") == "e" and "np" not in globals()
from config import *
assert M3_MASK_RATIO == 0.45
from transformers import BertConfig
assert M3PatchEncoder(BertConfig(vocab_size=1, hidden_size=M3_HIDDEN_SIZE, num_hidden_layers=1, num_attention_heads=2)).patch_embedding.weight.shape == (128, 8192)
"""
    result = run("-c", program, cwd=CODE)
    assert result.returncode == 0, result.stderr
