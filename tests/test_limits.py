"""Limits and counters of files, conversions and loaders: each at its limit, one below and one above."""

import argparse
import os
import signal
import sys
import tracemalloc
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType

import pebble
import pytest

import batch
import batch_script
import captured
import files
import jobs
import loading
import merge_jsonl
import mtf
import musicxml
from batch import Refused
from scores import mxl, score

# Sizes of files


def test_the_largest_file(tmp_path, monkeypatch):
    assert files.MAX_BYTES == musicxml.MAX_BYTES == 128 * 1024 * 1024
    monkeypatch.setattr(files, "MAX_BYTES", 2**20)
    path = tmp_path / "a.json"
    for size in (0, 1, 2**20 - 1, 2**20):
        path.write_bytes(b" " * size)
        files.require_piece(path)
        assert files.read_utf8(path) == " " * size
    path.write_bytes(b" " * (2**20 + 1))
    for read in (files.require_piece, files.read_utf8):
        with pytest.raises(files.InputError, match="over 1 MiB, which no piece has"):
            read(path)
    with pytest.raises(merge_jsonl.Unfit, match="over 1 MiB"):
        merge_jsonl.read(path)


def test_the_largest_score(monkeypatch):
    xml = score(title="x").encode()
    size = len(xml) + 1000
    monkeypatch.setattr(musicxml, "MAX_BYTES", size)
    for more in (-1, 0, 1):
        data = xml.ljust(size + more)
        archives = [
            mxl({"a.xml": data}, ["a.xml"]),  # named by its container
            mxl({"a.xml": data}),  # the only one it can be
            mxl({"a.xml": xml}, container=b"<x/>".ljust(size + more)),
        ]
        if more <= 0:
            assert all(musicxml.read(whole)[0].strip() == musicxml.read(xml)[0].strip() for whole in [data, *archives])
            continue
        for whole, reason in (
            (data, "over 0 MiB of XML"),
            *((archive, "unpacks to over 0 MiB") for archive in archives[:2]),
        ):
            with pytest.raises(Refused, match=reason):
                musicxml.read(whole)
        assert "container.xml' unpacks to over" in musicxml.read(archives[2])[1][0]


def test_no_more_is_unpacked_than_a_score_may_have(monkeypatch):
    monkeypatch.setattr(musicxml, "MAX_BYTES", 100_000)
    bomb = mxl({"a.xml": b" " * 20_000_000}, ["a.xml"])
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match="unpacks to over"):
            musicxml.read(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # at its highest
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("depth", [99, 100, 101])
def test_the_deepest_score(depth):
    inner = depth - 2
    xml = "<score-partwise><part>" + "<a>" * inner + "</a>" * inner + "</part></score-partwise>"
    if depth <= 100:
        assert musicxml.read(xml.encode())[0] == xml
        # Depth is that of one place, not the number of elements.
        assert musicxml.read(xml.replace("</a></part>", "</a><b/><b/></part>").encode())
    else:
        with pytest.raises(Refused, match="nested over 100 deep"):
            musicxml.read(xml.encode())


def test_where_an_encoding_may_be_declared():
    """In the first thousand bytes, as a declaration of XML that begins the file."""
    declared = "<?xml version='1.0'{} encoding='koi8-r'?>"
    for size, is_found in ((1000, True), (1001, False)):
        head = declared.format(" " * (size - len(declared) + 4))
        assert len(head) - 2 == size  # up to the closing quotation mark
        text, warnings = musicxml.read((head + "<score-partwise><part>Полька</part></score-partwise>").encode("koi8-r"))
        assert ("Полька" in text) is is_found and bool(warnings) is not is_found


# Reports


@pytest.mark.parametrize(
    ("lines", "shown", "more"), [(0, 0, 0), (1, 1, 0), (49, 49, 0), (50, 50, 0), (51, 50, 1), (99, 50, 49)]
)
def test_lines_that_a_converter_prints(lines, shown, more):
    printed = [f"line {number}" for number in range(lines)]
    expected = printed[:shown] + ([f"... and {more} more"] if more else [])
    assert captured.shortened(printed) == captured.shortened(printed + printed) == expected


# Pieces that stand in for bad ones


class Pieces(loading.PieceDataset):
    """The first `bad` pieces that are asked for are bad."""

    def __init__(self, bad: int):
        super().__init__(train=True, seed=0)
        self.bad, self.asked = bad, []

    def __len__(self):
        return 7

    def load(self, index, rng):
        self.asked.append(index)
        if len(self.asked) <= self.bad:
            raise files.InputError(f"piece {len(self.asked)} is bad")
        return {"name": str(index)}


@pytest.mark.parametrize("tries", [1, 3, None])
def test_pieces_that_are_tried_in_place_of_a_bad_one(monkeypatch, tries):
    if tries:
        monkeypatch.setattr(loading, "TRIES", tries)
    tries = tries or 100
    for bad in {0, tries - 1}:
        pieces = Pieces(bad)
        found = pieces[2, 5]
        assert len(pieces.asked) == bad + 1 and found["name"] == str(pieces.asked[-1])
        assert found["problems"] == [f"piece {number} is bad" for number in range(1, bad + 1)]
    for bad in (tries, tries + 1):
        pieces = Pieces(bad)
        last = f"piece {tries} is bad"
        assert pieces[2, 5] == {"fatal": f"{tries} pieces in a row could not be used; the last: {last}"}
        assert len(pieces.asked) == tries
    # Any piece may be drawn: that one of the seven is missing among a hundred has a chance of one in 700,000.
    assert pieces.asked[0] == 5 and (set(pieces.asked) == set(range(7)) or tries < 100)


# Pools of worker processes, without processes


def done(value=(None, [])) -> Future:
    future: Future = Future()
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


class Pools:
    """Stands for batch._new_pool: all its pools give the outcomes of a list, in turn, then what is good.

    An outcome is what a worker returns, an exception of its future, a RuntimeError of `schedule`, or a future.
    """

    def __init__(self, *outcomes):
        self.outcomes, self.workers, self.timeouts, self.jobs, self.closed = list(outcomes), [], [], [], 0

    def __call__(self, workers):
        self.workers.append(workers)
        return self

    def schedule(self, function, arguments, timeout):
        self.timeouts.append(timeout)
        self.jobs.append(arguments[2].name)
        outcome = self.outcomes.pop(0) if self.outcomes else (None, [])
        if isinstance(outcome, RuntimeError) and not isinstance(outcome, BrokenProcessPool):
            raise outcome
        return outcome if isinstance(outcome, Future) else done(outcome)

    def stop(self):
        self.closed += 1

    def join(self):
        pass


@pytest.fixture
def convert(monkeypatch, tmp_path):
    """What comes of so many jobs with the outcomes of Pools: (error of each job, the pools)."""

    def run(jobs_wanted, *outcomes, workers=1):
        pools = Pools(*outcomes)
        monkeypatch.setattr(batch, "_new_pool", pools)
        todo = (jobs.Job(f"{n}", tmp_path / f"{n}.txt", tmp_path / f"{n}.out", None) for n in range(jobs_wanted))
        args = argparse.Namespace(workers=workers, timeout=20.0)
        results = list(batch.results(batch_script.convert, args, todo))
        assert sorted(int(job.name) for job, _, _ in results) == list(range(jobs_wanted))
        assert pools.closed == len(pools.workers)
        return {job.name: error for job, error, _ in results}, pools

    return run


@pytest.mark.parametrize("breaks", [0, 1, 4, 5])
@pytest.mark.parametrize("kind", [BrokenProcessPool, RuntimeError])
def test_restarts_of_a_broken_pool(convert, breaks, kind):
    errors, pools = convert(1, *[kind("broken") for _ in range(breaks)])
    assert errors == {"0": None} and len(pools.workers) == breaks + 1
    # A result in between begins the count anew. (`schedule` raises RuntimeError: one job comes after another.)
    errors, pools = convert(5, *([RuntimeError("broken") for _ in range(breaks)] + [(None, [])]) * 5)
    assert errors == dict.fromkeys("01234") and len(pools.workers) == 5 * breaks + 1


@pytest.mark.parametrize("kind", [BrokenProcessPool, RuntimeError])
def test_a_pool_that_always_breaks_ends_the_run(convert, kind):
    with pytest.raises(RuntimeError, match="the worker processes broke down 6 times without one result"):
        convert(1, *[kind("broken") for _ in range(6)])


@pytest.mark.parametrize("breaks", [0, 1, 4, 5, 6])
@pytest.mark.parametrize("kind", [BrokenProcessPool, TimeoutError])
def test_turns_of_a_file_alone(convert, breaks, kind):
    """Five, whose pool may break; a sixth is not tried."""
    errors, pools = convert(1, TimeoutError(), *[kind() for _ in range(breaks)])
    assert errors == {"0": None if breaks < 5 else "the converter process died"}
    assert len(pools.jobs) == 1 + min(breaks + 1, 5)


def test_what_a_death_means(convert):
    """A time limit's signal is the file's own doing; any other death may be that of another file."""
    too_long = pebble.ProcessExpired("", -signal.SIGALRM)
    errors, pools = convert(3, too_long, pebble.ProcessExpired("", -signal.SIGPROF), (None, []))
    assert errors == {"0": "took over 200 s", "1": "took over 20 s of CPU time", "2": None}
    assert pools.jobs == ["0", "1", "2"]
    for code, said in ((-11, "killed by signal 11"), (0, "exit status 0"), (3, "exit status 3")):
        expired = pebble.ProcessExpired("", code)
        errors, pools = convert(2, expired, (None, []), expired, workers=3)
        assert errors == {"0": f"the converter process died ({said})", "1": None}
        assert pools.jobs == ["0", "1", "0"] and pools.workers == [3, 1]
    assert convert(1, pebble.ProcessExpired("", -9), too_long)[0] == {"0": "took over 200 s"}


def test_how_long_a_file_may_take(convert, monkeypatch):
    """The worker ends itself first; 15 seconds later it counts as lost; twice that later the pool does."""
    waits = []
    wait = batch.wait

    def recorded(futures, timeout, return_when):
        waits.append(timeout)
        assert len(waits) < 10, "it waits for ever"
        return wait(futures, timeout=0.01, return_when=return_when)

    monkeypatch.setattr(batch, "wait", recorded)
    errors, pools = convert(1, Future(), TimeoutError())  # the first never ends
    assert errors == {"0": None} and waits == [200 + 30] * 2 and pools.timeouts == [200 + 15] * 3
    assert pools.workers == [1, 1, 1]  # the first, one anew, and one for the file alone


@pytest.mark.parametrize("workers", [1, 3])
def test_jobs_that_are_scheduled_ahead(convert, monkeypatch, workers):
    """Four for each worker."""
    ahead, wait = [], batch.wait

    def recorded(futures, timeout, return_when):
        ahead.append(len(futures))
        return wait(list(futures)[:1], timeout=timeout, return_when=return_when)

    monkeypatch.setattr(batch, "wait", recorded)
    convert(20, workers=workers)
    assert max(ahead) == 4 * workers and ahead[0] == 4 * workers


# Workers as they are


def test_files_of_one_worker(tmp_path, monkeypatch):
    """A fresh process takes over after FILES_PER_WORKER files; without that, one does all."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # or each worker would import pytest
    args = argparse.Namespace(workers=1, timeout=20)
    for limit, expected in ((2, [2, 2, 1]), (2000, [5])):
        monkeypatch.setattr(batch, "FILES_PER_WORKER", limit)
        source = tmp_path / "a.txt"
        source.write_text("pid")
        todo = (jobs.Job(f"{n}", source, tmp_path / f"{n}.out", None) for n in range(5))
        assert [error for _, error, _ in batch.results(batch_script.convert, args, todo)] == [None] * 5
        pids = [(tmp_path / f"{number}.out").read_text() for number in range(5)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == expected and str(os.getpid()) not in pids


@pytest.fixture
def errors(monkeypatch, tmp_path):
    """The error of each of some orders, done one after the other by the same worker within a time limit."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # or each worker would import pytest

    def run(timeout, *orders):
        todo = []
        for number, order in enumerate(orders):
            (tmp_path / f"{number}.txt").write_text(order)
            todo.append(jobs.Job(order, tmp_path / f"{number}.txt", tmp_path / f"{number}.out", None))
        args = argparse.Namespace(workers=1, timeout=timeout)
        return [error for _, error, _ in batch.results(batch_script.convert, args, iter(todo))]

    return run


def test_no_time_limit_goes_on_when_a_file_is_done(tmp_path):
    """A worker may wait for its next file as long as it has to."""
    (tmp_path / "a.txt").touch()
    job, set_to = jobs.Job("a", tmp_path / "a.txt", tmp_path / "a.out", None), []

    def timers(*_):
        set_to[:] = [signal.getitimer(which)[0] for which in (signal.ITIMER_PROF, signal.ITIMER_REAL)]
        return batch.Converted([b""])

    assert batch._run_job(timers, argparse.Namespace(timeout=20), job) == (None, [])
    assert set_to == pytest.approx([20, 200], abs=1)
    timers()
    assert set_to == [0, 0]


def test_a_busy_machine_fails_no_file(errors, tmp_path):
    """The limit is CPU time: a worker that had no turn for longer than that goes on. Each file has all of it."""
    assert errors(0.5, "busy 0.7", "work 0.3", "work 0.3") == [None] * 3
    assert float((tmp_path / "0.out").read_text()) > 0.7  # seconds that passed


def test_a_file_that_works_or_waits_too_long(errors):
    assert errors(0.2, "work 60", "sleep 60", "sleep 0.3", "text") == [
        "took over 0.2 s of CPU time", "took over 2 s", None, None
    ]  # fmt: skip


def test_defaults_of_a_conversion(monkeypatch, capsys):
    assert (batch.TIMEOUT, batch.WAITING, batch.LATE, batch.RESTARTS) == (60, 10, 15, 5)
    assert (batch.MEMORY, batch.FILES_PER_WORKER) == (2**32, 2000)
    parser = batch._parser("x\n\ny")
    args = parser.parse_args(["in", "out"])
    assert (args.timeout, args.workers, args.shard) == (60, len(os.sched_getaffinity(0)), (1, 1))
    for flag, good, wrong in (
        ("--timeout", ["0.001", "1e9"], ["0", "-1", "inf", "nan"]),
        ("--workers", ["1", "99"], ["0", "-1", "1.5"]),
        ("--shard", ["1/1", "3/3", "1/3"], ["0/3", "4/3", "1/0", "-1/3"]),
    ):
        for text in good:
            parser.parse_args(["in", "out", flag, text])
        for text in wrong:
            with pytest.raises(SystemExit):
                parser.parse_args(["in", "out", f"{flag}={text}"])
    capsys.readouterr()


# Numbered outputs and shards


def outputs_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_output_of_an_earlier_run_goes(tmp_path):
    job = jobs.Job("a", tmp_path / "a.txt", tmp_path / "a.out", tmp_path / "a")
    for before, after in ((1, 2), (2, 1), (3, 2), (2, 3), (11, 1)):
        job.write([b"old"] * before)
        job.write([b"new"] * after)
        names = {"a.out"} if after == 1 else {f"a.{number}.out" for number in range(1, after + 1)}
        assert outputs_of(tmp_path) == names and job.outputs()
        assert all(path.read_bytes() == b"new" for path in tmp_path.iterdir())
        job.remove_outputs()
        assert outputs_of(tmp_path) == set() and not job.outputs()


@pytest.mark.parametrize(
    ("others", "stem"),
    [
        ([], "a"),
        (["b.1"], "a"),
        (["a.1"], "a.out"),  # whose output is a.1.out
        (["a.1", "a.out.1"], "a.out.out"),
        (["a.1", "a.out"], "a.out.out"),
        (["a.1", "a.out", "a.out.out.1"], "a.out.out.out"),
    ],
)
def test_numbered_outputs_beside_those_of_other_files(tmp_path, others, stem):
    for name in ("a", *others):
        (tmp_path / f"{name}.txt").touch()
    found = {job.name: job for job in jobs.Batch(tmp_path, tmp_path.parent / "out", (".txt",), ".out", (1, 1), True)}
    assert found["a.txt"].numbered(2).name == f"{stem}.2.out"


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 8])
def test_shards_share_out_the_files(tmp_path, shards):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(7):
        (source / f"{number}.txt").touch()
    parts = [jobs.Batch(source, tmp_path / "out", (".txt",), ".out", (i + 1, shards), True) for i in range(shards)]
    names = [[job.name for job in part] for part in parts]
    assert names == [[f"{number}.txt" for number in range(shard, 7, shards)] for shard in range(shards)]
    assert [len(part) for part in parts] == list(map(len, names))


def test_messages_of_errors_are_cut(tmp_path, monkeypatch):
    source = tmp_path / "a.txt"
    source.write_text("raise " + "x " * 400)
    job = jobs.Job("a", source, tmp_path / "a.out", None)
    error, warnings = batch._run_job(batch_script.convert, argparse.Namespace(timeout=20), job)
    message = ("x " * 400).strip()[:500]
    assert error.startswith(f"ValueError: {message} (batch_script.py, line ") and not warnings
    with pytest.raises(ValueError) as caught:
        mtf.mtf_to_midi("ticks_per_beat 96\n" + "y" * 100)
    assert f"line 2 ({'y' * 60!r})" in str(caught.value)
