"""Compares two runs of eval.run item by item, with paired tests.

    python -m eval.compare out/eval/base out/eval/quantized --output out/compare

Items are paired by task and id; the runs must have asked the same of the same rows. For each task's headline metric:
McNemar's exact test where items are right or wrong and each is its own cluster, else a paired bootstrap over clusters;
p values are corrected over the tasks (Holm). Differences are B minus A. Writes OUTPUT/compare.md and compare.json.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report import cell, number, outcome, read_run, span
from eval.results import mean
from eval.samples import write_beside
from eval.statistics import holm, mcnemar, paired_bootstrap
from eval.task import load_tasks

LEVEL = 0.05  # p values below it are called a difference
FLIPS_SHOWN = 5  # a task and a direction
NAMED = 10  # items named in an error or a list
SAME = ("row_sha256", "prompt")  # of an item in both runs


class CompareError(ValueError):
    """The runs cannot be compared."""


@dataclass(frozen=True)
class Pairs:
    """The items of a task that both runs have, as (sample of A, sample of B), and the ids of those that only one has."""

    both: list[tuple[dict, dict]]
    only_a: list[str]
    only_b: list[str]


# ------------------------------------------------------------------------------------------------ pairs


def by_id(samples: list[dict]) -> dict[tuple[str, int], dict]:
    """Samples by (id, how many before it have that id)."""
    seen, found = Counter(), {}
    for sample in sorted(samples, key=lambda sample: sample["index"]):
        found[sample["id"], seen[sample["id"]]] = sample
        seen[sample["id"]] += 1
    return found


def pair(samples_a: list[dict], samples_b: list[dict]) -> Pairs:
    a, b = by_id(samples_a), by_id(samples_b)
    both = [(a[key], b[key]) for key in a if key in b]
    return Pairs(both, [key[0] for key in a if key not in b], [key[0] for key in b if key not in a])


def named(ids: list[str]) -> str:
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def check(task: str, pairs: Pairs) -> None:
    """Raises CompareError where the runs did not ask the same, or scored the same answer differently."""
    if not pairs.both:
        raise CompareError(f"task {task}: no item is in both runs (A has {named(pairs.only_a)}; B has {named(pairs.only_b)})")
    for key in SAME:
        differing = [a["id"] for a, b in pairs.both if a[key] != b[key]]
        if differing:
            raise CompareError(f"task {task}: {key} differs in {len(differing)} items: {named(differing)}. Run both on the same rows")
    answer = ("response", "logprobs", "error")
    rescored = [a["id"] for a, b in pairs.both if all(a[key] == b[key] for key in answer) and a["metrics"] != b["metrics"]]
    if rescored:
        raise CompareError(
            f"task {task}: equal answers have unequal scores in {len(rescored)} items: {named(rescored)}. The runs were scored "
            "by different code; run eval.run again in both folders (kept answers are only scored anew)"
        )


# ------------------------------------------------------------------------------------------------ tests


def direction(a: float | None, b: float | None, higher_is_better: bool) -> int:
    """1 where B's item went better than A's, -1 where it went worse, 0 where they are alike or cannot be told."""
    if a is None or b is None:
        return 0
    return int(b > a) - int(b < a) if higher_is_better else int(b < a) - int(b > a)


def test(values_a: list, values_b: list, clusters: list[str], aggregation) -> dict[str, Any]:
    """Difference B - A, its interval, and the p value of the test that fits the values."""
    difference, low, high, p = paired_bootstrap(values_a, values_b, clusters, aggregation)
    independent = len(set(clusters)) == len(clusters)
    if aggregation == "mean" and independent and set(values_a) | set(values_b) <= {0, 1}:
        p = mcnemar(sum(a > b for a, b in zip(values_a, values_b)), sum(b > a for a, b in zip(values_a, values_b)))
        name = "McNemar"
    else:
        name = "paired bootstrap" if independent else "clustered paired bootstrap"
    return {"difference": difference, "interval": [low, high], "p": p, "test": name}


def compare_task(entry: dict[str, Any], pairs: Pairs) -> dict[str, Any]:
    """One task's entry of compare.json. entry: its headline metric in the task's metric_list."""
    metric, higher_is_better = entry["metric"], entry.get("higher_is_better", True)
    both = [(a, b) for a, b in pairs.both if metric in a["metrics"] and metric in b["metrics"]]
    if not both:
        raise CompareError(f"no item of both runs has the metric {metric!r}")
    values_a, values_b = ([sample["metrics"][metric] for sample in run] for run in zip(*both))
    outcomes = [[outcome(sample, metric, higher_is_better) for sample in item] for item in both]
    turns = [direction(a, b, higher_is_better) for a, b in outcomes]
    if "per_item" in entry:
        values_a, values_b = entry["per_item"](values_a), entry["per_item"](values_b)
    aggregation = entry.get("aggregation", "mean")
    aggregate = mean if aggregation == "mean" else aggregation
    return {
        "metric": metric,
        "percent": entry.get("percent", True),
        "higher_is_better": higher_is_better,
        "items": len(both),
        "a": aggregate(values_a),
        "b": aggregate(values_b),
        **test(values_a, values_b, [a["cluster"] for a, _ in both], aggregation),
        "a_better": turns.count(-1),
        "b_better": turns.count(1),
        "flips": flips(both, turns),
        "only_in_a": pairs.only_a,
        "only_in_b": pairs.only_b,
    }


def flips(both: list[tuple[dict, dict]], turns: list[int]) -> list[dict[str, Any]]:
    """Some of the items whose value changed, picked by the hash of their id."""
    found = []
    for turn, name in ((1, "B"), (-1, "A")):
        changed = [item for item, moved in zip(both, turns) if moved == turn]
        changed.sort(key=lambda item: hashlib.sha256(item[0]["id"].encode()).digest())
        found += [
            {"id": a["id"], "better": name, "prompt": a["prompt"], "target": a["target"], "a": said(a), "b": said(b)}
            for a, b in changed[:FLIPS_SHOWN]
        ]
    return found


def said(sample: dict) -> str:
    """The response, or the log-likelihoods of the choices."""
    if sample["logprobs"] is None:
        return sample["response"]
    return ", ".join(f"{logprob:.2f}" for logprob, _ in sample["logprobs"])


def compare(output_a: Path, output_b: Path, include_path: Path | None = None) -> dict[str, Any]:
    """The contents of compare.json. Raises CompareError where the runs cannot be compared, FileNotFoundError without runs."""
    manifest_a, results_a, samples_a = read_run(output_a)
    manifest_b, results_b, samples_b = read_run(output_b)
    shared = [name for name in samples_a if name in samples_b]
    if not shared:
        raise CompareError(f"no task has figures in both runs: A has {', '.join(samples_a)}; B has {', '.join(samples_b)}")
    tasks = {}
    for name in shared:
        pairs = pair(samples_a[name], samples_b[name])
        check(name, pairs)
        task = load_tasks([name], include_path)[0]
        tasks[name] = compare_task(next(entry for entry in task.metric_list if entry["metric"] == task.headline), pairs)
    for entry, p in zip(tasks.values(), holm([entry["p"] for entry in tasks.values()])):
        entry["p_holm"] = p
    return {
        "a": str(output_a),
        "b": str(output_b),
        "tasks": tasks,
        "only_in_a": left_out(results_a["tasks"], shared),
        "only_in_b": left_out(results_b["tasks"], shared),
        "differing": differing(manifest_a, manifest_b),
    }


def left_out(results: dict[str, dict], shared: list[str]) -> dict[str, str]:
    """The tasks that are not compared, and why."""
    return {name: entry["reason"] or "not in the other run" for name, entry in results.items() if name not in shared}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A nested dict as one of dotted paths."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: item for name in value for key, item in flat(value[name], f"{path}.{name}".lstrip(".")).items()}


def differing(manifest_a: dict, manifest_b: dict) -> dict[str, list]:
    """What the manifests do not agree in, tasks in one alone and the clock left out."""
    a, b = flat(manifest_a), flat(manifest_b)
    keys = [key for key in a | b if key not in ("started", "seconds") and ((key in a and key in b) or not key.startswith("tasks."))]
    return {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}


# ------------------------------------------------------------------------------------------------ report


def verdict(entry: dict[str, Any]) -> str:
    if entry["p_holm"] >= LEVEL:
        return "no difference shown"
    return "B better" if (entry["difference"] > 0) == entry["higher_is_better"] else "A better"


def markdown(found: dict[str, Any]) -> str:
    """compare.md."""
    lines = ["# Two runs compared", "", f"A: `{found['a']}`", f"B: `{found['b']}`", ""]
    lines += ["Differences are B minus A, on the items that both runs have, with 95 % intervals; p (Holm) holds for all tasks together.", ""]
    lines += ["| task | metric | items | A | B | difference | test | p | p (Holm) | better in A | better in B | verdict |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row(name, entry)) + " |" for name, entry in found["tasks"].items()] + [""]
    for name, entry in found["tasks"].items():
        lines += [f"{name}: {len(entry[key])} items only in {run}: {named(entry[key])}\n"
                  for run, key in (("A", "only_in_a"), ("B", "only_in_b")) if entry[key]]  # fmt: skip
    for run, key in (("A", "only_in_a"), ("B", "only_in_b")):
        lines += [f"Not compared, of {run}: {task} ({reason})\n" for task, reason in found[key].items()]
    lines += ["## What differs between the runs", "", "| | A | B |", "|---|---|---|"]
    lines += [f"| {cell(key)} | {cell(a)} | {cell(b)} |" for key, (a, b) in found["differing"].items()] + [""]
    for name, entry in found["tasks"].items():
        if entry["flips"]:
            lines += [f"## Changed answers: {name}", "", "| item | better | target | A | B |", "|---|---|---|---|---|"]
            lines += ["| " + " | ".join(cell(flip[key]) for key in ("id", "better", "target", "a", "b")) + " |" for flip in entry["flips"]] + [""]
    return "\n".join(lines)


def row(name: str, entry: dict[str, Any]) -> list[str]:
    percent = entry["percent"]
    difference = f"{'+' if entry['difference'] > 0 else ''}{number(entry['difference'], percent)} ({span(entry['interval'], percent)})"
    p_values = [f"{entry[key]:.2g}" for key in ("p", "p_holm")]
    counts = [str(entry[key]) for key in ("a_better", "b_better")]
    return [name, entry["metric"], f"{entry['items']:,}", number(entry["a"], percent), number(entry["b"], percent), difference,
            entry["test"], *p_values, *counts, verdict(entry)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, metavar="OUT_A", help="the OUTPUT of a run")
    parser.add_argument("b", type=Path, metavar="OUT_B")
    parser.add_argument("--include-path", type=Path, help="folder with further task files, as given to eval.run")
    parser.add_argument("--output", type=Path, default=Path("out/compare"))
    args = parser.parse_args()
    try:
        found = compare(args.a, args.b, args.include_path)
    except (CompareError, FileNotFoundError) as error:
        sys.exit(f"eval.compare: {error}")
    args.output.mkdir(parents=True, exist_ok=True)
    write_beside(args.output / "compare.json", json.dumps(found, indent=2) + "\n")
    write_beside(args.output / "compare.md", markdown(found))
    print((args.output / "compare.md").read_text())


if __name__ == "__main__":
    main()
