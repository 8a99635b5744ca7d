"""Pictures: loss curves of a training, a map of a feature folder, a matrix of similarities. PNG or SVG, by the suffix.

examples:
  python plot.py loss logs_m3.txt loss.png
  python plot.py map features/music map.png
  python plot.py map features/music map.svg --labels labels.csv --method tsne
  python plot.py similarity features/music similarity.png --labels labels.csv
  python plot.py similarity features/text similarity.png --other features/music

A feature folder holds `.npy` files, pooled [1, H] or temporal [1, T, H] (averaged over T), or is packed. Labels come
from the file names (`jig_17.npy` -> jig) or from a CSV of two columns: file (path or stem), label.
Exit status: 0; 1 if something was left out; 2 if nothing could be drawn.
"""

import argparse
import contextlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import MaxNLocator

import command_line
import features
import files
import labels
import provenance
import retrieval
from features import Features
from files import InputError

MAP_POINTS, MATRIX_ROWS = 20_000, 1000  # of a larger folder, so many evenly spaced pieces are drawn
NAMED_ROWS = 40  # up to so many, rows of a matrix carry the names of the files
COLORS = ["#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#717581", "#e76300", "#92dadd", "#a96b59", "#b9ac70", "#2c7a3f"]
MARKERS = "os^Dv"  # the second ten classes are squares, and so on
OTHER_COLOR, NO_LABEL = "#c8ccd0", "(no label)"
FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans", "Arial Unicode MS")
STYLE: dict = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.labelpad": 10,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "svg.hashsalt": "clamp2",  # the same picture is the same file
}


@contextlib.contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Axes]:
    """Axes of a figure of so many inches, which becomes the file `path`, whole or not at all."""
    fonts = ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in get_font_names())]
    with mpl.rc_context(STYLE | {"font.family": fonts}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot()
        kind = path.suffix.lower()[1:]
        metadata = {"Date": None} if kind == "svg" else None
        with files.atomic_write(path) as file:
            figure.savefig(file, format=kind, dpi=160, metadata=metadata)


def short(text: str, limit: int = 32) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- loss curves ------------------------------------------------------------------------------------------------------


def read_losses(log: Path) -> tuple[list[tuple[int, float, float]], list[str]]:
    """(epoch, train loss, evaluation loss) of every epoch in order, NaN where there is none; and unreadable JSON lines.

    An epoch that was trained again, after a run was cut off, counts as the last time. Raises InputError, OSError.
    """
    losses: dict[int, tuple[float, float]] = {}
    unreadable: list[str] = []
    with open(log, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.lstrip().startswith("{"):
                continue
            try:
                entry = json.loads(line)
                if "epoch" in entry:
                    train, evaluation = (
                        math.nan if entry.get(name) is None else float(entry[name])
                        for name in ("train_loss", "eval_loss")
                    )
                    losses[int(entry["epoch"])] = (train, evaluation)
            except (ValueError, TypeError, OverflowError) as error:
                unreadable.append(f"{log}, line {number}: {error}")
    epochs = [(epoch, *losses[epoch]) for epoch in sorted(losses)]
    if not np.isfinite([value for _, *values in epochs for value in values]).any():
        raise InputError(f"{log}: no line such as {{'epoch': 1, 'train_loss': 0.5, 'eval_loss': 0.6}} in it")
    return epochs, unreadable


def loss(args: argparse.Namespace) -> int:
    rows, unreadable = read_losses(args.log)
    epochs, *curves = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    with drawing(args.out, 7, 4) as axes:
        for name, color, values in zip(("training", "evaluation"), (COLORS[0], COLORS[2]), curves, strict=True):
            if np.isfinite(values).any():
                axes.plot(epochs, values, color=color, label=name, lw=1.8, marker="o", ms=4 if len(rows) <= 30 else 0)
        evaluation = np.where(np.isfinite(curves[1]), curves[1], np.inf)
        if evaluation.min() < np.inf:
            best = evaluation.argmin()
            text = f"lowest evaluation loss: {evaluation[best]:.4g}, epoch {epochs[best]:.0f}"
            axes.plot(epochs[best], evaluation[best], "o", color=COLORS[2], ms=8, mfc="white", mew=1.8, label=text)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(axis="y")
        axes.figure.legend(loc="outside upper left", ncols=3)  # above the curves, which may be anywhere
    features.report("lines that are no JSON left out", unreadable, len(unreadable))
    return 1 if unreadable else 0


# --- features ---------------------------------------------------------------------------------------------------------


def load(folder: Path, csv_file: Path | None, limit: int) -> tuple[Features, list[str | None]]:
    """At most `limit` pieces of a folder, evenly spaced, as vectors of length 1, and their labels."""
    loaded = features.load(folder, mean_over_time=True)
    of_name = labels.assign([(folder, name) for name in loaded.names], labels.from_csv(csv_file) if csv_file else None)
    chosen = np.arange(len(of_name))
    if len(of_name) > limit:
        chosen = np.linspace(0, len(of_name) - 1, limit).round().astype(int)
        print(
            files.printable(f"{folder}: {limit} of its {len(of_name)} pieces, evenly spaced, are drawn"),
            file=sys.stderr,
        )
    matrix = retrieval.unit(loaded.matrix[chosen])
    drawn = Features([loaded.names[i] for i in chosen], matrix, loaded.skipped, made_with=loaded.made_with)
    return drawn, [of_name[i] for i in chosen]


def report(loaded: list[Features], of_name: list[str | None], names: list[str]) -> int:
    """Names what has no label (if something has one) and what was skipped; returns the exit status."""
    if any(of_name):
        unlabelled = [name for name, label in zip(names, of_name, strict=True) if label is None]
        features.report("have no label", unlabelled, len(unlabelled))
    skipped = [line for folder in loaded for line in folder.skipped]
    features.report("skipped", skipped, len(skipped))
    return 1 if skipped else 0


def principal_components(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, H] -> coordinates [N, 2] on the two directions of largest variance, and their shares of the variance [2]."""
    left, values, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    coordinates = left[:, :2] * values[:2]
    signs = np.sign(coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]])  # else left to the linear algebra library
    return coordinates * np.where(signs == 0, 1, signs), values[:2] ** 2 / max((values**2).sum(), 1e-30)


def tsne(matrix: np.ndarray) -> np.ndarray:
    """[N, H] -> [N, 2], by t-SNE (van der Maaten and Hinton, 2008): neighbours stay neighbours, distances do not."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError("--method tsne needs the package scikit-learn: pip install scikit-learn") from error
    perplexity = min(30, (len(matrix) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(matrix)


def feature_map(args: argparse.Namespace) -> int:
    loaded, of_name = load(args.features, args.labels, MAP_POINTS)
    provenance.agreed(loaded.made_with)
    count = len(of_name)
    if count < 3 or loaded.matrix.shape[1] < 2:
        raise InputError(f"{args.features}: a map needs three pieces of width 2 or more; there are {count}")
    if args.method == "tsne":
        points, axis_names = tsne(loaded.matrix), ["", ""]
    else:
        points, shares = principal_components(loaded.matrix)
        axis_names = [f"component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, start=1)]

    groups = label_groups(of_name)
    columns = math.ceil(len(groups) / 25) if len(groups) > 1 else 0
    with drawing(args.out, 6.4 + 2 * columns, 6) as axes:
        look: dict = {
            "s": float(np.clip(9000 / count, 4, 36)),
            "linewidths": 0,
            "alpha": 0.75,
            "rasterized": count > 5000,
        }
        drawn = [axes.scatter(points[rows, 0], points[rows, 1], **look, **own) for _, rows, own in groups]
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1], xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        if columns:
            names = [name for name, *_ in groups]
            legend = axes.legend(drawn, names, loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns)
            for handle in filter(None, legend.legend_handles):
                handle.set(sizes=[36], alpha=1)
    return report([loaded], of_name, loaded.names)


def label_groups(of_name: list[str | None]) -> list[tuple[str, list[int], dict]]:
    """(name for the legend, rows, colour and marker) of each label, largest first; before them, in grey, no label.

    Beyond as many labels as there are colours and markers, the smallest are grey too.
    """
    rows: dict[str | None, list[int]] = defaultdict(list)
    for row, label in enumerate(of_name):
        rows[label].append(row)
    by_size = sorted((label for label in rows if label is not None), key=lambda label: -len(rows[label]))
    looks = [{"color": color, "marker": marker} for marker in MARKERS for color in COLORS]
    grey = [*by_size[len(looks) - 1 :], None] if len(by_size) > len(looks) else [None]
    rest = [row for label in grey for row in rows[label]]
    groups = [(NO_LABEL if len(grey) == 1 else "other labels", rest, {"color": OTHER_COLOR if by_size else COLORS[0]})]
    for label, look in zip([label for label in by_size if label not in grey], looks, strict=False):
        groups.append((short(label), rows[label], look))
    return [(f"{name} ({len(some)})", some, look) for name, some, look in groups if some]


def similarity(args: argparse.Namespace) -> int:
    rows, row_labels = load(args.features, args.labels, MATRIX_ROWS)
    columns, column_labels = (rows, row_labels) if args.other is None else load(args.other, args.labels, MATRIX_ROWS)
    provenance.agreed(rows.made_with | columns.made_with)
    if rows.matrix.shape[1] != columns.matrix.shape[1]:
        raise InputError(
            f"{args.features} has width {rows.matrix.shape[1]}, {args.other} {columns.matrix.shape[1]}: "
            "features of one model can be compared"
        )
    row_order, column_order = in_order(rows, row_labels), in_order(columns, column_labels)
    scores = rows.matrix[row_order] @ columns.matrix[column_order].T
    side = 0.18 * min(max(len(row_order), len(column_order)), NAMED_ROWS) + 1.5
    with drawing(args.out, max(side, 5) + 2.2, max(side, 5)) as axes:
        image = axes.imshow(
            scores,
            cmap="viridis",
            interpolation="nearest",
            aspect="equal" if scores.shape[0] == scores.shape[1] else "auto",
        )
        axes.figure.colorbar(image, label="cosine", shrink=0.6).outline.set_visible(False)
        for axis, of, order, names in (
            (axes.yaxis, rows, row_order, row_labels),
            (axes.xaxis, columns, column_order, column_labels),
        ):
            mark(axis, [of.names[i] for i in order], [names[i] for i in order])
        if args.other is not None:
            axes.set(xlabel=str(args.other), ylabel=str(args.features))
        axes.spines[:].set_visible(False)
    if args.other is None:
        return report([rows], row_labels, rows.names)
    return report([rows, columns], row_labels + column_labels, rows.names + columns.names)


def in_order(of: Features, of_name: list[str | None]) -> list[int]:
    """Row numbers by label, then by path: so two folders with the same pieces have their partners on the diagonal."""
    return sorted(range(len(of_name)), key=lambda i: (of_name[i] is None, of_name[i] or "", features.key(of.names[i])))


def mark(axis, names: list[str], of_name: list[str | None]) -> None:
    """Names the rows (or columns) of a matrix: each by its file if they are few, else each run of equal labels."""
    if len(names) <= NAMED_ROWS:
        axis.set_ticks(range(len(names)), [short(features.key(name)) for name in names], fontsize=7)
    elif any(of_name):
        starts = [i for i in range(len(of_name)) if i == 0 or of_name[i] != of_name[i - 1]]
        ends = [*starts[1:], len(of_name)]
        runs = [(start, end) for start, end in zip(starts, ends, strict=True) if end - start > len(names) / 80]
        texts = [short(of_name[start] or NO_LABEL) for start, _ in runs]
        axis.set_ticks([(start + end - 1) / 2 for start, end in runs], texts, fontsize=8)
        line = axis.axes.axhline if axis is axis.axes.yaxis else axis.axes.axvline
        for start in starts[1:]:
            line(start - 0.5, color="white", lw=0.6)
    else:
        axis.set_ticks([])
    if axis is axis.axes.xaxis:
        axis.set_tick_params(rotation=90)
    axis.set_tick_params(length=0)


def confusion(matrix: np.ndarray, classes: list[str], out: Path) -> None:
    """[C, C] counts, true classes in rows; the colour is the share of the row."""
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(0.5 * count, 2.5), 12)
    with drawing(out, side + 2.5, side + 1.5) as axes:
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        bar = axes.figure.colorbar(image, label="share of the true class", shrink=0.7, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        names = [short(name, 24) for name in classes]
        size = 9 if count <= 25 else 5
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) * count > 32 else 0, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="true")
        if count <= 25:
            for row, column in np.ndindex(matrix.shape):
                color = "white" if shares[row, column] > 0.6 else "#333333" if matrix[row, column] else "#bbbbbb"
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
        axes.spines[:].set_visible(False)


def get_args_parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=summary, epilog=rest, formatter_class=layout)
    commands = parser.add_subparsers(required=True, metavar="{loss,map,similarity}")

    def command(name: str, function, source: str, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=function)
        sub.add_argument(source, metavar=source.upper(), type=Path)
        sub.add_argument("out", metavar="OUT", type=command_line.picture, help="the picture: .png or .svg")
        if source == "features":
            sub.add_argument("--labels", metavar="CSV", type=Path, help="file,label; default: what a name begins with")
        return sub

    command("loss", loss, "log", "training and evaluation loss by epoch, from the log of a training")
    sub = command("map", feature_map, "features", "a 2-D map of a feature folder, coloured by label")
    sub.add_argument("--method", choices=("pca", "tsne"), default="pca", help="default: pca; tsne needs scikit-learn")
    sub = command("similarity", similarity, "features", "the cosine of every two pieces, sorted by label")
    sub.add_argument("--other", metavar="FEATURES", type=Path, help="of every piece and every piece of this folder")
    return parser


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
