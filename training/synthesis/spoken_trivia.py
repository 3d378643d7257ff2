"""Spoken trivia: a question that is said, and its answer in writing.

    python -m training.synthesis.spoken_trivia --output data/trivia-world --rows 5000
    python -m training.synthesis.spoken_trivia --output data/trivia --rows 95000 --trivia triviaqa/wikipedia-train.json \\
        --source "TriviaQA (Joshi et al. 2017)" --license unknown

Without `--trivia` the questions are about facts of the small world. TRIVIA is a file of TriviaQA: its own JSON, or JSON (a
list, or one object a line) or Parquet with `question` and `answer` {value, aliases}; row i asks question i, and all are asked
before any is asked again. `--say module:function` names another speaker: function(text, seed) -> mono float32 at 16 kHz.
"""

import argparse
import functools
import hashlib
import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from training import shards
from training.synthesis import world
from training.synthesis.samples import row
from training.synthesis.voices import add_noise, say_varied

NAME, LICENSE = "eagle-spoken-trivia", "apache-2.0"  # of facts of the world
NOISY = 0.5  # share of questions with noise
Question = tuple[str, str, list[str]]  # question, answer, aliases of the answer


def say(text: str, seed: int) -> np.ndarray:
    """eSpeak NG in one of the seven voices of training."""
    utterance, _ = say_varied(random.Random(seed), text, "train")
    return utterance.waveform


def load_speaker(name: str) -> Callable[[str, int], np.ndarray]:
    """The function of "module:function". Raises ValueError where there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--say {name!r} is no function: {error}; expected module:function") from error


# ------------------------------------------------------------------------------------------------ questions


@functools.lru_cache(maxsize=1)
def read_trivia(path: str) -> list[Question]:
    """The questions of a file that have an answer (TriviaQA's test files have none). Raises ValueError for other columns."""
    questions = []
    for number, entry in enumerate(read_entries(Path(path))):
        entry = {key.lower(): value for key, value in entry.items()}  # TriviaQA's own JSON writes "Question", "Answer"
        if not isinstance(entry.get("question"), str):
            raise ValueError(f"entry {number} of {path} has the keys {sorted(entry)}; expected question, answer")
        answer = {key.lower(): value for key, value in (entry.get("answer") or {}).items()}
        value = (answer.get("value") or "").strip()
        if value and value != "<unk>":
            questions.append((entry["question"].strip(), value, list(answer.get("aliases") or [])))
    if not questions:
        raise ValueError(f"{path} has no question with an answer")
    return questions


def read_entries(path: Path) -> list[dict]:
    """The objects of a Parquet file, of a JSON list, of TriviaQA's {"Data": [...]}, or of lines of JSON."""
    if path.suffix == ".parquet":
        return pq.read_table(path, columns=["question", "answer"]).to_pylist()
    text = path.read_text()
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return content["Data"] if isinstance(content, dict) and "Data" in content else content


# ------------------------------------------------------------------------------------------------ rows


def make(trivia: str | None, speaker: str, source: str, license: str, seed: int, index: int) -> dict:
    """The row of that number: a question asked aloud, half the time over noise, and its answer."""
    rng = random.Random(f"trivia/{seed}/{index}")
    if trivia:
        questions = read_trivia(trivia)
        question, answer, aliases = questions[index % len(questions)]
    else:
        (question, answer), aliases = world.fact_question(rng, "train"), []
    waveform = load_speaker(speaker)(question, rng.getrandbits(32))
    noisy = rng.random() < NOISY
    waveform = add_noise(rng, waveform) if noisy else waveform
    sample = row(rng, [("audio", waveform)], answer, question=question, aliases=aliases, noisy=noisy)
    return shards.encode_row(sample, f"{NAME}/{seed}/{index}", source, license)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser, rows=None, rows_help="rows to draw; without --trivia 1000")
    parser.add_argument("--trivia", help="file with questions and answers; without it, facts of the small world")
    parser.add_argument("--source", help="where TRIVIA is from")
    parser.add_argument("--license", help="of TRIVIA")
    parser.add_argument("--say", default=f"{__spec__.name}:say", help="module:function that speaks (default: eSpeak NG)")
    args = parser.parse_args()
    if args.trivia and not (args.source and args.license):
        parser.error("with --trivia, --source and --license must say where it is from and how it may be used")
    source, license = (args.source, args.license) if args.trivia else (NAME, LICENSE)
    load_speaker(args.say)
    count = args.rows or (len(read_trivia(args.trivia)) if args.trivia else 1000)
    digest = args.trivia and hashlib.sha256(Path(args.trivia).read_bytes()).hexdigest()
    shards.write_shards(
        functools.partial(make, args.trivia, args.say, source, license, args.seed),
        source=source,
        license=license,
        options={"script": "spoken_trivia", "trivia": digest, "say": args.say},
        labels=["noisy"],
        **shards.arguments(args) | {"count": count},
    )


if __name__ == "__main__":
    main()
