"""A training of CLaMP 2 with a frozen tower (CLAMP2_FREEZE)."""

import shutil
from pathlib import Path

import pytest
import torch

import config
import train_clamp2
import training
from checkpoints import load_checkpoint
from helpers import CODE, KIT, KIT_MODEL, KIT_SIZES, run_ranks
from processes import Processes
from small_runs import a_run, tiny_model
from test_training import clamp2_config
from test_waits import batch_of

TOWERS = ["text", "music"]


@pytest.fixture(autouse=True)
def no_warmup(monkeypatch):
    monkeypatch.setattr(config, "WARMUP_STEPS", 0)


def a_training(folder, monkeypatch, freeze, micro_batch=0, **changes):
    monkeypatch.setattr(config, "CLAMP2_FREEZE", freeze)
    monkeypatch.setattr(config, "CLAMP2_MICRO_BATCH", micro_batch)
    return a_run(folder, tiny_model("clamp2"), wrap=train_clamp2.PairFeatures, **changes)


def tower(name):
    """Of a parameter: `text_proj.weight` is of the text tower."""
    return name.partition("_")[0]


@pytest.mark.parametrize("frozen", TOWERS)
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_other_tower_is_trained_as_ever(tmp_path, monkeypatch, frozen, micro_batch):
    """Its gradients are those of a step without a frozen tower; the frozen one has none, and no moments."""
    gradients = {}
    for freeze in ("", frozen):
        run = a_training(tmp_path, monkeypatch, freeze, micro_batch)
        run.parallel.eval()  # no dropout
        step = train_clamp2.step(run, batch_of("clamp2"))
        gradients[freeze] = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
        run._update(step)
    own = {name: gradient for name, gradient in gradients[""].items() if tower(name) != frozen}
    assert 0 < len(own) < len(gradients[""]) and gradients[frozen].keys() == own.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradients[frozen][name], gradient, rtol=1e-5, atol=1e-8)
    names = [name for name, _ in run.model.named_parameters()]
    held = {tower(names[i]) for i in run.optimizer.state_dict()["state"]}
    assert held == set(TOWERS) - {frozen}


@pytest.mark.parametrize("frozen", TOWERS)
def test_the_frozen_tower_has_no_dropout_and_keeps_nothing(tmp_path, monkeypatch, frozen):
    """In every epoch, also after an evaluation; no activation of it waits for a backward pass."""
    run = a_training(tmp_path, monkeypatch, frozen)
    pairs = batch_of("clamp2").parts[0]
    for _ in range(2):
        run.model.eval()
        run.parallel.train()
        draws = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            draws.append(dict(zip(TOWERS, run.module(pairs), strict=True)))
        assert {name for name in TOWERS if torch.equal(draws[0][name], draws[1][name])} == {frozen}
    kept = dict.fromkeys(TOWERS, 0)
    for name in TOWERS:
        hooks = (lambda tensor, name=name: kept.update({name: kept[name] + 1}) or tensor), lambda tensor: tensor
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            run.model.features(getattr(pairs, name), pooled=True)
    assert kept.pop(frozen) == 0 and min(kept.values()) > 20


def test_a_run_that_continues_with_a_frozen_tower(tmp_path, monkeypatch):
    """It drops the moments of that tower, and keeps the other's; without one again, it begins that tower's anew."""
    run = a_training(tmp_path, monkeypatch, "")
    run._update(train_clamp2.step(run, batch_of("clamp2")))
    run.order = run.evaluation = {}
    run.save_latest()
    names = [name for name, _ in run.model.named_parameters()]
    before = {names[i]: moments["exp_avg"] for i, moments in run.optimizer.state_dict()["state"].items()}
    run = a_training(tmp_path, monkeypatch, "text")
    state = run.optimizer.state_dict()["state"]
    assert {names[i] for i in state} == {name for name in before if tower(name) == "music"}
    assert all(torch.equal(moments["exp_avg"], before[names[i]]) for i, moments in state.items())
    run.save_latest()
    run = a_training(tmp_path, monkeypatch, "")
    run._update(train_clamp2.step(run, batch_of("clamp2")))
    steps = {tower(names[i]): float(moments["step"]) for i, moments in run.optimizer.state_dict()["state"].items()}
    assert steps == {"text": 1, "music": 2}


def test_two_processes(tmp_path):
    """Each in parts: a whole epoch, after which the frozen tower is that of the weights it started from."""
    path = tmp_path / "weights_clamp2.pth"
    shutil.copy(KIT_MODEL["CLAMP2_WEIGHTS_PATH"], path)
    settings = {"CLAMP2_FREEZE": "text", "CLAMP2_MICRO_BATCH": 1, "CLAMP2_BATCH_SIZE": 2, "CLAMP2_NUM_EPOCH": 1}
    for done in run_ranks(2, CODE / "train_clamp2.py", config=clamp2_config(tmp_path, NUM_WORKERS=0, **settings)):
        assert done.returncode == 0, done.stderr
    start = load_checkpoint(Path(KIT_MODEL["CLAMP2_WEIGHTS_PATH"]))["model"]
    end = load_checkpoint(tmp_path / "latest_weights_clamp2.pth")["model"]
    changed = {tower(name) for name, value in end.items() if not torch.equal(value, start[name])}
    assert changed == {"music"}


def test_a_projection_that_stays_random_is_warned_of(tmp_path, monkeypatch, capsys):
    """Where no weights of CLaMP 2 are there to start from, whatever M3's are."""
    settings = {"TRAIN_JSONL": str(KIT / "pieces.jsonl"), "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr"), "EVAL_SPLIT": 0.2}
    for name, value in (KIT_SIZES | settings | {"CLAMP2_BATCH_SIZE": 4}).items():
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(training.Training, "run", lambda *loaders: 0)
    empty, kit = str(tmp_path / "weights.pth"), KIT_MODEL["CLAMP2_WEIGHTS_PATH"]
    for start, frozen, is_warned_of in ((empty, "music", True), (empty, "", False), (kit, "text", False)):
        monkeypatch.setattr(config, "CLAMP2_WEIGHTS_PATH", start)
        monkeypatch.setattr(config, "CLAMP2_FREEZE", frozen)
        assert train_clamp2.main(Processes(0, 0, 1)) == 0
        warning = "warning: CLAMP2_FREEZE = 'music' without weights of CLaMP 2 "
        assert (warning in capsys.readouterr().out) == is_warned_of
