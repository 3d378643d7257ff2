"""The mini suite: its rows are drawn alike each time, are held out, and the right answers to them score in full."""

import json

import pytest

from eval import mini
from eval.results import results_of, scored
from eval.task import TaskError, load_tasks, row_sha256
from training.synthesis import world

ROWS = 8
TASKS = load_tasks(["mini"])
TRAINED = "chartqa textvqa vqav2 gqa pope librispeech function_calling_fine_tuned".split()
FULL = {"mini_mme": 400.0, "mini_librispeech": 0.0}  # points of two categories; errors


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    for task in TASKS:
        mini.write(task.dataset_path, ROWS, folder)
    return folder


def right_answer(task, doc) -> str:
    if "function_calling" in task.task:
        calls = [
            {"name": name, "arguments": {key: values[0] for key, values in arguments.items()}}
            for call in json.loads(doc["ground_truth"])
            for name, arguments in call.items()
        ]
        return "".join(f"<|tool_call|>{json.dumps(call)}<|/tool_call|>" for call in calls) or "I cannot do that."
    target = task.target(doc)
    return target[0] if isinstance(target, list) else target


def answered(task, docs, index, right: bool) -> dict:
    doc = docs.raw(index)
    sample = {"index": index, "response": "xyz", "logprobs": None, "error": None}
    if task.output_type == "multiple_choice":
        chosen = task.target(doc) if right else (task.target(doc) + 1) % 4
        sample |= {"response": None, "logprobs": [(0.0 if place == chosen else -9.0, False) for place in range(4)]}
    elif right:
        sample["response"] = right_answer(task, doc)
    return scored(task, docs, sample)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task)
def test_right_answers_score_in_full_and_others_do_not(task, root):
    docs = task.docs(root)
    values = []
    for right in (True, False):
        entry = results_of(task, len(docs), [answered(task, docs, index, right) for index in range(len(docs))])
        values.append(entry["metrics"][entry["headline"]]["value"])
    if task.task == "mini_audiocaps":  # CIDEr has no upper end that a caption must reach
        assert values[0] > 1 and values[1] == 0
    elif task.task == "mini_function_calling_irrelevance":  # saying anything but a call is right
        assert values == [1.0, 1.0]
    else:
        full = FULL.get(task.task, 1.0)
        assert values[0] == pytest.approx(full) and values[1] == pytest.approx(1.0 if full == 0 else 0.0)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task)
def test_every_row_asks_something_about_its_media(task, root):
    docs = task.docs(root)
    for index in range(0, ROWS, 3):
        request = task.request(docs[index], task.shots(root), docs.folder)
        assert request.prompt and task.trained == (task.task.removeprefix("mini_") in TRAINED)


def test_the_same_rows_each_time(root, tmp_path):
    for name in ("chartqa", "librispeech", "in_context"):
        mini.write(f"mini/{name}", ROWS, tmp_path)
        task = next(task for task in TASKS if task.dataset_path == f"mini/{name}")
        first, second = task.docs(root), task.docs(tmp_path)
        assert [row_sha256(first.raw(i)) for i in range(ROWS)] == [row_sha256(second.raw(i)) for i in range(ROWS)]


def test_rows_are_of_the_held_out_side(root):
    docs = {task.task: task.docs(root) for task in TASKS}
    signs = [docs["mini_textvqa"].raw(index) for index in range(0, ROWS, 2)]
    assert all(world.split("words", *row["answers"][0].split()) == "test" for row in signs)
    codes = [docs["mini_textvqa"].raw(index) for index in range(1, ROWS, 2)]
    assert all(world.split("code", row["answers"][0]) == "test" for row in codes)


def test_mini_full_has_a_thousand_rows_a_task():
    assert {task.drawn_rows for task in load_tasks(["mini-full"])} == {1000}
    assert {task.drawn_rows for task in TASKS} == {100}


def test_unknown_rows_are_an_error(tmp_path):
    with pytest.raises(TaskError, match="'mini/chess' has drawn_rows, but eval/mini.py defines no 'chess'"):
        mini.write("mini/chess", 1, tmp_path)
