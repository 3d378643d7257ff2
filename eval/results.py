"""From answers to figures: each answer's score, each task's metrics with their intervals, and the average of a suite."""

import json
import math
from collections.abc import Callable
from typing import Any

from eval.statistics import interval
from eval.task import Rows, Task, TaskError


def scored(task: Task, docs: Rows, sample: dict[str, Any]) -> dict[str, Any]:
    """The sample with what its row says of it, and its value in each metric.

    `parsed` is False where no answer could be read from the response, None where the task does not tell.
    """
    doc = docs.raw(sample["index"])
    results = [sample["response"]] if sample["logprobs"] is None and not task.doc_to_choice else sample["logprobs"]
    if results is None:  # a multiple choice whose row cannot be read
        results = [(-math.inf, False)] * len(task.choices(doc))
    metrics = task.score(doc, results)
    parsed = metrics.pop("parsed", None)
    facts = {
        "id": str(task.value("doc_to_id", doc) if task.doc_to_id else sample["index"]),
        "category": task.value("doc_to_category", doc),
        "cluster": str(task.value("doc_to_cluster", doc) if task.doc_to_cluster else sample["index"]),
        "target": task.target(doc),
    }
    return sample | json_value(facts | {"metrics": metrics, "parsed": parsed})


def json_value(value):
    """The value as JSON holds it, so that what is scored now and what is read back later are the same."""
    return json.loads(json.dumps(value, default=str))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def figure(entry: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A metric over the samples that have it, with its 95 % interval; None if none has."""
    own = [sample for sample in samples if entry["metric"] in sample["metrics"]]
    if not own:
        return None
    values = [sample["metrics"][entry["metric"]] for sample in own]
    if "per_item" in entry:
        values = entry["per_item"](values)
    aggregate = entry["aggregation"] if isinstance(entry.get("aggregation"), Callable) else mean
    is_share = aggregate is mean and entry.get("percent", True)  # of right answers, if all values are 0 or 1
    low, high, method = interval(values, [sample["cluster"] for sample in own], "mean" if is_share else aggregate)
    return {"value": aggregate(values), "interval": [low, high], "method": method, "items": len(own)}


def results_of(task: Task, rows: int, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """One task's entry of results.json, from scored samples. Raises TaskError where none has the headline metric."""
    entries = {entry["metric"]: entry for entry in task.metric_list}
    metrics = {}
    for name, entry in entries.items():
        if (value := figure(entry, samples)) is not None:
            shown = {"percent": entry.get("percent", True), "higher_is_better": entry.get("higher_is_better", True)}
            metrics[name] = value | shown
    if task.headline not in metrics:
        given = sorted({name for sample in samples for name in sample["metrics"]})
        raise TaskError(f"task {task.task}: metric_list begins with {task.headline!r}, process_results gives {', '.join(given)}")
    categories = {}
    for category in sorted({str(sample["category"]) for sample in samples if sample["category"] is not None}):
        own = [sample for sample in samples if str(sample["category"]) == category]
        if (value := figure(entries[task.headline], own)) is not None:
            categories[category] = value
    told = [sample["parsed"] for sample in samples if sample["parsed"] is not None]
    return {
        "status": "ok",
        "reason": None,
        "split": task.split,
        "compares_to": task.compares_to,
        "items": len(samples),
        "of": rows,
        "errors": sum(sample["error"] is not None for sample in samples),
        "parse_failures": told.count(False) if told else None,
        "headline": task.headline,
        "chance": task.chance,
        "trained": task.trained,
        "metrics": metrics,
        "categories": categories,
    }


def not_applicable(task: Task, reason: str) -> dict[str, Any]:
    """The entry of a task that cannot be scored here: it has no figure, not the figure 0."""
    return {"status": "n/a", "reason": reason, "split": task.split, "compares_to": task.compares_to}


def average(results: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The mean over the headline figures of the tasks that the model was trained for; None if no task says so.

    A word error rate enters as 1 minus the rate, not below 0. The interval takes the tasks as independent.
    """
    entries = {name: entry for name, entry in results.items() if entry.get("trained")}
    if not entries:
        return None
    figures = [entry["metrics"][entry["headline"]] for entry in entries.values()]
    values = [figure["value"] if figure["higher_is_better"] else max(0.0, 1 - figure["value"]) for figure in figures]
    average = {"tasks": list(entries), "value": mean(values), "interval": [None, None]}
    if all(figure["interval"][0] is not None for figure in figures):
        halves = [(figure["interval"][1] - figure["interval"][0]) / 2 for figure in figures]
        half = math.sqrt(sum(half**2 for half in halves)) / len(halves)
        average["interval"] = [max(0.0, average["value"] - half), min(1.0, average["value"] + half)]
    return average
