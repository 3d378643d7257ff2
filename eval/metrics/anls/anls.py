"""ANLS, average normalised Levenshtein similarity: how much of a short answer is spelt as a reference is.

    evaluate.load("eval/metrics/anls").compute(predictions=["helo"], references=[["hello", "hi"]])

Source: Biten et al. 2019, "Scene Text Visual Question Answering", with the threshold of the benchmarks' servers.
"""

from statistics import fmean

import evaluate
from datasets import Features, Sequence, Value
from rapidfuzz.distance import Levenshtein

THRESHOLD = 0.5


def normalize(text: str) -> str:
    """Lower case, with single spaces."""
    return " ".join(text.lower().split())


def anls(answer: str, references: list[str]) -> float:
    """The similarity in 0..1 to the nearest reference, 0 if it is below 0.5: 1 - edits / length of the longer text.

    Case and the number of spaces do not count. Exactly 0.5 is kept, as the servers' script does; the paper drops it.
    Raises ValueError without references.
    """
    if not references:
        raise ValueError("ANLS needs at least one reference, found none")
    nearest = max(Levenshtein.normalized_similarity(normalize(answer), normalize(one)) for one in references)
    return nearest if nearest >= THRESHOLD else 0.0


class ANLS(evaluate.Metric):
    """{"anls": mean in 0..1}. references: a list of texts for each prediction."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Sequence(Value("string"))})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:1905.13648", features=features)

    def _compute(self, predictions, references):
        return {"anls": fmean(map(anls, predictions, references))}
