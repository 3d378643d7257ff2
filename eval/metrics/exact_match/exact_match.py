"""Exact match: an answer is right if it is the reference, if asked for without regard to case and punctuation (GQA).

    evaluate.load("eval/metrics/exact_match").compute(predictions=["Yes"], references=["yes"], ignore_case=True)

Source: Hudson and Manning 2019, "GQA", and lmms-eval's two options.
"""

import string
from statistics import fmean

import evaluate
from datasets import Features, Value

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_exact_match(answer: str, reference: str, ignore_case: bool = False, ignore_punctuation: bool = False) -> bool:
    """Whether both are the same text. ignore_punctuation: ASCII punctuation is taken away, so "t-shirt" is "tshirt".

    Space around either is no part of it; space within is.
    """

    def normalize(text: str) -> str:
        text = text.lower() if ignore_case else text
        return (text.translate(WITHOUT_PUNCTUATION) if ignore_punctuation else text).strip()

    return normalize(answer) == normalize(reference)


class ExactMatch(evaluate.Metric):
    """{"exact_match": share in 0..1 of answers that are right}."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references, ignore_case=False, ignore_punctuation=False):
        pairs = zip(predictions, references, strict=True)
        return {"exact_match": fmean(is_exact_match(*pair, ignore_case, ignore_punctuation) for pair in pairs)}
