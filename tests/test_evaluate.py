"""`evaluate.py` against the package frechet-music-distance, NotaGen's and plain loops, known Gaussians, and as a command."""

import functools
import json
import math
import shutil

import numpy as np
import pytest

import evaluate
import intervals
import retrieval
from files import InputError
from helpers import CODE, KIT, KIT_MODEL, run_script, write_config
from test_retrieval import cosine_matrix, save, vectors
from test_retrieval_numbers import on_circle, with_moments


def cloud(n: int, seed: int, width: int = 12, shift: float = 0.4) -> np.ndarray:
    """Features of a covariance that is no diagonal, float32 [n, width]."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((width, width)) / math.sqrt(width)
    return (rng.standard_normal((n, width)) @ mix + shift).astype(np.float32)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """frechet-music-distance, with features in place of its extractor: a function from our name of an estimator to its metric."""
    monkeypatch.setenv("HOME", str(tmp_path))  # its cache
    from frechet_music_distance import fmd

    names = {"maximum likelihood": "mle", "Ledoit-Wolf": "leodit_wolf", "OAS": "oas", "shrinkage 0.1": "shrinkage"}

    class Features:
        def extract_features(self, array):
            return array.astype(np.float64)

        extract_feature = extract_features

    def metric(name):
        made = fmd.FrechetMusicDistance(Features(), names[name], verbose=False)
        made._gaussian_estimator.estimate_parameters = made._gaussian_estimator.estimate_parameters.func  # no cache
        return made

    return metric


# --- measures against references --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["maximum likelihood", "Ledoit-Wolf", "OAS", "shrinkage 0.1"])
def test_frechet_distances_are_those_of_the_package(package, name):
    real, generated = cloud(80, 1), 0.8 * cloud(60, 2) + 0.3
    ours = evaluate.distance_to(evaluate.gaussians(real)[name])(*evaluate.gaussians(generated)[name])
    assert ours == pytest.approx(package(name).score(real, generated), rel=1e-6)
    if name != "maximum likelihood":  # fewer pieces than dimensions; the package's root of a singular matrix is none
        few, fewer = cloud(9, 3), cloud(7, 4) - 0.5
        ours = evaluate.distance_to(evaluate.gaussians(few)[name])(*evaluate.gaussians(fewer)[name])
        assert ours == pytest.approx(package(name).score(few, fewer), rel=1e-6)


class WithoutRepeats:
    """A random generator, for the package, which asks for samples with repeats."""

    def __init__(self, seed: int):
        self.rng = np.random.Generator(np.random.PCG64(seed))

    def choice(self, count, size, replace):
        return self.rng.choice(count, size=size, replace=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frechet_infinity_is_that_of_the_package_on_the_same_samples(package, monkeypatch):
    real, generated = cloud(200, 1), cloud(120, 2, shift=0.9)
    seeded = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda: WithoutRepeats(5))
    expected = package("Ledoit-Wolf").score_inf(real, generated, steps=6, min_n=50)
    distance = evaluate.distance_to(evaluate.gaussians(real)["Ledoit-Wolf"])
    result = evaluate.frechet_infinity(distance, generated.astype(np.float64), seeded(5), steps=6, smallest=50)
    assert result["value"] == pytest.approx(expected.score, rel=1e-6)
    assert (result["slope"], result["r2"]) == pytest.approx((expected.slope, expected.r2), rel=1e-6)
    assert np.array(result["points"]) == pytest.approx(np.array(expected.points), rel=1e-6)
    with pytest.raises(InputError, match="more than 120 generated pieces; there are 120"):
        evaluate.frechet_infinity(distance, generated, seeded(5), smallest=120)


def test_frechet_infinity_is_the_distance_of_the_gaussians():
    """Of finite samples it is 0.5 and more too large; samples drawn with repeats would lead back to that."""
    width = 32
    of_real = (np.zeros(width), np.eye(width))
    distance, root = evaluate.distance_to(of_real), np.diag(np.linspace(0.5, 1.5, width))
    expected = width * 0.3**2 + sum((np.linspace(0.5, 1.5, width) - 1) ** 2)
    plain, found, held = [], [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        generated = rng.standard_normal((600, width)) @ root + 0.3
        plain.append(distance(*retrieval.gaussian(generated)))
        result = evaluate.frechet_infinity(distance, generated, rng, steps=12, smallest=200)
        found.append(result["value"])
        held.append(result["interval"][0] < result["value"] < result["interval"][1])
    assert np.mean(plain) > expected + 0.5
    assert np.mean(found) == pytest.approx(expected, abs=0.15)
    assert all(held)


def test_frechet_infinity_of_a_collapsed_model():
    """All distances are equal, which a line explains; and no distance is negative, of the real pieces themselves, too."""
    same = evaluate.frechet_infinity(lambda *_: 4.0, np.ones((60, 3)), np.random.default_rng(0), smallest=50)
    assert (same["value"], same["r2"]) == (pytest.approx(4), 1)
    real = cloud(100, 1, width=4)
    distance = evaluate.distance_to(retrieval.gaussian(real))
    found = evaluate.frechet_infinity(distance, real, np.random.default_rng(0), smallest=50)
    assert (found["value"], found["interval"][0]) == (0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frechet_distances_of_pieces_are_those_of_the_package(package):
    real, generated = cloud(40, 1), cloud(5, 2)
    _, values = evaluate.compare(generated, real, np.random.default_rng(0))
    metric = package("maximum likelihood")
    assert values["fmd"] == pytest.approx([metric.score_individual(real, piece) for piece in generated], rel=1e-6)


def test_frechet_distances_of_known_gaussians():
    """Of diagonal covariances; shrinkage by 0.1 moves each variance a tenth of the way to their mean."""
    first, second = with_moments([1, 2], [1, 2], times=4), with_moments([4, 6], [3, 1], times=4)
    real, generated = evaluate.gaussians(first), evaluate.gaussians(second)
    name = "maximum likelihood"
    assert evaluate.distance_to(real[name])(*generated[name]) == pytest.approx(9 + 16 + 4 + 1, rel=1e-9)
    biased = 15 / 16  # scikit-learn divides by n
    roots = [[math.sqrt(biased * (0.9 * v + 0.1 * sum(of) / 2)) for v in of] for of in ([1, 4], [9, 1])]
    expected = 25 + sum((a - b) ** 2 for a, b in zip(*roots, strict=True))
    name = "shrinkage 0.1"
    assert evaluate.distance_to(real[name])(*generated[name]) == pytest.approx(expected, rel=1e-9)


def test_the_clamp2_score_is_that_of_a_plain_loop():
    """The mean feature of the real pieces, then one cosine after the other, as NotaGen has it."""
    real, generated = cloud(30, 1), cloud(20, 2)
    mean = sum(real.astype(np.float64)) / len(real)
    expected = [float(mean @ x / math.sqrt(mean @ mean) / math.sqrt(x @ x)) for x in generated.astype(np.float64)]
    measures, values = evaluate.compare(generated, real, np.random.default_rng(0))
    assert values["score"] == pytest.approx(expected, abs=1e-6)
    assert measures["CLaMP 2 score"]["value"] == pytest.approx(sum(expected) / 20, abs=1e-6)
    assert measures["cosine of means"]["value"] == pytest.approx(retrieval.cosine_of_means(generated, real), abs=1e-6)
    cosines = cosine_matrix(generated, generated)
    pairs = [1 - cosines[i, j] for i in range(20) for j in range(20) if i != j]
    assert measures["diversity"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    nearest = cosine_matrix(generated, real)
    assert measures["novelty"]["value"] == pytest.approx(np.mean(1 - nearest.max(axis=1)), abs=1e-6)
    assert values["nearest"].tolist() == nearest.argmax(axis=1).tolist()


def test_score_of_arrays():
    music = on_circle(0, 30, 90, length=3)
    assert evaluate.score(music, on_circle(60, 30, 0)) == pytest.approx([0.5, 1, 0], abs=1e-6)
    assert evaluate.score(music, on_circle(60)) == pytest.approx([0.5, math.sqrt(0.75), math.sqrt(0.75)], abs=1e-6)
    with pytest.raises(InputError, match="3 pieces and 2 texts"):
        evaluate.score(music, on_circle(0, 1))
    with pytest.raises(InputError, match=r"texts of \(2,\): features are \[N, H\]"):
        evaluate.score(music, on_circle(60)[0])
    half = np.full((1, 768), 300, np.float16)  # whose squares are no float16
    assert evaluate.score(half, half) == pytest.approx([1], abs=1e-9)


def test_texts_of_pieces():
    """Pieces at 0, 40 and 90 degrees; texts at 10, 10 again and 80: the second piece is nearer to the first two."""
    music, texts, own = on_circle(0, 40, 90), on_circle(10, 10, 80), np.array([1, 2, 2])
    measures, values = evaluate.compare_texts(music, texts, own, np.random.default_rng(0))
    assert values["text_hit"].tolist() == [True, False, True]
    assert values["text_cosine"] == pytest.approx(np.cos(np.radians([10, 40, 10])), abs=1e-6)
    assert measures["text hits"]["value"] == pytest.approx(2 / 3)
    assert measures["text hits"]["by_chance"] == pytest.approx((2 + 1 + 1) / 3 / 3)  # the first two are one text


# --- intervals --------------------------------------------------------------------------------------------------------


def test_an_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(3).standard_normal(400)
    found = evaluate.measure(evaluate.mean_of(values), 400, np.random.default_rng(0))
    margin = 1.96 * values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["interval"] == pytest.approx([values.mean() - margin, values.mean() + margin], abs=0.012)


def test_a_piece_drawn_twice_is_no_pair_of_the_diversity():
    """Drawn 2, 1 and 0 times: two pairs of the first two, at 60 degrees."""
    unit = on_circle(0, 60, 170).astype(np.float64)
    assert evaluate.diversity(unit, np.array([2, 1, 0])) == pytest.approx(0.5, abs=1e-6)
    assert evaluate.diversity(unit, np.array([3, 0, 0])) == 0


def test_an_interval_of_a_frechet_distance_holds_what_other_samples_give():
    distance = evaluate.distance_to(retrieval.gaussian(cloud(300, 1, width=4)))
    samples = [cloud(40, seed, width=4, shift=0.6) for seed in range(100, 400)]
    others = [distance(*retrieval.gaussian(sample)) for sample in samples]
    found = []
    for sample, value in zip(samples[:60], others, strict=False):
        redrawn = functools.partial(evaluate.frechet_of_drawn, distance, sample)
        measured = intervals.measure_biased(redrawn, 40, np.random.default_rng(0), 0, np.inf, 50)
        assert measured["value"] == pytest.approx(value)
        found.append(measured["interval"])
    covered = np.mean([low <= np.mean(others) <= high for low, high in found])
    assert 0.85 <= covered <= 1
    widths = [(high - low) / 2 / 1.96 for low, high in found]
    assert np.mean(widths) == pytest.approx(np.std(others), rel=0.25)


def test_the_cosine_of_means_lies_in_its_interval():
    """Percentiles of the bootstrap would lie below it: the mean of pieces drawn anew is farther from any other."""
    real = cloud(40, 1)
    found = evaluate.compare(real, real, np.random.default_rng(0))[0]["cosine of means"]
    assert found["value"] == pytest.approx(1) and found["interval"][1] == 1
    assert 0.5 < found["interval"][0] < 0.99


def test_no_distance_is_negative():
    """Of pieces that are real ones, whose cosines are 1 but for rounding, or that are all equal."""
    real = cloud(40, 1)
    measures, values = evaluate.compare(real, 3 * real, np.random.default_rng(0))
    assert values["nearest_cosine"].max() <= 1
    assert measures["novelty"]["value"] >= 0 and min(measures["novelty"]["interval"]) >= 0
    for piece in retrieval.unit(real.astype(np.float64)):
        assert 0 <= evaluate.diversity(np.repeat(piece[None], 7, axis=0), np.ones(7, int)) < 1e-12


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_of_the_best_and_the_worst_tenth_of_each_text(capsys):
    pieces = [{"name": f"{n}.abc", "score": n / 100, "text": "a.txt"} for n in range(25)]
    pieces += [{"name": "x.abc", "score": 0.3, "text": "b.txt"}, {"name": "y.abc", "score": 0.7, "text": "b.txt"}]
    pieces += [{"name": "z.abc", "score": 0.3, "text": "lonely.txt"}]
    pieces += [{"name": f"same{n}.abc", "score": 0.5, "text": "same.txt"} for n in range(3)]
    pairs = evaluate.best_and_worst(pieces, "score")
    chosen = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs]
    assert chosen == [("a.txt", "24.abc", "0.abc"), ("a.txt", "23.abc", "1.abc"), ("b.txt", "y.abc", "x.abc")]
    assert [(pair["chosen_score"], pair["rejected_score"]) for pair in pairs] == [(0.24, 0), (0.23, 0.01), (0.7, 0.3)]
    assert capsys.readouterr().err.splitlines()[1:] == ["  lonely.txt", "  same.txt"]
    one_better = [{"name": f"{n}", "score": float(n == 7)} for n in range(20)]
    assert [pair["chosen"] for pair in evaluate.best_and_worst(one_better, "score")] == ["7"]  # of two best, one is
    with pytest.raises(InputError, match="no pairs"):
        evaluate.best_and_worst(pieces[-4:], "score")


# --- the command ------------------------------------------------------------------------------------------------------


def main(*arguments: object) -> int:
    return evaluate.main([str(word) for word in arguments])


def test_the_command_on_features(tmp_path, capsys):
    real = save(tmp_path / "real", cloud(14, 1))
    music = cloud(6, 2)
    music[4] = 3 * np.load(real / "piece7.npy")[0]  # a copy
    names = ["a.1.abc.npy", "a.2.abc.npy", "b.abc.npy", "c.1.npy", "c.2.npy", "lonely.npy"]
    generated, prompts = save(tmp_path / "generated", music, names), tmp_path / "prompts"
    save(prompts, vectors(4, 12), ["a.txt.npy", "b.txt.npy", "c.2.txt.npy", "unused.txt.npy"])
    (real / "bad.npy").write_bytes(b"")
    options = ("--prompts", prompts, "--pairs", tmp_path / "pairs.jsonl", "--json", tmp_path / "result.json")
    assert main(generated, "--real", real, *options) == 1  # for bad.npy
    printed, result = capsys.readouterr(), json.loads((tmp_path / "result.json").read_text())
    pieces = {piece["name"]: piece for piece in result["pieces"]}
    texts = {name: piece["text"] for name, piece in pieces.items() if "text" in piece}
    assert texts == {
        "a.1.abc.npy": "a.txt.npy",
        "a.2.abc.npy": "a.txt.npy",
        "b.abc.npy": "b.txt.npy",
        "c.2.npy": "c.2.txt.npy",
    }
    assert result["without_partner"] == {str(generated): ["c.1.npy", "lonely.npy"], str(prompts): ["unused.txt.npy"]}
    own = cosine_matrix(music, vectors(4, 12))
    expected = [own[0, 0], own[1, 0], own[2, 1], own[4, 2]]
    assert [pieces[name]["text_cosine"] for name in texts] == pytest.approx(expected, abs=1e-6)
    assert result["measures"]["text cosine"]["value"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert [(copy["name"], copy["nearest"]) for copy in result["copies"]] == [("c.2.npy", "piece7.npy")]
    assert "\n1 copy, of" in printed.out and "1.0000  c.2.npy  piece7.npy" in printed.out
    [pair] = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    better = ["a.1.abc.npy", "a.2.abc.npy"][:: 1 if own[0, 0] > own[1, 0] else -1]
    assert [pair["prompt"], pair["chosen"], pair["rejected"]] == ["a.txt.npy", *better]
    for name, measure in result["measures"].items():
        line = next(line for line in printed.out.splitlines() if line.startswith(f"{name}  "))
        assert f"{measure['value']:.4f}" in line
        low, high = measure.get("interval", [-math.inf, math.inf])
        assert low <= high and ("interval" not in measure or f"[{low:.4f}, {high:.4f}]" in line)
    assert "bad.npy" in printed.err and "lonely.npy" in printed.err and "more than 500 generated pieces" in printed.err
    assert main(generated, "--real", generated, "--copy", "1", "--pairs", tmp_path / "pairs.jsonl") == 0
    assert "6 copies" in capsys.readouterr().out
    pair = json.loads((tmp_path / "pairs.jsonl").read_text())
    order = np.argsort(evaluate.clamp2_scores(music, music))
    assert (pair["rejected"], pair["chosen"]) == (names[order[0]], names[order[-1]])


def test_the_command_on_music(tmp_path):
    config = write_config(tmp_path / "kit.py", **KIT_MODEL, FEATURE_CACHE=str(tmp_path / "cache"))
    for folder, names in (("generated", ("solo_jig", "duo", "tiny")), ("real", ("duo", "octet", "quartet"))):
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(KIT / "abc" / f"{name}.abc", tmp_path / folder)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "solo_jig.txt").write_text("eine Gigue")
    options = ["--prompts", "prompts", "--json", "result.json"]
    done = run_script(CODE / "evaluate.py", "generated", "--real", "real", *options, config=config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert ("duo.abc", "duo.abc") in [(copy["name"], copy["nearest"]) for copy in result["copies"]]
    assert {piece["name"]: piece.get("text") for piece in result["pieces"]}["solo_jig.abc"] == "solo_jig.txt"


MISTAKES = {
    "empty folder": (["empty", "--real", "real"], "empty: there is no music, text or .npy file"),
    "empty real": (["generated", "--real", "empty"], "empty: there is no music, text or .npy file"),
    "one piece": (["one", "--real", "real"], "one: has one piece that can be used, piece0.npy"),
    "one real piece": (["generated", "--real", "one"], "one: has one piece that can be used, piece0.npy"),
    "two models": (["generated", "--real", "narrow"], "width 12"),
    "texts of another model": (["generated", "--real", "real", "--prompts", "narrow"], "width 12"),
    "no text": (["generated", "--real", "real", "--prompts", "others"], "piece0.npy and x.npy, say"),
    "two texts of a name": (["generated", "--real", "real", "--prompts", "doubles"], "texts of one name"),
    "copy": (["generated", "--real", "real", "--copy", "99"], "99: not a cosine"),
    "no real": (["generated"], "--real"),
}


def test_mistakes_take_one_line(tmp_path, monkeypatch, capsys):
    save(tmp_path / "real", cloud(5, 1)), save(tmp_path / "generated", cloud(4, 2)), save(tmp_path / "one", cloud(1, 3))
    save(tmp_path / "narrow", vectors(4, 7)), save(tmp_path / "others", vectors(2, 12), ["x.npy", "y.npy"])
    save(tmp_path / "doubles", vectors(2, 12), ["piece0.txt.npy", "piece0.abc.npy"])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for mistake, (arguments, problem) in MISTAKES.items():
        try:
            code = main(*arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2 and problem in error and "Traceback" not in error, (mistake, error)
        assert "usage:" in error or len([line for line in error.splitlines() if line.startswith("error")]) == 1


def test_features_of_two_models_of_one_width(tmp_path, capsys):
    for number, folder in enumerate(("generated", "real")):
        save(tmp_path / folder, cloud(4, number))
        facts = {"weights": "w.pth", "sha256": str(number) * 64, "form": "--normalize", "precision": "float32"}
        (tmp_path / f"{folder}.extraction.json").write_text(json.dumps(facts | {"KEEP_UNIT_LENGTH": False}))
    assert main(tmp_path / "generated", "--real", tmp_path / "real") == 2
    assert "only features of one model" in capsys.readouterr().err
