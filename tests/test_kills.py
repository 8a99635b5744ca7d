"""Every tool, killed at random moments and started again, ends as an undisturbed run does.

CLAMP2_KILLS=20 python -m pytest -s tests/test_kills.py        every tool killed twenty times
"""

import io
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import chat_server
import corpus
from checkpoints import load_checkpoint
from helpers import CODE, KIT, KIT_MODEL, write_config
from test_reliability import SCRIPTS, run, tree
from test_training import assert_same, clamp2_config, epochs, m3_config

serve = chat_server.serve  # a fixture
KILLS = int(os.environ.get("CLAMP2_KILLS", "0"))


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
        return {
            name: content for name, content in tree(self.out).items() if ".tmp-" not in name and ".sources" not in name
        }

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
            assert latest == [
                (epoch, step) for epoch in (1, 2, 3) for step in (0, 1, 2, 3) if (epoch, step) > (1, 0)
            ] + [(4, 0)]
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


UNRECORDED = 4  # outputs that were there when a kill came, but not yet noted as done


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TOOLS if KILLS else QUICK)
def test_killed_at_random_moments_and_started_again(tmp_path, serve, name):
    """The end is that of an undisturbed run, nothing is half written, and what was noted as done is not done again."""
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
        files = [path for path in tool.out.rglob("*") if path.is_file() and "sources." not in path.name]
        kept = {path: path.stat().st_ino for path in files}
        assert tool.run().returncode == ended.returncode
        outputs = tool.outputs()
        assert outputs.keys() == wanted.keys()
        assert all(tool.same(outputs[file], wanted[file]) for file in wanted)
        assert not list(tool.out.rglob(".tmp-*"))
        again = {path.name for path, inode in kept.items() if path.exists() and path.stat().st_ino != inode}
        unrecorded = [file for file in again if not tool.may_be_rewritten(file)]
        assert len(unrecorded) <= UNRECORDED, again
    print(f"{name}: killed {kills} times, {partial} of them with outputs, in {runs} runs of {duration:.1f} s")
