"""MMBench: prompts, scores over rotations, and the file for the server."""

from pathlib import Path

from openpyxl import Workbook

from eval.metrics.circular_accuracy.circular_accuracy import circular_accuracy as circular_accuracy
from eval.metrics.circular_accuracy.circular_accuracy import group_of
from eval.metrics.multiple_choice.multiple_choice import option

LETTERS = "ABCD"


def is_given(text):
    """Whether a field says something: what is missing is None or the text "nan"."""
    return bool(text) and text != "nan"


def options(doc):
    return {letter: doc[letter] for letter in LETTERS if is_given(doc[letter])}


def text(doc, parts):
    lines = [f"{letter}. {option}" for letter, option in options(doc).items()]
    hint = f"{doc['hint']} " if is_given(doc["hint"]) else ""
    return "\n".join([f"{hint}{doc['question']} There are several options:", *lines, parts["post_prompt"]])


def group(doc):
    return group_of(doc["index"])


def score(doc, results):
    letter = option(results[0], options(doc))
    return {
        "circular_accuracy": {"group": group(doc), "right": letter == doc["answer"]},
        "parsed": letter is not None,
    }


def answered(doc, results):
    letter = option(results[0], options(doc))
    return {"answered": float(letter is not None), "parsed": letter is not None}


def write(samples, docs, folder):
    """FOLDER/mmbench_en_test.xlsx, as the MMBench server takes it: its script reads the letter out of the prediction.

    Returns the file's path.
    """
    book = Workbook()
    columns = ["index", "question", *LETTERS]
    book.active.append([*columns, "prediction"])
    for sample in samples:
        doc = docs[sample["index"]]
        book.active.append([*(doc[column] for column in columns), sample["response"].strip()])
    path = Path(folder) / "mmbench_en_test.xlsx"
    book.save(path)
    return path
