"""Relaxed accuracy of ChartQA: a number may be 5 % off, any other answer has to be the same text.

    evaluate.load("eval/metrics/relaxed_accuracy").compute(predictions=["104"], references=["100"])

Source: Masry et al. 2022, "ChartQA", section 5.1, as pix2struct's and lmms-eval's code work it out.
"""

from statistics import fmean

import evaluate
from datasets import Features, Value

TOLERANCE = 0.05  # of the reference


def to_number(text: str) -> float | None:
    """The number that Python's `float` reads, a hundredth of it before a "%"; None for other text ("1,000" too)."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def is_relaxed_match(answer: str, reference: str) -> bool:
    """Whether the answer is right: within 5 % of the reference if both are numbers, else equal but for case.

    So "5%" is 0.05 and not 5, "1,000" is a text and not 1000, and since nothing is within 5 % of 0, a reference of "0"
    asks for the text "0". Space around either is no part of it.
    """
    answer, reference = answer.strip(), reference.strip()
    number, target = to_number(answer), to_number(reference)
    if number is not None and target:
        return abs(number - target) / abs(target) <= TOLERANCE
    return answer.lower() == reference.lower()


class RelaxedAccuracy(evaluate.Metric):
    """{"relaxed_accuracy": share in 0..1 of answers that are right}."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:2203.10244", features=features)

    def _compute(self, predictions, references):
        return {"relaxed_accuracy": fmean(map(is_relaxed_match, predictions, references))}
