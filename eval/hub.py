"""Publishes a run's figures with the model, in the Hub's two formats.

    python -m eval.hub out/eval/eagle_table1 --model-dir .

Writes DIR/.eval_results/TASK.yaml (the headline figure; shown on the model's page and the benchmark's leaderboard) and
the `model-index` in the head of DIR/README.md (every metric). Only figures of the run itself are written, and of them
only those of whole splits: a limited run's are left out, and so are tasks without a figure. What was measured on local
rows (`--data-root`, the mini suite) goes into the model-index alone, named as such. Nothing is sent anywhere.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from eval.models import WEIGHTS, files_sha256
from eval.report import read_run, span
from eval.samples import write_beside


class HubError(ValueError):
    """The figures do not belong to the model."""


def shown(value: float, percent: bool) -> float:
    """The figure in the unit that leaderboards print."""
    return round(100 * value, 2) if percent else round(value, 4)


def is_local(facts: dict[str, Any]) -> bool:
    """Whether the task's rows came from this machine; so taken where the manifest does not tell."""
    return facts.get("data_root", "unknown") is not None


def settings(manifest: dict[str, Any]) -> str:
    model = manifest["model"]
    return ", ".join(f"{key} {model[key]}" for key in ("dtype", "image_layout"))


def entry_of(task: str, result: dict[str, Any], manifest: dict[str, Any]) -> EvalResultEntry:
    """The headline figure for `.eval_results`. The value is in per cent where the metric is."""
    facts, figure = manifest["tasks"][task], result["metrics"][result["headline"]]
    notes = [
        f"{result['headline']}, 95 % interval {span(figure['interval'], figure['percent'])} ({figure['method']})",
        f"{result['items']} items of split {result['split']}",
        f"rows sha256 {facts['rows_sha256'][:16]}",
        settings(manifest),
    ]
    return EvalResultEntry(
        dataset_id="/".join(facts["dataset"].split("/")[:2]),  # without the configuration
        task_id=task,
        value=shown(figure["value"], figure["percent"]),
        dataset_revision=facts["revision"],
        date=manifest["started"],
        notes="; ".join(notes),
    )


def model_index_of(task: str, result: dict[str, Any], manifest: dict[str, Any], task_type: str) -> list[EvalResult]:
    """One model-index result a metric; the interval and what it was measured with are in its arguments."""
    facts = manifest["tasks"][task]
    return [
        EvalResult(
            task_type=task_type,
            dataset_type="/".join(facts["dataset"].split("/")[:2]),
            dataset_name=f"{task} (local rows)" if is_local(facts) else task,
            dataset_config="/".join(facts["dataset"].split("/")[2:]) or None,
            dataset_split=result["split"],
            dataset_revision=facts["revision"],
            metric_type=metric,
            metric_name=f"{metric}, %" if figure["percent"] else metric,
            metric_value=shown(figure["value"], figure["percent"]),
            metric_args={
                "interval_95": [shown(bound, figure["percent"]) for bound in figure["interval"] if bound is not None],
                "items": result["items"],
                "settings": settings(manifest),
            },
        )
        for metric, figure in result["metrics"].items()
    ]


def place(result: EvalResult) -> tuple:
    """What a newer figure takes the place of."""
    return result.dataset_type, result.dataset_name.removesuffix(" (local rows)"), result.dataset_split, result.metric_type


def update_card(path: Path, name: str, results: list[EvalResult]) -> None:
    """Puts the results into the card's model-index, in place of older ones of the same figures; all else stays."""
    card = ModelCard.load(path)
    places = {place(result) for result in results}
    kept = [result for result in card.data.eval_results or [] if place(result) not in places]
    card.data.eval_results = kept + results
    card.data.model_name = card.data.model_name or name
    write_beside(path, str(card))


def publishable(results: dict[str, Any]) -> tuple[dict[str, dict], dict[str, str]]:
    """(the tasks whose figures are published, why each other task is not)."""
    kept, left_out = {}, {}
    for task, result in results["tasks"].items():
        if result["status"] != "ok":
            left_out[task] = result["reason"]
        elif result["items"] < result["of"]:
            left_out[task] = f"limited to {result['items']} of {result['of']} items"
        else:
            kept[task] = result
    return kept, left_out


def publish(output: Path, model_dir: Path) -> tuple[list[Path], dict[str, str]]:
    """Writes the files; returns them, and why each task left out was.

    Raises HubError where the weights in model_dir are not those that the run measured, were quantized for it, or where
    nothing can be published; FileNotFoundError where there is no finished run or no README.md.
    """
    manifest, results, _ = read_run(output)
    card = model_dir / "README.md"
    if not card.exists():
        raise FileNotFoundError(f"{model_dir} has no README.md: expected a model's folder")
    measured, present = manifest["model"]["weights_sha256"], files_sha256(model_dir, WEIGHTS)
    if measured != present:
        raise HubError(f"{output} measured weights {measured[:12]}, and {model_dir} holds {present[:12]}: run eval.run again")
    if quantization := manifest["model"]["quantization"]:
        raise HubError(f"{output} measured the weights as {quantization}; a card's figures are of the weights as they lie beside it")
    if manifest["model"].get("constrain_calls"):
        raise HubError(f"{output} held calls to their definitions (--constrain-calls), which a card's figures do not say")
    kept, left_out = publishable(results)
    if not kept:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in left_out.items())
        raise HubError(f"{output} has no figure to publish ({reasons})")
    task_type = ModelCard.load(card).data.pipeline_tag or "any-to-any"
    update_card(card, model_dir.resolve().name, [
        item for task, result in kept.items() for item in model_index_of(task, result, manifest, task_type)
    ])  # fmt: skip
    written = [card]
    for task, result in kept.items():
        if not is_local(manifest["tasks"][task]):
            written.append(model_dir / ".eval_results" / f"{task}.yaml")
            written[-1].parent.mkdir(exist_ok=True)
            entries = eval_result_entries_to_yaml([entry_of(task, result, manifest)])
            write_beside(written[-1], yaml.safe_dump(entries, sort_keys=False))
    return written, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="the OUTPUT of a run")
    parser.add_argument("--model-dir", type=Path, default=Path(), help="the model's folder, with its README.md")
    args = parser.parse_args()
    try:
        written, left_out = publish(args.output, args.model_dir)
    except (HubError, FileNotFoundError) as error:
        sys.exit(f"eval.hub: {error}")
    for path in written:
        print(path)
    for task, reason in left_out.items():
        print(f"left out: {task} ({reason})", file=sys.stderr)


if __name__ == "__main__":
    main()
