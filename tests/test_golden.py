"""The golden values of real music, where they are beside this checkout: every token, state dict, feature and loss.

`tests/kit` holds a smaller set of the same, which the other tests meet everywhere.
"""

import hashlib
import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, XLMRobertaConfig

import utils
from checkpoints import load_checkpoint, load_weights
from embedding import embed
from extraction import read_patches
from helpers import SHARED_GOLDEN, m3_configs
from patches import M3Patchilizer, read_music
from texts import join_lines, read_text, tokenize

pytestmark = pytest.mark.skipif(
    not (SHARED_GOLDEN / "values.npz").is_file(), reason="the golden values of real music are not beside this checkout"
)

SIZES = {"PATCH_NUM_LAYERS": 3, "TOKEN_NUM_LAYERS": 2, "M3_HIDDEN_SIZE": 128, "CLAMP2_HIDDEN_SIZE": 96}
PUBLISHED_TEXT = XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1)


@pytest.fixture(scope="module")
def values():
    return dict(np.load(SHARED_GOLDEN / "values.npz"))


def tiny_m3():
    return utils.M3Model(*m3_configs(128, 3, 2))


def tiny_clamp2():
    text_config = AutoConfig.from_pretrained(SHARED_GOLDEN / "tiny-xlmr")
    return utils.CLaMP2Model.from_configs(text_config, m3_configs(128, 3)[0], 96)


def with_weights(model, name):
    """Loads strictly: every name and shape."""
    path = SHARED_GOLDEN / name
    load_weights(model, load_checkpoint(path)["model"], path)
    return model.eval()


@pytest.fixture(scope="module")
def m3():
    return with_weights(tiny_m3(), "weights_m3_tiny.pth")


@pytest.fixture(scope="module")
def clamp2():
    return with_weights(tiny_clamp2(), "weights_clamp2_tiny.pth")


def patches_of(name, keep_unit_length=False):
    return read_patches(keep_unit_length, SHARED_GOLDEN / ("mtf" if name.endswith(".mtf") else "interleaved") / name)


def array_of(name, tokenizer, keep_unit_length=False):
    if name.endswith(".txt"):
        return tokenize(join_lines(read_text(SHARED_GOLDEN / "texts" / name), tokenizer), tokenizer)
    return patches_of(name, keep_unit_length)


def test_sizes_are_those_of_the_tiny_configuration():
    constants: dict = {}
    exec((SHARED_GOLDEN / "tiny_config.py").read_text(), constants)
    assert {name: constants[name] for name in SIZES} == SIZES


def test_patches_of_every_piece():
    golden = json.loads((SHARED_GOLDEN / "tokens.json").read_text())
    pieces = [path.name for kind in ("interleaved", "mtf") for path in (SHARED_GOLDEN / kind).iterdir()]
    assert sorted(golden) == sorted(pieces) and len(golden) > 90
    for name, facts in golden.items():
        patches = patches_of(name)
        assert len(patches) == facts["n_patches"], name
        assert hashlib.sha256(patches.tobytes()).hexdigest() == facts["sha256"], name


def test_decode_inverts_encode():
    for path in (SHARED_GOLDEN / "mtf").iterdir():
        text = read_music(path)
        assert M3Patchilizer(patch_size=1000).decode(M3Patchilizer(patch_size=1000).encode_array(text)) == text, (
            path.name
        )


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("m3", lambda: utils.M3Model(utils.encoder_config(), utils.decoder_config())),
        ("clamp2", lambda: utils.CLaMP2Model.from_configs(PUBLISHED_TEXT, utils.encoder_config())),
        ("m3_tiny", tiny_m3),
        ("clamp2_tiny", tiny_clamp2),
    ],
)
def test_state_dicts(name, model):
    golden = json.loads((SHARED_GOLDEN / f"{name}_state_dict.json").read_text())
    with torch.device("meta"):
        ours = model().state_dict()
    assert {entry: list(value.shape) for entry, value in ours.items()} == golden


def test_m3_features(m3, values):
    names = [name.removeprefix("m3/") for name in values if name.startswith("m3/")]
    assert len(names) == 8
    features = dict(embed(m3.encoder, ((name, array_of(name, None)) for name in names)))
    assert list(features) == names
    for name, feature in features.items():
        np.testing.assert_allclose(feature, values[f"m3/{name}"], atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize("kind", ["clamp2_temporal/", "clamp2_normalized/"])
def test_clamp2_features(clamp2, values, kind):
    tokenizer = AutoTokenizer.from_pretrained(SHARED_GOLDEN / "tiny-xlmr")
    names = [name.removeprefix(kind) for name in values if name.startswith(kind)]
    assert len(names) == 11
    items = ((name, array_of(name, tokenizer, True)) for name in names)
    features = dict(embed(clamp2, items, pooled=kind == "clamp2_normalized/"))
    assert list(features) == names
    for name, feature in features.items():
        np.testing.assert_allclose(feature, values[kind + name], atol=1e-4, rtol=0, err_msg=name)


def test_m3_loss(m3, values):
    names = ("input_patches", "input_masks", "selected_indices", "target_patches")
    with torch.no_grad():
        loss = m3(*(torch.from_numpy(values[f"m3_loss/{name}"]) for name in names)).loss
    assert abs(loss.item() - values["m3_loss/loss"]) < 1e-4


def test_contrastive_loss(values):
    text, music = (torch.from_numpy(values[f"clip_loss/{side}"]) for side in ("text", "music"))
    assert abs(utils.ClipLoss()(text, music, 1).item() - values["clip_loss/loss"]) < 1e-4
