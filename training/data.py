"""The small world as a data set: rows that are drawn when they are read, so that no two steps see the same picture, or
rows whose media `training/encode.py` has encoded once, so that they can be read often.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pyarrow.compute
from datasets import Dataset, concatenate_datasets, load_from_disk

from training.synthesis import dense, samples
from training.synthesis.pictures import CROP

LARGE_PICTURES = {"sign": 0.3, "code": 0.3, "spoken_picture": 0.15}  # share of a skill's pictures with several crops


def world_dataset(mix: dict[str, float], batches: int, batch_size: int, seed: int) -> Dataset:
    """`batches` x `batch_size` rows; each batch holds one skill, drawn with the probabilities of `mix`.

    Batches of one skill and one class of picture size have rows of like length, which spares padding. A third of them
    are cut into crops and windows as llama.cpp does it ("overview", "padded"). Row i is a function of (seed, i) alone:
    a run resumes exactly.
    """
    unknown = set(mix) - set(samples.SKILLS)
    if unknown:
        raise ValueError(f"unknown skill {unknown.pop()!r} in the mix; known: {', '.join(samples.SKILLS)}")
    rng = random.Random(seed)
    skills = rng.choices(list(mix), list(mix.values()), k=batches)
    phone = [rng.random() < 1 / 3 for _ in skills]
    large = [rng.random() < LARGE_PICTURES.get(skill, 0) for skill in skills]
    columns = {
        "skill": [skill for skill in skills for _ in range(batch_size)],
        "phone_layout": [layout for layout in phone for _ in range(batch_size)],
        "large_picture": [size for size in large for _ in range(batch_size)],
        "seed": [f"{seed}/{i}" for i in range(batches * batch_size)],
    }
    return Dataset.from_dict(columns).with_transform(draw)


def draw(rows: dict[str, list]) -> dict[str, list[Any]]:
    """Columns of skills, layouts, sizes and seeds to columns of conversations."""
    drawn = [draw_sized(*row) for row in zip(rows["skill"], rows["seed"], rows["large_picture"], strict=True)]
    layouts = ["overview" if phone else "grid" for phone in rows["phone_layout"]]
    if "picture" in drawn[0]:
        for row, layout in zip(drawn, layouts, strict=True):
            row["cell_words"] = dense.cell_words(row.pop("picture"), layout)
    columns = {key: [row[key] for row in drawn] for key in drawn[0]}
    columns["image_layout"] = layouts
    columns["audio_layout"] = ["padded" if phone else "trimmed" for phone in rows["phone_layout"]]
    return columns


def draw_sized(skill: str, seed: str, large: bool) -> dict:
    """A training sample; of the skills with pictures of several sizes, drawn anew until the size is as asked for."""
    for attempt in itertools.count():
        sample = samples.make(skill, "train", f"{seed}/{attempt}")
        if skill not in LARGE_PICTURES or large == any(max(image.size) > CROP for image in sample["images"]):
            return sample


def encoded_dataset(
    folders: list[str], mix: dict[str, float], batches: int, batch_size: int, seed: int, longest: int
) -> Dataset:
    """`batches` x `batch_size` rows of at most `longest` tokens that `training/encode.py` wrote into `folders`.

    Each batch holds neighbours of one skill, drawn with the probabilities of `mix`. A skill's batches come in random
    order; once all have been read, they start over in another.
    """
    rows = concatenate_datasets([load_from_disk(folder) for folder in folders])
    lengths = pyarrow.compute.list_value_length(rows.data.column("labels")).to_pylist()
    rows = rows.select([i for i, length in enumerate(lengths) if length <= longest])
    skills = rows["skill"][:]
    for skill in mix:
        if (count := skills.count(skill)) < batch_size:
            raise ValueError(
                f"{', '.join(folders)} hold {count} rows of {skill!r} with at most {longest} tokens, but a batch takes "
                f"{batch_size}; encode more of them, or raise `longest`"
            )
    rng = random.Random(seed)
    decks = {skill: shuffled([i for i, s in enumerate(skills) if s == skill], batch_size, rng) for skill in mix}
    order = [i for skill in rng.choices(list(mix), list(mix.values()), k=batches) for i in next(decks[skill])]
    return rows.select(order)


def shuffled(indices: list[int], batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """Batches of neighbouring indices, in random order, without end."""
    batches = [indices[i : i + batch_size] for i in range(0, len(indices) - batch_size + 1, batch_size)]
    while True:
        yield from rng.sample(batches, len(batches))
