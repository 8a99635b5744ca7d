"""The host never waits for a GPU within a training step, an evaluation step or a pass of extraction.

On a CPU, the operations are counted that would wait on a GPU: those whose result the host needs to go on (a number, the
shape of what a boolean mask chooses), and the tensors that are made of Python's numbers. With a GPU, PyTorch itself
raises an error where the host waits.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import config
import embedding
import loading
import packing
import processes
import train_clamp2
import train_m3
import training
from small_runs import a_run, tiny_model

KIT = Path(__file__).parent / "kit"
FILES = [str(KIT / "interleaved" / name) for name in ("tiny.abc", "solo_jig.abc", "quartet.abc")]
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")
WAITING += ("repeat_interleave.Tensor",)


class Waits(TorchDispatchMode):
    """Counts what would wait on a GPU, but for tensors on their way to the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function).removeprefix("aten.")
        masked = "index" in name and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for indices in arguments
            if isinstance(indices, (list, tuple))
            for index in indices
        )
        if masked or name.startswith(WAITING):
            self.found.append(name)
        return function(*arguments, **(options or {}))


def counted(name, found):
    """A method of tensors that waits on a GPU. What cpu.py does is for a CPU alone."""
    method = getattr(torch.Tensor, name)

    def call(*arguments):
        if Path(sys._getframe(1).f_code.co_filename).name != "cpu.py":
            found.append(name)
        return method(*arguments)

    return call


@pytest.fixture(autouse=True)
def on_the_gpu(monkeypatch):
    """Where there is one, unlike the other tests."""
    monkeypatch.delenv("ACCELERATE_USE_CPU")


@contextlib.contextmanager
def no_wait(device):
    """Fails if the host would wait within the block."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with Waits() as waits, pytest.MonkeyPatch.context() as patch:
            for name in ("tensor", "as_tensor"):
                patch.setattr(torch, name, lambda *_, name=name, **__: waits.found.append(name))
            for name in ("tolist", "cpu", "numpy"):
                patch.setattr(torch.Tensor, name, counted(name, waits.found))
            yield
        assert waits.found == []


def batch_of(kind):
    dataset = train_m3.M3Dataset(FILES, True, 0)
    samples = [dataset[1, index] for index in range(3)]
    if kind == "m3":
        return train_m3.collate(samples)
    texts = [np.arange(4, 4 + length) for length in (9, 30, 2)]
    return train_clamp2.PairBatch(
        [{"text": text, "music": sample["input"]} for text, sample in zip(texts, samples, strict=True)]
    )


def trainer(kind, folder):
    wrap, step = {
        "m3": (train_m3.Restoration, train_m3.step),
        "clamp2": (train_clamp2.PairFeatures, train_clamp2.step),
    }[kind]
    return a_run(folder, tiny_model(kind), wrap=wrap), step


def on(device, batch):
    return batch.pin_memory() if device.type == "cuda" else batch


@pytest.mark.parametrize("kind", ["m3", "clamp2"])
@pytest.mark.parametrize("micro_batch", [0, 2])
@pytest.mark.parametrize("norm", [0.0, 1.0])
@pytest.mark.parametrize("precision", ["auto", "float32"] if torch.cuda.is_available() else ["auto"])
def test_a_training_step(tmp_path, monkeypatch, kind, micro_batch, norm, precision):
    """With its copy to the device, backward, clipping, update, and what it reports; the second and third of a run."""
    monkeypatch.setattr(config, "CLAMP2_MICRO_BATCH", micro_batch)
    monkeypatch.setattr(config, "MAX_GRAD_NORM", norm)
    monkeypatch.setattr(config, "PRECISION", precision)
    run, step = trainer(kind, tmp_path)
    run.parallel.train()
    batches = [on(run.device, batch_of(kind)) for _ in range(3)]

    def one(batch):
        torch.manual_seed(1)
        return run._update(step(run, batch.to(run.device)))

    one(batches[0])
    with no_wait(run.device):
        reports = [one(batch) for batch in batches[1:]]
    losses = [report.read()[0] / report.read()[1] for report in reports]
    assert losses[0] > losses[1] > 0  # the same batch again


@pytest.mark.parametrize("kind", ["m3", "clamp2"])
def test_an_evaluation_step(tmp_path, kind):
    run, _ = trainer(kind, tmp_path)
    run.parallel.eval()
    batches = [on(run.device, batch_of(kind)) for _ in range(2)]
    with torch.no_grad():
        for number, batch in enumerate(batches):
            with no_wait(run.device) if number else contextlib.nullcontext():
                moved = batch.to(run.device)
                output = run.module(moved if kind == "m3" else moved.parts[0])
    assert all(torch.isfinite(x).all() for x in (output.loss if kind == "m3" else torch.stack(output))[None])


def test_the_batches_of_an_evaluation(tmp_path, monkeypatch):
    """Whether to stop is read when the next batch is asked for, from a copy that is on the host by then."""
    run, read = a_run(tmp_path), []

    class Loader(list):
        batch_sampler = loading.Batches(12, 3, run.processes, 0, False)

    class Copy(processes.OnItsWay):
        def read(self):
            read.append(len(seen))
            return super().read() if run.device.type == "cuda" else False

    monkeypatch.setattr(training, "OnItsWay", Copy)
    loader, seen = Loader({"batch": on(run.device, batch_of("m3")), "problems": []} for _ in range(4)), []
    with no_wait(run.device):
        for batch in run.evaluation_batches(loader):
            seen.append(batch)
    assert read == [1, 2, 3] and len(seen) == 4


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("what", ["music", "text"])
def test_a_pass_of_extraction(pooled, what):
    """A pass is begun while the host reads the features of the one before; only then it waits, for that one."""
    device = processes.Processes().device
    model = tiny_model("clamp2").eval().to(device)
    items = [np.full((5 + i, 64), 70, np.uint8) if what == "music" else np.arange(4, 14 + i) for i in range(3)]
    segments = [(embedding._Item(key, len(item), 512), item) for key, item in enumerate(items)]
    list(embedding._Pass(model, segments, pooled, torch.float32).finish())
    segments = [(embedding._Item(key, len(item), 512), item) for key, item in enumerate(items)]
    with no_wait(device):
        second = embedding._Pass(model, segments, pooled, torch.float32)
    features = dict(second.finish())
    assert list(features) == [0, 1, 2] and all(np.isfinite(feature).all() for feature in features.values())


def test_what_would_wait_is_counted():
    """The counter itself: each of these waits on a GPU."""
    x, mask = torch.arange(3.0, requires_grad=True), torch.tensor([True, False, True])
    waiting = {
        "a number": lambda: x.sum().item(),
        "a list": lambda: x.detach().tolist(),
        "a copy": lambda: x.detach().cpu(),
        "an array": lambda: x.detach().numpy(),
        "a branch": lambda: bool(x.sum() > 1),
        "a mask": lambda: x[mask],
        "its backward": lambda: x[mask].sum().backward(),
        "assignment": lambda: x.detach().clone().index_put_((mask,), torch.zeros(())),
        "places": lambda: mask.nonzero(),
        "a tensor of a list": lambda: torch.tensor([1.0, 2.0]),
    }
    unnoticed = []
    for name, action in waiting.items():
        with contextlib.suppress(AssertionError):
            with no_wait(torch.device("cpu")):
                action()
            unnoticed.append(name)
    assert unnoticed == []
    with no_wait(torch.device("cpu")):
        x.index_select(0, torch.zeros(1, dtype=torch.int64)) + x.new_full((), 1.0)


def test_the_padded_calls_are_the_packed_ones():
    model = tiny_model("clamp2").eval()
    patches, masks = torch.randint(4, 128, (2, 6, 64)), torch.arange(6) < torch.tensor([6, 4])[:, None]
    with torch.no_grad():
        padded = model.get_music_features(patches, masks, get_normalized=True)
        packed = model.features(packing.Packed.of([patches[0].numpy(), patches[1, :4].numpy()]), pooled=True)
    torch.testing.assert_close(padded, packed)
