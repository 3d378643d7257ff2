"""Coughs, laughs and breaths, computed: what people utter between words.

    python -m training.synthesis.nonverbal laugh --seed 3 --output laugh.wav

Each function takes a random.Random and a duration in seconds and returns mono float32 at 16 kHz with a peak of 1. A voice or
noise source passes resonances of a vocal tract (Fant 1960, "Acoustic Theory of Speech Production"). Every call is another
speaker: pitch, length of the vocal tract, number and spacing of the bursts vary.
"""

import argparse
import random

import numpy as np
from scipy.signal import butter, lfilter

from training.synthesis.voices import SAMPLING_RATE


def cough(rng: random.Random, duration: float) -> np.ndarray:
    """One to three coughs: a burst, a hoarse decay, and often a voiced end (the phases of Korpas et al. 1996)."""
    coughs = max(1, round(duration / rng.uniform(0.3, 0.5)))
    tract, pitch = rng.uniform(0.85, 1.15), rng.uniform(110, 280)
    waveform = np.zeros(samples_of(duration), np.float32)
    for number in range(coughs):
        seconds = timeline(duration / coughs)
        part = seconds / seconds[-1]
        burst = np.exp(-seconds / rng.uniform(0.02, 0.04)) + rng.uniform(0.15, 0.35) * np.exp(-part / 0.35)
        source = white(rng, len(seconds)) * (1 - np.exp(-seconds / 0.003)) * burst
        if rng.random() < 0.6:
            source += 0.25 * np.exp(-(((part - 0.6) / 0.15) ** 2)) * voice(pitch * (1.1 - 0.4 * part))
        sound = resonate(source, (550 * tract, 1450 * tract, 2700 * tract, 4100 * tract), 250) * fade(len(seconds))
        add(waveform, number * duration / coughs, sound * 0.8**number)
    return normalised(waveform)


def laugh(rng: random.Random, duration: float) -> np.ndarray:
    """Voiced "ha" calls, 4 to 6 a second, whose pitch and level fall; pitched higher than speech (Bachorowski et al. 2001)."""
    calls = max(2, round(duration * rng.uniform(4, 6)))
    tract, pitch = rng.uniform(0.85, 1.2), rng.uniform(160, 420)
    fall, decay = rng.uniform(0.55, 0.8), rng.uniform(0.35, 0.8)
    waveform = np.zeros(samples_of(duration), np.float32)
    for number in range(calls):
        done = number / calls
        seconds = timeline(duration / calls)
        part = seconds / seconds[-1]
        breathy, voiced = (np.exp(-(((part - middle) / width) ** 2)) for middle, width in ((0.15, 0.12), (0.55, 0.2)))
        contour = pitch * fall**done * (1 + 0.25 * np.sin(np.pi * part)) * rng.uniform(0.95, 1.05)
        source = voiced * voice(contour) + (0.25 * breathy + 0.03 * voiced) * white(rng, len(seconds))
        sound = resonate(source, (750 * tract, 1300 * tract, 2600 * tract, 3700 * tract), 120) * fade(len(seconds))
        add(waveform, done * duration, normalised(sound) * decay**done)
    return normalised(waveform)


def breath(rng: random.Random, duration: float) -> np.ndarray:
    """Air drawn in: noise that swells and ends at once, strongest between 0.8 and 2 kHz."""
    seconds = timeline(duration)
    part, tract = seconds / duration, rng.uniform(0.9, 1.15)
    swell = np.minimum(part / rng.uniform(0.5, 0.8), 1) ** rng.uniform(1, 2) * np.minimum((1 - part) / rng.uniform(0.1, 0.2), 1)
    rough = lfilter(*butter(1, 12, fs=SAMPLING_RATE), white(rng, len(seconds))) * 15
    noise = lfilter(*butter(2, (350, 5000), "bandpass", fs=SAMPLING_RATE), white(rng, len(seconds)))
    return normalised(resonate(noise, (850 * tract, 1600 * tract, 2900 * tract), 350) * swell * (1 + 0.2 * rough))


SOUNDS = {function.__name__: function for function in (cough, laugh, breath)}
DURATIONS = {"cough": (0.3, 1.1), "laugh": (0.6, 1.6), "breath": (0.4, 0.9)}  # seconds, of `random_sound`


def random_sound(rng: random.Random, name: str) -> np.ndarray:
    """The named sound, as long as it usually is."""
    return SOUNDS[name](rng, rng.uniform(*DURATIONS[name]))


# ------------------------------------------------------------------------------------------------ source and tract


def samples_of(seconds: float) -> int:
    return round(seconds * SAMPLING_RATE)


def timeline(duration: float) -> np.ndarray:
    """Seconds since the start, one a sample."""
    return np.arange(samples_of(duration)) / SAMPLING_RATE


def white(rng: random.Random, samples: int) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).normal(0, 1, samples)


def voice(pitch: np.ndarray) -> np.ndarray:
    """A glottal source of that pitch (samples,) in Hz: harmonics that fall by 12 dB an octave, all below 5 kHz."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
    harmonics = range(1, int(5000 / pitch.max()) + 1)
    return sum(np.sin(k * phase) / k**2 for k in harmonics) * 4


def resonate(source: np.ndarray, formants: tuple[float, ...], bandwidth: float) -> np.ndarray:
    """Two-pole resonances in series, in Hz; each wider than the one before, as in a throat."""
    for number, formant in enumerate(formants):
        radius = np.exp(-np.pi * bandwidth * (1 + 0.4 * number) / SAMPLING_RATE)
        poles = [1, -2 * radius * np.cos(2 * np.pi * formant / SAMPLING_RATE), radius**2]
        source = lfilter([sum(poles)], poles, source)
    return lfilter([1, -0.95], [1], source)  # lips radiate high frequencies better


def fade(samples: int, seconds: float = 0.01) -> np.ndarray:
    """A gain of 1 that falls to 0 at the end: what follows starts without a click."""
    return np.clip((samples - 1 - np.arange(samples)) / samples_of(seconds), 0, 1)


def add(waveform: np.ndarray, start: float, sound: np.ndarray) -> None:
    """Adds a sound from `start` seconds on, cut off where the waveform ends."""
    first = samples_of(start)
    room = waveform[first : first + len(sound)]
    room += sound[: len(room)]


def normalised(waveform: np.ndarray) -> np.ndarray:
    return (waveform / np.abs(waveform).max()).astype(np.float32)


def main() -> None:
    import soundfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", choices=SOUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, help="WAV file to write")
    args = parser.parse_args()
    soundfile.write(args.output, 0.6 * random_sound(random.Random(args.seed), args.sound), SAMPLING_RATE)


if __name__ == "__main__":
    main()
