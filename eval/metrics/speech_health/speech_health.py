"""Is spoken audio whole? Clipping, silence, an abrupt end, repeated passages and length, from the waveform alone.

    health = evaluate.load("eval/metrics/speech_health")
    health.compute(predictions=[waveform], references=["hello"], sampling_rate=16000)

A waveform is mono float in [-1, 1], shape (samples,). All measures but the rule for a silent one are blind to volume.
The limits were set on synthetic speech of seven voices, of which they blame none, and on damaged copies of it.
"""

import itertools
from collections import Counter

import datasets
import evaluate
import numpy as np

FRAME_SECONDS = 0.01
QUIETEST_DB = -120.0
SILENT_DB = -60.0  # below full scale: a waveform whose loudest frame is quieter is silent
SPEECH_RANGE_DB = 40.0  # a frame this far below the loudest one is silence
LONG_SILENCE = 1.0  # seconds
FLAT_SAMPLES = 4  # so many equal samples at the very top are a flat top; fewer may be the crest of a slow wave
HALF_STEP = 0.5 / 32768  # of 16-bit audio: closer samples are equal
CLIPPED_SHARE = 1e-4
ENDING_SECONDS = 0.005
ABRUPT_DB = 15.0  # an ending less than this below the speech's median level did not fade out
PATCH_FRAMES = 80  # what is said over again is told by patches of 0.8 s
SAME_PATCH = 0.85  # correlation of two patches: one sentence's own stay below 0.55, one said twice is above 0.95
BANDS, HIGHEST_HZ = 24, 5000
LETTERS_PER_SECOND = 13.0  # of English read aloud, some 165 words a minute
FAR_OFF = 2.0  # a duration this many times too long or too short is wrong


def frame_levels(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Root-mean-square levels of frames of 10 ms in dB below full scale, at least -120; shape (frames,)."""
    size = round(FRAME_SECONDS * sampling_rate)
    frames = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size)
    return level(frames)


def level(frames: np.ndarray) -> np.ndarray:
    power = np.mean(frames.astype(np.float64) ** 2, axis=-1)
    return 10 * np.log10(power + 10 ** (QUIETEST_DB / 10))


def speech_frames(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Which frames of 10 ms hold sound, bool (frames,); none of a silent waveform. Steady noise counts as sound."""
    levels = frame_levels(waveform, sampling_rate)
    loudest = levels.max(initial=QUIETEST_DB)
    return (levels > loudest - SPEECH_RANGE_DB) & (loudest > SILENT_DB)


def silences(waveform: np.ndarray, sampling_rate: int) -> dict[str, float]:
    """Seconds of silence before (`leading`) and after (`trailing`) the speech, and of its longest pause (`inside`).

    `speech`: seconds from its first to its last sound; 0 for a silent waveform, all of which is leading silence.
    """
    places = np.flatnonzero(speech_frames(waveform, sampling_rate))
    seconds = len(waveform) / sampling_rate
    if not len(places):
        return {"speech": 0.0, "leading": seconds, "trailing": 0.0, "inside": 0.0}
    start, end = float(places[0]) * FRAME_SECONDS, min(seconds, float(places[-1] + 1) * FRAME_SECONDS)
    pause = float(np.diff(places).max(initial=1) - 1) * FRAME_SECONDS
    return {"speech": end - start, "leading": start, "trailing": seconds - end, "inside": pause}


def clipped_share(waveform: np.ndarray) -> float:
    """Share of samples on flat tops: runs of equal samples at the waveform's own highest or lowest value.

    Clipping before a change of volume is seen, and what playback will clip, beyond -1 and 1; clipping before resampling
    or lossy coding is not.
    """
    waveform, flat = np.clip(waveform, -1, 1), 0
    for extreme in (waveform.max(initial=0.0), waveform.min(initial=0.0)):
        if abs(extreme) > HALF_STEP:
            edges = np.flatnonzero(np.diff(np.pad(np.abs(waveform - extreme) < HALF_STEP, 1).astype(np.int8)))
            runs = edges[1::2] - edges[::2]
            flat += int(runs[runs >= FLAT_SAMPLES].sum())
    return flat / max(1, len(waveform))


def ends_abruptly(waveform: np.ndarray, sampling_rate: int) -> bool:
    """Whether the last 5 ms are about as loud as the speech is, as where it was cut off.

    A cut that falls into a pause or into the closure of a stop consonant is not seen: one in five of synthetic speech.
    """
    speech = speech_frames(waveform, sampling_rate)
    if not speech.any():
        return False
    usual = np.median(frame_levels(waveform, sampling_rate)[speech])
    return bool(level(waveform[-round(ENDING_SECONDS * sampling_rate) :]) > usual - ABRUPT_DB)


def repeated_seconds(waveform: np.ndarray, sampling_rate: int) -> float:
    """Seconds of speech that sound like an earlier passage, of at least 0.8 s, of the same waveform.

    Correlates patches of the log spectrum at every distance. Finds the loops of a synthesiser, which says a thing the
    same way each time; a sentence said twice with another melody and timing is not found, nor a vowel held too long.
    """
    spectrum = log_spectrum(waveform, sampling_rate)
    energy = patch_sums((spectrum**2).sum(1))
    spoken = patch_sums(spectrum.any(1)) > 0.75 * PATCH_FRAMES
    repeated = np.zeros(len(spectrum), dtype=bool)
    for lag in range(PATCH_FRAMES, len(spectrum) - PATCH_FRAMES + 1):
        products = patch_sums((spectrum[lag:] * spectrum[:-lag]).sum(1))
        alike = products > SAME_PATCH * np.sqrt(energy[:-lag] * energy[lag:])
        for start in np.flatnonzero(alike & spoken[:-lag] & spoken[lag:]) + lag:
            repeated[start : start + PATCH_FRAMES] = True
    return float(repeated.sum()) * FRAME_SECONDS


def log_spectrum(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Log energies in 24 mel bands of 32 ms every 10 ms, less their mean, zeros in silence; (frames, bands) float32."""
    size, hop = round(0.032 * sampling_rate), round(FRAME_SECONDS * sampling_rate)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, size // 2), size)[::hop]
    power = np.abs(np.fft.rfft(windows * np.hanning(size), axis=1)) ** 2
    mel = np.log1p(np.fft.rfftfreq(size, 1 / sampling_rate) / 700)
    band = np.digitize(mel, np.linspace(mel[1], np.log1p(HIGHEST_HZ / 700), BANDS + 1))
    energies = np.stack([power[:, band == number].sum(1) for number in range(1, BANDS + 1)], axis=1)
    floor = max(energies.max(initial=0.0) * 10 ** (-SPEECH_RANGE_DB / 10), 1e-12)
    spectrum, sounding = np.log(np.maximum(energies, floor)), energies.max(1) > floor
    mean = spectrum[sounding].sum(0) / max(1, sounding.sum())
    return np.where(sounding[:, None], spectrum - mean, 0).astype(np.float32)


def patch_sums(values: np.ndarray) -> np.ndarray:
    """Sums of every PATCH_FRAMES consecutive values."""
    sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    return sums[PATCH_FRAMES:] - sums[:-PATCH_FRAMES]


def says_twice(text: str) -> bool:
    """Whether the text itself has some two words in a row twice, so that repetition in its sound is no fault."""
    words = text.lower().split()
    return max(Counter(itertools.pairwise(words)).values(), default=0) > 1


def expected_seconds(text: str) -> float:
    """How long the text's letters and digits take to say, within a factor of about 1.5 for English prose.

    Digits take longer than letters do: a text of numbers is better measured against a reference recording.
    """
    return sum(character.isalnum() for character in text) / LETTERS_PER_SECOND


def defects(
    waveform: np.ndarray, sampling_rate: int, text: str, reference_seconds: float | None = None
) -> dict[str, bool]:
    """What is wrong with the sound: `silent`, `clipped`, `long_silence`, `truncated`, `repeated`, `duration_off`.

    reference_seconds: how long real speech of the text lasts; None: judged by the text's letters. A silent waveform is
    silent, and nothing else.
    """
    found = silences(waveform, sampling_rate)
    if not found["speech"]:
        return {"silent": True} | dict.fromkeys(
            ("clipped", "long_silence", "truncated", "repeated", "duration_off"), False
        )
    ratio = found["speech"] / (reference_seconds or expected_seconds(text))
    return {
        "silent": False,
        "clipped": clipped_share(waveform) > CLIPPED_SHARE,
        "long_silence": max(found["leading"], found["trailing"], found["inside"]) > LONG_SILENCE,
        "truncated": ends_abruptly(waveform, sampling_rate),
        "repeated": not says_twice(text) and repeated_seconds(waveform, sampling_rate) > 0,
        "duration_off": not 1 / FAR_OFF < ratio < FAR_OFF,
    }


class SpeechHealth(evaluate.Metric):
    """Share of waveforms with each of the `defects`, and with any ("defective"). references: the texts."""

    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions, references, sampling_rate):
        pairs = zip(predictions, references, strict=True)
        found = [defects(np.asarray(waveform, dtype=np.float32), sampling_rate, text) for waveform, text in pairs]
        shares = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        return shares | {"defective": float(np.mean([any(one.values()) for one in found]))}
