"""The small world as a data set: rows that are drawn when they are read, so that no two steps see the same picture."""

import random
from typing import Any

from datasets import Dataset

from training.synthesis import samples


def world_dataset(mix: dict[str, float], batches: int, batch_size: int, seed: int) -> Dataset:
    """`batches` x `batch_size` rows; each batch holds one skill, drawn with the probabilities of `mix`.

    Batches of one skill have rows of like length, which spares padding. A third of them are cut into crops and windows
    as llama.cpp does it ("overview", "padded"). Row i is a function of (seed, i) alone: a run resumes exactly.
    """
    unknown = set(mix) - set(samples.SKILLS)
    if unknown:
        raise ValueError(f"unknown skill {unknown.pop()!r} in the mix; known: {', '.join(samples.SKILLS)}")
    rng = random.Random(seed)
    skills = rng.choices(list(mix), list(mix.values()), k=batches)
    phone = [rng.random() < 1 / 3 for _ in skills]
    columns = {
        "skill": [skill for skill in skills for _ in range(batch_size)],
        "phone_layout": [layout for layout in phone for _ in range(batch_size)],
        "seed": [f"{seed}/{i}" for i in range(batches * batch_size)],
    }
    return Dataset.from_dict(columns).with_transform(draw)


def draw(rows: dict[str, list]) -> dict[str, list[Any]]:
    """Columns of skills, layouts and seeds to columns of conversations."""
    drawn = [samples.make(skill, "train", seed) for skill, seed in zip(rows["skill"], rows["seed"], strict=True)]
    columns = {key: [row[key] for row in drawn] for key in drawn[0]}
    columns["image_layout"] = ["overview" if phone else "grid" for phone in rows["phone_layout"]]
    columns["audio_layout"] = ["padded" if phone else "trimmed" for phone in rows["phone_layout"]]
    return columns
