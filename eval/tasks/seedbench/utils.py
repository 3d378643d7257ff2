"""SEED-Bench: scores, the names of its dimensions, and its part with pictures."""

from eval.metrics.multiple_choice.multiple_choice import first_character

DIMENSIONS = (  # of question_type_id 1, 2, ...
    "scene understanding", "instance identity", "instance attribute", "instance location", "instance counting",
    "spatial relation", "instance interaction", "visual reasoning", "text recognition", "action recognition",
    "action prediction", "procedure understanding",
)  # fmt: skip


def with_one_picture(rows):
    return rows.filter(lambda kind: kind == "image", input_columns="data_type")


def category(doc):
    return DIMENSIONS[doc["question_type_id"] - 1]


def score(doc, results):
    letter = first_character(results[0], "ABCD")
    return {"accuracy": float(letter == doc["answer"]), "parsed": letter is not None}
