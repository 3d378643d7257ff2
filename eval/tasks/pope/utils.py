"""POPE: scores, each the mean of the three categories."""

from eval.metrics.pope.pope import by_category, parse


def score(doc, results):
    answer, target = parse(results[0]), parse(doc["answer"])
    item = {"answer": answer, "target": target, "category": doc["category"]}
    shares = {"accuracy": float(answer == target), "yes_ratio": float(answer == "yes")}
    return {"f1": item, "precision": item, "recall": item, **shares, "parsed": answer is not None}


def f1(items):
    return by_category(items)["mean"]["f1"]


def precision(items):
    return by_category(items)["mean"]["precision"]


def recall(items):
    return by_category(items)["mean"]["recall"]
