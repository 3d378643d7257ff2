"""MME: two yes-or-no questions on each picture, one of which has the answer no, in fourteen categories.

    evaluate.load("eval/metrics/mme").compute(predictions=["Yes", "No"], references=["Yes", "No"],
        categories=["count", "count"], images=["1.jpg", "1.jpg"])

Source: Fu et al. 2023, "MME", by the rules of the authors' calculation.py.
"""

from collections import defaultdict
from statistics import fmean

import evaluate
from datasets import Features, Value

PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()
QUESTIONS = 2  # on each picture


def parse(response: str) -> str | None:
    """ "yes" or "no" if its first four characters have that word in them, in either case; else None."""
    start = response.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), None)


def category_score(items: list[dict]) -> float:
    """100 x (share of right answers + share of pictures with both answers right), at most 200.

    items: {"group": str, the picture, "right": bool} of one category. Raises ValueError unless each picture has two.
    """
    pictures = defaultdict(list)
    for item in items:
        pictures[item["group"]].append(item["right"])
    for picture, rights in pictures.items():
        if len(rights) != QUESTIONS:
            raise ValueError(f"MME asks {QUESTIONS} questions on each picture; {picture} has {len(rights)}")
    return 100 * (fmean(item["right"] for item in items) + fmean(all(rights) for rights in pictures.values()))


def category_scores(items: list[dict]) -> dict[str, float]:
    """The score of each "category" among the items."""
    names = sorted({item["category"] for item in items})
    return {name: category_score([item for item in items if item["category"] == name]) for name in names}


def total(items: list[dict]) -> float:
    """The sum over categories: at most 2000 for perception, 800 for cognition.

    items: {"category", "group", "right"}.
    """
    return sum(category_scores(items).values())


class MME(evaluate.Metric):
    """{"perception": 0..2000, "cognition": 0..800, "categories": {name: 0..200}}. references: "yes" or "no", any case.

    A category without items adds nothing to its sum.
    """

    def _info(self):
        features = Features({key: Value("string") for key in ("predictions", "references", "categories", "images")})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:2306.13394", features=features)

    def _compute(self, predictions, references, categories, images):
        if wrong := [reference for reference in references if parse(reference) is None]:
            raise ValueError(f"references have to be yes or no, found {wrong[0]!r}")
        rows = zip(predictions, references, categories, images, strict=True)
        items = [{"right": parse(p) == parse(r), "category": c, "group": f"{c}/{image}"} for p, r, c, image in rows]
        scores = category_scores(items)
        perception, cognition = (sum(scores.get(name, 0.0) for name in part) for part in (PERCEPTION, COGNITION))
        return {"perception": perception, "cognition": cognition, "categories": scores}
