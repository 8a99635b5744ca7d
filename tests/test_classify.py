"""`classify.py`: labels against plain numpy, scores against scikit-learn, collapsed features, and input that is wrong."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

import cache
import classify
import plot
from cache import Entry
from helpers import CODE, KIT, KIT_MODEL, run_script, write_config

WIDTH = 16


@pytest.fixture
def vectors(monkeypatch):
    """The features of sentences, in place of a text encoder: those put in here, and random ones of any others."""
    known: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)

    def features_of(sentences):
        for sentence in sentences:
            vector = known.setdefault(sentence, rng.standard_normal(WIDTH) * rng.integers(1, 9))
            yield sentence, Entry(np.float32(vector)[None], [""], [""], [""])

    monkeypatch.setattr(cache, "features_of", features_of)
    monkeypatch.setattr(cache, "made_with", dict)
    return known


def write(folder, music: dict[str, np.ndarray], classes) -> tuple:
    for name, vector in music.items():
        path = folder / "music" / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.float32(vector)[None])
    (folder / "classes.json").write_text(json.dumps(classes, ensure_ascii=False), encoding="utf-8")
    return folder / "music", "--classes", folder / "classes.json", "--json", folder / "out.json"


def main(*arguments) -> int:
    return classify.main([str(argument) for argument in arguments])


def random_music(count: int) -> dict[str, np.ndarray]:
    return {f"{i:02}": row for i, row in enumerate(np.random.default_rng(1).standard_normal((count, WIDTH)))}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


QUESTIONS = {
    "rhythm": {"jig": ["A jig.", "Une gigue.", "吉格舞曲"], "reel": "A reel.", "slow air": ["An air."]},
    "meter": {"6/8": "six", "2/4": ["two", "zwei"]},
    "mode": ["major", "minor"],
}


def test_several_questions_by_plain_numpy(vectors, tmp_path, capsys):
    music = random_music(40)
    options = ("--template", "{}? {}!", "--temperature", 0.3, "--csv", tmp_path / "out.csv")
    assert main(*write(tmp_path, music, QUESTIONS), *options) == 0
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["doubts"] == [] and list(found["questions"]) == list(QUESTIONS)
    printed = capsys.readouterr().out.splitlines()
    assert len(rows) == 3 * 40 and len(printed) == 3 * 41
    for question, classes in QUESTIONS.items():
        texts = classes if isinstance(classes, dict) else {name: [name] for name in classes}
        means = {}
        for name, sentences in texts.items():
            own = [vectors[f"{s}? {s}!"] for s in ([sentences] if isinstance(sentences, str) else sentences)]
            means[name] = sum(vector / np.linalg.norm(vector) for vector in own)
        for name, vector in music.items():
            cosines = {label: cosine(vector, mean) for label, mean in means.items()}
            best, second, *_ = sorted(cosines, key=cosines.get, reverse=True)
            shares = dict(zip(cosines, softmax(np.array(list(cosines.values())) / 0.3), strict=True))
            row, answer = rows.pop(0), found["questions"][question]["answers"].pop(0)
            assert (row["question"], row["name"], row["label"]) == (question, f"{name}.npy", best)
            assert float(row["probability"]) == answer["probability"] == pytest.approx(shares[best], abs=1e-5)
            assert float(row["margin"]) == pytest.approx(cosines[best] - cosines[second], abs=1e-5)
            assert answer["label"] == best and answer["probabilities"] == pytest.approx(shares, abs=1e-5)
            shown = f"{question}  {answer['probability']:.4f}  {answer['margin']:.4f}  {best}  {name}.npy"
            assert printed.pop(0) == shown
        counts = found["questions"][question]["counts"]
        assert printed.pop(0) == f"{question}: " + ", ".join(f"{label} {counts[label]}" for label in texts)
        assert sum(counts.values()) == 40


def test_values_by_hand(vectors, tmp_path):
    """A long sentence counts no more than a short one; at the temperature 1 / ln 3 a cosine more is three times as likely."""
    vectors |= {"x": np.eye(WIDTH)[0] * 10, "y": np.eye(WIDTH)[1], "z": np.eye(WIDTH)[2]}
    music = {"x": np.eye(WIDTH)[0] * 5, "z": np.eye(WIDTH)[2]}
    command = write(tmp_path, music, {"both": ["x", "y"], "z": "z"})
    assert main(*command, "--temperature", 1 / math.log(3)) == 0
    [x, z] = json.loads((tmp_path / "out.json").read_text())["questions"]["classes"]["answers"]
    assert (x["name"], x["label"], z["name"], z["label"]) == ("x.npy", "both", "z.npy", "z")
    assert (z["probability"], z["margin"]) == (0.75, 1)
    assert x["margin"] == pytest.approx(math.sqrt(0.5), abs=1e-6)


def test_scores_are_those_of_scikit_learn(vectors, tmp_path, capsys, monkeypatch):
    music = random_music(60)
    rng = np.random.default_rng(2)
    given = {
        "rhythm": rng.choice(["jig", "reel", "slow air"], 60).tolist(),
        "meter": rng.choice(["6/8", "2/4"], 60).tolist(),
    }
    questions = {name: QUESTIONS[name] for name in given}
    questions["meter"] = questions["meter"] | {"5/4": "five"}  # which no piece has, or is given
    music = {name: np.append(2, vector[1:]) for name, vector in music.items()}
    vectors["five"] = -np.eye(WIDTH)[0]
    given["rhythm"][3] = "polka"
    for name, labels in given.items():
        lines = [f"{piece},{label}" for piece, label in zip(music, labels, strict=True)][:-1]  # the last has no label
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    drawn = []
    monkeypatch.setattr(plot, "confusion", lambda *arguments: drawn.append(arguments))
    files = [tmp_path / f"{name}.csv" for name in given]
    assert main(*write(tmp_path, music, questions), "--labels", *files, "--confusion", tmp_path / "c.png") == 0
    printed = capsys.readouterr()
    assert json.loads((tmp_path / "out.json").read_text())["questions"]["meter"]["counts"]["5/4"] == 0
    for name, labels in given.items():
        found = json.loads((tmp_path / "out.json").read_text())["questions"][name]
        classes = list(questions[name])
        used = [row for row in range(59) if labels[row] in classes]
        truth, predicted = [labels[row] for row in used], [found["answers"][row]["label"] for row in used]
        expected = {
            "accuracy": metrics.accuracy_score(truth, predicted),
            "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
            "majority": max(truth.count(label) for label in classes) / len(truth),
            "pieces": len(truth),
        }
        assert found["scores"] == pytest.approx(expected)
        assert [answer["true"] for answer in found["answers"]] == [*labels[:-1], None]
        matrix = metrics.confusion_matrix(truth, predicted, labels=classes)
        assert found["confusion"] == matrix.tolist()
        shown, names, path = drawn.pop(0)
        assert (shown.tolist(), names, path) == (matrix.tolist(), classes, tmp_path / f"c_{name}.png")
        accuracy, f1 = expected["accuracy"], expected["macro_f1"]
        assert f"{name}: {len(truth)} pieces: accuracy {accuracy:.4f}, macro-F1 {f1:.4f} (" in printed.out
        assert f"1 have no label for {name}:\n  59.npy\n" in printed.err
    assert "1 have a label that is no class of rhythm:\n  03.npy: polka\n" in printed.err
    assert "no class of meter" not in printed.err


def test_a_confusion_matrix_is_drawn(vectors, tmp_path):
    (tmp_path / "l.csv").write_text("00,6/8\n01,2/4\n")
    command = write(tmp_path, random_music(2), QUESTIONS["meter"])
    assert main(*command, "--labels", tmp_path / "l.csv", "--confusion", tmp_path / "c.svg") == 0
    assert "<svg" in (tmp_path / "c.svg").read_text()


# --- a collapsed or a wrong checkpoint --------------------------------------------------------------------------------


def near(vector: np.ndarray, distance: float) -> np.ndarray:
    return vector + distance * np.random.default_rng(3).standard_normal(WIDTH)


AXES = np.eye(WIDTH)
SPREAD = {"a": AXES[0], "b": AXES[1], "c": AXES[2]}
EVENLY = {f"{i:02}": AXES[i % 3] + 0.3 * AXES[3 + i] for i in range(12)}
COLLAPSED = {
    "nothing": (EVENLY, SPREAD, None),
    "two classes": (EVENLY, SPREAD | {"b": near(AXES[0], 1e-4)}, "'a' and 'b' are equal"),
    "all classes": (
        EVENLY,
        dict.fromkeys("abc", AXES[0]),
        "'a' and 'b', and those of 2 more pairs of classes are equal",
    ),
    "classes that music does not see": (
        {name: np.where(np.arange(WIDTH) < 3, 0, vector) + AXES[15] for name, vector in EVENLY.items()},
        {name: vector + AXES[15] for name, vector in SPREAD.items()},
        "the cosines of a piece to the classes differ by",
    ),
    "one class": (
        {name: 2 * AXES[1] + vector for name, vector in EVENLY.items()},
        SPREAD,
        "12 of 12 pieces are 'b'",
    ),
    "one class but for a piece": (
        {name: (2 if name != "00" else 0) * AXES[1] + vector for name, vector in EVENLY.items()},
        SPREAD,
        "11 of 12 pieces are 'b'",
    ),
    "one class of few pieces": ({name: 2 * AXES[1] + EVENLY[name] for name in list(EVENLY)[:9]}, SPREAD, None),
    "music": (
        {name: AXES[0] + AXES[1] + 0.03 * vector for name, vector in EVENLY.items()},
        SPREAD,
        "the features of all pieces are nearly equal: their mean cosine to their mean is 0.99",
    ),
    "one piece": ({"00": AXES[0]}, SPREAD, None),
}


@pytest.mark.parametrize("case", COLLAPSED)
def test_what_is_collapsed_is_reported(vectors, tmp_path, capsys, case):
    music, classes, doubt = COLLAPSED[case]
    vectors |= classes
    status = main(*write(tmp_path, music, list(classes)))
    doubts = json.loads((tmp_path / "out.json").read_text())["doubts"]
    last = capsys.readouterr().err.splitlines()[-1:]
    if doubt is None:
        assert (status, doubts) == (0, [])
    else:
        assert status == 1 and any(doubt in line for line in doubts), doubts
        assert last == [f"  {doubts[-1]}"]


# --- the real command -------------------------------------------------------------------------------------------------


def test_folders_of_music_and_single_files(tmp_path):
    """The label of a piece is the sentence that finds it with the highest score."""
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    shutil.copytree(KIT / "abc", tmp_path / "music")
    shutil.copy(KIT / "midi" / "plain.mid", tmp_path / "music")
    (tmp_path / "music" / "broken.mid").write_bytes(b"MTrk nothing")
    sentences = ["a quick jig", "ein langsamer Walzer"]
    (tmp_path / "classes.json").write_text(json.dumps(sentences))
    best: dict[str, tuple] = {}
    for sentence in sentences:
        done = run_script(
            CODE / "semantic_search.py", "search", sentence, "music", "--json", "hits.json", config=config, cwd=tmp_path
        )
        assert done.returncode == 1, done.stderr
        for hit in json.loads((tmp_path / "hits.json").read_text())["hits"]:
            best[hit["name"]] = max(best.get(hit["name"], (-2, "")), (hit["score"], sentence))
    command = ("--classes", "classes.json", "--json", "out.json")
    done = run_script(CODE / "classify.py", "music", *command, config=config, cwd=tmp_path)
    assert done.returncode == 1 and "1 of music skipped:\n  music/broken.mid: " in done.stderr, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    answers = {answer["name"]: answer["label"] for answer in found["questions"]["classes"]["answers"]}
    assert answers == {name: label for name, (_, label) in best.items()} and len(answers) == 10
    assert found["skipped"] == {"music": [done.stderr.split("skipped:\n  ")[1].splitlines()[0]]}

    done = run_script(CODE / "classify.py", "music/duo.abc", *command, config=config, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first = done.stdout.splitlines()[0]
    assert first.startswith("classes  0.") and f"  {answers['duo.abc']}  duo.abc" in first

    done = run_script(CODE / "classify.py", "music", *command, "--template", "\udce9 {}", config=config, cwd=tmp_path)
    assert done.returncode == 2 and "a quick jig: not UTF-8 (byte 0)" in done.stderr.splitlines()[-1], done.stderr


JIG = {"jig": "A jig.", "reel": "A reel."}
MISTAKES = {
    "no folder": (["nowhere"], JIG, "nowhere: no such file"),
    "an empty folder": (["empty"], JIG, "empty: there is no music, text or .npy file in it"),
    "features of two models": (["two"], JIG, "two/b.npy: width 7, but a.npy has 16; one folder, features of one model"),
    "features of another model": (["other"], JIG, "classes.json has width 16, other 7: features of one model"),
    "features made otherwise": (["noted"], JIG, "only features of one model, made alike, can be used together"),
    "temporal features": (
        ["temporal"],
        JIG,
        "temporal features [1, 3, 16]; use those of extract_clamp2.py --normalize",
    ),
    "no classes": (["music"], None, "classes.json: No such file"),
    "no JSON": (["music"], "{", "classes.json: not JSON (Expecting"),
    "too deep": (["music"], "[" * 10**5, "classes.json: not JSON ("),
    "no question": (["music"], [], "classes.json, classes: a question needs two classes, and has 0"),
    "one class": (["music"], {"jig": "A jig."}, "classes.json, classes: a question needs two classes, and has 1"),
    "one class of a list": (["music"], ["jig", "jig"], "a question needs two classes, and has 1"),
    "one class of several questions": (
        ["music"],
        {"meter": JIG, "rhythm": {"x": "x"}},
        "classes.json, rhythm: a quest",
    ),
    "a class twice": (["music"], '{"jig": "a", "reel": "b", "jig": "c"}', "classes.json: 'jig' is there twice"),
    "a number": (["music"], 3, 'a question is written {"jig": ["A jig.", "Une gigue."], "reel": "A reel."}'),
    "a number of a class": (["music"], {"jig": 3, "reel": "x"}, "'jig' needs a sentence, or a list of sentences"),
    "no sentence": (["music"], {"jig": [], "reel": "x"}, "'jig' needs a sentence"),
    "an empty sentence": (["music"], {"jig": ["x", " "], "reel": "x"}, "'jig' needs a sentence"),
    "half a character": (["music"], '{"jig": "\\ud83d", "reel": "x"}', "'jig' needs a sentence"),
    "a question and a class": (["music"], {"rhythm": JIG, "jig": "A jig."}, "classes.json, jig: a question is written"),
    "a name that is no file's": (["music"], {"../x": JIG}, "'../x': the name of a question is of letters"),
    "template": (["music", "--template", "a"], JIG, "has no {}, where the sentences of a class are put"),
    "temperature": (["music", "--temperature", "0"], JIG, "0: not a positive number"),
    "picture": (["music", "--confusion", "c.pdf"], JIG, "a picture ends in .png or .svg"),
    "a picture without labels": (["music", "--confusion", "c.png"], JIG, "add --labels"),
    "labels of one question": (
        ["music", "--labels", "l.csv"],
        {"a": JIG, "b": JIG},
        "1 file of labels for 2 questions: name one for each (a, b)",
    ),
    "labels of others": (
        ["music", "--labels", "l.csv"],
        JIG,
        "no piece has a label that is one of the classes: jig, reel",
    ),
    "labels of other pieces": (
        ["two/a.npy", "--labels", "b.csv"],
        JIG,
        "b.csv: names no piece of two/a.npy, such as a.npy",
    ),
    "labels that are not there": (["music", "--labels", "no.csv"], JIG, "no.csv"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(vectors, tmp_path, monkeypatch, capsys, case):
    arguments, classes, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    for name, array in {
        "music/a": np.ones((1, WIDTH)),
        "two/a": np.ones((1, WIDTH)),
        "two/b": np.ones((1, 7)),
        "other/a": np.ones((1, 7)),
        "noted/a": np.ones((1, WIDTH)),
        "temporal/a": np.ones((1, 3, WIDTH)),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, array.astype(np.float32))
    (tmp_path / "empty").mkdir()
    (tmp_path / "l.csv").write_text("a,polka\n")
    (tmp_path / "b.csv").write_text("b,jig\n")
    made_with = {"weights": "w.pth", "form": "--normalize", "precision": "float32", "KEEP_UNIT_LENGTH": False}
    (tmp_path / "noted.extraction.json").write_text(json.dumps(made_with | {"sha256": "0" * 64}))
    monkeypatch.setattr(cache, "made_with", lambda: made_with | {"sha256": "1" * 64})
    if classes is not None:
        (tmp_path / "classes.json").write_text(classes if isinstance(classes, str) else json.dumps(classes))
    try:
        status = main(*arguments, "--classes", "classes.json")
    except SystemExit as leaving:  # argparse
        status = leaving.code
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "") and message in printed.err, printed.err
    assert "error: " in printed.err.splitlines()[-1]
