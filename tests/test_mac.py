"""Without what only Linux has: the scripts as on a Mac (see mac/sitecustomize.py), and GPUs without float64.

No Mac takes part: what a Mac has, and Linux has not, such as its GPU, is not tried.
"""

import ast
import contextlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import config
import files
import processes
import train_clamp2
import train_m3
from files import InputError
from helpers import CODE, KIT, KIT_MODEL, ROOT, run_script, write_config
from loading import ignore_interrupts, make_loader
from test_loading import Numbers
from test_training import clamp2_config, m3_config
from test_waits import batch_of, trainer

MAC = ROOT / "tests" / "mac"
NO_MEMORY, NO_TIME = (f"warning: this system cannot limit the {what} that a file takes" for what in ("memory", "time"))


def on_a_mac(script, *arguments, status=0, **options):
    """Runs a script as on a Mac."""
    done = run_script(MAC / "sitecustomize.py", script, *arguments, PYTHONPATH=str(MAC), **options)
    assert done.returncode == status, done.stderr
    return done


SCRIPTS = [
    path
    for folder in (CODE, ROOT / "process_data")
    for path in sorted(folder.glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help(script):
    assert "usage: " in on_a_mac(script, "--help").stdout


@pytest.mark.parametrize(("bare", "warnings"), [("", [NO_MEMORY]), ("1", [NO_MEMORY, NO_TIME])])
def test_a_conversion(tmp_path, bare, warnings):
    """It names once, not for each worker or file, the limits that do not hold."""
    done = on_a_mac(ROOT / "process_data" / "batch_midi2mtf.py", KIT / "midi", tmp_path, "--workers", "2", BARE=bare)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.mtf")} == {
        path.name: path.read_bytes() for path in (KIT / "mtf").iterdir()
    }
    lines = done.stderr.replace("\r", "\n").splitlines()
    assert sorted(line for line in lines if "limit" in line) == sorted(warnings)


def test_no_warning_where_all_limits_hold(tmp_path):
    done = run_script(ROOT / "process_data" / "batch_midi2mtf.py", KIT / "midi", tmp_path, "--workers", "1")
    assert done.returncode == 0 and "warning:" not in done.stderr


def test_time_is_limited_where_memory_is_not(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("work 30")
    script = ROOT / "tests" / "batch_script.py"
    done = on_a_mac(script, tmp_path / "in", tmp_path / "out", "--timeout", "0.2", status=1)
    assert "took over 0.2 s of CPU time" in (tmp_path / "out" / "errors.jsonl").read_text()
    assert NO_MEMORY in done.stderr


def test_trainings_and_extraction(tmp_path):
    (tmp_path / "m3").mkdir()
    on_a_mac(CODE / "train_m3.py", config=m3_config(tmp_path / "m3", M3_NUM_EPOCH=1, NUM_WORKERS=0))
    on_a_mac(CODE / "train_clamp2.py", config=clamp2_config(tmp_path, CLAMP2_NUM_EPOCH=1, NUM_WORKERS=0))
    settings = write_config(tmp_path / "kit.py", **KIT_MODEL)
    done = on_a_mac(CODE / "extract_clamp2.py", KIT / "interleaved", tmp_path / "features", config=settings)
    assert "9 files, 1 x CPU, float32" in done.stdout and len([*(tmp_path / "features").glob("*.npy")]) == 9


def test_search(tmp_path):
    """It reads pieces in workers with the limits of a conversion."""
    settings = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    on_a_mac(
        CODE / "semantic_search.py", "search", "a jig", KIT / "midi", "--json", tmp_path / "hits.json", config=settings
    )
    assert len(json.loads((tmp_path / "hits.json").read_text())["hits"]) == 5


def test_processes_that_run_without_proc(monkeypatch):
    """A process that has ended is known to have; a zombie is not, so that its temporary file stays."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie until it is waited for
    assert not files._is_running(ended.pid)

    def missing(path, *_, **__):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "read_text", missing)
    assert files._is_running(ended.pid) and files._is_running(os.getpid())
    ended.wait()
    assert not files._is_running(ended.pid)


# Loader workers: a Mac starts them anew, and sends them what a fork would have shared


@pytest.mark.parametrize("kind", ["m3", "clamp2"])
def test_what_workers_are_sent(tmp_path, kind):
    """A dataset arrives with the same pieces."""
    if kind == "m3":
        dataset, collate = (
            train_m3.M3Dataset([str(path) for path in (KIT / "mtf").iterdir()], True, 0),
            train_m3.collate,
        )
    else:
        records = train_clamp2.open_jsonl("TRAIN_JSONL", str(KIT / "pieces.jsonl"))
        dataset = train_clamp2.CLaMP2Dataset(records, range(len(records)), tokenizer(), True, 0)
        collate = train_clamp2.PairBatch
    loader = make_loader(dataset, 2, processes.Processes(0, 0, 1), collate)
    sent = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
    assert sent[2] is ignore_interrupts
    ours, theirs = (make([data[1, 0], data[1, 1]]) for data, make in ((dataset, loader.collate_fn), sent[:2]))
    assert ours["names"] == theirs["names"]
    blocks = []
    for batch in (ours["batch"], theirs["batch"]):
        tensors = []
        batch._each(lambda tensor, into=tensors: into.append(tensor) or tensor)
        blocks.append(tensors)
    assert len(blocks[0]) > 5 and all(map(torch.equal, *blocks))


def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(KIT / "tiny-xlmr")


# Accelerators


class NoDoubles(TorchDispatchMode):
    """Raises TypeError for a tensor of float64, as a Mac's GPU does."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return made


@pytest.mark.parametrize("kind", ["m3", "clamp2"])
def test_no_float64_on_the_gpu_of_a_mac(tmp_path, monkeypatch, kind):
    """Neither a training step nor an evaluation needs it; a step's numbers are those of float64."""
    monkeypatch.setattr(config, "MAX_GRAD_NORM", 1.0)
    numbers = []
    for dtype in (torch.float64, processes.sum_dtype(torch.device("mps"))):
        run, step = trainer(kind, tmp_path)
        assert run.sum_dtype == torch.float64  # on the CPU
        run.sum_dtype = dtype
        run.parallel.eval()
        batch = batch_of(kind).to(run.device)
        with NoDoubles() if numbers else contextlib.nullcontext():
            numbers.append(run._update(step(run, batch)).read().tolist())
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    if kind == "m3":
        loader = make_loader(Numbers(False, 0), 4, run.processes, lambda samples: batch_of(kind))
        with NoDoubles(), torch.no_grad():
            assert train_m3.evaluate(run, loader) > 0


def test_copies_are_waited_for_where_they_may_be_incomplete(monkeypatch):
    """Without pinned memory and CUDA's events, a copy that the host does not wait for may be read too early."""
    asked, to = [], torch.Tensor.to

    def note(tensor, *arguments, **options):
        asked.append(options["non_blocking"])
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", note)
    batch_of("m3").to(torch.device("cpu"))
    processes.OnItsWay(torch.ones(2)).read()
    assert asked == [False, False]


@pytest.mark.parametrize(("kind", "pins"), [("cpu", False), ("mps", False), ("xpu", False), ("cuda", True)])
def test_what_a_loader_pins(monkeypatch, kind, pins):
    monkeypatch.setattr(processes.Processes, "device", torch.device(kind))
    loader = make_loader(Numbers(False, 0), 2, processes.Processes(0, 0, 1), lambda samples: samples)
    assert loader.pin_memory == pins


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("xpu", "xccl"), ("cpu", "gloo")])
def test_processes_and_their_gpus(monkeypatch, kind, backend):
    """Each takes the GPU of its number, if there are as many; they talk through what the kind of GPU has for it."""
    taken, joined = [], []
    monkeypatch.setattr(processes.Processes, "device", torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", taken.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    processes.Processes(1, 1, 2).start(processes.join_group)
    assert (taken, joined) == ([] if kind == "cpu" else [1], [backend])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    if kind != "cpu":
        with pytest.raises(InputError, match="3 processes need as many GPUs, and there are 2"):
            processes.Processes(1, 1, 3).start(processes.join_group)


def test_the_name_of_a_device(monkeypatch):
    assert processes.Processes(0, 0, 1).device_name == "CPU"
    monkeypatch.setattr(processes.Processes, "device", torch.device("mps", 0))
    assert processes.Processes(0, 0, 1).device_name == "MPS"
    monkeypatch.setattr(processes.Processes, "device", torch.device("xpu", 1))
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: f"card {device.index}")
    assert processes.Processes(0, 0, 1).device_name == "card 1"


def test_only_one_place_chooses_the_device():
    """Only processes.py asks what accelerator there is."""
    asking = [
        path.name
        for path in sorted([*CODE.glob("*.py"), *(ROOT / "process_data").glob("*.py")])
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (node.attr in ("current_accelerator", "device_count") or ast.unparse(node) == "torch.cuda.is_available")
    ]
    assert set(asking) == {"processes.py"}
