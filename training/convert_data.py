"""Public data sets as files (JSON, JSONL, tar, Parquet, folders of speech) to shards of conversation rows.

    python -m training.convert_data --adapter llava --input llava_v1_5_mix665k.json --media-root images \\
        --source liuhaotian/LLaVA-Instruct-150K --license cc-by-4.0 --output out/llava
    python -m training.convert_data --adapter glaive --input glaive-function-calling-v2.json --order multi-turn-first \\
        --rows 50000 --source glaiveai/glaive-function-calling-v2 --license apache-2.0 --output out/glaive

training/adapters.py says what becomes of a row, training/shards.py how shards are written and resumed. Media go into
the shards as the files that they are, after each has been decoded. A bad row (malformed JSON, a missing file, a damaged
picture) is left out and named in OUTPUT/bad_rows.jsonl; one more than --max-bad-rows is an error, after which the same
command goes on where it was. Nothing is fetched from the web without --download.
"""

import argparse
import functools
import io
import json
import random
import re
import tarfile
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
from PIL import Image
from tqdm import tqdm

from training import shards
from training.adapters import ADAPTERS
from training.data import BadRows

DOWNLOAD_TIMEOUT = 10  # seconds without an answer
ORDERS = ("as-is", "multi-turn-first")
GAP = re.compile(r"[\s,]*")  # between the objects of a JSON list


# ------------------------------------------------------------------------------------------------ files to rows


@functools.lru_cache(maxsize=1)
def find_rows(inputs: tuple[str, ...]) -> list[Callable[[], dict]]:
    """One function a row, which reads it, in the order of the files.

    Not datasets.load_dataset: for one malformed line it refuses the file, and it gives all objects in a column the same
    keys, so that a call would have the arguments of all functions.
    """
    rows = []
    for path in map(Path, inputs):
        kind = "a folder" if path.is_dir() else path.suffix
        if kind not in READERS:
            raise ValueError(f"cannot read {path}: its kind is {kind!r}; known: {', '.join(READERS)}")
        rows += READERS[kind](path)
    return rows


def json_rows(path: Path) -> Iterator[Callable[[], dict]]:
    """The objects of a JSON list, which must be well-formed, or of lines, of which any may be malformed."""
    with path.open("rb") as file:
        is_list = file.read(1024).lstrip().startswith(b"[")
    for start, size in list_places(path) if is_list else line_places(path):
        yield functools.partial(read_json, path, start, size)


def line_places(path: Path) -> Iterator[tuple[int, int]]:
    start = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield start, len(line)
            start += len(line)


def list_places(path: Path) -> Iterator[tuple[int, int]]:
    text = path.read_bytes().decode("latin-1")  # a character a byte, so that positions are the file's
    position, decoder = text.index("[") + 1, json.JSONDecoder()
    while not text.startswith("]", start := GAP.match(text, position).end()):
        try:
            _, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is malformed or cut off: {error}") from error
        yield start, position - start


def tar_rows(path: Path) -> list[Callable[[], dict]]:
    """WebDataset's rule: files with one name up to its first dot are a row; what follows the dot names its fields."""
    rows = defaultdict(dict)
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.isfile():
                folder, slash, name = member.name.rpartition("/")
                stem, _, field = name.partition(".")
                rows[folder + slash + stem][field.lower()] = member.offset_data, member.size
    return [functools.partial(read_members, path, key, places) for key, places in rows.items()]


def parquet_rows(path: Path) -> list[Callable[[], dict]]:
    rows = shards.Rows(path)
    return [functools.partial(rows.__getitem__, index) for index in range(len(rows))]


def folder_rows(folder: Path) -> Iterator[Callable[[], dict]]:
    found = {pattern: files for pattern in FOLDERS if (files := sorted(folder.rglob(pattern)))}
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {' and '.join(found) or 'none of ' + ', '.join(FOLDERS)}; it must be laid out as one of LibriSpeech, "
            "LJSpeech and LibriTTS is"
        )
    for pattern, files in found.items():
        for file in files:
            yield from FOLDERS[pattern](file.absolute())


def librispeech_rows(transcript: Path) -> Iterator[Callable[[], dict]]:
    """Lines of an utterance's id and text; the sound, ID.flac, lies beside."""
    for line in transcript.read_text(encoding="utf-8").splitlines():
        id, text = line.split(" ", 1)
        yield functools.partial(dict, id=id, text=text, audio=str(transcript.with_name(f"{id}.flac")))


def ljspeech_rows(table: Path) -> Iterator[Callable[[], dict]]:
    """Lines of an id, a text and, where it has one, its normalised form, "|" between; the sound is wavs/ID.wav."""
    for line in table.read_text(encoding="utf-8").strip().split("\n"):
        yield functools.partial(ljspeech_row, table.parent / "wavs", line)


def ljspeech_row(wavs: Path, line: str) -> dict:
    id, *texts = line.split("|")
    if not texts:
        raise ValueError(f"no '|' in the line {line[:80]!r}")
    return {"id": id, "text": texts[0], "normalized_text": texts[-1] or texts[0], "audio": str(wavs / f"{id}.wav")}


def libritts_rows(text: Path) -> Iterator[Callable[[], dict]]:
    """SPEAKER/CHAPTER/ID.normalized.txt; the sound, ID.wav, lies beside."""
    yield functools.partial(libritts_row, text)


def libritts_row(text: Path) -> dict:
    id = text.name.removesuffix(".normalized.txt")
    said = text.read_text(encoding="utf-8").strip()
    return {"id": id, "text_normalized": said, "speaker_id": id.split("_")[0], "audio": str(text.with_name(f"{id}.wav"))}


FOLDERS = {"*.trans.txt": librispeech_rows, "metadata.csv": ljspeech_rows, "*.normalized.txt": libritts_rows}
READERS = {
    ".json": json_rows,
    ".jsonl": json_rows,
    ".tar": tar_rows,
    ".parquet": parquet_rows,
    "a folder": folder_rows,
}


def read_json(path: Path, start: int, size: int) -> dict:
    return json.loads(read_bytes(path, start, size))


def read_members(path: Path, key: str, places: dict[str, tuple[int, int]]) -> dict:
    return {"__key__": key} | {field: read_bytes(path, *place) for field, place in places.items()}


def read_bytes(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def choose(inputs: tuple[str, ...], adapter: str, order: str, rows: int | None, seed: int) -> Sequence[int]:
    """Numbers of `rows` of the rows (None: of all): a random part in the order of the files, or those of most turns."""
    found = find_rows(inputs)
    if rows is not None and rows > len(found):
        raise ValueError(f"--rows is {rows}, but {', '.join(inputs)} hold {len(found)}")
    if order == "multi-turn-first":
        turns = [count_turns(adapter, read) for read in tqdm(found, desc="turns", unit="row")]
        return sorted(range(len(found)), key=lambda number: -turns[number])[:rows]
    return range(len(found)) if rows is None else sorted(random.Random(seed).sample(range(len(found)), rows))


def count_turns(adapter: str, read: Callable[[], dict]) -> int:
    """How often the user speaks; 0 for a row that is bad or does not apply."""
    try:
        row = ADAPTERS[adapter](read())
    except ValueError:
        return 0
    return sum(message["role"] == "user" for message in row["messages"]) if row else 0


# ------------------------------------------------------------------------------------------------ rows to shards


def draw(
    index: int,
    *,
    chosen: Sequence[int],
    inputs: tuple[str, ...],
    adapter: str,
    media_root: str,
    download: bool,
    stamp: dict[str, str],
    bad_rows: BadRows,
) -> dict | None:
    """The conversation row of number `chosen[index]`; None if it does not apply, or is bad, which `bad_rows` notes."""
    number = chosen[index]
    read = find_rows(inputs)[number]
    try:
        row = ADAPTERS[adapter](read())
        if row is None:
            return None
        embed(row, media_root, download)
    except Exception as error:  # whatever is wrong with one row, the others are still there
        bad_rows.add(f"row {number}", error)
        return None
    return row | stamp | {"id": row["id"] or str(number)}


def embed(row: dict, media_root: str, download: bool) -> None:
    """Puts the files of a row's media into it. Raises OSError for one that is missing, ValueError for a damaged one."""
    for kind, media in {"image": row["images"], "audio": [*row["audios"], *filter(None, [row["speech"]])]}.items():
        for medium in media:
            name = medium["path"] or f"{kind} of {len(medium['bytes'])} bytes"
            content = medium["bytes"] or read_medium(medium["path"], media_root, download)
            try:
                decode(kind, content)
            except Exception as error:  # decoders raise whatever a damaged file leads them to
                raise ValueError(f"cannot decode {name} as {kind}: {error!r}") from error
            medium |= {"bytes": content, "path": None}


def read_medium(path: str, media_root: str, download: bool) -> bytes:
    if not path.startswith(("http://", "https://")):
        return (Path(media_root) / path).read_bytes()
    if not download:
        raise ValueError(f"{path} lies on the web; give --download to fetch it")
    with urllib.request.urlopen(path, timeout=DOWNLOAD_TIMEOUT) as response:
        return response.read()


def decode(kind: str, content: bytes) -> None:
    if kind == "image":
        Image.open(io.BytesIO(content)).load()
        return
    with av.open(io.BytesIO(content)) as container:
        for _ in container.decode(audio=0):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", choices=ADAPTERS, required=True)
    parser.add_argument("--input", nargs="+", required=True, help=f"files: {', '.join(READERS)}")
    parser.add_argument("--media-root", default=".", help="folder that paths of media in rows start from (default: .)")
    parser.add_argument("--download", action="store_true", help="fetch media that rows give by URL")
    parser.add_argument("--source", required=True, help="where the rows come from: repository@revision")
    parser.add_argument("--license", required=True)
    parser.add_argument("--order", choices=ORDERS, default="as-is", help="multi-turn-first: ties as in the files")
    parser.add_argument("--max-bad-rows", type=int, default=0)
    shards.add_arguments(parser, rows=None, rows_help="rows to take: a random part, or the first by --order")
    args = parser.parse_args()
    inputs, stamp = tuple(args.input), {"source": args.source, "license": args.license}
    chosen = choose(inputs, args.adapter, args.order, args.rows, args.seed)
    bad_rows = BadRows(args.output / "bad_rows.jsonl", args.max_bad_rows)
    read = functools.partial(
        draw,
        chosen=chosen,
        inputs=inputs,
        adapter=args.adapter,
        media_root=args.media_root,
        download=args.download,
        stamp=stamp,
        bad_rows=bad_rows,
    )
    options = {name: getattr(args, name) for name in ("adapter", "input", "media_root", "order", "rows")}
    shards.write_shards(read, **shards.arguments(args) | {"count": len(chosen)}, **stamp, options=options)
    if names := bad_rows.names():
        print(f"{len(names)} rows were bad: {bad_rows.path}")


if __name__ == "__main__":
    main()
