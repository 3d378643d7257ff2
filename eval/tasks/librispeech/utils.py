"""LibriSpeech: word errors of an utterance, and their rate over the corpus."""

from eval.metrics.word_error_rate.word_error_rate import word_error_rate as word_error_rate
from eval.metrics.word_error_rate.word_error_rate import word_errors


def score(doc, results):
    return {"wer": word_errors(results[0], doc["gt"])}
