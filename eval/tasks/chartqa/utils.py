"""ChartQA: scores, and which questions share a chart."""

import hashlib

from eval.metrics.relaxed_accuracy.relaxed_accuracy import is_relaxed_match


def cluster(doc):
    """One name for the questions on one chart; the rows do not name their charts."""
    return hashlib.sha256(doc["image"]["bytes"]).hexdigest()


def score(doc, results):
    return {"relaxed_accuracy": float(is_relaxed_match(results[0], doc["answer"]))}
