"""The numbers of `linear_probe.py` recomputed: a plain second loop, and measures by hand, on uneven classes and batches."""

import argparse
import json
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import command_line
import labels
import linear_probe

WIDTH = 6


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost such small models more than they give, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(linear_probe, "pick_device", lambda: torch.device("cpu"))


def write_pieces(folder: Path, sizes: dict[str, int], signal: float, seed: int = 0) -> Path:
    """Features of 1 to 9 vectors; the mean of a class differs from that of the others by `signal`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (label, size) in enumerate(sizes.items()):
        for index in range(size):
            array = rng.standard_normal((1, rng.integers(1, 10), WIDTH)).astype(np.float32)
            array[..., number] += signal
            np.save(folder / f"{label}_{index}.npy", array)
    return folder


def pieces_in(folder: Path) -> list[labels.Example]:
    return labels.gather([folder], True, None)[0]


def arguments(*options: object) -> argparse.Namespace:
    return linear_probe.set_defaults(command_line.probe("").parse_args(["train", "in", *map(str, options)]))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch):
    """The batches that were put together, in their order."""
    seen, real = [], linear_probe.collate

    def collate(batch):
        seen.append(batch)
        return real(batch)

    monkeypatch.setattr(linear_probe, "collate", collate)
    return seen


def logits_of(hidden: nn.Linear, output: nn.Linear, batch) -> torch.Tensor:
    return torch.stack([output(torch.relu(hidden(sequence)).mean(0)) for sequence, _ in batch])


def loss_of(logits: torch.Tensor, targets: list[int], weight: list[float]) -> torch.Tensor:
    """Cross-entropy from its definition: a mean that is weighted by class."""
    terms = [-weight[target] * row.log_softmax(-1)[target] for row, target in zip(logits, targets, strict=True)]
    return torch.stack(terms).sum() / sum(weight[target] for target in targets)


def plain_fit(batches, sizes, args, weight):
    """A second implementation: (losses of each epoch, state after each) for batches of `sizes` pieces to train on.

    The published loss takes the logarithm of the softmax of the softmax.
    """
    twice = (lambda logits: torch.exp(logits.log_softmax(-1))) if args.published else (lambda logits: logits)
    torch.manual_seed(args.seed)
    hidden = nn.Linear(WIDTH, args.hidden_size or WIDTH)
    output = nn.Linear(hidden.out_features, len(weight))
    optimizer = torch.optim.AdamW([*hidden.parameters(), *output.parameters()], lr=args.learning_rate)
    history, states, batches = [], [], iter(batches)
    for _ in range(args.epochs):
        total = 0.0
        for size in sizes["train"]:
            batch = next(batches)
            assert len(batch) == size
            loss = loss_of(twice(logits_of(hidden, output, batch)), [target for _, target in batch], weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += size * loss.item()
        validation = [item for size in sizes["validation"] for item in next(batches)]
        with torch.no_grad():
            logits = logits_of(hidden, output, validation)
            evaluation = loss_of(twice(logits), [target for _, target in validation], weight).item()
            right = [int(row.argmax()) == target for row, (_, target) in zip(logits, validation, strict=True)]
        history.append((total / sum(sizes["train"]), evaluation, sum(right) / len(right)))
        states.append(
            {
                f"{n}.{k}": v.clone()
                for n, m in (("hidden", hidden), ("output", output))
                for k, v in m.state_dict().items()
            }
        )
    return history, states


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("hidden_size", [None, 11])
def test_every_loss_and_the_kept_model_are_those_of_a_plain_loop(tmp_path, batches, published, balanced, hidden_size):
    """29 pieces in batches of 8, 8, 8 and 5, 15 to stop by in batches of 8 and 7."""
    train = pieces_in(write_pieces(tmp_path / "train", {"a": 5, "b": 9, "c": 15}, 0.8))
    validation = pieces_in(write_pieces(tmp_path / "validation", {"a": 6, "b": 2, "c": 7}, 0.8, seed=1))
    options = [
        "--batch_size",
        8,
        "--epochs",
        12,
        "--patience",
        12,
        "--learning_rate",
        0.05,
        "--seed",
        3 + 2 * published,
    ]
    options += ["--balanced"] * balanced + ["--hidden_size", hidden_size] * bool(hidden_size)
    options += ["--published"] * published
    args = arguments(*options)
    model, history = linear_probe.fit(train, validation, ["a", "b", "c"], args)
    weight = [29 / (3 * 5), 29 / (3 * 9), 29 / (3 * 15)] if balanced else [1, 1, 1]
    expected, states = plain_fit(batches, {"train": [8, 8, 8, 5], "validation": [8, 7]}, args, weight)
    assert [losses["epoch"] for losses in history] == list(range(1, 13))
    found = [(losses["train_loss"], losses["eval_loss"], losses["eval_accuracy"]) for losses in history]
    assert np.array(found) == pytest.approx(np.array(expected), rel=1e-4)
    _, evaluation, accuracy = zip(*expected, strict=True)
    best = int(np.argmax(accuracy) if published else np.argmin(evaluation))
    assert (best > 0 or published) and best < 11  # neither the first nor the last
    assert linear_probe.best_epoch(history, published) == best + 1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, states[best][name], atol=1e-5, rtol=1e-4)


def orders(batches: list, per_epoch: int) -> list[list[tuple]]:
    """The pieces to train on in each epoch, as they came; three batches of each."""
    epochs = [batches[first : first + 3] for first in range(0, len(batches), per_epoch)]
    return [
        [(tuple(sequence.flatten().tolist()), target) for batch in epoch for sequence, target in batch]
        for epoch in epochs
    ]


def test_every_epoch_has_every_piece_once_in_an_order_of_the_seed(tmp_path, batches):
    train = pieces_in(write_pieces(tmp_path / "in", {"a": 9, "b": 12}, 0.3))
    found = {}
    for run, seed in enumerate((3, 3, 4)):
        batches.clear()
        torch.manual_seed(run)  # no matter what was drawn before
        args = arguments("--batch_size", 8, "--epochs", 3, "--seed", seed)
        linear_probe.fit(train, train[:4], ["a", "b"], args)
        found[run] = orders(batches, 4)
        assert len({tuple(order) for order in found[run]}) == 3
        assert all(Counter(order) == Counter(found[0][0]) and len(order) == 21 for order in found[run])
    assert found[0] == found[1] != found[2]


def test_a_loss_that_stays_the_same_is_no_gain(tmp_path):
    pieces = pieces_in(write_pieces(tmp_path / "in", {"a": 5, "b": 5}, 1))
    args = arguments("--learning_rate", 1e-30, "--patience", 4, "--epochs", 50)
    _, history = linear_probe.fit(pieces, pieces, ["a", "b"], args)
    assert len(history) == 1 + 4 and len({losses["eval_loss"] for losses in history}) == 1


@pytest.mark.parametrize(("patience", "epochs"), [(1, 4), (2, 7), (3, 8), (4, 13)])
def test_patience_counts_the_epochs_since_the_best(tmp_path, monkeypatch, patience, epochs):
    """Validation losses that are given: gains up to epoch 3, in 5 and in 9."""
    losses = iter([5.0, 4.0, 3.0, 3.5, 2.0, 2.5, 2.0, 2.5, 1.0, 1.5, 1.0, 9.0, 9.0, 0.5])
    real = linear_probe.cross_entropy

    def cross_entropy(logits, targets, weight):
        return torch.tensor(next(losses)) if logits.is_inference() else real(logits, targets, weight)

    monkeypatch.setattr(linear_probe, "cross_entropy", cross_entropy)
    pieces = pieces_in(write_pieces(tmp_path / "in", {"a": 5, "b": 5}, 1))
    _, history = linear_probe.fit(pieces, pieces, ["a", "b"], arguments("--patience", patience))
    assert len(history) == epochs


def test_features_fill_the_cache_and_no_more(tmp_path, monkeypatch):
    for number in range(5):
        np.save(tmp_path / f"a_{number}.npy", np.full((1, 2, 4), number, np.float32))  # 32 bytes
    monkeypatch.setattr(linear_probe, "CACHE_BYTES", 96)
    pieces = linear_probe.FeatureDataset(pieces_in(tmp_path), ["a"])
    for _ in range(2):
        assert [pieces[index][0].mean().item() for index in range(5)] == [0, 1, 2, 3, 4]
    assert len(pieces.cache) == 3


# --- what is reported -------------------------------------------------------------------------------------------------

SIZES = {"a": 17, "c": 9, "b": 26}


@pytest.fixture
def fits(monkeypatch):
    """What `fit` was given and what it returned."""
    seen, real = [], linear_probe.fit

    def fit(train, validation, classes, args):
        seen.append((train, validation, *real(train, validation, classes, args)))
        return seen[-1][2:]

    monkeypatch.setattr(linear_probe, "fit", fit)
    return seen


def main(*given: object) -> int:
    return linear_probe.main([str(word) for word in given])


def measures_of(records: list[dict]) -> dict[str, float]:
    """From the definitions, class by class."""
    pairs = [(record["label"], record["predicted"]) for record in records]
    f1 = []
    for label in "abc":
        hits = sum(pair == (label, label) for pair in pairs)
        precision = hits / max(1, sum(predicted == label for _, predicted in pairs))
        recall = hits / max(1, sum(truth == label for truth, _ in pairs))
        f1.append(2 * precision * recall / (precision + recall) if hits else 0)
    largest = max(Counter(truth for truth, _ in pairs).values())
    accuracy = sum(truth == predicted for truth, predicted in pairs) / len(pairs)
    return {"accuracy": accuracy, "macro_f1": sum(f1) / 3, "majority": largest / len(pairs)}


def table_of(records: list[dict]) -> list[list[int]]:
    pairs = Counter((record["label"], record["predicted"]) for record in records)
    return [[pairs[truth, predicted] for predicted in "abc"] for truth in "abc"]


def check_records(records: list[dict], model: nn.Module) -> None:
    """The probabilities are the model's, piece by piece."""
    for record in records:
        sequence = torch.from_numpy(np.load(record["file"]))[0]
        with torch.no_grad():
            probabilities = model.output(torch.relu(model.hidden(sequence)).mean(0)).softmax(-1)
        assert record["probabilities"] == pytest.approx(dict(zip("abc", probabilities.tolist(), strict=True)), abs=2e-6)
        assert record["predicted"] == "abc"[int(probabilities.argmax())]
        assert record["label"] == Path(record["file"]).name[0]


def files_of(pieces) -> list[str]:
    return [str(piece.path) for piece in pieces]


def check_split(split: dict, fitted, records: list[dict], printed: str) -> None:
    """One split: nothing that was tested was trained on; every number that is reported of it."""
    train, validation, model, history = fitted
    check_records(records, model)
    measured = measures_of(records)
    assert {name: split[name] for name in measured} == pytest.approx(measured)
    assert split["history"] == history
    losses = [epoch["eval_loss"] for epoch in history]
    assert split["best_epoch"] == losses.index(min(losses)) + 1
    assert sorted(files_of(train) + files_of(validation) + [record["file"] for record in records]) == sorted(
        files_of(pieces_in(Path(records[0]["file"]).parent))
    )
    assert printed == (
        f"{len(train)} to train on, {len(validation)} to stop by, {len(records)} to test; best epoch"
        f" {split['best_epoch']} of {len(history)}; accuracy {measured['accuracy']:.4f}, macro-F1"
        f" {measured['macro_f1']:.4f} (largest class: {measured['majority']:.4f})"
    )


def check_intervals(result: dict, pieces: list[str], printed: str) -> None:
    """Around the measures, and printed as they are in the result."""
    assert result["pieces"] == len(set(pieces)) and list(result["intervals"]) == ["accuracy", "macro_f1"]
    for name, (low, high) in result["intervals"].items():
        assert low <= result["test"][name] <= high and 0.05 < high - low < 0.8
    shown = [f"{bound:.4f}" for interval in result["intervals"].values() for bound in interval]
    start = f"95 % intervals, of {len(set(pieces))} pieces: accuracy ["
    assert printed.startswith(start) and re.findall(r"\d\.\d{4}", printed) == shown


OPTIONS = ("--epochs", 9, "--learning_rate", 0.1, "--patience", 3, "--batch_size", 7)


def test_every_number_of_one_split(tmp_path, fits, capsys):
    """Of classes of 17, 26 and 9: 3, 5 and 2 to test, then 1, 2 and 1 of the others to stop by."""
    write_pieces(tmp_path / "in", SIZES, 0.4)
    model, file = tmp_path / "probe.pth", tmp_path / "r.json"
    assert main("train", tmp_path / "in", *OPTIONS, "--model", model, "--json", file) == 0
    result, printed = json.loads(file.read_text()), capsys.readouterr().out.splitlines()
    records, [fitted] = result["predictions"], fits
    assert printed[0] == "52 files of 3 classes: b 26, a 17, c 9"
    assert [Counter(piece.label for piece in part) for part in fitted[:2]] == [
        {"a": 13, "b": 19, "c": 6},
        {"a": 1, "b": 2, "c": 1},
    ]
    [split] = result["splits"]
    check_split(split, fitted, records, printed[1])
    assert result["classes"] == ["a", "b", "c"] and result["confusion"] == table_of(records)
    assert result["test"] == pytest.approx(measures_of(records)) and 0.3 < result["test"]["accuracy"] < 1
    assert "accuracy" not in result and len(printed) == 3
    check_intervals(result, [record["file"] for record in records], printed[2])
    assert result["protocol"] == {
        "split": "20 % of each class to test; 10 % of the others to stop by",
        "seed": 0,
        "batch_size": 7,
        "learning_rate": 0.1,
        "epochs": 9,
        "patience": 3,
        "balanced": False,
    }
    for name, value in torch.load(model, weights_only=True)["model"].items():
        torch.testing.assert_close(value, fitted[2].state_dict()[name])

    write_pieces(tmp_path / "others", {"a": 2, "b": 7, "c": 4}, 0.4, seed=8)
    assert main("predict", model, tmp_path / "others", "--evaluate", "--json", file, "--batch_size", 5) == 0
    evaluated = json.loads(file.read_text())
    check_records(evaluated["predictions"], fitted[2])
    assert evaluated["confusion"] == table_of(evaluated["predictions"])
    assert evaluated["test"] == pytest.approx(measures_of(evaluated["predictions"]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("13 files: accuracy")
    check_intervals(evaluated, [record["file"] for record in evaluated["predictions"]], printed[1])


def test_every_number_of_folds(tmp_path, fits, capsys):
    """Dealt out one by one to three folds: 6, 6 and 5 of the 17, 9, 8 and 9 of the 26, 3 of the 9."""
    write_pieces(tmp_path / "in", SIZES, 0.4)
    model, file = tmp_path / "probe.pth", tmp_path / "r.json"
    assert main("train", tmp_path / "in", *OPTIONS, "--folds", 3, "--model", model, "--json", file) == 0
    result, printed = json.loads(file.read_text()), capsys.readouterr().out.splitlines()
    parts = [result["predictions"][:18], result["predictions"][18:35], result["predictions"][35:]]
    counts = [Counter(record["label"] for record in part) for part in parts]
    assert counts == [{"a": 6, "b": 9, "c": 3}, {"a": 6, "b": 8, "c": 3}, {"a": 5, "b": 9, "c": 3}]
    for number, part in enumerate(parts):
        check_split(result["splits"][number], fits[number], part, printed[1 + number])
        assert Counter(piece.label for piece in fits[number][1]) == {"a": 1, "b": 2, "c": 1}
    assert len({record["file"] for record in result["predictions"]}) == 52
    assert result["confusion"] == table_of(result["predictions"])
    assert result["test"] == pytest.approx(measures_of(result["predictions"]))
    check_intervals(result, [record["file"] for record in result["predictions"]], printed[4])
    for line, name in zip(printed[5:], ("accuracy", "macro_f1"), strict=True):
        values = [measures_of(part)[name] for part in parts]
        mean = sum(values) / 3
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
        assert deviation > 0.01
        assert result[name] == pytest.approx({"mean": mean, "standard_deviation": deviation})
        assert line == f"{name} of 3 folds: {mean:.4f} ± {deviation:.4f}"
    # The model that is kept has learned from all: 2, 3 and 1 of them to stop by.
    train, validation, kept, _ = fits[3]
    assert Counter(piece.label for piece in validation) == {"a": 2, "b": 3, "c": 1} and len(train) == 46
    for name, value in torch.load(model, weights_only=True)["model"].items():
        torch.testing.assert_close(value, kept.state_dict()[name])


def test_the_published_protocol(tmp_path, fits, capsys):
    """A fifth of all pieces, rounded up, and the best epoch by accuracy on the same pieces; rare classes stay."""
    write_pieces(tmp_path / "in", {"a": 17, "c": 2, "b": 26}, 0.4)
    file = tmp_path / "r.json"
    options = ("--epochs", 12, "--learning_rate", 0.01, "--json", file)
    assert main("train", tmp_path / "in", "--published", *options) == 0
    result, [(train, validation, _, history)] = json.loads(file.read_text()), fits
    assert (len(train), len(validation)) == (36, 9) and not set(train) & set(validation)
    assert [record["file"] for record in result["predictions"]] == files_of(validation)
    names = sorted(path.stem for path in (tmp_path / "in").iterdir())
    random.Random(42).shuffle(names)
    assert sorted(Path(path).stem for path in files_of(validation)) == sorted(names[:9])
    accuracies = [epoch["eval_accuracy"] for epoch in history]
    assert len(history) == 12 and result["test"]["accuracy"] == max(accuracies)
    assert result["splits"][0]["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert result["protocol"] | {"epochs": 1000, "learning_rate": 1e-5} == {
        "split": "published: 20 % at random, the best epoch chosen on them: no clean test",
        "seed": 42,
        "batch_size": 1,
        "learning_rate": 1e-5,
        "epochs": 1000,
        "patience": 1000,
        "balanced": False,
    }
    assert "no clean test" in capsys.readouterr().out
    given = linear_probe.set_defaults(command_line.probe("").parse_args(["train", "in", "--published"]))
    assert (given.epochs, given.learning_rate) == (1000, 1e-5)


def test_a_split_of_folders_and_songs(tmp_path, fits, capsys):
    """The test part is tested, the validation part stopped by; without one, a tenth of the songs to train on."""
    for part, songs in (("train", range(20)), ("validation", range(20, 24)), ("test", range(30, 40))):
        for song in songs:
            for clip in range(3):
                write_pieces(tmp_path / "one", {"ab"[song % 2]: 1}, 0.4, seed=song + 100 * clip)
                (found,) = (tmp_path / "one").iterdir()
                (tmp_path / "in" / part).mkdir(parents=True, exist_ok=True)
                found.rename(tmp_path / "in" / part / f"{'ab'[song % 2]}_{song}_{clip}.npy")
    file = tmp_path / "r.json"
    options = ("--split", "--groups", r"^._(\d+)_", "--epochs", 2, "--json", file)
    assert main("train", tmp_path / "in", *options) == 0
    result = json.loads(file.read_text())
    assert result["protocol"]["split"] == "given: train, validation, test"
    assert (result["pieces"], len(result["predictions"])) == (10, 30)
    assert [{piece.path.parent.name for piece in part} for part in fits[0][:2]] == [{"train"}, {"validation"}]
    assert {Path(record["file"]).parent.name for record in result["predictions"]} == {"test"}
    assert "95 % intervals, of 10 pieces: " in capsys.readouterr().out
    shutil.rmtree(tmp_path / "in" / "validation")
    assert main("train", tmp_path / "in", *options) == 0
    train, validation = fits[1][:2]
    assert (len(train), len(validation)) == (54, 6) and not {p.piece for p in train} & {p.piece for p in validation}
    assert json.loads(file.read_text())["protocol"]["split"] == "given: train, test; 10 % of the others to stop by"


def test_a_class_that_is_in_the_test_part_only(tmp_path):
    """It is never right, and has no weight in training."""
    for part, sizes in (("train", {"a": 6, "b": 9}), ("test", {"a": 2, "b": 2, "c": 1})):
        write_pieces(tmp_path / "in" / part, sizes, 0.4)
    file = tmp_path / "r.json"
    assert main("train", tmp_path / "in", "--split", "--balanced", "--epochs", 1, "--json", file) == 0
    result = json.loads(file.read_text())
    assert result["confusion"][2][2] == 0 and sum(map(sum, result["confusion"])) == 5


def test_the_seed_draws_the_split(tmp_path, fits):
    write_pieces(tmp_path / "in", SIZES, 0.4)
    for seed in (0, 0, 1):
        assert main("train", tmp_path / "in", "--epochs", 1, "--seed", seed) == 0
    assert files_of(fits[0][0]) == files_of(fits[1][0]) != files_of(fits[2][0])


def test_as_many_folds_as_pieces_of_a_class(tmp_path, capsys):
    """A class of fewer is left out, and one of three without folds."""
    write_pieces(tmp_path / "in", {"a": 5, "b": 4, "c": 3, "d": 2}, 0.4)
    for folds, classes, left_out in ((0, "a 5, b 4, c 3", 2), (4, "a 5, b 4", 5), (2, "a 5, b 4, c 3", 2)):
        file = tmp_path / "r.json"
        options = ["--epochs", 1, "--json", file] + (["--folds", folds] if folds else [])
        assert main("train", tmp_path / "in", *options) == 1
        assert capsys.readouterr().out.splitlines()[0].endswith(f"classes: {classes}")
        assert len(json.loads(file.read_text())["left_out"]) == left_out


def test_classes_are_in_the_order_of_the_alphabet_whatever_comes_first(tmp_path):
    folders = [write_pieces(tmp_path / label, {label: 5}, 1) for label in "bca"]
    assert main("train", *folders, "--epochs", 1, "--json", tmp_path / "r.json") == 0
    assert json.loads((tmp_path / "r.json").read_text())["classes"] == ["a", "b", "c"]
