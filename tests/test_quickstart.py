"""The quick start: its music, its texts, what it holds out, its list of commands, and the whole of it on a few pieces."""

import json
import os
import random
import re
import shlex
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import mido
import music21
import pytest
import symusic
from transformers import AutoModel, AutoTokenizer

import files
import musicxml
import quickstart_data as data
import quickstart_report as report
from helpers import ROOT, run_script
from quickstart_data import Piece

CORPUS = Path(music21.__file__).parent / "corpus"
CHORALE = CORPUS / "bach" / "bwv66.6.mxl"


def piece(name: str, **changes) -> Piece:
    rng = random.Random(name)
    facts = {
        "title": f"The {name}", "dance": "reel", "key": "G major", "meter": "2/4", "bars": 16, "lowest": 62,
        "highest": 83, "incipit": "G B D G", "intervals": [rng.randint(-7, 7) for _ in range(60)],
    }  # fmt: skip
    return Piece(name=name, **(facts | changes))


def read_score(path: Path) -> Element:
    return fromstring(musicxml.read(path.read_bytes())[0])


# --- music ------------------------------------------------------------------------------------------------------------


def notes_by_music21(score: music21.stream.Score) -> list[Counter]:
    """Onset, length and pitch of each part's notes, by another reader."""
    parts = []
    for part in score.parts:
        notes = part.stripTies().flatten().notes
        parts.append(
            Counter(
                (float(n.offset), float(n.quarterLength), p.midi) for n in notes for p in n.pitches if n.quarterLength
            )
        )
    return parts


def our_notes(score) -> list[Counter]:
    ticks = data.TICKS
    return [Counter((a / ticks, b / ticks, c) for a, b, c in data.notes_of(part)) for part in score.iter("part")]


@pytest.mark.parametrize("name", ["bwv66.6", "bwv267", "bwv10.7"])
def test_notes_and_key_are_those_that_music21_reads(name):
    path = CORPUS / "bach" / f"{name}.mxl"
    score, other = read_score(path), music21.converter.parse(path)
    assert our_notes(score) == notes_by_music21(other)
    signature = other.parts[0].recurse().getElementsByClass("KeySignature").first()
    piece = data.describe(score, "x", "x", "chorale")
    tonic, mode = piece.key.split()
    assert music21.key.Key(tonic.replace("b", "-"), mode).sharps == signature.sharps
    assert (piece.lowest, piece.highest) == (
        min(p.midi for p in other.pitches),
        max(p.midi for p in other.pitches),
    )


def test_a_part_with_several_voices_is_refused():
    with pytest.raises(files.InputError, match="several voices"):
        data.describe(read_score(CORPUS / "bach" / "bwv846.mxl"), "x", "x", "chorale")


def test_midi_holds_key_meter_and_all_notes(tmp_path):
    score = read_score(CHORALE)
    data.midi_file(score, "4/4", data.CHOIR).save(tmp_path / "chorale.mid")
    midi = mido.MidiFile(tmp_path / "chorale.mid")
    head = {message.type: message for message in midi.tracks[0]}
    assert head["key_signature"].key == "F#m"
    assert (head["time_signature"].numerator, head["time_signature"].denominator) == (4, 4)
    ticks = data.TICKS
    read = [
        Counter((note.start / ticks, note.duration / ticks, note.pitch) for note in track.notes)
        for track in symusic.Score(tmp_path / "chorale.mid").tracks
    ]
    assert read == notes_by_music21(music21.converter.parse(CHORALE))


def test_tunes_lose_what_is_no_note():
    text = 'T:"Quoted" {title}\nR: reel\nK:G\n"_mf"v(g2 {a}"4"b)uA ~G|[ceg] u.D"Am"|\n%%slurgraces 1\n'
    assert data.clean_abc(text) == 'T:"Quoted" {title}\nR: reel\nK:G\n(g2 b)A ~G|[ceg] .D|\n%%slurgraces 1\n'


@pytest.mark.parametrize(
    ("field", "meter", "dance"),
    [("REEL", "2/4", "reel"), ("jig", "6/8", "jig"), ("jig", "9/8", "slip jig"), ("slipjig", "9/8", "slip jig"),
     ("fling", "2/2", "highland fling"), ("walkaround", "2/4", ""), ("", "2/4", "")],
)  # fmt: skip
def test_dances(field, meter, dance):
    assert data.dance_of(f"X:1\nR: {field}\nM:{meter}\nK:G\n") == dance


def test_every_dance_of_the_collection_is_counted():
    tunes = [path.read_text(encoding="utf-8", errors="replace") for path in CORPUS.glob("ryansMammoth/*.abc")]
    counts = Counter(map(data.dance_of, tunes))
    assert set(counts) == {*data.DANCES, ""}
    assert counts[""] < 30 and len(tunes) > 1000


def test_tunes_without_a_dance_are_not_collected(tmp_path):
    data.collect(tmp_path, 30, 3)
    tunes = sorted(tmp_path.glob("tunes/*.abc"))
    assert len(tunes) == 30 and all(data.dance_of(path.read_text()) for path in tunes)
    assert len({path.name[0] for path in tunes}) > 10  # of the whole collection, not of its beginning
    assert len(list(tmp_path.glob("chorales/*.mxl"))) == 3


# --- what is held out -------------------------------------------------------------------------------------------------


def test_no_version_of_a_tune_is_on_two_sides(monkeypatch):
    pieces = [piece(f"tune{number}") for number in range(40)]
    twin = piece("other name", intervals=pieces[3].intervals[:45] + [1] * 15)  # most of a tune, in any key
    titled = [piece("a1", title="Picnic Reel"), piece("a2", title="The Picnic Reel")]
    pieces += [twin, *titled]
    monkeypatch.setattr(data, "TEST", 20)
    monkeypatch.setattr(data, "VALIDATION", 8)
    for seed in range(20):
        parts = data.split(pieces, seed)
        names = {part: {p.name for p in members} for part, members in parts.items()}
        assert {part: len(found) for part, found in names.items()} == {"train": 15, "validation": 8, "test": 20}
        assert len(set().union(*names.values())) == len(pieces)
        assert {"tune3", "other name", "a1", "a2"} <= names["train"]


def test_different_seeds_hold_out_different_pieces(monkeypatch):
    pieces = [piece(f"tune{number}") for number in range(40)]
    monkeypatch.setattr(data, "TEST", 10)
    monkeypatch.setattr(data, "VALIDATION", 5)
    first, second = ({p.name for p in data.split(pieces, seed)["test"]} for seed in (0, 1))
    assert first != second
    monkeypatch.setattr(data, "TEST", 40)
    with pytest.raises(files.InputError, match="40 different pieces are too few to hold out 45"):
        data.split(pieces, 0)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "language", "name"),
    [("B minor", "German", "h-Moll"), ("Bb major", "German", "B-Dur"), ("F# minor", "German", "fis-Moll"),
     ("Eb major", "German", "Es-Dur"), ("Ab major", "German", "As-Dur"), ("Db major", "German", "Des-Dur"),
     ("D major", "French", "ré majeur"), ("Bb major", "French", "si bémol majeur"), ("D minor", "Spanish", "re menor"),
     ("F# minor", "Italian", "fa diesis minore"), ("A mixolydian", "Italian", "la misolidio"),
     ("Bb major", "Chinese (Simplified)", "降B大调"), ("E dorian", "English", "E dorian")],
)  # fmt: skip
def test_keys_in_other_languages(key, language, name):
    assert data.templates.key_name(key, language) == name


def test_records_hold_all_facts_in_six_languages():
    record = data.record_of(piece("x", key="E minor", dance="jig", meter="6/8"), ["a.abc", "b.mtf"])
    others = [other["summary"] for other in record["summary_nen"]]
    assert len(others) == len({other["language"] for other in record["summary_nen"]}) == 5
    english = [text for text in record["summary_en"] if "16" in text]
    for text in [*english, *others]:
        assert all(fact in text for fact in ("6/8", "16", "D4", "B5", "G B D G")), text
    keys = ("E minor", "e-Moll", "mi mineur", "mi menor", "mi minore", "E小调")
    assert [key in text for key, text in zip(keys, [english[0], *others], strict=True)] == [True] * 6
    assert record["filepaths"] == ["a.abc", "b.mtf"]
    # the sentences of zero-shot classification are texts of the training
    assert {"A jig.", "In 6/8 time.", "In E minor."} <= set(record["summary_en"])


def test_the_texts_to_the_byte():
    """The wordings are shared with the summaries of other data; those of the quick start stay as they are."""
    jig = piece("x", key="Bb dorian", dance="slip jig", meter="9/8", bars=24, lowest=58, highest=82, incipit="D D F A")
    record = data.record_of(jig, [])
    assert record["description"] == "Bb dorian, 9/8, 24 bars, Bb3 to Bb5, D D F A"
    assert record["summary_en"] == [
        "A slip jig in Bb dorian, in 9/8 time. It has 24 bars, from Bb3 up to Bb5, and begins D D F A.",
        "This slip jig is in Bb dorian. Meter 9/8; 24 bars; Bb3 to Bb5; the first notes are D D F A.",
        "Slip jig, Bb dorian, 9/8, 24 bars, range Bb3 to Bb5, incipit D D F A.",
        "A slip jig.",
        "In 9/8 time.",
        "In Bb dorian.",
    ]
    assert [(other["language"], other["summary"]) for other in record["summary_nen"]] == [
        ("German", "Slip jig in b-Dorisch, 9/8-Takt, 24 Takte, Bb3 bis Bb5, beginnt D D F A."),
        ("French", "Gigue à 9/8 en si bémol dorien, à 9/8, 24 mesures, de Bb3 à Bb5, début D D F A."),
        ("Spanish", "Giga a 9/8 en si bemol dórico, en 9/8, 24 compases, de Bb3 a Bb5, empieza D D F A."),
        ("Italian", "Giga in 9/8 in si bemolle dorico, in 9/8, 24 battute, da Bb3 a Bb5, comincia D D F A."),
        ("Chinese (Simplified)", "降B多利亚调式 的 滑步吉格舞曲 ， 9/8 拍， 24 小节， Bb3 到 Bb5 ，开头 D D F A 。"),
    ]
    names = {"chorale": ("Choral", "Choral", "Coral", "Corale", "众赞歌"), "clog": (*["Clog"] * 4, "木屐舞曲")}
    names |= {"reel": (*["Reel"] * 4, "里尔舞曲"), "jig": ("Jig", "Gigue", "Giga", "Giga", "吉格舞曲")}
    names |= {"hornpipe": (*["Hornpipe"] * 4, "号笛舞曲"), "strathspey": (*["Strathspey"] * 4, "斯特拉斯佩舞曲")}
    names |= {"highland fling": (*["Highland fling"] * 4, "高地舞曲")}
    for dance, words in names.items():
        others = [other["summary"] for other in data.record_of(piece("x", dance=dance), [])["summary_nen"]]
        assert all(text.startswith(word) for text, word in zip(others[:4], words[:4], strict=True)), others
        assert f"的 {words[4]} ，" in others[4]


def test_the_text_model_loads_as_any_other(tmp_path):
    sentences = [data.text_of(piece(f"x{number}"), template) for number in range(9) for template in data.ENGLISH]
    data.make_text_model(sentences, tmp_path, seed=0)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert model.config.model_type == "xlm-roberta"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer("A reel in G major", return_tensors="pt")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<s>", "A", "reel", "in", "G", "major", "</s>"]
    assert model(ids).last_hidden_state.shape == (1, 7, 128)
    assert ids.max() < model.config.vocab_size == len(tokenizer)


# --- the list of commands ---------------------------------------------------------------------------------------------

PYTHON = """#!/usr/bin/env bash
IFS=$'\\t'
echo "${CLAMP2_CONFIG-}	$*" > DESK/ask
read -r status < DESK/answer
exit "$status"
"""


class Commands:
    """Runs quickstart.sh, in `folder` and with a `python` that hands its command line to a function.

    Args:
        run: (CLAMP2_CONFIG, words) -> exit status. pip is not run.
        changes: {text of the script: text in its place}.
    """

    def __init__(self, folder: Path, run: Callable[[str, list[str]], int], changes: dict[str, str] | None = None):
        self.folder, self.run, self.seen = folder, run, []
        script = (ROOT / "code/quickstart.sh").read_text(encoding="utf-8")
        places = {
            '"$(dirname "${BASH_SOURCE[0]}")/.."': str(ROOT),
            "run=.quickstart": f"run={folder}",
            "../$run": "$run",
        }
        for text, other in (places | (changes or {})).items():
            assert text in script, text
            script = script.replace(text, other)
        (folder / "quickstart.sh").write_text(script, encoding="utf-8")
        (folder / "python").write_text(PYTHON.replace("DESK", shlex.quote(str(folder))))
        (folder / "python").chmod(0o755)
        for name in ("ask", "answer"):
            os.mkfifo(folder / name)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        # opened for both, so that opening does not wait for the other side, and no end of file is ever read
        ask, answer = (os.open(self.folder / name, os.O_RDWR) for name in ("ask", "answer"))
        with open(ask, encoding="utf-8") as asked:
            for line in asked:
                config, *words = line.rstrip("\n").split("\t")
                self.seen.append(words)
                status = 0 if words[:2] == ["-m", "pip"] else self.run(config, words)
                os.write(answer, f"{status}\n".encode())

    def start(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}", "VIRTUAL_ENV": "/any"}
        self.seen.clear()
        command = ["bash", str(self.folder / "quickstart.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_the_command_line_is_checked_before_anything_is_done(tmp_path):
    commands = Commands(tmp_path, lambda config, words: 0)
    for words, message in ((["--seed", "x"], "--seed x"), (["--seed", "-1"], "--seed -1"), (["--seed=1.5"], "1.5")):
        done = commands.start(*words)
        assert (done.returncode, done.stdout) == (2, "") and f"{message}: not a number from 0" in done.stderr
    for words, status in ((["--help"], 0), (["--sed", "1"], 2), (["--seed"], 2), (["--pretrained", "x"], 2)):
        done = commands.start(*words)
        assert done.returncode == status and "quickstart.sh --seed 1 " in done.stdout + done.stderr
        assert "set -" not in done.stdout + done.stderr
    assert not commands.seen


def test_a_command_that_fails_ends_it_with_its_status(tmp_path):
    commands = Commands(tmp_path, lambda config, words: 3 * (words[0] == "process_data/batch_xml2abc.py"))
    done = commands.start("--seed", "7")
    assert (done.returncode, done.stderr) == (3, "")
    assert commands.seen[-1] == ["process_data/batch_xml2abc.py", f"{tmp_path}/seed7/scores", f"{tmp_path}/seed7/abc"]
    assert done.stdout.endswith(f"\n$ python {shlex.join(commands.seen[-1])}\n")  # it was printed before it ran


def test_the_published_weights_are_asked_the_same_questions(tmp_path):
    configs = set()
    commands = Commands(tmp_path, lambda config, words: configs.add(config) or 0)
    assert commands.start("--pretrained").returncode == 0
    _, collect, *searches = commands.seen
    assert collect[1:] == ["collect", f"{tmp_path}/pretrained/library", "--tunes", "200", "--chorales", "20"]
    assert "--download" in searches[0] and configs == {""}
    questions = re.findall(r' search "(.*?)"', (ROOT / "code/quickstart.sh").read_text(encoding="utf-8"))
    assert [words[2] for words in searches] == questions[:5] == questions[5:]


# --- all of it --------------------------------------------------------------------------------------------------------

SMALL = {
    "collect $run\n": "collect $run --tunes 60 --chorales 4\n",
    "PATCH_NUM_LAYERS = 3": "PATCH_NUM_LAYERS = 1",
    "HIDDEN_SIZE = 128": "HIDDEN_SIZE = 64",
    "CLAMP2_BATCH_SIZE = 64": "CLAMP2_BATCH_SIZE = 16",
    "CLAMP2_NUM_EPOCH = 75": "CLAMP2_NUM_EPOCH = 1",
    "CLAMP2_NUM_EPOCH = 85": "CLAMP2_NUM_EPOCH = 2",
}


def test_the_whole_on_a_few_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TEST", 12)
    monkeypatch.setattr(data, "VALIDATION", 4)
    printed, fails = [], set()

    def run(config: str, words: list[str]) -> int:
        if words[0] in fails:
            return 3
        if words[0] == "code/quickstart_data.py":  # in this process, for the sizes above
            return data.main(words[1:])
        done = run_script(words[0], *words[1:], cwd=ROOT, CLAMP2_CONFIG=config, CUDA_VISIBLE_DEVICES="")
        printed.append(done.stdout + done.stderr)
        # so few pieces of a rhythm for the probe, so little learnt for the classification by words
        too_few = "has fewer than 3 pieces|the model knows no class|signs that the answers mean nothing"
        return 0 if re.search(too_few, done.stderr) and done.returncode == 1 else done.returncode

    commands = Commands(tmp_path, run, SMALL)
    done = commands.start()
    assert done.returncode == 0, (done, printed[-1])
    folder = tmp_path / "seed0"
    found = json.loads((folder / "results.json").read_text())
    assert set(found["retrieval"]) == {"text to ABC", "text to MIDI", "ABC to MIDI"}
    assert set(found["zero-shot"]) == {f"{a}, {k}" for a in ("rhythm", "meter", "key") for k in ("ABC", "MIDI")}
    for line in ("zero-shot rhythm, ABC", "linear probe rhythm", "ABC to MIDI MRR", "“une gigue"):
        assert line in printed[-1]
    assert all((folder / picture).stat().st_size > 1000 for picture in report.PICTURES)
    log = (folder / "logs_clamp2.txt").read_text()
    rates = re.findall(r"^  CLAMP2_LEARNING_RATE +(\S+)$", log, re.MULTILINE)
    assert [float(rate) for rate in rates] == [1e-3, 1e-4]
    # zero-shot classification asks for what training has ten pieces of
    records = [json.loads(path.read_text()) for path in (folder / "records/train").iterdir()]
    counts = Counter(record["tags"][0] for record in records)
    questions = json.loads((folder / "classes.json").read_text())
    assert questions["key"] == {key: f"In {key}." for key, count in counts.items() if count >= 10}
    # what is held out has no part in training
    names = {
        part: {path.stem for path in (folder / "mtf" / part).glob("*.mtf")} for part in ("train", "validation", "test")
    }
    assert {part: len(found) for part, found in names.items()} == {"train": 48, "validation": 4, "test": 12}
    assert len(set().union(*names.values())) == 64
    for line in (folder / "train.jsonl").read_text().splitlines():
        assert all("/train/" in path for path in json.loads(line)["filepaths"])
    assert {path.suffix for path in (folder / "library").iterdir()} >= {".musicxml", ".mid", ".abc"}
    assert len(list((folder / "library").iterdir())) == 12

    assert commands.start().returncode == 0  # a run that is finished is shown
    assert [words[0] for words in commands.seen] == ["-m", "code/quickstart_report.py"]
    (folder / "results.json").unlink()  # one that is not goes on: nothing is trained again
    fails.add("code/extract_clamp2.py")
    assert commands.start().returncode == 3
    assert (folder / "logs_clamp2.txt").read_text().count('"epoch": 2') == log.count('"epoch": 2') == 1
