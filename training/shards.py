"""Conversation rows as Parquet shards with a manifest: what the scripts of training/synthesis/ and training/ write and read.

A row holds `messages` and, as encoded files in order of appearance, `images` (PNG), `audios` (FLAC) and `videos` (MP4); its
`speech` may be the last answer as a sound. SCHEMA has its columns. A script gives `write_shards` a function from a number to a
row; the same arguments give the same bytes on one core, on many, or as Ray tasks, and a run that was killed goes on with the
shard that it had not finished.
"""

import argparse
import bisect
import functools
import hashlib
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image
from tqdm import tqdm

SAMPLING_RATE = 16_000  # of FLAC, where a sound has none of its own
ROLES = ("system", "user", "assistant", "tool")
MEDIA = ("image", "audio", "video")
ENGINES = ("processes", "ray")
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
PACKAGES = ("pyarrow", "pillow", "soundfile", "av", "numpy")  # their versions may change the bytes

_PART = pa.struct([("type", pa.string()), ("text", pa.string())])
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.list_(_PART)), ("tool_calls", pa.string())])
_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        *((f"{kind}s", pa.list_(_FILE)) for kind in MEDIA),
        ("speech", _FILE),  # or null
        ("tools", pa.string()),  # JSON or null, as is `tool_calls` of a message
        ("source", pa.string()),
        ("license", pa.string()),
        ("meta", pa.string()),  # JSON
    ]
)


# ------------------------------------------------------------------------------------------------ rows


def encode_row(sample: dict, id: str, source: str, license: str) -> dict:
    """A sample as training/synthesis/samples.py makes them (messages, media in memory, `meta`) to a row of SCHEMA.

    Pictures are PIL images, sounds (`speech` among them) mono float32 (samples,) at 16 kHz, videos frames (T, H, W, 3) uint8,
    one a second; a medium that is `bytes`, a file's content, is kept as it is. `tools`, `tool_calls` and `meta` may be objects or JSON.
    """
    encoders = {"image": encode_image, "audio": encode_audio, "video": encode_video}
    files = {
        f"{kind}s": [{"bytes": encode(medium), "path": None} for medium in sample.get(f"{kind}s", ())]
        for kind, encode in encoders.items()
    }
    return {
        "id": id,
        "messages": [encode_message(message) for message in sample["messages"]],
        **files,
        "speech": None if sample.get("speech") is None else {"bytes": encode_audio(sample["speech"]), "path": None},
        "tools": to_json(sample.get("tools")),
        "source": source,
        "license": license,
        "meta": to_json(sample.get("meta", {})),
    }


def encode_message(message: dict) -> dict:
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    parts = [{"type": part["type"], "text": part.get("text")} for part in content]
    return {"role": message["role"], "content": parts, "tool_calls": to_json(message.get("tool_calls"))}


def to_json(value) -> str | None:
    """JSON with sorted keys; what is a string or None already stays."""
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def encode_image(image: Image.Image | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode_audio(waveform: np.ndarray | bytes, sampling_rate: int = SAMPLING_RATE) -> bytes:
    """FLAC of 16 bits. Raises ValueError for what is not one axis of finite samples."""
    if isinstance(waveform, bytes):
        return waveform
    if waveform.ndim != 1 or not waveform.size or not np.isfinite(waveform).all():
        raise ValueError(f"a sound is one axis of finite samples, got shape {waveform.shape}")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode_video(frames: np.ndarray | bytes) -> bytes:
    """H.264 as every browser plays it: yuv420p, which takes even sides only, so an odd last row or column is cut off."""
    if isinstance(frames, bytes):
        return frames
    height, width = (side - side % 2 for side in frames.shape[1:3])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # One thread: the bytes that several write depend on how many there are.
        stream = container.add_stream("libx264", rate=Fraction(1), options={"crf": "18", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def check_row(row: dict) -> None:
    """Raises ValueError for a row with other columns, an unknown role or part, media that its messages do not show, or speech
    without an answer that it says."""
    if set(row) != set(SCHEMA.names):
        raise ValueError(f"row {row.get('id')!r} has columns {sorted(row)}; they must be {sorted(SCHEMA.names)}")
    roles = {message["role"] for message in row["messages"]}
    if not roles or not roles <= set(ROLES):
        raise ValueError(f"row {row['id']!r} has messages of roles {sorted(roles)}; known: {', '.join(ROLES)}")
    shown = Counter(part["type"] for message in row["messages"] for part in message["content"])
    if not set(shown) <= {"text", *MEDIA}:
        raise ValueError(f"row {row['id']!r} has parts of types {sorted(shown)}; known: text, {', '.join(MEDIA)}")
    for kind in MEDIA:
        if shown[kind] != len(row[f"{kind}s"]):
            raise ValueError(f"row {row['id']!r} shows {shown[kind]} {kind}s, but has {len(row[f'{kind}s'])}")
    last = row["messages"][-1]
    if row["speech"] and (last["role"] != "assistant" or not last["content"]):
        raise ValueError(f"row {row['id']!r} has speech, but its last message, of role {last['role']}, is no answer that says something")


# ------------------------------------------------------------------------------------------------ writing


def write_shards(
    draw: Callable[[int], dict | None],
    count: int,
    output: str | Path,
    *,
    source: str,
    license: str,
    seed: int,
    options: dict,
    labels: Sequence[str] = (),
    rows_per_shard: int = 256,
    row_group: int = 64,
    processes: int | None = None,
    engine: str = "processes",
) -> dict:
    """Writes the rows `draw(0)` to `draw(count - 1)` as `output`/shard-00000.parquet and so on; returns the manifest.

    `draw` is picklable (a functools.partial of a module's function) and gives the same row or None, which leaves the
    number out, whenever it is called with the same number. `options` are what else the rows follow from; `labels` name
    keys of `meta` whose values the manifest counts. `processes` (default: one a core) and `engine` ("processes", or
    "ray": one Ray task a shard, into a folder that every node sees) do not change a byte.

    A shard appears under its name when it is whole, manifest.json {source, license, seed, options, count, ..., rows,
    left_out, labels, shards} when all are. Called again, it writes what is missing. Raises ValueError, and changes
    nothing, where `output` holds shards of other arguments.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if min(count, rows_per_shard, row_group) < 1:
        raise ValueError(f"{count} rows, {rows_per_shard} a shard, {row_group} a group: each must be at least 1")
    output = Path(output)
    arguments = {"source": source, "license": license, "seed": seed, "options": options, "count": count}
    arguments |= {"labels_of": list(labels), "rows_per_shard": rows_per_shard, "row_group": row_group}
    arguments = json.loads(json.dumps(arguments | {"versions": versions()}))
    if claim(output, arguments):
        print(f"{output} is complete")
        return json.loads((output / MANIFEST).read_text())
    starts = range(0, count, rows_per_shard)
    there = sum((output / shard_name(number)).exists() for number in range(len(starts)))
    processes = min(processes or os.cpu_count(), len(starts))
    write = functools.partial(write_shard, draw, count, str(output), rows_per_shard, row_group, tuple(labels))
    run = run_ray if engine == "ray" else run_processes
    shards, began = [], time.perf_counter()
    with tqdm(total=count, unit="row", desc=str(output)) as bar:
        for start, shard in zip(starts, run(write, range(len(starts)), processes), strict=True):
            shards.append(shard)
            bar.update(min(rows_per_shard, count - start))
    manifest = finish(output, arguments, shards)
    report(manifest, count - there * rows_per_shard, time.perf_counter() - began, processes)
    return manifest


def claim(output: Path, arguments: dict) -> bool:
    """Makes the folder that of these arguments; True if it has all their shards. ValueError if it is another's."""
    names = [name for name in (MANIFEST, UNFINISHED) if (output / name).exists()]
    if not names and output.exists() and any(path.suffix != ".part" for path in output.iterdir()):
        raise ValueError(f"{output} holds files that are not of this script; remove them, or name another folder")
    if not names:
        output.mkdir(parents=True, exist_ok=True)
        write_beside(output / UNFINISHED, arguments)
        return False
    written = json.loads((output / names[0]).read_text())
    for key, value in arguments.items():
        if written.get(key) != value:
            raise ValueError(
                f"{output} was written with {key} {written.get(key)!r}, now it is {value!r}; take the same, or name "
                "another folder"
            )
    return names[0] == MANIFEST and all((output / shard["file"]).exists() for shard in written["shards"])


def write_shard(draw, count: int, output: str, rows_per_shard: int, row_group: int, labels: tuple, number: int) -> dict:
    """Writes the shard of that number unless it is there; returns {file, rows, bytes, sha256, labels}."""
    path = Path(output) / shard_name(number)
    if path.exists():
        return shard_facts(path, labels)
    part = path.with_suffix(".part")
    indices = range(number * rows_per_shard, min((number + 1) * rows_per_shard, count))
    try:
        with pq.ParquetWriter(part, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
            rows = []
            for index in indices:
                rows += drawn(draw, index)
                if len(rows) == row_group or (rows and index == indices[-1]):
                    writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                    rows = []
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return shard_facts(path, labels)


def drawn(draw: Callable[[int], dict | None], index: int) -> list[dict]:
    """The row of that number, or none; an error is told which number it was."""
    try:
        row = draw(index)
        if row is not None:
            check_row(row)
    except Exception as error:
        error.add_note(f"This was row number {index}.")
        raise
    return [] if row is None else [row]


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.parquet"


def shard_facts(path: Path, labels: tuple) -> dict:
    """What the manifest says of a shard. Raises ValueError for one that cannot be read."""
    try:
        metas = pq.read_table(path, columns=["meta"])["meta"].to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and run the same command again") from error
    metas = [json.loads(meta) for meta in metas] if labels else metas
    counts = {name: Counter(to_json(meta[name]) for meta in metas if name in meta) for name in labels}
    facts = {"file": path.name, "rows": len(metas), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return facts | {"labels": counts}


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(output: Path, arguments: dict, shards: list[dict]) -> dict:
    """Writes the manifest, with which the folder is complete."""
    counts = {name: Counter() for name in arguments["labels_of"]}
    for shard in shards:
        for name, values in shard.pop("labels").items():
            counts[name] += values
    rows = sum(shard["rows"] for shard in shards)
    manifest = arguments | {"rows": rows, "left_out": arguments["count"] - rows}
    manifest |= {"labels": {name: dict(sorted(values.items())) for name, values in counts.items()}, "shards": shards}
    write_beside(output / MANIFEST, manifest)
    (output / UNFINISHED).unlink(missing_ok=True)
    return manifest


def write_beside(path: Path, value: dict) -> None:
    """JSON that appears under its name once it is whole."""
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def report(manifest: dict, drawn: int, seconds: float, processes: int) -> None:
    speed = max(drawn, 0) / seconds
    written = f"{manifest['rows']} rows in {len(manifest['shards'])} shards, {manifest['left_out']} left out"
    print(f"{written}; {speed:.1f} rows a second, {speed / processes:.1f} a core")


# ------------------------------------------------------------------------------------------------ engines


def run_processes(write: Callable[[int], dict], numbers: Iterable[int], processes: int) -> Iterator[dict]:
    """`write` of each number, in order, in `processes` processes."""
    if processes == 1:
        yield from map(write, numbers)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads, as torch starts them, may hang
    with ProcessPoolExecutor(processes, context, initializer=end_with_parent) as pool:
        yield from pool.map(write, numbers)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone: killed, it could not have told anyone to stop."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_ray(write: Callable[[int], dict], numbers: Iterable[int], processes: int) -> Iterator[dict]:
    """`write` of each number, in order, as Ray tasks: on RAY_ADDRESS's cluster, else on `processes` cores here."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine 'ray' needs Ray: pip install ray") from error
    if not ray.is_initialized():
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": processes}
        ray.init(**local, runtime_env={"py_modules": [str(Path(__file__).parent)]}, log_to_driver=False)
    task = ray.remote(lambda write, number: write(number))
    write = ray.put(functools.partial(write.func, importable(write.args[0]), *write.args[1:]))
    yield from map(ray.get, [task.remote(write, number) for number in numbers])


def importable(draw: Callable) -> Callable:
    """`draw` of a script that was started with `python -m`, as other machines know it: not as one of `__main__`."""
    script = sys.modules["__main__"].__spec__
    if script is None or not isinstance(draw, functools.partial) or draw.func.__module__ != "__main__":
        return draw
    function = getattr(importlib.import_module(script.name), draw.func.__name__)
    return functools.partial(function, *draw.args, **draw.keywords)


# ------------------------------------------------------------------------------------------------ the scripts' options


def add_arguments(parser: argparse.ArgumentParser, rows: int | None = 1000, rows_help: str = "rows to draw") -> None:
    """The options that every script shares; `write_shards(draw, **arguments(args), ...)` takes them."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards and manifest.json")
    parser.add_argument("--rows", type=int, default=rows, help=f"{rows_help} (default: {rows or 'all'})")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument("--rows-per-shard", type=int, default=256, help="(default: 256)")
    parser.add_argument("--processes", type=int, help="(default: one a core)")
    parser.add_argument("--engine", choices=ENGINES, default="processes", help="ray: one Ray task a shard")


def arguments(args: argparse.Namespace) -> dict:
    """What `add_arguments` parsed, under the names of `write_shards`."""
    names = ("output", "seed", "rows_per_shard", "processes", "engine")
    return {"count": args.rows} | {name: getattr(args, name) for name in names}


@functools.lru_cache(maxsize=1)
def find_function(name: str) -> Callable:
    """The function that "module:function" names. Raises ValueError where there is none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no function {name!r} ({error}); expected module:function, of a module that Python finds") from error


# ------------------------------------------------------------------------------------------------ reading


class Rows(Sequence):
    """The rows of shards, by number: a folder, a Parquet file, or several files in that order. Media stay encoded.

    Picklable; a row group is read when a row of it is asked for, and the last one is kept.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]):
        self.groups, self.ends = [], []  # (file, row group), and the number of rows up to the end of each
        for file in shard_files(paths):
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self.groups.append((file, group))
                self.ends.append(len(self) + metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no row {index}: the shards hold {len(self)}")
        number = bisect.bisect_right(self.ends, index)
        return read_group(*self.groups[number])[index - self.ends[number]]


@functools.lru_cache(maxsize=1)
def read_group(file: str, group: int) -> list[dict]:
    return pq.ParquetFile(file).read_row_group(group).to_pylist()


def shard_files(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """The Parquet files of a folder, by name, or the files themselves. Raises FileNotFoundError where there is none."""
    if not isinstance(paths, str | Path):
        return [str(path) for path in paths]
    path = Path(paths)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"no Parquet file at {path}")
    return [str(file) for file in files]


def read_rows(paths: str | Path | Iterable[str | Path]) -> Iterator[dict]:
    """Every row of the shards as a dict of SCHEMA's columns, media as {"bytes", "path"}."""
    for file, group in Rows(paths).groups:
        yield from read_group(file, group)
