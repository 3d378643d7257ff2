"""ScienceQA: scores, and which questions share a picture."""

import hashlib
import string

from eval.metrics.multiple_choice.multiple_choice import alone_or_prefix


def cluster(doc):
    """One name for the questions on one picture; the rows do not name their pictures."""
    if doc["image"] is None:
        return f"{doc['question']} {doc['hint']} {doc['choices']}"
    return hashlib.sha256(doc["image"]["bytes"]).hexdigest()


def score(doc, results):
    letters = string.ascii_uppercase[: len(doc["choices"])]
    letter = alone_or_prefix(results[0], letters)
    return {"accuracy": float(letter == letters[doc["answer"]]), "parsed": letter is not None}
