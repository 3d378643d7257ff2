"""Answers of the small world with their speech: what the speech decoder learns from. A skill of training/data.py.

    python -m training.synthesis.speaking --rows 4096 --output data/speaking

A row's `speech` is the waveform of its last answer, mono float32 at 16 kHz; `meta` says how it is spoken: voice, emotion, speed
and volume (multiples of the ordinary), and `words` as [text, start, end] in seconds.
"""

import argparse
import functools
import random

import numpy as np

from speech_text_eagle import spoken as as_spoken
from training import shards
from training.synthesis import expressive_speech, pictures, world
from training.synthesis.expressive_speech import LABELS, is_token, joined, rms, with_sounds
from training.synthesis.samples import ECHO, row
from training.synthesis.voices import SAMPLING_RATE, VOICES

NAME, LICENSE = "eagle-speaking", "apache-2.0"
WORDS_A_MINUTE = 165
LEVEL = 0.04  # root mean square
SPEEDS, VOLUMES = (0.75, 1.0, 1.3), (0.5, 1.0, 1.6)
MARGIN = 0.03  # seconds of silence kept at both ends
ASK = ("say:", ECHO, "read aloud:", "repeat after me:")


def speaking(rng: random.Random, split: str) -> dict:
    """A question or a request to say something, and its answer, spoken."""
    question, text = rng.choices((said_again, world.fact_question), (5, 1))[0](rng, split)
    choice = {
        "voice": rng.choice(list(VOICES)), "emotion": rng.choice(list(LABELS["emotion"])),
        "speed": rng.choice(SPEEDS), "volume": rng.choice(VOLUMES),
    }  # fmt: skip
    waveform, spans = speech(rng, text, **choice, sounds=rng.random() < 0.1)
    if any(is_token(part) for part, _, _ in spans):
        text = " ".join(part for part, _, _ in spans)
    return row(rng, [("text", question)], text, words=spans, **choice) | {"speech": waveform}


def said_again(rng: random.Random, split: str) -> tuple[str, str]:
    """One to three sentences, loose words, a code or a number."""
    kind = rng.choices(("sentences", "words", "code", "number"), (5, 3, 1, 1))[0]
    if kind == "sentences":
        text = " ".join(world.sentence(rng, split) for _ in range(rng.choices((1, 2, 3), (6, 2, 1))[0]))
    elif kind == "words":
        text = " ".join(pictures.random_words(rng, split))
    else:
        text = pictures.random_code(rng, split) if kind == "code" else str(rng.randrange(10 ** rng.randint(1, 4)))
    return f"{rng.choice(ASK)} {text}", text


def speech(rng: random.Random, text: str, voice: str, emotion: str, speed: float, volume: float, sounds: bool = False):
    """The waveform, and the (text, start, end) in seconds of words and, if asked for, of coughs, laughs and breaths among them.

    These only come into a text that is spoken as it is written. An emotion is spoken as the middle of its class in
    expressive_speech.LABELS.
    """
    style = {name: sum(ends) / 2 for name, ends in LABELS["emotion"][emotion].items()}
    style |= {"wpm": WORDS_A_MINUTE * speed, "tilt": 0}
    words = as_spoken(text).replace("-", " ")
    phrases = expressive_speech.spoken(words, voice, style)
    gain = LEVEL * volume / rms(np.concatenate([waveform for _, waveform in phrases]))
    phrases = [(words, waveform * gain) for words, waveform in phrases]
    if sounds and words == text:
        phrases = with_sounds(rng, phrases, 20 * np.log10(LEVEL * volume))
    waveform, spans = joined(rng, phrases)
    first = max(round((spans[0][1] - MARGIN) * SAMPLING_RATE), 0)
    last = round((spans[-1][2] + MARGIN) * SAMPLING_RATE)
    spans = [(text, round(start - first / SAMPLING_RATE, 3), round(end - first / SAMPLING_RATE, 3)) for text, start, end in spans]
    return waveform[first:last].astype(np.float32).clip(-1, 1), spans


def make(split: str, seed: int | str) -> dict:
    sample = speaking(random.Random(f"speaking/{split}/{seed}"), split)
    sample["meta"] |= {"skill": "speaking", "split": split}
    return sample


def draw(split: str, seed: int, index: int) -> dict:
    """The row of that number, of training/shards.py's SCHEMA."""
    return shards.encode_row(make(split, f"{seed}/{index}"), f"{NAME}/{split}/{seed}/{index}", NAME, LICENSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    args = parser.parse_args()
    shards.write_shards(
        functools.partial(draw, args.split, args.seed),
        source=NAME,
        license=LICENSE,
        options={"script": "speaking", "split": args.split},
        labels=("voice", "emotion", "speed", "volume"),
        **shards.arguments(args),
    )


if __name__ == "__main__":
    main()
