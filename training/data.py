"""The data that a recipe names, mixed: row i is a function of the recipe, seed, lanes and i alone, so a run resumes exactly.

A recipe maps names of its own choice to sources:

    data:
      ai2d: {path: "hf://datasets/HuggingFaceM4/the_cauldron@847a98a/ai2d/*.parquet", adapter: cauldron, weight: 0.2}
      mine: {path: data/mine/*.parquet, weight: 0.5}
      signs: {path: "world:sign", weight: 0.3}

Parquet is streamed by row group, from a disk or from whatever fsspec reads; `world:` skills of the small world are drawn
when they are read. Each batch holds rows of one source, and of like length, which spares padding.

Batch b belongs to lane b % lanes. A lane reads its own row groups, so that with a lane a process (and loader worker) none
reads what another does. The batches that several processes work on at the same time come from the same source, and are
about as long as each other: none waits for another.
"""

import bisect
import functools
import io
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
from datasets import Dataset
from PIL import Image

from training import shards
from training.adapters import ADAPTERS
from training.synthesis import dense, samples, speaking
from training.synthesis.pictures import CROP

SKILLS = {skill: functools.partial(samples.make, skill) for skill in samples.SKILLS} | {"speaking": speaking.make}
LARGE_PICTURES = {"sign": 0.3, "code": 0.3, "spoken_picture": 0.15}  # share of a skill's pictures with several crops
SOURCE_KEYS = {"path", "weight", "adapter"}
UNEVEN = {"masked_request": 8, "in_context_request": 8, "mixed_request": 8}  # batches of a skill that are drawn, and sorted by length, together
PATIENCE = 100  # batches without one usable row after which a source is given up


class BadRows:
    """Rows that could not be read, one JSON line each in `path`, which every process and the resumed run share.

    The file is short as long as the data are sound, and read anew at each bad row. More than `limit` different ones are
    an error.
    """

    def __init__(self, path: Path, limit: int):
        self.path, self.limit = path, limit

    def names(self) -> set[str]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {json.loads(line)["row"] for line in lines}

    def add(self, name: str, error: Exception) -> None:
        """Records the row; raises ValueError, with the row's own error as its cause, when it is one too many."""
        cause = f"{type(error).__name__}: {error}"
        if name not in self.names():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:  # lines this short are appended whole
                file.write(json.dumps({"row": name, "cause": cause[:500]}) + "\n")
        if (count := len(self.names())) > self.limit:
            raise ValueError(
                f"bad rows: {count}, but max_bad_rows is {self.limit}; the last: {name}: {cause}; all of them: {self.path}"
            ) from error


class WorldSource:
    """A skill of the small world, drawn anew; with one seed no row comes twice, with another one others come."""

    def __init__(self, skill: str, batch_size: int, seed: int):
        if skill not in SKILLS:
            raise ValueError(f"unknown skill {skill!r} of the small world; known: {', '.join(SKILLS)}")
        self.skill, self.batch_size, self.seed = skill, batch_size, seed
        self.group = UNEVEN.get(skill, 1)
        self.drawn: dict[int, tuple[int, list]] = {}  # each lane's last batches that were drawn together

    def batch(self, lane: int, turn: int) -> list[tuple[str, dict]]:
        """The lane's batch number `turn`: (name, row) pairs, pictures of one class of size."""
        number, i = divmod(turn, self.group)
        if self.drawn.get(lane, (None,))[0] != number:
            self.drawn[lane] = number, self.batches(lane, number)
        return self.drawn[lane][1][i]

    def batches(self, lane: int, number: int) -> list[list[tuple[str, dict]]]:
        rng = random.Random(f"{self.skill}/{self.seed}/{number}")  # not of the lane: what is long in one is long in all
        large = rng.random() < LARGE_PICTURES.get(self.skill, 0)
        names = [f"{self.seed}/{lane}/{number}/{i}" for i in range(self.group * self.batch_size)]
        rows = [(f"world:{self.skill} {name}", draw_sized(self.skill, name, large)) for name in names]
        if self.group > 1:
            rows.sort(key=lambda row: length_of(row[1]))
        pieces = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return rng.sample(pieces, len(pieces))


def draw_sized(skill: str, seed: str, large: bool) -> dict:
    """A training sample; of the skills with pictures of several sizes, drawn anew until the size is as asked for."""
    for attempt in itertools.count():
        sample = SKILLS[skill]("train", f"{seed}/{attempt}")
        if skill not in LARGE_PICTURES or large == any(max(image.size) > CROP for image in sample["images"]):
            return sample


class ParquetSource:
    """Parquet files: conversations, rows that an adapter turns into some, or rows that training/encode.py wrote.

    `path` is a folder, a file or a glob, or several; local or an URL of fsspec. The row groups are read in an order that
    is drawn anew each epoch; the rows of one are shuffled, then sorted by length into batches, which are shuffled.
    """

    def __init__(self, path: str | list[str], adapter: str | None, lanes: int, batch_size: int, seed: int, bad_rows: BadRows):
        if adapter is not None and adapter not in ADAPTERS:
            raise ValueError(f"unknown adapter {adapter!r}; known: {', '.join(ADAPTERS)}")
        self.adapt = ADAPTERS[adapter] if adapter else dict
        self.lanes, self.batch_size, self.seed, self.bad_rows = lanes, batch_size, seed, bad_rows
        self.groups = [group for one in ([path] if isinstance(path, str) else path) for group in row_groups(one, adapter)]
        self.encoded = "input_ids" in footer(self.groups[0][0]).schema.to_arrow_schema().names
        self.starts: dict[int, list[int]] = {lane: [0] for lane in range(lanes)}  # first batch of the lane's groups
        self.read: dict[int, tuple[int, list]] = {}  # each lane's last group, in batches

    def batch(self, lane: int, turn: int) -> list[tuple[str, dict]]:
        """The lane's batch number `turn`: (name, row) pairs. Empty where all its rows were left out."""
        starts = self.starts[lane]
        while starts[-1] <= turn:
            _, _, rows = self.group(lane + self.lanes * (len(starts) - 1))
            starts.append(starts[-1] + -(-rows // self.batch_size))
        position = bisect.bisect_right(starts, turn) - 1
        number = lane + self.lanes * position
        if self.read.get(lane, (None,))[0] != number:
            self.read[lane] = number, self.batches(number, starts[position + 1] - starts[position])
        return self.read[lane][1][turn - starts[position]]

    def group(self, number: int) -> tuple[str, int, int]:
        """(file, row group, rows) number `number` of the endless sequence of epochs."""
        epoch, i = divmod(number, len(self.groups))
        return self.groups[permutation(self.seed, epoch, len(self.groups))[i]]

    def batches(self, number: int, count: int) -> list[list[tuple[str, dict]]]:
        file, group, _ = self.group(number)
        usable = self.usable_rows(file, group)
        usable = [usable[i] for i in np.random.default_rng([self.seed, number, 1]).permutation(len(usable))]
        usable.sort(key=lambda row: row[2])
        pieces = np.array_split(np.arange(len(usable)), count)
        order = np.random.default_rng([self.seed, number // self.lanes, 2]).permutation(count)  # one for all lanes
        return [[usable[i][:2] for i in pieces[j]] for j in order]

    def usable_rows(self, file: str, group: int) -> list[tuple[str, dict, float]]:
        """(name, row, length) of the row group's rows that are neither bad nor left out by the adapter."""
        with fsspec.open(file, "rb") as opened:
            try:
                rows = pq.ParquetFile(opened).read_row_group(group).to_pylist()
            except (OSError, ValueError) as error:
                raise ValueError(f"{file}: row group {group} is damaged ({error}); fetch or write the file again") from error
        usable = []
        for i, raw in enumerate(rows):
            name = f"{file}#{group}.{i}"
            try:
                row = self.adapt(raw)
                if row is not None:
                    usable.append((name, row, length_of(row)))
            except Exception as error:  # whatever is wrong with one row, the others are still there
                self.bad_rows.add(name, error)
        return usable


@functools.lru_cache(maxsize=64)
def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def row_groups(path: str, adapter: str | None) -> list[tuple[str, int, int]]:
    """(file, row group, rows) of all files that `path` names; ValueError where there are none, or one cannot be read."""
    filesystem, plain = fsspec.url_to_fs(path)
    files = sorted(filesystem.glob(f"{plain.rstrip('/')}/*.parquet" if filesystem.isdir(plain) else plain))
    if not files:
        raise ValueError(f"no Parquet file at {path!r}; give a folder, a file or a glob that exists")
    for folder in {file.rpartition("/")[0] for file in files}:
        if filesystem.exists(f"{folder}/{shards.UNFINISHED}"):
            raise ValueError(f"{folder} is not finished; run the command that writes it again, it goes on where it stopped")
    found = []
    for file in map(filesystem.unstrip_protocol, files):
        metadata = footer(file)
        names = metadata.schema.to_arrow_schema().names
        if not adapter and not {"messages", "input_ids"} & set(names):
            raise ValueError(
                f"{file} has the columns {', '.join(names)}, which are no conversations; name the `adapter` that makes some of "
                f"them: {', '.join(ADAPTERS)}"
            )
        found += [(file, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
    if not (filled := [group for group in found if group[2]]):
        raise ValueError(f"the Parquet files at {path!r} hold no rows")
    return filled


def footer(file: str) -> pq.FileMetaData:
    """Raises ValueError for what is no Parquet file, or was cut short: its footer comes last."""
    with fsspec.open(file, "rb") as opened:
        try:
            return pq.ParquetFile(opened).metadata
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is no complete Parquet file ({error}); fetch or write it again") from error


def length_of(row: dict[str, Any]) -> float:
    """About how many tokens the row has: exact for encoded rows, else by characters, crops and seconds."""
    if "input_ids" in row:
        return len(row["input_ids"])
    tokens = (len(json.dumps(row["messages"])) + len(row.get("tools") or "")) / 4
    for image in row.get("images") or []:
        width, height = Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]).size
        tokens += 130 * -(-width // CROP) * -(-height // CROP)
    for audio in row.get("audios") or []:
        tokens += 3 * soundfile.info(io.BytesIO(audio["bytes"]) if audio["bytes"] else audio["path"]).duration
    return tokens


class Mixture:
    """Sources by their probabilities, in batches of features; `rows` is the data set that a trainer takes.

    Args:
        data: name -> {"path", "weight", "adapter"}, see above.
        batches, batch_size: how much there is in all; a batch has fewer rows where some were bad or too long.
        features: a conversation row -> its tensors (`EagleCollator.features`).
        longest: rows of more tokens are left out.
        phone_layouts: share of the batches whose pictures and sounds are cut as llama.cpp does it ("overview", "padded").
        lanes: sequences of batches that share no row group, best one a process and loader worker.
        together: how many lanes work at the same time, one a process; `lanes` is a multiple of it.
        bad_rows: where rows that cannot be read are counted.
    """

    def __init__(
        self,
        data: dict[str, dict],
        batches: int,
        batch_size: int,
        seed: int,
        features: Callable[[dict], dict[str, torch.Tensor]],
        bad_rows: BadRows,
        longest: int = 8192,
        phone_layouts: float = 1 / 3,
        lanes: int = 1,
        together: int = 1,
    ):
        if lanes % together:
            raise ValueError(f"lanes is {lanes}; it must be a multiple of those that work together, which are {together}")
        self.together = together
        self.batches, self.batch_size, self.seed, self.lanes = batches, batch_size, seed, lanes
        self.features, self.bad_rows, self.longest, self.phone_layouts = features, bad_rows, longest, phone_layouts
        self.names = list(data)
        weights = np.array([check_source(name, source) for name, source in data.items()], float)
        self.probabilities = weights / weights.sum()
        self.sources = [self.open(i, source) for i, source in enumerate(data.values())]
        self.drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def open(self, i: int, source: dict) -> WorldSource | ParquetSource:
        seed, path = 1000 * self.seed + i, source["path"]
        if isinstance(path, str) and path.startswith("world:"):
            return WorldSource(path.removeprefix("world:"), self.batch_size, seed)
        return ParquetSource(path, source.get("adapter"), self.lanes, self.batch_size, seed, self.bad_rows)

    @property
    def rows(self) -> Dataset:
        """One index a row; reading a batch of neighbours draws their features, in a column of that name."""
        return Dataset.from_dict({"row": range(self.batches * self.batch_size)}).with_transform(self.draw)

    def draw(self, columns: dict[str, list[int]]) -> dict[str, list]:
        indices = columns["row"]
        return {"features": self.batch(indices[0] // self.batch_size)[: len(indices)]}

    def batch(self, number: int) -> list[dict[str, torch.Tensor]]:
        turn, lane = divmod(number, self.lanes)
        if lane not in self.drawn:
            self.drawn[lane] = self.draw_sources(lane // self.together)
        chosen, turns = (values[turn] for values in self.drawn[lane])
        phone = random.Random(f"{self.seed}/{number // self.together}").random() < self.phone_layouts
        for later in range(PATIENCE):
            drawn = self.sources[chosen].batch(lane, turns + later)
            features = [f for name, row in drawn if (f := self.read(name, row, phone)) is not None]
            if features:
                return features
        raise ValueError(
            f"the source {self.names[chosen]!r} gave {PATIENCE} batches in which every row is bad, left out by its adapter, "
            f"or longer than {self.longest} tokens (`longest`)"
        )

    def draw_sources(self, lanes: int) -> tuple[np.ndarray, np.ndarray]:
        """For each batch of such lanes its source, and the how many-eth of that source it is."""
        count = -(-self.batches // self.lanes)
        chosen = np.random.default_rng([self.seed, lanes, 3]).choice(len(self.sources), count, p=self.probabilities)
        turns = np.zeros(count, int)
        for i in range(len(self.sources)):
            turns[chosen == i] = np.arange((chosen == i).sum())
        return chosen, turns

    def read(self, name: str, row: dict, phone: bool) -> dict[str, torch.Tensor] | None:
        """The row's features; None for a bad one, which is counted, and for one that is too long."""
        layouts = {"image_layout": "overview", "audio_layout": "padded"} if phone else {}
        try:
            if "picture" in row:
                row["cell_words"] = dense.cell_words(row.pop("picture"), layouts.get("image_layout", "grid"))
            features = self.features(row | layouts)
        except Exception as error:  # whatever is wrong with one row, the others are still there
            self.bad_rows.add(name, error)
            return None
        return features if len(features["input_ids"]) <= self.longest else None


def check_source(name: str, source: dict) -> float:
    """The source's weight; ValueError for a field that is missing, unknown or out of range."""
    if unknown := set(source) - SOURCE_KEYS:
        raise ValueError(f"data.{name} has the unknown field {unknown.pop()!r}; known: {', '.join(sorted(SOURCE_KEYS))}")
    if missing := {"path", "weight"} - set(source):
        raise ValueError(f"data.{name} lacks {missing.pop()!r}")
    if source["weight"] <= 0:
        raise ValueError(f"data.{name} has the weight {source['weight']}; it must be above 0")
    return source["weight"]
