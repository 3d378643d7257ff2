"""Word error rate of recognised speech, after the normalisers of Whisper.

    evaluate.load("eval/metrics/word_error_rate").compute(predictions=["It's 5%"], references=["it is five percent"])

Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C. The rate is of
the corpus, all errors over all words, so long utterances weigh more than short ones.
"""

import re
from collections.abc import Callable

import evaluate
import jiwer
from datasets import Features, Value
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

ENGLISH = EnglishTextNormalizer()
BASIC = BasicTextNormalizer()


def normalize_english(text: str) -> str:
    """Lower case, American spelling, contractions written out, numbers as digits; no marks, brackets or hesitations.

    Whisper's leaves a mark of "Hello..." as a word of its own; here it is none.
    """
    return " ".join(word for word in ENGLISH(text).split() if re.search(r"\w", word))


def normalize_basic(text: str) -> str:
    """For other languages: lower case without brackets, punctuation, symbols and combining marks."""
    return " ".join(BASIC(text).split())


def word_errors(answer: str, reference: str, normalize: Callable[[str], str] = normalize_english) -> list[int]:
    """[errors, words]: substitutions, deletions and insertions against the reference, and the reference's words.

    An empty answer misses every word; each word of an answer to an empty reference (silence) is an error.
    """
    alignment = jiwer.process_words(normalize(reference), normalize(answer))
    errors = alignment.substitutions + alignment.deletions + alignment.insertions
    return [errors, alignment.hits + alignment.substitutions + alignment.deletions]


def word_error_rate(counts: list[list[int]]) -> float:
    """Errors over words of all utterances' `word_errors`; may be above 1. Raises ValueError if there are no words."""
    errors, words = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if not words:
        raise ValueError(f"the {len(counts)} references have no words, so there is no word error rate")
    return errors / words


class WordErrorRate(evaluate.Metric):
    """{"word_error_rate": 0..}. `compute` also takes language: "en" (the default); others get the basic normaliser."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:2212.04356", features=features)

    def _compute(self, predictions, references, language="en"):
        normalize = normalize_english if language == "en" else normalize_basic
        pairs = zip(predictions, references, strict=True)
        return {"word_error_rate": word_error_rate([word_errors(*pair, normalize) for pair in pairs])}
