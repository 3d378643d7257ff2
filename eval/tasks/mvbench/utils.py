"""MVBench: scores, and where a video lies."""

import string

from eval.metrics.multiple_choice.multiple_choice import standalone


def video(doc, parts):
    """The video's path within the data set."""
    return [f"video/{parts['folder']}/{doc['video']}"]


def letter(doc):
    return string.ascii_uppercase[doc["candidates"].index(doc["answer"])]


def score(doc, results):
    chosen = standalone(results[0], string.ascii_uppercase[: len(doc["candidates"])])
    return {"accuracy": float(chosen == letter(doc)), "parsed": chosen is not None}
