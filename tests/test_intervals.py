"""Bootstrap intervals: of binomial counts, of groups, and how often they hold the true value."""

import numpy as np
import pytest
from scipy import stats

import intervals
import retrieval


def mean_of(values):
    return lambda counts: {"mean": counts @ values / counts.sum()}


def test_an_interval_of_a_share_is_that_of_the_binomial_distribution():
    """12 hits of 40, drawn anew: the hits of a sample are binomial."""
    values = np.repeat([1.0, 0.0], [12, 28])
    found = intervals.of_groups(mean_of(values), list(range(40)), np.random.default_rng(0))
    assert list(found) == ["mean"]
    assert found["mean"] == pytest.approx(stats.binom.ppf([0.025, 0.975], 40, 0.3) / 40, abs=0.026)  # one hit


def test_items_of_a_group_are_drawn_together():
    """Nine files of each of 40 pieces say no more than one of each; as pieces of their own they would seem to."""
    values = np.repeat([1.0, 0.0], [12, 28])
    single = intervals.of_groups(mean_of(values), list(range(40)), np.random.default_rng(0))
    nine, names = np.repeat(values, 9), [f"piece {number}" for number in range(40) for _ in range(9)]
    assert intervals.of_groups(mean_of(nine), names, np.random.default_rng(0)) == single
    low, high = intervals.of_groups(mean_of(nine), list(range(360)), np.random.default_rng(0))["mean"]
    assert (high - low) * 3 == pytest.approx(single["mean"][1] - single["mean"][0], rel=0.15)


def test_how_often_an_interval_holds_the_true_value(monkeypatch):
    """The MRR of 60 queries of a population whose ranks are known: 95 % of 200 intervals, give or take 4 %."""
    monkeypatch.setattr(intervals.bootstrap, "__defaults__", (200,))  # instead of BOOTSTRAPS, for speed
    ranks, shares, rng = np.array([1, 2, 5, 100]), [0.3, 0.2, 0.3, 0.2], np.random.default_rng(0)
    true, hits = (1 / ranks) @ shares, 0
    for _ in range(200):
        drawn = 1 / rng.choice(ranks, 60, p=shares)
        low, high = intervals.of_groups(mean_of(drawn), list(range(60)), rng)["mean"]
        hits += low <= true <= high
    assert 0.91 <= hits / 200 <= 0.985


def test_intervals_of_all_measures_of_retrieval_at_once():
    """Two queries of ranks 1 and 20: both, or one of them twice, in 1/2, 1/4 and 1/4 of the samples."""
    rank = np.array([1, 20])
    found = intervals.of_groups(
        lambda counts: retrieval.measures(np.repeat(rank, counts)), ["a", "b"], np.random.default_rng(0)
    )
    expected = {"MRR": [0.05, 1], "Hit@1": [0, 1], "Hit@10": [0, 1], "Hit@100": [1, 1], "median rank": [1, 20]}
    assert found == {name: pytest.approx(interval) for name, interval in expected.items()}
