"""Retrieval's numbers, and those that `semantic_search.py` reports, against values worked out by hand."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import features
import retrieval
import semantic_search
from files import InputError


def on_circle(*degrees: float, length: float = 1) -> np.ndarray:
    """Vectors of the plane, [n, 2]: their cosines are those of the angles between them."""
    angles = np.radians(degrees)
    return (length * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


@pytest.fixture(params=[0, 2, 3, 100])
def block_rows(request, monkeypatch):
    """References in memory at a time: blocks of every size, also ones that end with a partner. 0: less than one."""
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", request.param * 2 * 4)
    return request.param


@pytest.fixture(params=[1, 2, 256])
def query_block(request, monkeypatch):
    monkeypatch.setattr(retrieval, "QUERY_BLOCK", request.param)


# --- search and ranks -------------------------------------------------------------------------------------------------


def test_top_k_of_the_plane(block_rows, query_block):
    """Lengths do not matter; equal cosines come in the order of the rows."""
    references = on_circle(90, 10, 350, 10, 180, 45) * np.array([[1], [9], [1], [0.1], [5], [2]], np.float32)
    scores, rows = retrieval.top_k(on_circle(0, 45, 200, length=3), references, 4)
    assert rows.tolist()[1:] == [[5, 1, 3, 0], [4, 0, 2, 5]]
    assert set(rows[0][:3]) == {1, 2, 3} and rows[0][3] == 5  # 10 degrees to either side, up to rounding
    expected = [[10, 10, 10, 45], [0, 35, 35, 45], [20, 110, 150, 155]]
    np.testing.assert_allclose(scores, np.cos(np.radians(expected)), atol=1e-6)
    equal = np.tile(on_circle(30), (7, 1))
    for k in (7, 3, 1):  # also where the cut is among equal ones
        assert retrieval.top_k(on_circle(0), equal, k)[1].tolist() == [list(range(k))]
    assert retrieval.top_k(on_circle(0), equal[:3], 7)[1].tolist() == [[0, 1, 2]]


def test_ranks_of_the_plane(block_rows, query_block):
    """References at 0, 20, 50, 50 again and 90 degrees, of different lengths."""
    references = on_circle(0, 20, 50, 50, 90) * np.array([[1], [7], [0.2], [3], [1]], np.float32)
    queries = on_circle(1, 1, 1, 1, 1, 60, 60, 84, length=5)
    partners = np.array([0, 1, 2, 3, 4, 2, 1, 4])
    ranks, own = retrieval.ranks(queries, references, partners)
    assert ranks.tolist() == [1, 2, 4, 4, 5, 2, 4, 1]  # of 50 twice: the double is before it
    angles = [1, 19, 49, 49, 89, 10, 40, 6]
    np.testing.assert_allclose(own, [cosine(angle) for angle in angles], atol=1e-6)


@pytest.mark.parametrize(("difference", "rank"), [(0, 2), (3e-7, 2), (-3e-7, 2), (1e-5, 1), (-1e-5, 2)])
def test_cosines_that_rounding_may_make_differ_are_a_tie(difference, rank):
    """The partner is better by `difference`: at 90 degrees to the query, the cosine is the angle's distance to that."""
    references = np.array([[difference, 1], [0, 1]], np.float32)
    assert retrieval.ranks(np.array([[1, 0]], np.float32), references, np.array([0]))[0].tolist() == [rank]


def test_ranks_where_ties_favour_the_partner(block_rows, query_block):
    """Against sorted pairs of cosine and being the partner, as the published script sorts; many references are equal."""
    rng = np.random.default_rng(0)
    references = on_circle(*rng.choice([0, 15, 40, 90, 200], 30))
    queries, partners = on_circle(*rng.uniform(0, 360, 12)), rng.choice(30, 12, replace=False)
    expected = []
    for query, partner in zip(queries, partners, strict=True):
        cosines = [round(float(query @ reference), 5) for reference in references]
        order = sorted(range(30), key=lambda row: (cosines[row], row == partner), reverse=True)
        expected.append(order.index(partner) + 1)
    ranks, own = retrieval.ranks(queries, references, partners, ties_first=False)
    assert ranks.tolist() == expected
    last, same = retrieval.ranks(queries, references, partners)
    assert np.array_equal(own, same)
    equal = [sum(np.array_equal(one, references[partner]) for one in references) for partner in partners]
    assert (last - ranks + 1).tolist() == equal and max(equal) > 3


@pytest.mark.parametrize("bad", [[0, 0], [np.nan, 1], [np.inf, 1]])
def test_rows_without_a_direction_are_named_by_their_number(block_rows, bad):
    references, query = on_circle(0, 1, 2, 3, 4), on_circle(0)
    references[3] = bad
    for call in (
        lambda: retrieval.top_k(query, references, 2),
        lambda: retrieval.ranks(query, references, np.array([0])),
        lambda: retrieval.unit(references),
        lambda: retrieval.cosines(references, references),
    ):
        with pytest.raises(InputError, match="row 3 of"):
            call()


# --- measures ---------------------------------------------------------------------------------------------------------


def test_measures_at_the_edges_of_the_hits():
    ranks = [1, 1, 9, 10, 11, 99, 100, 101]
    assert retrieval.measures(np.array(ranks)) == pytest.approx(
        {
            "MRR": (2 + 1 / 9 + 1 / 10 + 1 / 11 + 1 / 99 + 1 / 100 + 1 / 101) / 8,
            "Hit@1": 2 / 8,
            "Hit@10": 4 / 8,
            "Hit@100": 7 / 8,
            "median rank": 10.5,
        }
    )
    assert retrieval.measures(np.array([3, 1, 50]))["median rank"] == 3


@pytest.mark.parametrize(
    ("n", "hits", "median"), [(1, (1, 1, 1), 1), (4, (1 / 4, 1, 1), 2.5), (400, (1 / 400, 1 / 40, 1 / 4), 200.5)]
)
def test_chance_of_a_few_references(n, hits, median):
    expected = {"MRR": sum(1 / rank for rank in range(1, n + 1)) / n, "median rank": median}
    expected |= dict(zip(("Hit@1", "Hit@10", "Hit@100"), hits, strict=True))
    assert retrieval.chance(n) == pytest.approx(expected)


@pytest.mark.parametrize("partners", [[1], [2], [3, 1], [1, 2, 2, 5], [6]])
def test_chance_of_several_partners(partners):
    """Of every set of places that the partners can have among 6, the first one."""
    n, ranks = 6, []
    times = math.lcm(*(math.comb(n, m) for m in partners))
    for m in partners:
        places = list(itertools.combinations(range(1, n + 1), m))
        ranks += [min(place) for place in places] * (times // len(places))
    expected = retrieval.measures(np.array(ranks))
    assert retrieval.chance(n, partners) == pytest.approx(expected)


def test_the_best_of_several_partners():
    """Queries at 0 and 50 degrees, references at 3, 10, 10 again, 60, 61 and 200; three partners and two."""
    references, queries = on_circle(3, 10, 10, 60, 61, 200), on_circle(0, 50)
    rows, partners = np.array([0, 0, 0, 1, 1]), np.array([5, 2, 1, 0, 4])
    ranks, own = retrieval.ranks(queries[rows], references, partners)
    best, ranks = retrieval.best_of_several(rows, ranks, own)
    assert ranks.tolist() == [2, 2]  # 10 twice: the two are partners both, and one does not rank before the other
    assert partners[best].tolist() in ([2, 4], [1, 4])
    alone = retrieval.ranks(queries, references, np.array([1, 4]))[0]
    assert alone.tolist() == [3, 2]


# --- two sets ---------------------------------------------------------------------------------------------------------


def test_cosine_of_means_is_of_the_vectors_as_they_are():
    """Means of (3, 0) and (0, 1), and of three vectors: longer vectors count for more."""
    first = np.array([[3, 0], [0, 1]], np.float32)
    second = np.array([[0, 2], [0, 4], [0, 3]], np.float32)
    assert retrieval.cosine_of_means(first, second) == pytest.approx(0.5 / math.hypot(1.5, 0.5))
    assert retrieval.cosine_of_means(second, first) == pytest.approx(0.5 / math.hypot(1.5, 0.5))


def with_moments(mean: list[float], deviations: list[float], times: int) -> np.ndarray:
    """Vectors whose mean and sample covariance, a diagonal, are exactly the given ones."""
    width = len(mean)
    rows = np.concatenate([np.eye(width), -np.eye(width)] * times)  # variance of each: 2 * times / (n - 1)
    unbiased = math.sqrt((len(rows) - 1) / (2 * times))
    return np.array(mean) + rows * np.array(deviations) * unbiased


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_frechet_distance_of_known_gaussians(monkeypatch, rows):
    """Of diagonal covariances: |m1 - m2|² and the sum of (s1 - s2)²."""
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", rows * 3 * 8)
    first = with_moments([1, 2, 3], [1, 2, 0.5], times=1)
    second = with_moments([1, 5, 7], [3, 0.5, 0.5], times=4)
    expected = 9 + 16 + 4 + 2.25 + 0
    assert retrieval.frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert retrieval.frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_gaussians_that_do_not_commute():
    """Turned by 90 degrees the covariances diag(9, 1) and diag(1, 9) give 4 + 4; turned by 45, it is worked out from
    the eigenvalues of C1 C2: for 2 x 2, tr (C1 C2)^½ is the root of tr(C1 C2) + 2 sqrt(det(C1 C2))."""
    first = with_moments([0, 0], [3, 1], times=2)
    for degrees in (0, 45, 90):
        turn = np.concatenate([on_circle(degrees), on_circle(degrees + 90)]).astype(np.float64)
        c1, c2 = np.diag([9.0, 1.0]), turn.T @ np.diag([9.0, 1.0]) @ turn
        expected = 10 + 10 - 2 * math.sqrt(np.trace(c1 @ c2) + 2 * math.sqrt(np.linalg.det(c1 @ c2)))
        assert retrieval.frechet_distance(first, first @ turn) == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(8)


def test_frechet_distance_of_two_pieces_is_never_negative():
    for seed in range(20):
        some = np.random.default_rng(seed).standard_normal((2, 50)).astype(np.float32)
        assert 0 <= retrieval.frechet_distance(some, some[::-1]) < 1e-9
    with pytest.raises(InputError, match="there are 1 and 2"):
        retrieval.frechet_distance(some[:1], some)
    with pytest.raises(InputError, match="there are 2 and 1"):
        retrieval.frechet_distance(some, some[:1])


# --- what semantic_search.py reports ----------------------------------------------------------------------------------


def save(folder: Path, named: dict[str, float]) -> Path:
    """A feature on the circle for each name and angle."""
    for number, (name, degrees) in enumerate(named.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, on_circle(degrees, length=1 + number))
    return folder


def main(*given: object) -> int:
    return semantic_search.main([str(word) for word in given])


def test_every_number_of_metrics(tmp_path, capsys):
    """Four queries of which one has no partner, among five references of which two have none."""
    queries = save(tmp_path / "q", {"a.npy": 0, "b.npy": 31, "c.npy": 52, "lonely.npy": 5})
    references = save(tmp_path / "r", {"a.abc.npy": 2, "b.npy": 70, "c.mtf.npy": 90, "0.npy": 50, "y.npy": 60})
    assert main("metrics", queries, references, "--json", tmp_path / "m.json", "--ranks", tmp_path / "r.jsonl") == 0
    # distances of a to its partner: 2, the least; of b: 39, behind 29, 19 and 29; of c: 38, behind 2, 8 and 18
    expected = {"MRR": (1 + 1 / 4 + 1 / 4) / 3, "Hit@1": 1 / 3, "Hit@10": 1, "Hit@100": 1, "median rank": 4}
    by_chance = {
        "MRR": (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5,
        "Hit@1": 0.2,
        "Hit@10": 1,
        "Hit@100": 1,
        "median rank": 3,
    }
    result = json.loads((tmp_path / "m.json").read_text())
    assert (result["queries"], result["references"]) == (3, 5)
    assert result["measured"] == pytest.approx(expected) and result["by_chance"] == pytest.approx(by_chance)
    assert result["protocol"].startswith("candidates: all references; ties: the partner ranks last")
    assert result["made_with"] == {str(queries): {}, str(references): {}}
    # Of ranks 1, 4 and 4, three are drawn: no 1 in 8/27 of the samples, only 1 in 1/27.
    intervals = {"MRR": [0.25, 1], "Hit@1": [0, 1], "Hit@10": [1, 1], "Hit@100": [1, 1], "median rank": [1, 4]}
    assert result["intervals"] == {name: pytest.approx(interval) for name, interval in intervals.items()}
    assert result["without_partner"] == {str(queries): ["lonely.npy"], str(references): ["0.npy", "y.npy"]}
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["query"], line["reference"], line["rank"]) for line in lines] == [
        ("a.npy", "a.abc.npy", 1),
        ("b.npy", "b.npy", 4),
        ("c.npy", "c.mtf.npy", 4),
    ]
    assert [line["score"] for line in lines] == pytest.approx([cosine(2), cosine(39), cosine(38)], abs=1e-6)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "3 queries, each with one partner among 5 pieces",
        "              measured       95 % interval  by chance",
        "MRR             0.5000    [0.2500, 1.0000]     0.4567",
        "Hit@1           0.3333    [0.0000, 1.0000]     0.2000",
        "Hit@10          1.0000    [1.0000, 1.0000]     1.0000",
        "Hit@100         1.0000    [1.0000, 1.0000]     1.0000",
        "median rank        4.0          [1.0, 4.0]        3.0",
    ]
    assert f"1 of {queries} have no partner:" in printed.err and f"2 of {references} have no partner:" in printed.err


def test_intervals_of_metrics_are_of_queries_drawn_with_replacement(tmp_path, monkeypatch):
    """Of 40 queries 2 are hits: of as many drawn, from none to 5 in 95 % of the samples, by the binomial distribution."""
    names = {f"{number}.npy": number for number in range(40)}
    queries, references = save(tmp_path / "q", names), save(tmp_path / "r", names)
    given = np.array([1] * 2 + [20] * 38), np.ones(40, np.float32)
    monkeypatch.setattr(retrieval, "ranks", lambda *_, **__: given)
    assert main("metrics", queries, references, "--json", tmp_path / "m.json") == 0
    found = json.loads((tmp_path / "m.json").read_text())["intervals"]
    assert found["Hit@1"] == pytest.approx(stats.binom.ppf([0.025, 0.975], 40, 0.05) / 40, abs=0.026)
    assert found["Hit@1"][1] > 4 / 40 - 1e-9


def test_metrics_as_the_published_script_has_them(tmp_path, capsys):
    """References without a partner are no candidates, and b, which equals a, is no better than it."""
    queries = save(tmp_path / "q", {"a.npy": 0, "b.npy": 1, "c.npy": 50, "lonely.npy": 5})
    references = save(tmp_path / "r", {"0.npy": 1, "a.npy": 10, "b.npy": 10, "c.npy": 80, "y.npy": 60})
    assert main("metrics", queries, references, "--published", "--json", tmp_path / "m.json") == 0
    result = json.loads((tmp_path / "m.json").read_text())
    assert (result["queries"], result["references"]) == (3, 3) and result["protocol"].startswith("published: ")
    # c is 30 away from its partner, and 40 from a and b
    assert result["measured"]["MRR"] == 1 and result["by_chance"]["Hit@1"] == pytest.approx(1 / 3)
    assert main("metrics", queries, references, "--ranks", tmp_path / "r.jsonl") == 0
    ranks = [json.loads(line)["rank"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert ranks == [3, 3, 2]  # behind 0 and the other of a and b; behind y
    assert main("metrics", queries, references, "--published", "--ranks", tmp_path / "r.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["reference"], line["rank"]) for line in lines] == [("a.npy", 1), ("b.npy", 1), ("c.npy", 1)]
    with pytest.raises(SystemExit):
        main("metrics", queries, references, "--published", "--several")
    assert "not allowed with" in capsys.readouterr().err


def test_several_files_of_a_name(tmp_path, capsys):
    """Three texts of a, of which two have a number; b with two pieces of music; and c, whose number has three digits."""
    queries = save(tmp_path / "q", {"a.1.txt.npy": 0, "a.2.npy": 20, "a.npy": 48, "s/b.npy": 85, "c.123.npy": 140})
    references = save(tmp_path / "r", {"a.npy": 10, "s/b.1.npy": 60, "s/b.20.npy": 80, "c.npy": 125, "b.npy": 50})
    assert main("metrics", queries, references, "--several", "--ranks", tmp_path / "r.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {line["query"]: (line["reference"], line["rank"]) for line in lines} == {
        "a.1.txt.npy": ("a.npy", 1),
        "a.2.npy": ("a.npy", 1),
        "a.npy": ("a.npy", 4),  # 38 away, behind 2, 12 and 32
        "c.123.npy": ("c.npy", 1),
        "s/b.npy": ("s/b.20.npy", 1),
    }
    printed = capsys.readouterr()
    by_chance = (4 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5 + (4 + 3 / 2 + 2 / 3 + 1 / 4) / 10) / 5
    assert printed.out.splitlines()[0] == "5 queries, each with their partners among 5 pieces"
    # Drawn are names: a, of ranks 1, 1 and 4, three times in 1/27 of the samples, and never in 8/27.
    interval = ["[0.7500,", "1.0000]"]
    assert printed.out.splitlines()[2].split() == ["MRR", f"{(4 + 1 / 4) / 5:.4f}", *interval, f"{by_chance:.4f}"]
    assert printed.err.splitlines()[1:] == [f"1 of {references} have no partner:", "  b.npy"]
    assert main("metrics", queries, references) == 0  # without it, a.npy has a partner and the numbers are names
    assert capsys.readouterr().out.startswith("1 query, each with one partner")


def test_many_queries_one_after_the_other(tmp_path, capsys, monkeypatch):
    """Each line has its answer, in order; a line that cannot be used costs itself alone."""
    folder = save(tmp_path / "r", {"far.npy": 100, "near.npy": 3, "sub/middle.npy": 50})
    for name, degrees in (("q0", 0), ("q99", 99)):
        np.save(tmp_path / f"{name}.npy", on_circle(degrees))
    np.save(tmp_path / "wide.npy", np.ones((1, 7), np.float32))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queries.txt").write_bytes("\ufeffq0.npy\r\n\nü.npy\nwide.npy\nq99.npy".encode())
    assert main("search", "--queries", "queries.txt", folder, "--top_k", 2, "--json", "h.json") == 1
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [answer["query"] for answer in answers] == ["q0.npy", "", "ü.npy", "wide.npy", "q99.npy"]
    hits = [[hit["name"] for hit in answer.get("hits", [])] for answer in answers]
    assert hits == [["near.npy", "sub/middle.npy"], [], [], [], ["far.npy", "sub/middle.npy"]]
    assert [hit["score"] for hit in answers[4]["hits"]] == pytest.approx([cosine(1), cosine(49)], abs=1e-6)
    problems = ["the query is empty", "ü.npy: not a readable", "wide.npy has width 7"]
    assert all(problem in answer["error"] for problem, answer in zip(problems, answers[1:4], strict=True))
    assert "3 lines of queries.txt without an answer:" in printed.err and "line 3: ü.npy" in printed.err
    assert json.loads((tmp_path / "h.json").read_text())["queries"] == answers
    for content, problem in ((b"", "empty; it holds"), (b"\xff", "not UTF-8"), (b"no.npy\n", "of its 1 line, none")):
        (tmp_path / "queries.txt").write_bytes(content)
        assert main("search", "--queries", "queries.txt", folder) == 2
        assert problem in capsys.readouterr().err
    assert main("search", "--queries", "queries.txt", folder, "--html", "h.html") == 2
    capsys.readouterr()
    assert main("search", folder, "--queries", "queries.txt") == 2
    assert "r: a folder; the file of queries comes first" in capsys.readouterr().err


def test_every_number_of_score(tmp_path, capsys):
    """Pairs at 10, 20 and 60 degrees, in folders with a piece more."""
    first = save(tmp_path / "a", {"a.npy": 0, "b.npy": 90, "c.npy": 40, "more.npy": 20})
    second = save(tmp_path / "b", {"a.npy": 10, "b.npy": 70, "c.npy": 100, "0.npy": 1, "third.npy": 2})
    assert main("score", first, second, "--pairwise", "--json", tmp_path / "s.json") == 0
    values = [cosine(10), cosine(20), cosine(60)]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
    result = json.loads((tmp_path / "s.json").read_text())
    assert [pair["score"] for pair in result["pairs"]] == pytest.approx(values, abs=1e-6)
    assert [(pair["reference"], pair["test"]) for pair in result["pairs"]] == [(f"{n}.npy", f"{n}.npy") for n in "abc"]
    assert (result["mean"], result["standard_deviation"]) == pytest.approx((mean, deviation), abs=1e-6)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [f"{value:7.4f}  {name}.npy" for name, value in zip("abc", values, strict=True)]
    assert printed[3] == f"cosine of 3 pairs: mean {mean:.4f}, standard deviation {deviation:.4f}"

    assert main("score", first, second, "--frechet", "--json", tmp_path / "s.json") == 0
    means = [
        sum((np.load(path)[0].astype(float) for path in folder.iterdir()), np.zeros(2)) for folder in (first, second)
    ]
    expected = means[0] @ means[1] / math.hypot(*means[0]) / math.hypot(*means[1])
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["cosine_of_means"] == pytest.approx(expected, abs=1e-6)
    assert capsys.readouterr().out.splitlines() == [
        f"cosine of the mean features of 4 and 5 pieces: {expected:.4f}",
        f"Fréchet distance: {result['frechet_distance']:.4f}",
    ]


def test_a_frechet_distance_is_of_all_pieces_beside_pairs_too(tmp_path):
    first = save(tmp_path / "a", {"a.npy": 0, "b.npy": 90, "more.npy": 20})
    second = save(tmp_path / "b", {"0.npy": 1, "a.npy": 10, "b.npy": 70, "third.npy": 2})
    expected = retrieval.frechet_distance(*(features.load(folder).matrix for folder in (first, second)))
    for option in ("--pairwise", "--frechet"):  # the second time twice the same
        assert main("score", first, second, option, "--frechet", "--json", tmp_path / "s.json") == 0
        assert json.loads((tmp_path / "s.json").read_text())["frechet_distance"] == pytest.approx(expected)


def test_every_number_of_search(tmp_path, capsys):
    folder = save(tmp_path / "r", {"far.npy": 100, "near.npy": 3, "sub/middle.npy": 50})
    np.save(tmp_path / "q.npy", on_circle(0))
    np.save(folder / "bad.npy", np.zeros((1, 2), np.float32))
    assert main("search", tmp_path / "q.npy", folder, "--top_k", 3, "--json", tmp_path / "h.json") == 1
    result = json.loads((tmp_path / "h.json").read_text())
    assert [(hit["rank"], hit["name"]) for hit in result["hits"]] == [
        (1, "near.npy"),
        (2, "sub/middle.npy"),
        (3, "far.npy"),
    ]
    assert [hit["score"] for hit in result["hits"]] == pytest.approx([cosine(3), cosine(50), cosine(100)], abs=1e-6)
    assert result["skipped"] == {str(folder): [f"{folder}/bad.npy: all zeros, which is similar to nothing"]}
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:] == [
        f"   1  {cosine(3):.4f}  near.npy",
        f"   2  {cosine(50):.4f}  sub/middle.npy",
        f"   3  {cosine(100):.4f}  far.npy",
    ]
    assert "fewer than" not in printed.err


# --- features.py ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [19, 20, 21, 50])
def test_a_report_names_the_first_and_counts_all(capsys, count):
    features.report("left out", [f"entry {number}" for number in range(count)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{count} left out:"
    assert lines[1:21] == [f"  entry {number}" for number in range(min(count, 20))]
    assert lines[21:] == ([f"  ... and {count - 20} more (--json FILE names them all)"] if count > 20 else [])
    features.report("left out", [])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("count", [1, 9, 10])
def test_a_pack_of_any_number_of_rows(tmp_path, count):
    save(tmp_path / "in", {f"{number}.npy": 7 * number for number in range(count)})
    (tmp_path / "in" / "3.5.npy").write_bytes(b"bad")
    packed = features.pack(tmp_path / "in", tmp_path / "out")
    assert packed.names == [f"{number}.npy" for number in range(count)] and len(packed.skipped) == 1
    expected = [on_circle(7 * number, length=1 + number)[0] for number in range(count)]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "features.npy"), expected)
    assert features.load(tmp_path / "in").matrix.shape == (count, 2)  # no row for what was skipped
    with pytest.raises(InputError, match="packed already"):
        features.pack(tmp_path / "out", tmp_path / "again")
    np.save(tmp_path / "out" / "features.npy", np.zeros((count, 2)))  # float64
    with pytest.raises(InputError, match="damaged"):
        features.load(tmp_path / "out")
    np.save(tmp_path / "out" / "features.npy", np.zeros((0, 2), np.float32))
    (tmp_path / "out" / "names.json").write_text("[]")
    with pytest.raises(InputError, match="damaged: 0 names"):
        features.load(tmp_path / "out")


def test_half_a_pack_is_no_pack(tmp_path):
    save(tmp_path, {"features.npy": 5})
    assert not features.is_packed(tmp_path)
    (tmp_path / "features.npy").rename(tmp_path / "a.npy")
    (tmp_path / "names.json").write_text("[]")
    assert not features.is_packed(tmp_path)


@pytest.mark.parametrize("lengths", [(1, 3, 7)])
def test_a_mean_over_time_is_of_each_piece_alone(tmp_path, lengths):
    for length in lengths:
        np.save(tmp_path / f"{length}.npy", np.arange(2 * length, dtype=np.float32).reshape(1, length, 2) + 1)
    loaded = features.load(tmp_path, mean_over_time=True)
    assert loaded.matrix.tolist() == [[length, length + 1] for length in lengths]  # of 1, 3, 5 ... and 2, 4, 6 ...
    with pytest.raises(InputError, match="of its 3 files"):
        features.load(tmp_path)
    with pytest.raises(InputError, match=r"of its 3 files.*--normalize"):
        features.pack(tmp_path, tmp_path.with_name("packed"))


def test_values_that_are_no_numbers_are_counted(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, np.nan, np.inf, 2, -np.inf, 1e300]]))
    with pytest.raises(InputError, match=r"a\.npy: 4 values are NaN or infinite"):
        features.read(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(1, 0), (1, 0, 4), (1, 4, 0), (0, 4)])
def test_an_array_without_a_number_is_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"a\.npy: shape"):
        features.read(tmp_path / "a.npy")
