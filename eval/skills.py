"""Held-out scores of eagle-tiny: every skill of the small world on items that no training run ever drew.

    python -m eval.skills --model . --count 1000 --output out/skills
    python -m eval.skills --model runs/instruct --count 100 --skills sign chart

Each skill is asked twice: as it is, and with its medium blanked (a grey picture, silence, an empty question), where the
score must fall to chance. Answers are decoded greedily. Writes OUTPUT/samples.jsonl and OUTPUT/results.json, prints
the table with 95 % intervals (Wilson; for word error rates, a bootstrap over sentences).
"""

import argparse
import json
from pathlib import Path

import jiwer
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor

from eval.statistics import bootstrap, wilson
from training.collator import with_media
from training.synthesis import samples
from training.synthesis.pictures import HELD_OUT_FONTS
from training.synthesis.voices import HELD_OUT_VOICES

SKILLS = ("sign", "code", "sentence", "chart", "scene", "clip", "spoken_picture", "spoken_fact", "fact", "request")
GREY = (128, 128, 128)


# ------------------------------------------------------------------------------------------------ items


def blank(row: dict) -> dict:
    """The row without what its question is about: grey pictures and frames, silence, or, in text alone, no question."""
    row["images"] = [Image.new("RGB", image.size, GREY) for image in row["images"]]
    row["videos"] = [np.full_like(video, GREY[0]) for video in row["videos"]]
    if not row["images"] and not row["videos"]:
        row["audios"] = [np.zeros_like(audio) for audio in row["audios"]]
    if not row["images"] + row["videos"] + row["audios"]:
        row["messages"][0]["content"] = [{"type": "text", "text": "?"}]
    return row


def expected(row: dict) -> str:
    """The right answer as a string; a function call as sorted JSON."""
    answer = row["messages"][1]
    if answer.get("tool_calls"):
        return json.dumps([call["function"] for call in json.loads(answer["tool_calls"])], sort_keys=True)
    return answer["content"][0]["text"]


# ------------------------------------------------------------------------------------------------ scores


def is_exact(answer: str, target: str) -> bool:
    """Equal up to case and space around it."""
    return answer.strip().casefold() == target.casefold()


def is_close(answer: str, target: str) -> bool:
    """Within 5 % of a number (ChartQA's relaxed accuracy), or equal text."""
    try:
        return abs(float(answer) - float(target)) <= 0.05 * abs(float(target))
    except ValueError:
        return is_exact(answer, target)


def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    """Corpus word error rate of (target, answer) pairs."""
    return jiwer.wer([target for target, _ in pairs], [answer for _, answer in pairs])


def score(skill: str, items: list[dict]) -> dict:
    """{"score", "interval", "count"} of items with "target" and "answer"; a word error rate for sentences."""
    if not items:
        return {"score": None, "interval": None, "count": 0}
    if skill == "sentence":
        pairs = [(item["target"], item["answer"]) for item in items]
        return {"score": word_error_rate(pairs), "interval": bootstrap(pairs, None, word_error_rate, draws=500), "count": len(items)}
    right = sum(item["right"] for item in items)
    return {"score": right / len(items), "interval": wilson(right, len(items)), "count": len(items)}


def is_right(row: dict, target: str, answer: str) -> bool:
    asks_value = "maximum" in row["meta"]  # only charts have an axis
    return is_close(answer, target) if asks_value else is_exact(answer, target)


def is_held_out(row: dict) -> bool:
    """Drawn in a typeface, or spoken by a voice, that training never used."""
    return row["meta"].get("font") in HELD_OUT_FONTS or row["meta"].get("voice") in HELD_OUT_VOICES


# ------------------------------------------------------------------------------------------------ answering


@torch.inference_mode()
def answer(model, processor, rows: list[dict]) -> list[str]:
    """Greedy answers to the rows' first turns; function calls as sorted JSON."""
    inputs = processor.apply_chat_template(
        [with_media(row)[:1] for row in rows], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ids = model.generate(**inputs.to(model.device), max_new_tokens=64, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = []
    for written in processor.batch_decode(ids):
        written = written.split("<|end|>")[0]
        calls = processor.parse_tool_calls(written)
        answers.append(json.dumps(calls, sort_keys=True) if calls else written.strip())
    return answers


def ask_skill(model, processor, skill: str, count: int, batch_size: int, blanked: bool) -> list[dict]:
    """Items of one skill with target, answer and verdict."""
    items = []
    for start in tqdm(range(0, count, batch_size), desc=f"{skill}{' blanked' if blanked else ''}", leave=False):
        rows = [samples.make(skill, "test", seed) for seed in range(start, min(count, start + batch_size))]
        rows = [blank(row) if blanked else row for row in rows]
        for seed, (row, given) in enumerate(zip(rows, answer(model, processor, rows), strict=True), start):
            target = expected(row)
            item = {"skill": skill, "seed": seed, "blanked": blanked, "question": row["meta"].get("question")}
            item |= {"target": target, "answer": given, "right": is_right(row, target, given)}
            items.append(item | {"held_out": is_held_out(row), "meta": row["meta"]})
    return items


def results(skill: str, items: list[dict], blanked: list[dict]) -> dict:
    return {
        "all": score(skill, items),
        "seen": score(skill, [item for item in items if not item["held_out"]]),
        "held_out": score(skill, [item for item in items if item["held_out"]]),
        "blanked": score(skill, blanked),
    }


def table(scores: dict[str, dict]) -> str:
    """A Markdown table of the scores in per cent."""

    def cell(value: dict) -> str:
        if value["score"] is None:
            return "-"
        low, high = value["interval"]
        return f"{100 * value['score']:.1f} ({100 * low:.1f}-{100 * high:.1f})"

    lines = ["| skill | items | score | seen fonts, voices | held-out fonts, voices | medium blanked |", "|---|---|---|---|---|---|"]
    for skill, value in scores.items():
        name = f"{skill} (word error rate)" if skill == "sentence" else skill
        columns = [name, str(value["all"]["count"]), *(cell(value[k]) for k in ("all", "seen", "held_out", "blanked"))]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".")
    parser.add_argument("--count", type=int, default=1000, help="items a skill")
    parser.add_argument("--skills", nargs="+", choices=SKILLS, default=SKILLS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=Path("out/skills"))
    args = parser.parse_args()
    model = AutoModelForMultimodalLM.from_pretrained(args.model, trust_remote_code=True, dtype=args.dtype).eval()
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    args.output.mkdir(parents=True, exist_ok=True)
    scores = {}
    with (args.output / "samples.jsonl").open("w") as file:
        for skill in args.skills:
            asked = [ask_skill(model, processor, skill, args.count, args.batch_size, b) for b in (False, True)]
            file.writelines(json.dumps(item) + "\n" for items in asked for item in items)
            file.flush()
            scores[skill] = results(skill, *asked)
            print(table({skill: scores[skill]}).splitlines()[-1], flush=True)
    (args.output / "results.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(table(scores))


if __name__ == "__main__":
    main()
