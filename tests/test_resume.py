"""What a training that continues restores, field by field, against a state that is put together by hand."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

import config
import files
import run_state
import small_runs
import training
from files import InputError
from loading import Batches
from processes import Processes
from small_runs import AdamW, OneOfTwo, finish, given, latest, linear, records

RATE, WARMUP = 0.1, 16
WEIGHTS, MEANS, SQUARES, STEPS = [0.5, -2.0], [0.03, -0.2], [0.004, 0.09], 7  # the rate is 7/16 of RATE then
GRADIENTS = [3.0, 4.0], [-0.6, 0.8]  # of the two steps that are left, of norm 5 and 1
SCALER = {
    "scale": 1024.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 5,
}


ORDER = {"seed": 12345, "batch size": 2, "processes": 1, "pieces": "6 pieces", "steps": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    monkeypatch.setattr(config, "WARMUP_STEPS", WARMUP)


def a_run(folder, model=None, job=None, **changes):
    """A training that keeps the seed of the state it continues."""
    return small_runs.a_run(folder, model, job, **({"deterministic": False} | changes))


def save_by_hand(folder, **changes):
    """The state of a run in its third epoch of three steps each, after the first of them."""
    model = linear(WEIGHTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, step / WARMUP))
    optimizer_state, schedule_state = optimizer.state_dict(), schedule.state_dict()
    moments = {"step": torch.tensor(float(STEPS)), "exp_avg": torch.tensor([MEANS]), "exp_avg_sq": torch.tensor([SQUARES])}  # fmt: skip
    optimizer_state["state"] = {0: moments}
    optimizer_state["param_groups"][0]["lr"] = RATE * STEPS / WARMUP
    schedule_state |= {"last_epoch": STEPS, "_step_count": STEPS + 1, "_last_lr": [RATE * STEPS / WARMUP]}
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer_state,
        "lr_sched": schedule_state,
        "scaler": {},
        "epoch": 3,
        "step": 1,
        "seed": 12345,
        "best_epoch": 2,
        "min_eval_loss": 0.5,
        "total": 10.0,
        "weight": 4.0,
        "bad_pieces": ["piece 0 is bad"],
        "order": ORDER,
        "evaluation": {"pieces": "3 pieces"},
    }
    torch.save(state | changes, folder / "latest_weights.pth")


def by_hand(*gradients, first=STEPS):
    """The optimizer after these gradients, from the saved state on, at the rates of the warm-up from step `first` on."""
    optimizer = AdamW(WEIGHTS, MEANS, SQUARES, STEPS)
    for number, gradient in enumerate(gradients, first):
        optimizer.step(gradient, RATE * number / WARMUP)
    return optimizer


def assert_optimizer(state, expected):
    """The weights, moments and number of steps in a saved state."""
    moments = state["optimizer"]["state"][0]
    assert state["model"]["weight"][0].tolist() == pytest.approx(expected.weights, rel=1e-5)
    assert moments["exp_avg"][0].tolist() == pytest.approx(expected.means, rel=1e-5)
    assert moments["exp_avg_sq"][0].tolist() == pytest.approx(expected.squares, rel=1e-5)
    assert float(moments["step"]) == expected.steps


@pytest.fixture
def continued(tmp_path, monkeypatch):
    """A run that went on from the saved state to the end of epoch 3, with what it read. Its evaluation loss is worse
    than the best."""
    save_by_hand(tmp_path)
    torch.save({"model": "the best weights"}, tmp_path / "weights.pth")
    run = a_run(tmp_path, num_epoch=3, learning_rate=RATE, deterministic=False)
    run.read = []  # names of pieces, and the seed of dropout

    def watch(run, batch):
        run.read.append((names_of(batch), torch.initial_seed()))

    step = given((GRADIENTS[0], 6.0, 2.0), (GRADIENTS[1], 1.0, 5.0), watch=watch)
    assert finish(run, step, [0.7], bad=(0, 1)) == 0
    return run


def names_of(batch):
    return [str(row) for row in batch.rows.tolist()]


def order_of(seed, epoch):
    """The names of the pieces in each batch of an epoch."""
    batches = Batches(6, 2, Processes(0, 0, 1), seed, True)
    batches.epoch = epoch
    return [[str(index) for _, index in batch] for batch in batches]


def test_model_and_optimizer(continued, tmp_path):
    assert_optimizer(latest(tmp_path), by_hand(*GRADIENTS))


def test_schedule(continued, tmp_path):
    (record,) = records(tmp_path / "logs.txt")
    assert record["learning_rate"] == pytest.approx(RATE * 9 / WARMUP)
    state = latest(tmp_path)["lr_sched"]
    assert state["last_epoch"] == 9 and state["_last_lr"] == pytest.approx([RATE * 9 / WARMUP])


def test_epoch_step_and_seed(continued, tmp_path):
    """Epoch 3 goes on with its second batch, in the order that its seed gives."""
    order = order_of(12345, 3)
    assert [names for names, _ in continued.read] == order[1:] and len(order) == 3
    assert order not in (order_of(0, 3), order_of(12345, 4))
    assert [record["epoch"] for record in records(tmp_path / "logs.txt")] == [3]
    assert "latest_weights.pth, epoch 3, step 1\n" in (tmp_path / "logs.txt").read_text()
    state = latest(tmp_path)
    assert (state["epoch"], state["step"], state["seed"], state["order"]) == (4, 0, 12345, ORDER)


def test_dropout_of_the_steps_that_are_left(continued, tmp_path):
    """The generator is seeded as in a run that was never interrupted."""
    fresh = a_run(tmp_path, load_ckpt=False, num_epoch=3)
    fresh.progress.seed, seeds = 12345, []
    step = given(*[([0.0, 0.0], 1.0, 1.0)] * 9, watch=lambda run, batch: seeds.append(torch.initial_seed()))
    finish(fresh, step, [1.0] * 3)
    assert [seed for _, seed in continued.read] == seeds[7:] and len(set(seeds)) == 9


def test_loss_of_the_epoch_in_progress(continued, tmp_path):
    (record,) = records(tmp_path / "logs.txt")
    assert record["train_loss"] == pytest.approx((10 + 6 + 1) / (4 + 2 + 5))
    state = latest(tmp_path)
    assert (state["total"], state["weight"]) == (0.0, 0.0)


def test_a_worse_epoch_does_not_replace_the_best_weights(capsys, continued, tmp_path):
    assert "nothing is left" not in capsys.readouterr().out
    assert torch.load(tmp_path / "weights.pth", weights_only=True) == {"model": "the best weights"}
    assert (tmp_path / "logs.txt").read_text().endswith("Best Eval Epoch : 2\nMin Eval Loss : 0.5\n")
    state = latest(tmp_path)
    assert (state["best_epoch"], state["min_eval_loss"]) == (2, 0.5)


def test_a_better_epoch_replaces_them(tmp_path):
    save_by_hand(tmp_path)
    run = a_run(tmp_path, num_epoch=3, learning_rate=RATE)
    assert finish(run, given(([3.0, 4.0], 6.0, 2.0), ([-0.6, 0.8], 1.0, 5.0)), [0.4]) == 0
    best = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert (best["epoch"], best["best_epoch"], best["min_eval_loss"]) == (3, 3, 0.4)
    assert_optimizer(best, by_hand(*GRADIENTS))


def test_bad_pieces_that_were_named_are_not_named_again(continued, tmp_path, capsys):
    assert (tmp_path / "logs.txt").read_text().count("piece 1 is bad") == 1
    assert "piece 0 is bad" not in (tmp_path / "logs.txt").read_text()
    (record,) = records(tmp_path / "logs.txt")
    assert record["bad_pieces"] == 2
    assert latest(tmp_path)["bad_pieces"] == ["piece 0 is bad", "piece 1 is bad"]


def test_every_field_of_a_saved_state(tmp_path):
    """A state that is restored and saved at once is the same, and holds nothing else."""
    save_by_hand(tmp_path, total=1 / 3, weight=0.1)
    before = latest(tmp_path)
    a_run(tmp_path, num_epoch=3, learning_rate=RATE).save_latest()
    after = latest(tmp_path)
    assert after.keys() == before.keys()
    for name in before.keys() - {"model", "optimizer", "lr_sched"}:
        assert after[name] == before[name], name
    assert after["model"]["weight"].tolist() == before["model"]["weight"].tolist()
    assert_optimizer(after, by_hand())
    assert after["optimizer"]["param_groups"][0]["lr"] == pytest.approx(RATE * STEPS / WARMUP, rel=1e-15)
    assert after["lr_sched"]["last_epoch"] == STEPS and after["lr_sched"]["base_lrs"] == [RATE]


def test_what_is_saved_in_each_step(tmp_path, monkeypatch):
    """The loss so far, the next step and the optimizer, after each step of an epoch and at its end."""
    monkeypatch.setattr(config, "SAVE_EVERY_STEPS", 1)
    saved = []
    monkeypatch.setattr(training, "save_checkpoint", lambda path, state: saved.append((path.name, state)))
    monkeypatch.setattr(
        training.Training, "published_state", lambda run, epoch: {"epoch": epoch, "model": run.model.weight.tolist()}
    )
    run = a_run(tmp_path, linear([1.0, 1.0]), num_epoch=1, learning_rate=RATE)
    finish(run, given(([3.0, 4.0], 6.0, 2.0), ([-0.6, 0.8], 1.0, 5.0), ([1.0, 1.0], 4.0, 0.5)), [0.7])
    fields = [
        (name, state["epoch"], state.get("step"), state.get("total"), state.get("weight")) for name, state in saved
    ]
    assert fields == [
        ("latest_weights.pth", 1, 1, 6.0, 2.0),
        ("latest_weights.pth", 1, 2, 7.0, 7.0),
        ("latest_weights.pth", 1, 3, 11.0, 7.5),  # before the evaluation
        ("weights.pth", 1, None, None, None),
        ("latest_weights.pth", 2, 0, 0.0, 0.0),
    ]
    optimizer, weights = AdamW([1.0, 1.0]), []
    for number, gradient in enumerate(([3.0, 4.0], [-0.6, 0.8], [1.0, 1.0])):
        optimizer.step(gradient, RATE * number / WARMUP)
        weights.append(optimizer.weights)
    for (_, state), expected in zip(saved, [*weights, weights[-1], weights[-1]], strict=True):
        assert state["model"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["m3", "clamp2"])
@pytest.mark.parametrize("has_weights", [True, False])
def test_a_run_that_is_done_has_nothing_left_to_do(tmp_path, capsys, kind, has_weights):
    """And that is reported, with what to change; so is it if the best weights are gone."""
    save_by_hand(tmp_path, epoch=4, step=0)
    if has_weights:
        torch.save({"model": "the best weights"}, tmp_path / "weights.pth")
    before = (tmp_path / "latest_weights.pth").read_bytes()
    assert finish(a_run(tmp_path, num_epoch=3, name=kind), given(), []) == 0
    assert (tmp_path / "latest_weights.pth").read_bytes() == before
    printed, name = capsys.readouterr().out, kind.upper()
    assert (
        f"nothing is left to do: 3 epochs are done, and {name}_NUM_EPOCH = 3. To continue, raise it; to begin anew, name"
        f" another {name}_WEIGHTS_PATH; both in {config.source()}\n"
    ) in printed
    missing = "" if has_weights else " (missing; the last epoch's are in latest_weights.pth)"
    assert printed.endswith(f"weights: {tmp_path}/weights.pth{missing}\n")
    assert (tmp_path / "logs.txt").read_text().endswith("Best Eval Epoch : 2\nMin Eval Loss : 0.5\n")


def test_another_number_of_processes_does_the_epoch_anew(tmp_path):
    """With all that does not depend on it: weights, optimizer, best loss, seed."""
    save_by_hand(tmp_path, order=ORDER | {"processes": 2})
    run = a_run(tmp_path, num_epoch=3, learning_rate=RATE)
    seen, third = [], [1.0, 1.0]
    steps = [(GRADIENTS[0], 6.0, 2.0), (GRADIENTS[1], 1.0, 5.0), (third, 3.0, 1.0)]
    assert finish(run, given(*steps, watch=lambda run, batch: seen.append(names_of(batch))), [0.7]) == 0
    assert seen == order_of(12345, 3)
    (record,) = records(tmp_path / "logs.txt")
    assert record["epoch"] == 3 and record["train_loss"] == pytest.approx((6 + 1 + 3) / (2 + 5 + 1))
    state = latest(tmp_path)
    assert_optimizer(state, by_hand(*GRADIENTS, third))
    assert (state["order"], state["best_epoch"], state["min_eval_loss"], state["seed"]) == (ORDER, 2, 0.5, 12345)
    assert "processes 2 -> 1: the epoch in progress begins anew\n" in (tmp_path / "logs.txt").read_text()


@pytest.mark.parametrize("name", sorted(run_state.STATE))
def test_a_field_that_is_lacking_is_named(tmp_path, name):
    save_by_hand(tmp_path)
    state = latest(tmp_path)
    del state[name]
    torch.save(state, tmp_path / "latest_weights.pth")
    with pytest.raises(InputError, match=rf"not the complete state of a run \({name} is not in it\)"):
        a_run(tmp_path)


# --- the scaler of float16 ------------------------------------------------------------------------------------------
@pytest.fixture
def float16(monkeypatch):
    """A training in float16: the scaler of a GPU, on the CPU."""
    monkeypatch.setattr(training, "precision", lambda device, wanted: torch.float16)


@pytest.mark.parametrize("max_norm", [0.0, 2.0])
def test_gradients_are_unscaled_before_they_are_clipped(tmp_path, monkeypatch, float16, max_norm):
    """By hand: the norm is 5, whatever the scale; clipped to 2, the gradient is 2/5 of itself."""
    monkeypatch.setattr(config, "MAX_GRAD_NORM", max_norm)
    save_by_hand(tmp_path, scaler=SCALER, step=2)
    run = a_run(tmp_path, num_epoch=3, learning_rate=RATE)
    scales = []
    step = given(([3.0, 4.0], 1.0, 1.0))

    def scaled(run, batch):
        done = step(run, batch)
        scales.append(run.model.weight.grad.tolist())
        return done

    finish(run, scaled, [0.7])
    assert scales == [[[3.0 * 1024, 4.0 * 1024]]]
    gradient = [3.0, 4.0] if not max_norm else [3.0 * 2 / 5, 4.0 * 2 / 5]
    assert_optimizer(latest(tmp_path), by_hand(gradient))


def test_scaler_is_restored_and_saved(tmp_path, float16):
    """The seventh step of six without an overflow doubles the scale, and the count begins anew."""
    save_by_hand(tmp_path, scaler=SCALER)
    run = a_run(tmp_path, num_epoch=3, learning_rate=RATE)
    assert run.scaler.is_enabled() and run.scaler.state_dict() == SCALER
    finish(run, given(*[([3.0, 4.0], 1.0, 1.0)] * 2), [0.7])
    assert latest(tmp_path)["scaler"] == SCALER | {"_growth_tracker": 7}
    save_by_hand(tmp_path, scaler=SCALER | {"growth_interval": 6})
    finish(a_run(tmp_path, num_epoch=3), given(*[([3.0, 4.0], 1.0, 1.0)] * 2), [0.7])
    assert latest(tmp_path)["scaler"] == SCALER | {"growth_interval": 6, "scale": 2048.0, "_growth_tracker": 1}


@pytest.mark.parametrize("max_norm", [0.0, 2.0])
def test_a_step_that_overflows_is_skipped(tmp_path, monkeypatch, float16, max_norm):
    """Weights and moments stay, the scale is halved, and of its gradient nothing is left in the next step."""
    monkeypatch.setattr(config, "MAX_GRAD_NORM", max_norm)
    save_by_hand(tmp_path, scaler=SCALER)
    run = a_run(tmp_path, num_epoch=3, learning_rate=RATE)
    scales = []
    steps = ([float("inf"), 4.0], 1.0, 1.0), ([-0.6, 0.8], 1.0, 1.0)
    finish(run, given(*steps, watch=lambda run, batch: scales.append(run.scaler.get_scale())), [0.7])
    assert scales == [1024.0, 512.0]
    state = latest(tmp_path)
    assert state["scaler"] == SCALER | {"scale": 512.0, "_growth_tracker": 1}
    assert_optimizer(state, by_hand([-0.6, 0.8], first=STEPS + 1))  # the schedule counts the step that was skipped


def test_from_one_precision_to_another(tmp_path, monkeypatch):
    """A state without a scaler starts one of float16 anew; one with a scaler is continued without it."""
    save_by_hand(tmp_path, scaler=SCALER)
    run = a_run(tmp_path, num_epoch=3)
    assert not run.scaler.is_enabled()
    finish(run, given(([3.0, 4.0], 1.0, 1.0), ([-0.6, 0.8], 1.0, 1.0)), [0.7])
    assert latest(tmp_path)["scaler"] == {}
    save_by_hand(tmp_path)
    monkeypatch.setattr(training, "precision", lambda device, wanted: torch.float16)
    assert a_run(tmp_path, num_epoch=3).scaler.get_scale() == torch.amp.GradScaler("cpu").get_scale()


# --- where a run starts ---------------------------------------------------------------------------------------------
def save_weights(folder, weights):
    """A weights file with an optimizer and losses of its own, which a new run has no use for."""
    save_by_hand(folder)
    state = latest(folder)
    (folder / "latest_weights.pth").unlink()
    published = {name: state[name] for name in ("optimizer", "lr_sched", "epoch")}
    published |= {"model": {"weight": torch.tensor([weights])}, "best_epoch": 9, "min_eval_loss": 0.01}
    torch.save(published, folder / "weights.pth")


THREE = ([3.0, 4.0], 6.0, 2.0), ([-0.6, 0.8], 1.0, 5.0), ([1.0, 1.0], 4.0, 0.5)


def after_three(weights):
    """The optimizer of a new run after the first epoch of those steps."""
    optimizer = AdamW(weights)
    for number, (gradient, _, _) in enumerate(THREE):
        optimizer.step(gradient, RATE * number / WARMUP)
    return optimizer


def test_weights_alone_are_evaluated_first(tmp_path, capsys):
    """What they have is the loss to be bettered; optimizer, schedule and epochs begin anew."""
    save_weights(tmp_path, [5.0, 6.0])
    evaluated = []
    run = a_run(tmp_path, learning_rate=RATE)
    finish(run, given(*THREE), [0.8, 0.9], watch=lambda run: evaluated.append(run.model.weight.tolist()[0]))
    assert evaluated[0] == [5.0, 6.0] and len(evaluated) == 2
    assert "eval_loss of weights.pth: 0.800000\n" in capsys.readouterr().out
    assert re.search(rf"starts from +{tmp_path}/weights.pth\n", (tmp_path / "logs.txt").read_text())
    state = latest(tmp_path)
    assert_optimizer(state, after_three([5.0, 6.0]))
    assert (state["best_epoch"], state["min_eval_loss"], state["epoch"]) == (0, 0.8, 2)
    assert torch.load(tmp_path / "weights.pth", weights_only=True)["best_epoch"] == 9  # as it was
    # continued, it is not evaluated first again
    run = a_run(tmp_path, num_epoch=2, learning_rate=RATE)
    finish(run, given(*THREE), [0.7], watch=lambda run: evaluated.append(run.model.weight.tolist()[0]))
    assert len(evaluated) == 3
    assert torch.load(tmp_path / "weights.pth", weights_only=True)["best_epoch"] == 2


@pytest.mark.parametrize("load_ckpt", [True, False])
def test_new_weights(tmp_path, load_ckpt):
    """Where there is nothing to load, or it is not wanted: no evaluation first, and any loss is better than none."""
    if not load_ckpt:
        save_weights(tmp_path, [5.0, 6.0])
        save_by_hand(tmp_path)
    run = a_run(tmp_path, linear([1.0, 2.0]), learning_rate=RATE, load_ckpt=load_ckpt)
    assert finish(run, given(*THREE), [0.9]) == 0  # one evaluation
    assert_optimizer(latest(tmp_path), after_three([1.0, 2.0]))
    assert latest(tmp_path)["bad_pieces"] == [] and "new weights\n" in (tmp_path / "logs.txt").read_text()
    assert torch.load(tmp_path / "weights.pth", weights_only=True)["min_eval_loss"] == 0.9


def test_the_complete_state_goes_before_the_weights(tmp_path):
    save_weights(tmp_path, [5.0, 6.0])
    save_by_hand(tmp_path)
    run = a_run(tmp_path)
    assert run.model.weight.tolist() == [WEIGHTS] and run.progress.epoch == 3


def test_a_state_of_another_model_is_refused(tmp_path):
    save_by_hand(tmp_path)
    with pytest.raises(InputError, match=r"latest_weights\.pth: weight is \[1, 2\], but is \[1, 3\] in the model of"):
        a_run(tmp_path, linear([1.0, 2.0, 3.0]))


# --- several processes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_alone_removes_leftovers_and_saves(tmp_path, rank):
    """Of its own folder, not below it: others may be writing there."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leftover = tmp_path / f"{files._TEMPORARY}{ended.pid}-0"
    below = tmp_path / "below" / leftover.name
    below.parent.mkdir()
    for path in (leftover, below, tmp_path / f"{files._TEMPORARY}{os.getpid()}-0"):
        path.touch()
    run = a_run(tmp_path, job=Processes(rank, rank, 1))
    assert leftover.exists() == (rank == 1)
    assert below.exists() and len(list(tmp_path.glob(".tmp-*"))) == 1 + rank
    finish(run, given(*THREE), [0.5])
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".tmp-")} == (
        {"below"} if rank else {"below", "weights.pth", "latest_weights.pth", "logs.txt"}
    )


def test_processes_that_differ_are_not_started(tmp_path, monkeypatch):
    """One that finds no checkpoint, or other pieces, would wait for the others for ever."""
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    save_by_hand(tmp_path)
    with pytest.raises(InputError, match=r"the processes differ in the checkpoint they find: .*latest_weights.*None"):
        a_run(tmp_path, job=OneOfTwo(answer=lambda value: "None"))

    def fewer(value):
        return value.replace("3 for evaluation", "2 for evaluation") if isinstance(value, str) else value

    run = a_run(tmp_path, job=OneOfTwo(answer=fewer), batch_size=1)
    with pytest.raises(InputError, match=r"the processes differ in the pieces they find: .*3 for eval.*2 for eval"):
        finish(run, given(), [])
    assert not (tmp_path / "logs.txt").exists()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("'batch size': 1", "'batch size': 2"),
        ("'epochs': 1", "'epochs': 2"),
        ("'SAVE_EVERY_STEPS': 0", "'SAVE_EVERY_STEPS': 9"),
        ("'learning rate': 0.1", "'learning rate': 0.2"),
        ("epoch 3, step 1", "epoch 3, step 2"),
    ],
)
def test_processes_of_other_settings_or_another_state_are_not_started(tmp_path, monkeypatch, ours, theirs):
    """They would do another number of steps and wait for each other for ever, or drift apart."""
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    monkeypatch.setattr(config, "SAVE_EVERY_STEPS", 0)
    save_by_hand(tmp_path)
    other = OneOfTwo(answer=lambda value: value.replace(ours, theirs) if isinstance(value, str) else value)
    run = a_run(tmp_path, job=other, batch_size=1)
    with pytest.raises(InputError, match=f"differ in their settings or in the saved state: .*{ours}.*{theirs}"):
        finish(run, given(), [])


@pytest.mark.parametrize(("deterministic", "seed"), [(True, 0), (False, 77)])
def test_all_processes_have_the_seed_of_rank_0(tmp_path, monkeypatch, deterministic, seed):
    job = Processes(1, 1, 1)
    monkeypatch.setattr(job, "broadcast", lambda value: 77)
    assert a_run(tmp_path, job=job, deterministic=deterministic).progress.seed == seed


# --- told to stop -----------------------------------------------------------------------------------------------------
def test_a_process_that_is_told_to_stop_says_so_to_all(tmp_path, monkeypatch):
    """Whichever it is: here rank 1 of two, whose sums are looked at."""
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    seen = []

    class Rank1(OneOfTwo):
        def __init__(self):
            super().__init__()
            self.rank = self.local_rank = 1

        def sum(self, tensor):
            seen.append(tensor.tolist())
            return tensor

    run = a_run(tmp_path, job=Rank1())
    run._stop = True
    status = finish(run, given(*[([0.0, 1.0], 2.0, 1.0)] * 3), [1.0])
    assert status == training.INTERRUPTED and all(sums[2] == 1.0 for sums in seen if len(sums) == 4)


def test_no_process_ends_before_the_state_is_saved(tmp_path, monkeypatch):
    """A launcher that is not told to stop itself takes the first one that ends for a failure, and kills the others."""
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    saved = []

    class Waiting(OneOfTwo):
        def wait_for_all(self):
            saved.append((tmp_path / "latest_weights.pth").exists())

    run = a_run(tmp_path, job=Waiting())
    run._stop = True
    assert finish(run, given(*[([0.0, 1.0], 2.0, 1.0)] * 3), []) == training.INTERRUPTED
    assert saved[-1] and not saved[-2]


def test_an_evaluation_keeps_no_graph_and_only_a_better_epoch_replaces_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    enabled = []
    run = a_run(tmp_path, num_epoch=3)
    steps = given(*[([0.0, 1.0], 2.0, 1.0)] * 9)
    assert finish(run, steps, [1e6, 5.0, 5.0], watch=lambda run: enabled.append(torch.is_grad_enabled())) == 0
    assert enabled == [False] * 3
    best = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert (best["epoch"], best["min_eval_loss"]) == (2, 5.0)
