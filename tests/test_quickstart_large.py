"""The large quick start: what is read in the headers, which parts tunes go to, n-grams, probes, its list of commands."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import quickstart_large as large
import quickstart_probe as probe
import xml_abc
from helpers import ROOT
from test_quickstart import Commands

TUNE = """X:12
T: A Tune
O: China, Shaanxi
R: Shange. Suku]
M: 2/4
L: 1/8
Q: 1/4=120
K: Ador
w: some words
"Am"(A>B) {c}[ce]2 | !fermat:a!~A4 !D.C.! :| % a comment
[K:G]T(3GAB .g2
"""


# --- headers ----------------------------------------------------------------------------------------------------------


def test_the_collections_are_read_whole():
    tunes = large.corpus_tunes()
    places = Counter(
        next((key for key in ("aird", "oneill", "ryan") if name.startswith(key)), "essen") for name in tunes
    )
    assert places == {"essen": 8514, "oneill": 2009, "aird": 1180, "ryan": 1059}
    assert all(len(re.findall("^X:", tune, re.MULTILINE)) == 1 for tune in tunes.values())
    assert "Herzog Ernst" in tunes["altdeu10-2"] and "Acacia" in tunes["ryan-AcaciaReel-1"]


def test_tunes_begin_at_their_number():
    assert large.split_tunes("% X:0\n\nX:1\nT:X:0\nK:C\nX: 2\nK:D\n") == ["X:1\nT:X:0\nK:C\n", "X: 2\nK:D\n"]


def test_only_the_music_of_a_tune_is_kept():
    assert large.music_only(TUNE) == "X:1\nM: 2/4\nL: 1/8\nK: Ador\nA>B [ce]2 | A4  :| \n[K:G](3GAB g2\n"


@pytest.mark.parametrize(
    ("line", "region"),
    [("Europa, Mitteleuropa, Deutschland", "Germany"), ("Mitteleuropa, Deutschland / Frankreich, Lothringen", "Lorraine"),
     ("China, Shaanxi, Zizhou", "China"), ("Europa, Mitteleuropa, Steiermark", "Austria"), ("Asien", ""), ("", "")],
)  # fmt: skip
def test_regions(line, region):
    assert large.region_of(line) == region


@pytest.mark.parametrize(
    ("line", "meter", "genre"),
    [("Liebes - Lied, Leid, Klage", "3/4", "love song"), ("Romanze, Ballade, Lied, religioeses Lied", "4/4", "ballad"),
     ("geistliche, religiöse Lieder]", "4/4", "religious song"), ("Staende -, Soldaten -, Kriegs - Lied", "", "soldiers' song"),
     ("Xiaodiao. Geming]", "2/4", "xiaodiao"), ("double jig", "6/8", "jig"), ("Jig", "9/8", "slip jig"),
     ("slipjig", "9/8", "slip jig"), ("REEL", "2/2", "reel"), ("???", "2/4", ""), ("", "", "")],
)  # fmt: skip
def test_genres(line, meter, genre):
    assert large.genre_of(line, meter) == genre


def test_a_class_is_a_sentence_in_english_and_german():
    classes = (("region", "Austria"), ("genre", "ballad"), ("collection", "erk"), ("key", "E minor"), ("meter", "3/4"))
    english, german = ([large.sentence(*one, language) for one in classes] for language in large.LANGUAGES)
    assert english == ["From Austria.", "A ballad.", "In the book erk.", "In E minor.", "In 3/4 time."]
    assert german == ["Aus Österreich.", "Ballade.", "Im Buch erk.", "In e-Moll.", "Im 3/4-Takt."]


def test_facts_worked_out_by_hand():
    score = xml_abc.abc_to_musicxml("X:1\nM:2/4\nL:1/8\nK:Ador\nA2cd|e>G A2|\n")
    facts = large.facts_of("erk10-3", TUNE, score)
    # A is the tonic; C is 3, D 5, E 7 and G 10 semitones above an A; an eighth note has 24 ticks
    assert facts == {
        "name": "erk10-3", "title": "A Tune", "collection": "erk", "region": "China", "genre": "shange",
        "key": "A dorian", "meter": "2/4",
        "pitches": "0 3 5 7 10 0", "intervals": "3 2 2 -9 2", "rhythm": "48 24 24 36 12",
    }  # fmt: skip


# --- parts ------------------------------------------------------------------------------------------------------------


def tune(name: str, group: int = 0, **changes) -> dict:
    facts = {"title": name, "region": "", "genre": "", "key": "C major", "meter": "3/4", "group": group}
    return {"name": name, "collection": name.partition("-")[0]} | facts | changes


def test_twins_of_twins_are_one_group():
    pairs = [{"first": "a.musicxml", "second": "c.musicxml"}, {"first": "c.musicxml", "second": "e.musicxml"}]
    groups = large.groups_of(list("abcde"), pairs)
    assert groups[0] == groups[2] == groups[4] and len(set(groups)) == 3
    assert len(set(large.groups_of(list("ab"), []))) == 2


def test_twins_are_never_in_two_parts(monkeypatch):
    monkeypatch.setattr(large, "SIZES", {"test": 20, "validation": 10})
    tunes = [tune(f"erk-{number}", number // 3) for number in range(90)]
    tunes += [tune("oneill-1", 5), tune("oneill-2", 1000), tune("boehme-1", 1001), tune("dva-1", 1001)]
    tests = set()
    for seed in range(20):
        parts = large.split(tunes, seed)
        assert sorted(one["name"] for part in parts.values() for one in part) == sorted(one["name"] for one in tunes)
        where = {one["name"]: part for part, members in parts.items() for one in members}
        assert where["oneill-1"] == "unused"  # a twin of it is in another book
        assert (where["oneill-2"], where["boehme-1"], where["dva-1"]) == ("oneill", "boehme", "dva")
        assert len({(one["group"], where[one["name"]]) for one in tunes[:90]}) == 30
        assert {part: len(parts[part]) for part in ("test", "validation", "train")} == {
            "test": 18,
            "validation": 9,
            "train": 63,
        }
        tests.add(tuple(sorted(one["name"] for one in parts["test"])))
    assert len(tests) > 10


def test_what_is_written_for_training(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "SIZES", {"test": 4, "validation": 4})
    monkeypatch.setattr(large, "COMMON", 5)
    tunes = [tune(f"han-{n}", n, region="China", genre="shange" if n % 8 else "wuge") for n in range(20)]
    tunes += [tune(f"oneill-{n}", 100 + n, genre="reel") for n in range(6)]
    for one in tunes:
        large.write(tmp_path / f"data/interleaved/{one['name']}.abc", "music")
    large.write(tmp_path / "data/tunes.json", json.dumps(tunes))
    assert large.main(["prepare", str(tmp_path / "data"), str(tmp_path / "run"), "--seed", "3"]) == 0
    run = tmp_path / "run"
    assert {path.name: len(list(path.iterdir())) for path in (run / "music").iterdir()} == {
        "train": 12, "validation": 4, "test": 4, "oneill": 6,
    }  # fmt: skip
    records = {path.stem: json.loads(path.read_text()) for path in run.glob("records/train/*.json")}
    assert {path.name for path in (run / "records").iterdir()} == {"train", "validation"}
    assert len(records) == 12 and not any("oneill" in name for name in records)
    for name, record in records.items():
        assert (run / record["filepaths"][0]).read_text() == "music"
        assert {"From China.", "In the book han."} <= set(record["summary_en"])
        assert "Aus China." in [other["summary"] for other in record["summary_nen"]]
        assert record["genres"] == [tunes[int(name[4:])]["genre"]]
    # only classes with five tunes in training are asked for, and have labels
    assert json.loads((run / "classes/genre_German.json").read_text()) == {"shange": "Shange."}
    assert (
        "wuge" not in (run / "labels/genre.csv").read_text() and "oneill" not in (run / "labels/genre.csv").read_text()
    )


# --- n-grams and probes -----------------------------------------------------------------------------------------------


def test_ngrams_worked_out_by_hand():
    tunes = [tune(str(n), intervals="2 2 -4") for n in range(3)] + [
        tune("3", intervals="2"),
        tune("4", intervals="7 2 7 2"),
    ]
    train = np.array([True] * 4 + [False])
    counted = probe.count_ngrams(tunes, train, ("intervals",)).toarray()
    # of the training tunes, n-grams in three or more: 2 (in four), -4, "2 2", "2 -4", "2 2 -4"; 7 is not in training
    assert counted.shape == (5, 5)
    weight = {4: 1.0, 3: math.log(5 / 4) + 1}  # by the number of the four training tunes that have it
    raw = [(1 + math.log(2)) * weight[4], *[weight[3]] * 4]
    length = math.hypot(*raw)
    assert sorted(counted[0]) == pytest.approx(sorted(value / length for value in raw))
    assert sorted(counted[3]) == sorted(counted[4]) == pytest.approx([0, 0, 0, 0, 1])
    assert np.allclose(counted[4], counted[3])


def test_the_header_is_counted_as_words():
    counted = probe.count_ngrams([tune(str(n)) for n in range(3)], np.ones(3, bool), ("header",))
    assert counted.shape == (3, 3) and probe.header(tune("x")) == "3/4 C_major"


def test_the_regularization_is_chosen_by_groups_that_the_probe_has_not_seen(monkeypatch):
    """Rows of a group are alike and of random classes: weak regularization learns them by heart, which is of no use."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 5)
    truth = np.where(rng.random(100) < 0.6, "a", "b")[groups]
    matrix = csr_matrix(10 * rng.normal(size=(100, 200))[groups])
    monkeypatch.setattr(probe, "STRENGTHS", (1e-6, 100))
    found = probe.fit(matrix, truth, groups)
    assert found.best_params_ == {"C": 1e-6}
    by_rows = probe.fit(matrix, truth, np.arange(500))
    assert by_rows.best_params_ == {"C": 100}


def test_features_are_scaled_by_training_alone(tmp_path):
    for name, values in (("train/a", (0, 2)), ("train/b", (3, 3)), ("test/c", (4, 6))):  # of two patches
        large.write(tmp_path / f"{name}.npy", b"")
        np.save(tmp_path / f"{name}.npy", np.repeat(np.float32(values), 4).reshape(1, 2, 4))
    found = probe.read_features(tmp_path, ["c", "a", "b"], np.array([False, True, True]))
    # the means over time are 5, 1 and 3; those of training have mean 2 and deviation 1; four dimensions
    assert found.toarray().tolist() == [[1.5] * 4, [-0.5] * 4, [0.5] * 4]


def test_scores_worked_out_by_hand():
    truth, predicted = np.array(list("aaabbc")), np.array(list("aabbbd"))
    # F1: a 2 * 2 / (3 + 2), b 2 * 2 / (2 + 3), c and d 0
    assert probe.scores(truth, predicted) == {
        "accuracy": pytest.approx(4 / 6), "macro_f1": pytest.approx(0.4), "majority": 0.5, "pieces": 6, "classes": 3,
    }  # fmt: skip


def test_each_kind_of_features_goes_through_one_probe(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(probe, "QUESTIONS", ("test region", "test genre", "test collection"))
    names = {
        part: [f"{part}-{n}" for n in range(count)] for part, count in (("train", 60), ("validation", 10), ("test", 10))
    }
    tunes, rows = [], []
    for number, name in enumerate(name for part in names.values() for name in part):
        is_third = number % 3 == 0
        words = "1 2 3" if is_third else "4 5 6"
        tunes.append(tune(name, number, pitches=words, intervals=words, rhythm="1"))
        rows.append(f"{name},{'third' if is_third else 'other'}\n")
        for kind in probe.FEATURES.values():  # of "untrained", noise
            values = rng.normal(size=(1, 3, 4)) + (5 * is_third if kind != "untrained" else 0)
            large.write(tmp_path / f"features/{kind}/any/{name}.npy", b"")
            np.save(tmp_path / f"features/{kind}/any/{name}.npy", values.astype(np.float32))
    for asked in large.ASKED:
        large.write(tmp_path / f"labels/{asked}.csv", "".join(rows))
    large.write(tmp_path / "tunes.json", json.dumps(tunes))
    large.write(tmp_path / "parts.json", json.dumps(names | {"unused": ["nowhere-1"]}))
    assert probe.main(["probe", str(tmp_path), str(tmp_path)]) == 0
    found = json.loads((tmp_path / "probes.json").read_text())
    for question in probe.QUESTIONS:
        accuracy = {column: one["accuracy"] for column, one in found[question].items()}
        assert accuracy.pop("untrained M3") < 1 and set(accuracy.values()) == {1.0}
    # answers by words and of linear_probe.py are read beside them
    for question in probe.QUESTIONS:
        where, asked = question.split()
        for kind, accuracy in (("m3", 0.25), ("untrained", 0.75)):
            answer = json.dumps({"test": {"accuracy": accuracy}})
            large.write(tmp_path / f"probe_{kind}/{where}_{asked}.json", answer)
        for language in large.LANGUAGES:
            answers = {f"{asked}_{language}": {"scores": {"accuracy": 0.125}}}
            large.write(tmp_path / f"words/{where}_{asked}_{language}.json", json.dumps({"questions": answers}))
    capsys.readouterr()
    assert probe.main(["report", str(tmp_path)]) == 0
    shown = {line[:32].strip(): line[32:].split() for line in capsys.readouterr().out.splitlines()}
    assert shown["M3, linear_probe.py"] == ["0.250"] * 3 and shown["untrained M3, linear_probe.py"] == ["0.750"] * 3
    assert shown["words, German"] == ["0.125"] * 3
    assert shown["n-grams of all"] == ["1.000"] * 3 and shown["largest class"] == ["0.700"] * 3
    assert probe.main(["report", str(tmp_path), str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1.000 ± 0.000" in shown
    unfinished = tmp_path / "seed1"  # of a run that was interrupted
    large.write(unfinished / "probes.json", (tmp_path / "probes.json").read_bytes())
    assert probe.main(["report", str(tmp_path), str(unfinished), str(tmp_path)]) == 0
    assert capsys.readouterr() == (shown, f"{unfinished}: not finished, left out\n")
    assert probe.main(["report", str(unfinished)]) == 2
    assert "no run is finished" in capsys.readouterr().err


# --- the list of commands ---------------------------------------------------------------------------------------------


class LargeCommands(Commands):
    """Runs quickstart.sh --large, its list of commands in `folder` too."""

    def __init__(self, folder: Path, run):
        script = (ROOT / "code/quickstart_large.sh").read_text(encoding="utf-8")
        script = script.replace("data=.quickstart", f"data={folder}").replace("../$run", "$run")
        (folder / "quickstart_large.sh").write_text(script, encoding="utf-8")
        super().__init__(folder, run, {"source code/quickstart_large.sh": f"source {folder}/quickstart_large.sh"})


def test_large_is_a_list_of_commands_too(tmp_path):
    statuses = {"code/find_twins.py": 1, "code/linear_probe.py": 1, "code/classify.py": 1, "-c": 1}  # what is left out
    configs = {}

    def run(config: str, words: list[str]) -> int:
        configs[words[0]] = config
        return statuses.get(words[0], 0)

    commands = LargeCommands(tmp_path, run)
    done = commands.start("--large", "--seed", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n$ python code/train_m3.py\n" in done.stdout and not re.search(r"'\[' \d", done.stdout)  # the status
    folder = f"{tmp_path}/large"
    seen = [words for words in commands.seen if words[0] not in ("-m", "-c")]
    assert [words[1] for words in seen if words[0] == "code/quickstart_large.py"] == ["collect", "describe", "prepare"]
    assert ["code/quickstart_large.py", "prepare", folder, f"{folder}/seed4", "--seed", "4"] in seen
    assert configs["code/train_m3.py"] == configs["code/classify.py"] == f"{folder}/seed4/config.py"
    constants = dict(re.findall(r"^(\w+) = (.*)$", Path(configs["code/train_m3.py"]).read_text(), re.MULTILINE))
    assert constants["M3_NUM_EPOCH"] == "5" and constants["TRAIN_FOLDERS"] == f'["{folder}/seed4/music/train"]'
    answers = {words[words.index("--json") + 1] for words in seen if words[0] == "code/classify.py"}
    wanted = {
        f"{question.replace(' ', '_')}_{language}" for question in probe.QUESTIONS for language in large.LANGUAGES
    }
    assert answers == {f"{folder}/seed4/words/{name}.json" for name in wanted}  # where the report reads them
    answers = {words[words.index("--json") + 1] for words in seen if words[1:2] == ["predict"]}
    names = {name.rpartition("_")[0] for name in wanted}
    assert answers == {f"{folder}/seed4/probe_{kind}/{name}.json" for kind in ("m3", "untrained") for name in names}
    assert seen[-1] == ["code/quickstart_probe.py", "report", f"{folder}/seed4"]

    statuses["code/classify.py"] = 2
    assert commands.start("--large", "--seed=4").returncode == 1
    assert commands.seen[-1][0] == "code/classify.py"
    (tmp_path / "large/tunes.json").touch()  # made once for all seeds
    statuses["code/classify.py"], statuses["-c"] = 0, 0
    assert commands.start("--large").returncode == 0
    assert "code/find_twins.py" not in [words[0] for words in commands.seen]
    assert "M3_NUM_EPOCH = 20\n" in (tmp_path / "large/seed0/config.py").read_text()  # on a GPU
    (tmp_path / "large/seed0/results.json").touch()
    assert commands.start("--large").returncode == 0
    assert commands.seen[-1][:2] == ["code/quickstart_probe.py", "report"] and len(commands.seen) == 2
    for words in (["--large", "--pretrained"], ["--large", "--seed"], ["--pretrained", "--large"]):
        assert commands.start(*words).returncode == 2
