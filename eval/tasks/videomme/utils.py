"""Video-MME: scores, and where a video lies."""

from eval.metrics.multiple_choice.multiple_choice import standalone


def video(doc):
    """The video's path within the data set."""
    return [f"data/{doc['videoID']}.mp4"]


def score(doc, results):
    letter = standalone(results[0], "ABCD")
    return {"accuracy": float(letter == doc["answer"]), "parsed": letter is not None}
