"""POPE: does a model see objects that are not there? Yes-or-no questions in three categories of how they were chosen.

    evaluate.load("eval/metrics/pope").compute(predictions=["yes"], references=["yes"], categories=["random"])

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models". "Yes" is the positive class.
"""

from statistics import fmean

import evaluate
from datasets import Features, Value


def parse(response: str) -> str | None:
    """ "yes" or "no" if the response is that word in either case, else None: "Yes." and "Yes, it is" are none."""
    word = response.strip().lower()
    return word if word in ("yes", "no") else None


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def scores(items: list[dict]) -> dict[str, float]:
    """{"accuracy", "precision", "recall", "f1", "yes_ratio"} in 0..1. items: {"answer": str or None, "target": str}.

    A None is wrong, and on a question whose target is "yes" it is missed like a "no". yes_ratio: share of answers that
    are "yes". A ratio without a denominator is 0.
    """
    said = sum(item["answer"] == "yes" for item in items)
    there = sum(item["target"] == "yes" for item in items)
    found = sum(item["answer"] == item["target"] == "yes" for item in items)
    precision, recall = ratio(found, said), ratio(found, there)
    return {
        "accuracy": fmean(item["answer"] == item["target"] for item in items),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": said / len(items),
    }


def by_category(items: list[dict]) -> dict[str, dict[str, float]]:
    """The scores of each "category" of the items, and under "mean" their mean over categories."""
    categories = sorted({item["category"] for item in items})
    each = {name: scores([item for item in items if item["category"] == name]) for name in categories}
    return each | {"mean": {key: fmean(one[key] for one in each.values()) for key in next(iter(each.values()))}}


class POPE(evaluate.Metric):
    """{category: scores, "mean": scores}: what `by_category` gives. references: "yes" or "no"."""

    def _info(self):
        features = Features({key: Value("string") for key in ("predictions", "references", "categories")})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:2305.10355", features=features)

    def _compute(self, predictions, references, categories):
        if wrong := [reference for reference in references if parse(reference) is None]:
            raise ValueError(f"references have to be yes or no, found {wrong[0]!r}")
        rows = zip(predictions, references, categories, strict=True)
        return by_category([{"answer": parse(p), "target": parse(r), "category": c} for p, r, c in rows])
