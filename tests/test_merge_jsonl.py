"""The training JSONL: which records are in it, in what form, and that every other one is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import files
import gpt4_summarize
import merge_jsonl
import records as training_records
from records import FIELDS, METADATA

NEN = {"language": "German", "summary": "Ein Lied."}


@pytest.fixture
def data(tmp_path):
    """A folder with music, as a user has it, and the file beside it that no record may name."""
    folder = tmp_path / "data"
    for path in ("abc/a.abc", "mtf/a.mtf", "midi/a.mid", "abc/B.ABC", "../outside.abc"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("X:1\n")
    (folder / "abc/empty.abc").touch()
    (folder / "abc/folder.abc").mkdir()
    return folder


def record(**fields):
    return {"title": "A", "filepaths": ["abc/a.abc", "mtf/a.mtf"]} | fields


def write(data, records):
    for name, text in records.items():
        path = data / "records" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())


def merge(data, *argv):
    return merge_jsonl.main([*map(str, argv or (data / "records", data / "train.jsonl"))])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(data):
    return {entry.pop("file"): entry for entry in read(data / "train.left_out.jsonl")}


GOOD = {
    "title only": record(),
    "summary only": record(title=None, summary_en="A song."),
    "list of summaries": record(title="", summary_en=["A song.", "An air."], summary_nen=[NEN, NEN]),
    "other summary only": record(title="None", summary_nen=NEN),
    "one kind": record(filepaths=["mtf/a.mtf"]),
    "in the order of the record": record(filepaths=["mtf/a.mtf", "abc/B.ABC", "abc/a.abc"]),
    "roundabout": record(filepaths=["abc/../mtf/./a.mtf"]),
    "upper case": record(filepaths=["abc/B.ABC"]),
    "all fields": dict.fromkeys(METADATA, "x") | record(genres=["a", None], summary_en="A song.", summary_nen=NEN),
    "unknown field": record(id=7),
    "summary_nen None": record(summary_nen="None"),
    "list of None": record(summary_nen=["None", None, NEN], genres=["None", ""], filepaths=["None", "abc/a.abc"]),
}


def test_what_is_fit_is_merged_and_training_reads_it(data, capsys):
    write(data, GOOD)
    assert merge(data) == 0
    assert not (data / "train.left_out.jsonl").exists()
    merged = dict(zip(sorted(GOOD), read(data / "train.jsonl"), strict=True))
    assert f"{len(GOOD)} records written" in capsys.readouterr().out
    for name, found in merged.items():
        assert tuple(found)[: len(FIELDS)] == FIELDS, name
    assert merged["other summary only"]["title"] is None and merged["all fields"]["genres"] == ["a"]
    assert merged["list of summaries"]["summary_en"] == ["A song.", "An air."]
    assert merged["list of summaries"]["summary_nen"] == [NEN, NEN]
    assert merged["unknown field"]["id"] == 7
    assert merged["in the order of the record"]["filepaths"] == ["mtf/a.mtf", "abc/B.ABC", "abc/a.abc"]
    assert merged["summary_nen None"]["summary_nen"] is None and merged["list of None"]["summary_nen"] == [NEN]
    assert merged["list of None"]["genres"] is None and merged["list of None"]["filepaths"] == ["abc/a.abc"]

    lines = training_records.Jsonl(data / "train.jsonl")  # what the trainer itself makes of it
    for line, name in enumerate(sorted(GOOD)):
        found = lines[line]
        texts = training_records.metadata_lines(found)
        texts += training_records.summaries(found["summary_en"]) + training_records.summaries(found["summary_nen"])
        assert texts and "None" not in texts, name
        assert all((data / path).is_file() for path in found["filepaths"]), name


BLANK = {"language": "Welsh", "summary": " "}


@pytest.mark.parametrize(
    ("summary", "merged"),
    [
        (NEN, NEN),
        ([NEN], [NEN]),
        ([NEN, BLANK, NEN], [NEN, NEN]),
        ([BLANK], None),
        (BLANK, None),
        ([], None),
        (None, None),
    ],
)
def test_summaries_keep_their_form(data, summary, merged):
    """One stays one, a list stays a list; those that say nothing go."""
    write(data, {"a": record(summary_nen=summary)})
    assert merge(data) == 0
    assert read(data / "train.jsonl")[0]["summary_nen"] == merged


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_record_with_or_without_a_byte_order_mark(data, encoding):
    write(data, {"a": json.dumps(record(title="Né"), ensure_ascii=False).encode(encoding)})
    assert merge(data) == 0
    assert read(data / "train.jsonl")[0]["title"] == "Né"


UNFIT = {  # record -> what the report says of it
    "no text": (record(title=" ", composer="Anon", summary_en=[]), "neither a title nor a summary"),
    "blank summaries": (record(title=None, summary_nen={"language": "German", "summary": None}), "neither a title"),
    "no filepaths": ({"title": "A"}, "not a list of paths: null"),
    "a path alone": (record(filepaths="abc/a.abc"), 'not a list of paths: "abc/a.abc"'),
    "no paths": (record(filepaths=[]), "not a list of paths"),
    "a number": (record(filepaths=[1]), "not a path"),
    "missing": (record(filepaths=["abc/z.abc"]), "abc/z.abc: not in "),
    "leaves": (record(filepaths=["../outside.abc"]), "leaves"),
    "leaves later": (record(filepaths=["abc/../../outside.abc"]), "leaves"),
    "midi": (record(filepaths=["midi/a.mid"]), "convert it first"),
    "a folder": (record(filepaths=["abc/folder.abc"]), "not a file"),
    "empty": (record(filepaths=["abc/empty.abc"]), "empty"),
    "NUL": (record(filepaths=["abc/\0.abc"]), "not in"),
    "long": (record(filepaths=["a" * 5000 + ".abc"]), "not in"),
    "title": (record(title={"de": "A"}), "`title` is neither text nor a list of texts: it holds dict"),
    "summary_en": (record(summary_en={"summary": "A"}), "`summary_en` is neither"),
    "summary_nen": (record(summary_nen="Ein Lied."), "`summary_nen` is neither"),
    "infinite": (b'{"title": "A", "year": Infinity, "filepaths": ["abc/a.abc"]}', "JSON in UTF-8 cannot"),
    "half a pair": (b'{"title": "\\ud83d", "filepaths": ["abc/a.abc"]}', "JSON in UTF-8 cannot"),
    "no JSON": (b'{"title": ', "not JSON ("),
    "latin": ('{"title": "é"}'.encode("latin-1"), "not JSON ("),
    "a list": ([record()], "not a JSON object, but a list"),
    "Python": (b"{'title': 'A', 'filepaths': ['abc/a.abc']}", "Python's notation, not JSON: write null for None"),
    "Python's None": (
        b'{"title": None, "filepaths": ["abc/a.abc"]}',
        "Python's notation, not JSON: write null for None",
    ),
    "paths that do not apply": (record(filepaths=["None", None, ""]), "not a list of paths"),
}


def test_what_is_unfit_is_left_out_and_named(data, capsys):
    write(data, {"fine": record()} | {name: text for name, (text, _) in UNFIT.items()})
    (data / "records" / "gone.json").symlink_to("nowhere")
    (data / "records" / "read me.txt").write_text("x")
    assert merge(data) == 1
    assert [found["title"] for found in read(data / "train.jsonl")] == ["A"]
    said = report(data)
    assert set(said) == {f"{name}.json" for name in UNFIT} | {"gone.json"}
    for name, (_, reason) in UNFIT.items():
        assert reason in said[f"{name}.json"]["error"], name
    printed = capsys.readouterr().out
    assert f"1 records written (0 with unusable files removed), {len(UNFIT) + 1} left out" in printed
    assert (
        "9 (for the reason: none of its `filepaths` can be used)" in " ".join(printed.split())
        and "1 other files" in printed
    )


def test_an_absolute_path_is_no_good_even_to_the_right_file(data):
    write(data, {"a": record(filepaths=[str(data / "abc/a.abc"), "mtf/a.mtf"])})
    assert merge(data) == 0
    assert read(data / "train.jsonl")[0]["filepaths"] == ["mtf/a.mtf"]
    assert report(data) == {"a.json": {"warnings": [f"{data}/abc/a.abc: not relative to {data}"]}}


def test_one_missing_file_does_not_cost_the_record(data, capsys):
    write(data, {"a": record(filepaths=["abc/a.abc", "mtf/z.mtf"]), "b": record()})
    assert merge(data) == 0
    assert [found["filepaths"] for found in read(data / "train.jsonl")] == [["abc/a.abc"], ["abc/a.abc", "mtf/a.mtf"]]
    assert list(report(data)) == ["a.json"]
    assert "2 records written (1 with unusable files removed), 0 left out" in capsys.readouterr().out


def test_the_report_of_an_earlier_run_goes(data):
    write(data, {"a": record(), "b": record(title=None)})
    assert merge(data) == 1
    write(data, {"b": record()})
    assert merge(data) == 0
    assert not (data / "train.left_out.jsonl").exists() and len(read(data / "train.jsonl")) == 2


def test_what_a_killed_run_left_beside_the_file_goes(data):
    """But not what lies below: that is the music's folder, and large."""
    left = [folder / f"{files._TEMPORARY}99999999-x" for folder in (data, data / "abc")]  # no process has that id
    for path in left:
        path.touch()
    write(data, {"a": record()})
    assert merge(data) == 0
    assert [path.exists() for path in left] == [False, True]


def test_nothing_fit_leaves_the_file_as_it_was(data, capsys):
    (data / "train.jsonl").write_text("before\n")
    write(data, {"a": record(filepaths=["abc/z.abc"]), "b": record(filepaths=["abc/z.abc"]), "c": record(title=None)})
    with pytest.raises(SystemExit) as caught:
        merge(data)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    example = f"(2 times), as in a.json: none of its `filepaths` can be used: abc/z.abc: not in {data}; "
    assert "none of 3 records" in said and example in " ".join(said.split())
    assert (data / "train.jsonl").read_text() == "before\n" and len(report(data)) == 3
    assert not list(data.glob(".tmp*"))


@pytest.mark.parametrize(
    "argv, said", [(["nowhere", "t.jsonl"], "nowhere"), (["records", "t.json"], "something.jsonl")]
)
def test_wrong_use(data, argv, said, monkeypatch, capsys):
    monkeypatch.chdir(data)
    write(data, {"a": record()})
    with pytest.raises(SystemExit) as caught:
        merge(data, *argv)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_jsonl_files_and_folders_become_one(data):
    """Paths of a JSONL file are relative to its own folder, before and after; none leaves either."""
    paths = [["mtf/b.mtf"], ["mtf/gone.mtf"], ["../abc/a.abc", None, "None", 1, "../pdmx/mtf/b.mtf", "./mtf/b.mtf"]]
    for name in ("pdmx", "caps/train"):
        (data / name / "mtf").mkdir(parents=True)
        (data / name / "mtf/b.mtf").write_text("ticks_per_beat 480\n")
        lines = [json.dumps(record(title=name, filepaths=found)) for found in paths]
        (data / name / "set.jsonl").write_text("\n\n".join([*lines, '{"title": 1}', "not JSON", ""]))
    write(data, {"a": record(), "b": record(title=None)})
    assert (
        merge(data, data / "pdmx/set.jsonl", data / "records", data / "caps/train/set.jsonl", data / "all.jsonl") == 1
    )
    own = [record()["filepaths"]]
    merged = [["pdmx/mtf/b.mtf"]] * 2 + own + [["caps/train/mtf/b.mtf"]] * 2
    assert [found["filepaths"] for found in read(data / "all.jsonl")] == merged
    said = {entry["file"]: entry for entry in read(data / "all.left_out.jsonl")}
    for folder in ("pdmx", "caps/train"):
        name = f"{data}/{folder}/set.jsonl, line"
        assert f"{folder}/mtf/gone.mtf: not in {data}" in said.pop(f"{name} 3")["error"]
        assert len(said.pop(f"{name} 5")["warnings"]) == 3
        assert "`title`" in said.pop(f"{name} 7")["error"] and "not JSON" in said.pop(f"{name} 9")["error"]
    assert list(said) == [f"{data}/records/b.json"]


def test_a_jsonl_file_outside_of_the_new_ones_folder(data, capsys):
    (data / "train.jsonl").write_text(json.dumps(record()))
    with pytest.raises(SystemExit):
        merge(data, data / "train.jsonl", data / "abc/train.jsonl")
    assert f"../mtf/a.mtf: leaves {data}/abc" in capsys.readouterr().err


def test_from_the_summaries_script(data, capsys):
    """--merge alone takes what is finished, and says what is not: no summaries of what a record said before."""
    write(data, {"a": record(), "folder/b": record(title="B"), "c": record(title="C"), "d": record(title="New")})
    outputs = {
        "a": record(filepaths=["old.abc"]),
        "folder/b": record(title="B"),
        "d": record(title="Old"),
        "e": record(),
    }
    for name, output in outputs.items():
        path = data / "out" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(output | {"summary_en": f"Of {name}."}))
    argv = [data / "records", data / "out", "--merge", data / "train.jsonl"]
    assert gpt4_summarize.main([*map(str, argv)]) == 1
    merged = read(data / "train.jsonl")
    assert [found["summary_en"] for found in merged] == ["Of a.", "Of folder/b."]
    assert all(found["filepaths"] == record()["filepaths"] for found in merged)
    assert list(report(data)) == ["c.json", "d.json"]
    assert all("not asked for yet, or its metadata have changed" in said["error"] for said in report(data).values())


def test_as_a_script_from_any_folder(data):
    write(data, {"a": record()})
    script = os.path.relpath(merge_jsonl.__file__, data)
    command = [sys.executable, script, "records", "train.jsonl"]
    done = subprocess.run(command, cwd=data, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "train.jsonl: 1 records written" in done.stdout and len(read(data / "train.jsonl")) == 1
    assert Path(data / "train.jsonl").read_bytes().endswith(b"}\n")
