"""Reports of a run of eval.run: report.md, and report.html as one file with pictures and sound in it.

    python -m eval.report out/eval/mini

Reads OUT/manifest.json, results.json and samples.jsonl, and the papers' figures in eval/published.yaml, which stand
beside ours and are never taken for ours. `eval.run` writes both reports itself, with the items' media; this command
writes them anew from the files, which hold no media.
"""

import argparse
import base64
import hashlib
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import yaml
from PIL import Image

from eval.samples import read_lines, write_beside

PUBLISHED = Path(__file__).parent / "published.yaml"
ITEMS_PER_TASK = 20
ITEMS_PER_PAGE = 120  # shared evenly where there are many tasks, so that a phone can open the page
PICTURE_SIDE = 640  # pixels; larger pictures are shown at this size
MEDIUM_BYTES = 8_000_000  # sound and video above this are named, not shown

MediaOf = Callable[[str, int], list[tuple[str, bytes, str]]]  # (task, index) -> (kind, bytes, MIME type) of each medium


# ------------------------------------------------------------------------------------------------ reading


def read_run(output: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(manifest, results, the scored samples of each task that has figures) of a finished run.

    The folder may hold further samples, of other tasks or of rows beyond the run's limit; they are left out. Raises
    FileNotFoundError where the folder holds no finished run.
    """
    for name in ("manifest.json", "results.json", "samples.jsonl"):
        if not (output / name).exists():
            raise FileNotFoundError(f"{output} has no {name}: expected the OUTPUT folder of a finished eval.run")
    manifest, results = (json.loads((output / name).read_text()) for name in ("manifest.json", "results.json"))
    samples = {name: [] for name, entry in results["tasks"].items() if entry["status"] == "ok"}
    for sample in read_lines(output / "samples.jsonl")[0]:
        if sample["task"] in samples and sample["index"] < (manifest["tasks"][sample["task"]]["limit"] or math.inf):
            samples[sample["task"]].append(sample)
    return manifest, results, samples


def read_published(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The papers' figures of each task."""
    figures = {}
    for figure in yaml.safe_load(path.read_text()):
        figures.setdefault(figure["task"], []).append(figure)
    return figures


# ------------------------------------------------------------------------------------------------ figures as text


def number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.1f} %"
    return f"{value:,.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3f}"


def span(interval: list[float | None], percent: bool) -> str:
    """An interval; without its unit, which stands with the figure."""
    if interval[0] is None:
        return "no interval from one cluster"
    return " to ".join(number(bound, percent).removesuffix(" %") for bound in interval)


def reason(figure: dict[str, Any], metric: str, compares_to: str) -> str:
    """Why a paper's figure cannot be compared with ours; empty where it can."""
    if figure["metric"] != metric:
        return f"not comparable (metric {figure['metric']})"
    return "" if figure["split"] == compares_to else f"not comparable (split {figure['split']})"


def papers(published: list[dict[str, Any]], metric: str | None, compares_to: str) -> list[dict[str, str]]:
    """The papers' figures as they print them, to stand beside our `metric`; None: where we have no figure at all."""
    return [
        {
            "system": figure["system"],
            "value": f"{figure['value']:,}",
            "source": figure["source"],
            "reason": reason(figure, metric or figure["metric"], compares_to),
        }
        for figure in published
    ]


def metric_row(name: str, entry: dict[str, Any], published: list[dict[str, Any]]) -> dict[str, Any]:
    """A metric as text. The papers' figures in metrics that we do not have stand beside the headline."""
    figure, is_headline = entry["metrics"][name], name == entry["headline"]
    beside = [one for one in published if one["metric"] == name or (is_headline and one["metric"] not in entry["metrics"])]
    return {
        "name": name,
        "value": number(figure["value"], figure["percent"]),
        "interval": span(figure["interval"], figure["percent"]),
        "method": figure["method"],
        "better": "higher" if figure["higher_is_better"] else "lower",
        "papers": papers(beside, name, entry["compares_to"]),
    }


def task_view(name: str, entry: dict[str, Any], published: list[dict[str, Any]]) -> dict[str, Any]:
    """What the reports show of a task, as text."""
    view = {"name": name, "split": entry["split"], "reason": entry["reason"], "ok": entry["status"] == "ok"}
    if not view["ok"]:
        return view | {"papers": papers(published, None, entry["compares_to"])}
    rows = {metric: metric_row(metric, entry, published) for metric in entry["metrics"]}
    percent, failures = entry["metrics"][entry["headline"]]["percent"], entry["parse_failures"]
    return view | {
        "headline": rows[entry["headline"]],
        "metrics": list(rows.values()),
        "count": f"{entry['items']:,}",
        "of": f"{entry['of']:,}",
        "limited": entry["items"] < entry["of"],
        "chance": "" if entry["chance"] is None else number(entry["chance"], percent),
        "unreadable": "" if failures is None else f"{100 * failures / entry['items']:.1f} %",
        "errors": entry["errors"],
        "untrained": entry["trained"] is False,
        "plot": plot(entry),
    }


def plot(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The headline metric of each category; places along the axis are per cent of its length. None for fewer than two.

    All items and chance are shown for shares alone: points may add up over the categories.
    """
    headline, figures = entry["metrics"][entry["headline"]], entry["categories"]
    if len(figures) < 2:
        return None
    percent = headline["percent"]
    if percent:
        figures = {"all": headline | {"items": entry["items"]}, **figures}
    ends = [bound for figure in figures.values() for bound in (figure["value"], *figure["interval"]) if bound is not None]
    low, high = min(0.0, *ends), max(1.0, *ends) if percent else max(ends)
    high = high if high > low else low + 1

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    bars = [
        {
            "name": name,
            "zero": place(min(0.0, figure["value"])),
            "width": round(abs(place(figure["value"]) - place(0.0)), 2),
            "interval": None if figure["interval"][0] is None else [place(bound) for bound in figure["interval"]],
            "value": number(figure["value"], percent),
            "text": f"{number(figure['value'], percent)} ({span(figure['interval'], percent)}), {figure['items']:,} items",
            "count": f"{figure['items']:,}",
        }
        for name, figure in figures.items()
    ]
    chance = place(entry["chance"]) if percent and entry["chance"] is not None else None
    return {"bars": bars, "chance": chance, "axis": [number(value, percent) for value in (low, (low + high) / 2, high)]}


# ------------------------------------------------------------------------------------------------ items


def outcome(sample: dict[str, Any], headline: str, higher_is_better: bool) -> float | None:
    """How well an item went: its value in the headline metric, where that is a number or says "right".

    Else, as where the headline is counted over the corpus, the first other metric's that is; None if there is none.
    """
    others = sample["metrics"].values() if higher_is_better else ()
    for value in (sample["metrics"].get(headline), *others):
        value = value.get("right") if isinstance(value, dict) else value
        if isinstance(value, int | float):
            return float(value)
    return None


def verdict(sample: dict[str, Any], headline: str, higher_is_better: bool) -> tuple[str, str]:
    """(kind, text): kind is "right", "wrong" or, for values in between and those that are no numbers, "scored"."""
    if sample["error"]:
        return "wrong", "not asked"
    value = outcome(sample, headline, higher_is_better)
    unread = ", no answer could be read" if sample["parsed"] is False else ""
    if value is None:
        return "scored", f"{headline}: {json.dumps(sample['metrics'].get(headline), ensure_ascii=False)}{unread}"
    if value == (1 if higher_is_better else 0):
        return "right", "right"
    if value == 0:
        return "wrong", "wrong" + unread
    return "scored", f"{headline} {value:.3g}{unread}"


def sampled(samples: list[dict[str, Any]], kinds: list[str], count: int) -> list[int]:
    """Places of `count` samples or fewer, of each kind alike as far as there are; the choice hangs on ids alone."""

    def order(place: int) -> bytes:
        return hashlib.sha256(f"{samples[place]['task']} {samples[place]['id']}".encode()).digest()

    groups = [sorted((place for place, kind in enumerate(kinds) if kind == name), key=order) for name in dict.fromkeys(kinds)]
    chosen = []
    while len(chosen) < min(count, len(samples)):
        chosen += [group.pop(0) for group in groups if group]
    return sorted(chosen[:count])


def data_url(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def shown_picture(content: bytes, mime: str) -> tuple[bytes, str]:
    """The picture, made smaller where it is larger than the page shows it."""
    picture = Image.open(io.BytesIO(content))
    if max(picture.size) <= PICTURE_SIDE:
        return content, mime
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue(), "image/jpeg"


def medium_view(kind: str, content: bytes, mime: str) -> dict[str, str]:
    if kind == "image":
        content, mime = shown_picture(content, mime)
    if len(content) > MEDIUM_BYTES:
        return {"kind": "text", "text": f"{kind} of {len(content) / 1e6:.0f} MB, not shown"}
    return {"kind": kind, "url": data_url(content, mime)}


def item_view(sample: dict[str, Any], kind: str, text: str, media_of: MediaOf | None) -> dict[str, Any]:
    media = media_of(sample["task"], sample["index"]) if media_of and not sample["error"] else []
    target, logprobs = sample["target"], sample["logprobs"]
    answer = sample["response"] if logprobs is None else "log-likelihoods: " + ", ".join(f"{value:.2f}" for value, _ in logprobs)
    return {
        "id": sample["id"],
        "category": sample["category"],
        "kind": kind,
        "verdict": text,
        "media": [medium_view(*medium) for medium in media],
        "prompt": sample["prompt"],
        "target": target if isinstance(target, str) else json.dumps(target, ensure_ascii=False),
        "answer": sample["error"] or answer,
    }


def items_view(samples: list[dict[str, Any]], entry: dict[str, Any], count: int, media_of: MediaOf | None) -> list[dict[str, Any]]:
    higher_is_better = entry["metrics"][entry["headline"]]["higher_is_better"]
    verdicts = [verdict(sample, entry["headline"], higher_is_better) for sample in samples]
    places = sampled(samples, [kind for kind, _ in verdicts], count)
    return [item_view(samples[place], *verdicts[place], media_of) for place in places]


# ------------------------------------------------------------------------------------------------ Markdown


def cell(value: Any) -> str:
    """A value as the cell of a Markdown table; a table's bars, tags and links in it stay text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for mark, escaped in (("|", "\\|"), ("<", "&lt;"), ("[", "\\[")):
        text = text.replace(mark, escaped)
    return " ".join(text.split())


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *[[cell(value) for value in row] for row in rows]]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def papers_text(figures: list[dict[str, str]]) -> str:
    """The papers' figures in one line, those that cannot be compared after the reason."""
    groups = {}
    for figure in sorted(figures, key=lambda figure: figure["reason"]):
        groups.setdefault(figure["reason"], []).append(f"{figure['system']} {figure['value']}")
    return "; ".join(f"{reason}: {', '.join(group)}" if reason else ", ".join(group) for reason, group in groups.items())


def sources(row: dict[str, Any]) -> str:
    return "; ".join(dict.fromkeys(figure["source"] for figure in row["papers"]))


def markdown(page: dict[str, Any]) -> str:
    """report.md: every figure of the page; the items are in report.html alone."""
    header = ["task", "metric", "ours", "95 % interval", "items", "chance", "unreadable", "errors", "papers (their figures, not ours)"]
    rows = [markdown_row(task) for task in page["tasks"]]
    lines = [f"# Evaluation of {cell(page['model'])}", "", cell(page["about"]), "", *table(header, rows)]
    if page["average"]:
        lines += [cell(page["average"]), ""]
    for task in page["tasks"]:
        if task["ok"]:
            lines += [f"## {cell(task['name'])}", "", *table(["metric", "ours", "95 % interval", "method", "better", "papers", "from"], [
                [row["name"], row["value"], row["interval"], row["method"], row["better"], papers_text(row["papers"]), sources(row)]
                for row in task["metrics"]
            ])]  # fmt: skip
        if task["ok"] and task["plot"]:
            lines += table(["category", task["headline"]["name"]], [[bar["name"], bar["text"]] for bar in task["plot"]["bars"]])
    return "\n".join(lines)


def markdown_row(task: dict[str, Any]) -> list[str]:
    if not task["ok"]:
        return [task["name"], "", "N/A", task["reason"], "", "", "", "", papers_text(task["papers"])]
    headline = task["headline"]
    items = f"{task['count']} of {task['of']} (limited)" if task["limited"] else task["count"]
    name = f"{task['name']} (not trained for)" if task["untrained"] else task["name"]
    return [name, headline["name"], headline["value"], headline["interval"], items, task["chance"], task["unreadable"],
            str(task["errors"]), papers_text(headline["papers"])]  # fmt: skip


# ------------------------------------------------------------------------------------------------ the reports


def about(manifest: dict[str, Any]) -> str:
    """The run in one line."""
    model = manifest["model"]
    parts = [
        f"{model['parameters'] / 1e6:,.1f} million parameters",
        model["dtype"],
        f"quantization {model['quantization']}" if model["quantization"] else None,
        "calls held to their definitions" if model.get("constrain_calls") else None,
        f"{model['num_beams']} beams" if model.get("num_beams") else None,
        f"picture layout {model['image_layout']}",
        f"batch size {manifest['batch_size']}",
        manifest["hardware"],
        f"{manifest['started'][:10]}",
        f"{manifest['seconds'] / 60:.1f} minutes",
    ]
    return " · ".join(part for part in parts if part)


def average_line(average: dict[str, Any] | None) -> str | None:
    if average is None:
        return None
    low_to_high = span(average["interval"], True)
    return f"Average of the {len(average['tasks'])} tasks that the model was trained for: {number(average['value'], True)} ({low_to_high})"


def write_report(output: Path, media_of: MediaOf | None = None, published: Path = PUBLISHED) -> None:
    """Writes OUTPUT/report.md and report.html from the run's files.

    media_of: gives the media of an item's prompt; without it the page shows the items without them.
    """
    manifest, results, samples = read_run(output)
    figures = read_published(published)
    count = max(1, min(ITEMS_PER_TASK, ITEMS_PER_PAGE // max(1, len(samples))))
    page = {
        "model": results["model"],
        "about": about(manifest),
        "average": average_line(results["average"]),
        "tasks": [task_view(name, entry, figures.get(name, [])) for name, entry in results["tasks"].items()],
        "items": {name: items_view(own, results["tasks"][name], count, media_of) for name, own in samples.items()},
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_beside(output / "report.html", environment.get_template("report.html.jinja").render(page))
    write_beside(output / "report.md", markdown(page))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="the OUTPUT of a run")
    args = parser.parse_args()
    try:
        write_report(args.output)
    except FileNotFoundError as error:
        sys.exit(f"eval.report: {error}")
    print(args.output / "report.html")


if __name__ == "__main__":
    main()
