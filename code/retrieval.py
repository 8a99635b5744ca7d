"""Exact cosine search, ranks and their measures, and distances between two sets of features.

Q queries, N references, H width. Matrices are float32 and may be memory-mapped: they are processed in blocks.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from files import InputError

BLOCK_BYTES = 64 << 20  # of references in memory at a time
QUERY_BLOCK = 256  # queries compared with a block of references at a time
TIE = 1e-6  # cosines closer than this tie: float32 rounding separates equal vectors by as much
HITS = (1, 10, 100)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [Q, H] to length 1. Raises InputError for a vector without a direction."""
    return vectors / _norms(vectors, 0)[:, None]


def top_k(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` references (or all, if fewer) of highest cosine to each query.

    Returns cosines and row numbers, [Q, k] each, best first; equal cosines by row number.
    """
    _same_width(queries, references)
    queries, k = unit(queries), min(k, len(references))
    scores = np.zeros((len(queries), 0), np.float32)  # [Q, up to k], of the blocks so far
    rows = np.zeros((len(queries), 0), np.int64)
    for start, block, norms in _blocks(references):
        parts = [_best(queries[some] @ block.T / norms, k) for some in _chunks(len(queries))]
        new_scores, new_rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        scores = np.concatenate([scores, new_scores], axis=1)
        rows = np.concatenate([rows, new_rows + start], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return scores, rows


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Select the `k` highest scores of each row of [q, n], of equal ones the first, in no order, and their columns."""
    if scores.shape[1] <= k:
        return scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    columns = np.argpartition(scores, -k, axis=1)[:, -k:]
    lowest = np.take_along_axis(scores, columns, axis=1).min(1, keepdims=True)
    for row in np.flatnonzero((scores >= lowest).sum(1) > k):  # others are equal to the lowest selected one
        columns[row] = np.argsort(-scores[row], kind="stable")[:k]
    return np.take_along_axis(scores, columns, axis=1), columns


def ranks(
    queries: np.ndarray, references: np.ndarray, partners: np.ndarray, ties_first: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Rank (from 1) each query's partner among all references. Returns ranks and partners' cosines, [Q] each.

    `partners` [Q] holds row numbers of `references`. References that tie with the partner rank before it, or behind it
    if not `ties_first`.
    """
    _same_width(queries, references)
    queries = unit(queries)
    own = cosines(queries, references[partners])  # [Q]
    least = own - np.float32(TIE) if ties_first else own + np.float32(TIE)  # of a reference that ranks before it
    result = np.ones(len(queries), np.int64)
    for start, block, norms in _blocks(references):
        for some in _chunks(len(queries)):
            scores = queries[some] @ block.T / norms  # [q, n]
            here = np.flatnonzero((partners[some] >= start) & (partners[some] < start + len(block)))
            scores[here, partners[some][here] - start] = -np.inf  # the partner does not rank before itself
            result[some] += np.count_nonzero(scores >= least[some, None], axis=1)
    return result, own


def best_of_several(queries: np.ndarray, rank: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank the best partner of queries that have several; the other partners do not rank before it.

    Args:
        queries: the query's number of each pair of query and partner, [P]; `rank` and `own` [P]: see `ranks`.
    Returns the pairs of the best partners, and their ranks, [Q] each, by the queries' numbers.
    """
    order = np.lexsort((-own, queries))
    _, first, group = np.unique(queries[order], return_index=True, return_inverse=True)
    best = order[first]
    ties = own[order] >= own[best][group] - np.float32(TIE)
    return best, rank[best] - (np.bincount(group, ties).astype(np.int64) - 1)


def measures(rank: np.ndarray) -> dict[str, float]:
    """Compute mean reciprocal rank, share of ranks up to 1, 10 and 100, and median rank; ranks begin at 1."""
    rank = np.asarray(rank)
    hits = {f"Hit@{k}": float(np.mean(rank <= k)) for k in HITS}
    return {"MRR": float(np.mean(1 / rank))} | hits | {"median rank": float(np.median(rank))}


def chance(n: int, partners: Sequence[int] | np.ndarray = (1,)) -> dict[str, float]:
    """Compute the measures expected of a random order of `n` references, with so many `partners` of each query."""
    rank = np.arange(1, n + 1)
    later = np.zeros(n + 1)  # later[r]: probability that no partner is among the first r
    for count, times in zip(*np.unique(partners, return_counts=True), strict=True):
        free = n - np.arange(n + 1)[:, None] - np.arange(count)  # [n + 1, count]
        later += times / len(partners) * np.prod(np.maximum(free, 0) / (n - np.arange(count)), axis=1)
    hits = {f"Hit@{k}": round(float(1 - later[min(k, n)]), 12) for k in HITS}
    medians = [rank[np.argmax(1 - later[1:] >= half)] for half in (0.5 - 1e-9, 0.5 + 1e-9)]  # two, of an even number
    return {"MRR": float(-np.diff(later) @ (1 / rank))} | hits | {"median rank": float(np.mean(medians))}


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the cosine [N] of each row of [N, H] with the same row of another [N, H]."""
    _same_width(first, second)
    return np.einsum("nh,nh->n", unit(first), unit(second))


def cosine_of_means(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the cosine of the mean vectors of two sets, [N, H] and [M, H]."""
    _same_width(first, second)
    means = [unit(features.mean(axis=0, dtype=np.float64, keepdims=True)) for features in (first, second)]
    return float(means[0][0] @ means[1][0])


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the Fréchet distance of two sets, [N, H] and [M, H], as Gaussians of their means and covariances.

    Both sets need two pieces or more; with fewer than H pieces the covariances are of low rank and the distance is
    biased upwards, so compare sets of equal size.
    """
    _same_width(first, second)
    if min(len(first), len(second)) < 2:
        raise InputError(
            f"a Fréchet distance needs two pieces in each folder; there are {len(first)} and {len(second)}"
        )
    return frechet_of_gaussians(*gaussian(first), *gaussian(second))


def frechet_of_gaussians(mean1: np.ndarray, root1: np.ndarray, mean2: np.ndarray, root2: np.ndarray) -> float:
    """Compute |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1 C2)^½)   (Heusel et al., arXiv 1706.08500)

    A root R of a covariance, [any, H], has RᵀR = C. The last trace is the sum of the singular values of R1 R2ᵀ.
    """
    spread = np.sum(root1**2) + np.sum(root2**2) - 2 * np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    return float(np.sum((mean1 - mean2) ** 2) + max(spread, 0.0))


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean [H] and root [H, H] of the sample covariance, in float64."""
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((mean.size, mean.size))
    for _, block, _ in _blocks(features):
        centred = block - mean
        covariance += centred.T @ centred
    return mean, root(covariance / (len(features) - 1))


def root(covariance: np.ndarray) -> np.ndarray:
    """Compute the square root [H, H] of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    values[values < values.max() * values.size * np.finfo(np.float64).eps] = 0  # rounding errors of zeros
    return (vectors * np.sqrt(values)) @ vectors.T


def _blocks(matrix: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield all rows in blocks: (number of the first row, rows [n, H], their norms [n])."""
    rows = max(1, BLOCK_BYTES // (matrix.shape[1] * matrix.itemsize))
    for start in range(0, len(matrix), rows):
        block = np.asarray(matrix[start : start + rows])
        yield start, block, _norms(block, start)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(first, first + QUERY_BLOCK) for first in range(0, count, QUERY_BLOCK))


def _norms(vectors: np.ndarray, start: int) -> np.ndarray:
    norms = np.sqrt(np.einsum("nh,nh->n", vectors, vectors))
    bad = np.flatnonzero(~((norms > 0) & np.isfinite(norms)))
    if bad.size:
        raise InputError(f"row {start + bad[0]} of the features is zero, NaN or infinite: it has no direction")
    return norms


def _same_width(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape[1] != second.shape[1]:
        raise InputError(f"widths {first.shape[1]} and {second.shape[1]}: features of one model can be compared")
