"""MMMU: the letter that a response chooses, or the short answer in it, and the accuracy of both together.

    evaluate.load("eval/metrics/mmmu").compute(predictions=["(B)"], references=[
        {"id": "validation_Art_1", "question_type": "multiple-choice", "options": ["cat", "dog"], "answer": "B"}])

Source: Yue et al. 2024, "MMMU", by the rules of the authors' eval_utils.py, but for two: a response without a letter is
wrong (theirs is a random guess, which moves a score by points between runs), and of several "A." the last is the answer
as of all other forms (theirs takes the first option).
"""

import ast
import random
import re
import string
from statistics import fmean

import evaluate
from datasets import Features, Sequence, Value

# How a letter is written, and how its place is found: where several are, the one that is written last is the answer.
LETTER_FORMS = (("({})", "({})"), ("{} ", " {} "), ("{}.", "{}."))
WORDS_TO_SEARCH = 5  # a longer response may name the text of an option instead

CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # what an answer follows
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,000
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1e3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 1000, 0.5, .5
)


# ------------------------------------------------------------------------------------------------ multiple choice


def last_written(found: list[str], form, text: str) -> str | None:
    """The letter whose form stands last in the text; the first of several that stand nowhere; None of no letters."""
    return max(found, key=lambda letter: text.rfind(form(letter)), default=None)


def parse_letter(response: str, options: list[str]) -> str | None:
    """The letter that a response chooses among the options A, B, ...: "(B)", else "B ", else "B.", else by a text.

    Options' texts are looked for, in either case, in responses of more than five words. None if nothing is found.
    """
    for mark in ",.!?;:'":
        response = response.strip(mark)
    response = f" {response.strip()} "
    texts = dict(zip(string.ascii_uppercase, (option.lower() for option in options)))
    for form, place in LETTER_FORMS:
        if found := [letter for letter in texts if form.format(letter) in response]:
            return last_written(found, place.format, response)
    if len(response.split()) <= WORDS_TO_SEARCH:
        return None
    response = response.lower()
    return last_written([letter for letter, text in texts.items() if text in response], texts.get, response)


def guess(item_id: str, options: list[str]) -> str:
    """A letter drawn at random with the item's id as seed: every run, on any machine, guesses the same."""
    return random.Random(item_id).choice(string.ascii_uppercase[: len(options)])


# ------------------------------------------------------------------------------------------------ open questions


def normalize(text: str) -> list[str | float]:
    """A number to two places (commas go), or lower-case text; one letter gets a space on a side, to be a word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def key_phrases(response: str) -> list[str]:
    """Of each line the shortest end that follows a cue ("is ", in the last line also "="); without any, all of it."""
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    phrases = []
    for number, line in enumerate(lines, 1):
        cues = (*CUES, "=") if number == len(lines) else CUES
        ends = [line.rsplit(cue, 1)[1].strip() for cue in cues if cue in line]
        phrases.append(min(filter(None, ends), key=len, default=""))
    return [phrase for phrase in phrases if phrase and phrase not in ":,.!?;'"] or [response]


def parse_open(response: str) -> list[str | float]:
    """What a response may have answered: its key phrases and all numbers in them, normalised."""
    phrases = key_phrases(response)
    numbers = [number for phrase in phrases for pattern in NUMBERS for number in re.findall(pattern, phrase)]
    return [candidate for text in phrases + numbers for candidate in normalize(text)]


def read_answers(answer: str) -> list[str]:
    """The right answers of a row; the data set writes several as a Python list: "['24/7', '3.429']"."""
    return ast.literal_eval(answer) if answer.startswith(("['", '["')) else [answer]


def is_open_right(response: str, answers: list[str]) -> bool:
    """Whether a number of the response is one of the answers to two places, or a phrase of it has an answer in it."""
    right = [candidate for answer in answers for candidate in normalize(answer)]
    texts = [text for text in right if isinstance(text, str)]
    return any(
        any(text in candidate for text in texts) if isinstance(candidate, str) else candidate in right
        for candidate in parse_open(response)
    )


# ------------------------------------------------------------------------------------------------ both


def mmmu(response: str, row: dict) -> dict[str, bool]:
    """{"right", "right_with_guess", "parsed"} of a response to a row with id, question_type, options (list) and answer.

    Without a letter, right is False and right_with_guess is up to `guess`. An open question counts as parsed. Raises
    ValueError if the answer to a multiple choice is no letter of its options.
    """
    if row["question_type"] != "multiple-choice":
        right = is_open_right(response, read_answers(row["answer"]))
        return {"right": right, "right_with_guess": right, "parsed": True}
    letters = string.ascii_uppercase[: len(row["options"])]
    if len(row["answer"]) != 1 or row["answer"] not in letters:
        raise ValueError(f"{row['id']}: the answer {row['answer']!r} is none of the letters {letters!r} of its options")
    letter = parse_letter(response, row["options"])
    guessed = (letter or guess(row["id"], row["options"])) == row["answer"]
    return {"right": letter == row["answer"], "right_with_guess": guessed, "parsed": letter is not None}


class MMMU(evaluate.Metric):
    """{"mmmu", "mmmu_with_guess", "parse_failures"}: shares in 0..1 of all items (micro average)."""

    def _info(self):
        row = dict.fromkeys(("id", "question_type", "answer"), Value("string")) | {"options": Sequence(Value("string"))}
        features = Features({"predictions": Value("string"), "references": row})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:2311.16502", features=features)

    def _compute(self, predictions, references):
        results = [mmmu(*pair) for pair in zip(predictions, references, strict=True)]
        right, with_guess, parsed = (fmean(r[key] for r in results) for key in ("right", "right_with_guess", "parsed"))
        return {"mmmu": right, "mmmu_with_guess": with_guess, "parse_failures": 1 - parsed}
