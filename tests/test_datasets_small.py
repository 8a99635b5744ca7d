"""EMOPIA, VGMIDI, Pianist8, ASAP, MAESTRO, POP909: their readers, on files written here in the form of each."""

from types import SimpleNamespace

import openpyxl
import pytest

import batch_midi2mtf
import datasets_small
import labels
import prepare_dataset
from dataset_files import Source
from dataset_fixtures import MIDI, read, write, zipped
from files import InputError

SONGS = ["_8v0MFBZoco", "iXiSFSGws-c", "0123456789_", "-bcdefghijk", "ABCDEFGHIJK"]
CLIPS = [f"Q{quadrant}_{song}_{number}" for song in SONGS for quadrant in (1, 4) for number in range(3)]


def test_emopia_keeps_the_clips_of_a_song_together(tmp_path):
    clips = {f"EMOPIA_2.2/midis/{clip}.mid": MIDI for clip in CLIPS}
    odd = ["EMOPIA_2.2/midis/Q5_ABCDEFGHIJK_0.mid", "EMOPIA_2.2/midis/Q1_ABC_0.mid"]
    junk = ["__MACOSX/EMOPIA_2.2/midis/._Q1_ABCDEFGHIJK_0.mid", "EMOPIA_2.2/midis/._Q1_ABCDEFGHIJK_1.mid"]
    path = tmp_path / "EMOPIA_2.2.zip"
    path.write_bytes(zipped(clips | dict.fromkeys(odd + junk, MIDI)))
    entries, left_out = read("emopia", path)
    assert sorted(entry.name for entry in entries.values()) == sorted(CLIPS)
    splits = {song: {entry.split for entry in entries.values() if song in entry.name} for song in SONGS}
    assert sorted(map(sorted, splits.values())) == [["test"], ["train"], ["train"], ["train"], ["train"]]
    for entry in entries.values():
        assert entry.labels == (
            {"quadrant": "Q1", "valence": "high", "arousal": "high"}
            if entry.name[:2] == "Q1"
            else {"quadrant": "Q4", "valence": "high", "arousal": "low"}
        )
    assert sorted(left_out) == sorted(odd) and all("its name is not" in reason for reason in left_out.values())


OFFICIAL = {
    "train.csv": "fname,label\nQ1__8v0MFBZoco_0,Q1\nQ4__8v0MFBZoco_1,Q4\n",
    "val.csv": "fname,label\nQ4_iXiSFSGws-c_2,Q4\n",
    "test.csv": "fname,label\nQ1_-bcdefghijk_0,Q1\n",
}


def test_emopia_with_the_official_split(tmp_path):
    write(tmp_path / "official", OFFICIAL)
    midis = write(tmp_path / "EMOPIA", {f"midis/{clip}.mid": MIDI for clip in CLIPS})
    entries, left_out = read("emopia", midis, "--official", str(tmp_path / "official"))
    assert sorted(entries) == [
        "test/Q1_-bcdefghijk_0",
        "train/Q1__8v0MFBZoco_0",
        "train/Q4__8v0MFBZoco_1",
        "validation/Q4_iXiSFSGws-c_2",
    ]
    assert len(left_out) == len(CLIPS) - 4


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("val.csv", "Q4_iXiSFSGws-c_2,Q3", "val.csv, line 3: `fname` 'Q4_iXiSFSGws-c_2' with `label` 'Q3'"),
        ("val.csv", "song,Q3", "val.csv, line 3: `fname` 'song' with `label` 'Q3'"),
        ("test.csv", "Q1__8v0MFBZoco_0,Q1", "test.csv, line 3: `fname` 'Q1__8v0MFBZoco_0' is in train and in test"),
    ],
)
def test_a_false_row_of_emopias_official_split_is_an_error(tmp_path, file, row, message):
    write(tmp_path / "official", OFFICIAL | {file: OFFICIAL[file] + row + "\n"})
    midis = write(tmp_path / "EMOPIA", {"midis/Q1_ABCDEFGHIJK_0.mid": MIDI})
    with pytest.raises(InputError, match=message):
        read("emopia", midis, "--official", str(tmp_path / "official"))


VGMIDI = "id,series,console,game,piece,midi,valence,arousal\n"


def test_vgmidi_is_read_with_its_archive_of_phrases(tmp_path):
    names = [f"Mana_SNES_Secret of Mana_Piece {piece}_{phrase}" for piece in range(10) for phrase in range(3)]
    table = VGMIDI + "".join(
        f"{8000 + number // 3},Mana,SNES,Secret of Mana,Piece {number // 3},labelled/phrases/{name}.mid,{-1},{1}\n"
        for number, name in enumerate(names)
    )
    odd = "1,,PC,Diddy's Quest,A,labelled/phrases/Diddy's Quest_0.mid,1,-1\n2,,PC,B,B,labelled/phrases/B.mid,,0.5\n"
    phrases = zipped({f"{name}.mid": MIDI for name in [*names, "Diddy's Quest_0"]})
    folder = write(tmp_path, {"vgmidi_labelled.csv": table + odd, "labelled/phrases.zip": phrases})
    entries, left_out = read("vgmidi", folder)
    assert sorted(entry.name for entry in entries.values()) == sorted([*names, "Diddy's Quest_0"])
    pieces = [{entry.split for entry in entries.values() if f"Piece {piece}_" in entry.name} for piece in range(10)]
    assert sorted(map(sorted, pieces)) == [["test"]] * 2 + [["train"]] * 8
    diddy = entries["train/Diddy's Quest_0"]
    assert diddy.labels == {"quadrant": "Q4", "valence": "high", "arousal": "low"}
    assert diddy.record == {"title": "A", "genres": ["video game music"], "tags": ["Diddy's Quest"]}
    assert Source(folder, folder).read(diddy.music[".mid"]) == MIDI
    assert next(iter(entries.values())).labels == {"quadrant": "Q2", "valence": "low", "arousal": "high"}
    assert left_out == {"vgmidi_labelled.csv, line 33": "`valence` is not 1 or -1: ''"}


def test_pianist8(tmp_path):
    names = ["Bethel/A.mid", "Yiruma/A.mid", "Yiruma/B.b.mid"]
    entries, _ = read("pianist8", write(tmp_path / "1", {f"joann8512-Pianist8/{name}": MIDI for name in names}))
    assert {stem: entry.labels["label"] for stem, entry in entries.items()} == {
        "Bethel/A": "Bethel",
        "Yiruma/A": "Yiruma",
        "Yiruma/B.b": "Yiruma",
    }
    entries, _ = read(
        "pianist8",
        write(
            tmp_path / "2",
            {f"{split}/Bethel/{split}.mid": MIDI for split in ("valid", "test")} | {"train/Yiruma/a.mid": MIDI},
        ),
    )
    assert list(entries) == ["test/Bethel/test", "train/Yiruma/a", "validation/Bethel/valid"]
    with pytest.raises(InputError, match=r"no two folders with .mid files"):
        read("pianist8", write(tmp_path / "3", {"midi/a.mid": MIDI, "midi/b.mid": MIDI}))


ASAP = "composer,title,folder,xml_score,midi_score,midi_performance,maestro_midi_performance\n"


def asap_row(work, performance, maestro="{maestro}/2006/x.midi"):
    folder = f"Bach/Fugue/{work}"
    return f"Bach,Fugue_{work},{folder},{folder}/xml_score.musicxml,{folder}/midi_score.mid,{folder}/{performance}.mid,{maestro}\n"


def test_asap_has_each_score_once(tmp_path):
    table = ASAP + asap_row("bwv_846", "Shi05M") + asap_row("bwv_848", "Lee01M") + asap_row("bwv_848", "Lin04M", "")
    table += "Bach,a,b\nBach,Fugue,Bach/None,,,,\n"
    folder = write(tmp_path, {"asap-dataset/metadata.csv": table})
    entries, left_out = read("asap", folder)
    assert list(entries) == ["Bach/Fugue/bwv_846", "Bach/Fugue/bwv_848"]
    music = {".musicxml": "asap-dataset/Bach/Fugue/bwv_846/xml_score.musicxml"}
    assert entries["Bach/Fugue/bwv_846"].music == music | {".mid": "asap-dataset/Bach/Fugue/bwv_846/midi_score.mid"}
    assert entries["Bach/Fugue/bwv_848"].record["title"] == "Fugue bwv 848"
    assert entries["Bach/Fugue/bwv_848"].labels == {"label": "Bach"}
    assert left_out == {
        "asap-dataset/metadata.csv, line 5": "the row cannot be read: 3 cells, but 7 columns",
        "asap-dataset/metadata.csv, line 6": "it names no music: Bach/None",
    }


def test_asap_keeps_the_performances_of_a_score_together(tmp_path):
    works = [f"bwv_{number}" for number in range(846, 856)]
    table = ASAP + "".join(asap_row(work, performer) for work in works for performer in ("Shi05M", "Lee01M"))
    entries, _ = read("asap", write(tmp_path, {"metadata.csv": table}), "--performances")
    assert len(entries) == 20
    splits = [{entry.split for entry in entries.values() if work in entry.name} for work in works]
    assert sorted(map(sorted, splits)) == [["test"]] * 2 + [["train"]] * 8


def test_maestro_has_an_official_split_and_two_composers_of_an_arrangement(tmp_path):
    table = (
        "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration\n"
        "Alban Berg,Sonata Op. 1,train,2017,2017/MIDI-Unprocessed--AUDIO-split_07-07-17_wav--3.midi,a.wav,464.6\n"
        'Claude Debussy,"""Ondine"" from Book II",test,2008,2008/b.midi,b.wav,193.3\n'
        "Charles Gounod / Franz Liszt,Faust Waltz,validation,2006,2006/c.midi,c.wav,557.4\n"
        "Alban Berg,Sonata,dev,2006,2006/d.midi,d.wav,1\n"
    )
    entries, left_out = read("maestro", write(tmp_path, {"maestro-v3.0.0/maestro-v3.0.0.csv": table}))
    _, second, third = entries.values()
    assert list(entries) == [
        "train/2017/MIDI-Unprocessed--AUDIO-split_07-07-17_wav--3",
        "test/2008/b",
        "validation/2006/c",
    ]
    assert second.record["title"] == '"Ondine" from Book II' and second.labels == {"label": "Claude Debussy"}
    assert third.record["composer"] == ["Charles Gounod", "Franz Liszt"] and third.labels == {}
    assert third.music == {".midi": "maestro-v3.0.0/2006/c.midi"}
    assert left_out == {
        "maestro-v3.0.0/maestro-v3.0.0.csv, line 5": "`split` is not train or validation or test: 'dev'"
    }


def test_pop909(tmp_path):
    book = openpyxl.Workbook()
    for row in [("song_id", "name", "artist", "beats"), ("001", "我的歌声里", "曲婉婷", 4), (2, "Name", None, 3)]:
        book.active.append(row)
    (tmp_path / "POP909").mkdir()
    book.save(tmp_path / "POP909/index.xlsx")
    entries, _ = read("pop909", tmp_path)
    assert [entry.music for entry in entries.values()] == [{".mid": f"POP909/{n}/{n}.mid"} for n in ("001", "002")]
    assert entries["001"].record["title"] == "我的歌声里" and entries["001"].record["tags"] == ["曲婉婷"]


def test_a_row_of_pop909_may_end_early(tmp_path, monkeypatch):
    values = [("song_id", "name", "artist"), ("001", "Name")]
    book = SimpleNamespace(worksheets=[SimpleNamespace(values=values)])
    monkeypatch.setattr(openpyxl, "load_workbook", lambda file, read_only: book)
    write(tmp_path, {"index.xlsx": ""})
    assert read("pop909", tmp_path) == ({}, {"index.xlsx, row 2": "the row has no `artist`"})


def test_a_fifth_of_the_groups_of_each_class_is_held_out():
    """Whatever their order; a group of two classes counts for that of most of its pieces."""
    pieces = [(f"{label}{group}", label) for label in "ab" * 2 for group in range(60 if label == "a" else 40)]
    pieces += [(f"b{group}", "a") for group in range(40)]
    held_out = datasets_small.held_out_groups(pieces)
    assert sorted(group[0] for group in held_out) == ["a"] * 12 + ["b"] * 8
    assert datasets_small.held_out_groups(pieces[::-1]) == held_out


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("vgmidi", "vgmidi_labelled.csv", "id,piece\n", "vgmidi_labelled.csv, line 1: no column series, game"),
        ("asap", "metadata.csv", "composer;title\n", "metadata.csv, line 1: no column composer"),
        ("maestro", "maestro-v3.0.0.csv", "", "maestro-v3.0.0.csv, line 1: no column .*it has: nothing"),
        ("wikimt", "wikimusictext.jsonl", '{"title": "A"}', "wikimusictext.jsonl, line 1: no column artist"),
        ("wikimt", "wikimusictext.txt", "", "no wikimusictext.jsonl or wikimusictext.json in it"),
        ("emopia", "midis/readme.txt", "", "no .mid file in it"),
    ],
)
def test_a_file_of_another_form_is_an_error_that_names_it(tmp_path, name, file, content, message):
    with pytest.raises(InputError, match=message):
        read(name, write(tmp_path, {file: content}))


def test_labels_of_emopia_fit_its_converted_music(tmp_path):
    path, out = tmp_path / "EMOPIA_2.2.zip", tmp_path / "out"
    path.write_bytes(zipped({f"EMOPIA_2.2/midis/{clip}.mid": MIDI for clip in CLIPS}))
    assert prepare_dataset.main(["emopia", str(path), str(out)]) == 0
    assert batch_midi2mtf.main([str(out / "midi"), str(out / "mtf"), "--workers", "1"]) == 0
    for task, expected in {"quadrant": {"Q1", "Q4"}, "valence": {"high"}, "arousal": {"high", "low"}}.items():
        known = labels.from_csv(out / f"labels_{task}.csv")
        assert set(known.values()) == expected
        for split in ("train", "test"):
            found = [(out / "mtf", path.name) for path in (out / "mtf" / split).iterdir()]
            assert found and None not in labels.assign(found, known)
