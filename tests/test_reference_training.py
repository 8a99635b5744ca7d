"""The two trainers equal a plain loop, step by step: losses, gradients, rates, order of pieces and checkpoints."""

import json
import re
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer

import reference_training as reference
from helpers import KIT, KIT_SIZES, ROOT, run_script, write_config

BATCH, RATE, EPOCHS, WARMUP, LENGTH = 4, 4e-3, 4, 3, 32
NOISE = 1e-9  # of a gradient that is mathematically zero: that of the bias of an attention's keys
ENCODERS = {"m3": "encoder", "clamp2": "music_model"}
FILES = [path for kind in ("interleaved", "mtf") for path in sorted((KIT / kind).iterdir())]  # 14


def records():
    """Of each form that a record of the training data can have."""
    for number, path in enumerate(FILES):
        other = FILES[(number + 3) % len(FILES)]
        record = {
            "title": path.stem,
            "composer": None,
            "genres": ["Folk", "Dance", path.stem],
            "description": f"A piece named {path.stem}.\n\n  It is short.",
            "summary_en": [f"The piece {path.stem} as {path.suffix}.", "A tune.", f"{number} of many."],
            "summary_nen": [{"summary": f"La pièce {path.stem}."}, {"summary": "Ein Stück."}],
            "filepaths": [f"{p.parent.name}/{p.name}" for p in ((other, path) if number % 3 else (path,))],
        }
        for without in (("summary_nen",), ("summary_en",), ("title", "genres", "description"), (), ())[number % 5]:
            record[without] = None
        if number == 9:
            record |= {"summary_en": None, "summary_nen": []}
        if number == 8:
            record |= {"summary_en": "One summary.", "summary_nen": {"summary": "Un seul résumé."}}
        yield record


def run(kind, folder, **constants):
    """Runs the trainer. Returns its records, and the lines of its log."""
    shared = {
        **KIT_SIZES,
        "PATCH_LENGTH": LENGTH,
        "WARMUP_STEPS": WARMUP,
        "EVAL_SPLIT": 0.36,
        "PRECISION": "float32",
        "LOGGER": "wandb",
        "NUM_WORKERS": 0,
    }
    name = kind.upper()
    shared |= {f"{name}_BATCH_SIZE": BATCH, f"{name}_LEARNING_RATE": RATE, f"{name}_NUM_EPOCH": EPOCHS}
    shared |= {"M3_WEIGHTS_PATH": str(folder / "weights_m3.pth"), "TEXT_MODEL_NAME": str(KIT / "tiny-xlmr")}
    shared |= {"CLAMP2_WEIGHTS_PATH": str(folder / "weights_clamp2.pth")}
    shared |= {"TRAIN_FOLDERS": [str(KIT / "interleaved"), str(KIT / "mtf")], "TRAIN_JSONL": str(folder / "p.jsonl")}
    (folder / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    for part in ("interleaved", "mtf"):
        (folder / part).symlink_to(KIT / part)
    config = write_config(folder / "config.py", **(shared | constants))
    result = run_script(ROOT / "tests" / "record_training.py", kind, folder / "out", config=config)
    assert result.returncode == 0, result.stderr
    return torch.load(folder / "out", weights_only=True), (folder / f"logs_{kind}.txt").read_text().splitlines()


def plain_run(kind, folder, start, **settings):
    if kind == "m3":
        model, pieces, make = reference.M3(LENGTH), FILES, partial(reference.m3_piece, length=LENGTH)
    else:
        model, pieces = reference.CLaMP2(LENGTH), list(records())
        tokenizer = AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")
        make = partial(reference.clamp2_piece, folder=folder, length=LENGTH, tokenizer=tokenizer)
    model.load_state_dict(start)
    data = reference.split(pieces, 0.36)  # 9 and 5
    return reference.train(model, *data, make, batch_size=BATCH, rate=RATE, epochs=EPOCHS, warmup=WARMUP, **settings)


CASES = {
    "m3": {},
    "clamp2": {"CLAMP2_LOAD_M3": False},
    "m3 from weights": {"M3_DETERMINISTIC": False, "MAX_GRAD_NORM": 0.25, "NUM_WORKERS": 2},
    "clamp2 from weights": {"CLAMP2_DETERMINISTIC": False, "MAX_GRAD_NORM": 0.05, "CLAMP2_MICRO_BATCH": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_a_trainer_is_the_plain_loop(case, tmp_path):
    kind, from_weights, max_norm = case.split()[0], " " in case, CASES[case].get("MAX_GRAD_NORM", 0.0)
    if from_weights:
        published = torch.load(KIT / f"weights_{kind}_kit.pth", weights_only=True)
        positions = f"{ENCODERS[kind]}.base.embeddings.position_embeddings.weight"
        published["model"][positions] = published["model"][positions][:LENGTH].clone()
        torch.save(published, tmp_path / f"weights_{kind}.pth")
    recorded, log = run(kind, tmp_path, **CASES[case])
    seed = int(next(line.split()[1] for line in log if re.match(r"  seed +\d+$", line)))
    assert (seed == 0) != from_weights
    if from_weights:
        assert_close(recorded["start"], published["model"], 0)
    steps, epochs, best, last = plain_run(
        kind, tmp_path, recorded["start"], seed=seed, max_norm=max_norm, evaluate_first=from_weights
    )
    assert recorded["names"] == [[piece["name"] for piece in step["pieces"]] for step in steps]
    curves = [values for values in recorded["curves"] if "loss" in values]
    assert [values["step"] for values in curves] == list(range(1, 2 * EPOCHS + 1))
    for plain, values in zip(steps, curves, strict=True):
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert values[name] == pytest.approx(plain[name], rel=1e-4), (name, values["step"])
    lines = [json.loads(line) for line in log if line.startswith("{")]
    for plain, line in zip(epochs, lines, strict=True):
        assert {name: line[name] for name in plain} == pytest.approx(plain, rel=1e-4), line["epoch"]
    saved = torch.load(tmp_path / f"weights_{kind}.pth", weights_only=True)
    if best:
        assert_same_checkpoint(saved, best)
    else:  # no epoch was better than the weights that were there
        assert from_weights and saved["epoch"] == published["epoch"]
        assert_close(saved["model"], published["model"], 0)
    latest = torch.load(tmp_path / f"latest_weights_{kind}.pth", weights_only=True)
    assert_same_checkpoint(latest, last | {"epoch": EPOCHS + 1})
    # whether all of it was met
    assert not max_norm or min(step["gradient_norm"] for step in steps) > 2 * max_norm
    if case == "m3":
        assert {piece["kind"] for step in steps for piece in step["pieces"]} == {"masked", "shuffled", "kept"}
    if case == "clamp2":
        assert best["epoch"] < EPOCHS
    modes = [("train", {True}), ("train", {True}), ("evaluate", {False})] * EPOCHS
    assert recorded["modes"] == [("evaluate", {False})] * from_weights + modes


def assert_same_checkpoint(checkpoint, plain):
    assert_close(checkpoint["model"], plain["model"], RATE / 40)
    moments = checkpoint["optimizer"]["state"]
    assert moments.keys() == plain["moments"].keys()
    for index, (first, second) in plain["moments"].items():
        assert int(moments[index]["step"]) == plain["steps"]
        for name, theirs, noise in (("exp_avg", first, NOISE), ("exp_avg_sq", second, NOISE**2)):
            difference = float((moments[index][name] - theirs).abs().max())
            assert difference <= 1e-3 * float(theirs.abs().max()) + noise, (index, name)
    (group,) = checkpoint["optimizer"]["param_groups"]
    schedule = checkpoint["lr_sched"]
    assert schedule["last_epoch"] == plain["steps"]
    assert group["lr"] == schedule["_last_lr"][0] == pytest.approx(plain["rate"])
    assert (checkpoint["epoch"], checkpoint["best_epoch"]) == (plain["epoch"], plain["best_epoch"])
    assert checkpoint["min_eval_loss"] == pytest.approx(plain["min_eval_loss"], rel=1e-4)


def assert_close(weights, plain, tolerance):
    assert weights.keys() == plain.keys()
    for name, value in plain.items():
        assert float((weights[name] - value).abs().max()) <= tolerance, name
