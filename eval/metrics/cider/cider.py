"""CIDEr of captions: how much of what is special about the references, of one to four words, a caption says too.

    evaluate.load("eval/metrics/cider").compute(predictions=["a dog barks"], references=[["a dog barks", "dogs bark"]])

Source: Vedantam et al. 2015, "CIDEr", the variant CIDEr-D that pycocoevalcap computes and papers report. The figure is
pycocoevalcap's, 0 to 10; what papers print as 83.2 is 0.832 here. Its tokeniser needs Java; `tokenize` gives the same
words of ordinary captions.
"""

import math
import re
from collections import Counter
from statistics import fmean

import evaluate
from datasets import Features, Sequence, Value

ORDERS = range(1, 5)  # words in an n-gram
SIGMA = 6.0  # words of difference in length that are forgiven
SCALE = 10.0

# Penn Treebank's words without punctuation. Marks within a word stay: "high-pitched", "1,000", "o'clock".
TOKEN = re.compile(
    r"""
    (?:[a-z]\.){2,}                                       # a.m.
    | (?:can|gon|got|wan)(?=(?:not|na|ta)\b)              # can not
    | \w+?(?=n't\b) | n't\b                               # do n't
    | '(?:s|m|d|re|ve|ll)\b                               # it 's
    | \w+(?:(?:[-/&]|(?<=\d)[.,:](?=\d)|'(?!(?:s|m|d|re|ve|ll)\b))\w+)*
    | [$%&\#*+=/@]
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """The caption's words in lower case, as Stanford's PTB tokeniser and pycocoevalcap leave them."""
    return TOKEN.findall(caption.lower().replace("\u2019", "'"))


def count_ngrams(caption: str) -> Counter:
    """How often each n-gram (a tuple of words) comes up."""
    words = tokenize(caption)
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def length_penalty(ours: Counter, theirs: Counter) -> float:
    """Near 1 for captions of nearly as many words."""
    length, other = (sum(count for gram, count in one.items() if len(gram) == 1) for one in (ours, theirs))
    return math.exp(-((length - other) ** 2) / (2 * SIGMA**2))


def similarity(ours: dict, theirs: dict) -> float:
    """Mean over orders of the cosine of two vectors {n-gram: weight}, where too much of an n-gram counts as enough."""
    total = 0.0
    for n in ORDERS:
        a, b = ({gram: weight for gram, weight in one.items() if len(gram) == n} for one in (ours, theirs))
        norms = math.hypot(*a.values()) * math.hypot(*b.values())
        shared = sum(min(weight, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, weight in a.items())
        total += shared / norms if norms else 0.0
    return total / len(ORDERS)


def cider(captions: list[str], references: list[list[str]]) -> list[float]:
    """The score of each caption against its references, 0 to 10, an n-gram's weight being its rarity among all items.

    The scores are those of a corpus: of a part of it they differ, and of a single item they are 0. Raises ValueError if
    an item has no reference.
    """
    if [] in references:
        raise ValueError(f"CIDEr needs a reference for each caption; item {references.index([])} has none")
    ours = [count_ngrams(caption) for caption in captions]
    theirs = [[count_ngrams(reference) for reference in group] for group in references]
    items_with = Counter(gram for group in theirs for gram in set().union(*group))

    def weigh(counts: Counter) -> dict:
        return {gram: n * math.log(len(references) / max(1, items_with[gram])) for gram, n in counts.items()}

    return [
        SCALE * fmean(length_penalty(counts, other) * similarity(weigh(counts), weigh(other)) for other in group)
        for counts, group in zip(ours, theirs, strict=True)
    ]


class CIDEr(evaluate.Metric):
    """{"cider": mean over the corpus, 0 to 10}. references: a list of captions for each prediction."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Sequence(Value("string"))})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:1411.5726", features=features)

    def _compute(self, predictions, references):
        return {"cider": fmean(cider(predictions, references))}
