"""Speech of the small world: eSpeak NG says a text in one of seven voices and tells when each sound begins.

    python -m training.synthesis.voices "the lamp is in the kitchen" --voice Emma --output lamp.wav

eSpeak NG (GPL-3.0) makes training data only; nothing at run time imports it.
Source of the calls: speak_lib.h of eSpeak NG 1.52.
"""

import _ctypes
import argparse
import ctypes
import os
import random
from dataclasses import dataclass

import espeakng_loader
import numpy as np
import soxr

SAMPLING_RATE = 16_000
VOICES = {
    "Chris": "en-us+m3", "Mia": "en-us+f2", "Jim": "en-gb-x-rp+m7", "Emma": "en-gb-x-rp+f4",
    "Tom": "en-us+klatt2", "Lucy": "en-us+anika", "Alex": "en-gb-scotland+m1",
}  # fmt: skip
HELD_OUT_VOICES = {"Nora": "en-us+linda"}  # never heard in training
PEAK = 0.6  # every voice is brought to this peak: Tom's is much quieter than the others

_WORD, _PHONEME = 1, 7  # espeak_EVENT_TYPE
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass
class Utterance:
    """A spoken text: mono float32 at 16 kHz in [-1, 1]; `words` and `phonemes` as (text, start, end) in seconds."""

    waveform: np.ndarray
    words: list[tuple[str, float, float]]
    phonemes: list[tuple[str, float, float]]


def synthesize(text: str, voice: str, parameters: dict[int, int]) -> tuple[np.ndarray, list[tuple], int]:
    """(waveform float32, events, sampling rate) from an engine loaded for this text alone.

    eSpeak NG keeps phases and noise from one text to the next in static variables that no call resets; loading its
    library anew (10 ms) makes the same text sound the same every time. Raises RuntimeError if other code of this process
    holds the library, which then is not loaded anew.
    """
    path = espeakng_loader.get_library_path()
    if _is_loaded(path):
        raise RuntimeError(f"{path} is already loaded in this process, so the same text would not sound the same every time")
    samples, events = [], []

    def collect(chunk, count, batch) -> int:
        if chunk and count:
            samples.append(np.ctypeslib.as_array(chunk, (count,)).copy())
        for i in range(10**6):
            event = batch[i]
            if not event.type:
                return 0
            events.append((event.type, event.text_position, event.length, event.audio_position / 1000, event.id))

    library = ctypes.CDLL(path)
    try:
        # 2: AUDIO_OUTPUT_SYNCHRONOUS; option 1: phoneme events. Mode 1 (retrieval) cuts long texts short.
        rate = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 1)
        callback = _CALLBACK(collect)
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"eSpeak NG has no voice {voice!r}; known here: {', '.join(VOICES.values())}")
        for parameter, value in parameters.items():
            library.espeak_SetParameter(parameter, value, 0)
        raw = text.encode() + b"\0"
        library.espeak_Synth(raw, len(raw), 0, 1, 0, 1, None, None)  # 1: by characters; 1: UTF-8
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return np.concatenate(samples).astype(np.float32) / 32768, events, rate


def _is_loaded(path: str) -> bool:
    try:
        _ctypes.dlclose(_ctypes.dlopen(path, os.RTLD_NOLOAD))
    except OSError:
        return False
    return True


def say(text: str, voice: str, rate: int = 175, pitch: int = 50, pitch_range: int = 50) -> Utterance:
    """`text` in the named voice; `rate` in words a minute, `pitch` and `pitch_range` 0 to 99.

    Raises ValueError for an unknown voice, a text without words, or one that eSpeak cannot say.
    """
    names = VOICES | HELD_OUT_VOICES
    if voice not in names:
        raise ValueError(f"unknown voice {voice!r}; known: {', '.join(names)}")
    if not text.strip():
        raise ValueError(f"nothing to say in {text!r}")
    waveform, events, sampled = synthesize(text, names[voice], {_RATE: rate, _PITCH: pitch, _RANGE: pitch_range})
    end = len(waveform) / sampled
    waveform = soxr.resample(waveform, sampled, SAMPLING_RATE).astype(np.float32)
    waveform *= PEAK / max(np.abs(waveform).max(), 1e-6)
    phonemes = _spans([(e[4].decode(errors="replace"), e[3]) for e in events if e[0] == _PHONEME], end)
    words = _spans([(text[e[1] - 1 : e[1] - 1 + e[2]], e[3]) for e in events if e[0] == _WORD], end)
    return Utterance(waveform, words, phonemes)


def _spans(starts: list[tuple[str, float]], end: float) -> list[tuple[str, float, float]]:
    """(text, start) pairs to (text, start, end): each lasts until the next begins."""
    ends = [start for _, start in starts[1:]] + [end]
    return [(text, start, stop) for (text, start), stop in zip(starts, ends, strict=True)]


def say_varied(rng: random.Random, text: str, split: str) -> tuple[Utterance, str]:
    """`text` in a random voice of the split (test: one in eight by the held-out voice) with varied rate and pitch."""
    held_out = split == "test" and rng.random() < 1 / 8
    voice = rng.choice(list(HELD_OUT_VOICES if held_out else VOICES))
    return say(text, voice, rng.randint(140, 210), rng.randint(35, 65), rng.randint(30, 70)), voice


def add_noise(rng: random.Random, waveform: np.ndarray) -> np.ndarray:
    """White, pink or humming noise at 10 to 20 dB signal-to-noise ratio over the speech (float32, same length)."""
    generator = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choice(("white", "pink", "hum"))
    noise = generator.normal(0, 1, len(waveform))
    if kind == "pink":
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(waveform))
    elif kind == "hum":
        seconds = np.arange(len(waveform)) / SAMPLING_RATE
        noise = 0.3 * noise + sum(np.sin(2 * np.pi * 50 * k * seconds + k) / k for k in range(1, 6))
    ratio = 10 ** (rng.uniform(10, 20) / 20)
    noise *= np.sqrt(np.mean(waveform**2)) / (ratio * np.sqrt(np.mean(noise**2)) + 1e-9)
    return (waveform + noise).astype(np.float32).clip(-1, 1)


def main() -> None:
    import soundfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--voice", default="Emma", choices=[*VOICES, *HELD_OUT_VOICES])
    parser.add_argument("--output", required=True, help="WAV file to write")
    args = parser.parse_args()
    soundfile.write(args.output, say(args.text, args.voice).waveform, SAMPLING_RATE)


if __name__ == "__main__":
    main()
