"""WikiMT, WikiMT-X, IrishMAN: their readers, on files written here in the form of each, defects included."""

import json

import pytest

import batch_interleaved_abc
import dataset_tables
import prepare_dataset
from dataset_fixtures import read, write
from files import InputError


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def song(**values):
    return {"title": "Yesterday", "artist": "The Beatles", "genre": "Pop", "description": "A ballad."} | values


def test_wikimt_of_today_has_texts_and_labels_but_no_music(tmp_path):
    rows = lines(song(), song(title="Ça ira", genre=None, description=""), song(title=["Let It Be"]), "")
    entries, left_out = read("wikimt", write(tmp_path, {"wikimusictext.jsonl": "\ufeff" + rows}))
    first, second = entries.values()
    assert list(entries) == ["0001", "0002"]
    assert (first.music, first.text, first.labels) == ({}, "A ballad.", {"label": "Pop"})
    assert first.record["title"] == "Yesterday" and first.record["tags"] == ["The Beatles"]
    assert (second.text, second.labels, second.record["title"]) == ("", {}, "Ça ira")
    assert left_out == {
        "wikimusictext.jsonl, line 3": "`title` is not text: ['Let It Be']",
        "wikimusictext.jsonl, line 4": "the row cannot be read: not a JSON object, but a str",
    }


def test_wikimt_takes_music_from_scores_of_its_names(tmp_path):
    """Forbidden characters and case in a file's name may differ, as they do between systems."""
    rows = lines(
        song(artist="AC/DC", title="T.N.T."),
        song(),
        song(title="Help!"),
        song(title="Something"),
    )
    scores = ["AC_DC - T.N.T_.mxl", "more/the beatles - YESTERDAY.musicxml", "The Beatles - Something.mxl"]
    scores.append("more/The Beatles - Something_.mxl")
    entries, left_out = read("wikimt", write(tmp_path, {"wikimusictext.jsonl": rows} | dict.fromkeys(scores, "x")))
    assert [entry.music for entry in entries.values()] == [{".mxl": scores[0]}, {".musicxml": scores[1]}]
    assert left_out == {
        "wikimusictext.jsonl, line 3": "no score of its name: The Beatles - Help!.mxl",
        "wikimusictext.jsonl, line 4": "two scores of its name: The Beatles - Something.mxl",
    }


def test_wikimt_of_old_has_music_as_text_or_lines(tmp_path):
    tune = "X:1\nL:1/8\nK:C\nCDEF|"
    rows = [song(music=tune), song(music=tune.split("\n")), song(music=tune.splitlines(keepends=True)), song(music="")]
    entries, _ = read("wikimt", write(tmp_path, {"wikimusictext.json": json.dumps(rows)}), "--field", "title", "artist")
    assert [entry.music for entry in entries.values()] == [{".abc": tune.encode()}] * 3 + [{}]
    assert entries["0001"].text == "Yesterday\nThe Beatles"


def test_wikimt_x(tmp_path):
    row = song(artists="Lennon", background="In 1965.", analysis="", scene="Rain.", leadsheet="X:1\nK:F\nGFF|")
    del row["artist"]
    rows = lines(row, row | {"artists": ["Lennon", "McCartney"], "leadsheet": None}, row | {"scene": None})
    folder = write(tmp_path, {"wikimt-x-public.jsonl": rows})
    entries, left_out = read("wikimt-x", folder, "--field", "scene", "background")
    assert [entry.text for entry in entries.values()] == ["Rain.\nIn 1965.", "In 1965."]
    assert entries["0001"].music == {".abc": b"X:1\nK:F\nGFF|\n"}
    assert entries["0001"].record["description"] == ["A ballad.", "In 1965.", "Rain."]
    assert entries["0001"].record["tags"] == ["Lennon"]
    assert left_out == {"wikimt-x-public.jsonl, line 2": "`leadsheet` is empty"}
    assert read("wikimt-x", folder)[0]["0001"].text == "A ballad."


def tunes(*abc):
    return [{"control code": "S:2\nB:8\n", "abc notation": tune} for tune in abc]


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_irishman_is_read_in_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(dataset_tables, "CHUNK", chunk)
    train = tunes("X:1\nK:none\nABc [d]|]", 'X:2\nK:\n"Am, {x}"ABc|', "", "X:4\nK:D\ndef|")
    entries, left_out = read(
        "irishman", write(tmp_path, {"train.json": json.dumps(train), "validation.json": json.dumps(tunes("X:1\nK:C"))})
    )
    assert list(entries) == ["train/000/000000", "train/000/000001", "train/000/000003", "validation/000/000000"]
    assert entries["train/000/000001"].music == {".abc": b'X:2\nK:\n"Am, {x}"ABc|\n'}
    assert all(entry.record == {} and entry.text == "" for entry in entries.values())
    assert left_out == {"train.json, object 3": "`abc notation` is empty"}


def test_irishman_cut_off_or_of_other_keys_is_an_error(tmp_path):
    whole = json.dumps(tunes("X:1\nK:C\nABc|", "X:2\nK:C\nABc|"))
    for end in (-1, -3, -8, whole.index('}, {"') + 2):
        with pytest.raises(InputError, match=r"train.json, object .: not JSON"):
            read("irishman", write(tmp_path, {"train.json": whole[:end], "validation.json": "[]"}))
    with pytest.raises(InputError, match=r"train.json, object 1: no column abc notation; it has: abc, control code"):
        read("irishman", write(tmp_path, {"train.json": '[{"abc": "", "control code": ""}]', "validation.json": "[]"}))


def stems(folder, suffix):
    return sorted(path.relative_to(folder).as_posix().removesuffix(suffix) for path in folder.rglob(f"*{suffix}"))


def prepare(*argv):
    return prepare_dataset.main([*map(str, argv)])


def test_wikimt_without_music_is_texts_and_labels_and_goes_on_once_scores_are_there(tmp_path, capsys):
    source, out = tmp_path / "WikiMT", tmp_path / "out"
    write(source, {"wikimusictext.jsonl": lines(song(), song(title="Help!"))})
    assert prepare("wikimt", source, out) == 0
    assert "2 rows, 2 kept (nothing; 2 with warnings), 0 left out" in (printed := capsys.readouterr().out)
    assert "Next:" not in printed and not (out / "records").exists()
    assert stems(out / "texts", ".txt") == ["0001", "0002"]
    assert (out / "labels.csv").read_text() == "0001,Pop\n0002,Pop\n"
    write(source, {"The Beatles - Yesterday.mxl": b"PK", "the beatles - help_.MusicXML": "<score-partwise/>"})
    assert prepare("wikimt", source, out) == 0
    assert sorted(path.name for path in (out / "scores").iterdir()) == ["0001.mxl", "0002.musicxml"]
    assert json.loads((out / "records/0002.json").read_text())["filepaths"] == ["interleaved/0002.abc"]


def test_the_queries_of_wikimt_x_are_those_of_its_converted_music(tmp_path):
    row = song(
        artists=["Lennon"],
        background="a",
        analysis="b",
        scene="c",
        leadsheet='X:1\nL:1/8\nM:4/4\nK:none\n"Am"ABcd efga|]',
    )
    rows = lines(row, row | {"leadsheet": "no music"}, row | {"leadsheet": "X:1\nL:1/8\nM:3/4\nK:\nABcd ef|]"})
    source, out = write(tmp_path / "WikiMT-X", {"wikimt-x-public.jsonl": rows}), tmp_path / "out"
    assert prepare("wikimt-x", source, out) == 1  # a row is left out
    assert batch_interleaved_abc.main([str(out / "abc"), str(out / "interleaved"), "--workers", "1"]) == 0
    assert stems(out / "interleaved", ".abc") == stems(out / "texts", ".txt") == ["0001", "0003"]
