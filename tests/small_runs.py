"""Trainings small enough to work out by hand: a linear model, pieces that are numbers, gradients and losses that are given."""

import importlib.machinery
import json
import signal
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from transformers import AutoConfig

import training
import utils
from files import InputError
from helpers import KIT, m3_configs
from loading import PieceDataset, make_loader
from packing import Tensors
from processes import Processes


class Pieces(PieceDataset):
    """Pieces named after their index, of which some are bad."""

    def __init__(self, count: int, train: bool, seed: int = 0, bad: Iterable[int] = ()):
        super().__init__(train, seed)
        self.count, self.bad = count, set(bad)

    def __len__(self):
        return self.count

    def digest(self):
        return f"{self.count} pieces"

    def load(self, index, rng):
        if index in self.bad:
            raise InputError(f"piece {index} is bad")
        return {"name": str(index), "index": index}


class Rows(Tensors):
    """A batch of the indices of pieces; also one of CLaMP 2, with one part."""

    def __init__(self, rows):
        self.rows = torch.as_tensor(rows)

    @property
    def parts(self):
        return [self]


def collate(samples):
    return Rows([sample["index"] for sample in samples])


class OneOfTwo(Processes):
    """Rank 0 of two processes. The other adds `theirs` to a sum of as many numbers, and has what `answer` makes of a value."""

    def __init__(self, theirs=(), answer=lambda value: value):
        super().__init__(0, 0, 2)
        self.theirs, self.answer = theirs, answer

    def gather(self, value):
        return [value, self.answer(value)]

    def broadcast(self, value):
        return value

    def sum(self, tensor):
        has_theirs = len(self.theirs) == tensor.numel()
        return tensor.add_(torch.tensor(self.theirs, dtype=tensor.dtype)) if has_theirs else tensor


def tiny_model(kind: str) -> torch.nn.Module:
    """An M3 ("m3") or a CLaMP 2 of random weights, the same ones each time."""
    torch.manual_seed(0)
    if kind == "m3":
        return utils.M3Model(*m3_configs())
    return utils.CLaMP2Model.from_configs(AutoConfig.from_pretrained(KIT / "tiny-xlmr"), m3_configs()[0], 48)


def linear(*rows: list[float]) -> torch.nn.Linear:
    """A linear layer without bias, of these weights."""
    layer = torch.nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def a_run(folder: Path, model=None, job: Processes | None = None, wrap: Callable = lambda model: model, **changes):
    """A training with `weights.pth` and `logs.txt` in a folder."""
    settings = {
        "name": "m3",
        "num_epoch": 1,
        "learning_rate": 0.1,
        "batch_size": 2,
        "deterministic": True,
        "load_ckpt": True,
        "wandb_log": False,
        "weights_path": folder / "weights.pth",
        "logs_path": folder / "logs.txt",
    }
    model = model or linear([1.0, 1.0])
    return training.Training(training.Settings(**(settings | changes)), job or Processes(0, 0, 1), model, wrap)


def given(*steps: tuple[list[float], float, float], watch: Callable = lambda run, batch: None):
    """A step function: the gradient of the linear layer, total loss and weight of one step after another are these."""
    left = iter(steps)

    def step(run, batch):
        watch(run, batch)
        gradient, total, weight = next(left)
        run.scaler.scale((torch.tensor(gradient) * run.parallel.weight).sum()).backward()
        return training.Step(torch.tensor(total, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64))

    return step


def finish(run, step, eval_losses, train=6, evaluation=3, bad=(), watch: Callable = lambda run: None):
    """Runs a training on `train` pieces; the evaluations read their pieces and give these losses. Returns the status."""
    losses = iter(eval_losses)

    def evaluate(run, loader):
        watch(run)
        for _ in run.evaluation_batches(loader):
            pass
        return next(losses)

    datasets = (Pieces(train, True, run.progress.seed), Pieces(evaluation, False, bad=bad))
    return go(run, [make_loader(pieces, run.settings.batch_size, run.processes, collate) for pieces in datasets], step, evaluate)  # fmt: skip


def go(run, loaders, step, evaluate):
    """`run.run`, after which signals are handled as before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return run.run(*loaders, step, evaluate)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def records(path: Path) -> list[dict]:
    """The JSON lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def latest(folder: Path) -> dict:
    return torch.load(folder / "latest_weights.pth", weights_only=True)


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019) of numbers, with the defaults of torch."""

    def __init__(self, weights, means=None, squares=None, steps=0):
        zeros = [0.0] * len(weights)
        self.weights, self.means, self.squares, self.steps = weights, means or zeros, squares or zeros, steps

    def step(self, gradient, rate):
        self.steps += 1
        self.means = [0.9 * m + 0.1 * g for m, g in zip(self.means, gradient, strict=True)]
        self.squares = [0.999 * s + 0.001 * g * g for s, g in zip(self.squares, gradient, strict=True)]
        self.weights = [
            w * (1 - rate * 0.01) - rate * m / (1 - 0.9**self.steps) / ((s / (1 - 0.999**self.steps)) ** 0.5 + 1e-8)
            for w, m, s in zip(self.weights, self.means, self.squares, strict=True)
        ]


def wandb_that_listens(monkeypatch) -> types.SimpleNamespace:
    """Puts a module `wandb` in place that keeps what it is given: `keys`, `runs` and `logged`, a list of (step, values)."""
    heard = types.SimpleNamespace(keys=[], runs=[], logged=[], finished=0)

    class Run:
        def log(self, values, step):
            heard.logged.append((step, values))

        def finish(self):
            heard.finished += 1

    def init(**facts):
        heard.runs.append(facts)
        return Run()

    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.login, wandb.init = lambda key: heard.keys.append(key), init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return heard
