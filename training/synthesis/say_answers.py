"""The last answer of each conversation spoken, by an engine of yours or by eSpeak NG: rows that teach to speak.

    python -m training.synthesis.say_answers --shards data/chats --output data/chats-spoken
    python -m training.synthesis.say_answers --shards data/chats --say my_speech:say --output data/chats-spoken
    python -m training.synthesis.say_answers --shards data/libritts --convert my_speech:convert --output data/seven-voices

`--say` names a function (text, voice, emotion, speed, volume) -> (mono waveform, sampling rate), whose text is the answer as the
speech decoder will read it: numbers, addresses and the like in words. `--convert` names one that says again what a row's
`speech` says, (waveform, sampling rate, voice) -> (waveform, sampling rate); it may ask a model's `convert_voice`. Voice and,
for `--say`, emotion, speed and volume are drawn for each row, and its `meta` names them. Left out are calls, blocks of code,
coughs and the like, answers with letters that the decoder does not know, and, for `--convert`, rows without speech. Sounds keep
the function's rate.
"""

import argparse
import functools
import json
import random
import re

import numpy as np

from media_eagle import read_audio
from speech_text_eagle import CUE, folded, spoken
from training import shards
from training.synthesis import speaking
from training.synthesis.expressive_speech import LABELS
from training.synthesis.rephrase import licences, read
from training.synthesis.voices import SAMPLING_RATE, VOICES

NAME = "eagle-said"


def draw(paths: tuple[str, ...], say: str | None, convert: str | None, names: tuple[str, ...], seed: int, index: int) -> dict | None:
    """The row of that number of the shards, its last answer spoken; None for one that holds nothing to say."""
    row = read(paths)[index]
    rng = random.Random(f"say_answers/{seed}/{index}")
    text = answer_of(row)
    if text is None or (convert and not row.get("speech")):
        return None
    style = {"voice": rng.choice(names)}
    if convert:
        waveform, rate, _ = read_audio(row["speech"])
        waveform, rate = shards.find_function(convert)(waveform, rate, **style)
    else:
        style |= {"emotion": rng.choice(list(LABELS["emotion"]))}
        style |= {"speed": rng.choice(speaking.SPEEDS), "volume": rng.choice(speaking.VOLUMES)}
        waveform, rate = (shards.find_function(say) if say else say_english)(text, **style)
    meta = json.loads(row["meta"] or "{}") | style
    meta.pop("words", None)  # times of another sound
    sound = {"bytes": shards.encode_audio(np.asarray(waveform, np.float32), rate), "path": None}
    return row | {"id": f"{row['id']}/said", "meta": shards.to_json(meta), "speech": sound}


def answer_of(row: dict) -> str | None:
    """The last message as it is spoken; None where it is not the assistant's, or the decoder would not say all of it."""
    last = row["messages"][-1]
    if last["role"] != "assistant" or last["tool_calls"]:
        return None
    text = " ".join(part["text"] for part in last["content"]).strip()
    said = spoken(text).strip()
    is_known = all(folded(character) for character in said if character.isalnum())
    is_text = re.search(r"[^\W\d_]", said) and "```" not in text and not CUE.search(text)
    return said if is_known and is_text else None


def say_english(text: str, **style) -> tuple[np.ndarray, int]:
    """eSpeak NG's."""
    return speaking.speech(random.Random(0), text, **style)[0], SAMPLING_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser, rows=None, rows_help="rows to speak, from the first on")
    parser.add_argument("--shards", nargs="+", required=True, help="a folder of Parquet shards, or files")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--say", help="module:function that speaks a text (default: eSpeak NG)")
    engine.add_argument("--convert", help="module:function that says a row's speech in another voice")
    parser.add_argument("--voices", nargs="+", default=list(VOICES), help="names that the function knows (default: the seven)")
    args = parser.parse_args()
    for name in filter(None, (args.say, args.convert)):
        shards.find_function(name)
    paths = tuple(shards.shard_files(args.shards[0] if len(args.shards) == 1 else args.shards))
    args.rows = min(args.rows or len(read(paths)), len(read(paths)))
    args.processes = args.processes or 1  # each loads what the function loads
    options = {"shards": [shards.file_sha256(path) for path in paths], "say": args.say, "convert": args.convert, "voices": args.voices}
    draw_row = functools.partial(draw, paths, args.say, args.convert, tuple(args.voices), args.seed)
    written = {"source": NAME, "license": licences(paths), "options": options, "labels": ("voice", "emotion", "speed", "volume")}
    shards.write_shards(draw_row, **written, **shards.arguments(args))


if __name__ == "__main__":
    main()
