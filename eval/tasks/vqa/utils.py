"""VQAv2, TextVQA and VizWiz: prompts, scores, and the file for VQAv2's server."""

import json
from pathlib import Path

from eval.metrics.vqa_accuracy.vqa_accuracy import vqa_accuracy


def text(doc, parts):
    """TextVQA's and VizWiz's questions come in any case; lmms-eval asks them with the first letter alone as a capital."""
    return doc["question"].capitalize() + parts["post_prompt"]


def score(doc, results):
    return {"vqa_accuracy": vqa_accuracy(results[0], doc["answers"])}


def score_vqav2(doc, results):
    return {"vqa_accuracy": vqa_accuracy(results[0], [given["answer"] for given in doc["answers"]])}


def answered(doc, results):
    has_answer = bool(results[0].strip())
    return {"answered": float(has_answer), "parsed": has_answer}


def write(samples, docs, folder):
    """FOLDER/vqav2_testdev.json, [{question_id, answer}], as the VQA server on EvalAI takes it. Returns the file's path."""
    answers = [
        {"question_id": docs[sample["index"]]["question_id"], "answer": sample["response"].strip()} for sample in samples
    ]
    path = Path(folder) / "vqav2_testdev.json"
    path.write_text(json.dumps(answers))
    return path
