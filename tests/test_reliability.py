"""Long runs survive: full disks, lost processes, bad and hostile files. Through the real scripts; see also test_kills.py.

CLAMP2_ALL=1 python -m pytest tests/test_reliability.py                      also what takes minutes
"""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import corpus
import jobs
import linear_probe
from checkpoints import load_checkpoint, save_checkpoint
from corpus import BAD, GOOD
from features import read as read_feature
from files import InputError, list_files, output_names, printable, remove_leftovers
from helpers import CODE, KIT, KIT_MODEL, ROOT, assert_time_is_linear, environment, run_ranks, run_script, write_config
from loading import Paths
from patches import remove_instrument_info
from test_training import TORCHRUN, epochs, m3_config, state

SCRIPTS = ROOT / "process_data"
SLOW = () if "CLAMP2_ALL" in os.environ else ("million_", "one_word_of_1_mb.txt", "line_of_5_mb.txt")  # for a model
STEERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # what steers a terminal


def run(script, *arguments, config=None, kill_after=None):
    result = run_script(script, *arguments, config=config, kill_after=kill_after, OPENAI_API_KEY="any-key")
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    assert not STEERS.search(result.stdout + result.stderr)
    return result


def json_lines(path: Path, key: str = "error") -> dict[str, str]:
    lines = path.read_text("utf-8").split("\n") if path.exists() else []
    return {entry["file"]: entry[key] for entry in map(json.loads, filter(None, lines)) if key in entry}


def tree(folder: Path) -> dict[str, bytes]:
    """The contents of all files; temporary ones stand out by their names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- bad files ------------------------------------------------------------------------------------------------------
def assert_accounted_for(verdicts: dict[str, str], done: set[str], failed: dict[str, str]) -> None:
    """Every file is done, or named with a reason; the good ones are done, and the bad ones are not."""
    assert done | failed.keys() == verdicts.keys() and not done & failed.keys()
    assert all(reason.strip() for reason in failed.values())
    assert {name for name, verdict in verdicts.items() if verdict == GOOD} <= done
    assert {name for name, verdict in verdicts.items() if verdict == BAD} <= failed.keys()
    assert len(failed) > 10


def test_the_corpus_is_large_enough():
    assert sum(len(corpus.corpus(suffix)) for suffix in (".abc", ".mtf", ".mid", ".xml", ".json", ".txt")) > 200


@pytest.mark.parametrize(
    ("script", "suffix", "target"),
    [
        ("batch_interleaved_abc", ".abc", ".abc"),
        ("batch_midi2mtf", ".mid", ".mtf"),
        ("batch_mtf2midi", ".mtf", ".mid"),
        ("batch_xml2abc", ".xml", ".abc"),
        ("batch_abc2xml", ".abc", ".musicxml"),
    ],
)
def test_bad_files_cost_a_conversion_themselves_alone(tmp_path, script, suffix, target):
    source, out = tmp_path / "in", tmp_path / "out"
    verdicts = corpus.write(source, suffix)
    result = run(SCRIPTS / f"{script}.py", source, out, "--workers", 2, "--timeout", 3)
    assert result.returncode == 1, result.stderr
    failed = json_lines(out / "errors.jsonl")
    suffixes = (".xml", ".musicxml", ".mxl") if suffix == ".xml" else (suffix,)
    batch = jobs.Jobs(source, out, suffixes, target, (1, 1), script in ("batch_interleaved_abc", "batch_abc2xml"))
    assert_accounted_for(verdicts, {job.name for job in batch if job.outputs()}, failed)
    assert f"{len(verdicts) - len(failed)} done, 0 skipped (finished before), {len(failed)} failed" in result.stdout
    assert not [name for name in tree(out) if ".tmp" in name]
    assert not list(tmp_path.rglob("outside.xml")) and not list(Path("/tmp").glob("outside.xml"))
    assert not list(tmp_path.rglob("pwned")) and not Path("/pwned").exists()
    assert b"root:" not in b"".join(tree(out).values())


def test_bad_records_are_left_out_and_named(tmp_path):
    verdicts = corpus.write(tmp_path / "in", ".json")
    (tmp_path / "good.abc").write_text("K:C\nA|\n")
    result = run(SCRIPTS / "merge_jsonl.py", tmp_path / "in", tmp_path / "all.jsonl")
    assert result.returncode == 1, result.stderr
    failed = json_lines(tmp_path / "all.left_out.jsonl")
    assert_accounted_for(verdicts, verdicts.keys() - failed.keys(), failed)
    records = [json.loads(line) for line in (tmp_path / "all.jsonl").read_bytes().splitlines()]
    assert len(records) == len(verdicts) - len(failed)
    assert {path for record in records for path in record["filepaths"]} == {"good.abc"}

    result = run(SCRIPTS / "gpt4_summarize.py", tmp_path / "in", tmp_path / "out", "--dry_run")
    assert result.returncode == 1, result.stderr
    named = {name for name in verdicts if f"--- {printable(name)}: cannot" in result.stdout}
    asked = {name for name in verdicts if f"--- {printable(name)}\n" in result.stdout}
    assert named | asked == verdicts.keys() and not named & asked
    assert {name for name, verdict in verdicts.items() if verdict == BAD} <= named
    assert {name for name, verdict in verdicts.items() if verdict == GOOD} <= asked


def music_and_texts(folder: Path, suffixes: tuple[str, ...], slow: tuple[str, ...] = SLOW) -> dict[str, str]:
    verdicts = {}
    for suffix in suffixes:
        for name, verdict in corpus.write(folder / suffix[1:], suffix).items():
            if name.startswith(slow):
                (folder / suffix[1:] / name).unlink()
                continue
            verdicts[f"{suffix[1:]}/{name}"] = verdict
            if suffix == ".abc":
                mark_as_interleaved(folder / suffix[1:] / name)
    return verdicts


def mark_as_interleaved(path: Path) -> None:
    """Else extraction and training refuse the file, whatever else is wrong with it."""
    if path.is_file() and path.stat().st_size < 20_000_000:
        text = re.sub(rb"^X:.*\n", b"", path.read_bytes(), flags=re.MULTILINE)
        path.write_bytes(re.sub(rb"^(K:.*\n)", rb"\1[V:1]", text, flags=re.MULTILINE))


@pytest.mark.parametrize(("script", "suffixes"), [("extract_m3", (".abc", ".mtf")), ("extract_clamp2", (".txt",))])
def test_bad_files_cost_an_extraction_themselves_alone(tmp_path, script, suffixes):
    source, out = tmp_path / "in", tmp_path / "out"
    verdicts = music_and_texts(source, suffixes)
    long = corpus.LONG_NAME + "n" * 4
    for name in (f"{long}{suffixes[0]}", f"{long}{suffixes[0].upper()}"):  # their outputs need a longer name
        (source / name).write_bytes(corpus.PLAIN[suffixes[0]])
        mark_as_interleaved(source / name)
        verdicts[name] = BAD
    result = run(CODE / f"{script}.py", source, out, config=write_config(tmp_path / "kit.py", **KIT_MODEL))
    assert result.returncode == 1, result.stderr
    failed = json_lines(tmp_path / "out.errors.jsonl")
    names = output_names(list_files(source, suffixes)[0], ".npy")
    done = {path.as_posix() for path, name in names.items() if os.path.exists(out / name)}
    assert_accounted_for(verdicts, done, failed)
    for path in done:
        read_feature(out / names[Path(path)])
    assert "is too long" in failed[f"{long}{suffixes[0]}"]


def test_bad_files_cost_a_search_themselves_alone(tmp_path):
    verdicts = music_and_texts(tmp_path / "in", (".mid", ".txt"))
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    told = tmp_path / "told.json"
    search = ("search", "A slow waltz.", tmp_path / "in", "--top_k", 1000, "--json", told)
    result = run(CODE / "semantic_search.py", *search, config=config)
    assert result.returncode == 1, result.stderr
    answer = json.loads(told.read_text("utf-8"))
    root = f"{tmp_path}/in/"
    failed = dict(line.removeprefix(root).split(": ", 1) for line in answer["skipped"][str(tmp_path / "in")])
    assert_accounted_for(verdicts, {hit["name"] for hit in answer["hits"]}, failed)


def test_bad_pieces_do_not_stop_a_training(tmp_path):
    verdicts = music_and_texts(tmp_path / "in", (".abc", ".mtf"), ())
    folder = str(tmp_path / "in")
    changes = {"TRAIN_FOLDERS": [folder], "EVAL_FOLDERS": [folder], "M3_NUM_EPOCH": 1, "M3_BATCH_SIZE": 10}
    result = run(CODE / "train_m3.py", config=m3_config(tmp_path, **changes))
    assert result.returncode == 0, result.stderr
    bad = re.findall(rf"^bad piece: {re.escape(folder)}/((?:.|\n)*?): ", (tmp_path / "logs_m3.txt").read_text(), re.M)
    assert len(bad) > 20 and not {name for name, verdict in verdicts.items() if verdict == GOOD} & set(bad)
    assert {name for name, verdict in verdicts.items() if verdict == BAD} <= set(bad)


def test_names_of_voices_are_found_in_time_that_grows_with_the_text():
    def work(size):
        spaces = " " * size
        assert remove_instrument_info(f'V:1 nm="a"{spaces}\nA|') == f"V:1{spaces}\nA|"

    assert_time_is_linear(work, 2000)


def test_one_long_path_does_not_make_all_others_long():
    names = ["/a/" + "n" * 4000, *(f"/a/\udcff{number}.abc" for number in range(1000)), "/z"]
    paths = Paths(names)
    assert [str(paths[index]) for index in range(len(paths))] == names
    assert len(pickle.dumps(paths)) < 40_000


# --- full disks -----------------------------------------------------------------------------------------------------
LIMITED = """import resource, runpy, sys
limit, sys.argv = int(sys.argv[1]), sys.argv[2:]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as a full disk: what goes beyond is not written
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    limited = tmp_path / "limited.py"
    limited.write_text(LIMITED)
    assert run(CODE / "train_m3.py", config=m3_config(tmp_path, M3_NUM_EPOCH=1)).returncode == 0
    before = tree(tmp_path)
    config = m3_config(tmp_path, M3_NUM_EPOCH=3, NUM_WORKERS=0)
    result = run(limited, 100_000, CODE / "train_m3.py", config=config)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: .*weights_m3\.pth: cannot be written \(.*\); is the disk full\?.*", result.stderr.splitlines()[-1]
    ), result.stderr
    after = tree(tmp_path)
    weights = [name for name in before if name.endswith(".pth")]
    assert len(weights) == 2 and all(before[name] == after[name] for name in weights)
    assert not [name for name in after if ".tmp-" in name]
    assert run(CODE / "train_m3.py", config=config).returncode == 0
    assert state(tmp_path, "m3")["epoch"] == 4


def test_a_full_disk_ends_an_extraction_in_one_line(tmp_path):
    limited = tmp_path / "limited.py"
    limited.write_text(LIMITED)
    config = write_config(tmp_path / "kit.py", **KIT_MODEL)
    source = KIT / "interleaved" / "octet.abc"
    result = run(limited, 2000, CODE / "extract_m3.py", source, tmp_path / "out", config=config)
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*\.npy: \d+ requested and \d+ written", result.stderr.splitlines()[-1]), result.stderr
    assert not list((tmp_path / "out").rglob("*.npy")) and not list((tmp_path / "out").rglob(".tmp-*"))


def test_a_full_disk_ends_every_process_of_an_extraction_in_one_line_and_it_continues(tmp_path):
    """Some features fit, and one of each process does not."""
    source, out, limited = tmp_path / "in", tmp_path / "out", tmp_path / "limited.py"
    limited.write_text(LIMITED)
    source.mkdir()
    for number in range(18):
        bars = 200 if number >= 15 else 1
        (source / f"{number:02}.abc").write_text("K:C\n[V:1]" + "A8|" * bars + "\n")
    config = write_config(tmp_path / "kit.py", **KIT_MODEL)
    ranks = run_ranks(3, limited, 10_000, CODE / "extract_m3.py", source, out, config=config)
    assert [rank.returncode for rank in ranks] == [2, 2, 2], ranks
    for rank, number in zip(ranks, (15, 16, 17), strict=True):
        place = rf"\(rank {number - 15} on .+\)"
        told = [line for line in rank.stderr.splitlines() if "error" in line.lower()]
        assert len(told) == 1 and "Traceback" not in rank.stderr, rank.stderr
        assert re.fullmatch(rf"error {place}: .*/{number}\.npy: \d+ requested and \d+ written", told[0]), told
    before = {path.name: read_feature(path).shape[1] for path in out.rglob("*.npy")}
    assert before and set(before.values()) == {4} and not list(tmp_path.rglob(".tmp-*"))
    ranks = run_ranks(3, CODE / "extract_m3.py", source, out, config=config)
    assert f"{18 - len(before)} done, {len(before)} skipped (they were there), 0 failed" in ranks[0].stdout, ranks
    assert {read_feature(out / f"{number}.npy").shape[1] for number in (15, 16, 17)} == {203}


def test_a_full_disk_ends_a_conversion_in_one_line_and_it_continues(tmp_path):
    """The logs and the record of what is done cannot be written either."""
    source, out, limited = tmp_path / "in", tmp_path / "out", tmp_path / "limited.py"
    limited.write_text(LIMITED)
    source.mkdir()
    for number in range(9):
        shutil.copy(KIT / "mtf" / "plain.mtf", source / f"{number}.mtf")
    words = (SCRIPTS / "batch_mtf2midi.py", source, out, "--workers", 1)
    result = run(limited, 1000, *words)
    assert result.returncode == 2
    [told] = [line for line in result.stderr.splitlines() if "error" in line]
    assert re.fullmatch(r"error: .*/\.sources\.mid\.jsonl: .*; the same command goes on from here", told), told
    done = len(list(out.glob("*.mid")))
    assert 0 < done < 9 and not list(out.glob(".tmp-*"))
    result = run(*words)
    again, skipped = map(int, re.match(r"(\d+) done, (\d+) skipped", result.stdout).groups())
    assert result.returncode == 0 and again + skipped == 9 and 0 < skipped <= done
    assert len({path.read_bytes() for path in out.glob("*.mid")}) == 1 and len(list(out.glob("*.mid"))) == 9


def test_what_a_killed_process_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    import files

    left = tmp_path / f"{files._TEMPORARY}{process.pid}-0"
    ours = tmp_path / f"{files._TEMPORARY}{os.getpid()}-0"
    below = tmp_path / "below" / left.name
    below.parent.mkdir()
    for path in (left, ours, below):
        path.touch()
    remove_leftovers(tmp_path, below=False)
    assert not left.exists() and ours.exists() and below.exists()
    remove_leftovers(tmp_path)
    assert not below.exists() and ours.exists()


# --- several processes ----------------------------------------------------------------------------------------------
def workers_of(launcher: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"train_m3.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(condition, process: subprocess.Popen, told: Path) -> None:
    """Waits until it is so. If the job ends, or does not get there, the test fails with what every process was doing."""
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            for worker in workers_of(process) if process.poll() is None else []:
                os.kill(worker, signal.SIGABRT)  # Python's faulthandler writes down where each thread is
            time.sleep(2)
            pytest.fail(f"exit status {process.poll()}\n{told.read_text()[-8000:]}")
        time.sleep(0.02)


@pytest.mark.timeout(900)
def test_a_lost_process_ends_the_job_or_torchrun_goes_on_from_the_last_save(tmp_path):
    """One of two ranks is killed: the first time the job is started again by torchrun, the second time it ends."""
    config = m3_config(tmp_path, M3_NUM_EPOCH=100_000, M3_BATCH_SIZE=2, SAVE_EVERY_STEPS=1)
    command = [sys.executable, *TORCHRUN, "--max-restarts=1", CODE / "train_m3.py"]
    latest, log, told = tmp_path / "latest_weights_m3.pth", tmp_path / "logs_m3.txt", tmp_path / "told"
    with open(told, "w") as output:
        env = environment(config, PYTHONFAULTHANDLER="1")
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
        try:
            wait_for(latest.exists, process, told)
            first = workers_of(process)
            assert len(first) == 2
            os.kill(first[1], signal.SIGKILL)
            wait_for(lambda: "latest_weights_m3.pth, epoch" in log.read_text(), process, told)
            count = len(epochs(tmp_path, "m3"))
            wait_for(lambda: len(epochs(tmp_path, "m3")) > count, process, told)
            second = workers_of(process)
            assert len(second) == 2 and not set(first) & set(second)
            os.kill(second[0], signal.SIGKILL)
            began = time.monotonic()
            assert process.wait(60) != 0
            print(f"the job ended {time.monotonic() - began:.1f} s after the loss of a process")
        finally:
            process.kill()
    assert "Signal 9 (SIGKILL)" in told.read_text()
    told = [record["epoch"] for record in epochs(tmp_path, "m3")]
    # none is left out; the last one before the kill comes again if it was logged, but not saved yet
    assert sorted(set(told)) == list(range(1, told[-1] + 1)) and len(told) <= told[-1] + 1
    load_checkpoint(latest)


def test_another_number_of_processes_says_so(tmp_path):
    config = m3_config(tmp_path, M3_NUM_EPOCH=1, SAVE_EVERY_STEPS=1)
    assert run(CODE / "train_m3.py", config=config).returncode == 0
    latest = tmp_path / "latest_weights_m3.pth"
    saved = load_checkpoint(latest)
    save_checkpoint(latest, saved | {"order": saved["order"] | {"processes": 2}, "epoch": 1, "step": 2})
    result = run(CODE / "train_m3.py", config=config)
    assert result.returncode == 0, result.stderr
    assert "processes 2 -> 1: the epoch in progress begins anew" in result.stdout
    assert state(tmp_path, "m3")["epoch"] == 2


def test_shards_that_are_unequal_empty_or_bad(tmp_path):
    """Three processes: one has a good file, one a bad file, one none."""
    (tmp_path / "in").mkdir()
    shutil.copy(KIT / "interleaved" / "tiny.abc", tmp_path / "in")
    (tmp_path / "in" / "zzz.abc").write_bytes(b"\xff")
    config = write_config(tmp_path / "kit.py", **KIT_MODEL)
    ranks = run_ranks(3, CODE / "extract_m3.py", tmp_path / "in", tmp_path / "out", config=config)
    assert [rank.returncode for rank in ranks] == [1, 1, 1], ranks
    assert "1 done, 0 skipped (they were there), 1 failed" in ranks[0].stdout
    assert list(json_lines(tmp_path / "out.errors.jsonl")) == ["zzz.abc"]


# --- trust ----------------------------------------------------------------------------------------------------------
class Evil:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


def test_no_file_runs_code(tmp_path):
    """Weights, states of a training, models of a probe and features, pickled by someone who means no good."""
    proof, evil = tmp_path / "ran", tmp_path / "evil.pth"
    for write in (
        lambda: torch.save({"model": Evil(proof), "classes": ["a"]}, evil),
        lambda: torch.save({"model": {"a": torch.ones(1)}, "optimizer": Evil(proof)}, evil),
        lambda: torch.save({"model": {}, "x": Evil(proof)}, evil, _use_new_zipfile_serialization=False),
        lambda: evil.write_bytes(pickle.dumps(Evil(proof), protocol=2)),
    ):
        write()
        for load in (load_checkpoint, linear_probe.load):
            with pytest.raises(InputError, match=r"evil\.pth"):
                load(evil)
    shutil.copy(evil, tmp_path / "latest_weights_m3.pth")
    result = run(CODE / "train_m3.py", config=m3_config(tmp_path))
    told = result.stderr.splitlines()[-1]
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*latest_weights_m3\.pth: not a checkpoint .* could run code\)", told), told
    np.save(tmp_path / "evil.npy", np.array([[Evil(proof)]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"evil\.npy: not a readable"):
        read_feature(tmp_path / "evil.npy")
    assert not proof.exists()


def test_no_program_is_started_through_a_shell():
    sources = [*CODE.glob("*.py"), *SCRIPTS.glob("*.py")]
    assert len(sources) > 40
    for source in sources:
        text = source.read_text()
        assert not re.search(r"shell\s*=\s*True|os\.system|os\.popen|getoutput|[^.\w]eval\(|[^.\w]exec\(", text), source
        assert not re.search(r"allow_pickle\s*=\s*True|weights_only\s*=\s*False|pickle\.loads?\(", text), source
