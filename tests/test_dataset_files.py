"""What public data sets come as: .zip archives, tables in CSV, JSON and parquet, names made of titles."""

import io
import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import dataset_files
import dataset_tables
import files
from dataset_files import LeftOut, Source
from dataset_fixtures import write
from files import InputError
from helpers import ROOT

MIDI = (ROOT / "tests/examples/midi/twinkle.mid").read_bytes()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_zip_is_read_as_it_is(tmp_path):
    members = {
        "set/a/1.mid": MIDI,
        "set/__MACOSX/a/._1.mid": b"",
        "../out.mid": b"x",
        "/abs.mid": b"x",
        "set/table.csv": b"a\n1\n",
    }
    source = Source(zipped(tmp_path / "set.zip", members), tmp_path / "none")
    assert list(source.find("*.mid")) == ["set/a/1.mid"] and source.one("table.csv") == "set/table.csv"
    assert source.read("set/a/1.mid") == MIDI and source.path("set/a/1.mid") is None
    assert source.read("./set/a/1.mid") == MIDI
    assert source.refused == [
        f"set.zip: {n} is no file inside of the archive's folder" for n in ("../out.mid", "/abs.mid")
    ]
    zipped(tmp_path / "in/labelled/phrases.zip", {"X_0.mid": MIDI})  # counts as expanded into a folder of its name
    write(tmp_path / "in", {"labelled/phrases/Y_0.mid": MIDI, "labelled/._Z.mid": b"", "a.mid": MIDI, "ba.mid": MIDI})
    source = Source(tmp_path / "in", tmp_path / "none")
    assert list(source.find("phrases/*.mid")) == ["labelled/phrases/Y_0.mid", "labelled/phrases/X_0.mid"]
    assert list(source.find("a.mid")) == ["a.mid"] and source.read("labelled/phrases/X_0.mid") == MIDI
    for name in ("../set.zip", "/etc/passwd", "a\0b", "labelled", ""):
        with pytest.raises(LeftOut, match="its file is missing"):
            source.read(name)


def test_damaged_members_and_archives_are_named(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {"a.mid": MIDI, "b.mid": bytes(50)})
    data = path.read_bytes()
    path.write_bytes(data.replace(MIDI, MIDI[:-1] + b"?"))
    source = Source(path, tmp_path / "none")
    with pytest.raises(LeftOut, match=r"cannot be read: a\.mid: Bad CRC-32"):
        source.read("a.mid")
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.mid", MIDI)
    packed = (tmp_path / "lzma.zip").read_bytes()
    (tmp_path / "lzma.zip").write_bytes(packed.replace(packed[60:70], b"\xff" * 10))
    with pytest.raises(LeftOut, match=r"cannot be read: a\.mid: Corrupt"):
        Source(tmp_path / "lzma.zip", tmp_path / "none").read("a.mid")
    monkeypatch.setattr(files, "MAX_BYTES", 40)
    with pytest.raises(LeftOut, match="which no piece has"):
        source.read("b.mid")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="is the download complete"):
        Source(path, tmp_path / "none")
    directory = data.index(b"PK\1\2")
    for change, damaged in ((0, MIDI), (34, b"\1")):  # the number of the part that a member begins in
        path.write_bytes(data[: directory + change] + damaged + data[directory + change + len(damaged) :])
        with pytest.raises(InputError, match="is the download" if change == 0 else "the last part of a split archive"):
            Source(path, tmp_path / "none")
    path.write_bytes(data)
    (tmp_path / "a.z01").touch()
    with pytest.raises(InputError, match=r"join the parts first: zip -s 0 a\.zip --out whole\.zip .*move a\.z\* away"):
        Source(path, tmp_path / "none")
    with pytest.raises(InputError, match="neither a folder nor an archive"):
        Source(write(tmp_path, {"a.csv": ""}) / "a.csv", tmp_path / "none")


# --- tables -----------------------------------------------------------------------------------------------------------


def table(tmp_path: Path, name: str, content: bytes | str) -> Source:
    return Source(write(tmp_path / "tables", {name: content}), tmp_path / "none")


def test_a_json_array_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_tables, "CHUNK", 7)
    objects = [{"control code": "S:1\n", "abc notation": "X:1\nK:D ]},"}, {"control code": "", "abc notation": "é"}]
    source = table(
        tmp_path, "a.json", "\ufeff \n" + json.dumps([*objects, 5, objects[1]], indent=1, ensure_ascii=False)
    )
    rows = list(dataset_tables.json_rows(source, "a.json", ["abc notation"]))
    assert [row.values for row in rows] == [*objects, {}, objects[1]]
    assert [row.where for row in rows][3] == "a.json, object 4" and rows[2].problem == "a int, no object"
    source = table(tmp_path, "a.json", '[{"a": 1}, {"a": 2')
    with pytest.raises(InputError, match=r"a\.json, object 2: not JSON .* is it complete"):
        list(dataset_tables.json_rows(source, "a.json", ["a"]))
    assert not list(dataset_tables.json_rows(table(tmp_path, "a.json", "[]"), "a.json", ["a"]))


def test_what_a_missing_quotation_mark_swallows_is_counted(tmp_path):
    for start, problem in (('3,"4', "unexpected end of data, in 3 lines"), ('"3,"4', "',' expected after '\"'")):
        source = table(tmp_path, "a.csv", f'a,b\n1,"2\n""2"\n\n{start}\n5,6\n7,8\n')
        problems = [row.problem for row in dataset_tables.csv_rows(source, "a.csv", ["a"])]
        assert problems[:2] == ["", problem]
    source = table(tmp_path, "a.csv", 'a,b\n1,"2\n3,4\n5,"6\n')
    assert [row.problem for row in dataset_tables.csv_rows(source, "a.csv", ["a"])] == [
        "',' expected after '\"', in 3 lines"
    ]
    with pytest.raises(InputError, match=r"a\.csv, line 1: not CSV \(unexpected end"):
        list(dataset_tables.csv_rows(table(tmp_path, "a.csv", '"a'), "a.csv", ["a"]))


def test_cells_are_checked(tmp_path):
    row = dataset_tables.Row(
        "a",
        {
            "n": "1.5",
            "t": " x ",
            "b": "TRUE",
            "l": ["a", None, " "],
            "null": None,
            "list": [1],
            "nan": "nan",
            "yes": True,
            "missing": float("nan"),
        },
    )
    assert (row.number("n"), row.text("t"), row.flag("b"), row.texts("l"), row.texts("t")) == (
        1.5,
        "x",
        True,
        ["a"],
        ["x"],
    )
    assert (row.number("null"), row.text("null"), row.texts("null"), row.flag("yes")) == (None, "", [], True)
    assert (row.number("missing"), row.text("missing"), row.texts("missing")) == (None, "", [])
    for method, column in (
        (row.number, "t"),
        (row.number, "nan"),
        (row.number, "yes"),
        (row.text, "l"),
        (row.text, "yes"),
        (row.texts, "list"),
        (row.flag, "null"),
        (row.text, "?"),
    ):
        with pytest.raises(LeftOut):
            method(column)


def test_parquet_is_streamed(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = {"md5": ["a", "b", "c"], "music": [MIDI, None, MIDI], "styles": [["rock"], None, []], "other": [1, 2, 3]}
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.table(content), tmp_path / "in/x.parquet")
    source = Source(tmp_path / "in", tmp_path / "none")
    rows = list(dataset_tables.parquet_rows(source, "x.parquet", ["md5", "music", "styles"], batch_size=2))
    assert [(row.text("md5"), row.values["music"], row.texts("styles")) for row in rows] == [
        ("a", MIDI, ["rock"]),
        ("b", None, []),
        ("c", MIDI, []),
    ]
    assert rows[2].where == "x.parquet, row 3" and "other" not in rows[0].values
    with pytest.raises(InputError, match=r"x\.parquet: no column name; it has: md5, music"):
        list(dataset_tables.parquet_rows(source, "x.parquet", ["name"]))
    whole = (tmp_path / "in/x.parquet").read_bytes()
    for damaged in (b"PAR1", b"PAR1" + bytes(600) + whole[604:]):
        (tmp_path / "in/x.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match=r"x\.parquet: not a parquet file"):
            list(dataset_tables.parquet_rows(source, "x.parquet", ["md5"]))


def test_names_of_outputs():
    for name in ("a/b", "Ä 1"):
        assert dataset_files.is_safe(name)
    for name in ("", "/a", "a//b", "../a", "a/..", "a\nb", ".a", "a\\b", "x" * 201, "a\udcff"):
        assert not dataset_files.is_safe(name)


def test_tables_are_not_held_in_memory(tmp_path, monkeypatch):
    """2,000 rows of 1 KB in each form, 2 MB together."""
    monkeypatch.setattr(dataset_tables, "CHUNK", 2**14)
    count, line = 2000, json.dumps({"a": "x" * 1000})
    write(tmp_path, {"a.csv": "a\n" + ("x" * 1000 + "\n") * count, "a.jsonl": f"{line}\n" * count})
    write(tmp_path, {"a.json": f"[{','.join([line] * count)}]"})
    source = Source(tmp_path, tmp_path / "none")
    forms = {
        "csv": dataset_tables.csv_rows(source, "a.csv", ["a"]),
        "lines": dataset_tables.json_rows(source, "a.jsonl", ["a"]),
        "array": dataset_tables.json_rows(source, "a.json", ["a"]),
    }
    for name, rows in forms.items():
        tracemalloc.start()
        assert sum(1 for _ in rows) == count, name
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5e5, (name, peak)


def test_members_of_a_tar_are_not_held_in_memory(tmp_path, monkeypatch):
    opened = []
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for number in range(5):
            archive.addfile(tarfile.TarInfo(f"{number}.mid"))
    open_tar = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args: opened.append(open_tar(*args)) or opened[-1])
    held = [len(opened[0].members) for _ in dataset_files._tar_files(tmp_path / "a.tar.gz")]
    assert len(held) == 5 and max(held) <= 1


def test_a_damaged_array_is_not_read_to_its_end(monkeypatch):
    class Counted(io.BytesIO):
        count = 0

        def read1(self, size=-1):
            data = super().read1(size)
            Counted.count += len(data)
            return data

    monkeypatch.setattr(dataset_tables, "CHUNK", 2**10)
    monkeypatch.setattr(dataset_tables, "LONGEST", 2**14)
    array = Counted(b'[{"a": 1}, {"a": "no end' + b"x" * 10**6)
    source = SimpleNamespace(stream=lambda member: Counted(array.getvalue()))
    with pytest.raises(InputError, match="object 2: not JSON"):
        list(dataset_tables._array(source, "a.json"))
    assert 0 < Counted.count < 2**16
