"""Measures a model on benchmarks: one command a table.

    python -m eval.run --model . --tasks mini
    python -m eval.run --model . --tasks chartqa,mmmu_val --output out/chartqa
    python -m eval.run --model . --tasks eagle_table1 --data-root data --num-processes 8 --batch-size 32
    torchrun --nproc-per-node 8 -m eval.run --model . --tasks bunny

Writes OUTPUT/samples.jsonl (each answer as soon as it is there), results.json, manifest.json, report.md and report.html.
The same command again goes on where a killed run stood: an answer is kept if the model's files, the code, the prompt, the
row and the settings of generation are what they were, and is asked for anew otherwise. Scores are always computed anew.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import soundfile
import torch
from datasets import disable_progress_bars
from PIL.Image import DecompressionBombError
from tqdm import tqdm

from eval import mini
from eval.models import MAX_NEW_TOKENS, Answer, Model, Size, TorchModel, files_sha256, media_parts
from eval.report import write_report
from eval.results import average, not_applicable, results_of, scored
from eval.samples import append, gather, read_lines, to_lines, write_beside
from eval.statistics import SEED
from eval.task import TASKS, Request, Rows, Task, TaskError, load_tasks, row_sha256, task_files

CODE = ("models.py", "task.py")
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "pillow", "soundfile", "av", "numpy")
FOREVER = timedelta(days=30)  # a process may be done long before the others
SUBTYPES = {"audio": "mpeg", "video": "mp4"}  # what browsers are told of files; they look for themselves
MEDIA_ERRORS = (OSError, ValueError, RuntimeError, DecompressionBombError)  # RuntimeError: soundfile's


@dataclass(frozen=True)
class Item:
    """One row of a task and how it is asked; `error` says why it cannot be."""

    task: str
    index: int
    key: str
    row_sha256: str
    prompt: str
    size: Size
    error: str | None = None


@dataclass
class Bench:
    """A task with its rows and those that examples are taken from."""

    task: Task
    docs: Rows
    shots: Rows | None

    def request(self, index: int):
        return self.task.request(self.docs[index], self.shots, self.docs.folder)


# ------------------------------------------------------------------------------------------------ planning


def fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def code_sha256() -> str:
    folder = Path(__file__).parent
    return hashlib.sha256(b"\0".join((folder / name).read_bytes() for name in CODE)).hexdigest()


def open_bench(task: Task, data_root: Path | None) -> Bench:
    root = mini.folder(task.drawn_rows) if task.drawn_rows else data_root
    bench = Bench(task, task.docs(root), task.shots(root))
    if not len(bench.docs):
        raise TaskError(f"task {task.task}: split {task.split!r} of {task.dataset_path} has no rows")
    return bench


def plan_item(model: Model, bench: Bench, index: int, asked: tuple) -> Item:
    """The item of a row. What is wrong with its media is the item's error; a missing column is the task's."""
    task, row = bench.task, row_sha256(bench.docs.raw(index))
    try:
        request = bench.request(index)
        prompt, size = model.render(request), model.size(request)
    except TaskError:
        raise
    except MEDIA_ERRORS as error:
        return Item(task.task, index, fingerprint(row, asked), row, "", Size(0), f"{type(error).__name__}: {error}")
    files = [files_sha256(Path(medium).parent, (Path(medium).name,)) for medium in named_media(request)]
    key = fingerprint(row, asked, prompt, request.tools, request.choices, files)
    return Item(task.task, index, key, row, prompt, size)


def named_media(request: Request) -> list[str]:
    """Paths of media that lie beside the rows, not in them."""
    media = [part[part["type"]] for part in media_parts(request)]
    return [medium for medium in media if isinstance(medium, str) and Path(medium).is_file()]


def plan(model: Model, bench: Bench, limit: int | None, rank: int, world: int) -> list[Item]:
    """This process's share of a task's items."""
    task = bench.task
    facts = {name: fact for name, fact in model.info.items() if name != "path"}  # the same files elsewhere answer the same
    asked = (facts, code_sha256(), task.task, task.sha256(), task.generation_kwargs)
    indices = range(rank, min(len(bench.docs), limit or len(bench.docs)), world)
    progress = tqdm(indices, desc=f"{task.task}: reading rows", leave=False, disable=rank > 0)
    return [plan_item(model, bench, index, asked) for index in progress]


def batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Batches of one task each, of prompts of like length, the longest first.

    Among prompts of equal media and texts of like length the data set's order stays, in which questions on one picture
    follow each other: it is encoded once.
    """
    groups = {}
    for item in items:
        groups.setdefault(item.task, []).append(item)
    for group in groups.values():
        group.sort(key=lambda item: (-item.size.media_tokens, -((item.size.tokens - item.size.media_tokens) // 64), item.index))
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


def check_fits(model: Model, benches: dict[str, Bench], items: list[Item], batch_size: int, world: int) -> None:
    """Raises TaskError, before anything is asked, where no row of a task can be read, a prompt is too long for the model, or
    a batch for the memory."""
    for name, bench in benches.items():
        own = [item for item in items if item.task == name]
        if all(item.error for item in own):
            raise TaskError(f"task {name}: no row can be read; row {own[0].index} says: {own[0].error}")
        longest = max(own, key=lambda item: item.size.tokens)
        if longest.size.tokens >= model.context_length:
            raise TaskError(
                f"task {name}, row {longest.index}: its prompt has {longest.size.tokens} tokens, and the model reads "
                f"{model.context_length} with the answer. Leave the task out, or take a model with a longer context"
            )
        if longest.size.tokens + answer_tokens(bench.task) > model.context_length:
            print(f"task {name}: answers to its longest prompts may be cut off, where the model's context ends", file=sys.stderr)
    free = model.memory_free() // (1 if torch.cuda.is_available() else world)
    for batch in batches(items, batch_size):
        needed = model.memory_needed([item.size for item in batch], answer_tokens(benches[batch[0].task].task))
        if needed > free:
            raise TaskError(
                f"task {batch[0].task}: a batch of {len(batch)} prompts of up to {max(item.size.tokens for item in batch)} tokens "
                f"needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Try --batch-size {max(1, len(batch) * free // needed)}"
            )


def answer_tokens(task: Task) -> int:
    """How long answers may get."""
    return task.generation_kwargs.get("max_new_tokens", MAX_NEW_TOKENS) if task.output_type == "generate_until" else 0


# ------------------------------------------------------------------------------------------------ asking


def ask(model: Model, benches: dict[str, Bench], pending: list[list[Item]], path: Path, progress: tqdm) -> None:
    """Answers batch after batch, prepares the next meanwhile, and writes each answer down before it goes on."""
    with ThreadPoolExecutor(1) as background:
        futures = [background.submit(prepare, model, benches[batch[0].task], batch) for batch in pending[:1]]
        for number, batch in enumerate(pending):
            good, requests, prepared, errors = futures.pop().result()
            futures += [background.submit(prepare, model, benches[b[0].task], b) for b in pending[number + 1 : number + 2]]
            answers = model.answer(requests, prepared) if good else []
            samples = [sample_of(item, answer) for item, answer in zip(good, answers, strict=True)]
            append(path, samples + [sample_of(item, None, error) for item, error in errors])
            progress.set_description(batch[0].task)
            progress.update(len(batch))


def prepare(model: Model, bench: Bench, batch: list[Item]) -> tuple[list[Item], list, Any, list[tuple[Item, str]]]:
    """The items that can be asked, their requests, the model's inputs for them; and the other items with what is wrong."""
    errors = [(item, item.error) for item in batch if item.error]
    good = [item for item in batch if not item.error]
    try:
        requests = [bench.request(item.index) for item in good]
        return good, requests, model.prepare(requests) if good else None, errors
    except MEDIA_ERRORS:  # some item's medium: find out whose
        errors += [(item, error) for item in good if (error := defect(model, bench, item))]
        good = [item for item in good if item not in [failed for failed, _ in errors]]
        requests = [bench.request(item.index) for item in good]
        return good, requests, model.prepare(requests) if good else None, errors


def defect(model: Model, bench: Bench, item: Item) -> str | None:
    try:
        model.prepare([bench.request(item.index)])
    except MEDIA_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    return None


def sample_of(item: Item, answer: Answer | None, error: str | None = None) -> dict[str, Any]:
    """A line of samples.jsonl as it is first written; scores are added at the end. What cannot be read is answered by nothing."""
    return {
        "task": item.task,
        "index": item.index,
        "key": item.key,
        "row_sha256": item.row_sha256,
        "prompt": item.prompt,
        "response": answer.text if answer else "",
        "logprobs": answer.logprobs if answer else None,
        "error": error,
        "prompt_tokens": item.size.tokens,
        "new_tokens": answer.new_tokens if answer else 0,
    }


# ------------------------------------------------------------------------------------------------ processes


class Processes:
    """This process among those of the run: `torchrun` says so in the environment."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        if self.world > 1:
            torch.distributed.init_process_group("gloo", timeout=FOREVER)

    def all_gather(self, items: list) -> list:
        """The lists of all processes as one."""
        if self.world == 1:
            return items
        gathered = [None] * self.world
        torch.distributed.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()

    def end(self) -> None:
        if self.world > 1:
            torch.distributed.destroy_process_group()


def start_processes(count: int) -> int:
    """Runs this command in `count` processes."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "eval.run"]
    return subprocess.run([*command, *sys.argv[1:]], env={"OMP_NUM_THREADS": threads} | os.environ).returncode


# ------------------------------------------------------------------------------------------------ the command


def manifest(model: Model, benches: dict[str, Bench], items: list[Item], args: argparse.Namespace) -> dict[str, Any]:
    """Everything that a figure depends on."""

    def rows(bench: Bench) -> dict[str, Any]:
        own = [item for item in items if item.task == bench.task.task]
        return {
            "dataset": "/".join(filter(None, (bench.task.dataset_path, bench.task.dataset_name))),
            "split": bench.task.split,
            "revision": bench.docs.revision,
            "data_root": str(bench.docs.folder) if bench.docs.folder else None,
            "rows_sha256": fingerprint([item.row_sha256 for item in own]),
            "prompt_sha256": fingerprint([item.prompt for item in own]),
            "generation_kwargs": bench.task.generation_kwargs,
            "limit": args.limit,
        }

    return {
        "model": model.info,
        "code_sha256": code_sha256(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "tasks": {name: rows(bench) for name, bench in benches.items()},
        "seed": SEED,
        "batch_size": args.batch_size,
        "num_processes": int(os.environ.get("WORLD_SIZE", 1)),
        "hardware": hardware(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hardware() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB"


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".", help="a folder or a repository of the Hub (default: the root's checkpoint)")
    parser.add_argument("--tasks", default="mini", help="tasks and groups, separated by commas; 'list' prints them")
    parser.add_argument("--data-root", type=Path, help="folder with Parquet in place of the Hub's data sets")
    parser.add_argument("--include-path", type=Path, help="folder with further task files, such as lmms-eval's")
    parser.add_argument("--output", type=Path, help="default: out/eval/TASKS")
    parser.add_argument("--limit", type=positive, help="only the first rows of each task")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--num-processes", type=positive, default=1, help="on one machine; elsewhere use torchrun")
    parser.add_argument("--quantization", help="round the weights to this format of export/formats.py, or by this plan of export/allocate.py")
    parser.add_argument("--constrain-calls", action="store_true", help="calls keep to the functions that a prompt defines")
    parser.add_argument("--num-beams", type=positive, help="beams of the search (default: as the task's file says, mostly 1)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="default: float32 on a CPU and with --quantization, else auto")
    parser.add_argument("--layout", choices=("grid", "overview"), help="how pictures are cut (default: the processor's)")
    parser.add_argument("--submission", type=Path, help="folder for the files that evaluation servers take")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.tasks == "list":
        print("\n".join(sorted(task_files([TASKS, *([args.include_path] if args.include_path else [])]))))
        return
    try:
        check_submission(args, tasks_of(args))
        if args.num_processes > 1 and "RANK" not in os.environ:
            sys.exit(start_processes(args.num_processes))
        run(args)
    except TaskError as error:
        sys.exit(f"eval.run: {error}" if os.environ.get("RANK", "0") == "0" else 1)


def tasks_of(args: argparse.Namespace) -> list[Task]:
    return load_tasks([name.strip() for name in args.tasks.split(",") if name.strip()], args.include_path)


def check_submission(args: argparse.Namespace, tasks: list[Task]) -> None:
    if args.submission and args.limit:
        raise TaskError("--submission with --limit would write part of a file; servers take whole ones")
    if args.submission and not any(task.submission for task in tasks):
        raise TaskError("--submission: no server has the answers of these tasks; it has those of vqav2_testdev, mmbench_en_test, mmmu_test")


def run(args: argparse.Namespace) -> None:
    processes, started = Processes(), time.monotonic()
    disable_progress_bars()
    tasks = tasks_of(args)
    output = args.output or Path("out/eval") / args.tasks.replace(",", "+")
    output.mkdir(parents=True, exist_ok=True)
    if processes.rank == 0:
        for task in tasks:
            if task.drawn_rows:
                mini.write(task.dataset_path, task.drawn_rows)
    processes.wait()
    benches = {task.task: open_bench(task, args.data_root) for task in tasks if not task.needs}
    dtype = args.dtype or ("float32" if processes.device == "cpu" or args.quantization else "auto")
    model = TorchModel(args.model, dtype, processes.device, args.layout, args.quantization, args.constrain_calls, args.num_beams)

    share = [plan(model, bench, args.limit, processes.rank, processes.world) for bench in benches.values()]
    items = sorted(processes.all_gather([item for part in share for item in part]), key=lambda item: (item.task, item.index))
    check_fits(model, benches, items, args.batch_size, processes.world)
    facts = manifest(model, benches, items, args)
    keys = {(item.task, item.index): item.key for item in items}
    found = gather(output, keys) if processes.rank == 0 else {}
    # what failed is tried again: the medium may be there now
    done = set(processes.all_gather([place for place, sample in found.items() if sample["error"] is None]))

    (output / "results.json").unlink(missing_ok=True)  # of a run before this one: its samples change now
    pending = list(batches([item for item in items if (item.task, item.index) not in done], args.batch_size))
    share = pending[processes.rank :: processes.world]
    path = output / ("samples.jsonl" if processes.rank == 0 else f"samples.rank{processes.rank}.jsonl")
    with tqdm(total=sum(map(len, share)), disable=processes.rank > 0, unit="item") as progress:
        ask(model, benches, share, path, progress)
    processes.wait()
    if processes.rank == 0:
        facts["seconds"] = round(time.monotonic() - started, 1)
        finish(args, output, tasks, benches, gather(output, keys), facts)
    processes.wait()
    processes.end()


def finish(args, output: Path, tasks: list[Task], benches: dict[str, Bench], samples: dict, facts: dict[str, Any]) -> None:
    """Scores, figures, reports and, if asked for, submissions."""
    results = {}
    for task in tasks:
        if task.needs:
            results[task.task] = not_applicable(task, f"needs {task.needs}")
            continue
        docs = benches[task.task].docs
        own = [scored(task, docs, sample) for (name, _), sample in sorted(samples.items()) if name == task.task]
        samples |= {(task.task, sample["index"]): sample for sample in own}
        if not task.submission:
            results[task.task] = results_of(task, len(docs), own)
            continue
        results[task.task] = not_applicable(task, "the server has the answers; --submission writes the file that it takes")
        if args.submission:
            args.submission.mkdir(parents=True, exist_ok=True)
            print(f"{task.task}: {task.submission(own, docs, args.submission)}")
    others = [sample for sample in read_lines(output / "samples.jsonl")[0] if (sample["task"], sample["index"]) not in samples]
    write_beside(output / "samples.jsonl", to_lines([*others, *samples.values()]))
    write_beside(output / "manifest.json", json.dumps(facts, indent=2) + "\n")
    write_beside(output / "results.json", json.dumps({"model": args.model, "tasks": results, "average": average(results)}, indent=2) + "\n")
    write_report(output, functools.partial(media_of, benches))
    print((output / "report.md").read_text())


def media_of(benches: dict[str, Bench], task: str, index: int) -> list[tuple[str, bytes, str]]:
    """The media of an item's prompt as (kind, bytes, MIME type), for the report."""
    return [encoded(part) for part in media_parts(benches[task].request(index))]


def encoded(part: dict[str, Any]) -> tuple[str, bytes, str]:
    kind, medium, file = part["type"], part[part["type"]], io.BytesIO()
    if kind == "image":
        medium.convert("RGB").save(file, "JPEG")
        return kind, file.getvalue(), "image/jpeg"
    if isinstance(medium, dict):
        soundfile.write(file, medium["array"], medium["sampling_rate"], format="WAV")
        return kind, file.getvalue(), "audio/wav"
    return kind, medium if isinstance(medium, bytes) else Path(medium).read_bytes(), f"{kind}/{SUBTYPES[kind]}"


if __name__ == "__main__":
    main()
