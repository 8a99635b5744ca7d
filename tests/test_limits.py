"""Limits and counters of files, conversions and loaders: each at its limit, one below and one above."""

import itertools
import os
import signal
import sys
import tracemalloc
from pathlib import Path

import pytest

import batch
import batch_script
import files
import jobs
import loading
import merge_jsonl
import mtf
import musicxml
import records
import workers
import xml_abc
from files import InputError
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
    with pytest.raises(records.Unfit, match="over 1 MiB"):
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
            with pytest.raises(InputError, match=reason):
                musicxml.read(whole)
        assert "container.xml' unpacks to over" in musicxml.read(archives[2])[1][0]


def test_no_more_is_unpacked_than_a_score_may_have(monkeypatch):
    monkeypatch.setattr(musicxml, "MAX_BYTES", 100_000)
    bomb = mxl({"a.xml": b" " * 20_000_000}, ["a.xml"])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="unpacks to over"):
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
        with pytest.raises(InputError, match="nested over 100 deep"):
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
    assert xml_abc._shortened(printed) == xml_abc._shortened(printed + printed) == expected


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
        tried = f"{tries} pieces in a row could not be used for training, {tries} different one(s)"
        assert pieces[2, 5] == {"fatal": f"{tried}; the last: {last}"}
        assert len(pieces.asked) == tries
    # Any piece may be drawn: that one of the seven is missing among a hundred has a chance of one in 700,000.
    assert pieces.asked[0] == 5 and (set(pieces.asked) == set(range(7)) or tries < 100)


# Worker processes


@pytest.fixture
def orders(tmp_path, monkeypatch):
    """What comes of some orders, each a file for the stand-in of a converter: (value or reason of each, files begun)."""
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def run(*orders, timeout=20.0, processes=1):
        paths = [tmp_path / f"{number}.txt" for number in range(len(orders))]
        for path, order in zip(paths, orders, strict=True):
            path.write_text(order)
        found = dict(workers.run(batch_script.write, paths, timeout, processes))
        values = [value.reason if isinstance(value, workers.Failed) else value for value in map(found.get, paths)]
        return values, [int(Path(name).stem) for name in (tmp_path / "calls").read_text().split()]

    return run


def test_what_a_death_means(orders):
    """A time limit's signal is the file's own doing; any other death may be another's, so there is a second try.

    Ctrl-C, signal 2, is for the main process.
    """
    crashes = ["signal 11", "exit 0", "exit 3", "die_once", "signal 14", "signal 27", "warn x", "signal 2"]
    values, begun = orders(*crashes)
    died = "the converter process died ({})"
    assert values == [
        died.format("killed by signal 11"), died.format("exit status 0"), died.format("exit status 3"), [],
        "took over 200 s", "took over 20 s of CPU time", ["x", "again"], [],
    ]  # fmt: skip
    assert sorted(begun) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7]


def test_workers_that_cannot_start_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"^worker processes cannot start: .*exit status 1\)$"):
        list(workers.run(batch_script.write, [tmp_path / "a.txt"]))


def test_what_cannot_be_sent_costs_itself_alone():
    answers = dict(workers.run(os.path.basename, ["a/b", 3, "c/d"], processes=1))
    assert answers.pop(3).reason.startswith("TypeError: expected str") and answers == {"a/b": "b", "c/d": "d"}
    [(_, failed)] = workers.run(memoryview, [b"no pickle"], processes=1)
    assert failed.reason.startswith("TypeError: cannot pickle")


@pytest.mark.parametrize("processes", [1, 3])
def test_items_that_are_taken_ahead(processes):
    """One for each worker, while the results of others wait: the list may be endless."""
    taken = itertools.count()
    found = workers.run(abs, (next(taken) for _ in itertools.repeat(None)), processes=processes)
    for _ in range(30):
        assert next(found)[1] >= 0
    assert next(taken) <= 30 + 2 * processes
    found.close()


def test_no_worker_is_left():
    """Neither after the last item, nor where the results are no longer wanted."""
    for wanted in (None, 1):
        found = workers.run(batch_script.process_id, range(5), processes=2)
        pids = {pid for _, pid in itertools.islice(found, wanted)}
        found.close()
        assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_items_of_one_worker(monkeypatch):
    """A fresh process takes over after ITEMS_PER_WORKER; without that, one does all."""
    for limit, expected in ((2, [2, 2, 1]), (2000, [5])):
        monkeypatch.setattr(workers, "ITEMS_PER_WORKER", limit)
        pids = [pid for _, pid in workers.run(batch_script.process_id, range(5), processes=1)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == expected and os.getpid() not in pids


def timers(_=None) -> list[float]:
    return [signal.getitimer(which)[0] for which in (signal.ITIMER_PROF, signal.ITIMER_REAL)]


def test_no_time_limit_goes_on_when_a_file_is_done():
    """A worker may wait for its next file as long as it has to."""
    answers: list = []
    workers._answer(answers.append, timers, None, 20)
    assert answers == [(pytest.approx([20, 200], abs=1),)] and timers() == [0, 0]


def test_a_busy_machine_fails_no_file(orders, tmp_path):
    """The limit is CPU time: a worker that had no turn for longer than that goes on. Each file has all of it."""
    assert orders("busy 0.7", "work 0.3", "work 0.3", timeout=0.5)[0] == [[]] * 3
    assert float((tmp_path / "0.out").read_text()) > 0.7  # seconds that passed


def test_a_file_that_works_or_waits_too_long(orders):
    assert orders("work 60", "sleep 60", "sleep 0.3", "text", timeout=0.2) == (
        ["took over 0.2 s of CPU time", "took over 2 s", [], []], [0, 1, 2, 3]
    )  # fmt: skip


def test_defaults_of_a_conversion(capsys):
    assert (workers.TIMEOUT, workers.WAITING, workers.MEMORY, workers.ITEMS_PER_WORKER) == (60, 10, 2**32, 2000)
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
    found = {job.name: job for job in jobs.Jobs(tmp_path, tmp_path.parent / "out", (".txt",), ".out", (1, 1), True)}
    assert found["a.txt"].numbered(2).name == f"{stem}.2.out"


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 8])
def test_shards_share_out_the_files(tmp_path, shards):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(7):
        (source / f"{number}.txt").touch()
    parts = [jobs.Jobs(source, tmp_path / "out", (".txt",), ".out", (i + 1, shards), True) for i in range(shards)]
    names = [[job.name for job in part] for part in parts]
    assert names == [[f"{number}.txt" for number in range(shard, 7, shards)] for shard in range(shards)]
    assert [len(part) for part in parts] == list(map(len, names))


def test_messages_of_errors_are_cut(tmp_path, monkeypatch):
    source = tmp_path / "a.txt"
    source.write_text("raise " + "x " * 400)
    answers: list = []
    workers._answer(answers.append, batch_script.write, source, 20)
    error = answers[0][0].reason
    message = ("x " * 400).strip()[:500]
    assert error.startswith(f"ValueError: {message} (batch_script.py, line ")
    with pytest.raises(ValueError) as caught:
        mtf.mtf_to_midi("ticks_per_beat 96\n" + "y" * 100)
    assert f"line 2 ({'y' * 60!r})" in str(caught.value)
