"""How long the harness takes beside plain `generate` and beside lmms-eval, on the same rows, with the same model.

    make lmms-eval
    python -m eval.benchmark_speed
    python -m eval.benchmark_speed --questions 4                             # four questions on each picture
    python -m eval.benchmark_speed --count 20 --rounds 1 --batch-sizes 4 8   # does it run?

Draws pictures of signs, and asks for their text in three ways: by `eval.run`, by lmms-eval with
eval/lmms_eval_adapter.py, and by a loop of nothing but `apply_chat_template`, `generate` and `batch_decode` over the
same batches that `eval.run` makes. Each measurement is a process that asks one row, one row again, then all rows: the
time of the second run, start-up and the loading of the model, is taken from that of the third. lmms-eval is measured
twice: with the adapter, which like `eval.run` encodes a picture once for all questions on it, and encoding it for each
question, as lmms-eval's own models and plain `generate` do. A round measures all
ways one after the other, the next round the other way about; ratios are taken within a round. The best batch size of
each harness is looked for once, on a fifth of the rows. The whole takes about 30 times as long as the model needs for
the rows.
"""

import argparse
import json
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, Value
from transformers import AutoModelForMultimodalLM, AutoProcessor

from eval import models
from eval.task import load_tasks
from training.synthesis import samples

PATHS = ("build/lmms-eval", "eval/entry_points")
MAX_NEW_TOKENS = 16
TASK = """
task: speed_signs
dataset_path: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: question
doc_to_target: answer
process_results: !function utils.is_right
generation_kwargs: {{max_new_tokens: {max_new_tokens}}}
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
def picture(doc):
    return [doc["image"]]


def is_right(doc, results):
    return {"accuracy": float(results[0].casefold() == doc["answer"].casefold())}
"""
WAYS = ("plain", "ours", "lmms-eval", "lmms-eval-anew")
NAMES = {
    "plain": "plain generate",
    "ours": "this harness",
    "lmms-eval": "lmms-eval",
    "lmms-eval-anew": "lmms-eval, pictures encoded anew",
}


# ------------------------------------------------------------------------------------------------ the task


def write_task(folder: Path, count: int, questions: int, model: str) -> None:
    """The rows as Parquet, their task file, and the order in which `eval.run` asks them: the longest prompt first."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    (folder / "tasks").mkdir()
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(sign_rows(count, questions), features).to_parquet(folder / "data/test.parquet")
    (folder / "tasks/utils.py").write_text(UTILS)
    task = TASK.format(data=(folder / "data").resolve(), max_new_tokens=MAX_NEW_TOKENS)
    (folder / "tasks/speed_signs.yaml").write_text(task)
    torch_model, (task, docs) = models.TorchModel(model), rows_of(folder)
    sizes = [torch_model.size(task.request(docs[index])) for index in range(count)]
    order = sorted(range(count), key=lambda index: (-sizes[index].media_tokens, index))
    (folder / "order.json").write_text(json.dumps(order))


def sign_rows(count: int, questions: int) -> list[dict]:
    """Rows of signs, each asked about in so many wordings."""
    rows = []
    for number in range(count):
        row = samples.make("sign", "test", number // questions)
        question = samples.SIGN_QUESTIONS[number % questions]
        answer = row["messages"][1]["content"][0]["text"]
        rows.append({"image": row["images"][0], "question": question, "answer": answer})
    return rows


def rows_of(folder: Path):
    (task,) = load_tasks(["speed_signs"], folder / "tasks")
    return task, task.docs()


# ------------------------------------------------------------------------------------------------ the three ways


@torch.inference_mode()
def generate_plainly(folder: Path, model_path: str, batch_size: int, limit: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "auto" if device == "cuda" else "float32"
    model = AutoModelForMultimodalLM.from_pretrained(model_path, trust_remote_code=True, dtype=dtype).eval().to(device)
    processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=True)
    task, docs = rows_of(folder)
    order = [index for index in json.loads((folder / "order.json").read_text()) if index < limit]
    answers = []
    for start in range(0, limit, batch_size):
        prompts = [task.request(docs[index]).prompt for index in order[start : start + batch_size]]
        inputs = processor.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
        ids = model.generate(**inputs.to(device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    (folder / "output/samples.jsonl").write_text("".join(json.dumps({"response": answer}) + "\n" for answer in answers))


def command_of(way: str, args: argparse.Namespace, limit: int) -> list[str]:
    """Module and arguments of a harness."""
    tasks, output, batch_size = str(args.folder / "tasks"), str(args.folder / "output"), str(args.batch_size)
    if way == "ours":
        return [
            "eval.run", "--model", args.model, "--tasks", "speed_signs", "--include-path", tasks, "--output", output,
            "--batch-size", batch_size, "--limit", str(limit),
        ]  # fmt: skip
    return [
        "lmms_eval", "--model", "eagle", "--model_args", f"pretrained={args.model}", "--tasks", "speed_signs",
        "--include_path", tasks, "--output_path", output, "--log_samples",
        "--batch_size", batch_size, "--limit", str(limit),
    ]  # fmt: skip


def run_module(module: str, *arguments: str) -> None:
    """As `python -m module arguments` would, in this process."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


def run(way: str, args: argparse.Namespace, limit: int) -> float:
    """Seconds of one run. Raises RuntimeError if not all rows were answered."""
    if way == "lmms-eval-anew":
        models.KEPT_CROPS = 0
    output = args.folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    started = time.monotonic()
    if way == "plain":
        generate_plainly(args.folder, args.model, args.batch_size, limit)
    else:
        run_module(*command_of(way, args, limit))
    seconds = time.monotonic() - started
    answered = sum(len(file.read_text().splitlines()) for file in output.rglob("*samples*.jsonl"))
    if answered != limit:
        raise RuntimeError(f"{NAMES[way]} answered {answered} of {limit} rows")
    return seconds


def measure(args: argparse.Namespace) -> None:
    """Writes the seconds of a run over one row, and over all rows."""
    sys.path[:0] = PATHS
    run(args.measure, args, 1)  # imports
    seconds = [run(args.measure, args, limit) for limit in (1, args.count)]
    (args.folder / "seconds.json").write_text(json.dumps(seconds))


# ------------------------------------------------------------------------------------------------ comparing


def timed(way: str, batch_size: int, count: int, args: argparse.Namespace) -> float:
    """Seconds for `count` rows without start-up, measured in a process of its own."""
    own = ["--measure", way, "--batch-size", batch_size, "--count", count]
    command = ["-m", "eval.benchmark_speed", "--model", args.model, "--folder", args.folder, *own]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring {NAMES[way]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    start_up, total = json.loads((args.folder / "seconds.json").read_text())
    seconds = (total - start_up) * count / (count - 1)
    print(f"{NAMES[way]}, {count} rows in batches of {batch_size}: {seconds:.1f} s after {start_up:.1f} s", flush=True)
    return seconds


def best_batch_size(way: str, args: argparse.Namespace) -> int:
    count = max(args.count // 5, 2)
    return min(args.batch_sizes, key=lambda size: timed(way, size, count, args))


def one_round(runs: list[tuple[str, int]], args: argparse.Namespace) -> dict[tuple[str, int], float]:
    return {(way, size): timed(way, size, args.count, args) for way, size in runs}


def table(pairs: list[tuple[tuple[str, int], tuple[str, int]]], rounds: list[dict]) -> str:
    """A Markdown table: how many times as long the first takes as the second."""
    lines = ["| time of | against | batch sizes | ratio, median | ratio, range | seconds, median |", "|" + 6 * "---|"]
    for first, second in pairs:
        ratios = [times[first] / times[second] for times in rounds]
        seconds = [statistics.median(times[run] for times in rounds) for run in (first, second)]
        lines.append(
            f"| {NAMES[first[0]]} | {NAMES[second[0]]} | {first[1]}, {second[1]} | {statistics.median(ratios):.3f} "
            f"| {min(ratios):.3f} to {max(ratios):.3f} | {seconds[0]:.1f}, {seconds[1]:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".")
    parser.add_argument("--count", type=int, default=1000, help="rows")
    parser.add_argument("--questions", type=int, default=1, choices=range(1, 5), help="on each picture")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8, help="of the comparison at equal batch size")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="to choose from")
    parser.add_argument("--folder", type=Path, default=Path("out/speed"), help="deleted first")
    parser.add_argument("--measure", choices=WAYS, help="only this way, once, on the rows that are there")
    args = parser.parse_args()
    if args.measure:
        measure(args)
        return
    write_task(args.folder, args.count, args.questions, args.model)
    best = {way: best_batch_size(way, args) for way in WAYS[1:]}
    equal = {way: (way, args.batch_size) for way in WAYS}
    runs = list(dict.fromkeys([*equal.values(), *best.items()]))
    rounds = [one_round(runs[:: -1 if number % 2 else 1], args) for number in range(args.rounds)]
    pairs = [(equal["ours"], equal["plain"])]
    for way in WAYS[2:]:
        pairs += [(equal[way], equal["ours"]), ((way, best[way]), ("ours", best["ours"]))]
    print(table(pairs, rounds))


if __name__ == "__main__":
    main()
