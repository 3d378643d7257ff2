"""From measured recordings to the figures of the voice benchmark, each with its 95 % interval.

    results = {name: part(rows, samples) for name, part in PARTS.items()}

rows: the benchmark's rows without their sound; samples: what `eval.voice.measure` gives for each, in the same order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from eval.metrics.prosody import prosody
from eval.metrics.speaker_similarity.speaker_similarity import cosine, equal_error_rate, nearest_voice
from eval.metrics.spoken_answer.spoken_answer import character_errors, is_heard, repeated_phrases
from eval.metrics.word_error_rate.word_error_rate import word_error_rate, word_errors
from eval.statistics import DRAWS, SEED, Aggregation, estimates, interval, percentiles

SOURCES = {
    "audio": "",
    "copy_audio": "/copy_synthesis",
    "reference_audio": "/real_speech",
}  # of what a recogniser hears
STYLE = tuple(prosody.ASKED)


def style(row: dict[str, Any]) -> dict[str, str]:
    """What was asked of the voice, by control."""
    return {control: row[control] for control in STYLE if row[control] is not None}


# ------------------------------------------------------------------------------------------------ figures


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def median(values: list[float]) -> float:
    return float(np.median(values))


def p95(values: list[float]) -> float:
    return float(np.percentile(values, 95))


def figure(
    values: list,
    clusters: list[str],
    aggregation: Aggregation = "mean",
    percent: bool = False,
    better: bool | None = None,
) -> dict[str, Any]:
    """A metric's entry of results.json.

    aggregation: "mean" of right and wrong, or a function of all values. better: whether higher is; None: neither.
    """
    value = mean(values) if aggregation == "mean" else aggregation(values)
    low, high, method = interval(values, clusters, aggregation)
    if low is not None and np.isnan(low):
        low, high = defined_interval(values, clusters, aggregation)
    shown = {"percent": percent, "higher_is_better": better}
    return {"value": value, "interval": [low, high], "method": method, "items": len(values)} | shown


def defined_interval(values: list, clusters: list[str], aggregation: Aggregation) -> tuple[float, float]:
    """The interval over the draws in which the aggregate is defined: a draw of one voice alone has no pairs of two."""
    drawn = estimates(values, clusters, aggregation, DRAWS, SEED)
    return percentiles(drawn[~np.isnan(drawn)])


def figure_of(samples: list[dict], value_of: Callable[[dict], Any], *args, **kwargs) -> dict[str, Any] | None:
    """The figure of the samples for which `value_of` is not None; None if there are none."""
    pairs = [(value_of(sample), sample["cluster"]) for sample in samples]
    pairs = [pair for pair in pairs if pair[0] is not None]
    return figure(*map(list, zip(*pairs, strict=True)), *args, **kwargs) if pairs else None


def entry(samples: list[dict], metrics: dict[str, dict | None], reason: str, **more) -> dict[str, Any]:
    """One part's entry of results.json. The first metric is the headline; without it the part is N/A for the reason."""
    headline, there = next(iter(metrics)), {name: value for name, value in metrics.items() if value is not None}
    ok = headline in there
    return {
        "status": "ok" if ok else "n/a",
        "reason": None if ok else reason,
        "items": there[headline]["items"] if ok else 0,
        "of": len(samples),
        "errors": sum(sample["error"] is not None for sample in samples),
        "headline": headline,
        "metrics": there,
        "missing": [name for name in metrics if name not in there],
    } | more


# ------------------------------------------------------------------------------------------------ what is said

NO_RECOGNISER = "no independent recogniser was given (--recogniser)"


def intelligibility(rows: list[dict], samples: list[dict]) -> dict[str, Any]:
    """Round-trip error rates, with their floors and the model's own ears beside them."""
    metrics = {}
    for source, name in (SOURCES | {"own_ears": "/own_ears"}).items():
        metrics["word_error_rate" + name] = error_rate(samples, source, word_errors)
        metrics["character_error_rate" + name] = error_rate(samples, source, character_errors)
    voices = sorted({sample["category"] for sample in samples if sample["category"] is not None})
    own = {voice: [sample for sample in samples if sample["category"] == voice] for voice in voices}
    by_voice = {voice: error_rate(own[voice], "audio", word_errors) for voice in voices}
    categories = {voice: value for voice, value in by_voice.items() if value is not None}
    return entry(samples, metrics, NO_RECOGNISER, categories=categories)


def error_rate(samples: list[dict], source: str, errors_of: Callable[[str, str], list[int]]) -> dict[str, Any] | None:
    """All errors over all words, or characters, of what was heard in one of SOURCES or by the model's own ears."""

    def errors(sample: dict) -> list[int] | None:
        return errors_of(sample["heard"][source], sample["target"]) if source in sample["heard"] else None

    return figure_of(samples, errors, word_error_rate, percent=True, better=False)


def content(rows: list[dict], samples: list[dict]) -> dict[str, Any]:
    """Whether the words that matter were heard, and whether phrases were heard over again."""
    answers = {row["id"]: row["answer"] or row["text"] for row in rows}

    def heard(source: str) -> dict[str, Any] | None:
        def of(sample: dict) -> bool | None:
            return is_heard(sample["heard"][source], answers[sample["id"]]) if source in sample["heard"] else None

        return figure_of(samples, of, percent=True, better=True)

    def repeats(sample: dict) -> bool | None:
        return None if sample["response"] is None else repeated_phrases(sample["response"], sample["target"]) > 0

    metrics = {"answer_heard" + name: heard(source) for source, name in SOURCES.items()}
    metrics["phrases_repeated"] = figure_of(samples, repeats, percent=True, better=False)
    return entry(samples, metrics, NO_RECOGNISER)


# ------------------------------------------------------------------------------------------------ how fast and whole


def latencies(rows: list[dict], samples: list[dict]) -> dict[str, Any]:
    def value(name: str) -> Callable[[dict], float | None]:
        return lambda sample: sample["latency"] and sample["latency"][name]

    def underrun(sample: dict) -> bool | None:
        return sample["latency"] and sample["latency"]["underruns"] > 0

    metrics = {}
    for name in ("time_to_first_audio", "time_to_first_text", "real_time_factor", "underruns", "stalled"):
        metrics[f"{name}/median"] = figure_of(samples, value(name), median, better=False)
        metrics[f"{name}/p95"] = figure_of(samples, value(name), p95, better=False)
    metrics["answers_with_underruns"] = figure_of(samples, underrun, percent=True, better=False)
    return entry(samples, metrics, "no row has chunk_times")


def health(rows: list[dict], samples: list[dict]) -> dict[str, Any]:
    def defective(sample: dict) -> bool:
        return any(sample["health"]["defects"].values())

    def value(name: str) -> Callable[[dict], float | None]:
        return lambda sample: sample["health"][name]

    def defect(name: str) -> Callable[[dict], bool]:
        return lambda sample: sample["health"]["defects"][name]

    metrics = {"defective": figure_of(samples, defective, percent=True, better=False)}
    for name in samples[0]["health"]["defects"]:
        metrics[name] = figure_of(samples, defect(name), percent=True, better=False)
    metrics["clipped_share"] = figure_of(samples, value("clipped_share"), mean, percent=True, better=False)
    for name in ("leading_silence", "trailing_silence", "longest_pause", "duration_to_reference", "duration_to_text"):
        metrics[f"{name}/median"] = figure_of(samples, value(name), median)
    return entry(samples, metrics, "")


# ------------------------------------------------------------------------------------------------ whose voice


def speaker(rows: list[dict], samples: list[dict]) -> dict[str, Any]:
    """Voices are told by recordings of other texts only: two voices sound more alike where they say the same."""
    named = [sample for sample in samples if sample["category"] is not None]
    templates = "reference_audio" if all(sample["voices"].get("reference_audio") for sample in named) else "audio"
    own = dict(zip((sample["id"] for sample in named), identified(named, templates), strict=True))
    metrics = {"voice_identity": figure_of(samples, lambda sample: own.get(sample["id"]), percent=True, better=True)}
    metrics |= verification([sample for sample in named if sample["voices"]["audio"] is not None])
    for source, name in (("audio", ""), ("reference_audio", "/real_speech")):
        metrics["cloning_similarity" + name] = figure_of(samples, likeness(source), mean, better=True)
    return entry(samples, metrics, "the rows name no two voices that say different texts", templates=templates)


def identified(samples: list[dict], templates: str) -> list[bool | None]:
    """Whether each recording's asked voice is the nearest of all to it; a silent one's is not.

    A voice is the mean of its recordings of other texts. None where there is no such mean, or no other voice.
    """
    sounding = [sample for sample in samples if sample["voices"][templates] is not None]
    embeddings = np.array([sample["voices"][templates] for sample in sounding])
    labels, texts = (np.array([sample[key] for sample in sounding]) for key in ("category", "cluster"))

    def of(sample: dict) -> bool | None:
        others = texts != sample["cluster"]
        voices = {name: embeddings[others & (labels == name)].mean(0) for name in np.unique(labels[others])}
        if sample["category"] not in voices or len(voices) == 1:
            return None
        own = sample["voices"]["audio"]
        return own is not None and nearest_voice(np.array(own), voices) == sample["category"]

    return [of(sample) for sample in samples]


def likeness(source: str) -> Callable[[dict], float | None]:
    """Cosine with the voice to be cloned; 0 for a silent recording."""

    def of(sample: dict) -> float | None:
        if not sample["voices"].get("speaker_audio") or source not in sample["voices"]:
            return None
        own = sample["voices"][source]
        return 0.0 if own is None else cosine(np.array(own), np.array(sample["voices"]["speaker_audio"]))

    return of


def verification(samples: list[dict]) -> dict[str, dict | None]:
    """Equal error rate and mean cosines over all pairs of recordings of different texts, resampled by recording."""
    names = ("equal_error_rate", "cosine/same_voice", "cosine/different_voice")
    labels, texts = (np.array([sample[key] for sample in samples]) for key in ("category", "cluster"))
    pairs = np.stack(np.triu_indices(len(samples), 1))
    pairs = pairs[:, texts[pairs[0]] != texts[pairs[1]]] if len(samples) else pairs
    same = labels[pairs[0]] == labels[pairs[1]] if len(samples) else np.zeros(0, bool)
    if not same.any() or same.all():
        return dict.fromkeys(names)
    voices = np.array([sample["voices"]["audio"] for sample in samples])
    voices /= np.linalg.norm(voices, axis=1, keepdims=True)
    cosines = (voices[pairs[0]] * voices[pairs[1]]).sum(1)
    order = np.argsort(cosines)  # once here: the equal error rate sorts in each draw, and what is sorted sorts fast
    pairs, same, cosines = pairs[:, order], same[order], cosines[order]

    def weights(drawn: list[int]) -> np.ndarray:
        counts = np.bincount(drawn, minlength=len(samples))
        return counts[pairs[0]] * counts[pairs[1]]

    def error(drawn: list[int]) -> float:
        weight = weights(drawn)
        both = weight[same].any() and weight[~same].any()
        return equal_error_rate(cosines, same, weight) if both else float("nan")

    def mean_of(kind: np.ndarray) -> Callable[[list[int]], float]:
        def of(drawn: list[int]) -> float:
            weight = weights(drawn)[kind]
            return float(np.average(cosines[kind], weights=weight)) if weight.any() else float("nan")

        return of

    places, ids = list(range(len(samples))), [sample["id"] for sample in samples]
    return {
        "equal_error_rate": figure(places, ids, error, percent=True, better=False),
        "cosine/same_voice": figure(places, ids, mean_of(same), better=True),
        "cosine/different_voice": figure(places, ids, mean_of(~same), better=False),
    }


# ------------------------------------------------------------------------------------------------ in which style


def style_shifts(rows: list[dict], samples: list[dict]) -> list[dict[str, Any]]:
    """Each feature that an asked style should move.

    {"control", "asked", "feature", "direction", "shift" (None: no voice was heard), "right", "cluster"}
    """
    by_id = {sample["id"]: sample["prosody"] for sample in samples}
    found = []
    for row in (row for row in rows if row["neutral"] is not None):
        styled, neutral = by_id[row["id"]], by_id[row["neutral"]]
        moved = prosody.shifts(styled, neutral) if styled and neutral else {}
        for feature, (control, direction) in prosody.directions(style(row)).items():
            shift = moved.get(feature)
            right = shift is not None and prosody.follows(shift, direction)
            facts = {"control": control, "asked": row[control], "feature": feature, "direction": direction}
            found.append(facts | {"shift": shift, "right": right, "cluster": row["neutral"]})
    return found


def styles(rows: list[dict], samples: list[dict]) -> dict[str, Any]:
    found = style_shifts(rows, samples)
    metrics = {"sign_accuracy": sign_accuracy(found)}
    for control, feature in dict.fromkeys((one["control"], one["feature"]) for one in found):
        own = [one for one in found if (one["control"], one["feature"]) == (control, feature)]
        metrics[f"sign_accuracy/{control}/{feature}"] = sign_accuracy(own)
        metrics[f"spearman/{control}/{feature}"] = correlation([one for one in own if one["shift"] is not None])
        for asked in dict.fromkeys(one["asked"] for one in own):
            moved = [one for one in own if one["asked"] == asked]
            metrics[f"shift/{control}/{asked}/{feature}"] = figure_of(moved, lambda one: one["shift"], median)
    return entry(samples, metrics, "no row has a neutral counterpart and a style that should move it")


def sign_accuracy(shifts: list[dict]) -> dict[str, Any] | None:
    return figure_of(shifts, lambda one: one["right"], percent=True, better=True)


def correlation(shifts: list[dict]) -> dict[str, Any] | None:
    """Spearman's, of the asked direction with the shift; None where but one direction was asked."""

    def of(drawn: list[list]) -> float:
        value = prosody.spearman(*zip(*drawn, strict=True))
        return float("nan") if value is None else value

    values = [[one["direction"], one["shift"]] for one in shifts]
    if not values or np.isnan(of(values)):
        return None
    return figure(values, [one["cluster"] for one in shifts], of, better=True)


PARTS = {
    "voice_intelligibility": intelligibility,
    "voice_content": content,
    "voice_latency": latencies,
    "voice_speaker": speaker,
    "voice_prosody": styles,
    "voice_health": health,
}
