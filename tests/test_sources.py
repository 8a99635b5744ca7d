"""Which source an output belongs to: what is made anew, how outputs are named, what is named as without a source.

One rule: most tests run an extraction, whose model is a stand-in, and a conversion, whose converter is in this process.
"""

import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import batch_script
import files
import jobs
import test_extraction_folder
import workers
from files import InputError
from sources import Sources
from test_extraction_folder import Job, model, weights  # noqa: F401 (fixtures)

OLD = 1_600_000_000  # a time long before any output


class Tool:
    """A folder of sources, whose contents are numbers, and the outputs that are made of them."""

    suffix: str
    bad: str  # the content of a bad file

    def __init__(self, folder: Path, capsys):
        self.source, self.out, self.capsys = folder / "in", folder / "out", capsys
        self.source.mkdir()

    def start(self, source: Path, remove: bool) -> int:
        raise NotImplementedError

    def content(self, path: Path) -> str:
        raise NotImplementedError

    def write(self, name: str, text: object, time: float | None = None, folder: Path | None = None) -> None:
        path = (folder or self.source) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.bad if text == "bad" else str(text))
        if time:
            os.utime(path, (time, time))

    def run(self, source: Path | None = None, remove: bool = False, status: int = 0) -> tuple[int, int, str]:
        """The numbers of those done and skipped, and what stands on standard error but the progress."""
        self.capsys.readouterr()
        assert self.start(source or self.source, remove) == status
        told = self.capsys.readouterr()
        done, skipped = re.search(r"^(\d+) done, (\d+) skipped", told.out, re.MULTILINE).groups()
        lines = [line for line in told.err.splitlines() if "file/s" not in line and "errors.jsonl" not in line]
        return int(done), int(skipped), "\n".join(lines).strip()

    def outputs(self) -> dict[str, str]:
        """Name, without its suffix, and content."""
        paths = [path for path in self.out.rglob("*" + self.suffix) if path.is_file()]
        return {path.relative_to(self.out).as_posix().removesuffix(self.suffix): self.content(path) for path in paths}


class Extraction(Tool):
    suffix, bad, types = ".npy", "bad", ("abc", "txt")

    def start(self, source, remove):
        return test_extraction_folder.extract(source, self.out, self.weights, remove_orphans=remove)

    def content(self, path):
        return str(np.load(path).shape[1])


class Conversion(Tool):
    suffix, bad, types = ".out", "refuse it is bad", ("text", "txt")

    def start(self, source, remove):
        arguments = [source, self.out, *(["--remove_orphans"] if remove else [])]
        return batch_script.main([str(argument) for argument in arguments])

    def content(self, path):
        return path.read_text().strip()


def in_this_process(function, items, timeout, processes):
    for item in items:
        try:
            yield item, function(item)
        except InputError as error:
            yield item, workers.Failed(str(error))


@pytest.fixture(params=[Extraction, Conversion], ids=["extraction", "conversion"])
def tool(request, tmp_path, capsys, monkeypatch, model, weights):  # noqa: F811
    monkeypatch.setattr(workers, "run", in_this_process)
    tool = request.param(tmp_path, capsys)
    tool.weights = weights
    return tool


# --- what is made anew ------------------------------------------------------------------------------------------------


def test_a_source_that_an_older_file_replaces_is_made_anew(tool):
    kind, other = tool.types
    tool.write(f"x.{kind}", 3)
    tool.write(f"y.{kind}", 4)
    assert tool.run() == (2, 0, "") and tool.run() == (0, 2, "")
    tool.write(f"x.{kind}", 5, OLD)
    (tool.source / f"y.{kind}").unlink()
    tool.write(f"y.{other}", 6, OLD)
    assert tool.run() == (2, 0, "") and tool.outputs() == {"x": "5", "y": "6"}
    tool.write(f"x.{kind}", 77, OLD)  # the same time, another size
    assert tool.run() == (1, 1, "") and tool.outputs() == {"x": "77", "y": "6"}
    (tool.out / f"x{tool.suffix}").unlink()
    assert tool.run() == (1, 1, "") and tool.outputs() == {"x": "77", "y": "6"}


def test_a_copied_tree_is_recognised_by_its_content(tool):
    """Times are not kept, and the folders stand elsewhere; a change that keeps the size is seen."""
    for name, text in (("x.txt", 3), ("y.txt", 4), ("sub/z.txt", 5)):
        tool.write(name, text, OLD)
    assert tool.run() == (3, 0, "")
    moved = tool.source.with_name("elsewhere")
    tool.source.rename(moved)
    tool.source = moved
    tool.write("x.txt", 3, OLD + 1)
    tool.write("y.txt", 8, OLD + 1)
    assert tool.run() == (1, 2, "")
    assert tool.outputs() == {"x": "3", "y": "8", "sub/z": "5"}
    assert tool.run() == (0, 3, "")
    other = tool.source.with_name("other")
    tool.write("w.txt", 6, folder=other)
    assert tool.run(other) == (1, 0, "")  # and nothing has lost its source


def test_a_source_that_goes_bad_has_no_output(tool):
    tool.write("x.txt", 3)
    tool.run()
    tool.write("x.txt", "bad")
    assert tool.run(status=1)[:2] == (0, 0) and tool.outputs() == {}
    tool.write("x.txt", 3)
    assert tool.run() == (1, 0, "")


def test_a_source_that_changes_while_it_is_read_is_read_again(tool, monkeypatch):
    tool.write("x.txt", 3)
    add = Sources.add

    def add_late(record, name, source, *rest):
        source.write_text("4")
        os.utime(source, (OLD, OLD))
        add(record, name, source, *rest)

    monkeypatch.setattr(Sources, "add", add_late)
    assert tool.run() == (1, 0, "")
    monkeypatch.setattr(Sources, "add", add)
    assert tool.run() == (1, 0, "") and tool.outputs() == {"x": "4"} and tool.run() == (0, 1, "")


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_neighbour_leaves_the_names_and_nothing_is_there_twice(tool):
    first, second = tool.types
    tool.write(f"song.{first}", 3)
    tool.run()
    tool.write(f"song.{second}", 4)
    assert tool.run() == (1, 1, "") and tool.outputs() == {"song": "3", f"song.{second}": "4"}
    assert tool.run(tool.source / f"song.{second}") == (0, 1, "")  # alone it is called the same
    (tool.source / f"song.{first}").unlink()
    done, skipped, told = tool.run()
    assert (done, skipped) == (0, 1) and tool.outputs() == {"song": "3", f"song.{second}": "4"}
    gone = f"1 output whose source is gone ({{}}):\n  song{tool.suffix}"
    assert told == gone.format("--remove_orphans removes them")
    assert tool.run(remove=True) == (0, 1, gone.format("removed"))
    assert tool.outputs() == {f"song.{second}": "4"} and tool.run() == (0, 1, "")


def test_a_file_alone_does_not_take_the_output_of_another(tool):
    first, second = tool.types
    tool.write(f"song.{first}", 3)
    tool.write(f"song.{second}", 4)
    assert tool.run(tool.source / f"song.{first}") == (1, 0, "")
    assert tool.run(tool.source / f"song.{second}") == (1, 0, "")
    assert tool.outputs() == {"song": "3", f"song.{second}": "4"} and tool.run() == (0, 2, "")


def test_a_name_that_is_the_only_one_for_a_newcomer_is_given_up(tool):
    """`song.txt` can be called `song` or `song.txt`; the first is another's, and so was the second."""
    first, second = tool.types
    tool.write(f"song.{first}", 3)
    tool.write(f"song.{second}.{first}", 5)
    tool.run()
    assert tool.outputs() == {"song": "3", f"song.{second}": "5"}
    tool.write(f"song.{second}", 4)
    assert tool.run() == (2, 1, "")
    assert tool.outputs() == {"song": "3", f"song.{second}": "4", f"song.{second}.{first}": "5"}
    assert tool.run() == (0, 3, "")


def test_numbered_outputs_make_way_and_leave_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "run", in_this_process)
    tool = Conversion(tmp_path, capsys)
    tool.write("a.txt", "several 1 2")
    assert tool.run() == (1, 0, "") and set(tool.outputs()) == {"a.1", "a.2"}
    tool.write("a.1.txt", 3)
    assert tool.run() == (2, 0, "") and set(tool.outputs()) == {"a.1", "a.out.1", "a.out.2"}
    assert tool.run() == (0, 2, "")
    tool.write("b.txt", "several 4 5 6")
    with monkeypatch.context() as patch:
        kill_before(patch, files, "atomic_write", turn=3)
        with pytest.raises(Killed):
            tool.run()
    assert set(tool.outputs()) == {"a.1", "a.out.1", "a.out.2", "b.3", "b.2"}
    (tool.source / "b.txt").unlink()
    assert tool.run(remove=True)[2].startswith("2 outputs whose source is gone (removed)")
    assert set(tool.outputs()) == {"a.1", "a.out.1", "a.out.2"}


# --- what has no source -----------------------------------------------------------------------------------------------


def test_two_input_folders_may_share_an_output_folder(tool):
    """The outputs of one are not taken for orphans of the other, nor those of a whole folder for a single file's."""
    other = tool.source.with_name("other")
    tool.write("a.txt", 1)
    tool.write("b.txt", 2)
    tool.write("c.txt", 3, folder=other)
    assert tool.run() == (2, 0, "") and tool.run(other) == (1, 0, "")
    (tool.source / "b.txt").unlink()
    assert tool.run(tool.source / "a.txt") == (0, 1, "")
    assert tool.run(other, remove=True)[2] == f"1 output whose source is gone (removed):\n  b{tool.suffix}"
    assert tool.outputs() == {"a": "1", "c": "3"}


def test_a_file_that_no_run_has_recorded_is_named_and_never_removed(tool):
    tool.write("a.txt", 1)
    tool.run()
    stray = tool.out / f"\x1b[31mb{tool.suffix}"
    shutil.copy(tool.out / f"a{tool.suffix}", stray)
    told = tool.run(remove=True)[2]
    assert told == (f"1 file among the outputs that no run has recorded (left alone):\n  \\x1b[31mb{tool.suffix}")
    assert stray.exists()


# --- folders of an earlier version ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "finished"), [(1, False), (0.01, False), (0, True), (-0.01, True)])
def test_without_a_record_an_output_that_is_not_older_is_taken_over(tool, seconds, finished):
    tool.write("a.txt", 1)
    tool.run()
    for record in tool.out.parent.rglob("*sources*.jsonl"):
        record.unlink()
    source, output = tool.source / "a.txt", tool.out / f"a{tool.suffix}"
    os.utime(source, (OLD, OLD))
    os.utime(output, (OLD - seconds, OLD - seconds))
    assert tool.run() == (1 - finished, finished, "")
    tool.write("a.txt", 2, OLD - 100)  # from here on, it is known
    assert tool.run() == (1, 0, "") and tool.outputs() == {"a": "2"}


# --- kills and full disks ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def kill_before(monkeypatch, owner, name: str, turn: int = 1) -> None:
    """From here on, the `turn`th call of a function is a kill."""
    real, calls = getattr(owner, name), []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) >= turn:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, killed)


def test_an_output_of_a_run_that_was_killed_is_not_taken_for_finished(tool, monkeypatch):
    """It holds the second version, the record would hold the first one, and the first one is back."""
    tool.write("a.txt", 1, OLD)
    tool.run()
    tool.write("a.txt", 22, OLD + 1)
    with monkeypatch.context() as patch:
        kill_before(patch, Sources, "add")
        with pytest.raises(Killed):
            tool.run()
    assert tool.outputs() == {"a": "22"}
    tool.write("a.txt", 1, OLD)
    assert tool.run() == (1, 0, "") and tool.outputs() == {"a": "1"}
    with monkeypatch.context() as patch:
        kill_before(patch, Sources, "add")
        tool.write("b.txt", 3)
        with pytest.raises(Killed):
            tool.run()
    tool.write("b.txt", 4, OLD)  # older than the output, and none of it is recorded
    assert tool.run() == (1, 1, "") and tool.outputs() == {"a": "1", "b": "4"}


def test_what_a_full_disk_left_of_a_line_costs_that_line_alone(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    record = Sources(tmp_path / "record.jsonl", tmp_path, tmp_path)
    record.names([Path(f"{name}.txt") for name in "abc"], ".txt")
    for name in ("a", "b", "c"):
        path = tmp_path / f"{name}.txt"
        record.making([(name, path, [path])])
        if name == "c":
            record.path.write_bytes(record.path.read_bytes()[:-9])
        record.add(name, path, [path])
        if name == "a":
            record.path.write_bytes(record.path.read_bytes()[:-9])
    again = Sources(tmp_path / "record.jsonl", tmp_path, tmp_path)
    assert [again.finished(name, tmp_path / f"{name}.txt") for name in "abc"] == [(), ("b.txt",), ("c.txt",)]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_each_piece_is_there_once(tool, monkeypatch, seed):
    """Sources come, go, change and return, with old times, and runs are killed anywhere. After a whole run that removes
    orphans, the outputs are those of the present sources, each once; the next run does nothing."""
    rng = random.Random(seed)
    first, second = tool.types
    names = [f"{stem}.{kind}" for stem in ("a", f"a.{second}", "a.1") for kind in (first, second)]
    contents = ["bad", *range(1, 8)]
    if isinstance(tool, Conversion):
        contents += ["several 11 12 13", "several 14 15"]
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def change(name):
        number = rng.randrange(len(contents))
        tool.write(name, contents[number], OLD + number)  # the same content has the same time

    tool.write("z.txt", 9)  # so that there is always one
    for _ in range(5):
        for name in rng.sample(names, 3):
            (tool.source / name).unlink(missing_ok=True)
            if rng.random() < 0.7:
                change(name)
        for _ in range(rng.randrange(3)):
            with monkeypatch.context() as patch:
                kill_before(patch, *rng.choice([(Sources, "_add"), (files, "atomic_write"), (Sources, "add")]), turn=rng.randrange(1, 6))  # fmt: skip
                try:
                    tool.start(tool.source, rng.random() < 0.5)
                except Killed:
                    if rng.random() < 0.5:
                        change(rng.choice(names))
        tool.start(tool.source, True)
        wanted = Counter(
            part
            for path in tool.source.iterdir()
            if (text := path.read_text()) != tool.bad
            for part in text.removeprefix("several ").split()
        )
        assert Counter(tool.outputs().values()) == wanted, (sorted(tool.source.iterdir()), tool.outputs())
        bad = sum(path.read_text() == tool.bad for path in tool.source.iterdir())
        assert tool.run(status=int(bad > 0))[:2] == (0, len(list(tool.source.iterdir())) - bad)


# --- several processes ------------------------------------------------------------------------------------------------


def test_ranks_write_a_part_each_and_the_next_run_knows_them_all(tmp_path, weights, model, capsys):  # noqa: F811
    source, target = tmp_path / "in", tmp_path / "out"
    test_extraction_folder.write_files(source, {f"{number}.abc": str(number + 1) for number in range(9)})

    def extract(job):
        return test_extraction_folder.extract(source, target, weights, job=job)

    assert Job.run(3, extract) == [0, 0, 0]
    assert [path.name for path in tmp_path.glob("out.sources*")] == ["out.sources.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "out.sources.jsonl").read_text().splitlines()]
    assert [[line[1], *line[6:]] for line in lines] == [[f"{n}.abc", f"{n}.npy"] for n in range(9)]
    for number in (2, 3, 7):
        (source / f"{number}.abc").write_text("77")
        os.utime(source / f"{number}.abc", (OLD, OLD))
    (source / "3.txt").write_text("5")
    capsys.readouterr()
    assert Job.run(2, extract) == [0, 0]
    assert capsys.readouterr().out.splitlines()[-1] == "4 done, 6 skipped (they were there), 0 failed"
    assert {path.stem: np.load(path).shape[1] for path in target.iterdir()} == {
        **{str(number): 77 if number in (2, 3, 7) else number + 1 for number in range(9)},
        "3.txt": 5,
    }


def test_an_output_that_another_process_has_just_written_stays(tmp_path):
    """`song.txt.abc` gives its name up to `song.txt`, which another process has made by then."""
    for name in ("song.abc", "song.txt.abc"):
        (tmp_path / name).write_text(name)

    def records(*parts):
        found = []
        for part in parts:
            record = Sources(tmp_path / "record.jsonl", tmp_path, tmp_path / "out", part)
            inputs = [path.relative_to(tmp_path) for path in sorted(tmp_path.glob("song.*"))]
            found.append((record, record.names(inputs, ".npy")))
        return found

    def make(name, record, names):
        source, output = tmp_path / name, tmp_path / "out" / names[Path(name)]
        record.making([(name, source, [output])])
        with files.atomic_write(output) as file:
            file.write(name.encode())
        record.add(name, source, [output])

    [whole] = records((1, 1))
    make("song.abc", *whole)
    make("song.txt.abc", *whole)
    (tmp_path / "song.txt").write_text("song.txt")
    one, two = records((1, 2), (2, 2))
    make("song.txt", *one)
    make("song.txt.abc", *two)
    outputs = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert outputs == {"song.npy": "song.abc", "song.txt.npy": "song.txt", "song.txt.abc.npy": "song.txt.abc"}


def test_numbered_outputs_that_another_process_may_be_writing_stay(tmp_path):
    """`x` had `a.2`, which may be one of the outputs of `a` by now."""
    (tmp_path / "x.txt").touch()
    (tmp_path / "a.2.out").touch()
    record = Sources(tmp_path / "record.jsonl", tmp_path, tmp_path, (1, 2))
    record.names([Path("x.txt"), Path("a.txt")], ".out")
    record.coming = {"a.1.out"}
    for outputs in (["a.2.out"], ["x.out"]):
        record.making([("x.txt", tmp_path / "x.txt", [tmp_path / "x.out"])])
        record.add("x.txt", tmp_path / "x.txt", [tmp_path / name for name in outputs])
    assert (tmp_path / "a.2.out").exists()
    assert record.lost() == [] and record.strays() == []
    record.coming = set()
    assert record.lost() == ["a.2.out"]


def test_shards_that_cut_the_list_otherwise_know_each_other(tmp_path):
    """What a later run wrote counts, whichever file it is in."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()

    def shard(part, of):
        made = jobs.Jobs(source, out, (".txt",), ".out", (part, of), False)
        out.mkdir(exist_ok=True)
        made.begin()
        done = []
        for job in made:
            if not made.is_finished(job):
                made.sources.making([(job.name, job.source, [job.output])])
                job.write([job.source.read_bytes()])
                made.sources.add(job.name, job.source, job.outputs())
                done.append(job.name)
        return done

    for name in ("b", "c"):
        (source / f"{name}.txt").write_text(name)
    assert shard(1, 2) == ["b.txt"] and shard(2, 2) == ["c.txt"]
    (source / "a.txt").write_text("a")
    (source / "b.txt").write_text("other")
    os.utime(source / "b.txt", (OLD, OLD))
    assert shard(2, 2) == ["b.txt"] and shard(1, 2) == ["a.txt"]
    assert shard(2, 2) == [] and shard(1, 2) == []
    (source / "a.txt").unlink()
    (source / "b.txt").write_text("yet another")
    assert shard(1, 2) == ["b.txt"]
    assert shard(2, 2) == [] and shard(1, 2) == [] and shard(1, 1) == []
    assert [path.name for path in out.glob(".sources*")] == [".sources.out.jsonl"]
