"""What of an answer can be heard, by what a recogniser wrote down: character errors, the answer, repeated phrases.

    evaluate.load("eval/metrics/spoken_answer").compute(predictions=["it is 23"], references=["twenty three"])

Both texts pass Whisper's English normaliser (Radford et al. 2022, appendix C), so "23" and "twenty three" are the same.
The word error rate is a metric of its own, eval/metrics/word_error_rate.
"""

from collections import Counter

import evaluate
import jiwer
from datasets import Features, Value
from whisper_normalizer.english import EnglishTextNormalizer

ENGLISH = EnglishTextNormalizer()
PHRASE_WORDS = 3


def words(text: str) -> list[str]:
    """The text's words as they are compared; what has neither letter nor digit is none."""
    return [word for word in ENGLISH(text).split() if any(character.isalnum() for character in word)]


def character_errors(heard: str, text: str) -> list[int]:
    """[errors, characters]: substitutions, deletions and insertions against the text, and its length with spaces."""
    alignment = jiwer.process_characters(" ".join(words(text)), " ".join(words(heard)))
    errors = alignment.substitutions + alignment.deletions + alignment.insertions
    return [errors, alignment.hits + alignment.substitutions + alignment.deletions]


def is_heard(heard: str, answer: str) -> bool:
    """Whether all words of the answer were heard, one after the other; more may stand around them.

    Raises ValueError for an answer without words.
    """
    wanted, found = words(answer), words(heard)
    if not wanted:
        raise ValueError(f"the answer {answer!r} has no words that could be heard")
    return any(found[start : start + len(wanted)] == wanted for start in range(len(found) - len(wanted) + 1))


def repeated_phrases(heard: str, text: str) -> int:
    """How many phrases of three words were heard twice or more, and more often than the text has them."""
    wanted, found = phrases(text), phrases(heard)
    return sum(count > max(1, wanted[phrase]) for phrase, count in found.items())


def phrases(text: str) -> Counter:
    found = words(text)
    return Counter(zip(*(found[start:] for start in range(PHRASE_WORDS))))


class SpokenAnswer(evaluate.Metric):
    """{"answer_heard": share in 0..1, "character_error_rate": 0..}. predictions: what was heard."""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="arXiv:2212.04356", features=features)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        errors, characters = (sum(column) for column in zip(*(character_errors(*pair) for pair in pairs)))
        heard = sum(is_heard(*pair) for pair in pairs) / len(pairs)
        return {"answer_heard": heard, "character_error_rate": errors / characters}
