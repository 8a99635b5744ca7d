"""The hub's form of the two models, and back."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import CODE, KIT, KIT_MODEL, run, run_script, write_config
from hub import serving

CONVERT = CODE / "convert_checkpoint.py"
WEIGHTS = {"m3": KIT / "weights_m3_kit.pth", "clamp2": KIT / "weights_clamp2_kit.pth"}
MODELS = {"m3": "M3Model", "clamp2": "CLaMP2Model"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "kit.py", **KIT_MODEL)


@pytest.fixture(scope="module")
def converted(config, tmp_path_factory):
    """The folders of both, written from a folder that is moved away, so that nothing can depend on it."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(KIT / "tiny-xlmr", folder / "text")
    away = write_config(folder / "away.py", **(KIT_MODEL | {"TEXT_MODEL_NAME": str(folder / "text")}))
    for kind, path in WEIGHTS.items():
        result = run_script(CONVERT, path, folder / kind, config=away)
        assert result.returncode == 0, result.stderr
    shutil.rmtree(folder / "text")
    return folder


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name


@pytest.mark.parametrize("kind", WEIGHTS)
def test_round_trip_is_exact(converted, config, tmp_path, kind):
    published = torch.load(WEIGHTS[kind], weights_only=True)
    held = load_file(converted / kind / "model.safetensors")
    assert_equal(held, {name: published["model"][name] for name in held})
    twins = published["model"].keys() - held.keys()  # GPT-2's output layer is its embedding
    assert len(twins) == (kind == "m3")
    result = run_script(CONVERT, converted / kind, tmp_path / "back.pth", config=config)
    assert result.returncode == 0, result.stderr
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_equal(back["model"], published["model"])
    for fact in ("epoch", "best_epoch", "min_eval_loss"):
        assert back[fact] == published[fact]


def test_from_pretrained_with_the_golden_features_and_no_config(converted, tmp_path):
    """In a process that has other sizes in its config, and no network."""
    script = f"""
import sys
sys.path.insert(0, "{CODE}")
import numpy as np, torch
from transformers import AutoTokenizer
from embedding import embed
from extraction import read_patches
from pathlib import Path
from utils import CLaMP2Model, M3Model
m3 = M3Model.from_pretrained("{converted}/m3")
clamp2 = CLaMP2Model.from_pretrained("{converted}/clamp2")
assert not m3.training and not clamp2.training
m3_patches, patches = (read_patches(keep, Path("{KIT}/interleaved/duo.abc")) for keep in (False, True))
[(_, m3_feature)], [(_, feature)] = embed(m3.encoder, [("", m3_patches)]), embed(clamp2, [("", patches)], True)
np.savez("{tmp_path}/out.npz", m3=m3_feature, music=feature)
tokenizer = AutoTokenizer.from_pretrained("{converted}/clamp2")
print(tokenizer("a jig")["input_ids"])
"""
    (tmp_path / "from_the_hub.py").write_text(script)
    result = run_script(tmp_path / "from_the_hub.py")
    assert result.returncode == 0, result.stderr
    made, golden = np.load(tmp_path / "out.npz"), np.load(KIT / "values.npz")
    np.testing.assert_allclose(made["m3"], golden["m3/duo.abc"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(made["music"], golden["clamp2_normalized/duo.abc"].reshape(-1), atol=1e-4, rtol=0)
    from transformers import AutoTokenizer

    assert result.stdout.splitlines()[-1] == str(AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")("a jig")["input_ids"])


def test_what_is_in_the_folders(converted):
    assert sorted(p.name for p in (converted / "m3").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        p.name for p in (converted / "clamp2").iterdir()
    }
    reference = converted / "away.py"  # written in the plain way
    assert {path.stat().st_mode for path in (converted / "m3").iterdir()} == {reference.stat().st_mode}
    checkpoint = torch.load(WEIGHTS["clamp2"], weights_only=True)
    settings = json.loads((converted / "clamp2" / "config.json").read_text())
    music = settings["music_config"]
    assert (music["hidden_size"], settings["hidden_size"], music["num_hidden_layers"]) == (64, 48, 2)
    assert settings["text_config"]["model_type"] == "xlm-roberta" and str(converted) not in json.dumps(settings)
    card = (converted / "clamp2" / "README.md").read_text()
    count = sum(value.numel() for value in checkpoint["model"].values())
    for row in (
        f"| parameters | {count} |",
        "| music config | bert, 2 layers of width 64 |",
        "| made from | weights_clamp2_kit.pth |",
        f"| epoch | {checkpoint['epoch']} |",
    ):
        assert row in card
    assert card.startswith("---\nlibrary_name: clamp2\n") and "CLaMP2Model.from_pretrained(" in card


def test_pushed_to_a_hub_and_loaded_from_it(converted, tmp_path):
    script = """
import sys
from huggingface_hub import HfApi
from utils import CLaMP2Model, M3Model
m3, clamp2 = (model.from_pretrained(folder) for model, folder in zip((M3Model, CLaMP2Model), sys.argv[1:]))
m3.push_to_hub("me/m3")
HfApi().create_repo("me/clamp2")
HfApi().upload_folder(repo_id="me/clamp2", folder_path=sys.argv[2])  # as `hf upload` does
for model, name in ((m3, "me/m3"), (clamp2, "me/clamp2")):
    again = type(model).from_pretrained(name).state_dict()
    assert all(value.equal(again[entry]) for entry, value in model.state_dict().items()), name
print("the same")
"""
    with serving() as hub:
        folders = (converted / "m3", converted / "clamp2")
        result = run("-c", script, *folders, cwd=CODE, **hub.environment(tmp_path))
        assert result.returncode == 0 and "the same" in result.stdout, result.stderr
        for path in folders[1].iterdir():
            assert hub.files[f"me/clamp2/{path.name}"] == path.read_bytes()
        assert hub.files["me/m3/model.safetensors"] == (folders[0] / "model.safetensors").read_bytes()
        assert b"M3Model.from_pretrained(" in hub.files["me/m3/README.md"]


def test_what_would_not_come_back_is_refused(config, tmp_path):
    checkpoint = torch.load(WEIGHTS["m3"], weights_only=True)
    half = {name: value.half() for name, value in checkpoint["model"].items()}
    torch.save({"model": half}, tmp_path / "half.pth")
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    checkpoint["model"]["decoder.base.lm_head.weight"] = checkpoint["model"]["decoder.base.lm_head.weight"] + 1
    torch.save(checkpoint, tmp_path / "untied.pth")
    (tmp_path / "empty").mkdir()
    for source, target, problem in (
        ("half.pth", "out", "is not kept exactly"),
        ("untied.pth", "out", "is not kept exactly"),
        ("other.pth", "out", "these weights are of another model"),
        ("half.pth", "empty", "is there already"),
        ("empty", "new.pth", "not a folder that this script has made"),
        ("none.pth", "out", "there are no such weights"),
    ):
        result = run_script(CONVERT, tmp_path / source, tmp_path / target, config=config)
        assert result.returncode == 2 and problem in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "half.pth", "other.pth", "untied.pth"]


def test_weights_that_do_not_fit_are_an_error(converted, config, tmp_path):
    shutil.copytree(converted / "m3", tmp_path / "m3")
    shutil.copy(converted / "clamp2" / "model.safetensors", tmp_path / "m3")
    result = run_script(CONVERT, tmp_path / "m3", tmp_path / "out.pth", config=config)
    assert result.returncode == 2 and "damaged, or of another model" in result.stderr
    assert not (tmp_path / "out.pth").exists()


def test_a_loss_that_was_never_measured(config, tmp_path):
    checkpoint = torch.load(WEIGHTS["m3"], weights_only=True) | {"min_eval_loss": float("inf")}
    torch.save(checkpoint, tmp_path / "w.pth")
    assert run_script(CONVERT, tmp_path / "w.pth", tmp_path / "hub", config=config).returncode == 0
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["checkpoint"]["min_eval_loss"] is None
    assert run_script(CONVERT, tmp_path / "hub", tmp_path / "back.pth", config=config).returncode == 0
    assert torch.load(tmp_path / "back.pth", weights_only=True)["min_eval_loss"] == float("inf")


def test_numbers_that_are_zero_come_back(config, tmp_path):
    facts = {"epoch": 0, "best_epoch": 0, "min_eval_loss": 0.0}
    torch.save(torch.load(WEIGHTS["m3"], weights_only=True) | facts, tmp_path / "w.pth")
    assert run_script(CONVERT, tmp_path / "w.pth", tmp_path / "hub", config=config).returncode == 0
    assert run_script(CONVERT, tmp_path / "hub", tmp_path / "back.pth", config=config).returncode == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert {name: back.get(name) for name in facts} == facts and "is_clamp3" not in back


def test_music_as_text_is_the_music_of_its_file(config, tmp_path):
    names = [("abc", "duo.abc"), ("interleaved", "octet.abc"), ("mtf", "plain.mtf")]
    paths = [KIT / kind / name for kind, name in names]
    code = f"""
import sys; sys.path.insert(0, {str(CODE)!r})
import numpy as np
from pathlib import Path
from files import InputError
from clamp2 import embed_music, embed_texts, load_clamp2
paths = {[str(path) for path in paths]!r}
texts = [Path(path).read_text() for path in paths]
model = load_clamp2()
from_files, from_texts = embed_music(model, paths), embed_music(model, [texts[0], paths[1], texts[2]])
assert np.allclose(from_files, from_texts, atol=1e-6) and from_files.shape == (3, 48)
for bad in (texts[0] + "\\n" + texts[0], "Dear all,\\nno music\\n"):
    try:
        embed_music(model, [paths[0], bad])
    except InputError as error:
        print(error)
"""
    (tmp_path / "notebook.py").write_text(code)
    result = run_script(tmp_path / "notebook.py", config=config)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == "music text 2: holds 2 tunes; pass them one by one" and second.startswith("music text 2: ")
