"""Linear probe: measure how well frozen features predict a label (rhythm, composer, genre, emotion).

Features are `.npy` files, temporal [1, T, H] or pooled [1, H], in one or several folders. A label is the beginning of a
file's name (`jig_17.npy` -> jig), or is in a CSV of two columns: file (path or stem), label.

examples:
  python linear_probe.py train features/ --model probe.pth --confusion confusion.png
  python linear_probe.py train abc_features/ mtf_features/ --labels labels.csv --balanced --folds 5
  python linear_probe.py predict probe.pth new_features/ --json predictions.json
  python linear_probe.py predict probe.pth test_features/ --labels test.csv --evaluate
  python linear_probe.py train features/ --groups "^Q._(.{11})_"     # EMOPIA: no song on both sides of a split
  python linear_probe.py train features/ --split                     # as in features/train, validation and test

`train` holds out 20 % of each class as the test set, and 10 % of the rest as the validation set. `--folds K` instead
cross-validates; `--model` then saves a model trained on all pieces. Files that share label and path, but for folder and
extension, are one piece, as are those of one group, and stay on one side of every split. 95 % intervals are of the
bootstrap: the pieces of the test set are drawn anew; the split and the model stay.

`train --published` follows the published script instead: 20 % of the pieces, rounded up, are drawn at random, whatever
their classes, with seed 42; cross-entropy is of the softmax's softmax; the best of 1,000 epochs is the one of the
highest accuracy on the same 20 %. That is no clean test: it is for comparing with published figures only.
Exit status: 0; 1 if a file was left out; 2 if nothing could be done.
"""

import argparse
import copy
import pickle
import sys
from collections import Counter
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin(command_line.probe(__doc__))  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import features
import files
import labels
import plot
import provenance
from files import InputError
from labels import Example
from processes import Processes

TEST_SHARE = 0.2  # of the pieces of each class
VALIDATION_SHARE = 0.1  # of the other pieces
CACHE_BYTES = 2 << 30  # of features that each FeatureDataset keeps in memory


class LinearProbe(nn.Module):
    """Time-distributed linear layer, ReLU, mean over time, linear layer. B batch, T time, H width, C classes."""

    def __init__(self, width: int, hidden: int, num_classes: int):
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, sequences: Tensor, mask: Tensor) -> Tensor:
        """Classify sequences [B, T, H] with masks [B, T] (0: padding): logits [B, C]."""
        hidden = torch.relu(self.hidden(sequences)) * mask.unsqueeze(-1)  # [B, T, hidden]
        return self.output(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True))


class FeatureDataset(Dataset):
    """Features [T, H] and class index (-1: no label) of each example, kept in memory up to `CACHE_BYTES`."""

    def __init__(self, examples: list[Example], classes: list[str]):
        self.examples = examples
        self.targets = [-1 if example.label is None else classes.index(example.label) for example in examples]
        self.cache: dict[int, Tensor] = {}
        self.space = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sequence = self.cache.get(index)
        if sequence is None:
            sequence = torch.from_numpy(features.read(self.examples[index].path)).flatten(0, -2)
            if sequence.nbytes <= self.space:
                self.cache[index] = sequence
                self.space -= sequence.nbytes
        return sequence, self.targets[index]


def collate(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad sequences [T, H] with zeros: [B, T, H], mask [B, T], class indices [B]."""
    sequences, targets = zip(*batch, strict=True)
    mask = pad_sequence([torch.ones(len(sequence)) for sequence in sequences], batch_first=True)
    return pad_sequence(list(sequences), batch_first=True), mask, torch.tensor(targets)


@torch.inference_mode()
def predict_logits(model: LinearProbe, batches: DataLoader) -> tuple[Tensor, Tensor]:
    """Return logits [N, C] and class indices [N] of all examples, on the model's device."""
    model.eval()
    device = model.output.weight.device
    outputs = [(model(sequences.to(device), mask.to(device)), targets) for sequences, mask, targets in batches]
    logits, targets = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(targets).to(device)


def fit(
    train: list[Example], validation: list[Example], classes: list[str], args: argparse.Namespace
) -> tuple[LinearProbe, list[dict]]:
    """Train a probe. Returns the model of the best epoch on the validation set, and the losses of each epoch."""
    torch.manual_seed(args.seed)
    width = features.read(train[0].path).shape[-1]
    device = pick_device()
    model = LinearProbe(width, args.hidden_size or width, len(classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    weight = None
    if args.balanced:
        sizes = Counter(example.label for example in train)
        weight = torch.tensor([len(train) / (len(classes) * max(1, sizes[label])) for label in classes], device=device)

    def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy; the published model ends in a softmax, of which the loss takes another one."""
        return cross_entropy(logits.softmax(dim=-1) if args.published else logits, targets, weight)

    order, dataset = torch.Generator().manual_seed(args.seed), FeatureDataset(train, classes)
    batches = DataLoader(dataset, args.batch_size, shuffle=True, generator=order, collate_fn=collate)
    for_validation = DataLoader(FeatureDataset(validation, classes), args.batch_size, collate_fn=collate)

    history: list[dict] = []
    with tqdm(range(1, args.epochs + 1), desc="training", unit="epoch", delay=2, disable=None) as epochs:
        for epoch in epochs:
            model.train()
            total = 0.0
            for sequences, mask, targets in batches:
                loss = loss_of(model(sequences.to(device), mask.to(device)), targets.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(targets)
            logits, targets = predict_logits(model, for_validation)
            losses = {"train_loss": total / len(train), "eval_loss": loss_of(logits, targets).item()}
            if not np.isfinite(list(losses.values())).all():
                raise InputError(f"the loss is not finite in epoch {epoch}: lower --learning_rate; are features huge?")
            right = logits.argmax(dim=-1) == targets
            history.append({"epoch": epoch} | losses | {"eval_accuracy": right.double().mean().item()})
            epochs.set_postfix({name: f"{loss:.4f}" for name, loss in losses.items()})
            best = best_epoch(history, args.published)
            if epoch == best:
                best_state = copy.deepcopy(model.state_dict())
            elif epoch - best >= args.patience:
                break
    model.load_state_dict(best_state)
    return model, history


def best_epoch(history: list[dict], published: bool = False) -> int:
    """Return the epoch of the lowest loss or, as `published`, of the highest accuracy; the first of several."""
    if published:
        return max(history, key=lambda epoch: epoch["eval_accuracy"])["epoch"]
    return min(history, key=lambda epoch: epoch["eval_loss"])["epoch"]


def pick_device() -> torch.device:
    return Processes().device


def evaluate(
    model: LinearProbe, examples: list[Example], classes: list[str], batch_size: int
) -> tuple[list[dict], np.ndarray]:
    """Classify examples: a record of each, and the confusion matrix [C true, C predicted] of those labelled."""
    batches = DataLoader(FeatureDataset(examples, classes), batch_size, collate_fn=collate)
    logits, targets = predict_logits(model, batches)
    best, count = logits.argmax(dim=-1), len(classes)
    records: list[dict] = []
    for example, row, label in zip(examples, logits.softmax(dim=-1).tolist(), best.tolist(), strict=True):
        shares = {name: round(share, 6) for name, share in zip(classes, row, strict=True)}
        predicted = {"predicted": classes[label], "label": example.label, "probabilities": shares}
        records.append({"file": str(example.path)} | predicted)
    cells = (targets * count + best)[targets >= 0].cpu()
    return records, torch.bincount(cells, minlength=count**2).view(count, count).numpy()


def set_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Set the settings that were not given, by the protocol."""
    defaults = command_line.PUBLISHED_PROBE if getattr(args, "published", False) else command_line.PROBE
    given = {name: value for name, value in vars(args).items() if name in defaults and value is not None}
    vars(args).update(defaults | given)
    return args


def splits_of(
    examples: list[Example], args: argparse.Namespace, rng: np.random.Generator
) -> tuple[str, list[tuple[list[Example], list[Example], list[Example]]]]:
    """Split examples. Returns the protocol, and the pieces to train on, to stop by and to test of each split."""
    if args.published:
        others, held_out = labels.random_split(examples, TEST_SHARE, args.seed)
        return "published: 20 % at random, the best epoch chosen on them: no clean test", [(others, held_out, held_out)]
    if args.split:
        parts = labels.given_split(examples)
        if parts["validation"]:
            return "given: train, validation, test", [(parts["train"], parts["validation"], parts["test"])]
        protocol, splits = "given: train, test", [(parts["train"], parts["test"])]
    elif args.folds:
        protocol, splits = f"{args.folds} folds", labels.folds(examples, args.folds, rng)
    else:
        protocol, splits = "20 % of each class to test", [labels.hold_out(examples, TEST_SHARE, rng)]
    protocol += "; 10 % of the others to stop by"
    return protocol, [(*labels.hold_out(others, VALIDATION_SHARE, rng), for_test) for others, for_test in splits]


def train(args: argparse.Namespace) -> int:
    set_defaults(args)
    made_with = provenance.agreed(features.made_with(args.features))
    found, left_out = labels.gather(args.features, True, args.labels, groups=args.groups)
    smallest = 1 if args.published or args.split else max(3, args.folds)
    examples, dropped = labels.drop_small_classes(found, smallest)
    left_out += dropped
    sizes = Counter(str(example.label) for example in examples)
    classes = sorted(sizes)
    listed = ", ".join(f"{name} {size}" for name, size in sizes.most_common())
    print(files.printable(f"{len(examples)} files of {len(classes)} classes: {listed}"))

    rng = np.random.default_rng(args.seed)
    protocol, splits = splits_of(examples, args, rng)
    if args.published:
        print(protocol)
    tested: list[dict] = []
    predictions, confusion = [], np.zeros((len(classes), len(classes)), np.int64)
    for for_fit, validation, for_test in splits:
        model, history = fit(for_fit, validation, classes, args)
        records, matrix = evaluate(model, for_test, classes, args.batch_size)
        best = best_epoch(history, args.published)
        tested.append(labels.scores(matrix) | {"best_epoch": best, "history": history})
        parts = f"{len(for_fit)} to train on, {len(validation)} to stop by, {len(for_test)} to test"
        print(f"{parts}; best epoch {best} of {len(history)}; {show(tested[-1])}")
        predictions += records
        confusion += matrix
    settings = {name: getattr(args, name) for name in (*command_line.PROBE, "balanced")}
    result = {"protocol": {"split": protocol} | settings, "made_with": made_with, "classes": classes}
    result |= {"test": labels.scores(confusion), "splits": tested}
    tested_examples = [example for _, _, for_test in splits for example in for_test]
    result |= show_intervals(tested_examples, predictions, classes)
    if args.folds:
        for name in ("accuracy", "macro_f1"):
            values = [split[name] for split in tested]
            result[name] = {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values))}
            print(f"{name} of {args.folds} folds: {np.mean(values):.4f} ± {np.std(values):.4f}")
    if args.model:
        if args.folds:
            model, _ = fit(*labels.hold_out(examples, VALIDATION_SHARE, rng), classes, args)
        with files.atomic_write(args.model) as file:
            state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
            torch.save({"model": state, "classes": classes, "made_with": made_with}, file)
    return finish(args, result, predictions, confusion, left_out)


def predict(args: argparse.Namespace) -> int:
    set_defaults(args)
    if (args.labels or args.groups or args.confusion) and not args.evaluate:
        raise InputError("--labels, --groups and --confusion compare predictions with labels: add --evaluate")
    model, classes, made_with = load(args.model)
    provenance.agreed({str(args.model): made_with} | features.made_with(args.features))
    width = model.hidden.in_features
    found, left_out = labels.gather(args.features, args.evaluate, args.labels, width, args.groups)
    examples = [example for example in found if example.label in (None, *classes)]
    unknown = [example for example in found if example.label not in (None, *classes)]
    left_out = [f"{example.path}: the model knows no class {example.label}" for example in unknown] + left_out
    if not examples:
        raise InputError(f"no file has one of the labels that the model knows: {', '.join(classes)}")
    records, confusion = evaluate(model.to(pick_device()), examples, classes, args.batch_size)
    result: dict = {"classes": classes}
    if args.evaluate:
        result["test"] = labels.scores(confusion)
        print(f"{len(examples)} files: {show(result['test'])}")
        result |= show_intervals(examples, records, classes)
    else:
        for record in records:
            probability = record["probabilities"][record["predicted"]]
            print(files.printable(f"{probability:.4f}  {record['predicted']}  {record['file']}"))
    return finish(args, result, records, confusion, left_out)


def show(scores: dict) -> str:
    return "accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f} (largest class: {majority:.4f})".format(**scores)


def show_intervals(examples: list[Example], records: list[dict], classes: list[str]) -> dict:
    """Print the 95 % intervals of accuracy and macro-F1; returns them, and how many pieces are tested."""
    truth, predicted = ([classes.index(record[name]) for record in records] for name in ("label", "predicted"))
    pieces = [example.piece for example in examples]
    found, count = labels.score_intervals(truth, predicted, pieces), len(set(pieces))
    form = "95 % intervals, of {}: accuracy [{:.4f}, {:.4f}], macro-F1 [{:.4f}, {:.4f}]"
    print(form.format(files.counted(count, "pieces"), *found["accuracy"], *found["macro_f1"]))
    return {"intervals": found, "pieces": count}


def finish(
    args: argparse.Namespace, result: dict, predictions: list[dict], confusion: np.ndarray, left_out: list[str]
) -> int:
    """Report the files left out, write the requested files, and return the exit status."""
    features.report("left out", left_out)
    if args.json:
        result |= {"confusion": confusion.tolist(), "left_out": left_out, "predictions": predictions}
        features.write_json(args.json, result)
    if args.confusion:
        plot.confusion(confusion, result["classes"], args.confusion)
    return 1 if left_out else 0


def load(path: Path) -> tuple[LinearProbe, list[str], dict]:
    """Load a model that `train` wrote, its classes and its `provenance`. Raises InputError and OSError."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        classes, state, made_with = saved["classes"], saved["model"], saved.get("made_with", {})
        hidden, width = state["hidden.weight"].shape
        model = LinearProbe(width, hidden, len(classes))
        model.load_state_dict(state)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a model that `linear_probe.py train --model` wrote") from error
    return model, classes, made_with


def main(argv: list[str] | None = None) -> int:
    return files.run_command(command_line.probe(__doc__, train, predict), argv)


if __name__ == "__main__":
    sys.exit(main())
