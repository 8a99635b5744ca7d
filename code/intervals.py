"""95 % intervals of measures by the bootstrap: the pieces that a measure is of are drawn anew."""

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

BOOTSTRAPS = 1000
QUANTILES = [0.025, 0.975]


def bootstrap(statistic: Callable, n: int, rng: np.random.Generator, times: int = BOOTSTRAPS) -> list:
    """Compute a statistic of how often each of n pieces is drawn, int [n], for `times` bootstrap samples."""
    samples = tqdm(range(times), "95 % intervals", unit="sample", delay=2, disable=None, leave=False)
    return [statistic(rng.multinomial(n, np.full(n, 1 / n))) for _ in samples]


def measure(statistic: Callable, n: int, rng: np.random.Generator) -> dict:
    """Compute a statistic as in `bootstrap`, each piece drawn once, and its 95 % interval (percentiles)."""
    interval = np.quantile(bootstrap(statistic, n, rng), QUANTILES).tolist()
    return {"value": float(statistic(np.ones(n, int))), "interval": interval}


def measure_biased(
    statistic: Callable, n: int, rng: np.random.Generator, low: float, high: float, times: int = BOOTSTRAPS
) -> dict:
    """Compute what `measure` does of a statistic, between `low` and `high`, that a finite sample shifts.

    Drawing pieces anew shifts it once more. Thus the interval is 1.96 standard deviations of the bootstrap to either
    side of the value, and not its percentiles.
    """
    value = float(statistic(np.ones(n, int)))
    margin = 1.96 * np.std(bootstrap(statistic, n, rng, times), ddof=1)
    return {"value": value, "interval": np.clip([value - margin, value + margin], low, high).tolist()}


def of_groups(
    statistic: Callable[[np.ndarray], dict[str, float]], groups: list, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Compute the 95 % interval (percentiles) of each of several measures.

    Args:
        statistic: computes the measures from how often each of n items is drawn, int [n].
        groups: the group of each item, n of them; the items of a group are drawn together.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of = np.array([numbers[group] for group in groups])  # [n]
    drawn = bootstrap(lambda counts: statistic(counts[group_of]), len(numbers), rng)
    return {name: np.quantile([values[name] for values in drawn], QUANTILES).tolist() for name in drawn[0]}
