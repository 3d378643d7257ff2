"""The answers of a run on disk: one line of JSON each, safe as soon as it is there, and what is left of a killed run."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path


def read_lines(path: Path) -> tuple[list[dict], int]:
    """The samples in a file, and how many lines are none, such as one that a kill cut short."""
    samples, broken = [], 0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            samples.append(json.loads(line))
        except ValueError:
            broken += 1
    return samples, broken


def write_beside(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def to_lines(samples: Iterable[dict]) -> str:
    return "".join(json.dumps(sample) + "\n" for sample in samples)


def append(path: Path, samples: Iterable[dict]) -> None:
    """Adds lines that are on the disk when this returns."""
    with path.open("a") as file:
        file.write(to_lines(samples))
        file.flush()
        os.fsync(file.fileno())


def gather(output: Path, keys: dict[tuple[str, int], str]) -> dict[tuple[str, int], dict]:
    """Brings the folder's samples together in samples.jsonl, and returns those that hold, by (task, index).

    keys: what the key of each item asked now has to be. A sample of one with another key (other weights, another prompt)
    goes to samples.stale.jsonl, and comes back when its key is asked for again; those of other tasks, or of rows beyond a
    limit, stay where they are.
    """
    whole, stale = output / "samples.jsonl", output / "samples.stale.jsonl"
    parts = sorted(output.glob("samples.rank*.jsonl"))
    (old, broken), *read = [read_lines(file) for file in (stale, whole, *parts)]
    broken += sum(count for _, count in read)
    samples = {identity(sample): sample for sample in [*old, *(sample for lines, _ in read for sample in lines)]}
    were_stale = {identity(sample) for sample in old}

    def holds(place: tuple) -> bool:
        return keys[place[:2]] == place[2] if place[:2] in keys else place not in were_stale

    kept = [samples[place] for place in sorted(samples) if holds(place)]
    left = [sample for place, sample in samples.items() if not holds(place)]
    if fresh := [sample for sample in left if identity(sample) not in were_stale]:
        print(f"{len(fresh)} answers to other prompts or of other weights go to {stale}", file=sys.stderr)
    if broken:
        print(f"{broken} half-written lines are dropped; those items are asked again", file=sys.stderr)
    if left or stale.exists():
        write_beside(stale, to_lines(left))
    write_beside(whole, to_lines(kept))
    for file in parts:
        file.unlink()
    return {(sample["task"], sample["index"]): sample for sample in kept if (sample["task"], sample["index"]) in keys}


def identity(sample: dict) -> tuple[str, int, str]:
    return sample["task"], sample["index"], sample["key"]
