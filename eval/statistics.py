"""Intervals and paired tests for scores.

    low, high, method = interval(values, clusters, "mean")
    difference, low, high, p = paired_bootstrap(values_a, values_b, clusters)

Items that share a picture, a video or a circular group form a cluster and are resampled together: their answers are
alike, and to count them one by one would promise more than they tell. All intervals are of 95 %. Nothing here depends
on anything but its arguments; the same values give the same interval.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.95
DRAWS = 1000  # of an interval
SEED = 0  # of the bootstrap; nothing else in an evaluation is drawn
Aggregation = str | Callable[[list], float]  # "mean", or a function of all items' values


def wilson(right: int, total: int) -> tuple[float, float]:
    """Interval of a proportion, in 0..1 (Wilson 1927). Raises ValueError unless 0 <= right <= total and total >= 1."""
    low, high = binomtest(int(right), int(total)).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p value that A and B are right equally often (McNemar 1947, by the binomial distribution).

    only_a, only_b: how many items only A, and only B, has right. Without any, p is 1.
    """
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values that hold for all tests together (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


# ------------------------------------------------------------------------------------------------ bootstrap


def members_of(clusters: Sequence) -> list[np.ndarray]:
    """The items of each cluster, as indices; clusters in order of their names, so that the items' order is no matter."""
    _, codes = np.unique([str(cluster) for cluster in clusters], return_inverse=True)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def drawn_clusters(count: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """For each draw the indices of `count` clusters, with replacement."""
    rng = np.random.default_rng(seed)
    return (rng.integers(count, size=count) for _ in range(draws))


def regrouped(value: Any, draw: int) -> Any:
    """The value of a cluster that came up before, under another group: it must count as one more group, not as the same."""
    return value | {"group": f"{value['group']}, drawn again as {draw}"} if isinstance(value, dict) and "group" in value else value


def resampled(values: Sequence, members: list[np.ndarray], drawn: np.ndarray) -> list:
    """The values of all items in the drawn clusters."""
    seen, taken = set(), []
    for draw, cluster in enumerate(drawn.tolist()):
        items = [values[index] for index in members[cluster]]
        taken += [regrouped(item, draw) for item in items] if cluster in seen else items
        seen.add(cluster)
    return taken


def estimates(values: Sequence, clusters: Sequence, aggregate: Aggregation, draws: int, seed: int) -> np.ndarray:
    """The aggregate of each resampled set of clusters: (draws,) float64."""
    members = members_of(clusters)
    drawn = drawn_clusters(len(members), draws, seed)
    if aggregate != "mean":
        return np.array([aggregate(resampled(values, members, clusters)) for clusters in drawn], dtype=np.float64)
    values = np.asarray(values, dtype=np.float64)
    sums = np.array([values[items].sum() for items in members])
    counts = np.array([len(items) for items in members])
    return np.array([sums[clusters].sum() / counts[clusters].sum() for clusters in drawn])


def percentiles(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap(
    values: Sequence,
    clusters: Sequence | None = None,
    aggregate: Aggregation = "mean",
    draws: int = DRAWS,
    seed: int = SEED,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the aggregate, over clusters drawn with replacement (Efron & Tibshirani 1993).

    values: one JSON value an item; numbers where `aggregate` is "mean". clusters: the name of each item's cluster; None:
    every item is its own. An aggregation that groups items must do so by the key "group" of their values (dicts): in a
    cluster drawn twice that key is changed, so that the group counts twice. Raises ValueError without values.
    """
    clusters = checked(values, clusters)
    return percentiles(estimates(values, clusters, aggregate, draws, seed))


def checked(values: Sequence, clusters: Sequence | None) -> Sequence:
    """The clusters, one an item where there are none."""
    if not len(values):
        raise ValueError("no values: an interval needs at least one item")
    if clusters is None:
        return range(len(values))
    if len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters for {len(values)} values: each item needs its cluster")
    return clusters


def interval(
    values: Sequence, clusters: Sequence | None = None, aggregation: Aggregation = "mean"
) -> tuple[float | None, float | None, str]:
    """(low, high, method) of the aggregate of all items.

    Wilson's for the mean of right and wrong (1 and 0) where each item is its own cluster, else the bootstrap. The
    bootstrap sees no spread where all items are right, or all wrong: then Wilson's over clusters, each as one item. One
    cluster alone tells nothing about others: (None, None, "one cluster").
    """
    clusters = checked(values, clusters)
    count = len({str(cluster) for cluster in clusters})
    binary = aggregation == "mean" and all(value in (0, 1) for value in values)
    if binary and (count == len(values) or len(set(values)) == 1):
        right = sum(values) * count // len(values)
        return *wilson(right, count), "wilson"
    if count == 1:
        return None, None, "one cluster"
    method = "bootstrap" if count == len(values) else "clustered bootstrap"
    return *bootstrap(values, clusters, aggregation), method


def paired_bootstrap(
    values_a: Sequence,
    values_b: Sequence,
    clusters: Sequence | None = None,
    aggregate: Aggregation = "mean",
    draws: int = 2000,
    seed: int = SEED,
) -> tuple[float, float | None, float | None, float]:
    """(difference B - A, low, high, two-sided p value) over the same items of two runs, drawn together.

    The p value is twice the smaller share of draws in which the difference is not above, or not below, zero. It is at
    least 2 / (draws + 1), and at least 2 / 2**clusters, the least that so few clusters can show; one cluster alone has no
    interval either. Raises ValueError where the runs' items are not as many.
    """
    if len(values_a) != len(values_b):
        raise ValueError(f"{len(values_a)} values of A and {len(values_b)} of B: they must be of the same items")
    clusters = checked(values_a, clusters)
    count = len({str(cluster) for cluster in clusters})
    whole = [float(np.mean(values)) if aggregate == "mean" else aggregate(list(values)) for values in (values_a, values_b)]
    if count == 1:
        return whole[1] - whole[0], None, None, 1.0
    a, b = (estimates(values, clusters, aggregate, draws, seed) for values in (values_a, values_b))
    tail = min(np.sum(b - a <= 0), np.sum(b - a >= 0))
    p = max(2 * (float(tail) + 1) / (draws + 1), 2.0 ** (1 - count))
    return whole[1] - whole[0], *percentiles(b - a), min(1.0, p)
