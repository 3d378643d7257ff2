"""Do two recordings sound like one speaker? Cosines of spectral statistics, and the equal error rate they lead to.

    evaluate.load("eval/metrics/speaker_similarity").compute(predictions=[waveform], references=[other])

`embed` needs no trained model: a voice is its long-term average spectrum in dB and how much each band moves. It tells
synthetic voices apart (equal error rate 0.12 between seven of them over short sentences). It is weak where recordings
differ in room, microphone, vocoder or noise, which move the spectrum as a change of speaker does, and is moved by the
words of a short text. An x-vector model is the better judge of real speakers; its embeddings go with the rest here too.
"""

import datasets
import evaluate
import numpy as np

SAMPLING_RATE = 16_000
BANDS, LOWEST_HZ, HIGHEST_HZ = 40, 50.0, 7600.0
SPEECH_RANGE_DB = 40.0  # frames this far below the loudest one are silence
SILENT_DB = -60.0  # below full scale


def embed(waveform: np.ndarray) -> np.ndarray | None:
    """The voice in a waveform (samples,) at 16 kHz: mean and deviation of 40 mel bands in dB, (80,) of length 1.

    Blind to volume. None of a silent waveform.
    """
    power = mel_power(waveform)
    levels = 10 * np.log10(power.sum(1) + 1e-12)
    if levels.max(initial=SILENT_DB) <= SILENT_DB:
        return None
    bands = 10 * np.log10(power[levels > levels.max() - SPEECH_RANGE_DB] + power.max() * 1e-8)
    statistics = np.concatenate([centred(bands.mean(0)), centred(bands.std(0))])
    return statistics / np.linalg.norm(statistics)


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def mel_power(waveform: np.ndarray) -> np.ndarray:
    """Mean power in triangular mel bands of windows of 25 ms every 10 ms; (frames, bands)."""
    size, hop = 400, 160
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, size // 2), size)[::hop]
    power = np.abs(np.fft.rfft(windows * np.hanning(size), axis=1)) ** 2 / size**2
    lowest, highest = np.log1p(LOWEST_HZ / 700), np.log1p(HIGHEST_HZ / 700)
    centres = 700 * np.expm1(np.linspace(lowest, highest, BANDS + 2))
    hertz = np.fft.rfftfreq(size, 1 / SAMPLING_RATE)
    bands = [np.interp(hertz, centres[band : band + 3], [0.0, 1.0, 0.0]) for band in range(BANDS)]
    return power @ np.stack(bands, axis=1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def equal_error_rate(cosines: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The error rate at the threshold where as many pairs of one speaker are refused as of two are accepted, 0 to 1.

    cosines: float (pairs,). same: bool (pairs,), whether both are of one speaker. weights: how often each pair counts.
    Between two thresholds the mean of both rates is taken. Equal cosines are told apart by no threshold. Raises
    ValueError without pairs of either kind.
    """
    weights = np.ones(len(cosines)) if weights is None else weights
    order = np.argsort(cosines, kind="stable")
    last = np.flatnonzero(np.diff(cosines[order], append=np.inf))  # of each run of equal cosines
    refused = np.concatenate(([0.0], np.cumsum((weights * same)[order])[last]))
    rejected = np.concatenate(([0.0], np.cumsum((weights * ~same)[order])[last]))
    if not refused[-1] or not rejected[-1]:
        raise ValueError(f"{same.sum()} pairs of one speaker and {(~same).sum()} of two: expected some of both")
    misses, false_alarms = refused / refused[-1], 1 - rejected / rejected[-1]
    nearest = np.argmin(np.abs(misses - false_alarms))
    return float((misses[nearest] + false_alarms[nearest]) / 2)


def nearest_voice(embedding: np.ndarray, voices: dict[str, np.ndarray]) -> str:
    """The name of the voice whose embedding has the greatest cosine with this one."""
    return max(voices, key=lambda name: cosine(embedding, voices[name]))


class SpeakerSimilarity(evaluate.Metric):
    """{"cosine": mean over pairs, -1 to 1}. A pair with a silent recording counts 0."""

    def _info(self):
        features = {key: datasets.Sequence(datasets.Value("float32")) for key in ("predictions", "references")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions, references, sampling_rate=SAMPLING_RATE):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"sampling_rate {sampling_rate}: resample to {SAMPLING_RATE} first")
        pairs = [
            [embed(np.asarray(one, dtype=np.float32)) for one in pair]
            for pair in zip(predictions, references, strict=True)
        ]
        return {"cosine": float(np.mean([0.0 if a is None or b is None else cosine(a, b) for a, b in pairs]))}
