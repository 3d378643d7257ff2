"""EAGLE in the real lmms-eval, and this repository's harness, on the same task files: equal answers, equal scores."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from datasets import Dataset, Features, Image, List, Value

from training.synthesis import samples

ROOT = Path(__file__).resolve().parent.parent
LMMS_EVAL = ROOT / "build/lmms-eval"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LMMS_EVAL.is_dir(), reason="lmms-eval is not in build/lmms-eval; run `make lmms-eval`"),
]
ROWS = 8

UTILS = """
def picture(doc):
    return [doc["image"].convert("RGB")]


def with_prompt(doc, lmms_eval_specific_kwargs):
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]


def is_right(doc, results):
    return {"accuracy": float(results[0].casefold() == doc["answer"].casefold())}


def sound_or_video(doc):
    return [doc["video"] or doc["sound"]]


def interleaved(doc):
    content = [{"type": "audio", "url": doc["sound"]}, {"type": "image", "url": doc["image"]}]
    return [{"role": "user", "content": content}]
"""

SIGNS = """
task: local_signs
dataset_path: {data}/signs
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: !function utils.with_prompt
doc_to_target: answer
process_results: !function utils.is_right
generation_kwargs: {{max_new_tokens: 16}}
lmms_eval_specific_kwargs: {{default: {{pre_prompt: "", post_prompt: "\\n"}}}}
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
"""

FACTS = """
task: local_facts
dataset_path: {data}/facts
test_split: test
fewshot_split: validation
num_fewshot: 2
fewshot_config: {{sampler: first_n}}
description: "Answer {{{{question[:0]}}}}now: "
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}]
"""

HEARD = """
task: local_heard
dataset_path: {data}/heard
test_split: test
output_type: generate_until
doc_to_visual: !function utils.sound_or_video
doc_to_text: question
doc_to_target: answer
process_results: !function utils.is_right
generation_kwargs: {{max_new_tokens: 16}}
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
"""

INTERLEAVED = """
task: local_interleaved
dataset_path: {data}/interleaved
test_split: test
output_type: generate_until
doc_to_messages: !function utils.interleaved
doc_to_text: ""
doc_to_target: answer
process_results: !function utils.is_right
generation_kwargs: {{max_new_tokens: 16}}
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
"""

CHOICES = """
task: local_choices
dataset_path: {data}/signs
test_split: test
output_type: multiple_choice
doc_to_visual: !function utils.picture
doc_to_text: question
doc_to_target: label
doc_to_choice: choices
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


# ------------------------------------------------------------------------------------------------ data


def asked(row: dict) -> str:
    return "".join(part["text"] for part in row["messages"][0]["content"] if part["type"] == "text")


def answered(row: dict) -> str:
    return row["messages"][1]["content"][0]["text"]


def drawn(skill: str, *kinds: str) -> list[dict]:
    """The first held-out rows of a skill whose question has parts of these kinds."""
    rows = (samples.make(skill, "test", seed) for seed in range(10 * ROWS))
    fitting = [row for row in rows if [part["type"] for part in row["messages"][0]["content"]] == list(kinds)]
    return fitting[:ROWS]


def wav(row: dict) -> dict:
    file = io.BytesIO()
    soundfile.write(file, row["audios"][0], 16000, format="WAV")
    return {"bytes": file.getvalue(), "path": "spoken.wav"}


def sign_rows() -> list[dict]:
    rows = drawn("sign", "image", "text")
    answers = [answered(row) for row in rows]
    choices = [[answers[(index + step) % ROWS] for step in (1, 0, 2)] for index in range(ROWS)]
    return [
        {"image": row["images"][0], "question": asked(row), "answer": answered(row), "choices": given, "label": 1}
        for row, given in zip(rows, choices, strict=True)
    ]


def heard_rows() -> list[dict]:
    spoken = drawn("spoken_fact", "audio")
    rows = [{"sound": wav(row), "video": "", "question": "", "answer": answered(row)} for row in spoken]
    clip = {"sound": None, "video": str(ROOT / "assets/clip.mp4"), "question": "In what order are the shapes?"}
    return [*rows, clip | {"answer": "brown cross, purple star, green triangle"}]


def write(folder: Path, split: str, rows: list[dict], **columns) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {name: Value("string") for name in ("question", "answer", "video") if name in rows[0]}
    features = Features({**texts, **columns})
    kept = [{name: row[name] for name in features} for row in rows]
    Dataset.from_list(kept, features).to_parquet(folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Task files, and data in the forms that benchmarks come in."""
    folder = tmp_path_factory.mktemp("lmms_eval")
    sound = {"bytes": Value("binary"), "path": Value("string")}
    labelled = {"choices": List(Value("string")), "label": Value("int64")}
    write(folder / "data/signs", "test", sign_rows(), image=Image(), **labelled)
    facts = [{"question": asked(row), "answer": answered(row)} for row in drawn("fact", "text")]
    write(folder / "data/facts", "validation", facts[:2])
    write(folder / "data/facts", "test", facts[2:])
    write(folder / "data/heard", "test", heard_rows(), sound=sound)
    pictures = drawn("spoken_picture", "image", "audio")
    rows = [{"image": row["images"][0], "sound": wav(row), "answer": answered(row)} for row in pictures]
    write(folder / "data/interleaved", "test", rows, image=Image(), sound=sound)
    (folder / "tasks").mkdir()
    (folder / "tasks/utils.py").write_text(UTILS)
    for number, task in enumerate((SIGNS, FACTS, HEARD, INTERLEAVED, CHOICES)):
        (folder / f"tasks/{number}.yaml").write_text(task.format(data=folder / "data"))
    return folder


# ------------------------------------------------------------------------------------------------ runs


def run(folder: Path, module: str, *arguments: str) -> str:
    """What the command printed."""
    path = os.pathsep.join(map(str, (LMMS_EVAL, ROOT / "eval/entry_points")))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface")}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def by_lmms_eval(folder: Path, output: Path, tasks: str, *arguments: str) -> dict:
    """Task to scores and answers, as the command of lmms-eval writes them: values of likelihoods as strings."""
    printed = run(
        folder, "lmms_eval", "--model", "eagle", "--model_args", f"pretrained={ROOT}", "--tasks", tasks,
        "--include_path", f"{folder}/tasks", "--batch_size", "3", "--output_path", str(output), "--log_samples",
        *arguments,
    )  # fmt: skip
    written = list(output.rglob("*_results.json"))
    assert written, printed  # it exits with 0 when it fails
    scores = json.loads(written[0].read_text())["results"]
    found = {}
    for task in tasks.split(","):
        lines = next(output.rglob(f"*_samples_{task}.jsonl")).read_text().splitlines()
        read = sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])
        found[task] = scores[task], [sample["filtered_resps"] for sample in read]
    return found


@pytest.fixture(scope="module")
def theirs(folder) -> dict:
    return by_lmms_eval(folder, folder / "theirs", "local_signs,local_facts,local_heard,local_interleaved")


@pytest.fixture(scope="module")
def theirs_simple(folder) -> dict:
    """As above, through the interface without messages."""
    return by_lmms_eval(folder, folder / "theirs_simple", "local_heard,local_choices", "--force_simple")


@pytest.fixture(scope="module")
def ours(folder) -> dict:
    """Task to its entry of results.json and its samples."""
    tasks = "local_signs,local_facts,local_heard,local_interleaved,local_choices"
    output = folder / "ours"
    run(
        folder, "eval.run", "--model", str(ROOT), "--tasks", tasks, "--include-path", f"{folder}/tasks",
        "--batch-size", "4", "--output", str(output),
    )  # fmt: skip
    results = json.loads((output / "results.json").read_text())["tasks"]
    lines = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    lines.sort(key=lambda sample: sample["index"])
    return {task: (results[task], [sample for sample in lines if sample["task"] == task]) for task in results}


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("local_signs", "accuracy"),
        ("local_facts", "exact_match"),
        ("local_heard", "accuracy"),
        ("local_interleaved", "accuracy"),
    ],
)
def test_both_harnesses_give_the_same_answers_and_score(ours, theirs, task, metric):
    their_scores, their_answers = theirs[task]
    our_result, our_samples = ours[task]
    assert [sample["error"] for sample in our_samples] == [None] * len(our_samples)
    assert [sample["response"] for sample in our_samples] == their_answers
    assert any(their_answers)
    assert our_result["metrics"][metric]["value"] == pytest.approx(their_scores[f"{metric},none"])


def test_both_harnesses_give_the_same_likelihoods_and_choose_alike(ours, theirs_simple):
    their_scores, their_values = theirs_simple["local_choices"]
    our_result, our_samples = ours["local_choices"]
    for sample, values in zip(our_samples, their_values, strict=True):
        for (logprob, greedy), (loss, their_greedy) in zip(sample["logprobs"], values, strict=True):
            assert math.isclose(logprob, -float(loss), abs_tol=1e-3) and str(greedy) == their_greedy
    assert our_result["metrics"]["acc"]["value"] == their_scores["acc,none"] > 1 / 3  # not the sign turned round


def test_both_of_the_adapters_classes_answer_alike(theirs, theirs_simple):
    assert theirs["local_heard"][1] == theirs_simple["local_heard"][1]
