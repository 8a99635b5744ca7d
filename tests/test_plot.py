"""`plot.py`: what is in the pictures, read back from them or from the axes they were drawn on."""

import contextlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import plot
from conftest import ROOT


def folder_of(path: Path, sizes: dict[str, int], width: int = 12, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    for number, (label, size) in enumerate(sizes.items()):
        for index in range(size):
            vector = rng.standard_normal((1, width)) + 3 * (np.arange(width) == number)
            np.save(path / f"{label}_{index:03d}.npy", vector.astype(np.float32))
    return path


def main(*arguments) -> int:
    return plot.main([str(argument) for argument in arguments])


def texts(svg: Path) -> list[str]:
    """Matplotlib draws text as outlines, and says in a comment which."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The axes of each picture, in the order they were drawn."""
    axes_of, real = [], plot.drawing

    @contextlib.contextmanager
    def spy(*arguments):
        with real(*arguments) as axes:
            axes_of.append(axes)
            yield axes

    monkeypatch.setattr(plot, "drawing", spy)
    return axes_of


def legend(axes) -> dict:
    """Name in the legend -> what was drawn."""
    return dict(zip((text.get_text() for text in axes.get_legend().get_texts()), axes.collections, strict=True))


LOG = """python train_m3.py
{"M3_HIDDEN_SIZE": 64}
{"epoch": 1, "train_loss": 3.0, "eval_loss": 2.5, "seconds": 4}
epoch 1 done
{"epoch": 2, "train_loss": 9.0, "eval_loss": 9.0}
{"epoch": 2, "train_loss": 2.0, "eval_loss": 1.5}
{"epoch": 3, "train_loss": NaN, "eval_loss": 1.25}
{"epoch": 4, "train_loss": 1.0, "eval_loss": null}
"""


def test_losses_of_a_log_with_a_repeated_epoch_and_gaps(tmp_path, drawn):
    (tmp_path / "log.txt").write_text(LOG)
    assert main("loss", tmp_path / "log.txt", tmp_path / "loss.svg") == 0
    training, evaluation, best = drawn[0].lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 3], [2, 2], [3, np.nan], [4, 1]])
    np.testing.assert_array_equal(evaluation.get_xydata(), [[1, 2.5], [2, 1.5], [3, 1.25], [4, np.nan]])
    assert best.get_xydata().tolist() == [[3, 1.25]]
    assert {"training", "evaluation", "lowest evaluation loss: 1.25, epoch 3"} <= set(texts(tmp_path / "loss.svg"))


@pytest.mark.parametrize("losses", [[(3.0, 3.0)], [(4.0, 4.0), (3.0, 5.0)], [(4.0, 4.0), (3.9, 3.9), (1.0, 1.0)]])
def test_the_legend_is_beside_the_curves(tmp_path, drawn, losses):
    lines = [json.dumps({"epoch": i, "train_loss": a, "eval_loss": b}) for i, (a, b) in enumerate(losses, 1)]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    assert main("loss", tmp_path / "log.txt", tmp_path / "loss.png") == 0
    figure = drawn[0].figure
    figure.draw_without_rendering()
    [box] = [legend.get_window_extent() for legend in figure.legends]
    assert box.y0 >= drawn[0].bbox.y1 and figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert all(float(tick).is_integer() for tick in drawn[0].get_xticks())


def test_a_line_cut_off_is_named(tmp_path, capsys):
    (tmp_path / "log.txt").write_text(LOG + '{"epoch": 5, "train_l')
    assert main("loss", tmp_path / "log.txt", tmp_path / "loss.png") == 1
    assert "log.txt, line 9" in capsys.readouterr().err
    assert (tmp_path / "loss.png").exists()


def test_a_log_of_one_epoch_without_evaluation_shows(tmp_path, drawn):
    (tmp_path / "log.txt").write_text('{"epoch": 1, "train_loss": 3.0}\n')
    assert main("loss", tmp_path / "log.txt", tmp_path / "loss.png") == 0
    assert drawn[0].lines[0].get_markersize() > 0
    image = matplotlib.image.imread(tmp_path / "loss.png")[..., :3]
    blue = np.array([0x3F, 0x90, 0xDA]) / 255
    assert (np.abs(image - blue).max(axis=-1) < 0.02).sum() > 20


def test_principal_components_of_the_covariance():
    matrix = np.random.default_rng(0).standard_normal((50, 12)) * np.arange(1, 13)
    points, names = plot.project(matrix, "pca")
    values, vectors = np.linalg.eigh(np.cov(matrix.T))  # ascending
    expected = (matrix - matrix.mean(axis=0)) @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(points, expected * np.sign((points * expected).sum(axis=0)), atol=1e-9)
    shares = values[[-1, -2]] / values.sum()
    assert names == [f"component {i} ({share:.0%} of the variance)" for i, share in enumerate(shares, 1)]
    np.testing.assert_allclose(plot.project(matrix[::-1], "pca")[0], points[::-1], atol=1e-9)  # not mirrored


def test_a_map_of_equal_pieces(tmp_path, drawn, recwarn):
    (tmp_path / "in").mkdir()
    for name in "abc":
        np.save(tmp_path / "in" / f"{name}.npy", np.ones((1, 4), np.float32))
    assert main("map", tmp_path / "in", tmp_path / "map.png") == 0
    assert drawn[0].get_xlabel() == "component 1 (0% of the variance)"
    assert not [warning for warning in recwarn if "divide" in str(warning.message)]


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_has_every_piece_in_the_colour_of_its_label(tmp_path, drawn, method):
    folder_of(tmp_path / "in", {"reel": 20, "jig": 9, "waltz": 6})
    np.save(tmp_path / "in" / "temporal_0.npy", np.ones((1, 5, 12), np.float32))
    np.save(tmp_path / "in" / "nolabel.npy", np.ones((1, 12), np.float32))
    assert main("map", tmp_path / "in", tmp_path / "map.svg", "--method", method) == 0
    groups = legend(drawn[0])
    sizes = {label: len(group.get_offsets()) for label, group in groups.items()}
    assert sizes == {"reel (20)": 20, "jig (9)": 9, "waltz (6)": 6, "temporal (1)": 1, "(no label) (1)": 1}
    for handle, group in zip(drawn[0].get_legend().legend_handles, groups.values(), strict=True):
        np.testing.assert_array_equal(handle.get_facecolor()[0][:3], group.get_facecolor()[0][:3])
    assert len({tuple(group.get_facecolor()[0]) for group in groups.values()}) == 5
    assert set(sizes) <= set(texts(tmp_path / "map.svg"))
    reel, jig, waltz = (np.array(groups[name].get_offsets()).mean(axis=0) for name in list(sizes) if sizes[name] > 1)
    assert min(np.linalg.norm(reel - jig), np.linalg.norm(jig - waltz), np.linalg.norm(waltz - reel)) > 0.3


def test_a_map_without_labels(tmp_path, drawn, capsys):
    folder_of(tmp_path / "in", {"a": 5})
    for path in list((tmp_path / "in").iterdir()):
        path.rename(path.with_name(path.name.replace("_", "")))
    assert main("map", tmp_path / "in", tmp_path / "map.png") == 0
    assert drawn[0].get_legend() is None and len(drawn[0].collections[0].get_offsets()) == 5
    assert capsys.readouterr().err == ""


def test_many_labels_keep_apart_or_are_counted_together(tmp_path, drawn):
    folder_of(tmp_path / "in", {f"label{i}": 2 for i in range(60)}, width=64)
    assert main("map", tmp_path / "in", tmp_path / "map.png") == 0
    groups = drawn[0].collections
    assert sum(len(group.get_offsets()) for group in groups) == 120
    assert {name for name in legend(drawn[0]) if not name.endswith(" (2)")} == {"other labels (22)"}
    looks = {(tuple(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes()) for group in groups}
    assert len(looks) == len(groups) == 50


def test_odd_labels_are_shown_as_they_are(tmp_path):
    folder_of(tmp_path / "in", {"x": 9})
    labels = ["$\\frac{", "_hidden", "<b>&", "x" * 99]
    lines = [f"x_{index:03d},{labels[index % 4]}\n" for index in range(9)]
    (tmp_path / "labels.csv").write_text("".join(lines), encoding="utf-8")
    assert main("map", tmp_path / "in", tmp_path / "map.svg", "--labels", tmp_path / "labels.csv") == 0
    shown = texts(tmp_path / "map.svg")
    assert {"$\\frac{ (3)", "_hidden (2)", "&lt;b&gt;&amp; (2)", "x" * 31 + "… (2)"} <= set(shown)


def test_similarity_is_the_cosine_in_the_order_of_the_labels(tmp_path, drawn):
    folder_of(tmp_path / "in" / "a", {"reel": 5})
    folder_of(tmp_path / "in" / "b", {"jig": 3}, seed=1)
    assert main("similarity", tmp_path / "in", tmp_path / "s.png") == 0
    names = [f"b/jig_{i:03d}" for i in range(3)] + [f"a/reel_{i:03d}" for i in range(5)]
    vectors = np.concatenate([np.load(tmp_path / "in" / f"{name}.npy") for name in names])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    axes = drawn[0]
    np.testing.assert_allclose(axes.images[0].get_array(), vectors @ vectors.T, atol=1e-6)
    for axis in (axes.xaxis, axes.yaxis):
        assert [tick.get_text() for tick in axis.get_ticklabels()] == names


def test_similarity_of_two_folders_has_partners_on_the_diagonal(tmp_path, drawn):
    folder_of(tmp_path / "music", {"reel": 30, "jig": 20})
    for path in (tmp_path / "music").iterdir():
        target = tmp_path / "text" / f"{path.stem}.txt.npy"
        target.parent.mkdir(exist_ok=True)
        np.save(target, 2 * np.load(path))
    arguments = ("similarity", tmp_path / "text", tmp_path / "s.svg", "--other", tmp_path / "music")
    assert main(*arguments) == 0
    np.testing.assert_allclose(np.diag(drawn[0].images[0].get_array()), 1, atol=1e-6)
    assert [tick.get_text() for tick in drawn[0].yaxis.get_ticklabels()] == ["jig", "reel"]  # too many for every name
    assert drawn[0].get_yticks().tolist() == [9.5, 34.5]


def test_a_large_folder_is_thinned_out_and_that_is_said(tmp_path, monkeypatch, drawn, capsys):
    folder_of(tmp_path / "in", {"a": 30, "b": 30})
    monkeypatch.setattr(plot, "MATRIX_ROWS", 10)
    monkeypatch.setattr(plot, "MAP_POINTS", 20)
    assert (
        main("similarity", tmp_path / "in", tmp_path / "s.png") == main("map", tmp_path / "in", tmp_path / "m.png") == 0
    )
    assert drawn[0].images[0].get_array().shape == (10, 10)
    assert [len(group.get_offsets()) for group in drawn[1].collections] == [10, 10]
    error = capsys.readouterr().err
    assert "10 of its 60 pieces" in error and "20 of its 60 pieces" in error


def test_confusion(tmp_path, drawn):
    plot.confusion(np.array([[8, 2], [0, 0]]), ["jig", "reel"], tmp_path / "c.svg")
    np.testing.assert_allclose(drawn[0].images[0].get_array(), [[0.8, 0.2], [0, 0]])
    assert [text.get_text() for text in drawn[0].texts] == ["8", "2", "0", "0"]


@pytest.mark.parametrize(
    "names", [["jig", "reel"], ["one class, a long name", "another, a long name"], [f"class {i}" for i in range(9)]]
)
def test_nothing_touches_in_a_confusion_matrix(tmp_path, drawn, names):
    plot.confusion(np.ones((len(names), len(names)), int), names, tmp_path / "c.png")
    axes = drawn[0]
    axes.figure.draw_without_rendering()
    rows, columns = ([tick.get_window_extent() for tick in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis))
    gap = 8 / 72 * axes.figure.dpi  # 8 points
    assert axes.yaxis.label.get_window_extent().x1 + gap < min(box.x0 for box in rows)
    assert axes.xaxis.label.get_window_extent().y1 + gap < min(box.y0 for box in columns)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(columns))


def test_the_same_picture_is_the_same_file(tmp_path):
    folder_of(tmp_path / "in", {"a": 5, "b": 5})
    for suffix in ("svg", "png"):
        for name in ("one", "two"):
            assert main("map", tmp_path / "in", tmp_path / f"{name}.{suffix}") == 0
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_skipped_files_are_named(tmp_path, capsys):
    folder_of(tmp_path / "in", {"a": 5})
    np.save(tmp_path / "in" / "a_nan.npy", np.full((1, 12), np.nan, np.float32))
    assert main("map", tmp_path / "in", tmp_path / "map.png") == 1
    assert "1 skipped" in (error := capsys.readouterr().err) and "a_nan.npy: 12 values are NaN" in error


def test_the_real_script(tmp_path):
    folder_of(tmp_path / "in", {"a": 5, "b": 5})
    out = tmp_path / "new folder" / "map.png"
    arguments = [sys.executable, str(ROOT / "code" / "plot.py"), "map", str(tmp_path / "in"), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    image = matplotlib.image.imread(out)
    assert image.shape[0] > 400 and image.shape[1] > 400 and image[..., :3].std() > 0.02


def test_wrong_use_is_said_in_one_line_and_exits_with_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(Path("in"), {"a": 5})
    folder_of(Path("narrow"), {"a": 5}, width=3)
    folder_of(Path("two"), {"a": 2})
    Path("empty").mkdir()
    Path("log.txt").write_text("no loss here\n")
    cases = [
        (["loss", "log.txt", "x.png"], "log.txt: no line such as"),
        (["loss", "no.txt", "x.png"], "error: no.txt: No such file or directory"),
        (["loss", "in", "x.png"], "in"),
        (["map", "in", "x.pdf"], ".png or .svg"),
        (["map", "empty", "x.png"], "no .npy file"),
        (["map", "two", "x.png"], "three pieces"),
        (["map", "in", "x.png", "--labels", "no.csv"], "no.csv"),
        (["similarity", "in", "x.png", "--other", "narrow"], "width 12"),
        ([], "required"),
    ]
    for arguments, word in cases:
        try:
            code = main(*arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2 and word in error and "Traceback" not in error, (arguments, error)
    assert not Path("x.png").exists()
