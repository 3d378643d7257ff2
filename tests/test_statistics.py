"""Intervals and paired tests: textbook figures, coverage by simulation, clusters."""

import numpy as np
import pytest

from eval import statistics
from eval.statistics import bootstrap, holm, interval, mcnemar, paired_bootstrap, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # this and the next three: Newcombe 1998, Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),  # 0 of 29, the other way round
    ],
)
def test_wilson_matches_the_textbook(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("right", "total"), [(3, 2), (-1, 5), (0, 0)])
def test_wilson_refuses_what_is_no_share(right, total):
    with pytest.raises(ValueError):
        wilson(right, total)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(1, 7, 0.0703125), (0, 5, 0.0625), (5, 5, 1.0), (0, 0, 1.0), (121, 59, 4.434e-06)],
)
def test_mcnemar_is_the_binomial_test(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-3) == mcnemar(only_b, only_a)


def test_holm_matches_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


# ------------------------------------------------------------------------------------------------ choice of method


def test_wilson_is_taken_for_right_and_wrong_items_of_their_own():
    assert interval([1, 0, 1, 1.0, True]) == (*wilson(4, 5), "wilson")
    assert interval([1, 0, 1], ["a", "b", "c"]) == (*wilson(2, 3), "wilson")


def test_other_values_and_clusters_take_the_bootstrap():
    assert interval([0.5, 0, 1])[2] == "bootstrap"
    assert interval([1, 0, 1], ["a", "a", "b"])[2] == "clustered bootstrap"
    assert interval([1, 0, 1], None, sum)[2] == "bootstrap"


def test_clusters_without_a_mistake_count_one_each():
    assert interval([1] * 12, ["a"] * 6 + ["b"] * 6) == (*wilson(2, 2), "wilson")
    assert interval([0] * 12, ["a"] * 6 + ["b"] * 6) == (*wilson(0, 2), "wilson")


def test_one_cluster_has_no_interval():
    assert interval([1, 0, 1], ["a"] * 3) == (None, None, "one cluster")
    assert interval([0.5]) == (None, None, "one cluster")
    assert interval([1]) == (*wilson(1, 1), "wilson")


def test_bad_input_says_what_is_wrong():
    with pytest.raises(ValueError, match="no values"):
        interval([])
    with pytest.raises(ValueError, match="1 clusters for 2 values"):
        bootstrap([1, 0], ["a"])
    with pytest.raises(ValueError, match="1 values of A and 2 of B"):
        paired_bootstrap([1], [1, 0])


# ------------------------------------------------------------------------------------------------ bootstrap


def correlated(rng: np.random.Generator, clusters: int, size: int) -> tuple[list[float], list[int]]:
    """Normal values whose cluster decides most of them, with mean 0."""
    values = rng.normal(size=(clusters, 1)) + 0.5 * rng.normal(size=(clusters, size))
    return values.ravel().tolist(), np.repeat(np.arange(clusters), size).tolist()


def test_same_values_give_the_same_interval_in_any_order():
    rng = np.random.default_rng(1)
    values, clusters = correlated(rng, 15, 4)
    order = rng.permutation(len(values))
    found = bootstrap(values, clusters)
    assert bootstrap(values, clusters) == found != bootstrap(values, clusters, seed=1)
    assert bootstrap([values[i] for i in order], [clusters[i] for i in order]) == pytest.approx(found)


def test_mean_and_a_function_that_takes_the_mean_agree():
    values, clusters = correlated(np.random.default_rng(2), 12, 3)
    by_function = bootstrap(values, clusters, lambda drawn: sum(drawn) / len(drawn), draws=200)
    assert by_function == pytest.approx(bootstrap(values, clusters, draws=200))


def test_clusters_of_unequal_size_are_drawn_whole():
    values = [1, 1, 1, 1, 0]
    low, high = bootstrap(values, ["a", "a", "a", "a", "b"])
    assert (low, high) == (0.0, 1.0)  # a quarter of the draws is b alone, a quarter a alone


def test_width_is_that_of_the_normal_theory():
    values = np.random.default_rng(3).normal(size=400)
    low, high = bootstrap(values.tolist(), draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_wilson_covers_what_it_says():
    rng = np.random.default_rng(4)
    bounds = [wilson(right, 40) for right in range(41)]
    covered = [bounds[right][0] <= 0.3 <= bounds[right][1] for right in rng.binomial(40, 0.3, size=2000)]
    assert 0.935 <= np.mean(covered) <= 0.975


def test_clustered_bootstrap_covers_and_the_plain_one_does_not():
    rng = np.random.default_rng(5)
    clustered, plain = [], []
    for _ in range(200):
        values, clusters = correlated(rng, 40, 5)
        for found, names in ((clustered, clusters), (plain, None)):
            low, high = bootstrap(values, names, draws=300)
            found.append(low <= 0 <= high)
    assert 0.89 <= np.mean(clustered) <= 0.98
    assert np.mean(plain) < 0.75


def test_alike_items_in_a_cluster_widen_the_interval():
    values = [float(index % 2) for index in range(40)]
    plain = bootstrap(values)
    alike = bootstrap(values, [str(index % 2) + str(index // 8) for index in range(40)])
    mixed = bootstrap(values, [index // 4 for index in range(40)])
    assert alike[1] - alike[0] > 1.5 * (plain[1] - plain[0])
    assert mixed[1] - mixed[0] < 0.1 * (plain[1] - plain[0])


def share_of_whole_groups(values: list[dict]) -> float:
    """As in a circular evaluation: the share of groups in which all is right."""
    groups = {}
    for value in values:
        groups.setdefault(value["group"], []).append(value["right"])
    return sum(all(group) for group in groups.values()) / len(groups)


def test_a_group_drawn_twice_counts_twice():
    rights = [group % 3 > 0 for group in range(60)]
    values = [{"group": str(group), "right": rights[group]} for group in range(60) for _ in range(4)]
    clusters = [value["group"] for value in values]
    by_group = statistics.estimates([float(right) for right in rights], range(60), "mean", 500, 0)
    by_rows = statistics.estimates(values, [int(cluster) for cluster in clusters], share_of_whole_groups, 500, 0)
    assert by_rows == pytest.approx(by_group)
    assert values[0] == {"group": "0", "right": False}  # nothing of the run's own is changed


# ------------------------------------------------------------------------------------------------ pairs


def test_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(6)
    a = rng.normal(size=200)
    b = a + 0.1 + 0.05 * rng.normal(size=200)
    difference, low, high, p = paired_bootstrap(a.tolist(), b.tolist())
    assert difference == pytest.approx(np.mean(b - a)) and 0.09 < low < difference < high < 0.11
    assert p == pytest.approx(2 / 2001)
    assert bootstrap(a.tolist())[1] > bootstrap(b.tolist())[0]  # taken alone, the two overlap


def test_pairs_without_a_difference_show_none():
    values = [0.2, 0.4, 0.9, 0.1] * 10
    assert paired_bootstrap(values, values) == (0.0, 0.0, 0.0, 1.0)


def test_p_value_of_no_difference_is_uniform_enough():
    rng = np.random.default_rng(7)
    p_values = [paired_bootstrap(*rng.normal(size=(2, 60)).tolist(), draws=400)[3] for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10 and 0.4 <= np.mean(p_values) <= 0.6


def test_few_clusters_cannot_show_much():
    assert paired_bootstrap([0.0] * 9, [1.0] * 9, ["a"] * 9) == (1.0, None, None, 1.0)
    assert paired_bootstrap([0.0] * 9, [1.0] * 9, ["a", "b", "c"] * 3)[3] == 0.25
    assert paired_bootstrap([0.0] * 9, [1.0] * 9)[3] == pytest.approx(2.0**-8)


def test_paired_bootstrap_of_a_corpus_measure():
    def rate(values: list[dict]) -> float:
        return sum(value["errors"] for value in values) / sum(value["words"] for value in values)

    a = [{"errors": index % 4, "words": 10} for index in range(50)]
    b = [{"errors": index % 2, "words": 10} for index in range(50)]
    difference, low, high, p = paired_bootstrap(a, b, None, rate, draws=500)
    assert difference == pytest.approx(rate(b) - rate(a)) and low < difference < high < 0 and p < 0.01
