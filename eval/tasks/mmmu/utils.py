"""MMMU: conversations with pictures between the words, scores, and the file for the server."""

import ast
import json
import re
import string
from pathlib import Path

from eval.metrics.mmmu.mmmu import mmmu, parse_letter

MARK = re.compile(r"<image (\d)>")


def options(doc):
    """The options as a list; the data set stores them as one string."""
    return ast.literal_eval(doc["options"])


def is_choice(doc):
    return doc["question_type"] == "multiple-choice"


def text(doc, parts):
    """Question, options and instruction, with the marks of the pictures in it."""
    if not is_choice(doc):
        return f"{doc['question']}\n\n{parts['open_ended_prompt']}"
    choices = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options(doc))]
    return "\n".join([doc["question"], *choices, "", parts["multiple_choice_prompt"]])


def messages(doc, parts):
    """One user turn in which each mark "<image N>" is the picture of column image_N."""
    content = []
    for place, piece in enumerate(MARK.split(text(doc, parts))):  # odd places hold the numbers of marks
        if place % 2:
            content.append({"type": "image", "image": doc[f"image_{piece}"]})
        elif piece.strip():
            content.append({"type": "text", "text": piece.strip()})
    return [{"role": "user", "content": content}]


def score(doc, results):
    """accuracy takes a response without a letter as wrong; accuracy_with_guess guesses then, as the authors' script does."""
    verdict = mmmu(results[0], doc | {"options": options(doc)})
    return {
        "accuracy": float(verdict["right"]),
        "accuracy_with_guess": float(verdict["right_with_guess"]),
        "parsed": verdict["parsed"],
    }


def chosen(doc, response):
    """What the server is told: a letter, "" if none can be read, or the response to an open question."""
    return parse_letter(response, options(doc)) or "" if is_choice(doc) else response.strip()


def answered(doc, results):
    has_answer = chosen(doc, results[0]) != ""
    return {"answered": float(has_answer), "parsed": has_answer}


def write(samples, docs, folder):
    """FOLDER/mmmu_test.json, {id: answer}, as the MMMU server on EvalAI takes it. Returns the file's path."""
    rows = ((docs[sample["index"]], sample["response"]) for sample in samples)
    path = Path(folder) / "mmmu_test.json"
    path.write_text(json.dumps({doc["id"]: chosen(doc, response) for doc, response in rows}, indent=1))
    return path
