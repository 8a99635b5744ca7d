"""Draw the loss curves of a training, a map of a feature folder or a matrix of similarities, as PNG or SVG.

examples:
  python plot.py loss logs_m3.txt loss.png
  python plot.py map features/music map.png
  python plot.py map features/music map.svg --labels labels.csv --method tsne
  python plot.py similarity features/music similarity.png --labels labels.csv
  python plot.py similarity features/text similarity.png --other features/music

A feature folder holds `.npy` files, pooled [1, H] or temporal [1, T, H] (averaged over T), or is packed. A label is the
beginning of a file's name (`jig_17.npy` -> jig), or is in a CSV of two columns: file (path or stem), label.
Exit status: 0; 1 if something was skipped; 2 if nothing could be drawn.
"""

import argparse
import contextlib
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports below, which take a while

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import MaxNLocator

import features
import files
import labels
import provenance
import retrieval
from features import Features
from files import InputError

MAP_POINTS, MATRIX_ROWS = 20_000, 1000  # of a larger folder, so many evenly spaced pieces are drawn
NAMED_ROWS = 40  # the most rows of a matrix that are named by file
COLORS = ["#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#717581", "#e76300", "#92dadd", "#a96b59", "#b9ac70", "#2c7a3f"]
MARKERS = "os^Dv"  # the second ten classes are squares, and so on
OTHER_COLOR, NO_LABEL = "#c8ccd0", "(no label)"
FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans", "Arial Unicode MS")
STYLE: dict = {
    **{"font.size": 10, "axes.labelpad": 10, "grid.color": "#e6e6e6"},
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), "#666666"),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), "#333333"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "text.parse_math": False,  # a "$" is a dollar sign
    "svg.hashsalt": "clamp2",  # the same picture, the same file
}


@contextlib.contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Axes]:
    """Yield the axes of a new figure (sizes in inches), then write it to `path`, whole or not at all."""
    fonts = ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in get_font_names())]
    with mpl.rc_context(STYLE | {"font.family": fonts}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot()
        kind = path.suffix.lower()[1:]
        with files.atomic_write(path) as file:
            figure.savefig(file, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)


def shorten(text: str, limit: int = 32) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_losses(log: Path) -> tuple[np.ndarray, list[str]]:
    """Read (epoch, training loss, evaluation loss) from a log, [E, 3], NaN for a missing loss; and unreadable lines.

    Of an epoch trained again after an interruption, the last entry counts. Raises InputError and OSError.
    """
    losses: dict[int, list] = {}
    unreadable: list[str] = []
    with open(log, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.lstrip().startswith("{"):
                continue
            try:
                entry = json.loads(line)
                if "epoch" in entry:
                    values = (entry.get("train_loss"), entry.get("eval_loss"))
                    losses[int(entry["epoch"])] = [math.nan if value is None else float(value) for value in values]
            except (ValueError, TypeError, OverflowError) as error:
                unreadable.append(f"{log}, line {number}: {error}")
    rows = np.array([(epoch, *losses[epoch]) for epoch in sorted(losses)], dtype=float).reshape(-1, 3)
    if not np.isfinite(rows[:, 1:]).any():
        raise InputError(f"{log}: no line such as {{'epoch': 1, 'train_loss': 0.5, 'eval_loss': 0.6}} in it")
    return rows, unreadable


def loss(args: argparse.Namespace) -> int:
    rows, unreadable = read_losses(args.log)
    epochs, *curves = rows.T
    with drawing(args.out, 7, 4) as axes:
        for name, color, values in zip(("training", "evaluation"), (COLORS[0], COLORS[2]), curves, strict=True):
            if np.isfinite(values).any():
                axes.plot(epochs, values, color=color, label=name, lw=1.8, marker="o", ms=4 if len(rows) <= 30 else 0)
        evaluation = curves[1]
        if np.isfinite(evaluation).any():
            best = np.where(np.isfinite(evaluation), evaluation, np.inf).argmin()
            text = f"lowest evaluation loss: {evaluation[best]:.4g}, epoch {epochs[best]:.0f}"
            axes.plot(epochs[best], evaluation[best], "o", color=COLORS[2], ms=8, mfc="white", mew=1.8, label=text)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(axis="y")
        axes.figure.legend(loc="outside upper left", ncols=3)
    features.report("lines skipped that are not JSON", unreadable, len(unreadable))
    return 1 if unreadable else 0


def load(folder: Path, csv_file: Path | None, limit: int) -> tuple[Features, list[str | None]]:
    """Load at most `limit` evenly spaced pieces of a folder, as vectors of length 1, and their labels.

    Sorted by label, then by path, so that partners in two folders are in the same row.
    """
    loaded = features.load(folder, mean_over_time=True)
    of_name = labels.assign([(folder, name) for name in loaded.names], labels.from_csv(csv_file) if csv_file else None)
    count = len(of_name)
    chosen = np.linspace(0, count - 1, min(count, limit)).round().astype(int)
    if count > limit:
        print(files.printable(f"{folder}: {limit} of its {count} pieces, evenly spaced, are drawn"), file=sys.stderr)
    order = sorted(
        chosen, key=lambda i: (of_name[i] is None, of_name[i] or "", features.without_suffix(loaded.names[i]))
    )
    loaded.matrix = retrieval.unit(loaded.matrix[order])
    loaded.names = [loaded.names[i] for i in order]
    return loaded, [of_name[i] for i in order]


def report(*loaded: tuple[Features, list[str | None]]) -> int:
    """Report the pieces without a label (if any has one) and the skipped files. Returns the exit status."""
    pieces = [piece for folder, of_name in loaded for piece in zip(folder.names, of_name, strict=True)]
    unlabelled = [name for name, label in pieces if label is None]
    if len(unlabelled) < len(pieces):
        features.report("have no label", unlabelled, len(unlabelled))
    skipped = [line for folder, _ in loaded for line in folder.skipped]
    features.report("skipped", skipped, len(skipped))
    return 1 if skipped else 0


def project(matrix: np.ndarray, method: str) -> tuple[np.ndarray, list[str]]:
    """Project [N, H] to [N, 2] by PCA or t-SNE (van der Maaten and Hinton, 2008). Returns the axes' names too."""
    from sklearn.decomposition import PCA  # here, because scikit-learn takes a second to import
    from sklearn.manifold import TSNE

    if method == "tsne":
        perplexity = min(30, (len(matrix) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(matrix), ["", ""]
    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # equal pieces have no variance
        points = pca.fit_transform(matrix)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    return points, [f"component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, start=1)]


def feature_map(args: argparse.Namespace) -> int:
    loaded, of_name = load(args.features, args.labels, MAP_POINTS)
    provenance.agreed(loaded.made_with)
    count = len(of_name)
    if count < 3 or loaded.matrix.shape[1] < 2:
        raise InputError(f"{args.features}: a map needs three pieces of width 2 or more; there are {count}")
    points, (xlabel, ylabel) = project(loaded.matrix, args.method)
    groups = label_groups(of_name)
    columns = math.ceil(len(groups) / 25) if len(groups) > 1 else 0
    size = float(np.clip(9000 / count, 4, 36))
    with drawing(args.out, 6.4 + 2 * columns, 6) as axes:
        look: dict = {"s": size, "linewidths": 0, "alpha": 0.75, "rasterized": count > 5000}
        drawn = [axes.scatter(points[rows, 0], points[rows, 1], **look, **own) for _, rows, own in groups]
        axes.set(xlabel=xlabel, ylabel=ylabel, xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        if columns:
            names = [name for name, *_ in groups]
            legend = axes.legend(drawn, names, loc="center left", bbox_to_anchor=(1, 0.5), ncols=columns)
            for handle in filter(None, legend.legend_handles):
                handle.set(sizes=[36], alpha=1)
    return report((loaded, of_name))


def label_groups(of_name: list[str | None]) -> list[tuple[str, list[int], dict]]:
    """Group rows by label: (name for the legend, rows, colour and marker), grey ones first, then by size.

    Grey are the unlabelled and, if there are too many labels, the smallest.
    """
    sizes = Counter(label for label in of_name if label)
    looks = [{"color": color, "marker": marker} for marker in MARKERS for color in COLORS]
    named = [label for label, _ in sizes.most_common(len(looks) - (len(sizes) > len(looks)))]
    grey_name = NO_LABEL if len(named) == len(sizes) else "other labels"
    groups = [(grey_name, {None, *sizes}.difference(named), {"color": OTHER_COLOR if sizes else COLORS[0]})]
    groups += [(shorten(label), {label}, look) for label, look in zip(named, looks, strict=False)]
    result = [(name, [row for row, label in enumerate(of_name) if label in some], look) for name, some, look in groups]
    return [(f"{name} ({len(rows)})", rows, look) for name, rows, look in result if rows]


def similarity(args: argparse.Namespace) -> int:
    loaded = [load(folder, args.labels, MATRIX_ROWS) for folder in filter(None, (args.features, args.other))]
    (rows, row_labels), (columns, column_labels) = loaded[0], loaded[-1]
    features.require_alike(args.features, rows, args.other or args.features, columns)
    scores = rows.matrix @ columns.matrix.T
    side = max(0.18 * min(max(scores.shape), NAMED_ROWS) + 1.5, 5)
    with drawing(args.out, side + 2.2, side) as axes:
        square = scores.shape[0] == scores.shape[1]
        image = axes.imshow(scores, cmap="viridis", interpolation="nearest", aspect="equal" if square else "auto")
        axes.figure.colorbar(image, label="cosine", shrink=0.6).outline.set_visible(False)
        name_rows(axes.yaxis, rows.names, row_labels)
        name_rows(axes.xaxis, columns.names, column_labels)
        if args.other:
            axes.set(xlabel=str(args.other), ylabel=str(args.features))
        axes.spines[:].set_visible(False)
    return report(*loaded)


def name_rows(axis, names: list[str], of_name: list[str | None]) -> None:
    """Label the rows (or columns) of a matrix: a few by file name, many by runs of equal labels."""
    count = len(names)
    if count <= NAMED_ROWS:
        axis.set_ticks(range(count), [shorten(features.without_suffix(name)) for name in names], fontsize=7)
    elif any(of_name):
        inner = [i for i in range(1, count) if of_name[i] != of_name[i - 1]]
        runs = [(start, end) for start, end in itertools.pairwise([0, *inner, count]) if end - start > count / 80]
        texts = [shorten(of_name[start] or NO_LABEL) for start, _ in runs]
        axis.set_ticks([(start + end - 1) / 2 for start, end in runs], texts, fontsize=8)
        for start in inner:
            (axis.axes.axvline if axis.axis_name == "x" else axis.axes.axhline)(start - 0.5, color="white", lw=0.6)
    else:
        axis.set_ticks([])
    axis.set_tick_params(length=0, rotation=90 if axis.axis_name == "x" else 0)


def confusion(matrix: np.ndarray, classes: list[str], out: Path) -> None:
    """Draw [C true, C predicted] counts; the colour is the share of the true class."""
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(0.5 * count, 2.5), 12)
    with drawing(out, side + 2.5, side + 1.5) as axes:
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        bar = axes.figure.colorbar(image, label="share of the true class", shrink=0.7, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        names = [shorten(name, 24) for name in classes]
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
    parser = command_line.documented(__doc__)
    commands = parser.add_subparsers(required=True, metavar="{loss,map,similarity}")

    def command(name: str, function, source: str, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=function)
        sub.add_argument(source, metavar=source.upper(), type=Path)
        sub.add_argument("out", metavar="OUT", type=command_line.picture, help="the picture: .png or .svg")
        if source == "features":
            sub.add_argument("--labels", metavar="CSV", type=Path, help="file,label; default: names up to the first _")
        return sub

    command("loss", loss, "log", "draw training and evaluation loss by epoch, from the log of a training")
    sub = command("map", feature_map, "features", "draw a 2-D map of a feature folder, coloured by label")
    sub.add_argument("--method", choices=("pca", "tsne"), default="pca", help="default: pca")
    sub = command("similarity", similarity, "features", "draw the cosine similarity of all pairs of pieces, by label")
    sub.add_argument("--other", metavar="FEATURES", type=Path, help="compare with the pieces of this folder instead")
    return parser


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
