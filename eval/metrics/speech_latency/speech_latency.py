"""How soon and how steadily streamed speech arrives: real-time factor, time to first sound, underruns.

    evaluate.load("eval/metrics/speech_latency").compute(chunk_times=[[0.5, 1.2]], chunk_seconds=[[0.4, 0.6]])

All times are in seconds since the request. Speech that comes in one piece is one chunk.
"""

import itertools

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

TOLERANCE = 1e-3  # seconds: a gap this short is below a sound card's own buffer


def latency(
    chunk_times: list[float], chunk_seconds: list[float], time_to_first_text: float | None = None
) -> dict[str, float]:
    """`time_to_first_audio`, `real_time_factor`, `underruns` and `stalled` seconds of one answer's stream.

    chunk_times: when each chunk was there. chunk_seconds: how long each sounds. The player starts with the first chunk;
    each time the next one is not there when it is needed, playback stops until it is: an underrun. The real-time factor
    is the time from the first text token (without one, from the request) to the last chunk, over the seconds of sound:
    below 1, speech is made faster than it is heard. Raises ValueError for chunks that are out of order or none.
    """
    check(chunk_times, chunk_seconds, time_to_first_text)
    playing_until, underruns, stalled = chunk_times[0], 0, 0.0
    for arrival, seconds in zip(chunk_times, chunk_seconds, strict=True):
        gap = arrival - playing_until
        if gap > TOLERANCE:
            underruns, stalled = underruns + 1, stalled + gap
        playing_until = max(playing_until, arrival) + seconds
    return {
        "time_to_first_audio": chunk_times[0],
        "real_time_factor": (chunk_times[-1] - (time_to_first_text or 0.0)) / sum(chunk_seconds),
        "underruns": underruns,
        "stalled": stalled,
    }


def check(chunk_times: list[float], chunk_seconds: list[float], time_to_first_text: float | None) -> None:
    if not chunk_times or len(chunk_times) != len(chunk_seconds):
        raise ValueError(
            f"{len(chunk_times)} chunk_times and {len(chunk_seconds)} chunk_seconds: expected as many, at least one"
        )
    if any(later < earlier for earlier, later in itertools.pairwise(chunk_times)):
        raise ValueError(f"chunk_times {chunk_times}: expected times since the request, none before the one it follows")
    if min(chunk_seconds) <= 0:
        raise ValueError(f"chunk_seconds {chunk_seconds}: expected each chunk to last longer than 0 s")
    if not 0 <= (time_to_first_text or 0.0) <= chunk_times[-1]:
        raise ValueError(
            f"time_to_first_text {time_to_first_text}: expected 0 to the last chunk's time, {chunk_times[-1]}"
        )


class SpeechLatency(evaluate.Metric):
    """{"time_to_first_audio_median", ..., "stalled_p95"}: median and 95th percentile of what `latency` gives."""

    def _info(self):
        features = {key: Sequence(Value("float64")) for key in ("chunk_times", "chunk_seconds")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=Features(features))

    def _compute(self, chunk_times, chunk_seconds):
        found = [latency(*item) for item in zip(chunk_times, chunk_seconds, strict=True)]
        columns = {key: [one[key] for one in found] for key in found[0]}
        figures = (
            (f"{key}_{name}", values, q) for key, values in columns.items() for name, q in (("median", 50), ("p95", 95))
        )
        return {name: float(np.percentile(values, q)) for name, values, q in figures}
