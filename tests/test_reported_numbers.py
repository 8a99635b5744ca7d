"""Every number that a training reports, worked out by hand on uneven data: losses, rates, counts, times."""

import math
import re
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import config
import run_log
import train_clamp2
import train_m3
import training
import utils
from files import InputError
from helpers import KIT, m3_configs
from loading import make_loader
from processes import Processes
from run_state import Progress
from small_runs import (
    OneOfTwo,
    Pieces,
    Rows,
    a_run,
    collate,
    finish,
    given,
    go,
    latest,
    linear,
    records,
    wandb_that_listens,
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(config, "NUM_WORKERS", 0)
    monkeypatch.setattr(config, "WARMUP_STEPS", 8)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(training, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


# two epochs of three steps: gradient, total loss, weight, seconds
STEPS = [
    ([3.0, 4.0], 6.0, 2.0, 0.5),
    ([0.0, 1.0], 1.0, 5.0, 2.0),
    ([5.0, 12.0], 0.9, 0.3, 4.0),
    ([8.0, 6.0], 2.0, 1.0, 0.25),
    ([0.0, 0.0], 3.0, 7.0, 1.0),
    ([1.0, 0.0], 0.5, 4.0, 8.0),
]
NORMS = [5.0, 1.0, 13.0, 10.0, 0.0, 1.0]


def two_epochs(folder, clock, job=None, **changes):
    """A run of those steps with batches of two of seven pieces. An evaluation takes ten seconds."""
    run = a_run(folder, linear([1.0, 1.0]), job, num_epoch=2, learning_rate=0.4, **changes)
    steps, seconds = given(*[step[:3] for step in STEPS]), iter(step[3] for step in STEPS)

    def timed(run, batch):
        clock.now += next(seconds)
        return steps(run, batch)

    def wait(run):
        clock.now += 10.0

    assert finish(run, timed, [0.75, 0.25], train=7, evaluation=5, watch=wait) == 0
    return run


def test_an_epoch_in_the_log(tmp_path, clock, capsys):
    """In the log file, published lines and a JSON line, and on the terminal."""
    two_epochs(tmp_path, clock)
    losses = [(6.0 + 1.0 + 0.9) / (2.0 + 5.0 + 0.3), (2.0 + 3.0 + 0.5) / (1.0 + 7.0 + 4.0)]
    assert records(tmp_path / "logs.txt") == [
        {
            "epoch": 1,
            "train_loss": pytest.approx(losses[0], rel=1e-12),
            "eval_loss": 0.75,
            "learning_rate": pytest.approx(0.4 * 3 / 8),
            "seconds": 16.5,
            "bad_pieces": 0,
        },
        {
            "epoch": 2,
            "train_loss": pytest.approx(losses[1], rel=1e-12),
            "eval_loss": 0.25,
            "learning_rate": pytest.approx(0.4 * 6 / 8),
            "seconds": 19.2,  # 19.25
            "bad_pieces": 0,
        },
    ]
    log, printed = (tmp_path / "logs.txt").read_text(), capsys.readouterr().out
    number = r"[0-9.]+"
    published = re.findall(rf"^Epoch (\d)\ntrain_loss: ({number})\neval_loss: ({number})\ntime: .+\n{{", log, re.M)
    assert [(int(epoch), float(train), float(evaluation)) for epoch, train, evaluation in published] == [
        (1, pytest.approx(losses[0]), 0.75),
        (2, pytest.approx(losses[1]), 0.25),
    ]
    assert "epoch 1: train_loss 1.0822, eval_loss 0.7500, 16.5 s\n" in printed  # 7.9 / 7.3
    assert "epoch 2: train_loss 0.4583, eval_loss 0.2500, 19.2 s\n" in printed  # 5.5 / 12
    assert log.endswith("Best Eval Epoch : 2\nMin Eval Loss : 0.25\n")
    assert f"bad pieces: 0\nweights: {tmp_path}/weights.pth\n" in printed


def test_the_curves(tmp_path, clock, monkeypatch):
    """One point a step, and one an epoch behind its last step."""
    heard = wandb_that_listens(monkeypatch)
    usage = types.SimpleNamespace(getrusage=lambda who: types.SimpleNamespace(ru_maxrss=3 * 2**20), RUSAGE_SELF=0)
    monkeypatch.setattr(run_log, "resource", usage)
    two_epochs(tmp_path, clock, wandb_log=True)
    steps = [(step, values) for step, values in heard.logged if "loss" in values]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    for number, ((_, values), (_, total, weight, seconds), norm) in enumerate(zip(steps, STEPS, NORMS, strict=True)):
        assert values == {
            "loss": pytest.approx(total / weight),
            "learning_rate": pytest.approx(0.4 * number / 8),  # of the step, not of the one after it
            "gradient_norm": pytest.approx(norm),
            "pieces_per_second": pytest.approx(2 / seconds),
            "memory_gib": 3.0,
        }
    assert [(step, values) for step, values in heard.logged if "loss" not in values] == [
        (
            step,
            {
                "epoch": epoch,
                "train_loss": pytest.approx(loss),
                "eval_loss": evaluation,
                "seconds": seconds,
                "bad_pieces": 0,
            },
        )
        for step, epoch, loss, evaluation, seconds in [(3, 1, 7.9 / 7.3, 0.75, 16.5), (6, 2, 5.5 / 12, 0.25, 19.2)]
    ]
    assert heard.finished == 1 and [run["project"] for run in heard.runs] == ["m3"]
    assert heard.runs[0]["name"] == "weights" and heard.runs[0]["config"]["WARMUP_STEPS"] == 8


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_memory_of_a_gpu(tmp_path, monkeypatch, kind):
    """A Mac's GPU shares the memory of the process, which is counted in bytes there."""
    heard = wandb_that_listens(monkeypatch)
    log = a_run(tmp_path, wandb_log=True).log
    monkeypatch.setattr(Processes, "device", torch.device(kind, 0))
    if kind == "mps":
        monkeypatch.setattr(sys, "platform", "darwin")
        usage = types.SimpleNamespace(getrusage=lambda who: types.SimpleNamespace(ru_maxrss=5 * 2**29), RUSAGE_SELF=0)
        monkeypatch.setattr(run_log, "resource", usage)
    else:
        monkeypatch.setattr(getattr(torch, kind), "max_memory_allocated", lambda *_: 5 * 2**29)
    log.begin({}, 0)
    log.step(1, 6, 4.0, {})
    assert heard.logged == [(1, {"pieces_per_second": 1.5, "memory_gib": 2.5})]


def test_a_continued_run_counts_on(tmp_path, clock, monkeypatch):
    """Its curves go on behind the steps that are done; its bar too."""
    heard, bars = wandb_that_listens(monkeypatch), []

    class Bar(training.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append((self, options.get("initial"), options.get("total")))

    monkeypatch.setattr(training, "tqdm", Bar)
    run = a_run(tmp_path, num_epoch=2)
    run.progress = Progress(epoch=2, step=1, total=5.0, weight=1.0)

    def watch(run, batch):
        clock.now += 1.0

    finish(run, given(*[([0.0, 1.0], 1.0, 1.0)] * 2, watch=watch), [0.5])
    bar, initial, total = bars[0]
    assert (initial, bar.n, total) == (1, 3, 3)
    assert heard.logged == []
    run = a_run(tmp_path, num_epoch=3, wandb_log=True)
    finish(run, given(*[([0.0, 1.0], 1.0, 1.0)] * 3, watch=watch), [0.5])
    assert [step for step, values in heard.logged] == [7, 8, 9, 9]


def test_the_loss_beside_the_bar(tmp_path, monkeypatch):
    """That of the epoch so far, of the steps before the one that has just been started."""
    shown = []

    class Bar(training.tqdm):
        def set_postfix(self, **values):
            shown.append(values.pop("loss"))

    monkeypatch.setattr(training, "tqdm", Bar)
    finish(a_run(tmp_path), given(*[step[:3] for step in STEPS[:3]]), [0.5])
    assert shown == ["3.0000", "1.0000"]  # 6 / 2, (6 + 1) / (2 + 5)


def test_numbers_of_two_processes(tmp_path, clock, monkeypatch):
    """Loss and weight are summed over them: the other's are 4 and 10. Each has one piece in a step."""
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    heard = wandb_that_listens(monkeypatch)
    theirs = lambda value: ["piece 8 is bad"] if isinstance(value, list) else value  # noqa: E731
    job = OneOfTwo([4.0, 10.0, 0.0], theirs)
    two_epochs(tmp_path, clock, job, batch_size=1, wandb_log=True)
    steps = [values for _, values in heard.logged if "loss" in values]
    for values, (_, total, weight, seconds) in zip(steps, STEPS, strict=True):
        assert values["loss"] == pytest.approx((total + 4) / (weight + 10))
        assert values["pieces_per_second"] == pytest.approx((1 + 1) / seconds)
    losses = [record["train_loss"] for record in records(tmp_path / "logs.txt")]
    assert losses == pytest.approx([(7.9 + 12) / (7.3 + 30), (5.5 + 12) / (12 + 30)])
    assert [record["bad_pieces"] for record in records(tmp_path / "logs.txt")] == [1, 1]  # that rank's, once
    assert "\n  device               2 x CPU\n" in (tmp_path / "logs.txt").read_text()


def test_bad_pieces_are_counted_once(tmp_path, capsys):
    """Those that were met so far, in training and evaluation of any epoch; all of them in the end."""
    losses = iter([0.5, 0.4])

    def evaluate(run, loader):
        for _ in run.evaluation_batches(loader):
            pass
        return next(losses)

    run = a_run(tmp_path, num_epoch=2)
    sets = Pieces(6, True, bad=(4, 5)), Pieces(5, False, bad=(0, 2, 3, 4))
    go(run, [make_loader(pieces, 2, run.processes, collate) for pieces in sets], given(*[([0.0, 1.0], 1.0, 1.0)] * 6), evaluate)  # fmt: skip
    assert [record["bad_pieces"] for record in records(tmp_path / "logs.txt")] == [5, 5]
    printed = capsys.readouterr().out
    log = (tmp_path / "logs.txt").read_text()
    for index in (0, 2, 3, 4, 5):
        assert printed.count(f"bad piece or file, another one in its place: piece {index} is bad\n") == 1
        assert log.count(f"bad piece: piece {index} is bad\n") == 1
    assert printed.count(" s, 5 bad pieces\n") == 2 and "\nbad pieces: 5\n" in printed


def test_the_other_ranks_report_nothing(tmp_path, clock, capsys, monkeypatch):
    heard = wandb_that_listens(monkeypatch)
    two_epochs(tmp_path, clock, Processes(1, 0, 1), wandb_log=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err, heard.runs, heard.logged, list(tmp_path.iterdir())) == ("", "", [], [], [])


@pytest.mark.parametrize(
    ("epochs", "warning"),
    [
        (5, {}),
        (4, {"warning": "8 steps end before a warm-up of 8: the learning rate reaches only 0.21875; lower WARMUP_STEPS, or raise M3_NUM_EPOCH, in "}),
    ],
)  # fmt: skip
def test_the_block_at_the_start(tmp_path, monkeypatch, capsys, epochs, warning):
    """The facts of the run, and each constant of config.py that concerns it; a secret is none of them."""
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    monkeypatch.setattr(training, "commit", lambda: "0123456789ab")
    monkeypatch.setattr(config, "WANDB_KEY", "a secret")
    monkeypatch.setattr(config, "NUM_WORKERS", 5)  # more than there are batches
    model = torch.nn.Sequential(linear([1.0, 1.0]), torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model[1].weight.requires_grad_(False)  # it is a parameter all the same; the statistics of the norm are none
    run = a_run(tmp_path, model, OneOfTwo(), batch_size=3, learning_rate=0.25, num_epoch=epochs)
    finish(run, lambda *_: training.Step(torch.ones(()), torch.ones(())), [1.0] * epochs, train=13, evaluation=5)
    log = (tmp_path / "logs.txt").read_text()
    lines = log.partition("\n\n")[0].splitlines()
    constants = {k: v for k, v in vars(config).items() if k.isupper() and not k.startswith(("_", "CLAMP2_"))}
    del constants["WANDB_KEY"]
    width = max(map(len, constants))
    facts = {line[2 : 2 + width].strip(): line[3 + width :] for line in lines[1:]}
    assert facts == {name: str(value) for name, value in constants.items()} | {
        "commit": "0123456789ab",
        "device": "2 x CPU",
        "precision": "float32",
        "parameters": str(2 + (6 + 3) + (3 + 3)),
        "pieces": "13 for training, 5 for evaluation",
        "batch": "3 x 2 = 6",
        "steps": f"2 an epoch, {2 * epochs} in all",
        "learning rate": "0.25 after 8 warm-up steps",
        "workers": "2 per process",
        "seed": "0",
        "starts from": "new weights",
    } | {name: text + config.source() for name, text in warning.items()}
    assert re.fullmatch(r"m3, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", lines[0])
    assert "\n".join(lines) in capsys.readouterr().out and "a secret" not in log


def test_a_loss_that_is_not_finite(tmp_path):
    """Reported with epoch, step and pieces, of all ranks; it is read one step later."""
    seen = []
    run = a_run(tmp_path)
    steps = [([0.0, 1.0], 1.0, 1.0), ([0.0, 1.0], math.inf, 1.0), ([0.0, 1.0], 1.0, 1.0)]
    with pytest.raises(InputError) as problem:
        finish(run, given(*steps, watch=lambda run, batch: seen.append(", ".join(map(str, batch.rows.tolist())))), [])
    assert str(problem.value) == f"the loss is not finite (inf) in epoch 1, step 2; its pieces: {seen[1]}"
    assert not (tmp_path / "latest_weights.pth").exists()
    with pytest.raises(InputError, match=r"the evaluation loss is not finite \(nan\) after epoch 1"):
        finish(a_run(tmp_path), given(*[([0.0, 1.0], 1.0, 1.0)] * 3), [math.nan])
    assert latest(tmp_path)["step"] == 3  # saved before the evaluation


# --- M3 -------------------------------------------------------------------------------------------------------------
class StillM3(utils.M3Model):
    """M3 that never has dropout on."""

    def train(self, mode=True):
        return super().train(False)


def test_the_losses_of_m3(tmp_path, monkeypatch):
    """Mean over the characters, of pieces of different lengths one by one; the last batch of the evaluation is short.

    The learning rate is 0, so that the weights stay. Means over batches, or over pieces, are other numbers.
    """
    heard = wandb_that_listens(monkeypatch)
    torch.manual_seed(0)
    model = StillM3(*m3_configs(layers=1))
    torch.nn.init.normal_(model.decoder.base.lm_head.weight)  # so that the losses of the pieces differ
    train, evaluation = (
        [str(KIT / "interleaved" / f"{name}.abc") for name in names.split()]
        for names in ("octet piano quartet solo_jig solo_reel", "duo solo_waltz tiny")
    )
    run = a_run(tmp_path, train_m3.Restoration(model), learning_rate=0.0, batch_size=2, wandb_log=True)
    batches = []

    def step(run, batch):
        batches.append(batch)
        return train_m3.step(run, batch)

    sets = train_m3.M3Dataset(train, True, 0), train_m3.M3Dataset(evaluation, False, 0)

    def collate(samples):
        batch = train_m3.collate(samples)
        batch.samples = samples
        return batch

    loaders = [make_loader(pieces, 2, run.processes, collate) for pieces in sets]
    assert go(run, loaders, step, train_m3.evaluate) == 0

    def pieces_of(batch):
        """(summed loss, characters) of each piece of a batch, by itself."""
        for sample in batch.samples:
            output = model.restore(train_m3.collate([sample]))
            characters = sum(
                len(patch[patch != 0]) - 1 for patch in sample["target"][sample["selected"]]
            )  # the first is given
            yield output.loss * characters, characters

    expected, gradients = [], []
    for batch in batches:
        pieces = list(pieces_of(batch))
        mean = sum(loss for loss, _ in pieces) / sum(count for _, count in pieces)
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(mean, parameters, allow_unused=True)
        gradients.append(math.sqrt(sum(float(grad.square().sum()) for grad in grads if grad is not None)))
        expected.append([(float(loss.detach()), count) for loss, count in pieces])
    assert len(expected) == 2
    steps = [values for _, values in heard.logged if "loss" in values]
    for values, pieces, norm in zip(steps, expected, gradients, strict=True):
        assert values["loss"] == pytest.approx(sum(loss for loss, _ in pieces) / sum(n for _, n in pieces), rel=1e-5)
        assert values["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    (record,) = records(tmp_path / "logs.txt")
    right = sum(loss for batch in expected for loss, _ in batch) / sum(n for batch in expected for _, n in batch)
    assert record["train_loss"] == pytest.approx(right, rel=1e-5)
    assert abs(np.mean([values["loss"] for values in steps]) / right - 1) > 1e-3  # what a weight of 1 would give
    # evaluation: two pieces, then one
    with torch.no_grad():
        alone = [next(pieces_of(collate([sets[1][0, index]]))) for index in range(3)]
    right = sum(float(loss) for loss, _ in alone) / sum(count for _, count in alone)
    assert record["eval_loss"] == pytest.approx(right, rel=1e-5)
    assert abs(np.mean([float(loss) / count for loss, count in alone]) / right - 1) > 1e-3


# --- CLaMP 2 --------------------------------------------------------------------------------------------------------
class Features(torch.nn.Module):
    """Texts and music whose features are given."""

    def __init__(self, count):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.text, self.music = (torch.nn.Parameter(torch.randn(count, 6, generator=generator)) for _ in range(2))

    def forward(self, batch):
        return self.text[batch.rows], self.music[batch.rows]


def contrastive(text, music):
    """The loss, number by number: of each text among all music, and of each music among all texts."""
    total = 0.0
    for a, b in ((text, music), (music, text)):
        for i, one in enumerate(a.tolist()):
            products = [sum(x * y for x, y in zip(one, other, strict=True)) for other in b.tolist()]
            total += math.log(sum(math.exp(product) for product in products)) - products[i]
    return total / (2 * len(text))


def test_the_losses_of_clamp2(tmp_path, monkeypatch):
    """Mean over the steps; in the evaluation over groups of 4, 4 and 3 pairs, of which each pair counts the same."""
    monkeypatch.setattr(train_clamp2, "EVALUATION_GROUP", 4)
    heard = wandb_that_listens(monkeypatch)
    model = Features(11)
    run = a_run(tmp_path, model, name="clamp2", learning_rate=0.0, batch_size=4, wandb_log=True)
    batches = []

    def step(run, batch):
        batches.append(batch.rows)
        return train_clamp2.step(run, batch)

    loaders = [make_loader(Pieces(11, train), 4, run.processes, collate) for train in (True, False)]
    assert go(run, loaders, step, train_clamp2.evaluate) == 0
    text, music = model.text.detach(), model.music.detach()
    losses = [contrastive(text[rows], music[rows]) for rows in batches]
    assert [len(rows) for rows in batches] == [4, 4]
    steps = [values for _, values in heard.logged if "loss" in values]
    assert [values["loss"] for values in steps] == pytest.approx(losses, rel=1e-5)
    for values, rows in zip(steps, batches, strict=True):
        copies = [side[rows].clone().requires_grad_() for side in (text, music)]
        logits = copies[0] @ copies[1].t()
        labels = torch.arange(4)
        ((F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2).backward()
        norm = math.sqrt(sum(float(side.grad.square().sum()) for side in copies))
        assert values["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    (record,) = records(tmp_path / "logs.txt")
    assert record["train_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    groups = [(4, contrastive(text[part], music[part])) for part in (slice(0, 4), slice(4, 8))]
    groups.append((3, contrastive(text[8:], music[8:])))
    right = sum(count * loss for count, loss in groups) / 11
    assert record["eval_loss"] == pytest.approx(right, rel=1e-5)
    assert abs(sum(loss for _, loss in groups) / 3 / right - 1) > 1e-3  # a mean over the groups


def test_clamp2_s_evaluation_of_processes_of_different_size(tmp_path, monkeypatch):
    """Rank 0 of two has six of eleven pieces, the other five; in groups of at most five: 4, 4, 3."""
    monkeypatch.setattr(train_clamp2, "EVALUATION_GROUP", 5)
    monkeypatch.setattr(training, "DistributedDataParallel", lambda model, **_: model)
    model = Features(11)
    text, music = model.text.detach(), model.music.detach()
    job = OneOfTwo(answer=lambda value: torch.stack((text[1::2], music[1::2])))
    monkeypatch.setattr(training, "load_start", lambda *_: (None, Progress(), "new weights"))
    run = a_run(tmp_path, model, job, batch_size=2)
    with torch.no_grad():
        loss = train_clamp2.evaluate(run, make_loader(Pieces(11, False), 2, job, collate))
    groups = [(len(text[part]), contrastive(text[part], music[part])) for part in (slice(0, 4), slice(4, 8), slice(8, 11))]  # fmt: skip
    assert loss == pytest.approx(sum(count * loss for count, loss in groups) / 11, rel=1e-5)


def test_the_loss_of_a_micro_batched_step_is_that_of_the_batch(tmp_path, monkeypatch):
    """Seven pairs in parts of three, three and one."""
    model = Features(7)
    run = a_run(tmp_path, model, batch_size=7, learning_rate=0.0)
    told = train_clamp2.step(run, types.SimpleNamespace(parts=[Rows(part) for part in torch.arange(7).split(3)]))
    assert float(told.total.detach()) / told.weight == pytest.approx(
        contrastive(model.text.detach(), model.music.detach()), rel=1e-5
    )
