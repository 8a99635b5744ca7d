"""`paper_results.py`: the published figures are possible ones, and results stand beside those of the same name."""

import json

import numpy as np
import pytest
from scipy import stats

import linear_probe
import paper_results
import semantic_search
from test_retrieval_numbers import on_circle


def test_published_accuracies_are_fractions_of_the_test_pieces_with_their_interval():
    """Clopper-Pearson by the beta distribution: 33 of 41."""
    accuracies = [(key, known) for key, known in paper_results.published().items() if key[1] == "accuracy"]
    assert len(accuracies) == 4
    for _, known in accuracies:
        right = round(known["value"] * known["pieces"])
        assert round(right / known["pieces"], 4) == known["value"]
    known = dict(accuracies)["vgmidi-probe-clamp2", "accuracy"]
    expected = [stats.beta.ppf(0.025, 33, 9), stats.beta.ppf(0.975, 34, 8)]
    assert known["interval"] == pytest.approx(expected) and known["pieces"] == 41


@pytest.fixture
def results(tmp_path):
    """Results that the two commands wrote: a retrieval of ranks 1 and 2, and a probe."""
    for part, degrees in (("q", (0, 30)), ("r", (10, 14))):
        (tmp_path / part).mkdir()
        for name, angle in zip("ab", degrees, strict=True):
            np.save(tmp_path / part / f"{name}.npy", on_circle(angle))
    for label, place in (("x", 0), ("y", 9)):
        (tmp_path / "f").mkdir(exist_ok=True)
        for number in range(10):
            np.save(tmp_path / "f" / f"{label}_{number}.npy", np.full((1, 1, 4), place + number / 10, np.float32))
    folder = tmp_path / "results"
    given = [tmp_path / "r", tmp_path / "q", "--published", "--json", folder / "wikimt-text_to_music-clamp2.json"]
    assert semantic_search.main(["metrics", *map(str, given)]) == 0
    given = [tmp_path / "f", "--published", "--epochs", 2, "--json", folder / "pianist8-probe-m3.json"]
    assert linear_probe.main(["train", *map(str, given)]) == 0
    given = [tmp_path / "f", "--epochs", 2, "--json", folder / "mine.json"]
    assert linear_probe.main(["train", *map(str, given)]) == 0
    return folder


def test_results_stand_beside_the_published_figures_of_the_same_name(results, tmp_path, capsys):
    capsys.readouterr()
    table = tmp_path / "table.json"
    assert paper_results.main([str(results), "--json", str(table)]) == 0
    rows = {(row["result"], row["measure"]): row for row in json.loads(table.read_text())["rows"]}
    row = rows["wikimt-text_to_music-clamp2", "MRR"]
    assert row["measured"] == {"value": 0.75, "interval": [0.5, 1.0], "pieces": 2}  # 14 is nearer to 0 than to 30
    assert row["published"] == {"value": 0.3438, "pieces": 1010} and row["protocol"].startswith("published: ")
    assert rows["wikimt-text_to_music-clamp2", "Hit@1"]["published"] is None
    probe = json.loads((results / "pianist8-probe-m3.json").read_text())
    row = rows["pianist8-probe-m3", "accuracy"]
    assert row["measured"] == {
        "value": probe["test"]["accuracy"],
        "interval": probe["intervals"]["accuracy"],
        "pieces": 4,
    }
    assert (row["published"]["value"], row["published"]["pieces"]) == (0.9157, 83)
    assert rows["pianist8-probe-m3", "macro_f1"]["published"]["value"] == 0.9199
    assert rows["midicaps-text_to_music-clamp3_saas", "MRR"] == {
        "result": "midicaps-text_to_music-clamp3_saas",
        "measure": "MRR",
        "measured": None,
        "published": {"value": 0.1798, "pieces": 1010},
        "protocol": None,
    }
    assert rows["mine", "accuracy"]["published"] is None
    printed, warned = capsys.readouterr()
    assert warned.endswith("1 result of which no published figure is known:\n  mine\n")  # a misspelt name is noticed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "wikimt-text_to_music-clamp2 MRR 0.7500 [0.5000, 1.0000] of 2 0.3438 of 1010" in lines
    assert "wikimt-text_to_music-clamp2 median rank 1.5 [1.0, 2.0] of 2 -" in lines
    assert "vgmidi-probe-clamp2 accuracy - 0.8049 [0.6513, 0.9118] of 41" in lines
    assert "mine: 20 % of each class to test; 10 % of the others to stop by" in printed
    assert "pianist8-probe-m3: published: 20 % at random, the best epoch chosen on them: no clean test" in printed


def test_what_is_no_result_is_left_out_and_named(results, tmp_path, capsys):
    (results / "score.json").write_text('{"mean": 1}')
    (results / "list.json").write_text("[1]")
    (results / "cut.json").write_text('{"measured": {')
    assert paper_results.main([str(results)]) == 1
    error = capsys.readouterr().err
    assert "3 left out" in error
    for name in ("score", "list", "cut"):
        assert f"{name}.json: not a result of semantic_search.py metrics or linear_probe.py train" in error
    (tmp_path / "empty").mkdir()
    for folder, problem in ((tmp_path / "empty", "there is no .json file in it"), (tmp_path / "none", "no such file")):
        assert paper_results.main([str(folder)]) == 2
        assert problem in capsys.readouterr().err
