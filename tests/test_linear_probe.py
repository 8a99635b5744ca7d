"""`linear_probe.py` and `labels.py`: measures against scikit-learn, honest splits, and input that is wrong."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

import command_line
import labels
import linear_probe
from conftest import ROOT
from files import InputError
from labels import Example

WIDTH = 8


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost such small models more than they give, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_pieces(folder: Path, sizes: dict[str, int], signal: float = 1.5, seed: int = 0) -> Path:
    """Temporal features of 1 to 12 vectors; the mean of a class differs from that of the others by `signal`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (label, size) in enumerate(sizes.items()):
        for index in range(size):
            array = rng.standard_normal((1, rng.integers(1, 13), WIDTH))
            array[..., number] += signal
            np.save(folder / f"{label}_{index}.npy", array.astype(np.float32))
    return folder


def main(*arguments) -> int:
    return linear_probe.main([str(argument) for argument in arguments])


def train(*arguments, result: Path) -> dict:
    assert main("train", *arguments, "--json", result) in (0, 1)
    return json.loads(result.read_text())


# --- the model --------------------------------------------------------------------------------------------------------


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = linear_probe.LinearProbe(WIDTH, 5, 3)
    sequences = [torch.randn(length, WIDTH) for length in (1, 7, 30, 2)]
    padded, mask, _ = linear_probe.collate([(sequence, 0) for sequence in sequences])
    assert padded.shape == (4, 30, WIDTH) and mask.sum(dim=1).tolist() == [1, 7, 30, 2]
    together = model(padded, mask)
    for row, sequence in zip(together, sequences, strict=True):
        plain = model.output(torch.relu(model.hidden(sequence)).mean(dim=0))
        torch.testing.assert_close(row, plain)
    garbage = torch.where(mask.unsqueeze(-1) > 0, padded, 1e3)
    torch.testing.assert_close(model(garbage, mask), together)


def test_features_beyond_the_cache_are_read_again(tmp_path, monkeypatch):
    write_pieces(tmp_path, {"a": 4, "b": 4})
    pieces, _ = labels.gather([tmp_path], True, None)
    everything = linear_probe.FeatureDataset(pieces, ["a", "b"])
    monkeypatch.setattr(linear_probe, "CACHE_BYTES", 100)
    little = linear_probe.FeatureDataset(pieces, ["a", "b"])
    for _ in range(2):
        for index in range(8):
            torch.testing.assert_close(little[index][0], everything[index][0])
    assert len(everything.cache) == 8 > len(little.cache)


def test_the_best_epoch_is_kept_and_training_stops_after_it(tmp_path):
    write_pieces(tmp_path, {"a": 30, "b": 30}, signal=0.3)
    pieces, _ = labels.gather([tmp_path], True, None)
    for_fit, validation = labels.hold_out(pieces, 0.3, np.random.default_rng(0))
    given = ["train", str(tmp_path), "--patience", "3", "--hidden_size", "64"]
    args = linear_probe.set_defaults(command_line.probe("").parse_args(given))
    model, history = linear_probe.fit(for_fit, validation, ["a", "b"], args)
    losses = [line["eval_loss"] for line in history]
    assert len(losses) == np.argmin(losses) + 1 + 3 < 100
    logits = [model(torch.from_numpy(np.load(p.path)), torch.ones(1, np.load(p.path).shape[1])) for p in validation]
    targets = torch.tensor([["a", "b"].index(p.label) for p in validation])
    again = torch.nn.functional.cross_entropy(torch.cat(logits), targets).item()
    assert again == pytest.approx(min(losses), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn(tmp_path, monkeypatch):
    write_pieces(tmp_path, {"common": 60, "rare": 9, "some": 20})
    weights, real = [], linear_probe.cross_entropy

    def spy(logits, targets, weight):
        weights.append((weight, targets))
        return real(logits, targets, weight)

    monkeypatch.setattr(linear_probe, "cross_entropy", spy)
    assert main("train", tmp_path, "--epochs", 1, "--balanced", "--batch_size", 1000) == 0
    weight, targets = weights[0]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy())
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


# --- splits and measures ----------------------------------------------------------------------------------------------


def test_measures_against_scikit_learn():
    rng = np.random.default_rng(0)
    for classes in (2, 5, 9):
        truth, predicted = rng.integers(0, classes, 80), rng.integers(0, classes - 1, 80)  # the last is never predicted
        scores = labels.scores(metrics.confusion_matrix(truth, predicted, labels=range(classes)))
        f1 = metrics.f1_score(truth, predicted, average="macro", labels=range(classes), zero_division=0)
        assert scores["macro_f1"] == pytest.approx(f1)
        assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
        assert scores["majority"] == pytest.approx(np.bincount(truth).max() / 80)


def pieces_of(sizes: dict[str, int], copies: int = 1) -> list[Example]:
    """`copies` files of each piece."""
    return [
        Example(Path(f"folder{copy}/{label}_{index}.npy"), f"{label}_{index}", label)
        for label, size in sizes.items()
        for index in range(size)
        for copy in range(copies)
    ]


@pytest.mark.parametrize("copies", [1, 2])
def test_hold_out_takes_the_share_of_each_class_and_whole_pieces(copies):
    pieces = pieces_of({"a": 100, "b": 15, "c": 3, "d": 2, "e": 1}, copies)
    others, held_out = labels.hold_out(pieces, 0.2, np.random.default_rng(0))
    assert Counter(piece.label for piece in held_out) == {"a": 20 * copies, "b": 3 * copies, "c": copies, "d": copies}
    assert len(others) + len(held_out) == len(pieces)
    assert not {piece.key for piece in others} & {piece.key for piece in held_out}
    again = labels.hold_out(pieces, 0.2, np.random.default_rng(0))[1]
    assert again == held_out != labels.hold_out(pieces, 0.2, np.random.default_rng(1))[1]


@pytest.mark.parametrize("copies", [1, 2])
def test_folds_hold_out_every_piece_once(copies):
    pieces = pieces_of({"a": 52, "b": 13, "c": 5}, copies)
    splits = labels.folds(pieces, 5, np.random.default_rng(0))
    assert Counter(piece for _, held_out in splits for piece in held_out) == Counter(pieces)
    for others, held_out in splits:
        assert not {piece.key for piece in others} & {piece.key for piece in held_out}
        sizes = Counter(piece.label for piece in held_out)
        assert sizes["a"] // copies in (10, 11) and sizes["b"] // copies in (2, 3) and sizes["c"] == copies


def test_every_piece_is_held_out_equally_often():
    pieces = pieces_of({"a": 20, "b": 10})
    draws = [labels.hold_out(pieces, 0.2, np.random.default_rng(seed))[1] for seed in range(1000)]
    times = Counter(piece for held_out in draws for piece in held_out)
    assert len(times) == 30 and all(150 < count < 250 for count in times.values())  # 200, standard deviation 13


def test_one_piece_in_two_forms_gives_nothing_away(tmp_path):
    """Random labels: only a copy of a piece on the other side of the split gives its label away."""
    rng = np.random.default_rng(0)
    for folder in ("abc", "mtf", "renamed"):
        (tmp_path / folder).mkdir()
    for index in range(60):
        array, label = 3 * rng.standard_normal((1, 1, 128)).astype(np.float32), "ab"[index % 2]
        for path in (f"abc/{label}_{index}.npy", f"mtf/{label}_{index}.npy", f"renamed/{label}_copy{index}.npy"):
            np.save(tmp_path / path, array)
    options = [
        "--folds",
        "6",
        "--batch_size",
        "64",
        "--hidden_size",
        "64",
        "--epochs",
        "15",
        "--learning_rate",
        "0.01",
        "--patience",
        "15",
    ]
    together = train(tmp_path / "abc", tmp_path / "mtf", *options, result=tmp_path / "r.json")
    apart = train(tmp_path / "abc", tmp_path / "renamed", *options, result=tmp_path / "r.json")
    assert together["test"]["accuracy"] < 0.7 and apart["test"]["accuracy"] > 0.8


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_of_names():
    assert labels.from_name("jig_1.npy") == labels.from_name("x_y/jig_1_2.abc.npy") == "jig"
    assert labels.from_name("slip jig_1.npy") == "slip jig"
    assert labels.from_name("jig.npy") is labels.from_name("_1.npy") is labels.from_name("a_b/jig.npy") is None


def test_labels_of_a_csv(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        '\ufefffile,label\nsub/a.npy,"jig, slow"\nb.mid,reel\n\nfeatures/c.npy,waltz\nd,\n', encoding="utf-8"
    )
    read = labels.from_csv(table)
    assert read == {"sub/a": "jig, slow", "b": "reel", "features/c": "waltz"}
    names = [(Path("features"), name) for name in ("sub/a.npy", "deep/er/b.abc.npy", "c.npy", "d.npy", "e.npy")]
    assert labels.assign(names, read) == ["jig, slow", "reel", "waltz", None, None]
    both = [(Path("one"), "b.npy"), (Path("two"), "b.mtf.npy")]  # one piece, in two folders
    assert labels.assign(both, read) == ["reel", "reel"]


@pytest.mark.parametrize(
    "text, word",
    [
        ("a,jig\nb\n", "line 2: 1 columns"),
        ("a,jig\nb,reel\na.npy,reel\n", "line 3: a.npy is reel here, jig further up"),
        ("file,label\n", "no label in it"),
        ("", "no label in it"),
        ('a,"jig\n', "not a CSV"),
        (b"a,\xff\n", "not a CSV"),
    ],
)
def test_bad_csv(tmp_path, text, word):
    (tmp_path / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=word):
        labels.from_csv(tmp_path / "x.csv")


def test_a_stem_of_two_pieces_is_refused():
    names = [(Path("f"), "x/a.npy"), (Path("f"), "y/a.npy")]
    with pytest.raises(InputError, match="fits 2 pieces, x/a and y/a"):
        labels.assign(names, {"a": "jig"})
    assert labels.assign(names, {"x/a": "jig", "y/a": "reel"}) == ["jig", "reel"]


def test_a_stem_of_one_piece_in_several_types_is_its_label(tmp_path):
    (tmp_path / "x.csv").write_text("x.mid,jig\nx.xml,jig\n")
    known = labels.from_csv(tmp_path / "x.csv")
    names = [(Path("f"), "x.mid.npy"), (Path("f"), "x.xml.npy"), (Path("g"), "x.npy"), (Path("f"), "deep/x.npy")]
    assert labels.assign(names[:3], known) == ["jig"] * 3
    with pytest.raises(InputError, match="fits 2 pieces, deep/x and x"):  # another piece of that name, perhaps
        labels.assign(names, known)


# --- the command line -------------------------------------------------------------------------------------------------


def test_train_and_predict(tmp_path, capsys):
    """The real script: what it prints, its JSON, its model and its picture agree with each other and scikit-learn."""
    write_pieces(tmp_path / "in", {"jig": 40, "reel": 60, "slip jig": 15})

    def run(*arguments) -> str:
        script = ROOT / "code" / "linear_probe.py"
        command = [sys.executable, str(script), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    model, confusion, result = tmp_path / "out" / "probe.pth", tmp_path / "c.png", tmp_path / "r.json"
    options = ("--model", model, "--confusion", confusion, "--epochs", 12, "--learning_rate", 0.03)
    printed = run("train", tmp_path / "in", *options, "--json", result)
    first = json.loads(result.read_text())
    predictions = first["predictions"]
    truth, predicted = ([record[name] for record in predictions] for name in ("label", "predicted"))
    assert Counter(truth) == {"jig": 8, "reel": 12, "slip jig": 3}
    assert first["test"]["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert first["test"]["accuracy"] > 0.85
    assert first["test"]["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    assert first["confusion"] == metrics.confusion_matrix(truth, predicted).tolist()
    assert f"accuracy {first['test']['accuracy']:.4f}" in printed and "jig 40" in printed
    assert confusion.read_bytes().startswith(b"\x89PNG")
    for record in predictions:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["predicted"] == max(record["probabilities"], key=record["probabilities"].get)

    saved = torch.load(model, weights_only=True)
    assert saved["classes"] == ["jig", "reel", "slip jig"]
    assert saved["model"]["output.weight"].shape == (3, WIDTH)

    assert main("predict", model, tmp_path / "in", "--json", result) == 0
    printed = capsys.readouterr().out
    everything = {record["file"]: record for record in json.loads(result.read_text())["predictions"]}
    assert len(everything) == len(printed.splitlines()) == 115
    for record in predictions:
        again = everything[record["file"]]
        assert again["predicted"] == record["predicted"]
        assert again["probabilities"] == pytest.approx(record["probabilities"], abs=1e-5)


def test_the_seed_decides_everything(tmp_path):
    write_pieces(tmp_path / "in", {"a": 30, "b": 30}, signal=0.5)
    results = [train(tmp_path / "in", "--epochs", 5, "--seed", seed, result=tmp_path / "r.json") for seed in (3, 3, 4)]
    assert results[0] == results[1] != results[2]


def test_folds_report_mean_and_deviation_and_keep_a_model(tmp_path, capsys):
    write_pieces(tmp_path / "in", {"a": 30, "b": 21})
    options = ("--folds", 3, "--epochs", 15, "--model", tmp_path / "m.pth")
    result = train(tmp_path / "in", *options, result=tmp_path / "r.json")
    accuracies = [split["accuracy"] for split in result["splits"]]
    assert len(accuracies) == 3 and len({record["file"] for record in result["predictions"]}) == 51
    assert result["accuracy"] == pytest.approx({"mean": np.mean(accuracies), "standard_deviation": np.std(accuracies)})
    assert f"{np.mean(accuracies):.4f} ±" in capsys.readouterr().out
    assert main("predict", tmp_path / "m.pth", tmp_path / "in", "--evaluate") == 0
    assert "51 files: accuracy" in capsys.readouterr().out


def test_random_labels_are_not_predicted(tmp_path):
    write_pieces(tmp_path / "in", {"a": 60, "b": 60}, signal=0)
    result = train(tmp_path / "in", "--folds", 4, "--epochs", 10, result=tmp_path / "r.json")
    assert 0.35 < result["test"]["accuracy"] < 0.65


def test_a_csv_in_train_and_predict(tmp_path, capsys):
    write_pieces(tmp_path / "in", {"x": 20, "y": 20, "z": 2})
    names = sorted(path.stem for path in (tmp_path / "in").iterdir())
    table = tmp_path / "labels.csv"
    table.write_text("".join(f"{name},{'low' if name[0] == 'x' else 'high'}\n" for name in names if name[0] != "z"))
    options = ("--labels", table, "--epochs", 3, "--model", tmp_path / "m.pth")
    result = train(tmp_path / "in", *options, result=tmp_path / "r.json")
    assert result["classes"] == ["high", "low"] and len(result["left_out"]) == 2
    error = capsys.readouterr().err
    assert "2 left out" in error and "z_0.npy: no label" in error and "z_1.npy" in error

    table.write_text("x_0,low\nx_1,high\ny_0,unheard of\n")
    assert main("predict", tmp_path / "m.pth", tmp_path / "in", "--labels", table, "--evaluate") == 1
    done = capsys.readouterr()
    assert "2 files: accuracy" in done.out and "the model knows no class unheard of" in done.err


def test_what_cannot_be_used_is_left_out_and_named(tmp_path, capsys):
    folder = write_pieces(tmp_path / "in", {"a": 10, "b": 10, "tiny": 2})
    np.save(folder / "a_nan.npy", np.full((1, 3, WIDTH), np.nan, np.float32))
    np.save(folder / "a_int.npy", np.ones((1, 3, WIDTH), np.int32))
    (folder / "b_cut.npy").write_bytes(b"\x93NUMPY")
    np.save(folder / "nameless.npy", np.ones((1, 3, WIDTH), np.float32))
    assert main("train", folder, "--epochs", 1) == 1
    done = capsys.readouterr()
    assert "20 files of 2 classes: a 10, b 10" in done.out and "6 left out" in done.err
    for word in ("a_nan.npy: 24 values are NaN", "a_int.npy: holds int32", "b_cut.npy: not", "nameless.npy: no label"):
        assert word in done.err
    assert done.err.count("its class, tiny, has fewer than 3 pieces") == 2


def test_wrong_use_is_said_in_one_line_and_exits_with_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pieces(Path("good"), {"a": 5, "b": 5})
    write_pieces(Path("one"), {"a": 9, "b": 2})
    write_pieces(Path("widths"), {"a": 5, "b": 5})
    np.save("widths/c_0.npy", np.ones((1, 3, 5), np.float32))
    Path("empty").mkdir()
    Path("plain").mkdir()
    np.save("plain/x.npy", np.ones((1, 3, WIDTH), np.float32))
    write_pieces(Path("huge"), {"a": 5, "b": 5}, signal=3e38)
    Path("labels.csv").write_text("elsewhere,a\n")
    torch.save({"model": 1}, "other.pth")
    Path("not.pth").write_text("hello")
    assert main("train", "good", "--epochs", 1, "--model", "m.pth") == 0
    capsys.readouterr()
    cases = [
        (["train", "one"], "two classes of 3 pieces or more; there are: a 9, b 2"),
        (["train", "good", "--folds", 6], "two classes of 6"),
        (["train", "widths"], "c_0.npy: width 5"),
        (["train", "empty"], "no .npy file"),
        (["train", "nowhere"], "nowhere"),
        (["train", "plain"], "no label before an underscore"),
        (["train", "good", "--labels", "labels.csv"], "none of 10"),
        (["train", "good", "--labels", "no.csv"], "no.csv"),
        (["train", "huge"], "not finite in epoch"),
        (["train", "good", "--learning_rate", "-1"], "positive"),
        (["train", "good", "--folds", "1"], "from 2"),
        (["train", "good", "--confusion", "c.pdf"], ".png or .svg"),
        (["train", "good", "--groups", "(a"], "(a: not a regular expression"),
        (["train", "good", "--groups", "a_"], "a_: has no group"),
        (["train", "good", "--groups", "(b.)"], "a_0.npy: --groups '(b.)' does not match"),
        (["train", "good", "--split"], "a_0.npy: --split needs files in subfolders: train, validation, test"),
        (["train", "good", "--published", "--folds", 2], "not allowed with"),
        (["predict", "other.pth", "good"], "other.pth: not a model"),
        (["predict", "not.pth", "good"], "not.pth: not a model"),
        (["predict", "no.pth", "good"], "no.pth"),
        (["predict", "m.pth", "good", "--labels", "labels.csv"], "--evaluate"),
        (["predict", "m.pth", "good", "--groups", "(.)"], "--evaluate"),
        (["predict", "m.pth", "empty"], "no .npy file"),
    ]
    for arguments, word in cases:
        try:
            code = main(*arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2 and word in error and "Traceback" not in error, (arguments, error)
    Path("narrow").mkdir()
    np.save("narrow/x.npy", np.ones((1, 5), np.float32))
    assert main("predict", "m.pth", "narrow") == 2
    assert f"x.npy: width 5, but the model has {WIDTH}" in capsys.readouterr().err
