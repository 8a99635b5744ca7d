"""GigaMIDI and Aria-MIDI: their readers, on files written here in the form of each, defects included."""

import json
import sys

import pyarrow
import pytest
from pyarrow import parquet

import dataset_tables
import prepare_dataset
from dataset_fixtures import MIDI, read, write
from files import InputError


def file(number, **values):
    row = {"md5": f"{number:032x}", "music": MIDI, "title": "A", "artist": "B", "tempo": "120.0", "NOMML": [12, 3]}
    return row | {"music_styles_curated": None, "music_style_scraped": None} | values


def shard(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    strings = pyarrow.list_(pyarrow.string())
    schema = [("md5", pyarrow.string()), ("music", pyarrow.binary()), ("title", pyarrow.string())]
    schema += [("artist", pyarrow.string()), ("tempo", pyarrow.string()), ("NOMML", pyarrow.list_(pyarrow.int64()))]
    schema += [("music_styles_curated", strings), ("music_style_scraped", pyarrow.string())]
    parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(schema)), path, **options)


def test_gigamidi(tmp_path):
    rows = [
        file(1, music_styles_curated=["rock"], music_style_scraped="Hard%20Rock,R%26B%2C%20Soul,rock,"),
        file(2, music_styles_curated=["jazz", "blues"], title=None, artist=None),
        file(3, music=None),
        file(4, md5="../../etc"),
        file(5, music_styles_curated=[]),
    ]
    shard(tmp_path / "tested/train-00000-of-00002.parquet", rows, row_group_size=2)
    shard(tmp_path / "tested/validation.parquet", [file(6)])
    shard(tmp_path / "v2.0.0/test/00.parquet", [file(7)])
    entries, left_out = read("gigamidi", tmp_path)
    name = "00/" + "0" * 31
    assert list(entries) == [
        f"train/{name}1",
        f"train/{name}2",
        f"train/{name}5",
        f"validation/{name}6",
        f"test/{name}7",
    ]
    first, second, third, *_ = entries.values()
    assert first.record == {"title": "A", "genres": ["rock", "Hard Rock", "R&B, Soul"], "tags": ["B"]}
    assert first.music == {".mid": MIDI} and first.labels == {"label": "rock"}
    assert second.record == {"title": "", "genres": ["jazz", "blues"], "tags": []} and second.labels == {}
    assert third.record["genres"] == []
    assert list(read("gigamidi", tmp_path, "--split", "test")[0]) == [f"test/{name}7"]
    assert left_out == {
        "tested/train-00000-of-00002.parquet, row 3": "`music` is not bytes: NoneType",
        "tested/train-00000-of-00002.parquet, row 4": "`md5` is not 32 hexadecimal digits: '../../etc'",
    }


def test_parquet_files_of_another_form_are_errors_that_name_them(tmp_path):
    with pytest.raises(InputError, match=r"no .parquet file in it"):
        read("gigamidi", write(tmp_path, {"readme": ""}))
    write(tmp_path, {"a/train.parquet": b"PAR1"})
    with pytest.raises(InputError, match=r"a/train.parquet: not a parquet file"):
        read("gigamidi", tmp_path)
    (tmp_path / "a/train.parquet").unlink()
    parquet.write_table(pyarrow.table({"md5": ["0"], "bytes": [b""]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train.parquet: no column music, title, .*; it has: md5, bytes"):
        read("gigamidi", tmp_path)


ARIA = {
    "1": {
        "metadata": {"composer": "strauss", "genre": "classical", "form": "waltz", "performer": "cziffra"},
        "audio_scores": {"0": 0.99},
    },
    "4096": {"metadata": {"composer": ["bach", "busoni"], "music_period": None}, "audio_scores": {}},
    "7": {"metadata": "unknown"},
    "8": {"metadata": {"genre": {"a": 1}}},
    "9": [],
}


@pytest.mark.parametrize("chunk", [1, 11, 2**20])
def test_aria_midi_finds_metadata_by_number(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(dataset_tables, "CHUNK", chunk)
    names = [
        "aa/000001_0",
        "aa/000001_12",
        "ab/004096_0",
        "ab/000002_0",
        "ab/000007_0",
        "ab/000008_0",
        "ab/000009_0",
        "ab/x_0",
    ]
    midis = {f"aria-midi-v1/data/{name}.mid": MIDI for name in names}
    entries, left_out = read(
        "aria-midi", write(tmp_path, {"aria-midi-v1/metadata.json": json.dumps(ARIA, indent=1)} | midis)
    )
    assert list(entries) == ["aa/000001_0", "aa/000001_12", "ab/004096_0"]
    assert entries["aa/000001_12"].music == {".mid": "aria-midi-v1/data/aa/000001_12.mid"}
    assert entries["aa/000001_12"].record == {
        "composer": ["strauss"],
        "genres": ["classical"],
        "tags": ["waltz", "cziffra"],
        "instruments": ["piano"],
    }
    assert entries["ab/004096_0"].record["composer"] == ["bach", "busoni"]
    reasons = {where.rpartition("/")[2]: reason for where, reason in left_out.items()}
    assert reasons == {
        "000002_0.mid": "not in metadata.json: 000002",
        **{
            f"00000{number}_0.mid": f"its `metadata` in metadata.json are not an object of texts: 00000{number}"
            for number in (7, 8, 9)
        },
        "x_0.mid": "its name is not <id>_<segment>.mid: aria-midi-v1/data/ab/x_0.mid",
    }


def test_aria_midis_metadata_cut_off_are_an_error(tmp_path):
    text = json.dumps(ARIA)
    for end in (-1, -3, text.index('"4096"') - 2, text.index('"4096"') + 6):
        with pytest.raises(InputError, match=r"metadata.json, object .: not JSON"):
            read("aria-midi", write(tmp_path, {"metadata.json": text[:end]}))


def test_gigamidi_in_shards_is_the_whole(tmp_path):
    rows = [file(n, music=MIDI if n != 3 else b"RIFF", music_styles_curated=["a", "b"][n % 2 :]) for n in range(8)]
    shard(tmp_path / "in/train.parquet", rows[:5], row_group_size=2)
    shard(tmp_path / "in/test.parquet", rows[5:])
    assert prepare_dataset.main(["gigamidi", str(tmp_path / "in"), str(tmp_path / "whole")]) == 1
    for part in (1, 2, 3):
        argv = [str(tmp_path / "in"), str(tmp_path / "parts"), "--shard", f"{part}/3"]
        assert prepare_dataset.main(["gigamidi", *argv]) == (part == 1)  # the row that is no music is of the first
    whole, parts = (
        {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*.[mj][is][do]*")}
        for out in ("whole", "parts")
    )
    assert len([path for path in whole if path.suffix == ".mid"]) == 7
    assert {path: content for path, content in parts.items() if "prepared" not in path.name} == {
        path: content for path, content in whole.items() if "prepared" not in path.name
    }


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    shard(tmp_path / "train.parquet", [file(1)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        read("gigamidi", tmp_path)
