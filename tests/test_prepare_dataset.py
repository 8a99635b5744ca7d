"""Public data sets: fixtures made by hand in the forms that they come in, with their odd rows, prepared and used."""

import csv
import io
import json
import os
import shlex
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

import batch_interleaved_abc
import batch_midi2mtf
import batch_xml2abc
import datasets_large
import general_midi
import labels
import merge_jsonl
import offline_summaries
import prepare_dataset
import records
from dataset_files import Dataset, Entry, LeftOut, Source
from dataset_fixtures import write
from helpers import ROOT

MIDI = (ROOT / "tests/examples/midi/twinkle.mid").read_bytes()
SCORE = (ROOT / "tests/examples/scores/twinkle.musicxml").read_bytes()
_COLUMNS = (  # of PDMX.csv
    "path,metadata,mxl,pdf,mid,version,is_user_pro,is_user_publisher,is_user_staff,has_paywall,is_rated,is_official,is_original,is_draft,"
    "has_custom_audio,has_custom_video,n_comments,n_favorites,n_views,n_ratings,rating,license,license_url,license_conflict,genres,groups,tags,"
    "song_name,title,subtitle,artist_name,composer_name,publisher,complexity,n_tracks,tracks,song_length,song_length.seconds,song_length.bars,"
    "song_length.beats,n_notes,notes_per_bar,n_annotations,has_annotations,n_lyrics,has_lyrics,n_tokens,pitch_class_entropy,scale_consistency,"
    "groove_consistency,best_path,is_best_path,best_arrangement,is_best_arrangement,best_unique_arrangement,is_best_unique_arrangement,"
    "subset:all,subset:rated,subset:deduplicated,subset:rated_deduplicated,subset:no_license_conflict,subset:all_valid"
)
COLUMNS = [name.strip() for name in _COLUMNS.split(",")]
SUBSETS = {f"subset:{name}": "True" for name in datasets_large.PDMX_SUBSETS}
USER = {"id": 4711, "name": "jane_doe", "image": "https://musescore.com/user/4711.png"}


def mxl() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="a.xml"/></rootfiles></container>'
        )
        archive.writestr("a.xml", SCORE)
    return packed.getvalue()


def pdmx_row(name: str, **changes: str) -> str:
    row = dict.fromkeys(COLUMNS, "NA") | SUBSETS
    row |= {form: f"./{form}/{name}.{form}" for form in ("mxl", "mid")} | {"metadata": f"./metadata/7/{name[-1]}.json"}
    row |= {
        "genres": "classical-soundtrack",
        "tags": "piano",
        "title": f"Title {name}",
        "tracks": "0-40-40-200",
    } | changes
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(row.values())
    return line.getvalue().removesuffix("\n")


def metadata(**score) -> str:
    score = {"title": "Für Elise, “WoO 59”", "composer_name": "Beethoven", "user": USER} | score
    data = {"genres": [{"id": 2, "name": "Classical Music"}], "score": score, "users": [USER]}
    return json.dumps({"data": data, "user": USER})


def pdmx(tmp_path: Path, *rows: str, columns=COLUMNS, also=()) -> Path:
    """A folder as PDMX has it: one complete row, 1/11/Qa, and others."""
    folder = write(
        tmp_path / "PDMX",
        {
            "PDMX.csv": "\n".join([",".join(columns), pdmx_row("1/11/Qa"), *rows]) + "\n",
            "mxl/1/11/Qa.mxl": mxl(),
            "mid/1/11/Qa.mid": MIDI,
            "metadata/7/a.json": metadata(
                description="By @jane_doe, see https://musescore.com/user/4711 or jane@doe.org. 悲しい曲。http://x.y",
                tags=["für klavier", "2024"],
                instruments=[{"name": "Piano"}, {"name": "Piano"}],
                instrumentations=[{"name": "Solo"}],
            ),
        },
    )
    return write(folder, dict(also))


def run(*argv) -> int:
    return prepare_dataset.main([*map(str, argv)])


def tree(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def report(out: Path, name="prepared.jsonl") -> dict:
    lines = [json.loads(line) for line in (out / name).read_text().splitlines()]
    return {line.pop("row").rpartition(" ")[2]: line.popitem()[1] for line in lines}


def record(out: Path, name: str) -> dict:
    return json.loads((out / f"records/{name}.json").read_text())


# --- PDMX -------------------------------------------------------------------------------------------------------------


def test_pdmx_record_has_what_is_known_and_no_user(tmp_path):
    out = tmp_path / "out"
    assert run("pdmx", pdmx(tmp_path), out) == 0
    found = record(out, "1/11/Qa")
    assert found == {
        "title": "Für Elise, “WoO 59”",
        "composer": "Beethoven",
        "genres": ["Classical Music"],
        "description": "By  see  or  悲しい曲。",
        "lyrics": None,
        "tags": ["für klavier", "2024"],
        "ensembles": ["Solo"],
        "instruments": ["Piano"],
        "filepaths": ["mtf/1/11/Qa.mtf", "interleaved/1/11/Qa.abc"],
    }
    for content in tree(out).values():
        assert not any(word in content for word in (b"jane", b"4711", b"musescore.com"))
    assert (out / "scores/1/11/Qa.mxl").is_symlink() and (out / "midi/1/11/Qa.mid").read_bytes() == MIDI


def test_pdmx_without_metadata_takes_the_csv(tmp_path):
    rows = [
        pdmx_row("2/b", artist_name="Anon, of old", groups="choir", title='He said "hm"', song_name="x"),
        pdmx_row("2/c", title="NA", song_name="A song", tags="NA", genres="NA"),
    ]
    music = {f"{form}/2/{name}.{form}": data for name in "bc" for form, data in (("mxl", mxl()), ("mid", MIDI))}
    out = tmp_path / "out"
    assert run("pdmx", pdmx(tmp_path, *rows, also=music | {"metadata/7/c.json": "[1]"}), out) == 0
    found = record(out, "2/b")
    assert (found["title"], found["composer"]) == ('He said "hm"', "Anon, of old")
    assert (found["genres"], found["tags"]) == (["classical", "soundtrack"], ["piano", "choir"])
    assert found["instruments"] == ["Acoustic Grand Piano", "Violin"]  # programs 0 and 40; there is no 200
    found = record(out, "2/c")
    assert (found["title"], found["composer"], found["genres"], found["tags"]) == ("A song", None, None, None)
    assert {line: str(text).count("metadata") > 0 for line, text in report(out).items()} == {"3": True, "4": True}


def test_general_midi_is_the_standards():
    assert len(general_midi.NAMES) == 128  # some, from the tables of the General MIDI specification, which count from 1
    wanted = {
        1: "Acoustic Grand Piano",
        14: "Xylophone",
        33: "Acoustic Bass",
        57: "Trumpet",
        74: "Flute",
        105: "Sitar",
        128: "Gunshot",
    }
    assert {number: general_midi.NAMES[number - 1] for number in wanted} == wanted


def test_pdmx_odd_rows_are_left_out_and_named(tmp_path, capsys):
    rows = [
        pdmx_row("3/b"),  # line 3: no file of it is there
        pdmx_row("3/c") + ",surplus",
        pdmx_row("3/d", mxl="NA", mid="NA"),
        pdmx_row("3/e", mxl="../../etc/passwd", mid="/etc/passwd"),
        pdmx_row("3/f").replace("Title", "T\udcffitle"),
        "",  # no row
        pdmx_row("3/g"),  # line 9: a web page in place of the score, an LFS pointer in place of the MIDI file
        pdmx_row("3/h"),  # the score is empty, the MIDI file is good
        pdmx_row("3/i", mxl="./mxl/1/11/Qa.mxl", mid="./mid/1/11/Qa.mid"),  # the first row again, with other metadata
        pdmx_row("3/j", mid="NA", mxl="./mxl/.hidden.mxl"),
        pdmx_row("3/k", title="two\nlines"),  # line 13 to 14
    ]
    also = {
        "mxl/3/g.mxl": "<!DOCTYPE html>",
        "mid/3/g.mid": b"version https://git-lfs.github.com/spec/v1\n",
        "mxl/3/h.mxl": "",
    }
    also |= {"mid/3/h.mid": MIDI, "mid/3/k.mid": MIDI, "mxl/.hidden.mxl": mxl(), "metadata/7/k.json": metadata()}
    also |= {"metadata/7/h.json": metadata()}
    out = tmp_path / "out"
    assert run("pdmx", pdmx(tmp_path, *rows, also=also), out) == 1
    problems = {
        "3": "its file is missing: mxl/3/b.mxl",
        "4": "the row cannot be read: 63 cells, but 62 columns",
        "5": "no file in mxl and mid",
        "6": "its name cannot be that of a file: '../etc/passwd'",
        "7": "the row cannot be read: not UTF-8",
        "9": "not music: no PK where a .mxl file has it: mxl/3/g.mxl",
        "10": ["its file is empty: mxl/3/h.mxl"],
        "11": "its name is taken by other contents, of another row or of an earlier SOURCE (then choose a new OUT): "
        + str(out / "records/1/11/Qa.json"),
        "12": "its name cannot be that of a file: '.hidden'",
        "14": ["its file is missing: mxl/3/k.mxl"],
    }
    assert report(out) == problems
    printed = capsys.readouterr().out
    assert "11 rows, 3 kept (3 midi, 1 scores; 2 with warnings), 8 left out" in printed
    assert "left out: 2 (for the reason: its name cannot be that of a file)" in printed
    assert record(out, "3/h")["filepaths"] == ["mtf/3/h.mtf"]


def test_pdmx_filters_hold_together_and_are_no_fault(tmp_path, capsys):
    rows = [
        pdmx_row("4/b", **{"subset:no_license_conflict": "False"}),
        pdmx_row("4/c", **{"subset:deduplicated": "False"}),
        pdmx_row("4/d", **{"subset:rated": "False"}),
        pdmx_row("4/e", **{"subset:all_valid": "False"}),
    ]
    folder = pdmx(tmp_path, *rows)
    options = ["--subset", "no_license_conflict", "all_valid", "--deduplicated", "--rated"]
    assert run("pdmx", folder, tmp_path / "a", *options) == 0
    wanted = {"3": "licence conflict", "4": "duplicate", "5": "not in subset:rated", "6": "not in subset:all_valid"}
    assert report(tmp_path / "a") == wanted
    assert run("pdmx", folder, tmp_path / "b", "--rated") == 1
    assert report(tmp_path / "b").pop("5") == "not in subset:rated" and len(report(tmp_path / "b")) == 4
    maybe = write(
        tmp_path / "maybe", {"PDMX.csv": f"{','.join(COLUMNS)}\n" + pdmx_row("4/b", **{"subset:rated": "maybe"})}
    )
    assert run("pdmx", maybe, tmp_path / "c", "--rated") == 2
    assert "`subset:rated` is not True or False" in capsys.readouterr().out


def test_pdmx_of_another_release_is_refused_by_column(tmp_path, capsys):
    folder = pdmx(tmp_path, columns=[name for name in COLUMNS if name not in ("mid", "subset:all_valid")])
    assert run("pdmx", folder, tmp_path / "a") == 2
    assert "PDMX.csv, line 1: no column mid; it has: path, metadata, mxl, pdf, version" in capsys.readouterr().err
    assert run("pdmx", folder, tmp_path / "b", "--only", "mxl", "--subset", "all_valid") == 2
    assert "no column subset:all_valid" in capsys.readouterr().err
    assert run("pdmx", tmp_path / "PDMX" / "mxl", tmp_path / "c") == 2
    assert "no PDMX.csv in it" in capsys.readouterr().err
    assert run("pdmx", pdmx(tmp_path), tmp_path / "c") == 0  # a wrong SOURCE has left nothing


# --- MidiCaps ---------------------------------------------------------------------------------------------------------


def caption(digest: str, **changes) -> str:
    line = {
        "location": f"lmd_full/{digest[0]}/{digest}.mid",
        "caption": "A slow song.",
        "genre": ["electronic", "pop"],
        "genre_prob": [0.4, 0.2],
        "mood": ["dark"],
        "mood_prob": [0.3],
        "key": "Bb major",
        "time_signature": "4/4",
        "tempo": 71.6,
        "tempo_word": "Adagio",
        "duration": 180,
        "duration_word": "Medium length",
        "chord_summary": None,
        "chord_summary_occurence": None,
        "instrument_summary": ["Piano", "Drums", "Piano"],
        "instrument_numbers_sorted": [0, 128],
        "all_chords": [],
        "all_chords_timestamps": [],
        "test_set": False,
    }
    return json.dumps(line | changes)


def test_midicaps(tmp_path, capsys):
    lines = [
        caption("aa", test_set=True),
        caption("bb", tempo=None, mood=None, genre="folk"),
        "not JSON",
        "",
        caption("cc"),
        caption("bb", caption="Another."),
        caption("dd", tempo="fast"),
        caption("ee", test_set=None),
        caption("ff", location=None),
        caption("aa", location="lmd_full/a/aa.wav"),
    ]
    names = {f"lmd_full/{name[0]}/{name}": MIDI for name in ("aa.mid", "bb.mid", "dd.mid", "aa.wav")}
    folder = write(tmp_path / "MidiCaps", {"train.json": "\n".join(lines), **names})
    out = tmp_path / "out"
    assert run("midicaps", folder, out) == 1
    assert tree(out / "texts") == {
        "test/lmd_full/a/aa.txt": b"A slow song.",
        "train/lmd_full/b/bb.txt": b"A slow song.",
    }
    assert tree(out / "midi") == {"test/lmd_full/a/aa.mid": MIDI, "train/lmd_full/b/bb.mid": MIDI}
    found = record(out, "test/lmd_full/a/aa")
    beats = "72 beats per minute at the beginning"
    assert found == dict.fromkeys(records.METADATA) | {
        "genres": ["electronic", "pop"],
        "description": "A slow song.",
        "tags": ["dark", "Bb major", "4/4", "Adagio", beats],
        "instruments": ["Piano", "Drums"],
        "filepaths": ["mtf/test/lmd_full/a/aa.mtf"],
    }
    found = record(out, "train/lmd_full/b/bb")
    assert (found["genres"], found["tags"]) == (["folk"], ["Bb major", "4/4", "Adagio"])
    kinds = {line: text.partition(":")[0] for line, text in report(out).items()}
    name = prepare_dataset.OTHER_CONTENTS
    assert kinds.pop("3") == "the row cannot be read"
    assert kinds.pop("10") == "not music"
    assert kinds == {
        "5": "its file is missing",
        "6": name,
        "7": "`tempo` is not a number",
        "8": "`test_set` is not True or False",
        "9": "`location` is empty",
    }
    printed = capsys.readouterr().out
    assert f"offline_summaries.py {out}/records/train {out}/summaries {out} --captions" in printed
    assert f"semantic_search.py metrics {out}/texts/test {out}/mtf/test" in printed
    assert run("midicaps", folder, tmp_path / "test", "--split", "test") == 1
    assert set(tree(tmp_path / "test/midi")) == {"test/lmd_full/a/aa.mid"}
    printed = capsys.readouterr().out  # the way to the measures, not to training on the test part
    assert "code/semantic_search.py metrics" in printed and "train.jsonl" not in printed
    assert report(tmp_path / "test")["2"] == "in another split"
    write(folder, {"train.json": '{"location": "a.mid", "captions": "?"}'})
    assert run("midicaps", folder, tmp_path / "other") == 2
    assert "train.json, line 1: no column caption, genre" in capsys.readouterr().err


# --- the way on -------------------------------------------------------------------------------------------------------


def test_the_printed_commands_lead_to_training_data(tmp_path, capsys, monkeypatch):
    """Run what is printed, in process, and read the result as train_clamp2.py does."""
    out = tmp_path / "o u t"
    assert run("pdmx", pdmx(tmp_path), out) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  python ")]
    scripts = {"batch_xml2abc": batch_xml2abc, "batch_interleaved_abc": batch_interleaved_abc}
    scripts |= {"batch_midi2mtf": batch_midi2mtf, "offline_summaries": offline_summaries, "merge_jsonl": merge_jsonl}
    for command in printed:
        python, script, *argv = shlex.split(command)
        assert (python, (ROOT / script).is_file()) == ("python", True)
        assert scripts.pop(Path(script).stem).main(argv) == 0, command
    assert not scripts
    merged = records.Jsonl(out / "train.jsonl")
    assert len(merged) == 1 and merged[0]["filepaths"] == ["mtf/1/11/Qa.mtf", "interleaved/1/11/Qa.abc"]
    assert "Beethoven" in records.fixed_text(merged[0])[0]  # a summary
    assert not (out / "train.left_out.jsonl").exists()


def labelled(source, args):
    for number in range(7):
        split = "train" if number < 5 else "test"
        entry = Entry(
            f"x,{number}",
            {".abc": f"X:1\nK:C\nC{number}|\n".encode()},
            {"title": "C"},
            labels={"label": "odd" if number % 2 else "even", "size": "s"},
            split=split,
        )
        yield f"row {number}", lambda entry=entry: entry


@pytest.fixture
def two_tasks(monkeypatch):
    monkeypatch.setitem(prepare_dataset.DATASETS, "two", Dataset("Two.", labelled, ("train", "test")))


def test_labels_and_splits_are_the_probes(tmp_path, two_tasks, capsys):
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    assert run("two", tmp_path / "in", out) == 0
    known = labels.from_csv(out / "labels.csv")
    assert known == {f"x,{number}": "odd" if number % 2 else "even" for number in range(7)}
    assert labels.from_csv(out / "labels_size.csv") == dict.fromkeys(known, "s")
    assert [path.name for path in sorted((out / "abc/test").iterdir())] == ["x,5.abc", "x,6.abc"]
    for root, names in ((out / "f/test", ["x,5.npy"]), (out / "f", ["test/x,5.npy"])):  # of one split, and of all
        assert labels.assign([(root, name) for name in names], known) == ["odd"]
    printed = capsys.readouterr().out
    for end in ("", "_size"):
        assert f"train {out}/features --labels {out}/labels{end}.csv --split --model {out}/probe{end}.pth" in printed
    assert f"merge_jsonl.py {out}/summaries {out}/train.jsonl" in printed
    assert run("two", tmp_path / "in", tmp_path / "test", "--split", "test") == 0
    assert "merge_jsonl.py" not in capsys.readouterr().out


# --- again, in parts, interrupted -------------------------------------------------------------------------------------


def test_a_second_run_writes_nothing_and_a_stopped_one_goes_on(tmp_path, monkeypatch, capsys):
    rows = [pdmx_row(f"5/{name}") for name in "bcd"]
    music = {f"{form}/5/{name}.{form}": data for name in "bcd" for form, data in (("mxl", mxl()), ("mid", MIDI))}
    folder, out = pdmx(tmp_path, *rows, also=music), tmp_path / "out"
    write, left = prepare_dataset._write, [2]

    def stop(path, content):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(prepare_dataset, "_write", stop)
    assert run("pdmx", folder, out) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert len(tree(out / "records")) == 1 and not list(out.rglob(".tmp*"))
    monkeypatch.setattr(prepare_dataset, "_write", write)
    assert run("pdmx", folder, out) == 0
    times = {
        path: os.lstat(path).st_mtime_ns for part in ("records", "scores", "midi") for path in (out / part).rglob("*.*")
    }
    assert len(times) == 12
    assert run("pdmx", folder, out) == 0
    assert times == {path: os.lstat(path).st_mtime_ns for path in times}
    assert run("pdmx", folder, out, "--rated") == 2
    assert "prepared with other options" in capsys.readouterr().err


def test_shards_make_together_what_one_run_makes(tmp_path, two_tasks, capsys):
    (tmp_path / "in").mkdir()
    whole, parts = tmp_path / "whole", tmp_path / "p arts"
    run("two", tmp_path / "in", whole)
    for part in (1, 2, 3):
        assert run("two", tmp_path / "in", parts, "--shard", f"{part}/3") == 0
    assert tree(whole / "abc") == tree(parts / "abc") and len(tree(whole / "abc")) == 7
    assert len(tree(parts / "abc/test")) == 2
    assert not (parts / "labels.csv").exists()
    for command in [line for line in capsys.readouterr().out.splitlines() if line.startswith("  cat ")]:
        subprocess.run(["bash", "-c", command], check=True)
    for name in ("labels.csv", "labels_size.csv"):
        assert sorted((parts / name).read_text().splitlines()) == (whole / name).read_text().splitlines()


def test_folders_in_each_other_are_refused(tmp_path, capsys):
    folder = pdmx(tmp_path)
    for source, out in ((folder, folder), (folder, folder / "out"), (folder, tmp_path)):
        assert run("pdmx", source, out) == 2
        assert "choose a folder outside" in capsys.readouterr().err
    assert run("pdmx", tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("links", [(), ("symlink",), ("symlink", "link")])
def test_links_where_the_system_has_them(tmp_path, monkeypatch, links):
    def refuse(*names):
        raise OSError("no links here")

    for name in links:
        monkeypatch.setattr(os, name, refuse)
    folder = pdmx(tmp_path)
    for _ in range(2):
        assert run("pdmx", folder, tmp_path / "out") == 0
    made = tmp_path / "out/midi/1/11/Qa.mid"
    assert made.read_bytes() == MIDI
    assert made.is_symlink() == (not links) and made.samefile(folder / "mid/1/11/Qa.mid") == (len(links) < 2)


# --- archives ---------------------------------------------------------------------------------------------------------


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_tar_is_unpacked_when_asked_and_members_stay_inside(tmp_path, capsys):
    folder, out = pdmx(tmp_path), tmp_path / "out"
    for name in ("mid/1/11/Qa.mid", "mxl/1/11/Qa.mxl", "metadata/7/a.json"):
        (folder / name).rename(tmp_path / Path(name).name)
    tar(folder / "mxl.tar.gz", {"mxl/1/11/Qa.mxl": mxl(), "../escaped.mxl": b"x", f"{tmp_path}/escaped.mxl": b"x"})
    tar(folder / "metadata.tar.gz", {"./metadata/7/a.json": metadata().encode()})
    with tarfile.open(folder / "mid.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "Qa.mid", "mid/1/11/Qa.mid")
        for kind, target in (
            (tarfile.SYMTYPE, "/etc/passwd"),
            (tarfile.LNKTYPE, "mid/1/11/Qa.mid"),
            (tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(f"mid/{kind.decode()}.mid")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    tar(folder / "pdf.tar.gz", {"pdf/a.pdf": b"%PDF"})  # not needed: stays packed
    assert run("pdmx", folder, out) == 2
    assert "metadata.tar.gz: not expanded" not in capsys.readouterr().out
    assert not (out / "source").exists()
    assert run("pdmx", folder, out, "--extract") == 1
    printed = capsys.readouterr()
    assert "5 member(s) of archives were not unpacked" in printed.err and "mid/2.mid" in printed.err
    assert set(tree(out / "source")) - {path for path in tree(out / "source") if path.startswith(".")} == {
        "mxl/1/11/Qa.mxl",
        "mid/1/11/Qa.mid",
        "metadata/7/a.json",
    }
    assert not list(tmp_path.rglob("escaped.mxl"))
    assert record(out, "1/11/Qa")["composer"] == "Beethoven"
    assert run("pdmx", folder, out) == 0  # unpacked already


def test_a_tar_whose_first_file_lies_beside_it_is_expanded(tmp_path):
    folder = pdmx(tmp_path, pdmx_row("6/b"))
    tar(folder / "mxl.tar.gz", {"mxl/1/11/Qa.mxl": mxl()})
    assert run("pdmx", folder, tmp_path / "out") == 1
    assert report(tmp_path / "out")["3"].startswith("its file is missing")


def test_a_damaged_tar_ends_the_run(tmp_path, capsys):
    folder = pdmx(tmp_path)
    tar(folder / "mid.tar.gz", {"mid/x.mid": os.urandom(100_000)})
    whole = (folder / "mid.tar.gz").read_bytes()
    for data in (whole[:-50_000], b"no archive"):
        (folder / "mid.tar.gz").write_bytes(data)
        assert run("pdmx", folder, tmp_path / "out", "--extract") == 2
        assert "is the download complete?" in capsys.readouterr().err


def test_a_damaged_table_in_a_zip_ends_the_run(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "PDMX.zip", "w") as archive:
        archive.writestr("PDMX.csv", ",".join(COLUMNS) + "\n")
    whole = (tmp_path / "PDMX.zip").read_bytes()
    entry = whole.index(b"PK\1\2")
    odd = bytearray(whole)
    odd[8] = odd[entry + 10] = 99  # a method of compression that is another's
    for data, problem in ((whole.replace(b"path,", b"page,"), "Bad CRC-32"), (odd, "That compression method")):
        (tmp_path / "PDMX.zip").write_bytes(data)
        assert run("pdmx", tmp_path / "PDMX.zip", tmp_path / "out") == 2
        printed = capsys.readouterr().err
        assert problem in printed and "PDMX.zip: " in printed


def test_every_set_says_how_to_get_it(capsys):
    for name in prepare_dataset.DATASETS:
        with pytest.raises(SystemExit, match="0"):
            run(name, "--help")
        printed = capsys.readouterr().out
        assert "icence" in printed and f"prepare_dataset.py {name}" in printed, name


@pytest.mark.parametrize("second", ["2.mid", b"MThd other"])
def test_two_pieces_of_one_name_are_not_mixed_up(tmp_path, second):
    folder, out = write(tmp_path / "in", {"1.mid": MIDI, "2.mid": MIDI + b"\0", "3.mid": MIDI}), tmp_path / "out"
    source = Source(folder, tmp_path / "none")
    first = "1.mid" if isinstance(second, str) else MIDI
    for again in (first, first, "3.mid" if isinstance(second, str) else MIDI):  # the same contents are the same piece
        assert prepare_dataset.write_entry(Entry("a", {".mid": again}), source, out) == {"midi"}
    with pytest.raises(LeftOut, match="its name is taken by other contents"):
        prepare_dataset.write_entry(Entry("a", {".mid": second}), source, out)
    assert tree(out) == {"midi/a.mid": MIDI}


def test_what_is_surely_no_music_is_left_out(tmp_path):
    source = Source(tmp_path, tmp_path / "none")
    bad = {
        ("a.mid", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"): "Git LFS",
        ("b.mxl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"): "Git LFS",
        ("c.mid", b"\0 \n"): "its file is empty: c.mid",
        ("d.mxl", b"<score-partwise/>"): "no PK where a .mxl file has it",
        ("e.xml", b"Not found"): "no < where a .xml file has it",
        ("f.abc", b"<html>"): "no K: where a .abc file has it",
        ("g.txt", b"K:C"): "not music: g.txt: the suffix of no known type",
    }
    for (name, content), reason in bad.items():
        stem, suffix = os.path.splitext(name)
        with pytest.raises(LeftOut, match=reason):
            prepare_dataset.write_entry(Entry(stem, {suffix: content}), source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    good = {
        ".mid": b"\0" * 128 + b"MThd",
        ".rmi": b"RIFF0000RMIDdata0000MThd",
        ".musicxml": "\ufeff<?xml".encode("utf-16-le"),
        ".abc": b"X:1\nK:none\n",
    }
    for number, (suffix, content) in enumerate(good.items()):
        assert prepare_dataset.write_entry(Entry(str(number), {suffix.upper(): content}), source, tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"midi/0.mid", "midi/1.rmi", "scores/2.musicxml", "abc/3.abc"}
    prepare_dataset.write_entry(Entry("3", {".abc": good[".abc"]}, {"title": "C"}), source, tmp_path / "out")
    assert record(tmp_path / "out", "3")["filepaths"] == ["interleaved/3.abc"]


def test_addresses_are_removed_from_texts_and_nothing_else():
    kept = "M@ry 4@4: a @ b, C#m, http, 50 % op.5/2 B.C. feat.Bob commedia.comica net"
    gone = (
        "@jane_doe",
        "(@jane)",
        "(jane@doe.org)",
        "<mailto:jane@doe.org>",
        "www.musescore.com/user/1",
        "https://x.org/?u=jane",
        "youtu.be/jane",
        "(soundcloud.com/jane)",
        "jane.wordpress.com.",
        "IG:@jane",
        '"@jane"',
    )
    long = "a@" * 10**5  # at once, not in minutes
    assert prepare_dataset._clean(long) == long
    for address in gone:
        assert prepare_dataset._clean(f"{kept} {address}") == kept
        assert prepare_dataset._clean(f"悲しい{address}曲") == "悲しい曲"
