"""MME: scores of perception, of cognition and of both."""

from collections import Counter

from eval.metrics.mme import mme


def score(doc, results):
    answer = mme.parse(results[0])
    item = {"category": doc["category"], "group": doc["question_id"], "right": answer == mme.parse(doc["answer"])}
    part = "perception" if doc["category"] in mme.PERCEPTION else "cognition"
    return {"total": item, part: item, "parsed": answer is not None}


def total(items):
    """The points of all categories, without pictures that a limited run asked one question about instead of two."""
    asked = Counter(item["group"] for item in items)
    return mme.total([item for item in items if asked[item["group"]] == mme.QUESTIONS])
