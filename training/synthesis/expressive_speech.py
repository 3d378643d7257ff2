"""Speech with annotated emotion, speed, volume and non-verbal sounds, as conversations about it.

    python -m training.synthesis.expressive_speech --output data/expressive --rows 20000
    python -m training.synthesis.expressive_speech --style transcript --split test --rows 600 --output data/expressive-test

Seven voices say sentences of the small world as LABELS describes each class; coughs, laughs and breaths stand between the
words, and noise of random colour and level under all of it. The user gives the recording and asks for a transcript,

    [cheerful] [fast] [loud] the lamp is [cough] in the kitchen

or how the speaker feels, how fast or loud the speech is, and which sounds there are. `meta` holds the labels, `words` and
`sounds` as [text, start, end] in seconds, and `noise` in dB below full scale.
"""

import argparse
import functools
import random
import re

import numpy as np
import parselmouth
from parselmouth.praat import call, run
from scipy.signal import butter, lfilter

from training import shards
from training.synthesis import nonverbal, world
from training.synthesis.samples import more_turns, row, said
from training.synthesis.voices import HELD_OUT_VOICES, SAMPLING_RATE, VOICES, Utterance, say

# What makes each class, drawn anew for each recording. The ranges of a label's classes do not touch, `wpm` not even when an
# emotion's `pace` multiplies it. Pitch and its range are eSpeak's, 50 being the voice's own. Emotions: Juslin & Laukka 2003;
# sarcasm, low, flat and slow, with a word drawn out by `stretch`: Rockwell 2000, Cheang & Pell 2008. Volume is more than a gain, which a
# recording may have changed: high frequencies grow with vocal effort (Traunmueller & Eriksson 2000).
LABELS = {
    "emotion": {
        "neutral": {"pitch": (48, 58), "pitch_range": (42, 58), "pace": (0.97, 1.03)},
        "cheerful": {"pitch": (70, 85), "pitch_range": (80, 99), "pace": (1.04, 1.1)},
        "sad": {"pitch": (20, 30), "pitch_range": (15, 30), "pace": (0.9, 0.96)},
        "sarcastic": {"pitch": (35, 43), "pitch_range": (0, 10), "pace": (0.84, 0.89), "stretch": (1.7, 2.2)},
    },
    "speed": {"slow": {"wpm": (90, 112)}, "normal": {"wpm": (155, 180)}, "fast": {"wpm": (250, 290)}},
    "volume": {  # level: root mean square in dB below full scale; tilt: gain above 1 kHz in dB
        "quiet": {"level": (-42, -36), "tilt": (-9, -6)},
        "normal": {"level": (-31, -26), "tilt": (-2, 2)},
        "loud": {"level": (-21, -16), "tilt": (6, 9)},
    },
}
SLOWEST = 80  # words a minute that eSpeak can say
SOUND_LEVELS = {"cough": (0, 5), "laugh": (-3, 3), "breath": (-10, -5)}  # dB above the speech
NOISE_LEVELS = (-75, -54)  # dB below full scale, whatever the volume
JOINT = 128  # samples in which a word is faded into the next: 8 ms
NAME, LICENSE = "eagle-expressive-speech", "apache-2.0"
STYLES = ("transcript", "questions", "both")

TRANSCRIBE = (
    "Write down what you hear, with emotion, speed, volume and sounds.",
    "Transcribe the speech with its labels.",
    "What is said, and how?",
)
# Every fourth phrasing is held out (world.split).
QUESTIONS = {
    "emotion": world.lines("""
        how does the speaker feel
        what is the mood of the speaker
        tell me how the speaker feels
        which mood do you hear
        how does this person feel
        in which mood is this person
        what mood is the speaker in
        say how the person feels
    """),
    "speed": world.lines("""
        how fast does the speaker talk
        is the talk slow, normal or fast
        tell me how fast the speaker talks
        at which speed does the speaker talk
        how fast is this person
        what is the speed of the speaker
        how fast does this person talk
        say how fast the person talks
    """),
    "volume": world.lines("""
        how loud is the speaker
        is the speaker quiet, normal or loud
        tell me how loud the speaker is
        at which volume does the speaker talk
        how loud does this person talk
        what is the volume of the speaker
        how loud is this person
        say how loud the person talks
    """),
    "sounds": world.lines("""
        what sound do you hear
        what sound is there between the words
        tell me which sound you hear
        which sound does the speaker make
        what do you hear but words
        is there a cough, a laugh or a breath
        which sounds are there
        say which sound is there
    """),
}


# ------------------------------------------------------------------------------------------------ speech


def drawn(rng: random.Random, recipe: dict) -> dict[str, float]:
    """A value from each range of a recipe of LABELS."""
    return {name: rng.uniform(*bounds) for name, bounds in recipe.items()}


def speak(rng: random.Random, split: str) -> tuple[np.ndarray, dict]:
    """A recording (float32, 16 kHz) of one to three sentences of the split, and its `meta`; in test one in eight has the
    voice that training never hears."""
    labels = {label: rng.choice(list(classes)) for label, classes in LABELS.items()}
    style = {name: value for label, name in labels.items() for name, value in drawn(rng, LABELS[label][name]).items()}
    held_out = split == "test" and rng.random() < 1 / 8
    voice = rng.choice(list(HELD_OUT_VOICES if held_out else VOICES))
    text = " ".join(world.sentence(rng, split) for _ in range(rng.choices((1, 2, 3), (6, 2, 1))[0]))
    phrases = spoken(text, voice, style)
    gain = 10 ** (style["level"] / 20) / rms(np.concatenate([waveform for _, waveform in phrases]))
    phrases = [(words, waveform * gain) for words, waveform in phrases]
    waveform, spans = joined(rng, with_sounds(rng, phrases, style["level"]))
    noise = rng.uniform(*NOISE_LEVELS)
    waveform = np.tanh(waveform + background(rng, len(waveform)) * 10 ** (noise / 20)).astype(np.float32)
    words = [span for span in spans if not is_token(span[0])]
    sounds = [(name_of(token), start, end) for token, start, end in spans if is_token(token)]
    transcript = " ".join([*(token_of(name) for name in labels.values()), *(text for text, _, _ in spans)])
    return waveform, labels | {
        "voice": voice, "transcript": transcript, "words": words, "sounds": sounds, "noise": round(noise, 1),
    }  # fmt: skip


def spoken(text: str, voice: str, style: dict[str, float]) -> list[tuple[str, np.ndarray]]:
    """The text as (words, waveform), cut where eSpeak tells that a word begins; the longest is drawn out by `stretch`."""
    wpm = max(SLOWEST, round(style["wpm"] * style["pace"]))
    phrases = cut(text, say(text, voice, wpm, round(style["pitch"]), round(style["pitch_range"])))
    if "stretch" in style:
        longest = max(range(len(phrases)), key=lambda number: len(phrases[number][1]))
        words, waveform = phrases[longest]
        phrases[longest] = (words, lengthened(waveform, style["stretch"]))
    return [(words, tilted(waveform, style["tilt"])) for words, waveform in phrases]


def cut(text: str, utterance: Utterance) -> list[tuple[str, np.ndarray]]:
    """(words, waveform) of each stretch that eSpeak gives a time of its own: it runs "in the" and the like together.

    Each waveform goes on for JOINT samples, in which `joined` fades it into the next. Where its words are not those of the
    text, the whole is one stretch: nothing that is said gets lost.
    """
    events, phrases, padded = list(utterance.words), [], np.pad(utterance.waveform, (0, JOINT))
    for word in text.split():
        if events and events[0][0] == re.search(r"\w+|$", word)[0]:
            _, start, end = events.pop(0)
            first, last = (round(seconds * SAMPLING_RATE) for seconds in (start, end))
            phrases.append((word, padded[first : last + JOINT]))
        elif phrases:
            phrases[-1] = (f"{phrases[-1][0]} {word}", phrases[-1][1])
    return [(text, padded)] if events else phrases


def lengthened(waveform: np.ndarray, factor: float) -> np.ndarray:
    """The same pitch and timbre over a longer time: Praat's pitch-synchronous overlap-add.

    It moves pieces without a voice at random, so that they do not buzz; from a fixed seed, or no two runs are alike.
    """
    run("random_initializeWithSeedUnsafelyButPredictably (1)")
    sound = parselmouth.Sound(waveform.astype(np.float64), SAMPLING_RATE)
    return call(sound, "Lengthen (overlap-add)", 60, 600, factor).values[0].astype(np.float32)


def tilted(waveform: np.ndarray, decibels: float) -> np.ndarray:
    """High frequencies raised, or lowered, from about 1 kHz on."""
    low = lfilter(*butter(1, 1000, fs=SAMPLING_RATE), waveform)
    return low + (waveform - low) * 10 ** (decibels / 20)


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def with_sounds(rng: random.Random, phrases: list[tuple[str, np.ndarray]], level: float) -> list[tuple[str, np.ndarray]]:
    """The phrases with up to two non-verbal sounds among them, named in brackets."""
    phrases = list(phrases)
    for _ in range(rng.choices((0, 1, 2), (4, 4, 2))[0]):
        name = rng.choice(list(nonverbal.SOUNDS))
        sound = nonverbal.random_sound(rng, name)
        sound = sound * 10 ** ((level + rng.uniform(*SOUND_LEVELS[name])) / 20) / rms(sound)
        phrases.insert(rng.randint(0, len(phrases)), (token_of(name), sound))
    return phrases


def joined(rng: random.Random, parts: list[tuple[str, np.ndarray]]) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """One waveform, and the (text, start, end) of each part in seconds. Pauses at both ends and around sounds.

    The end of a part and the start of the next one are faded over each other, which leaves words that ran on as they were.
    """
    rise = (np.arange(JOINT) + 0.5) / JOINT
    pieces, spans, length = [], [], 0
    for number, (text, waveform) in enumerate(parts):
        if number == 0:
            length += pause(rng, 0.1, 0.4)
        elif is_token(text) or is_token(parts[number - 1][0]):
            length += pause(rng, 0.03, 0.15)
        waveform = waveform.copy()
        waveform[:JOINT] *= rise
        waveform[-JOINT:] *= rise[::-1]
        pieces.append((length, waveform))
        spans.append((text, length, length + len(waveform) - JOINT))
        length = spans[-1][-1]
    whole = np.zeros(length + JOINT + pause(rng, 0.1, 0.4))
    for start, waveform in pieces:
        whole[start : start + len(waveform)] += waveform
    return whole, [(text, *(round(sample / SAMPLING_RATE, 3) for sample in ends)) for text, *ends in spans]


def pause(rng: random.Random, low: float, high: float) -> int:
    """Samples of a pause of that many seconds."""
    return round(rng.uniform(low, high) * SAMPLING_RATE)


def background(rng: random.Random, samples: int) -> np.ndarray:
    """Noise (samples,) with a root mean square of 1: from white to beyond pink, at times with a mains hum."""
    generator = np.random.default_rng(rng.getrandbits(32))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLING_RATE)
    colour = np.where(hertz < 40, 0, np.maximum(hertz, 1) ** -rng.uniform(0, 0.75))  # what is lower nobody hears
    noise = np.fft.irfft(np.fft.rfft(generator.normal(0, 1, samples)) * colour, samples)
    noise /= rms(noise)
    if rng.random() < 0.25:
        phase = 2 * np.pi * rng.choice((50, 60)) * np.arange(samples) / SAMPLING_RATE
        noise += sum(np.sin(k * phase + k) / k for k in range(1, 6))
    return noise / rms(noise)


# ------------------------------------------------------------------------------------------------ labels as text


def token_of(name: str) -> str:
    return f"[{name}]"


def is_token(text: str) -> bool:
    return text.startswith("[")


def name_of(token: str) -> str:
    return token.strip("[]")


def read_transcript(text: str) -> tuple[dict[str, str], str, list[str]]:
    """A transcript's labels, such as {"emotion": "sad", ...}, its words alone, and its sounds in order.

    Labels are told by their place (emotion, speed, volume: "normal" is of two kinds); one that is missing or unknown is
    left out.
    """
    names = re.findall(r"\[(\w+)\]", text)
    labels = {label: name for (label, classes), name in zip(LABELS.items(), names, strict=False) if name in classes}
    words = " ".join(re.sub(r"\[\w*\]", " ", text).split())
    return labels, words, [name for name in names if name in nonverbal.SOUNDS]


# ------------------------------------------------------------------------------------------------ conversations


def expressive(rng: random.Random, split: str, style: str = "both") -> dict:
    """A conversation about a recording: its transcript with labels, or questions; in training one of each label."""
    waveform, meta = speak(rng, split)
    if style == "transcript" or (style == "both" and rng.random() < 0.5):
        parts = [("audio", waveform), ("text", TRANSCRIBE[0] if split == "test" else rng.choice(TRANSCRIBE))]
        return row(rng, parts, meta["transcript"], asked="transcript", **meta)
    kinds = rng.sample(list(QUESTIONS), len(QUESTIONS))
    turns = [(question_about(rng, kind, split), answer_to(kind, meta)) for kind in kinds]
    (question, answer), *others = turns
    parts = [("audio", waveform), ("text", world.written(question))]
    sample = row(rng, parts, answer, asked=kinds[0], question=question, **meta)
    return sample if split == "test" else more_turns(rng, sample, [(question, said(answer)) for question, answer in others])


def question_about(rng: random.Random, kind: str, split: str) -> str:
    """A phrasing of the split."""
    indices = [i for i in range(len(QUESTIONS[kind])) if world.split("phrasing", kind, i) == split]
    return QUESTIONS[kind][rng.choice(indices)]


def answer_to(kind: str, meta: dict) -> str:
    """The label, or the names of the sounds in their order: "cough and breath", "none"."""
    return meta[kind] if kind != "sounds" else " and ".join(name for name, _, _ in meta["sounds"]) or "none"


def make(style: str, split: str, seed: int, index: int) -> dict:
    """The row of that number, of training/shards.py's SCHEMA."""
    sample = expressive(random.Random(f"expressive/{style}/{split}/{seed}/{index}"), split, style)
    sample["meta"] |= {"skill": "expressive", "split": split}
    return shards.encode_row(sample, f"{NAME}/{split}/{seed}/{index}", NAME, LICENSE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser)
    parser.add_argument("--style", choices=STYLES, default="both", help="what is asked (default: both)")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    args = parser.parse_args()
    shards.write_shards(
        functools.partial(make, args.style, args.split, args.seed),
        source=NAME,
        license=LICENSE,
        options={"script": "expressive_speech", "style": args.style, "split": args.split},
        labels=[*LABELS, "asked", "voice"],
        **shards.arguments(args),
    )


if __name__ == "__main__":
    main()
