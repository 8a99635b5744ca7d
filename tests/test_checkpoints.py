"""Checkpoints as people have them: of CLaMP 3, from wrapped models, as safetensors, without unused parts, or damaged."""

import json
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

import clamp2
import published
import utils
from checkpoints import load_checkpoint, load_weights
from files import InputError
from helpers import CODE, KIT, KIT_MODEL, SHARED_GOLDEN, m3_configs, run, run_script, write_config
from hub import serving
from test_training import clamp2_config
from utils import CLaMP2Model, M3Model

M3, CLAMP2 = (KIT / f"weights_{name}_kit.pth" for name in ("m3", "clamp2"))
VALUES = np.load(KIT / "values.npz")


def weights(path=CLAMP2):
    return torch.load(path, weights_only=True)["model"]


def as_clamp3(model):
    """The state dict of CLaMP 2 as CLaMP 3 has it."""
    renamed = {name.replace("music_", "symbolic_", 1): value for name, value in model.items()}
    return renamed | {"audio_model.embeddings.LayerNorm.weight": torch.ones(3), "audio_proj.weight": torch.ones(3, 3)}


WAYS = {
    "wrapped": lambda model: {f"module.{name}": value for name, value in model.items()},
    "compiled": lambda model: {f"_orig_mod.{name}": value for name, value in model.items()},
    "inside": lambda model: {k.replace("text_model.", "text_model._orig_mod."): v for k, v in model.items()},
    "both": lambda model: {f"module._orig_mod.{name}": value for name, value in model.items()},
    "position ids": lambda model: model | {"text_model.embeddings.position_ids": torch.arange(130)[None]},
    "no pooler": lambda model: {name: value for name, value in model.items() if "pooler" not in name},
    "clamp3": as_clamp3,
}


def extract(tmp_path, path, source=KIT / "mtf", out="out", **changes):
    config = write_config(tmp_path / "config.py", **(KIT_MODEL | {"CLAMP2_WEIGHTS_PATH": str(path)} | changes))
    return run_script(CODE / "extract_clamp2.py", source, tmp_path / out, "--normalize", config=config)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_features_from(tmp_path, way):
    (tmp_path / "in").mkdir()
    for name in ("mtf/plain.mtf", "texts/one_line.txt"):
        shutil.copy(KIT / name, tmp_path / "in")
    torch.save({"model": WAYS[way](weights())}, tmp_path / "w.pth")
    result = extract(tmp_path, tmp_path / "w.pth", tmp_path / "in")
    assert result.returncode == 0, result.stderr
    for name in ("plain.mtf", "one_line.txt"):
        feature = np.load(tmp_path / "out" / f"{name.split('.')[0]}.npy")[0]
        np.testing.assert_allclose(feature, VALUES[f"clamp2_normalized/{name}"], atol=1e-4, rtol=0)
    assert ("of CLaMP 3: its audio tower is left out" in result.stderr) == (way == "clamp3")


@pytest.mark.parametrize("name", ["x", "text_model.encoder.layer.2.output.dense.bias"])
def test_an_entry_too_many_is_named(tmp_path, name):
    torch.save({"model": weights() | {name: torch.ones(1)}}, tmp_path / "w.pth")
    result = extract(tmp_path, tmp_path / "w.pth", KIT / "texts")
    assert result.returncode == 2 and f"0 entries are missing, 1 are unknown (the first: {name})" in result.stderr


@pytest.mark.parametrize("name", ["audio_proj.weight", "audio_model.embeddings.LayerNorm.weight"])
def test_any_part_of_an_audio_tower_is_one(tmp_path, name):
    torch.save({"model": weights() | {name: torch.ones(3)}}, tmp_path / "w.pth")
    assert load_checkpoint(tmp_path / "w.pth")["has_audio"] and not load_checkpoint(CLAMP2)["has_audio"]


def test_weights_without_anything_around_them(tmp_path):
    torch.save(weights(), tmp_path / "w.pth")
    assert load_checkpoint(tmp_path / "w.pth")["model"].keys() == weights().keys()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (3, "its entry 'text_proj.bias' is not a tensor"),
        (torch.ones(48).to_sparse(), "its entry 'text_proj.bias' is not a tensor (or not a dense one)"),
        (torch.ones(48, dtype=torch.int32), "text_proj.bias is of torch.int32"),
        (torch.ones(48, dtype=torch.complex64), "text_proj.bias is of torch.complex64"),
        (torch.full((48,), 1e300, dtype=torch.float64), "text_proj.bias has a NaN or an infinity"),
    ],
)
def test_entries_that_are_no_weights(tmp_path, entry, problem):
    torch.save({"model": weights() | {"text_proj.bias": entry}}, tmp_path / "w.pth")
    result = extract(tmp_path, tmp_path / "w.pth", KIT / "texts")
    assert result.returncode == 2 and problem in result.stderr and "Traceback" not in result.stderr


def test_safetensors_in_place_of_a_pth(tmp_path):
    save_file(weights(), tmp_path / "w.safetensors")
    (tmp_path / "in").mkdir()
    shutil.copy(KIT / "mtf" / "plain.mtf", tmp_path / "in")
    assert extract(tmp_path, tmp_path / "w.safetensors", tmp_path / "in").returncode == 0
    feature = np.load(tmp_path / "out" / "plain.npy")[0]
    np.testing.assert_allclose(feature, VALUES["clamp2_normalized/plain.mtf"], atol=1e-4, rtol=0)
    (tmp_path / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(InputError, match=r"w\.safetensors: not a checkpoint that can be loaded safely"):
        load_checkpoint(tmp_path / "w.safetensors")


def test_an_entry_that_is_tied_to_another_one_may_be_missing(tmp_path):
    state = weights(M3)
    del state["decoder.base.lm_head.weight"]
    model = M3Model(*m3_configs())
    load_weights(model, state, tmp_path)
    assert torch.equal(model.decoder.base.lm_head.weight, state["decoder.base.transformer.wte.weight"])
    del state["decoder.base.transformer.wte.weight"]
    with pytest.raises(InputError, match="2 entries are missing"):
        load_weights(model, state, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_weights_that_are_not_finite_are_named(tmp_path, value, prefix):
    state = weights(M3)
    state["encoder.base.encoder.layer.1.output.dense.bias"][5] = value
    model = M3Model(*m3_configs())
    with pytest.raises(InputError, match=r"w\.pth: encoder\.base\.encoder\.layer\.1\.output\.dense\.bias has a NaN or"):
        load_weights(model.encoder if prefix else model, state, tmp_path / "w.pth", prefix)


def test_extraction_with_weights_that_are_not_finite(tmp_path):
    state = weights()
    state["text_proj.bias"][0] = float("nan")
    torch.save({"model": state}, tmp_path / "w.pth")
    result = extract(tmp_path, tmp_path / "w.pth", KIT / "texts")
    assert result.returncode == 2 and "w.pth: text_proj.bias has a NaN" in result.stderr
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_more_tokens_than_the_text_model_has_positions_for(tmp_path):
    settings = json.loads((KIT / "tiny-xlmr" / "config.json").read_text())
    positions = settings["max_position_embeddings"] - settings["pad_token_id"] - 1
    assert extract(tmp_path, CLAMP2, KIT / "texts", MAX_TEXT_LENGTH=positions).returncode == 0
    result = extract(tmp_path, CLAMP2, KIT / "texts", "more", MAX_TEXT_LENGTH=positions + 1)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    told = f"error: MAX_TEXT_LENGTH = {positions + 1}, but the text model has {positions} positions"
    assert result.stderr.startswith(told) and str(tmp_path / "config.py") in result.stderr


# --- without values first --------------------------------------------------------------------------------------------
def make(kind):
    if kind == "m3":
        return utils.M3Model(*m3_configs())
    return utils.CLaMP2Model.from_configs(AutoConfig.from_pretrained(KIT / "tiny-xlmr"), m3_configs()[0], 48)


@pytest.mark.parametrize("way", ["whole", "no pooler", "half", "bfloat16", "from before PyTorch 1.6"])
@pytest.mark.parametrize("kind", ["m3", "clamp2"])
def test_an_empty_model_is_filled(tmp_path, kind, way):
    """It is the plain model with these weights, and nothing was drawn for it."""
    path = tmp_path / "w.pth"
    state = weights({"m3": M3, "clamp2": CLAMP2}[kind])
    if way == "no pooler":
        state = {name: value for name, value in state.items() if "pooler" not in name}
    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(way, torch.float32)
    state = {name: value.to(dtype) for name, value in state.items()}
    torch.save({"model": state}, path, _use_new_zipfile_serialization=way != "from before PyTorch 1.6")
    plain = make(kind)
    load_weights(plain, load_checkpoint(path)["model"], path)
    before = torch.get_rng_state()
    model = utils.empty(make, kind)
    assert all(parameter.is_meta for parameter in model.parameters())
    state = load_checkpoint(path)["model"]
    load_weights(model, state, path)
    assert torch.equal(torch.get_rng_state(), before)
    if dtype == torch.float32:  # not a copy
        twins = ("lm_head.weight", "wte.weight")
        names = [name for name in state if not name.endswith(twins)]
        assert all(model.get_parameter(name).data_ptr() == state[name].data_ptr() for name in names)
    for filled, expected in zip(
        (model.named_parameters(), model.named_buffers()),
        (plain.named_parameters(), plain.named_buffers()),
        strict=True,
    ):
        filled, expected = dict(filled), dict(expected)
        assert filled.keys() == expected.keys()  # one name for GPT-2's embedding and its output layer
        for name, value in filled.items():
            assert value.dtype == expected[name].dtype and value.requires_grad == expected[name].requires_grad, name
            if "pooler" in name and way == "no pooler":
                assert not value.any()
            else:
                assert torch.equal(value, expected[name]), name
    assert len(dict(plain.named_buffers())) == {"m3": 2, "clamp2": 4}[kind]


def test_training_changes_the_model_and_not_the_file(tmp_path):
    """Nor is the model changed when the file is replaced and deleted."""
    path = tmp_path / "w.pth"
    content = M3.read_bytes()
    path.write_bytes(content)
    model = utils.empty(make, "m3")
    load_weights(model, load_checkpoint(path)["model"], path)
    untouched = deepcopy(model.state_dict())
    patches = torch.randint(4, 128, (2, 5, 64))
    everything = torch.ones(2, 5)
    model(patches, everything, everything, patches).loss.backward()
    twin = model.decoder.base.lm_head.weight
    assert twin is model.decoder.base.transformer.wte.weight and twin.grad is not None
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    assert path.read_bytes() == content
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    changed = [name for name, value in trained.items() if not torch.equal(value, untouched[name])]
    assert len(changed) == len(trained) - 3  # all but the pooler and the word embeddings, which are not trained
    torch.save({"model": {}}, tmp_path / "new.pth")
    (tmp_path / "new.pth").rename(path)
    path.unlink()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name])


def test_entries_that_are_one_tensor_are_parameters_of_their_own(tmp_path):
    state = weights(M3)
    names = [f"encoder.base.encoder.layer.{layer}.output.dense.bias" for layer in (0, 1)]
    state[names[1]] = state[names[0]]
    torch.save({"model": state}, tmp_path / "w.pth")
    model = utils.empty(make, "m3")
    load_weights(model, load_checkpoint(tmp_path / "w.pth")["model"], tmp_path)
    first, second = (model.get_parameter(name) for name in names)
    with torch.no_grad():
        first += 1
    assert torch.equal(second, state[names[0]]) and torch.equal(first, state[names[0]] + 1)


@pytest.mark.parametrize("tower", ["text_", "music_"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_only_the_tower_that_is_used_is_read(tmp_path, monkeypatch, tower, value):
    """Weights of no use in the other tower do not matter; in this one they are refused as often as they are used."""
    for name, setting in (KIT_MODEL | {"CLAMP2_WEIGHTS_PATH": str(tmp_path / "w.pth")}).items():
        monkeypatch.setattr(f"config.{name}", setting)
    clamp2._tokenizer.cache_clear()
    state = weights()
    state[f"{tower}proj.bias"][0] = value
    torch.save({"model": state}, tmp_path / "w.pth")
    model = clamp2.load_clamp2()
    calls = {
        "text_": lambda: clamp2.embed_texts(model, ["a slow waltz"]),
        "music_": lambda: clamp2.embed_music(model, [(KIT / "mtf" / "plain.mtf").read_text()]),
    }
    [other] = calls.keys() - {tower}
    assert np.isfinite(calls[other]()).all()
    for _ in range(2):
        with pytest.raises(InputError, match=rf"w\.pth: {tower}proj\.bias has a NaN or an infinity"):
            calls[tower]()
    clamp2._tokenizer.cache_clear()


# --- CLaMP 3 --------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not SHARED_GOLDEN.is_dir(), reason="the golden values of CLaMP 3 are not here")
@pytest.mark.parametrize("kind", ["temporal", "global"])
def test_golden_clamp3(tmp_path, kind):
    golden = np.load(SHARED_GOLDEN / "clamp3" / "values.npz")
    names = [name.removeprefix(f"{kind}/") for name in golden if name.startswith(f"{kind}/")]
    assert len(names) == 8
    (tmp_path / "in").mkdir()
    for name in names:
        [path] = [path for folder in ("interleaved", "mtf", "texts") for path in (KIT / folder).glob(name)]
        shutil.copy(path, tmp_path / "in")
    weights_path = str(SHARED_GOLDEN / "clamp3" / "weights_clamp3_tiny.pth")
    config = write_config(tmp_path / "kit.py", **(KIT_MODEL | {"CLAMP2_WEIGHTS_PATH": weights_path}))
    options = ["--normalize"] if kind == "global" else []
    result = run_script(CODE / "extract_clamp2.py", tmp_path / "in", tmp_path / "out", *options, config=config)
    assert result.returncode == 0, result.stderr
    for name in names:
        feature = np.load(tmp_path / "out" / f"{name.split('.')[0]}.npy")[0]
        np.testing.assert_allclose(feature, golden[f"{kind}/{name}"], atol=1e-4, rtol=0, err_msg=name)


@pytest.fixture
def clamp3(tmp_path):
    """A configuration with the kit's CLaMP 2 as a CLaMP 3."""
    torch.save({"model": as_clamp3(weights()), "epoch": 3}, tmp_path / "clamp3.pth")
    changes = {"CLAMP2_WEIGHTS_PATH": str(tmp_path / "clamp3.pth"), "FEATURE_CACHE": str(tmp_path / "cache")}
    return write_config(tmp_path / "clamp3.py", **(KIT_MODEL | changes))


@pytest.mark.parametrize("kept", [True, False])
def test_the_unit_length_line_is_read_where_the_weights_want_it(tmp_path, clamp3, kept):
    """CLaMP 2 as config.py says, CLaMP 3 never; both in extraction and in search."""
    plain = tmp_path / "plain"
    plain.mkdir()
    text = (KIT / "interleaved" / "duo.abc").read_text()
    assert text.count("L:1/8\n") == 1
    (plain / "duo.abc").write_text(text.replace("L:1/8\n", ""))
    kit = write_config(tmp_path / "kit.py", **KIT_MODEL, KEEP_UNIT_LENGTH=kept, FEATURE_CACHE=str(tmp_path / "cache"))
    clamp3.write_text(clamp3.read_text() + f"KEEP_UNIT_LENGTH = {kept}\n")
    found = {}
    for name, config in (("clamp2", kit), ("clamp3", clamp3)):
        for source in (KIT / "interleaved" / "duo.abc", plain / "duo.abc"):
            out = tmp_path / name / source.parent.name
            command = [CODE / "extract_clamp2.py", source, out, "--normalize"]
            assert run_script(*command, config=config).returncode == 0
            feature = np.load(out / "duo.npy")[0]
            search = tmp_path / "search.json"
            command = ["search", source, KIT / "interleaved", "--json", search]
            result = run_script(CODE / "semantic_search.py", *command, config=config)
            assert result.returncode == 0, result.stderr
            score = next(hit["score"] for hit in json.loads(search.read_text())["hits"] if "duo" in hit["name"])
            found[name, source.parent.name] = feature, score
    for name in ("clamp2", "clamp3"):
        same = np.abs(found[name, "interleaved"][0] - found[name, "plain"][0]).max() < 1e-5
        assert same == (name == "clamp3" or not kept)
        assert (found[name, "plain"][1] > 1 - 1e-5) == same and found[name, "interleaved"][1] > 1 - 1e-5
    golden = np.abs(found["clamp2", "interleaved"][0] - VALUES["clamp2_normalized/duo.abc"]).max() < 1e-4
    assert golden == kept


def test_clamp3_in_the_form_of_the_hub(tmp_path, clamp3):
    result = run_script(CODE / "convert_checkpoint.py", tmp_path / "clamp3.pth", tmp_path / "hub", config=clamp3)
    assert result.returncode == 0 and "its audio tower is left out" in result.stdout, result.stderr
    result = run_script(CODE / "convert_checkpoint.py", tmp_path / "hub", tmp_path / "back.pth", config=clamp3)
    assert result.returncode == 0, result.stderr
    back, original = weights(tmp_path / "back.pth"), weights()
    assert back.keys() == original.keys() and all(torch.equal(back[name], original[name]) for name in back)
    # it is still known that its music is read without the unit length
    assert (
        load_checkpoint(tmp_path / "back.pth")["is_clamp3"] and CLaMP2Model.from_pretrained(tmp_path / "hub").is_clamp3
    )
    assert not load_checkpoint(CLAMP2)["is_clamp3"]


def test_clamp3_is_not_overwritten_by_a_training(tmp_path, clamp3):
    before = (tmp_path / "clamp3.pth").read_bytes()
    config = clamp2_config(tmp_path, CLAMP2_WEIGHTS_PATH=str(tmp_path / "clamp3.pth"), CLAMP2_NUM_EPOCH=1)
    result = run_script(CODE / "train_clamp2.py", config=config)
    assert result.returncode == 2 and "clamp3.pth: weights of CLaMP 3, which a training would replace" in result.stderr
    assert (tmp_path / "clamp3.pth").read_bytes() == before and not (tmp_path / "latest_clamp3.pth").exists()


def test_a_training_writes_no_safetensors(tmp_path):
    config = clamp2_config(tmp_path, CLAMP2_WEIGHTS_PATH=str(tmp_path / "w.safetensors"))
    result = run_script(CODE / "train_clamp2.py", config=config)
    assert result.returncode == 2 and "w.safetensors: a training writes a .pth file" in result.stderr


@pytest.mark.parametrize("kind", ["M3Model", "CLaMP2Model"])
def test_the_first_form_of_the_hub_is_read(tmp_path, kind):
    """`config.json` held sizes in place of the configuration of the encoder."""
    sizes = {"patch_size": 64, "patch_length": 512, "patch_num_layers": 2}
    if kind == "M3Model":
        sizes |= {"hidden_size": 64, "token_num_layers": 1}
    else:
        text = AutoConfig.from_pretrained(KIT / "tiny-xlmr")
        sizes |= {
            "hidden_size": 48,
            "music_hidden_size": 64,
            "text_config": json.loads(text.to_json_string(use_diff=False)),
        }
    state = weights(M3 if kind == "M3Model" else CLAMP2)
    state.pop("decoder.base.lm_head.weight", None)  # tied
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"checkpoint": {"epoch": 1}}))
    model = getattr(utils, kind).from_pretrained(tmp_path)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    encoder = model.encoder if kind == "M3Model" else model.music_model
    assert (encoder.config.num_attention_heads, encoder.config.intermediate_size) == (1, 256)


def test_published_clamp3_is_downloaded(tmp_path, clamp3):
    assert published.CLAMP3_C2.replace("_c2_", "_saas_") == published.CLAMP3_SAAS in published.REPOSITORIES
    name = published.CLAMP3_C2
    content = (tmp_path / "clamp3.pth").read_bytes()
    config = write_config(tmp_path / "kit.py", **(KIT_MODEL | {"CLAMP2_WEIGHTS_PATH": str(tmp_path / "here" / name)}))
    command = [CODE / "extract_clamp2.py", KIT / "texts", tmp_path / "out", "--normalize"]
    result = run_script(*command, config=config)
    assert result.returncode == 2 and "downloads the published ones from sander-wood/clamp3" in result.stderr
    with serving({f"sander-wood/clamp3/{name}": content}) as hub:
        result = run(*command, "--download", config=config, **hub.environment(tmp_path / "home"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "here" / name).read_bytes() == content
    feature = np.load(tmp_path / "out" / "one_line.npy")[0]
    np.testing.assert_allclose(feature, VALUES["clamp2_normalized/one_line.txt"], atol=1e-4, rtol=0)
