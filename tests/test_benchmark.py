"""The benchmark for GPUs at its tiny size, and what a fault in one of its stages costs."""

import json
import os
import shutil
import time

import pytest
import torch

import config
import gpu
import works
from helpers import KIT, ROOT, run_script


@pytest.fixture
def music(tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    for name in ("interleaved/duo.abc", "interleaved/solo_jig.abc", "interleaved/tiny.abc", "mtf/one_track.mtf"):
        shutil.copy(KIT / name, folder)
    return folder


def test_stages_at_the_tiny_size(music, tmp_path):
    """Both forms compute the same, every way to attend that runs here is right, and nothing fails."""
    stages = ("ceilings", "attention", "steps", "extraction")
    done = run_script(ROOT / "tests/benchmark.py", "--gpu", music, "--stages", *stages, "--json", tmp_path / "gpu.json")
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert not [key for stage in stages for key in results[stage] if key in ("ended", "exit status") or "failed" in key]
    assert set(results["ceilings"]) > {"bfloat16", "float32", "tf32", "copy"}
    rows = {name: row for name, row in results["attention"].items() if isinstance(row, dict)}
    for case in ("encoder, 16", "encoder, 128", "decoder, 3000", "text, 128"):
        assert {f"present {case} float32 0.0", f"padded, flash {case} float32 0.0"} <= rows.keys()
    for name, row in rows.items():
        errors = [float(error) for error in row["errors"].split()]
        assert len(errors) == (0 if name.endswith("0.1") else 4), name
        assert all(error < (1e-5 if "float32" in name else 2e-2) for error in errors), (name, errors)
    for work in ("m3_step", "clamp2_step"):
        assert results["steps"][f"{work} ours"]["tokens"] == results["steps"][f"{work} plain"]["tokens"]
        assert results["steps"][f"{work} loss difference"] < 1e-2
        assert results["steps"][f"{work} profile"]["kernels"]
    assert results["extraction"]["extract_clamp2 text float32 ours 4096"]["pieces/s"] > 0


def test_a_fault_costs_its_stage_alone(music, tmp_path, monkeypatch):
    def first(bench):
        bench.report("before", 1)
        raise ValueError("broken")

    def second(bench):
        bench.report("before", 2)
        os._exit(7)

    def third(bench):
        bench.report("before", 3)
        time.sleep(60)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "STAGES", {"first": 10, "second": 10, "third": 0.3, "fourth": 10, "fifth": 10})
    monkeypatch.setattr(gpu, "GRACE", 0)
    for name, stage in {"first": first, "second": second, "third": third, "fourth": lambda b: b.report("x", 4)}.items():
        monkeypatch.setattr(gpu, name, stage, raising=False)
    results = gpu.run(music, 1, ["first", "second", "third", "fourth"], tmp_path / "gpu.json")
    assert json.loads((tmp_path / "gpu.json").read_text()) == results
    found = [
        {k: v for k, v in results[name].items() if k != "seconds"} for name in ("first", "second", "third", "fourth")
    ]
    assert found == [
        {"before": 1, "first failed": "ValueError: broken"},
        {"before": 2, "exit status": 7},
        {"before": 3, "ended": True, "exit status": -9},
        {"x": 4},
    ]


def test_what_the_time_does_not_suffice_for_is_named(music, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.run(music, 0.1, ["ceilings", "tests"])["tests"] == {"skipped": True}
    assert "tests: skipped" in capsys.readouterr().out


def test_operations_are_those_of_the_products(monkeypatch):
    """A layer: 4 products with hidden x hidden weights, 2 with hidden x 4 hidden, and two of attention."""
    monkeypatch.setattr(config, "M3_HIDDEN_SIZE", 64)
    layer = [3 * 2 * 64 * 64 * (4 + 2 * 4) + 2 * (2 * 64 * 3 * 3), 5 * 2 * 64 * 64 * (4 + 2 * 4) + 2 * (2 * 64 * 5 * 5)]
    assert works.products([3, 5], 2) == 2 * sum(layer)
    causal = 5 * 2 * 64 * 64 * (4 + 2 * 4) + 2 * 64 * 5 * 5
    assert works.products([5], 3, True) == 3 * causal + 5 * 2 * 64 * 128
