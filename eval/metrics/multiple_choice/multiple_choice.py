"""Multiple choice: which letter a response chooses, by the rule of each benchmark, and how often it is the right one.

    evaluate.load("eval/metrics/multiple_choice").compute(predictions=["(B)"], references=["B"], rule="standalone")

A rule takes the response and the letters to choose from ("ABCD") and gives one of them, or None if it cannot tell: then
the answer is wrong, never a guess. MMMU's rule is in `mmmu`.
"""

import re
from statistics import fmean

import evaluate
from datasets import Features, Value


def alone_or_prefix(response: str, letters: str) -> str | None:
    """ScienceQA: the response is the letter in either case, or opens with the capital and a full stop: "A. cat"."""
    response = response.strip()
    if re.match(r"[A-Z]\.", response):
        response = response[0]
    return response.upper() if len(response) == 1 and response.upper() in letters else None


def first_character(response: str, letters: str) -> str | None:
    """SEED-Bench: the first character, in either case, whatever follows it."""
    first = response.strip()[:1].upper()
    return first if first and first in letters else None


def standalone(response: str, letters: str) -> str | None:
    """VideoMME, MVBench: the response but for marks is the letter in either case, else the first capital on its own.

    On its own is a letter with no other letter or digit beside it: "(B)", "B: cat", "The answer is B.". VideoMME's
    script takes the first capital even within a word, where "Because" is a B; that would score chance.
    """
    bare = response.strip(" \t\r\n.,:;()[]*\"'").upper()
    if len(bare) == 1 and bare in letters:
        return bare
    found = re.search(rf"(?<![A-Za-z0-9])[{letters}](?![A-Za-z0-9])", response)
    return found.group() if found else None


def option(response: str, options: dict[str, str]) -> str | None:
    """MMBench: the only letter that is a word of the response, else the only option whose text is part of it.

    options: letter to text. A letter may have the marks that VLMEvalKit's `can_infer` knows: "B", "B.", "(B)", ":B,".
    "A" without any is an article in more than three words. Case counts for letters and not for texts.
    """
    words = response.split()
    for marks in "{} {}. {}, {}: {}) {}). ({}) ({}). :{} :{}, :{}. :{}) :{}).".split():
        found = [letter for letter in options if marks.format(letter) in words]
        is_article = marks == "{}" and found == ["A"] and len(words) > 3
        if len(found) == 1 and not is_article:
            return found[0]
    found = [letter for letter, text in options.items() if text.lower() in response.lower()]
    return found[0] if len(found) == 1 else None


RULES = {"alone_or_prefix": alone_or_prefix, "first_character": first_character, "standalone": standalone}


class MultipleChoice(evaluate.Metric):
    """{"accuracy", "parse_failures"}: shares in 0..1 of right and of unreadable answers.

    references: letters; `compute` also takes rule (a key of RULES, needed) and letters (default "ABCD").
    """

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references, rule, letters="ABCD"):
        if outside := set(references) - set(letters):
            raise ValueError(f"references {sorted(outside)} are not among the letters {letters!r}")
        chosen = [RULES[rule](response, letters) for response in predictions]
        right = [letter == reference for letter, reference in zip(chosen, references, strict=True)]
        return {"accuracy": fmean(right), "parse_failures": fmean(letter is None for letter in chosen)}
