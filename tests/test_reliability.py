"""Long runs survive: kills at random moments, full disks, lost processes, bad and hostile files. Through the real scripts.

CLAMP2_KILLS=20 python -m pytest -s tests/test_reliability.py -k kill        every tool killed twenty times
CLAMP2_ALL=1 python -m pytest tests/test_reliability.py                      also what takes minutes
"""

import io
import json
import os
import pickle
import random
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

import chat_server
import corpus
import jobs
import linear_probe
from checkpoints import load_checkpoint, save_checkpoint
from corpus import BAD, GOOD
from features import read as read_feature
from files import InputError, list_files, output_names, remove_leftovers
from helpers import CODE, KIT, KIT_MODEL, ROOT, assert_time_is_linear, environment, run_ranks, run_script, write_config
from loading import Paths
from patches import remove_instrument_info
from test_training import TORCHRUN, assert_same, clamp2_config, epochs, m3_config, state

serve = chat_server.serve  # a fixture
SCRIPTS = ROOT / "process_data"
KILLS = int(os.environ.get("CLAMP2_KILLS", "0"))
SLOW = () if "CLAMP2_ALL" in os.environ else ("million_", "one_word_of_1_mb.txt", "line_of_5_mb.txt")  # for a model


def run(script, *arguments, config=None, kill_after=None):
    result = run_script(script, *arguments, config=config, kill_after=kill_after, OPENAI_API_KEY="any-key")
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
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
    batch = jobs.Batch(source, out, suffixes, target, (1, 1), script in ("batch_interleaved_abc", "batch_abc2xml"))
    assert_accounted_for(verdicts, {job.name for job in batch if job.is_finished()}, failed)
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
    named = {
        name for name in verdicts if f"--- {name.encode(errors='backslashreplace').decode()}: cannot" in result.stdout
    }
    asked = {name for name in verdicts if f"--- {name.encode(errors='backslashreplace').decode()}\n" in result.stdout}
    assert named | asked == verdicts.keys() and not named & asked
    assert {name for name, verdict in verdicts.items() if verdict == BAD} <= named
    assert {name for name, verdict in verdicts.items() if verdict == GOOD} <= asked


def music_and_texts(folder: Path, suffixes: tuple[str, ...], slow: tuple[str, ...] = SLOW) -> dict[str, str]:
    verdicts = {}
    for suffix in suffixes:
        for name, verdict in corpus.write(folder / suffix[1:], suffix).items():
            if name.startswith(slow):
                (folder / suffix[1:] / name).unlink()
            else:
                verdicts[f"{suffix[1:]}/{name}"] = verdict
    return verdicts


@pytest.mark.parametrize(("script", "suffixes"), [("extract_m3", (".abc", ".mtf")), ("extract_clamp2", (".txt",))])
def test_bad_files_cost_an_extraction_themselves_alone(tmp_path, script, suffixes):
    source, out = tmp_path / "in", tmp_path / "out"
    verdicts = music_and_texts(source, suffixes)
    long = corpus.LONG_NAME + "n" * 4
    for name in (f"{long}{suffixes[0]}", f"{long}{suffixes[0].upper()}"):  # their outputs need a longer name
        (source / name).write_bytes(corpus.PLAIN[suffixes[0]])
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


# --- kills ----------------------------------------------------------------------------------------------------------
class Tool:
    """A script and what it is run on: `fresh` gives it a new output folder, `outputs` is what comes of it."""

    several = True  # whether it has outputs before it has ended

    def __init__(self, folder: Path, server):
        self.folder, self.out = folder, folder / "out"

    def fresh(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()

    def run(self, kill_after: float | None = None):
        raise NotImplementedError

    def undisturbed(self):
        """The run that all others are compared with."""
        return self.run()

    def outputs(self) -> dict:
        """Final names -> contents."""
        return {name: content for name, content in tree(self.out).items() if ".tmp-" not in name}

    @staticmethod
    def same(ours, theirs) -> bool:
        return ours == theirs

    def is_log(self, name: str) -> bool:
        return name.endswith(("errors.jsonl", "warnings.jsonl"))

    def is_whole(self, name: str, content, end) -> bool:
        """Whether an output that stands there after a kill is what an undisturbed run writes. `end`: its last content."""
        return self.is_log(name) or self.same(content, end)

    def may_be_rewritten(self, name: str) -> bool:
        """By a run that continues."""
        return self.is_log(name) or name in ("all.jsonl", "features.extraction.json")


def copies(folder: Path, sources: list[Path], count: int) -> Path:
    for source in sources:
        for number in range(count):
            path = folder / str(number) / source.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
    return folder


def conversion(script: str, kind: str, *names: str):
    class Conversion(Tool):
        def __init__(self, folder, server):
            super().__init__(folder, server)
            copies(folder / "in", [KIT / kind / name for name in names], 12)
            (folder / "in" / f"bad{Path(names[0]).suffix}").write_bytes(b"no music")

        def run(self, kill_after=None):
            return run(SCRIPTS / f"{script}.py", self.folder / "in", self.out, "--workers", 2, kill_after=kill_after)

    return Conversion


class Scores(conversion("batch_xml2abc", "abc")):
    def __init__(self, folder, server):
        Tool.__init__(self, folder, server)
        for number in range(30):
            path = folder / "in" / f"{number}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(corpus.XML.replace(b"Voice", b"Voice %d" % number))


def extraction(script: str, *options: str):
    class Extraction(Tool):
        def __init__(self, folder, server):
            super().__init__(folder, server)
            copies(folder / "in", [KIT / "interleaved" / "tiny.abc", KIT / "mtf" / "plain.mtf"], 40)
            (folder / "in" / "bad.abc").write_bytes(b"no music")
            self.config = write_config(folder / "kit.py", **KIT_MODEL, EXTRACT_BATCH_TOKENS=64)

        def run(self, kill_after=None):
            source = self.folder / "in"
            features = self.out / "features"  # beside which stands what the extraction notes
            return run(CODE / f"{script}.py", source, features, *options, config=self.config, kill_after=kill_after)

        @staticmethod
        def same(ours, theirs):
            """The same features, but for what a float32 sum depends on the other pieces of its batch."""
            if not ours.startswith(b"\x93NUMPY"):
                return ours == theirs
            ours, theirs = (np.load(io.BytesIO(content)) for content in (ours, theirs))
            return ours.shape == theirs.shape and np.allclose(ours, theirs, atol=1e-5, rtol=0)

    return Extraction


class Merge(Tool):
    several = False

    def __init__(self, folder, server):
        super().__init__(folder, server)
        (folder / "in").mkdir()
        for number in range(3000):
            record = corpus.RECORD | {"title": f"Tune {number}"}
            (folder / "in" / f"{number:04d}.json").write_text(json.dumps(record))

    def fresh(self):
        super().fresh()
        (self.out / "good.abc").write_text("K:C\nA|\n")

    def run(self, kill_after=None):
        return run(SCRIPTS / "merge_jsonl.py", self.folder / "in", self.out / "all.jsonl", kill_after=kill_after)


class Summaries(Tool):
    def __init__(self, folder, server):
        super().__init__(folder, server)
        (folder / "languages.txt").write_text("\n".join(chat_server.IN_OTHER))
        self.server = server
        chat_server.write_records(folder / "in", *({"title": f"Tune {number}"} for number in range(60)))

    def run(self, kill_after=None):
        words = chat_server.arguments(self.folder, self.server, "--concurrency", 4)
        return run(SCRIPTS / "gpt4_summarize.py", *words, kill_after=kill_after)


RECORDING = """
import os, runpy, shutil, sys

states = sys.argv[1]


def record(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(".pth"):
        number = len(os.listdir(states))
        shutil.copy(arguments[0], os.path.join(states, f"{number:03}-" + os.path.basename(arguments[1])))


sys.addaudithook(record)
sys.path[0] = os.path.dirname(sys.argv[2])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def training_of(kind: str, make_config):
    class Trainer(Tool):
        """Saves after each step. What it saves, and what it logs, is that of the undisturbed run at the same step."""

        def __init__(self, folder, server):
            super().__init__(folder, server)
            self.script = CODE / f"train_{kind}.py"
            (folder / "out").mkdir()
            self.config = make_config(folder / "out", SAVE_EVERY_STEPS=1).rename(folder / "config.py")
            self.data = {path: path.read_bytes() for path in (folder / "out").glob("*.jsonl")}
            self.states, self.records = {}, {}
            self.finished = False  # whether the last run that was started had nothing left to do

        def fresh(self):
            super().fresh()
            for path, content in self.data.items():
                path.write_bytes(content)
            for name in ("interleaved", "mtf"):
                (self.out / name).symlink_to(KIT / name)

        def undisturbed(self):
            """Keeps each checkpoint by (file, epoch, step), and each epoch's line of the log."""
            (self.folder / "states").mkdir()
            (self.folder / "recording.py").write_text(RECORDING)
            result = run(self.folder / "recording.py", self.folder / "states", self.script, config=self.config)
            assert result.returncode == 0, result.stderr
            for path in sorted((self.folder / "states").iterdir()):
                self.states[self.moment(path.name[4:], load_checkpoint(path))] = load_checkpoint(path)
            self.records = {record["epoch"]: record for record in self.logged()}
            latest = [moment[1:] for moment in self.states if moment[0] == f"latest_weights_{kind}.pth"]
            assert latest == [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (4, 0)]
            assert list(self.records) == [1, 2, 3] and len(self.states) > len(latest)
            return result

        def run(self, kill_after=None):
            """Checks that it goes on from the last save, and that no epoch before that is run again."""
            latest, logged = self.out / f"latest_weights_{kind}.pth", self.logged()
            epoch, step, start = 1, 0, "new weights"
            if latest.exists():
                _, epoch, step = self.moment(latest.name, load_checkpoint(latest))
                start = f"{latest}, epoch {epoch}, step {step}"
            self.finished = epoch == 4
            result = run(self.script, config=self.config, kill_after=kill_after)
            if result.returncode == 0:
                assert re.search(rf"^  starts from +{re.escape(start)}$", result.stdout, re.M), result.stdout
            now = self.logged()
            assert now == logged + [self.records[epoch + number] for number in range(len(now) - len(logged))]
            return result

        @staticmethod
        def moment(name, checkpoint):
            """Which of the files of a run this is. The weights file holds no step."""
            return name, checkpoint["epoch"], checkpoint.get("step")

        def logged(self):
            lines = epochs(self.out, kind) if (self.out / f"logs_{kind}.txt").exists() else []
            return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

        def outputs(self):
            return {path.name: load_checkpoint(path) for path in self.out.glob("*.pth")}

        @staticmethod
        def same(ours, theirs):
            assert_same(ours, theirs)
            return True

        def is_whole(self, name, content, end):
            return self.same(content, self.states[self.moment(name, content)])

        def may_be_rewritten(self, name):
            return not self.finished

    return Trainer


TOOLS = {
    "midi2mtf": conversion("batch_midi2mtf", "midi", "plain.mid", "two_tracks.mid"),
    "mtf2midi": conversion("batch_mtf2midi", "mtf", "plain.mtf"),
    "interleaved": conversion("batch_interleaved_abc", "abc", "tiny.abc", "duo.abc"),
    "abc2xml": conversion("batch_abc2xml", "abc", "tiny.abc"),
    "xml2abc": Scores,
    "merge_jsonl": Merge,
    "summaries": Summaries,
    "extract_m3": extraction("extract_m3"),
    "extract_clamp2": extraction("extract_clamp2", "--normalize"),
    "train_m3": training_of("m3", m3_config),
    "train_clamp2": training_of("clamp2", clamp2_config),
}
QUICK = ("interleaved", "merge_jsonl", "extract_clamp2", "train_m3")  # of each kind one, without CLAMP2_KILLS


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TOOLS if KILLS else QUICK)
def test_killed_at_random_moments_and_started_again(tmp_path, serve, name):
    """The end is that of an undisturbed run, nothing is half written, and nothing finished is done again."""
    tool = TOOLS[name](tmp_path, serve() if name == "summaries" else None)
    tool.fresh()
    run(SCRIPTS / "merge_jsonl.py", "--help")  # so that what runs scripts is there, and the time below is the tool's
    began = time.monotonic()
    ended = tool.undisturbed()
    duration = time.monotonic() - began
    wanted = tool.outputs()
    assert ended.returncode == int(any(name.endswith("errors.jsonl") for name in wanted)), ended.stderr
    assert wanted
    rng = random.Random(name)
    kills, runs, partial = 0, 0, 0

    def enough() -> bool:
        return kills >= (KILLS or 2) and (partial > 0 or not tool.several)

    while not enough():
        assert kills < 50, "no kill has left a part of the outputs"
        tool.fresh()
        runs += 1
        result = None
        while not enough() and not (result and result.returncode >= 0):
            result = tool.run(kill_after=rng.uniform(0, duration))
            kills += result.returncode == -9
            outputs = tool.outputs()
            assert all(tool.is_whole(file, content, wanted.get(file)) for file, content in outputs.items())
            partial += result.returncode == -9 and not all(map(tool.is_log, outputs))
        kept = {path: path.stat().st_ino for path in tool.out.rglob("*") if path.is_file()}
        assert tool.run().returncode == ended.returncode
        outputs = tool.outputs()
        assert outputs.keys() == wanted.keys()
        assert all(tool.same(outputs[file], wanted[file]) for file in wanted)
        assert not list(tool.out.rglob(".tmp-*"))
        again = {path.name for path, inode in kept.items() if path.exists() and path.stat().st_ino != inode}
        assert all(tool.may_be_rewritten(file) for file in again), again
    print(f"{name}: killed {kills} times, {partial} of them with outputs, in {runs} runs of {duration:.1f} s")


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
    result = run(limited, 2000, CODE / "extract_m3.py", KIT / "interleaved", tmp_path / "out", config=config)
    assert result.returncode == 2
    assert re.fullmatch(r"error: .*\.npy: \d+ requested and \d+ written", result.stderr.splitlines()[-1]), result.stderr
    assert not list((tmp_path / "out").rglob("*.npy")) and not list((tmp_path / "out").rglob(".tmp-*"))


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
    assert [record["epoch"] for record in epochs(tmp_path, "m3")] == list(range(1, len(epochs(tmp_path, "m3")) + 1))
    load_checkpoint(latest)


def test_another_number_of_processes_says_so(tmp_path):
    config = m3_config(tmp_path, M3_NUM_EPOCH=1, SAVE_EVERY_STEPS=1)
    assert run(CODE / "train_m3.py", config=config).returncode == 0
    latest = tmp_path / "latest_weights_m3.pth"
    save_checkpoint(latest, load_checkpoint(latest) | {"world_size": 2, "epoch": 1, "step": 2})
    result = run(CODE / "train_m3.py", config=config)
    assert result.returncode == 0, result.stderr
    assert (
        "that run had 2 processes, this one has 1: the pieces of the epoch in progress are dealt out" in result.stdout
    )
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
