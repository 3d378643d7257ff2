"""Does speech sound the way it was asked to? Pitch, its range, rate and level, and their shift against neutral speech.

    evaluate.load("eval/metrics/prosody").compute(predictions=[waveform], references=[neutral], texts=["hello"],
        controls=["speed"], asked=["fast"], sampling_rate=16000)

Fundamental frequency by Praat's autocorrelation method (Boersma 1993). What an emotion does to a voice: Juslin & Laukka
2003 for joy and sadness; Rockwell 2000 and Cheang & Pell 2008 for sarcasm.
"""

import datasets
import evaluate
import numpy as np
import parselmouth
from scipy.stats import rankdata

PITCH_FLOOR, PITCH_CEILING = 60.0, 500.0  # Hz, of adult voices
FRAME_SECONDS = 0.01
SPEECH_RANGE_DB = 40.0  # frames this far below the loudest one are silence
SILENT_DB = -60.0  # below full scale
SHIFTS = {"pitch": "semitones", "pitch_range": "semitones", "rate": "%", "level": "dB"}

# control -> what is asked -> feature -> the direction in which it should move
ASKED = {
    "speed": {"slow": {"rate": -1}, "normal": {}, "fast": {"rate": 1}},
    "volume": {"quiet": {"level": -1}, "normal": {}, "loud": {"level": 1}},
    "emotion": {
        "neutral": {},
        "cheerful": {"pitch": 1, "pitch_range": 1, "rate": 1, "level": 1},
        "sad": {"pitch": -1, "pitch_range": -1, "rate": -1, "level": -1},
        "sarcastic": {"pitch": -1, "pitch_range": -1, "rate": -1},
    },
}


def measure(waveform: np.ndarray, sampling_rate: int, text: str) -> dict[str, float] | None:
    """How a text is said in a waveform (samples,) in [-1, 1]; None where no voice is heard.

    pitch: median fundamental frequency in Hz. pitch_range: from its 5th to its 95th percentile in semitones. rate:
    letters and digits of the text a second, from first to last sound. level: root mean square of the frames that hold
    sound, in dB below full scale. The text is taken as said: speech cut short has a high rate.
    """
    size = round(FRAME_SECONDS * sampling_rate)
    power = (np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size).astype(np.float64) ** 2).mean(1)
    sounding = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-SPEECH_RANGE_DB / 10))
    if power.max(initial=0.0) <= 10 ** (SILENT_DB / 10) or len(sounding) * FRAME_SECONDS < 3 / PITCH_FLOOR:
        return None
    sound = parselmouth.Sound(waveform.astype(np.float64), sampling_rate)
    pitches = sound.to_pitch_ac(time_step=FRAME_SECONDS, pitch_floor=PITCH_FLOOR, pitch_ceiling=PITCH_CEILING)
    hertz = pitches.selected_array["frequency"]
    hertz = hertz[hertz > 0]
    if not len(hertz):
        return None
    low, high = np.percentile(hertz, [5, 95])
    seconds = (sounding[-1] + 1 - sounding[0]) * FRAME_SECONDS
    return {
        "pitch": float(np.median(hertz)),
        "pitch_range": float(12 * np.log2(high / low)),
        "rate": float(sum(character.isalnum() for character in text) / seconds),
        "level": float(10 * np.log10(power[sounding].mean())),
    }


def shifts(styled: dict[str, float], neutral: dict[str, float]) -> dict[str, float]:
    """How each feature moved: pitch and its range in semitones, rate in percent, level in dB."""
    return {
        "pitch": float(12 * np.log2(styled["pitch"] / neutral["pitch"])),
        "pitch_range": styled["pitch_range"] - neutral["pitch_range"],
        "rate": 100 * (styled["rate"] / neutral["rate"] - 1),
        "level": styled["level"] - neutral["level"],
    }


def directions(style: dict[str, str]) -> dict[str, tuple[str, int]]:
    """Feature to (the control that asks for it, -1 or 1). style: control to what is asked, such as {"speed": "fast"}.

    Where two controls ask for one feature, as sad and fast do for the rate, speed and volume come before the emotion.
    Raises ValueError for an unknown control or value.
    """
    for control, value in style.items():
        if value not in ASKED.get(control, {}):
            known = "; ".join(f"{name}: {', '.join(values)}" for name, values in ASKED.items())
            raise ValueError(f"{control} {value!r} is unknown; expected one of {known}")
    asked = {}
    for control in ("emotion", "speed", "volume"):
        moves = ASKED[control][style[control]] if control in style else {}
        asked |= {feature: (control, sign) for feature, sign in moves.items()}
    return asked


def follows(shift: float, direction: int) -> bool:
    """Whether a feature moved in the asked direction; chance is one half."""
    return shift * direction > 0


def spearman(asked: list[int], moved: list[float]) -> float | None:
    """Rank correlation of asked directions with shifts, -1 to 1; None where either does not vary.

    Two directions asked equally often are ties that no shifts can have: the most is then 0.87.
    """
    if len(set(asked)) < 2 or len(set(moved)) < 2:
        return None
    return float(np.corrcoef(rankdata(asked), rankdata(moved))[0, 1])


class Prosody(evaluate.Metric):
    """{"sign_accuracy": share of asked shifts in the right direction, 0 to 1}. references: the texts said neutrally.

    `texts`, `controls`, `asked`: each item's text, control and asked value. No voice heard: all shifts are wrong.
    """

    def _info(self):
        waveform, string = datasets.Sequence(datasets.Value("float32")), datasets.Value("string")
        features = {
            "predictions": waveform,
            "references": waveform,
            "texts": string,
            "controls": string,
            "asked": string,
        }
        return evaluate.MetricInfo(description=__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions, references, texts, controls, asked, sampling_rate):
        right = []
        for *waveforms, text, control, value in zip(predictions, references, texts, controls, asked, strict=True):
            styled, neutral = (measure(np.asarray(one, dtype=np.float32), sampling_rate, text) for one in waveforms)
            moved = shifts(styled, neutral) if styled and neutral else dict.fromkeys(SHIFTS, 0.0)
            right += [follows(moved[feature], sign) for feature, (_, sign) in directions({control: value}).items()]
        return {"sign_accuracy": float(np.mean(right))}
