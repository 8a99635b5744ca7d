"""What an extraction counts, reports, skips and refuses. The model is a stand-in that returns what it reads."""

import hashlib
import json
import os
import socket
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
import config
import extraction
from files import InputError
from processes import Processes

SUFFIXES = (".abc", ".txt")


def manifest_of(target: Path) -> Path:
    return target.with_name(target.name + ".extraction.json")


def errors_of(target: Path) -> Path:
    return target.with_name(target.name + ".errors.jsonl")


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """Returns what it reads, three files late. The fixture is what else it was given."""
    given = []

    def embed(model, items, pooled, batch_tokens, dtype):
        given.append((batch_tokens, dtype))
        waiting = []
        for key, item in items:
            waiting.append((key, item.mean(axis=0) if pooled else item))
            if len(waiting) > 3:
                yield waiting.pop(0)
        yield from waiting

    monkeypatch.setattr(extraction, "embed", embed)
    monkeypatch.setattr(Processes, "device", torch.device("cpu"))
    return given


def read(keep_unit_length: bool, path: Path) -> np.ndarray:
    text = path.read_text()
    if text == "bad":
        raise InputError(f"{path}: no music in it")
    return np.arange(3 * int(text), dtype=np.float32).reshape(-1, 3)


def extract(source, target, weights, pooled=False, job=None, load_model=lambda: A_MODEL, remove_orphans=False) -> int:
    job = job or Processes()
    return extraction.extract(job, source, target, SUFFIXES, weights, load_model, read, pooled, False, remove_orphans)


A_MODEL = types.SimpleNamespace(keep_unit_length=False)


def no_model():
    raise AssertionError("a model is loaded for nothing")


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"weights")
    return tmp_path / "weights.pth"


def write_files(folder: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def make_older(path: Path, seconds: float) -> None:
    changed = path.stat().st_mtime - seconds
    os.utime(path, (changed, changed))


# --- what is counted and written --------------------------------------------------------------------------------------


def test_each_file_is_counted_once(tmp_path, weights, capsys):
    contents = {"a.abc": "1", "b/c.txt": "5", "b/a.abc": "bad", "d.txt": "2", "é.txt": "bad", "x.pdf": "", "y.pdf": ""}
    source, target = write_files(tmp_path / "in", contents), tmp_path / "out"
    assert extract(source, target, weights) == 1
    done = capsys.readouterr()
    assert done.out.splitlines()[0] == f"5 files, 1 x CPU, float32, {weights}"
    assert done.out.splitlines()[-1] == (
        "3 done, 0 skipped (they were there), 2 failed; 2 files of other types left alone"
    )
    for name, length in (("a", 1), ("b/c", 5), ("d", 2)):
        np.testing.assert_array_equal(np.load(target / f"{name}.npy"), np.arange(3 * length).reshape(1, length, 3))
    assert np.load(target / "a.npy").dtype == np.float32 and len(list(target.rglob("*.npy"))) == 3
    written = errors_of(target).read_text(encoding="utf-8")
    errors = [json.loads(line) for line in written.splitlines()]
    assert "é.txt" in written  # as a person reads it
    assert errors == [{"file": name, "error": f"{source / name}: no music in it"} for name in ("b/a.abc", "é.txt")]
    shown = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert shown == [f"failed: {error['error']}" for error in errors]

    (source / "é.txt").write_text("4")
    (source / "b" / "a.abc").unlink()
    (source / "x.pdf").unlink(), (source / "y.pdf").unlink()
    make_older(source / "a.abc", 100)
    (source / "d.txt").write_text("3")
    make_older(source / "d.txt", 1000)  # than its feature, but another piece
    leftover = target / "b" / f".tmp-{socket.gethostname()[:64]}-999999999-00000000"  # of a process that was killed
    leftover.touch()
    assert extract(source, target, weights) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 done, 2 skipped (they were there), 0 failed"
    assert not errors_of(target).exists() and not leftover.exists()

    assert extract(source, target, weights, load_model=no_model) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 done, 4 skipped (they were there), 0 failed"


def test_one_file_and_pooled_features(tmp_path, weights):
    source = write_files(tmp_path / "in", {"a.abc": "4", "b.abc": "1"}) / "a.abc"
    assert extract(source, tmp_path / "out", weights, pooled=True) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npy"), [[4.5, 5.5, 6.5]])
    assert not (tmp_path / "out" / "b.npy").exists()


def test_a_name_that_would_steer_a_terminal_is_escaped(tmp_path, weights, capsys):
    source = write_files(tmp_path / "in", {"\x1b[31m\nred\x9b 月\u3000亮.txt": "bad"})
    assert extract(source, tmp_path / "out", weights) == 1
    [line] = [line for line in capsys.readouterr().err.split("\n") if "failed" in line]
    assert line == f"failed: {source}/\\x1b[31m\\nred\\x9b 月\u3000亮.txt: no music in it"


@pytest.mark.parametrize("count", [19, 20, 21, 40])
def test_the_first_failures_are_shown_and_all_are_written(tmp_path, weights, capsys, count):
    source = write_files(tmp_path / "in", {f"{number:02}.txt": "bad" for number in range(count)} | {"x.abc": "1"})
    assert extract(source, tmp_path / "out", weights) == 1
    done = capsys.readouterr()
    assert done.out.splitlines()[-1] == f"1 done, 0 skipped (they were there), {count} failed"
    shown = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert shown == [f"failed: {source}/{number:02}.txt: no music in it" for number in range(min(count, 20))]
    more = f"... and {count - 20} more, all in {errors_of(tmp_path / 'out')}"
    assert (more in done.err) is (count > 20) and ("more" in done.err) is (count > 20)
    assert len(errors_of(tmp_path / "out").read_text().splitlines()) == count


def test_the_settings_of_the_computation(tmp_path, weights, model, monkeypatch, capsys):
    source = write_files(tmp_path / "in", {"a.abc": "1"})
    monkeypatch.setattr(config, "EXTRACT_BATCH_TOKENS", 77)
    monkeypatch.setattr(config, "EXTRACT_PRECISION", "bfloat16")
    assert extract(source, tmp_path / "out", weights) == 0
    assert model == [(77, torch.bfloat16)]
    assert capsys.readouterr().out.startswith(f"1 file, 1 x CPU, bfloat16, {weights}\n")


@pytest.mark.parametrize(
    ("files", "workers", "processes"), [(40, 0, 0), (31, 1, 0), (32, 1, 1), (64, 2, 2), (64, 1, 1)]
)
def test_workers_read_where_there_are_many_files(tmp_path, monkeypatch, files, workers, processes):
    """As many as NUM_WORKERS has, and one for every 32 files at most."""
    monkeypatch.setattr(config, "NUM_WORKERS", workers)
    paths = [Path(str(number)) for number in range(files)]
    reader = extraction.read_ahead(tmp_path, paths, lambda path: np.array([os.getpid(), int(path.name)]))
    found = np.array(list(reader))
    assert found[:, 1].tolist() == list(range(files))
    assert len(set(found[:, 0].tolist()) - {os.getpid()}) == processes
    assert (os.getpid() in found[:, 0]) is (processes == 0)


def test_a_model_is_loaded_from_its_part_of_a_checkpoint(tmp_path):
    part = {"weight": torch.randn(1, 2), "bias": torch.randn(1)}
    others = {"decoder.weight": torch.zeros(3)}
    torch.save({"model": {f"encoder.{name}": value for name, value in part.items()} | others}, tmp_path / "w.pth")
    model = checkpoints.load(torch.nn.Linear(2, 1), tmp_path / "w.pth", "encoder.")
    assert all(torch.equal(value, part[name]) for name, value in model.state_dict().items())
    torch.save({"model": part}, tmp_path / "w.pth")
    assert torch.equal(checkpoints.load(torch.nn.Linear(2, 1), tmp_path / "w.pth").weight, part["weight"])


def test_a_feature_file_whose_name_is_too_long_fails_alone(tmp_path, weights, capsys):
    long = "x" * 251
    source = write_files(tmp_path / "in", {f"{long}.abc": "1", f"{long}.txt": "2", "y.abc": "3"})
    assert extract(source, tmp_path / "out", weights) == 1
    done = capsys.readouterr()
    assert done.out.splitlines()[-1] == "1 done, 0 skipped (they were there), 2 failed"
    errors = [json.loads(line) for line in errors_of(tmp_path / "out").read_text().splitlines()]
    assert [error["file"] for error in errors] == [f"{long}.abc", f"{long}.txt"]
    assert errors[0]["error"] == (f"{source}/{long}.abc: the name of its feature file, {long}.abc.npy, is too long")


def test_another_error_of_writing_ends_the_extraction(tmp_path, weights):
    source = write_files(tmp_path / "in", {"a.abc": "1"})
    (tmp_path / "out" / "a.npy").mkdir(parents=True)
    make_older(tmp_path / "out" / "a.npy", 100)
    with pytest.raises(OSError, match=r"a\.npy"):
        extract(source, tmp_path / "out", weights)


class Job(Processes):
    """Processes as threads: `gather` and `wait_for_all` are theirs together."""

    @classmethod
    def run(cls, size: int, function) -> list:
        """What `function(job)` returns in each of them."""
        cls.barrier, cls.values = threading.Barrier(size, timeout=20), [None] * size
        results = [None] * size

        def start(rank: int) -> None:
            results[rank] = function(cls(rank, rank, size))

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def gather(self, value):
        self.values[self.rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def wait_for_all(self):
        self.barrier.wait()


def test_processes_share_the_files_and_the_counts_are_of_all(tmp_path, weights, capsys):
    """Nine files for three processes: one fails in each of two, one is there already, two would meet in one name."""
    contents = {f"{number}.abc": "bad" if number in (1, 6) else str(number + 1) for number in range(8)}
    contents["7.txt"] = "30"
    source, target = write_files(tmp_path / "in", contents), tmp_path / "out"
    target.mkdir()
    np.save(target / "4.npy", np.zeros(1))
    assert Job.run(3, lambda job: extract(source, target, weights, job=job)) == [1, 1, 1]
    done = capsys.readouterr()
    assert done.out.splitlines() == [
        f"9 files, 3 x CPU, float32, {weights}",
        "6 done, 1 skipped (they were there), 2 failed",
    ]
    assert [line[-22:] for line in done.err.splitlines() if line.startswith("failed")] == [
        f"/{number}.abc: no music in it" for number in (1, 6)
    ]
    for name, length in {"0": 1, "2": 3, "3": 4, "5": 6, "7.abc": 8, "7.txt": 30}.items():
        assert np.load(target / f"{name}.npy").shape == (1, length, 3)
    assert np.load(target / "4.npy").shape == (1,)


# --- what the features of a folder were made with ---------------------------------------------------------------------


def test_the_manifest_says_what_the_features_were_made_with(tmp_path, weights):
    digest = hashlib.sha256(b"weights").hexdigest()
    for pooled, form, keep in ((False, "temporal", False), (True, "--normalize", True)):
        target = tmp_path / form
        extraction.prepare_target(target, weights, pooled, keep)
        facts = {"weights": "weights.pth", "sha256": digest, "form": form}
        facts |= {"precision": "float32", "KEEP_UNIT_LENGTH": keep}
        assert json.loads(manifest_of(target).read_text()) == facts
    note = {"repository": "some/where", "revision": "abc", "sha256": digest, "bytes": 7}
    (tmp_path / "weights.pth.json").write_text(json.dumps(note))  # that of a download
    extraction.prepare_target(tmp_path / "temporal", weights, False)
    written = json.loads(manifest_of(tmp_path / "temporal").read_text())
    assert (written["repository"], written["revision"], written["sha256"]) == ("some/where", "abc", digest)


@pytest.mark.parametrize(
    ("content", "pooled", "made_with"),
    [
        (b"WEIGHTS", False, "other weights"),
        (b"weights", True, "form temporal, and not of form --normalize"),
    ],
    ids=["weights", "form"],
)
def test_a_folder_of_other_features_is_refused_and_left_as_it_is(tmp_path, weights, capsys, content, pooled, made_with):
    source, target = write_files(tmp_path / "in", {"a.abc": "1", "b.abc": "bad"}), tmp_path / "out"
    extract(source, target, weights)
    (source / "b.abc").write_text("2")
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in paths}
    (tmp_path / "others").mkdir()
    other = tmp_path / "others" / "other.pth"
    other.write_bytes(content)
    with pytest.raises(InputError) as raised:
        extract(source, target, other, pooled, load_model=no_model)
    here, asked = (hashlib.sha256(data).hexdigest()[:12] for data in (b"weights", content))
    of = f"weights.pth ({here}...), and not of other.pth ({asked}...)" if here != asked else made_with
    assert str(raised.value) == (
        f"{target}: holds features of {of}, as is asked for now; name another output folder, or remove it and"
        f" {manifest_of(target)}"
    )
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != other}
    assert after == before
    other.write_bytes(b"weights")  # the same, under another name
    assert extract(source, target, other) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 done, 1 skipped (they were there), 0 failed"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("EXTRACT_PRECISION", "bfloat16", "precision float32, and not of precision bfloat16"),
        ("KEEP_UNIT_LENGTH", False, "KEEP_UNIT_LENGTH True, and not of KEEP_UNIT_LENGTH False"),
    ],
)
def test_features_of_other_settings_are_refused(tmp_path, weights, monkeypatch, name, value, told):
    def prepare():
        extraction.prepare_target(tmp_path / "out", weights, False, config.KEEP_UNIT_LENGTH)

    prepare()
    (tmp_path / "out" / "a.npy").touch()
    prepare()
    monkeypatch.setattr(config, name, value)
    with pytest.raises(InputError, match=told):
        prepare()
    (tmp_path / "out" / "a.npy").unlink()  # a folder without features may be used for others
    prepare()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sha256": "a"}'])
def test_a_damaged_manifest_is_named(tmp_path, weights, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.npy").touch()
    manifest_of(tmp_path / "out").write_text(text)
    with pytest.raises(InputError, match=r"out\.extraction\.json: damaged; .* remove both"):
        extraction.prepare_target(tmp_path / "out", weights, False)


@pytest.mark.parametrize("keep", [True, False])
def test_a_manifest_in_the_folder_itself_is_taken_over(tmp_path, weights, keep):
    """Where it stood in this project's first versions, which left the unit length out."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.npy").touch()
    facts = {"weights": "weights.pth", "sha256": hashlib.sha256(b"weights").hexdigest(), "form": "temporal"}
    (out / ".extraction.json").write_text(json.dumps(facts))
    (out / "errors.jsonl").touch()
    if keep:
        with pytest.raises(InputError, match="KEEP_UNIT_LENGTH False, and not of KEEP_UNIT_LENGTH True"):
            extraction.prepare_target(out, weights, False, keep)
        return
    extraction.prepare_target(out, weights, False, keep)
    assert os.listdir(out) == ["a.npy"] and json.loads(manifest_of(out).read_text()).items() > facts.items()


def test_nothing_to_extract_leaves_no_folder(tmp_path, weights):
    source = write_files(tmp_path / "in", {"x.pdf": ""})
    with pytest.raises(InputError, match=r"there is no \.abc or \.txt file in it"):
        extract(source, tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


MIDI = "; 2 MIDI file(s): convert with `python process_data/batch_midi2mtf.py IN OUT`"
MUSICXML = (
    "; 1 MusicXML file(s): convert with `python process_data/batch_xml2abc.py IN OUT` and then"
    " `python process_data/batch_interleaved_abc.py IN OUT`"
)


def test_music_of_other_types_is_counted_with_the_command_that_converts_it(tmp_path, weights, capsys):
    source = write_files(tmp_path / "in", dict.fromkeys(("a.mid", "b.KAR", "deep/c.mxl", "x.pdf"), ""))
    with pytest.raises(InputError) as raised:
        extract(source, tmp_path / "out", weights)
    assert str(raised.value) == f"{source}: there is no .abc or .txt file in it{MIDI}{MUSICXML}"
    assert extract(write_files(source, {"a.abc": "1"}), tmp_path / "out", weights) == 0
    assert capsys.readouterr().out.endswith(f" failed; 4 files of other types left alone{MIDI}{MUSICXML}\n")


@pytest.mark.parametrize("bad", [False, True], ids=["of the model", "of all files"])
def test_a_failed_extraction_does_not_claim_its_folder(tmp_path, weights, bad):
    source = write_files(tmp_path / "in", {"a.abc": "bad" if bad else "1"})

    def wrong_sizes():
        raise InputError("these weights have other sizes")

    if bad:
        assert extract(source, tmp_path / "out", weights) == 1
    else:
        with pytest.raises(InputError, match="other sizes"):
            extract(source, tmp_path / "out", weights, load_model=wrong_sizes)
    (source / "a.abc").write_text("1")
    weights.write_bytes(b"those that were meant")
    assert extract(source, tmp_path / "out", weights, pooled=True) == 0
    noted = json.loads(manifest_of(tmp_path / "out").read_text())
    assert noted["form"] == "--normalize" and np.load(tmp_path / "out" / "a.npy").shape == (1, 3)
