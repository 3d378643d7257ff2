"""Circular accuracy of MMBench: a question counts as right if it is answered right in every order of its options.

    evaluate.load("eval/metrics/circular_accuracy").compute(predictions=["A", "B"], references=["A", "B"],
        indices=[7, 1000007])

Source: Liu et al. 2023, "MMBench". Rows whose `index` is equal but for the millions are the same question with its
options rotated.
"""

from collections import defaultdict
from statistics import fmean

import evaluate
from datasets import Features, Value

STEP = 1_000_000


def group_of(index: int) -> int:
    """The question that a row asks."""
    return int(index) % STEP


def circular_accuracy(items: list[dict]) -> float:
    """The share in 0..1 of groups in which all items are right. items: {"group": int or str, "right": bool}."""
    groups = defaultdict(list)
    for item in items:
        groups[item["group"]].append(item["right"])
    return fmean(all(rights) for rights in groups.values())


class CircularAccuracy(evaluate.Metric):
    """{"circular_accuracy"}: predictions are chosen letters (an unreadable one is ""), indices those of the rows."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string"), "indices": Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:2307.06281", features=features)

    def _compute(self, predictions, references, indices):
        rows = zip(predictions, references, indices, strict=True)
        items = [{"group": group_of(index), "right": letter == reference} for letter, reference, index in rows]
        return {"circular_accuracy": circular_accuracy(items)}
