"""The two extractors, through their real launchers, against the golden features."""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

import command_line
import extraction
import files
from files import InputError
from helpers import CODE, KIT, KIT_MODEL, free_port, run, run_ranks, run_script, write_config

VALUES = np.load(KIT / "values.npz")


def accelerate(count):
    """Several processes of `accelerate launch` need --multi_gpu where there are no GPUs: else it starts one."""
    words = f"--num_processes {count} --main_process_port {free_port()} --num_machines 1 --mixed_precision no"
    return ["-m", "accelerate.commands.launch", *words.split(), "--dynamo_backend", "no", "--multi_gpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The kit in two folders, with a.abc, a.mtf and a.txt beside each other."""
    folder = tmp_path_factory.mktemp("in")
    shutil.copytree(KIT / "interleaved", folder / "music")
    shutil.copytree(KIT / "mtf", folder / "music", dirs_exist_ok=True)
    shutil.copytree(KIT / "texts", folder / "words")
    for kind, name in (("interleaved", "tiny.abc"), ("mtf", "plain.mtf"), ("texts", "lines.txt")):
        shutil.copy(KIT / kind / name, folder / f"a{name[name.rindex('.') :]}")
    (folder / "notes.pdf").write_text("not ours")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "kit.py", **KIT_MODEL)


def feature_of(target, name):
    """The feature file that belongs to a file of the kit."""
    folder = "words" if name.endswith(".txt") else "music"
    return np.load(target / folder / (name.rsplit(".", 1)[0] + ".npy"))


def written(target):
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*.npy"))


def golden(prefix):
    """The files of the kit that there are golden features of."""
    names = [entry.removeprefix(prefix) for entry in VALUES if entry.startswith(prefix)]
    assert len(names) >= 8
    return names


def test_m3_features_and_a_bad_file_through_the_launcher(source, config, tmp_path):
    """`accelerate launch`, as in the user's document; test_cluster has it start the other extractor."""
    shutil.copytree(source, tmp_path / "in")
    (tmp_path / "in" / "bad.abc").write_bytes(b"K:C\n\xff\n")
    result = run(*accelerate(2), CODE / "extract_m3.py", tmp_path / "in", tmp_path / "out", config=config)
    assert result.returncode == 1
    told = result.stdout.splitlines()
    assert told[0].startswith("17 files, 2 x CPU, float32, ") and len(told) == 2  # rank 0 alone prints
    assert told[1].startswith("16 done, 0 skipped (they were there), 1 failed; 5 files of other types")
    ours = re.split(r"\n.*torch/distributed/elastic/", result.stderr)[0]
    assert ours.count("bad.abc: not UTF-8") == 1 and "Traceback" not in ours
    assert ours.endswith(
        "\nthe files named above failed, all others are done. What the launcher prints below means no more"
    )
    for name in golden("m3/"):
        feature, wanted = feature_of(tmp_path / "out", name), VALUES[f"m3/{name}"]
        assert feature.dtype == np.float32 and feature.shape == (1, *wanted.shape)
        np.testing.assert_allclose(feature[0], wanted, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def pooled(source, config, tmp_path_factory):
    """Pooled features made by one process."""
    target = tmp_path_factory.mktemp("pooled")
    result = run_script(CODE / "extract_clamp2.py", source, target, "--normalize", config=config)
    assert result.returncode == 0, result.stderr
    return target


def test_clamp2_pooled_features(pooled):
    for name in golden("clamp2_normalized/"):
        feature = feature_of(pooled, name)
        assert feature.dtype == np.float32 and feature.shape == (1, 48)
        np.testing.assert_allclose(feature[0], VALUES[f"clamp2_normalized/{name}"], atol=1e-4, rtol=0)


def test_files_of_one_name_do_not_overwrite_each_other(pooled):
    for name, entry in (("a.abc", "tiny.abc"), ("a.mtf", "plain.mtf"), ("a.txt", "lines.txt")):
        feature = np.load(pooled / f"{name}.npy")
        np.testing.assert_allclose(feature[0], VALUES[f"clamp2_normalized/{entry}"], atol=1e-4, rtol=0)


def test_several_processes_write_what_one_does(source, config, pooled, tmp_path):
    ranks = run_ranks(3, CODE / "extract_clamp2.py", source, tmp_path, "--normalize", config=config)
    assert [rank.returncode for rank in ranks] == [0, 0, 0], ranks
    told = ranks[0].stdout.splitlines()
    assert told[0].startswith("20 files, 3 x CPU, float32, ") and len(told) == 2
    assert told[1].startswith("20 done, 0 skipped")
    assert ranks[1].stdout == ranks[2].stdout == ""
    assert written(tmp_path) == written(pooled) and len(written(pooled)) == 20
    for name in written(pooled):
        np.testing.assert_allclose(np.load(tmp_path / name), np.load(pooled / name), atol=1e-5, rtol=0)


def test_temporal_features_resume_and_bad_files(source, config, tmp_path):
    folder, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(source, folder)
    (folder / "bad.abc").write_bytes(b"K:C\n\xff\n")
    (folder / "silent.mtf").write_text("ticks_per_beat 480\n")
    shutil.copy(KIT / "abc" / "duo.abc", folder / "standard.abc")
    os.close(os.open(os.fsencode(folder) + b"/\xff.mtf", os.O_CREAT))
    (folder / "empty.txt").touch()
    result = run_script(CODE / "extract_clamp2.py", folder, target, config=config)
    assert result.returncode == 1
    assert "20 done, 0 skipped (they were there), 5 failed" in result.stdout
    errors = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [error["file"] for error in errors] == ["bad.abc", "empty.txt", "silent.mtf", "standard.abc", "\udcff.mtf"]
    assert "standard.abc: not interleaved ABC" in errors[3]["error"]
    assert "bad.abc: not UTF-8" in errors[0]["error"] and errors[0]["error"] in result.stderr
    for name in golden("clamp2_temporal/"):
        feature, wanted = feature_of(target, name), VALUES[f"clamp2_temporal/{name}"]
        assert feature.shape == (1, *wanted.shape)
        np.testing.assert_allclose(feature[0], wanted, atol=1e-4, rtol=0)

    for name in ("bad.abc", "silent.mtf", "standard.abc", "empty.txt", "\udcff.mtf"):
        (folder / name).unlink()
    (target / "music" / "duo.npy").unlink()
    leftover = target / f".tmp-{socket.gethostname()[:64]}-999999999-00000000"
    leftover.touch()
    changed = folder / "words" / "lines.txt"
    changed.write_text("other words")
    later = (target / "words" / "lines.npy").stat().st_mtime + 1
    os.utime(changed, (later, later))
    result = run_script(CODE / "extract_clamp2.py", folder, target, config=config)
    assert result.returncode == 0, result.stderr
    assert "2 done, 18 skipped" in result.stdout
    assert np.load(target / "words" / "lines.npy").shape[1] < 38 and (target / "music" / "duo.npy").exists()
    assert not (tmp_path / "out.errors.jsonl").exists() and not leftover.exists()

    result = run_script(CODE / "extract_clamp2.py", folder, target, "--normalize", config=config)
    assert result.returncode == 2 and "holds features of form temporal, and not of form --normalize" in result.stderr


def test_the_output_folder_holds_features_and_nothing_else(source, config, tmp_path):
    """What programs do with it. Two extractions into two folders of one parent do not disturb each other."""
    flat = tmp_path / "in"
    shutil.copytree(KIT / "interleaved", flat)
    (flat / "bad.abc").write_bytes(b"\xff")
    for name, options in (("temporal", []), ("pooled", ["--normalize"])):
        for status in (1, 1):  # the second start finds it all done but the bad file
            out = tmp_path / "features" / name
            result = run_script(CODE / "extract_clamp2.py", flat, out, *options, config=config)
            assert result.returncode == status, result.stderr
    for name, width in (("temporal", 64), ("pooled", 48)):
        out = tmp_path / "features" / name
        features = [np.load(os.path.join(out, file))[0] for file in os.listdir(out)]
        assert len(features) == 9 and all(feature.shape[-1] == width for feature in features)
        noted = json.loads((tmp_path / "features" / f"{name}.extraction.json").read_text())
        assert noted["form"] == ("--normalize" if name == "pooled" else "temporal")
        assert json.loads((tmp_path / "features" / f"{name}.errors.jsonl").read_text())["file"] == "bad.abc"
    kinds = ("extraction.json", "errors.jsonl", "sources.jsonl")
    beside = {f"{name}.{kind}" for name in ("temporal", "pooled") for kind in kinds}
    assert set(os.listdir(tmp_path / "features")) == {"temporal", "pooled", *beside}


@pytest.mark.parametrize("ending", ["", "/", "/.", "/sub/.."])
def test_what_stands_beside_a_folder_has_its_name(tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("out")
    for name in ("out", "link", str(tmp_path / "out")):
        assert extraction.beside(Path(name + ending), ".errors.jsonl") == tmp_path / "out.errors.jsonl"
    monkeypatch.chdir(tmp_path / "out")
    assert extraction.beside(Path("."), ".errors.jsonl") == tmp_path / "out.errors.jsonl"
    with pytest.raises(InputError, match="/: name an output folder below it"):
        extraction.beside(Path("/"), ".errors.jsonl")


def test_a_folder_beside_which_nothing_can_be_written(tmp_path, monkeypatch):
    """Such as a mount point in a folder of the system."""
    (tmp_path / "weights.pth").touch()
    real = extraction.atomic_write

    def refused(path, *arguments, **options):
        if path.parent == tmp_path:
            raise OSError(30, "Read-only file system", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(extraction, "atomic_write", refused)
    problem = r"mount\.extraction\.json: Read-only file system; .*, such as .*/mount/features"
    with pytest.raises(InputError, match=problem):
        extraction.prepare_target(tmp_path / "mount", tmp_path / "weights.pth", True)
    extraction.prepare_target(tmp_path / "mount" / "features", tmp_path / "weights.pth", True)
    assert (tmp_path / "mount" / "features.extraction.json").exists()


def test_reading_ahead_changes_nothing(source, tmp_path):
    """Enough files for workers to read them, a few of them bad."""
    folder = tmp_path / "in"
    for number in range(5):
        shutil.copytree(source, folder / str(number))
    for number in (0, 15, 16, 80):
        (folder / f"bad{number}.txt").touch()
    told = []
    for workers in (0, 2):
        config = write_config(tmp_path / "config.py", **KIT_MODEL, NUM_WORKERS=workers, EXTRACT_BATCH_TOKENS=512)
        result = run_script(CODE / "extract_clamp2.py", folder, tmp_path / str(workers), "--normalize", config=config)
        assert result.returncode == 1 and "100 done, 0 skipped (they were there), 4 failed" in result.stdout
        told.append((tmp_path / f"{workers}.errors.jsonl").read_text())
    assert told[0] == told[1]
    assert written(tmp_path / "0") == written(tmp_path / "2")
    for name in written(tmp_path / "0"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_one_process_of_accelerate_explains_the_traceback_of_the_launcher(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.abc").touch()
    command = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", CODE / "extract_m3.py"]
    config = write_config(tmp_path / "kit.py", **KIT_MODEL)
    for folder, reason in (("in", "empty.abc: the file is empty\nthe files named above failed, all others are done. "), ("no", "no such file or folder\n")):  # fmt: skip
        done = run("-m", *command, tmp_path / folder, tmp_path / "out", config=config)
        ours, traceback, _ = done.stderr.partition("Traceback (most recent call last)")
        assert done.returncode == 1 and traceback
        assert ours.endswith(f"{reason}What the launcher prints below means no more\n"), done.stderr
        alone = run_script(CODE / "extract_m3.py", tmp_path / folder, tmp_path / "out", config=config)
        assert "launcher" not in alone.stderr


@pytest.mark.parametrize("script", ["train_m3.py", "train_clamp2.py", "extract_m3.py", "extract_clamp2.py"])
@pytest.mark.parametrize("rank", ["", "0", "1"])
def test_ctrl_c_during_the_imports_takes_one_line(tmp_path, script, rank):
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n")
    job = {"RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"} if rank else {}
    folders = ("in", "out") if script.startswith("extract") else ()
    done = run(CODE / script, *folders, PYTHONPATH=str(tmp_path), **job)
    note = "" if not rank else ". What the launcher prints below means no more"
    line = "" if rank == "1" else f"interrupted before anything was begun{note}\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", line)


COMMANDS = "classify demo evaluate find_twins paper_results plot semantic_search linear_probe convert_checkpoint"


@pytest.mark.parametrize("command", COMMANDS.split())
def test_ctrl_c_during_the_imports_of_a_command(tmp_path, command):
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n")
    arguments = {"linear_probe": ["train", "in"], "convert_checkpoint": ["in", "out"]}.get(command, [])
    done = run(CODE / f"{command}.py", *arguments, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted before anything was begun\n")


def test_ctrl_c_after_the_imports_ends_a_command_in_order(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command"])
    before = signal.getsignal(signal.SIGINT)
    try:
        command_line.begin()
        parser = argparse.ArgumentParser()
        parser.set_defaults(run=lambda args: signal.raise_signal(signal.SIGINT))
        assert files.run_command(parser, []) == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("script", "make", "changes", "problem"),
    [
        ("extract_m3.py", None, {}, "in: no such file or folder"),
        ("extract_m3.py", "notes.txt", {}, "there is no .abc or .mtf file in it"),
        ("extract_m3.py", "a.abc", {"M3_WEIGHTS_PATH": "/no/such.pth"}, "/no/such.pth: there are no such weights"),
        ("extract_m3.py", "a.abc", {"M3_HIDDEN_SIZE": 128}, "kit.py: M3_HIDDEN_SIZE = 128, these weights have 64"),
        (
            "extract_clamp2.py",
            "a.txt",
            {"CLAMP2_WEIGHTS_PATH": KIT_MODEL["M3_WEIGHTS_PATH"]},
            "these weights are of another model",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, script, make, changes, problem):
    if make:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / make).write_text("K:C\n[V:1]AB|\n")
    config = write_config(tmp_path / "kit.py", **(KIT_MODEL | changes))
    result = run_script(CODE / script, tmp_path / "in", tmp_path / "out", config=config)
    assert result.returncode == 2
    told = result.stderr.splitlines()[-1]
    assert told.startswith("error: ") and problem in told and "Traceback" not in result.stderr
