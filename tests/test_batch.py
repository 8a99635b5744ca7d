"""The batch runner, through a real script (`batch_script.py`) in real processes."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batch_script
import files
import jobs
import workers

SCRIPT = Path(__file__).with_name("batch_script.py")


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        input="NOISE",
        env=os.environ | environment,
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture
def call(capsys):
    """Runs the script in this process, with workers of their own as ever; gives the last line that it prints."""

    def run_here(*arguments: object, status: int = 0) -> str:
        assert batch_script.main([*map(str, arguments), "--workers", "1"]) == status
        return capsys.readouterr().out.splitlines()[-1]

    return run_here


def write(folder: Path, **contents: str) -> Path:
    """Files of the given names (`a__b` is a/b.txt) and contents."""
    for name, content in contents.items():
        path = folder / (name.replace("__", "/") + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the record of sources, whose times differ from run to run."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".sources.out.")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def recorded(folder: Path) -> list[list]:
    """Source and outputs of each line of the record."""
    lines = [json.loads(line) for line in (folder / ".sources.out.jsonl").read_text().splitlines()]
    return [[line[1], *line[6:]] for line in lines]


def log(path: Path) -> dict[str, object]:
    entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert all(len(entry) == 2 for entry in entries)
    assert [entry["file"] for entry in entries] == sorted(entry["file"] for entry in entries)
    return {entry.pop("file"): entry.popitem()[1] for entry in entries}


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_bad_files_cost_only_themselves(tmp_path, call):
    source = write(
        tmp_path / "in",
        segfault=f"signal {signal.SIGSEGV}",
        killed=f"signal {signal.SIGKILL}",
        exit="exit 3",
        sub__sys_exit="sys.exit bye",
        sub__deep__slow="work 100",
        memory="memory",
        refused="refuse there is no music in it",
        broken="raise two\nlines",
        nothing="nothing",
        noisy="print",
        **{f"good__{number}": f"text {number}" for number in range(20)},
    )
    (source / "readme.md").write_text("ignored")
    done = run(source, tmp_path / "out", "--workers", 2, "--timeout", 1, status=1)
    errors = log(tmp_path / "out" / "errors.jsonl")
    assert errors.pop("broken.txt").startswith("ValueError: two lines (batch_script.py, line ")
    assert errors.pop("sub/sys_exit.txt").startswith("SystemExit: bye (batch_script.py, line ")
    assert errors == {
        "segfault.txt": "the converter process died (killed by signal 11)",
        "killed.txt": "the converter process died (killed by signal 9)",
        "exit.txt": "the converter process died (exit status 3)",
        "sub/deep/slow.txt": "took over 1 s of CPU time",
        "memory.txt": "needs more than 4 GB of memory",
        "refused.txt": "there is no music in it",
        "nothing.txt": "nothing in it to convert",
    }
    outputs = tree(tmp_path / "out")
    assert outputs.pop("errors.jsonl") and outputs.pop("noisy.out")
    assert outputs == {f"good/{number}.out": f"text {number}".encode() for number in range(20)}
    counts = "21 done, 0 skipped (finished before), 9 failed, 0 with warnings, 1 other files ignored\n"
    assert done.stdout == counts  # and no noise
    assert "done=21, skipped=0, failed=9" in done.stderr and "errors.jsonl names 9 file(s)" in done.stderr
    assert "NOISE" not in done.stderr

    # Repaired, they are converted on the next start, and the log goes.
    for name in errors.keys() | {"broken.txt", "sub/sys_exit.txt"}:
        (source / name).write_text("text good now")
    assert call(source, tmp_path / "out").startswith("9 done, 21 skipped (finished before), 0 failed")
    assert not (tmp_path / "out" / "errors.jsonl").exists()


def test_any_number_of_workers_gives_the_same(tmp_path):
    orders = {f"w{number}": f"warn {number}" for number in range(9)} | {f"h{number}": "hash" for number in range(6)}
    orders |= {f"r{number}": f"refuse {number}" for number in range(5)} | {"several": "several 1 22 333"}
    source = write(tmp_path / "in", **orders)
    for count in (1, 3):
        run(source, tmp_path / f"out{count}", "--workers", count, status=1)
    assert tree(tmp_path / "out1") == tree(tmp_path / "out3")
    assert log(tmp_path / "out1" / "warnings.jsonl") == {f"w{n}.txt": [str(n), "again"] for n in range(9)}
    assert len({content for name, content in tree(tmp_path / "out1").items() if name.startswith("h")}) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_runs_go_on(tmp_path, call, number, status):
    calls = tmp_path / "calls"
    source = write(tmp_path / "in", a="warn first", b="refuse no", c="text", y="sleep 100", z="sleep 100")
    process = subprocess.Popen(
        command(source, tmp_path / "out", "--workers", 2),
        env=os.environ | {"CALLS": str(calls)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    wait_for(lambda: calls.exists() and {"y.txt", "z.txt"} <= set(calls.read_text().split()))
    wait_for((tmp_path / "out" / "warnings.jsonl").exists)
    wait_for((tmp_path / "out" / "c.out").exists)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
    else:
        os.kill(process.pid, number)
    assert process.wait(300) == status
    assert set(tree(tmp_path / "out")) == {"a.out", "c.out", "errors.jsonl", "warnings.jsonl"}
    if number == signal.SIGKILL:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, which would first finish their files
        (tmp_path / "out" / f"{files._TEMPORARY}{process.pid}-left").touch()
        with open(tmp_path / "out" / "warnings.jsonl", "a") as file:
            file.write('{"file": "c.t')  # written half when the kill came
    else:
        assert log(tmp_path / "out" / "errors.jsonl") == {"b.txt": "no"}

    write(source, b="text", y="text", z="text")
    assert call(source, tmp_path / "out").startswith("3 done, 2 skipped")
    assert log(tmp_path / "out" / "warnings.jsonl") == {"a.txt": ["first", "again"]}
    assert set(tree(tmp_path / "out")) == {*(f"{name}.out" for name in "abcyz"), "warnings.jsonl"}


def test_a_worker_that_dies_between_files_costs_nothing(tmp_path):
    def slowly():
        yield tmp_path / "first.txt"
        time.sleep(1.5)  # longer than it takes the first file's worker to die
        yield tmp_path / "second.txt"

    write(tmp_path, first="die_later 0.5", second="text")
    found = [(path.stem, warnings) for path, warnings in workers.run(batch_script.write, slowly(), 20, 1)]
    assert found == [("first", []), ("second", [])]
    assert {"first.out", "second.out"} < set(tree(tmp_path))


def test_shards(tmp_path, call):
    source = write(tmp_path / "in", **{f"a{number}": f"text {number}" for number in range(12)})
    write(source, a3="several 3 33", w="warn w", r="refuse r")
    (source / "a1.text").write_text("text of the other a1")
    call(source, tmp_path / "whole", status=1)
    commands = [command(source, tmp_path / "parts", "--workers", 1, "--shard", f"{part}/3") for part in (1, 2, 3)]
    shards = [subprocess.Popen(shard, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for shard in commands]
    lines = [shard.communicate(timeout=300)[0].decode() for shard in shards]
    assert sorted(shard.returncode for shard in shards) == [0, 0, 1]
    assert sum(int(line.split()[0]) for line in lines) == 14
    whole, parts = tree(tmp_path / "whole"), tree(tmp_path / "parts")
    assert {"a1.txt.out", "a1.text.out", "a3.1.out", "a3.2.out"} < set(whole)
    logs = {name for name in parts if name.endswith(".jsonl")}
    assert len(logs) == 2 and all("-of-3.jsonl" in name for name in logs)
    assert {name: content for name, content in parts.items() if name not in logs} == {
        name: content for name, content in whole.items() if not name.endswith(".jsonl")
    }
    # Without --shard, a run puts the logs together.
    assert call(source, tmp_path / "parts", status=1).startswith("0 done, 14 skipped (finished before), 1 failed")
    assert tree(tmp_path / "parts") == whole
    assert len(list((tmp_path / "parts").glob(".sources*"))) == 1
    assert recorded(tmp_path / "parts") == recorded(tmp_path / "whole") and len(recorded(tmp_path / "whole")) == 15


def test_more_shards_than_files(tmp_path, call):
    source = write(tmp_path / "in", a="text")
    assert call(source, tmp_path / "out", "--shard", "2/2").startswith("0 done")
    assert tree(tmp_path / "out") == {}


def test_single_file_leaves_the_logs_of_the_others(tmp_path, call):
    source = write(tmp_path / "in", a="warn a", b="warn b", c="refuse c", d="refuse d")
    call(source, tmp_path / "out", status=1)
    write(source, c="warn c")
    call(source / "c.txt", tmp_path / "out")
    call(source / "a.txt", tmp_path / "out", "--overwrite")
    assert log(tmp_path / "out" / "errors.jsonl") == {"d.txt": "d"}
    assert log(tmp_path / "out" / "warnings.jsonl") == {f"{name}.txt": [name, "again"] for name in "abc"}
    (source / "d.txt").unlink()
    call(source, tmp_path / "out")
    assert not (tmp_path / "out" / "errors.jsonl").exists()


def test_overwrite(tmp_path, call):
    source = write(tmp_path / "in", more="several 1 2 3", fewer="several 1 2 3", one="several 1 2 3", bad="text")
    source = write(source, grown="text 1", other="text")
    call(source, tmp_path / "out")
    assert (tmp_path / "out" / "more.1.out").read_bytes() == b"1" and not (tmp_path / "out" / "more.out").exists()
    write(source, more="several 4 5 6 7", fewer="several 8 9", one="text", bad="refuse no", grown="several 1 2")
    call(source, tmp_path / "out", status=1)
    for path in (tmp_path / "out").glob("*.out"):
        path.write_bytes(b"damaged")
    assert call(source, tmp_path / "out", status=1).startswith("0 done, 5 skipped (finished before), 1 failed")
    call(source, tmp_path / "out", "--overwrite", status=1)
    assert tree(tmp_path / "out") == {
        **{f"more.{number}.out": b"%d" % (number + 3) for number in range(1, 5)},
        **{"fewer.1.out": b"8", "fewer.2.out": b"9", "one.out": b"text ", "other.out": b"text "},
        **{"grown.1.out": b"1", "grown.2.out": b"2"},
        "errors.jsonl": b'{"file": "bad.txt", "error": "no"}\n',
    }


def test_several_outputs_count_as_finished_only_when_all_are_written(tmp_path, monkeypatch):
    job = jobs.Job("a", tmp_path / "a.txt", tmp_path / "a.out", tmp_path / "a")
    write_one, written = files.atomic_write, []

    def full_disk(path, *rest):
        written.append(path.name)
        if len(written) == 3:
            raise OSError("No space left on device")
        return write_one(path, *rest)

    monkeypatch.setattr(files, "atomic_write", full_disk)
    with pytest.raises(OSError, match="No space"):
        job.write([b"1", b"2", b"3"])
    assert written == ["a.3.out", "a.2.out", "a.1.out"] and not job.outputs()
    job.write([b"4", b"5"])
    assert tree(tmp_path) == {"a.1.out": b"4", "a.2.out": b"5"} and job.outputs()


def test_numbered_outputs_do_not_meet_other_files(tmp_path, call, monkeypatch):
    orders = {"a": "several 1 2", "a.1": "text a.1", "a.1.1": "text a.1.1", "b": "text b", "b.1": "several 3 4"}
    source = write(tmp_path / "in", **orders)
    call(source, tmp_path / "out")
    assert tree(tmp_path / "out") == {
        **{"a.out.1.out": b"1", "a.out.2.out": b"2", "a.1.out": b"text a.1", "a.1.1.out": b"text a.1.1"},
        **{"b.out": b"text b", "b.1.1.out": b"3", "b.1.2.out": b"4"},
    }
    assert call(source, tmp_path / "out").startswith("0 done, 5 skipped")
    # A converter that gives one output each is not misled by such names, not even for a single file.
    monkeypatch.setenv("ONE", "1")
    (tmp_path / "out" / "b.out").unlink()
    assert call(source / "b.txt", tmp_path / "out").startswith("1 done")
    assert (tmp_path / "out" / "b.1.1.out").exists()
    call(source / "a.txt", tmp_path / "failed", status=1)
    assert "declared with several=False" in log(tmp_path / "failed" / "errors.jsonl")["a.txt"]


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path):
    """`--json /dev/null`, by root, would leave a file there, which every program then reads and fills."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with files.atomic_write(pipe) as file:
        file.write(b"text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    os.close(reader)


def test_a_file_is_not_written_in_place_of_a_folder(tmp_path):
    """The error names the folder, not a temporary file beside it."""
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError) as found, files.atomic_write(tmp_path / "out"):
        pass
    assert str(found.value).endswith(f"a folder, where a file is to be written: '{tmp_path / 'out'}'")


def test_output_that_nobody_reads(monkeypatch, capsys):
    """As of `| head -1`, without an error then and when the stream is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    out = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", out)
    parser = argparse.ArgumentParser()
    parser.set_defaults(run=lambda args: print("a line") or 0)
    assert files.run_command(parser, []) == 141
    out.close()
    assert capsys.readouterr().err == ""


NAMES = st.lists(st.sampled_from(["a", "b", "1", "2", "out", "txt", "12"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(NAMES.map(lambda name: Path(name + ".txt")), min_size=1, max_size=12))
def test_no_two_inputs_share_an_output(inputs):
    names = files.output_names(sorted(inputs), ".out")
    stems = jobs._numbered_stems(names, ".out")
    places = [jobs.Job("", path, names[path], stems[path]) for path in inputs]
    possible = [{job.output, *(job.numbered(number) for number in (1, 2, 3, 12))} for job in places]
    assert len(set().union(*possible)) == sum(map(len, possible))
    if not any(path.stem.rpartition(".")[2].isdecimal() for path in inputs):
        assert all(stems[path].name + ".out" == names[path].name for path in inputs)


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_names_that_differ_in_case_alone(monkeypatch, system):
    """To the file systems of a Mac and of Windows they are one, and so are é and e with an accent."""
    monkeypatch.setattr(sys, "platform", system)
    inputs = [Path(name) for name in ("A.mid", "a.midi", "b.mid", "sub/\u00e9.mid", "sub/e\u0301.midi")]
    names = ["A.out", "a.out", "b.out", "sub/\u00e9.out", "sub/e\u0301.out"]
    if system != "linux":
        names = ["A.mid.out", "a.midi.out", "b.out", "sub/\u00e9.mid.out", "sub/e\u0301.midi.out"]
    assert files.output_names(inputs, ".out") == dict(zip(inputs, map(Path, names), strict=True))


def test_odd_names(tmp_path, call):
    source = write(tmp_path / "in", **{"月亮 代表": "warn 心", "a\u2028b": "refuse no"})
    bad = os.fsencode(source) + b"/\xff.txt"
    with open(bad, "w") as file:
        file.write("refuse no")
    (source / ".hidden.txt").write_text("text")
    (source / "CAPITAL.TXT").write_text("text")
    call(source, tmp_path / "out", status=1)
    assert set(tree(tmp_path / "out")) == {"月亮 代表.out", "CAPITAL.out", "errors.jsonl", "warnings.jsonl"}
    lines = (tmp_path / "out" / "errors.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(line)["file"] for line in lines if line] == ["a\u2028b.txt", os.fsdecode(b"\xff.txt")]
    assert "月亮" in (tmp_path / "out" / "warnings.jsonl").read_text("utf-8")
    write(source, **{"a\u2028b": "text"})
    call(source, tmp_path / "out", status=1)
    assert len(log(tmp_path / "out" / "errors.jsonl")) == 1 and len(log(tmp_path / "out" / "warnings.jsonl")) == 1


def test_wrong_use(tmp_path, capsys):
    source = write(tmp_path / "in", a="text", sub__b="text")
    other = write(tmp_path / "other", a="text")
    (other / "a.txt").rename(other / "a.md")
    (tmp_path / "link").symlink_to(source)
    for arguments, message in [
        ([], "required"),
        ([tmp_path / "none", tmp_path / "out"], "no such file or folder"),
        ([other, tmp_path / "out"], "no .txt or .text file there (1 other files)"),
        ([source, source], "choose a folder outside"),
        ([source, source / "out"], "choose a folder outside"),
        ([tmp_path / "link", source / "sub"], "choose a folder outside"),
        ([source, source / "a.txt"], "is a file"),
        ([source, other / "a.md"], "is a file"),
        ([source, tmp_path / "out", "--workers", 0], "0 is not positive"),
        ([source, tmp_path / "out", "--workers", "two"], "invalid int value"),
        ([source, tmp_path / "out", "--timeout", "nan"], "not positive"),
        *(([source, tmp_path / "out", "--shard", shard], "is not I/N") for shard in ("0/2", "3/2", "2", "a/b", "")),
    ]:
        with pytest.raises(SystemExit, match="2"):
            batch_script.main([str(argument) for argument in arguments])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert set(tree(source)) == {"a.txt", "sub/b.txt"}


def test_inputs_are_not_overwritten(tmp_path, call):
    write(tmp_path / "data" / "in", a="text", **{"in__a": "text"})
    with pytest.raises(ValueError, match="would be overwritten"):
        jobs.Jobs(tmp_path / "data" / "in", tmp_path / "data", (".txt",), ".txt", (1, 1), True)
    with pytest.raises(ValueError, match="would be overwritten"):
        jobs.Jobs(tmp_path / "data" / "in" / "a.txt", tmp_path / "data" / "in", (".txt",), ".txt", (1, 1), True)
    # The folder above, or the file's own, are fine where nothing meets.
    assert len(jobs.Jobs(tmp_path / "data" / "in" / "in", tmp_path / "data", (".txt",), ".out", (1, 1), True)) == 1
    call(tmp_path / "data" / "in" / "a.txt", tmp_path / "data" / "in")
    assert (tmp_path / "data" / "in" / "a.out").exists()


def test_help_says_it_all(capsys):
    with pytest.raises(SystemExit, match="0"):
        batch_script.main(["--help"])
    help_text = capsys.readouterr().out
    assert all(word in help_text for word in ("INPUT_DIR", "OUTPUT_DIR", "--shard I/N", "--overwrite", "examples:"))
