"""Linear probe: how well a label (rhythm, composer, genre, emotion) can be read from frozen features.

Each vector in time goes through a linear layer and a ReLU, their mean over time through a second linear layer; trained
with cross-entropy. Features are `.npy` files, temporal [1, T, H] or pooled [1, H], in one or several folders. The label
is what a file's name begins with (`jig_17.npy` -> jig), or stands in a CSV of two columns: file (path or stem), label.

examples:
  python linear_probe.py train features/ --model probe.pth --confusion confusion.png
  python linear_probe.py train abc_features/ mtf_features/ --labels labels.csv --balanced --folds 5
  python linear_probe.py predict probe.pth new_features/ --json predictions.json
  python linear_probe.py predict probe.pth test_features/ --labels test.csv --evaluate

`train` holds out 20 % of each class for the test, and 10 % of the others to know when to stop. `--folds K` instead
tests on every piece once, with a model that has not seen it; `--model` then keeps one trained on all of them. Files
that share label and path, but for folder and extension, are one piece, and stay on one side of every split.
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
    command_line.probe(__doc__).parse_args()  # before the imports below, which take seconds

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
from labels import Piece

TEST_SHARE = 0.2  # of the pieces of each class
VALIDATION_SHARE = 0.1  # of those that are not for the test
CACHE_BYTES = 2 << 30  # of features kept in memory, of the training, the validation and the test pieces each


class LinearProbe(nn.Module):
    """Time-distributed linear layer, ReLU, mean over time, linear layer. B batch, T time, H width, C classes."""

    def __init__(self, width: int, hidden: int, num_classes: int):
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, sequences: Tensor, mask: Tensor) -> Tensor:
        """Sequences [B, T, H], mask [B, T] (1 where there is a vector, 0 where there is padding) -> logits [B, C]."""
        hidden = torch.relu(self.hidden(sequences)) * mask.unsqueeze(-1)  # [B, T, hidden]
        return self.output(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True))


class Pieces(Dataset):
    """Features [T, H] and class index (-1: no label) of pieces.

    A file is read when it is first asked for, and kept in memory unless that would be more than `CACHE_BYTES`.
    """

    def __init__(self, pieces: list[Piece], classes: list[str]):
        self.pieces = pieces
        self.targets = [-1 if piece.label is None else classes.index(piece.label) for piece in pieces]
        self.cache: dict[int, Tensor] = {}
        self.space = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sequence = self.cache.get(index)
        if sequence is None:
            array = features.read(self.pieces[index].path)
            sequence = torch.from_numpy(array.reshape(-1, array.shape[-1]))
            if sequence.nbytes <= self.space:
                self.cache[index] = sequence
                self.space -= sequence.nbytes
        return sequence, self.targets[index]


def collate(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences [T, H] of different lengths -> [B, T, H] padded with zeros, mask [B, T], class indices [B]."""
    sequences, targets = zip(*batch, strict=True)
    mask = pad_sequence([torch.ones(len(sequence)) for sequence in sequences], batch_first=True)
    return pad_sequence(list(sequences), batch_first=True), mask, torch.tensor(targets)


@torch.inference_mode()
def predict_logits(model: LinearProbe, batches: DataLoader) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and class indices [N] of all pieces, both on the CPU."""
    model.eval()
    device = model.output.weight.device
    outputs = [(model(sequences.to(device), mask.to(device)).cpu(), targets) for sequences, mask, targets in batches]
    logits, targets = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(targets)


def fit(
    train: list[Piece], validation: list[Piece], classes: list[str], args: argparse.Namespace
) -> tuple[LinearProbe, list[dict]]:
    """The model of lowest validation loss, and the losses of each epoch.

    Stops when the validation loss has not fallen for `args.patience` epochs. The seed decides everything.
    """
    torch.manual_seed(args.seed)
    width = features.read(train[0].path).shape[-1]
    model = LinearProbe(width, args.hidden_size or width, len(classes)).to(pick_device())
    device = model.output.weight.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    weight = None
    if args.balanced:  # every class counts the same, however many pieces it has
        sizes = Counter(piece.label for piece in train)
        weight = torch.tensor([len(train) / (len(classes) * sizes[label]) for label in classes])
    on_device = None if weight is None else weight.to(device)
    order = torch.Generator().manual_seed(args.seed)
    batches = DataLoader(Pieces(train, classes), args.batch_size, shuffle=True, generator=order, collate_fn=collate)
    for_validation = DataLoader(Pieces(validation, classes), args.batch_size, collate_fn=collate)

    history: list[dict] = []
    best: dict = {"eval_loss": float("inf"), "epoch": 0}
    best_state = copy.deepcopy(model.state_dict())
    with tqdm(range(1, args.epochs + 1), desc="training", unit="epoch", delay=2, disable=None) as epochs:
        for epoch in epochs:
            model.train()
            total = 0.0
            for sequences, mask, targets in batches:
                loss = cross_entropy(model(sequences.to(device), mask.to(device)), targets.to(device), on_device)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(targets)
            logits, targets = predict_logits(model, for_validation)
            losses = {"train_loss": total / len(train), "eval_loss": cross_entropy(logits, targets, weight).item()}
            if not np.isfinite(list(losses.values())).all():
                raise InputError(f"the loss is not finite in epoch {epoch}: lower --learning_rate; are features huge?")
            history.append({"epoch": epoch} | losses)
            epochs.set_postfix({name: f"{loss:.4f}" for name, loss in losses.items()})
            if losses["eval_loss"] < best["eval_loss"]:
                best, best_state = history[-1], copy.deepcopy(model.state_dict())
            elif epoch - best["epoch"] >= args.patience:
                break
    model.load_state_dict(best_state)
    return model, history


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def evaluate(
    model: LinearProbe, pieces: list[Piece], classes: list[str], batch_size: int
) -> tuple[list[dict], np.ndarray]:
    """One record a piece, and the confusion matrix of those that have a label."""
    logits, targets = predict_logits(model, DataLoader(Pieces(pieces, classes), batch_size, collate_fn=collate))
    probabilities, best = logits.softmax(dim=-1), logits.argmax(dim=-1)
    records = []
    for piece, row, label in zip(pieces, probabilities.tolist(), best.tolist(), strict=True):
        record: dict = {"file": str(piece.path), "predicted": classes[label], "label": piece.label}
        records.append(record | {"probabilities": {c: round(p, 6) for c, p in zip(classes, row, strict=True)}})
    known = targets >= 0
    return records, labels.confusion_matrix(targets[known].tolist(), best[known].tolist(), len(classes))


# --- commands ---------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    made_with = provenance.agreed(features.made_with(args.features))
    pieces, left_out = labels.gather(args.features, True, args.labels)
    pieces, dropped = labels.drop_small_classes(pieces, max(3, args.folds))
    left_out += dropped
    sizes = Counter(str(piece.label) for piece in pieces)
    classes = sorted(sizes)
    print(
        files.printable(
            f"{len(pieces)} files of {len(classes)} classes: " + ", ".join(f"{c} {n}" for c, n in sizes.most_common())
        )
    )

    rng = np.random.default_rng(args.seed)
    splits = labels.folds(pieces, args.folds, rng) if args.folds else [labels.hold_out(pieces, TEST_SHARE, rng)]
    runs, predictions, confusion = [], [], np.zeros((len(classes), len(classes)), np.int64)
    for others, for_test in splits:
        for_fit, validation = labels.hold_out(others, VALIDATION_SHARE, rng)
        model, history = fit(for_fit, validation, classes, args)
        records, matrix = evaluate(model, for_test, classes, args.batch_size)
        best = min(history, key=lambda losses: losses["eval_loss"])
        runs.append(labels.scores(matrix) | {"best_epoch": best["epoch"], "history": history})
        print(
            f"{len(for_fit)} to train on, {len(validation)} to stop by, {len(for_test)} to test; "
            f"best epoch {best['epoch']} of {len(history)}; {show(runs[-1])}"
        )
        predictions += records
        confusion += matrix
    result = {"classes": classes, "test": labels.scores(confusion), "splits": runs}
    if args.folds:
        for name in ("accuracy", "macro_f1"):
            values = [run[name] for run in runs]
            result[name] = {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values))}
            print(f"{name} of {args.folds} folds: {np.mean(values):.4f} ± {np.std(values):.4f}")
    if args.model:
        if args.folds:
            model, _ = fit(*labels.hold_out(pieces, VALIDATION_SHARE, rng), classes, args)
        save(model, classes, made_with, args.model)
    return finish(args, result, predictions, confusion, left_out)


def predict(args: argparse.Namespace) -> int:
    if (args.labels or args.confusion) and not args.evaluate:
        raise InputError("--labels and --confusion compare predictions with labels: add --evaluate")
    model, classes, made_with = load(args.model)
    provenance.agreed({str(args.model): made_with} | features.made_with(args.features))
    pieces, left_out = labels.gather(args.features, args.evaluate, args.labels, model.hidden.in_features)
    unknown = [piece for piece in pieces if args.evaluate and piece.label not in classes]
    left_out = [f"{piece.path}: the model knows no class {piece.label}" for piece in unknown] + left_out
    pieces = [piece for piece in pieces if piece.label is None or piece.label in classes]
    if not pieces:
        raise InputError(f"no file has one of the labels that the model knows: {', '.join(classes)}")
    records, confusion = evaluate(model.to(pick_device()), pieces, classes, args.batch_size)
    result: dict = {"classes": classes}
    if args.evaluate:
        result["test"] = labels.scores(confusion)
        print(f"{len(pieces)} files: {show(result['test'])}")
    else:
        for record in records:
            print(
                files.printable(
                    f"{record['probabilities'][record['predicted']]:.4f}  {record['predicted']}  {record['file']}"
                )
            )
    return finish(args, result, records, confusion, left_out)


def show(scores: dict) -> str:
    return "accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f} (largest class: {majority:.4f})".format(**scores)


def finish(
    args: argparse.Namespace, result: dict, predictions: list[dict], confusion: np.ndarray, left_out: list[str]
) -> int:
    """Names what was left out, writes the files that were asked for, and returns the exit status."""
    features.report("left out", left_out)
    if args.json:
        result |= {"confusion": confusion.tolist(), "left_out": left_out, "predictions": predictions}
        features.write_json(args.json, result)
    if args.confusion:
        plot.confusion(confusion, result["classes"], args.confusion)
    return 1 if left_out else 0


def save(model: LinearProbe, classes: list[str], made_with: dict, path: Path) -> None:
    with files.atomic_write(path) as file:
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        torch.save({"model": state, "classes": classes, "made_with": made_with}, file)


def load(path: Path) -> tuple[LinearProbe, list[str], dict]:
    """A model that `save` wrote, its labels, and what its features were made with; see `provenance`.

    Raises InputError and OSError.
    """
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
