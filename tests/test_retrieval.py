"""`retrieval.py`, `features.py` and `semantic_search.py` against brute force, and on input that is wrong."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

import features
import retrieval
import semantic_search
from conftest import ROOT
from files import InputError


def vectors(n: int, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def save(folder: Path, matrix: np.ndarray, names: list[str] | None = None) -> Path:
    for row, vector in enumerate(matrix):
        path = folder / (names[row] if names else f"piece{row}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vector[None])
    return folder


def cosine_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[Q, N] in float64, the plain way."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def run(*args, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "code" / "semantic_search.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


# --- the mathematics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [7, 100, 10_000])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_top_k_is_the_brute_force_order(monkeypatch, block_rows, k):
    queries, references = vectors(300, seed=1), vectors(400, seed=2)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", block_rows * references.shape[1] * 4)
    scores, rows = retrieval.top_k(queries, references, k)
    expected = cosine_matrix(queries, references)
    order = np.argsort(-expected, axis=1)[:, :k]
    assert scores.shape == rows.shape == (300, min(k, 400))
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, rows, axis=1), scores, atol=1e-6)
    assert all(len(set(line)) == len(line) for line in rows)


@pytest.mark.parametrize("block_rows", [7, 10_000])
def test_ranks_are_pessimistic_and_exact(monkeypatch, block_rows):
    references = vectors(400, seed=3)
    references[200:300] = references[100:200] * np.linspace(0.1, 50, 100)[:, None]  # the same directions: ties
    partners = np.random.default_rng(4).permutation(400)[:350]
    queries = references[partners] + 2 * vectors(350, seed=5)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", block_rows * references.shape[1] * 4)
    rank, own = retrieval.ranks(queries, references, partners)

    expected = cosine_matrix(queries, references)
    partner_score = expected[np.arange(350), partners]
    brute = [sum(line >= score - 1e-6) for line, score in zip(expected, partner_score, strict=True)]
    assert rank.tolist() == brute
    np.testing.assert_allclose(own, partner_score, atol=1e-6)
    tied = (partners >= 100) & (partners < 300)
    assert rank[tied].min() >= 2 > rank[~tied].min()  # a partner with a double is never first


def test_all_references_equal_gives_the_last_rank():
    rank, _ = retrieval.ranks(vectors(5), np.ones((30, 24), np.float32), np.arange(5))
    assert rank.tolist() == [30] * 5


def test_measures_of_known_ranks():
    measured = retrieval.measures(np.array([1, 2, 10, 11, 100, 101]))
    assert measured["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11 + 1 / 100 + 1 / 101) / 6)
    assert [measured[name] for name in ("Hit@1", "Hit@10", "Hit@100")] == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert measured["median rank"] == 10.5


def test_chance_is_what_random_features_give():
    ranks = [retrieval.ranks(vectors(50, seed=s), vectors(50, seed=99 - s), np.arange(50))[0] for s in range(40)]
    measured, expected = retrieval.measures(np.concatenate(ranks)), retrieval.chance(50)
    assert measured["MRR"] == pytest.approx(expected["MRR"], abs=0.02)
    assert measured["Hit@10"] == pytest.approx(expected["Hit@10"], abs=0.04) and expected["Hit@10"] == 0.2
    assert measured["median rank"] == pytest.approx(expected["median rank"], abs=2)


@pytest.mark.parametrize("sizes", [(200, 150), (10, 7)])  # of full rank, and with fewer pieces than dimensions
def test_frechet_distance_against_scipy(sizes):
    first, second = vectors(sizes[0], seed=6), 0.7 * vectors(sizes[1], seed=7) + 0.5
    c1, c2 = (np.cov(x.astype(np.float64), rowvar=False) for x in (first, second))
    root = scipy.linalg.sqrtm(c1 @ c2 + 1e-12 * np.eye(24))
    means = np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2)
    expected = means + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real
    assert retrieval.frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)
    assert retrieval.frechet_distance(second, first) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_a_shift_is_its_square():
    first = vectors(100)
    assert retrieval.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert retrieval.frechet_distance(first, first + 2) == pytest.approx(4 * 24, rel=1e-5)


def test_a_row_without_direction_is_named():
    references = vectors(50)
    references[31] = np.nan
    with pytest.raises(InputError, match="row 31"):
        retrieval.top_k(vectors(1), references, 3)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, piece",
    [
        ("a/b.npy", "a/b"),
        ("a/b.abc.npy", "a/b"),
        ("a/b.MTF.NPY", "a/b"),
        ("b.1.npy", "b.1"),
        ("b.2.txt.npy", "b.2"),
        ("a/b.mid", "a/b"),
        ("op.12 no.3.npy", "op.12 no.3"),
        ("stem", "stem"),
    ],
)
def test_key(name, piece):
    assert features.without_suffix(name) == piece


def bad_folder(folder: Path) -> dict[str, str]:
    """Two good files among bad ones; returns bad file -> a word of the reason."""
    save(folder, vectors(2), ["good1.npy", "sub/good2.npy"])
    (folder / "empty.npy").write_bytes(b"")
    (folder / "text.npy").write_bytes(b"not an array")
    (folder / "cut.npy").write_bytes((folder / "good1.npy").read_bytes()[:-4])
    np.save(folder / "integers.npy", np.ones((1, 24), np.int64))
    np.save(folder / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.save(folder / "batch.npy", vectors(2))
    np.save(folder / "flat.npy", vectors(1)[0])
    np.save(folder / "temporal.npy", vectors(5)[None])
    np.save(folder / "nan.npy", np.full((1, 24), np.nan, np.float32))
    np.save(folder / "overflow.npy", np.full((1, 24), 1e300))
    np.save(folder / "zeros.npy", np.zeros((1, 24), np.float32))
    with open(folder / "archive.npy", "wb") as file:
        np.savez(file, a=vectors(1))
    return {
        "empty": "not a readable",
        "text": "not a readable",
        "cut": "not a readable",
        "integers": "int64",
        "objects": "not a readable",
        "batch": "(2, 24)",
        "flat": "(24,)",
        "temporal": "--normalize",
        "nan": "24 values are NaN",
        "overflow": "infinite",
        "zeros": "all zeros",
        "archive": ".npz",
    }


def test_bad_files_are_skipped_and_named(tmp_path):
    reasons = bad_folder(tmp_path)
    loaded = features.load(tmp_path)
    assert loaded.names == ["good1.npy", "sub/good2.npy"]
    np.testing.assert_array_equal(loaded.matrix, vectors(2))
    skipped = {Path(line.partition(":")[0]).stem: line for line in loaded.skipped}
    assert skipped.keys() == reasons.keys()
    assert all(word in skipped[name] for name, word in reasons.items())


def test_temporal_features_are_averaged_when_asked(tmp_path):
    save(tmp_path, vectors(1))
    np.save(tmp_path / "temporal.npy", vectors(5, seed=1)[None])
    loaded = features.load(tmp_path, mean_over_time=True)
    np.testing.assert_allclose(loaded.matrix[1], vectors(5, seed=1).mean(axis=0), atol=1e-6)


def test_other_float_types_are_read_as_float32(tmp_path):
    for dtype in ("float16", "float64", ">f4"):
        np.save(tmp_path / f"{dtype}.npy", vectors(1).astype(dtype))
    loaded = features.load(tmp_path)
    assert loaded.matrix.dtype == np.float32 and not loaded.skipped
    np.testing.assert_allclose(loaded.matrix, np.repeat(vectors(1), 3, axis=0), atol=2e-3)


def test_two_widths_are_an_error_that_names_both(tmp_path):
    save(tmp_path, vectors(3))
    np.save(tmp_path / "piece9.npy", vectors(1, width=8))
    with pytest.raises(InputError, match=r"piece9.npy: width 8, but piece0.npy has 24"):
        features.load(tmp_path)


def test_damaged_headers_never_escape(tmp_path):
    """Whatever stands in a header, reading gives an array or an InputError."""
    path, draw, good = tmp_path / "x.npy", random.Random(0), 0
    np.save(path, vectors(1, width=4))
    whole = path.read_bytes()
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(128)] = draw.choice(b"0123456789()'{},:f<>\n\x00\xff OiU")
        path.write_bytes(damaged[: draw.choice([None, None, draw.randrange(len(damaged))])])
        try:
            good += features.read(path).size > 0
        except InputError as error:
            assert "x.npy" in str(error) and "\n" not in str(error)
    assert 0 < good < 500


def test_packing_changes_nothing(tmp_path):
    save(tmp_path / "in", vectors(10), [f"{row % 3}/ünï {row}.npy" for row in range(10)])
    (tmp_path / "in" / "bad.npy").write_bytes(b"")
    packed = features.pack(tmp_path / "in", tmp_path / "out")
    loose, again = features.load(tmp_path / "in"), features.load(tmp_path / "out")
    assert len(packed.skipped) == 1 and "bad.npy" in packed.skipped[0]
    assert again.names == loose.names == packed.names
    np.testing.assert_array_equal(again.matrix, loose.matrix)
    assert isinstance(again.matrix, np.memmap)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "features.npy"), loose.matrix)


def test_a_failed_pack_leaves_the_earlier_one(tmp_path):
    save(tmp_path / "in", vectors(3))
    features.pack(tmp_path / "in", tmp_path / "out")
    np.save(tmp_path / "in" / "piece9.npy", vectors(1, width=8))
    with pytest.raises(InputError):
        features.pack(tmp_path / "in", tmp_path / "out")
    assert len(features.load(tmp_path / "out").names) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features.npy", "names.json"]


def test_a_pack_that_is_cut_off_does_not_pair_old_names_with_new_rows(tmp_path, monkeypatch):
    features.pack(save(tmp_path / "in", vectors(3)), tmp_path / "out")
    save(tmp_path / "in2", vectors(3), ["x.npy", "y.npy", "z.npy"])

    def crash(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features.json, "dump", crash)
        with pytest.raises(KeyboardInterrupt):
            features.pack(tmp_path / "in2", tmp_path / "out")
    assert not features.is_packed(tmp_path / "out")
    assert features.pack(tmp_path / "in2", tmp_path / "out").names == ["x.npy", "y.npy", "z.npy"]


@pytest.mark.parametrize("names", ["[]", '["a.npy"]', "{", ""])
def test_a_damaged_pack_is_refused(tmp_path, names):
    features.pack(save(tmp_path / "in", vectors(3)), tmp_path / "out")
    (tmp_path / "out" / "names.json").write_text(names)
    with pytest.raises(InputError, match="damaged"):
        features.load(tmp_path / "out")


# --- the command line -------------------------------------------------------------------------------------------------


def test_search_from_files_and_packed_is_the_brute_force_answer(tmp_path):
    references = vectors(40)
    save(tmp_path / "ref", references)
    np.save(tmp_path / "query.npy", vectors(1, seed=8))
    run("pack", tmp_path / "ref", tmp_path / "packed")
    expected = cosine_matrix(vectors(1, seed=8), references)[0]
    order = np.argsort(-expected)[:5]
    for folder in ("ref", "packed"):
        done = run("search", tmp_path / "query.npy", tmp_path / folder, "--top_k", 5, "--json", tmp_path / "hits.json")
        result = json.loads((tmp_path / "hits.json").read_text())
        names = features.load(tmp_path / "ref").names
        assert [hit["name"] for hit in result["hits"]] == [f"piece{row}.npy" for row in order]
        assert [hit["score"] for hit in result["hits"]] == pytest.approx(expected[order], abs=2e-6)
        assert [line.split()[2] for line in done.stdout.splitlines()[1:]] == [hit["name"] for hit in result["hits"]]
        assert set(names) == {f"piece{row}.npy" for row in range(40)}


def test_a_name_that_is_no_utf8_is_searched_and_printed(tmp_path):
    save(tmp_path / "ref", vectors(2))
    os.rename(tmp_path / "ref" / "piece1.npy", os.fsencode(tmp_path / "ref") + b"/caf\xe9.npy")
    run("pack", tmp_path / "ref", tmp_path / "packed")
    done = run("search", tmp_path / "ref" / "piece0.npy", tmp_path / "packed", "--json", tmp_path / "hits.json")
    assert "caf\\udce9.npy" in done.stdout
    hits = json.loads((tmp_path / "hits.json").read_text())["hits"]
    assert sorted(os.fsencode(hit["name"]) for hit in hits) == [b"caf\xe9.npy", b"piece0.npy"]


def test_search_for_more_than_there_is(tmp_path):
    save(tmp_path / "ref", vectors(3))
    done = run("search", tmp_path / "ref" / "piece0.npy", tmp_path / "ref", "--top_k", 10)
    assert len(done.stdout.splitlines()) == 4 and "fewer than the 10" in done.stderr


def test_a_skipped_reference_is_named_and_the_rest_searched(tmp_path):
    save(tmp_path / "ref", vectors(3))
    np.save(tmp_path / "ref" / "nan.npy", np.full((1, 24), np.nan, np.float32))
    done = run("search", tmp_path / "ref" / "piece0.npy", tmp_path / "ref", code=1)
    assert "piece0.npy" in done.stdout.splitlines()[1]
    assert "skipped" in done.stderr and "nan.npy: 24 values are NaN" in done.stderr


def test_metrics_pairs_by_path_and_ranks_as_brute_force(tmp_path):
    references, queries = vectors(30), vectors(30) + 4 * vectors(30, seed=9)
    save(
        tmp_path / "ref",
        references,
        [f"s{row % 4}/{row}.abc.npy" if row % 2 else f"s{row % 4}/{row}.npy" for row in range(30)],
    )
    save(tmp_path / "text", queries[:25], [f"s{row % 4}/{row}.npy" for row in range(25)])
    save(tmp_path / "text", queries[:1], ["elsewhere/0.npy"])
    done = run(
        "metrics", tmp_path / "text", tmp_path / "ref", "--ranks", tmp_path / "r.jsonl", "--json", tmp_path / "m.json"
    )
    score = cosine_matrix(queries[:25], references)
    expected = {row: int((score[row] >= score[row, row] - 1e-6).sum()) for row in range(25)}
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {int(Path(line["query"]).stem): line["rank"] for line in lines} == expected
    assert all(features.without_suffix(line["query"]) == features.without_suffix(line["reference"]) for line in lines)

    result, ranks = json.loads((tmp_path / "m.json").read_text()), np.array(list(expected.values()))
    assert result["measured"] == pytest.approx(
        {"MRR": (1 / ranks).mean(), "Hit@1": (ranks == 1).mean(), "Hit@10": (ranks <= 10).mean(), "Hit@100": 1.0}
        | {"median rank": np.median(ranks)}
    )
    assert ranks.max() > 1 and result["references"] == 30
    unpaired = result["without_partner"]
    assert unpaired[str(tmp_path / "text")] == ["elsewhere/0.npy"] and len(unpaired[str(tmp_path / "ref")]) == 5
    assert "elsewhere/0.npy" in done.stderr and "5 of" in done.stderr
    assert "25 queries, each with one partner among 30 pieces" in done.stdout


def test_score(tmp_path):
    first, second = vectors(8), vectors(8, seed=1) + 0.5
    save(tmp_path / "a", first), save(tmp_path / "b", second)
    done = run("score", tmp_path / "a", tmp_path / "b", "--frechet", "--json", tmp_path / "s.json")
    result = json.loads((tmp_path / "s.json").read_text())
    mean_cosine = cosine_matrix(first.mean(axis=0, keepdims=True), second.mean(axis=0, keepdims=True))[0, 0]
    assert result["cosine_of_means"] == pytest.approx(mean_cosine, abs=1e-6)
    assert f"{mean_cosine:.4f}" in done.stdout and f"{result['frechet_distance']:.4f}" in done.stdout

    run("score", tmp_path / "a", tmp_path / "b", "--pairwise", "--json", tmp_path / "s.json")
    result = json.loads((tmp_path / "s.json").read_text())
    diagonal = np.diag(cosine_matrix(first, second))
    assert [pair["score"] for pair in result["pairs"]] == pytest.approx(diagonal, abs=2e-6)
    assert result["mean"] == pytest.approx(diagonal.mean(), abs=1e-6)


def wrong_uses(tmp: Path) -> dict[str, tuple[list[str], str]]:
    save(tmp / "ref", vectors(3))
    save(tmp / "narrow", vectors(3, width=8))
    save(tmp / "doubles", vectors(2), ["piece0.abc.npy", "piece0.mtf.npy"])
    save(tmp / "others", vectors(2), ["x.npy", "y.npy"])
    (tmp / "empty").mkdir()
    save(tmp / "mixed", vectors(1))
    (tmp / "mixed" / "a.abc").write_text("X:1\n")
    (tmp / "bad").mkdir()
    (tmp / "bad" / "a.npy").write_bytes(b"")
    np.save(tmp / "temporal.npy", vectors(4)[None])
    np.save(tmp / "q.npy", vectors(1))
    return {
        "empty reference": (["search", "q.npy", "empty"], "no music, text or .npy file"),
        "music and features as reference": (["search", "q.npy", "mixed"], "a.abc"),
        "no reference": (["search", "q.npy", "nowhere"], "nowhere"),
        "only bad files": (["search", "q.npy", "bad"], "of its 1 file (.npy), none can be used"),
        "another width": (["search", "q.npy", "narrow"], "width 24"),
        "query missing": (["search", "no.npy", "ref"], "no.npy"),
        "query of unknown type": (["search", "q.pdf", "ref"], "q.pdf"),
        "temporal query": (["search", "temporal.npy", "ref"], "--normalize"),
        "top_k 0": (["search", "q.npy", "ref", "--top_k", "0"], "number from 1"),
        "nothing pairs": (["metrics", "ref", "others"], "no file of"),
        "doubles": (["metrics", "ref", "doubles"], "piece0.abc.npy and piece0.mtf.npy"),
        "doubles among queries": (["score", "doubles", "ref", "--pairwise"], "one piece"),
        "widths of two folders": (["score", "ref", "narrow"], "width 24"),
        "one piece only": (["score", "q.npy", "ref", "--frechet"], "two pieces"),
        "pack into itself": (["pack", "ref", "ref/packed"], "another folder"),
        "pack nothing": (["pack", "empty", "out"], "no .npy file"),
        "no command": ([], "required"),
    }


def test_wrong_use_is_said_in_one_line_and_exits_with_2(tmp_path, monkeypatch, capsys):
    cases = wrong_uses(tmp_path)
    monkeypatch.chdir(tmp_path)
    for case, (arguments, word) in cases.items():
        try:
            code = semantic_search.main(arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2 and word in error and "Traceback" not in error, (case, error)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_help_has_examples():
    assert "examples:" in run("--help").stdout
    assert "--top_k" in run("search", "--help").stdout
