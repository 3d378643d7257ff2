"""The voice benchmark's report: report.md with a table for each part, and report.png."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from eval.metrics.prosody import prosody
from eval.voice_results import style_shifts

LABELS = {
    "word_error_rate": "word error rate, independent recogniser",
    "character_error_rate": "character error rate, independent recogniser",
    "word_error_rate/own_ears": "word error rate by the model's own ears (not independent)",
    "character_error_rate/own_ears": "character error rate by the model's own ears (not independent)",
    "cloning_similarity": "cosine with the voice to be cloned",
    "defective": "recordings with any defect",
    "duration_off": "twice too long or too short",
}
SECONDS = (
    "time_to_first_audio",
    "time_to_first_text",
    "stalled",
    "leading_silence",
    "trailing_silence",
    "longest_pause",
)
RATES = {
    "real\nspeech": "word_error_rate/real_speech",
    "copy\nsynthesis": "word_error_rate/copy_synthesis",
    "spoken\nanswers": "word_error_rate",
    "own\nears": "word_error_rate/own_ears",
}
COSINES = {
    "different\nvoices": "cosine/different_voice",
    "same\nvoice": "cosine/same_voice",
    "clone and\noriginal": "cloning_similarity",
}


def label(name: str) -> str:
    return LABELS.get(name) or name.replace("_", " ").replace("/", ", ")


def unit_of(name: str, figure: dict) -> str:
    if figure["percent"]:
        return " %"
    if name.startswith("shift/"):
        return f" {prosody.SHIFTS[name.split('/')[-1]]}"
    return " s" if name.split("/")[0] in SECONDS else ""


def table_row(title: str, name: str, figure: dict) -> str:
    unit, scale = unit_of(name, figure), 100 if figure["percent"] else 1
    low, high = figure["interval"]
    interval = "one text alone has none" if low is None else f"{scale * low:.3g} to {scale * high:.3g}{unit}"
    return f"| {title} | {scale * figure['value']:.3g}{unit} | {interval} | {figure['items']} |"


def section(name: str, part: dict[str, Any]) -> list[str]:
    lines = ["", f"## {name.removeprefix('voice_').capitalize()}", ""]
    if part["status"] != "ok":
        lines += [f"N/A: {part['reason']}.", ""]
    if part["metrics"]:
        lines += ["| metric | value | 95 % interval | items |", "|---|---|---|---|"]
    lines += [table_row(label(metric), metric, figure) for metric, figure in part["metrics"].items()]
    headline = label(part["headline"])
    lines += [table_row(f"{headline}: {key}", part["headline"], f) for key, f in part.get("categories", {}).items()]
    if part["status"] == "ok" and part["missing"]:
        lines += ["", f"N/A, as the rows do not tell: {'; '.join(map(label, part['missing']))}."]
    return lines


def markdown(results: dict[str, Any], manifest: dict[str, Any]) -> str:
    judges, errors = manifest["judges"], next(iter(results["tasks"].values()))["errors"]
    lines = [
        f"# Voice output: {results['model']}",
        "",
        f"{manifest['rows']} recordings, {errors} of them unreadable and measured as silence. Independent recogniser: "
        f"{named(judges['recogniser'])}. Voices are told apart by {named(judges['speaker'])}. Intervals are of 95 %.",
        "",
        "Beside the word error rate stand its floors: what the same recogniser makes of real speech, and of it "
        "passed through the vocoder (copy synthesis).",
        "",
        "![Word error rates, shifts of style, cosines of voices](report.png)",
    ]
    for name, part in results["tasks"].items():
        lines += section(name, part)
    return "\n".join(lines) + "\n"


def named(judge: Any) -> str:
    return judge["path"] if isinstance(judge, dict) else judge or "none"


# ------------------------------------------------------------------------------------------------ picture


def plot(rows: list[dict], samples: list[dict], results: dict[str, Any], path: Path) -> None:
    """Three panels: word error rates with their floors, shifts by asked style, cosines of voices."""
    rates = results["tasks"]["voice_intelligibility"]["metrics"]
    cosines = results["tasks"]["voice_speaker"]["metrics"]
    with matplotlib.rc_context({"font.size": 8}):
        sheet = Figure(figsize=(11, 3.6), layout="constrained")
        left, middle, right = sheet.subplots(1, 3)
        left.set_title("word error rate (%)")
        plot_intervals(left, {name: rates.get(key) for name, key in RATES.items()})
        plot_shifts(middle, style_shifts(rows, samples))
        right.set_title("cosine of two recordings")
        plot_intervals(right, {name: cosines.get(key) for name, key in COSINES.items()})
        sheet.savefig(path, dpi=120)


def plot_intervals(axes, figures: dict[str, dict | None]) -> None:
    """Each figure as a point with its interval; what is N/A is named so."""
    for place, figure in enumerate(figures.values()):
        if figure is not None:
            scale = 100 if figure["percent"] else 1
            ends = [scale * end for end in figure["interval"] if end is not None]
            axes.plot([place] * len(ends), ends, color="tab:blue")
            axes.plot(place, scale * figure["value"], "o", color="tab:blue")
    axes.set_xticks(range(len(figures)), [name if figure else f"{name}:\nN/A" for name, figure in figures.items()])
    axes.set_xlim(-0.5, len(figures) - 0.5)


def plot_shifts(axes, shifts: list[dict]) -> None:
    axes.set_title("shift against neutral (red: not as asked)")
    kinds = list(dict.fromkeys((one["asked"], one["feature"]) for one in shifts))
    for place, kind in enumerate(kinds):
        moved = [one for one in shifts if (one["asked"], one["feature"]) == kind and one["shift"] is not None]
        colours = ["tab:blue" if one["right"] else "tab:red" for one in moved]
        axes.scatter([one["shift"] for one in moved], [place] * len(moved), c=colours, s=8, alpha=0.6)
    titles = [f"{asked}: {feature.replace('_', ' ')} ({prosody.SHIFTS[feature]})" for asked, feature in kinds]
    axes.set_yticks(range(len(kinds)), titles)
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xticks([-50, -20, -5, 0, 5, 20, 50], labels=["-50", "-20", "-5", "0", "5", "20", "50"])
