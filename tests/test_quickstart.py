"""The quick start: what it knows of music, what it says in words, what it holds out, and the whole of it on a few pieces."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import mido
import music21
import numpy as np
import pytest
import symusic
from transformers import AutoModel, AutoTokenizer

import files
import published
import quickstart
import quickstart_model
import quickstart_music as music
import quickstart_pretrained
import quickstart_report as report
import quickstart_steps
import quickstart_texts as texts
from helpers import ROOT, run_script
from quickstart_music import Piece

CORPUS = Path(music21.__file__).parent / "corpus"
CHORALE = CORPUS / "bach" / "bwv66.6.mxl"


def piece(name: str, **changes) -> Piece:
    rng = random.Random(name)
    facts = {
        "title": f"The {name}", "dance": "reel", "key": "G major", "meter": "2/4", "bars": 16, "lowest": 62,
        "highest": 83, "incipit": list("GBDG"), "intervals": [rng.randint(-7, 7) for _ in range(60)],
    }  # fmt: skip
    return Piece(name=name, **(facts | changes))


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
    ticks = music.TICKS
    return [Counter((a / ticks, b / ticks, c) for a, b, c in music.notes_of(part)) for part in score.iter("part")]


@pytest.mark.parametrize("name", ["bwv66.6", "bwv267", "bwv10.7"])
def test_notes_and_key_are_those_that_music21_reads(name):
    path = CORPUS / "bach" / f"{name}.mxl"
    score, other = music.read_score(path), music21.converter.parse(path)
    assert our_notes(score) == notes_by_music21(other)
    signature = other.parts[0].recurse().getElementsByClass("KeySignature").first()
    told = music.describe(score, "x", "x", "chorale")
    tonic, mode = told.key.split()
    assert music21.key.Key(tonic.replace("b", "-"), mode).sharps == signature.sharps
    assert (told.lowest, told.highest) == (
        min(p.midi for p in other.pitches),
        max(p.midi for p in other.pitches),
    )


def test_midi_holds_key_meter_and_all_notes(tmp_path):
    score = music.read_score(CHORALE)
    music.midi_file(score, "4/4", music.CHOIR).save(tmp_path / "chorale.mid")
    midi = mido.MidiFile(tmp_path / "chorale.mid")
    head = {message.type: message for message in midi.tracks[0]}
    assert head["key_signature"].key == "F#m"
    assert (head["time_signature"].numerator, head["time_signature"].denominator) == (4, 4)
    ticks = music.TICKS
    read = [
        Counter((note.start / ticks, note.duration / ticks, note.pitch) for note in track.notes)
        for track in symusic.Score(tmp_path / "chorale.mid").tracks
    ]
    assert read == notes_by_music21(music21.converter.parse(CHORALE))


def test_tunes_lose_what_is_no_note():
    text = 'T:"Quoted" {title}\nR: reel\nK:G\n"_mf"v(g2 {a}"4"b)uA ~G|[ceg] u.D"Am"|\n%%slurgraces 1\n'
    assert music.clean_abc(text) == 'T:"Quoted" {title}\nR: reel\nK:G\n(g2 b)A ~G|[ceg] .D|\n%%slurgraces 1\n'


@pytest.mark.parametrize(
    ("field", "meter", "dance"),
    [("REEL", "2/4", "reel"), ("jig", "6/8", "jig"), ("jig", "9/8", "slip jig"), ("slipjig", "9/8", "slip jig"),
     ("fling", "2/2", "highland fling"), ("walkaround", "2/4", ""), ("", "2/4", "")],
)  # fmt: skip
def test_dances(field, meter, dance):
    assert music.dance_name(field, meter) == dance


def test_every_dance_of_the_collection_is_counted():
    fields = Counter()
    for path in music.corpus_files(2000, 0):
        found = re.search(r"^R:\s*(.*?)\s*$", music.read_abc(path), re.MULTILINE)
        fields[music.dance_name(found[1] if found else "", "")] += 1
    assert set(fields) == {*music.DANCES, ""}
    assert fields[""] < 30 and sum(fields.values()) > 1000


# --- what is held out -------------------------------------------------------------------------------------------------


def test_no_version_of_a_tune_is_on_two_sides():
    pieces = [piece(f"tune{number}") for number in range(40)]
    twin = piece("other name", intervals=pieces[3].intervals[:45] + [1] * 15)  # most of a tune, in any key
    titled = [piece("a1", title="Picnic Reel"), piece("a2", title="The Picnic Reel")]
    pieces += [twin, *titled]
    plan = quickstart.Plan(test=20, validation=8)
    for seed in range(20):
        parts = quickstart.split(pieces, plan, seed)
        names = {part: {p.name for p in members} for part, members in parts.items()}
        assert {part: len(found) for part, found in names.items()} == {"train": 15, "validation": 8, "test": 20}
        assert len(set().union(*names.values())) == len(pieces)
        assert {"tune3", "other name", "a1", "a2"} <= names["train"]


def test_different_seeds_hold_out_different_pieces():
    pieces, plan = [piece(f"tune{number}") for number in range(40)], quickstart.Plan(test=10, validation=5)
    first, second = ({p.name for p in quickstart.split(pieces, plan, seed)["test"]} for seed in (0, 1))
    assert first != second
    with pytest.raises(files.InputError, match="40 different pieces are too few to hold out 45"):
        quickstart.split(pieces, quickstart.Plan(test=40, validation=5), 0)


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
    assert texts.key_name(key, language) == name


def test_records_tell_everything_in_six_languages():
    told = texts.record(piece("x", key="E minor", dance="jig", meter="6/8"), ["a.abc", "b.mtf"], random.Random(0))
    assert [other["language"] for other in told["summary_nen"]] == list(texts.LANGUAGES[1:])
    summaries = [*told["summary_en"], *(other["summary"] for other in told["summary_nen"])]
    for text in summaries:
        assert all(fact in text for fact in ("6/8", "16", "D4", "B5", "G B D G")), text
    keys = ("E minor", "e-Moll", "mi mineur", "mi menor", "mi minore", "E小调")
    assert all(any(key in text for text in summaries) for key in keys)
    assert told["filepaths"] == ["a.abc", "b.mtf"]


def test_every_class_has_a_prompt_and_its_file_tells_it():
    pieces = [
        piece("a"),
        piece("b", dance="", meter="6/8"),
        piece("c", dance="jig", key="F# minor", meter="12/8"),
        piece("d", dance="chorale"),
    ]
    found = texts.prompts(pieces)
    assert {asked: set(classes) for asked, classes in found.items()} == {
        "dance": {"reel", "jig"},
        "meter": {"2/4", "6/8", "12/8"},
        "key": {"G major", "F# minor"},
    }
    for classes in found.values():
        for label, sentences in classes.items():
            assert len(set(sentences)) > 1 and all(label in sentence for sentence in sentences)
            assert report.label_of(report.folder_of(label) + "/0.npy") == label


def test_the_text_model_loads_as_any_other(tmp_path):
    sentences = [texts.summary(piece(f"x{number}"), language) for number in range(9) for language in texts.LANGUAGES]
    quickstart_model.make_text_model(sentences, tmp_path, seed=0)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert model.config.model_type == "xlm-roberta"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ids = tokenizer("A reel in G major", return_tensors="pt")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<s>", "A", "reel", "in", "G", "major", "</s>"]
    assert model(ids).last_hidden_state.shape == (1, 7, quickstart_model.HIDDEN)
    assert ids.max() < model.config.vocab_size == len(tokenizer)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path, capfd):
    command = ("-c", f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    for _ in range(2):
        steps = quickstart_steps.Steps(tmp_path, {"A": "b c"})
        steps.python(*command)
    assert (tmp_path / "count").read_text() == "x"
    told = capfd.readouterr().out
    assert told.count("export A='b c'") == 2
    assert told.count("$ python -c ") == 2 and "(done before)" in told
    quickstart_steps.Steps(tmp_path, {"A": "d"}).python(*command)
    assert (tmp_path / "count").read_text() == "xx"


def test_a_command_that_fails_ends_it_and_runs_again(tmp_path):
    steps = quickstart_steps.Steps(tmp_path, {})
    for _ in range(2):
        with pytest.raises(files.InputError, match="status 3"):
            steps.python("-c", "import sys; sys.exit(3)")
    steps.python("-c", "import sys; sys.exit(3)", statuses=(0, 3))


def test_zero_shot_counts_the_nearest_class(tmp_path):
    def save(name: str, *vector: float) -> None:
        path = tmp_path / "features" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array([vector], np.float32))

    save("prompts/meter/2_4/0", 1, 0)
    save("prompts/meter/6_8/0", 0, 9)
    save("prompts/meter/6_8/1", 30, 40)  # 6/8 is at 71.6 degrees: lengths do not count
    degrees_33, degrees_40 = (1, 0.65), (1, 0.84)  # the border is at 35.8
    for name, vector in {"a": degrees_33, "b": degrees_40, "c": (5, 1), "d": (1, 0)}.items():
        save(f"abc/{name}", *vector)
    known = {"a": "2/4", "b": "6/8", "c": "6/8", "d": "3/4"}  # nobody asked for 3/4
    (tmp_path / "test.json").write_text(json.dumps([{"name": n, "meter": m} for n, m in known.items()]))
    found = report.zero_shot(tmp_path, "meter", "abc")
    assert found == {"accuracy": 2 / 3, "majority": 2 / 3, "pieces": 3, "classes": 2}


# --- the published weights --------------------------------------------------------------------------------------------


def test_the_published_weights_are_fetched_to_their_place(monkeypatch):
    asked = []
    monkeypatch.setattr(published, "provide", lambda *what, **how: asked.append((what, how)))
    constants = quickstart_pretrained.constants_of_config(Path("/run"))
    assert asked == [((ROOT / "code" / published.CLAMP2,), {"download": True})]
    assert constants["CLAMP2_WEIGHTS_PATH"] == str(ROOT / "code" / published.CLAMP2)


# --- all of it --------------------------------------------------------------------------------------------------------


class WarmSteps(quickstart_steps.Steps):
    """Starts the scripts from a process that has the libraries loaded, trainings in one process."""

    def python(self, *words, statuses=(0,)):
        script, *arguments = words[-1:] if words[0] == "-m" else words
        done = run_script(script, *arguments, cwd=ROOT, **self.environment)
        assert done.returncode in statuses, (words, done.stdout, done.stderr)


def training_rate(log: Path) -> float:
    [rate] = re.findall(r"^  CLAMP2_LEARNING_RATE +(\S+)$", log.read_text(), re.MULTILINE)
    return float(rate)


def test_the_whole_on_a_few_pieces(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(quickstart, "Steps", WarmSteps)
    plan = quickstart.Plan(
        tunes=60, chorales=4, test=12, validation=4, hidden=64, layers=1, m3_epochs=1, clamp2_epochs=1, slow_epochs=1
    )
    assert quickstart.main([], plan, tmp_path) == 0
    told = capfd.readouterr()
    folder = tmp_path / "seed0"
    found = json.loads((folder / "results.json").read_text())
    assert set(found["retrieval"]) == {"text to ABC", "text to MIDI", "ABC to MIDI"}
    assert set(found["zero-shot"]) == {f"{a}, {k}" for a in ("rhythm", "meter", "key") for k in ("ABC", "MIDI")}
    for line in ("zero-shot rhythm, ABC", "linear probe rhythm", "ABC to MIDI MRR", "“une gigue"):
        assert line in told.out
    assert all((folder / picture).stat().st_size > 1000 for picture in report.PICTURES)
    rates = [training_rate(folder / f"logs_clamp2{slow}.txt") for slow in ("", "_slow")]
    assert rates[1] == pytest.approx(rates[0] / 5)
    assert json.loads((folder / "features.extraction.json").read_text())["weights"] == "weights_clamp2_slow.pth"
    # what is held out has no part in training
    names = {part: {path.stem for path in (folder / "mtf" / part).glob("*.mtf")} for part in quickstart.PARTS}
    assert {part: len(found) for part, found in names.items()} == {"train": 48, "validation": 4, "test": 12}
    assert len(set().union(*names.values())) == 64
    for line in (folder / "train.jsonl").read_text().splitlines():
        assert all("/train/" in path for path in json.loads(line)["filepaths"])
    assert {path.suffix for path in (folder / "library").iterdir()} == {".musicxml", ".mid", ".abc"}
