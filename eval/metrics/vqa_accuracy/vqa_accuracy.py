"""VQA accuracy: an answer is as right as people agree with it (VQAv2, TextVQA, VizWiz).

    evaluate.load("eval/metrics/vqa_accuracy").compute(predictions=["two"], references=[["2"] * 10])

Source: Antol et al. 2015, "VQA: Visual Question Answering"; texts are normalised as the EvalAI server does.
"""

import re
from statistics import fmean

import evaluate
from datasets import Features, Sequence, Value

ANSWERS = 10  # people asked about each question
AGREEING = 3  # of them make an answer fully right

ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'

# The server knows these words without one of their apostrophes. Others ("lets", "shes", "its") it takes as they are.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in CONTRACTED for place, char in enumerate(word) if char == "'"
} | {"somebody'd": "somebodyd"}


def without_punctuation(text: str) -> str:
    """Marks go, or become a space if the text never has them beside one; a full stop goes unless a digit follows."""
    without = text
    for mark in PUNCTUATION:
        without = without.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", without)


def normalize(text: str) -> str:
    """The text as EvalAI compares it: lower case, no articles, digits for zero to ten, apostrophes put back, no marks.

    A comma or a question mark goes without a space: "1,000" is "1000". VQAv2's own script lacks that first step and the
    parting of "'s"; it and the server differ in the few answers with a comma between letters, or with "that's".
    """
    text = " ".join(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").split())
    words = [NUMBERS.get(word, word) for word in without_punctuation(text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: list[str]) -> float:
    """The accuracy in 0..1: min(1, agreeing / 3) among nine of the ten people, averaged over who is left out.

    So one to four or more who agree give 0.3, 0.6, 0.9 and 1. An empty answer is compared like any other. Raises
    ValueError unless there are ten references.
    """
    if len(references) != ANSWERS:
        raise ValueError(f"VQA accuracy is defined for {ANSWERS} answers by people, found {len(references)}")
    same = [normalize(answer) == normalize(reference) for reference in references]
    return fmean(min(1.0, (sum(same) - left_out) / AGREEING) for left_out in same)


class VQAAccuracy(evaluate.Metric):
    """{"vqa_accuracy": mean in 0..1}. references: ten answers for each prediction."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Sequence(Value("string"))})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:1505.00468", features=features)

    def _compute(self, predictions, references):
        return {"vqa_accuracy": fmean(map(vqa_accuracy, predictions, references))}
