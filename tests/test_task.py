"""The reader of task files: includes, groups, templates, examples, media, and what is wrong with a file or its rows."""

import io

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from eval.task import Request, Rows, TaskError, load_module, load_split, load_tasks, row_sha256

CHOICE = """
task: colours
dataset_path: made
test_split: test
fewshot_split: dev
num_fewshot: 2
fewshot_config: {sampler: first_n, match: subject}
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
doc_to_category: subject
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ASKED = """
task: asked
dataset_path: made
test_split: test
doc_to_visual: !function utils.visuals
doc_to_text: !function utils.text
doc_to_target: "answer"
generation_kwargs: {max_new_tokens: 8, temperature: 0}
lmms_eval_specific_kwargs:
  default: {pre_prompt: "Look. ", post_prompt: "\\nOne word."}
  other_model: {pre_prompt: "No. ", post_prompt: ""}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}
metadata:
  - version: 0.0
"""
UTILS = """
def visuals(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs):
    return lmms_eval_specific_kwargs["pre_prompt"] + doc["question"] + lmms_eval_specific_kwargs["post_prompt"]
"""


def png(colour) -> dict:
    file = io.BytesIO()
    PILImage.new("RGB", (20, 10), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def wav(seconds: float, rate: int) -> dict:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(seconds * rate), np.float32), rate, format="WAV")
    return {"bytes": file.getvalue(), "path": "said.wav"}


@pytest.fixture
def folder(tmp_path):
    """Task files and data: `made` with rows of questions about pictures."""
    (tmp_path / "choice.yaml").write_text(CHOICE)
    (tmp_path / "asked.yaml").write_text(ASKED)
    (tmp_path / "utils.py").write_text(UTILS)
    rows = [
        {"question": f"Which {i}?", "choices": ["red", "blue"], "answer": i % 2, "subject": "ab"[i % 2], "image": png("red")}
        for i in range(6)
    ]
    features = Features(
        question=Value("string"), choices=List(Value("string")), answer=Value("int64"), subject=Value("string"), image=Image()
    )
    made = tmp_path / "made"
    made.mkdir()
    for split in ("test", "dev"):
        Dataset.from_list(rows, features).to_parquet(made / f"{split}-00000-of-00001.parquet")
    return tmp_path


def only(names, folder):
    (task,) = load_tasks([names], folder)
    return task


def test_examples_come_in_order_from_rows_that_match(folder):
    task = only("colours", folder)
    docs, shots = task.docs(folder), task.shots(folder)
    request = task.request(docs[1], shots)
    assert request.prompt == "Which 1?\nAnswer: blue\n\nWhich 3?\nAnswer: blue\n\nWhich 1?\nAnswer:"
    assert request.choices == [" red", " blue"]
    assert task.score(docs[1], [(-2.0, False), (-1.0, True)]) == {"acc": 1.0}
    assert task.score(docs[0], [(-2.0, False), (-1.0, True)]) == {"acc": 0.0}


def test_functions_get_the_row_and_the_default_prompt_parts(folder):
    task = only("asked", folder)
    doc = task.docs(folder)[0]
    (message,) = task.request(doc).prompt
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][1]["text"] == "Look. Which 0?\nOne word."
    assert task.request(doc).generation_kwargs["max_new_tokens"] == 8
    assert task.score(doc | {"answer": "Tea"}, ["tea."]) == {"exact_match": 1.0}
    assert task.score(doc | {"answer": ["Tea", "chai"]}, ["coffee"]) == {"exact_match": 0.0}


def test_include_and_groups(folder):
    (folder / "small.yaml").write_text("include: asked.yaml\ntask: small\ngeneration_kwargs: {max_new_tokens: 3}\n")
    (folder / "both.yaml").write_text("group: both\ntask:\n  - small\n  - asked\nchance: 0.25\n")
    small, asked = load_tasks(["both", "asked"], folder)
    assert (small.task, asked.task) == ("small", "asked")
    assert small.generation_kwargs == {"max_new_tokens": 3} and small.doc_to_visual.__name__ == "visuals"
    assert load_tasks(["both"], folder)[0].chance == 0.25  # a group's own keys replace its tasks'


def test_messages_may_have_media_in_their_place(folder):
    (folder / "utils.py").write_text(
        UTILS
        + "\n\ndef messages(doc, lmms_eval_specific_kwargs=None):\n"
        + "    content = [{'type': 'text', 'text': 'a'}, {'type': 'image', 'url': doc['image']}]\n"
        + "    return [{'role': 'user', 'content': content}]\n"
    )
    text = ASKED.replace("task: asked", "task: placed") + "doc_to_messages: !function utils.messages\n"
    (folder / "placed.yaml").write_text(text)
    task = only("placed", folder)
    (message,) = task.request(task.docs(folder)[0]).prompt
    assert [part["type"] for part in message["content"]] == ["text", "image"]
    assert message["content"][1]["image"].size == (20, 10)


def test_media_are_opened_and_nothing_is_decoded_before():
    features = Features(image=Image(), sounds=List(Audio()), text=Value("string"))
    stored = Dataset.from_list([{"image": png("blue"), "sounds": [wav(0.5, 8000)], "text": "x"}])
    rows = Rows(stored.cast(features))
    assert rows.raw(0)["image"]["bytes"][:4] == b"\x89PNG"
    assert rows[0]["image"].getpixel((0, 0)) == (0, 0, 255)
    (sound,) = rows[0]["sounds"]
    assert sound["array"].shape == (4000,) and sound["sampling_rate"] == 8000


def test_parquet_that_datasets_did_not_write_holds_pictures_too():
    rows = Rows(Dataset.from_list([{"image": png("blue"), "text": "x"}]))  # a plain struct of bytes and path
    assert rows[0]["image"].size == (20, 10)


def test_a_row_is_known_by_all_it_holds():
    row = {"image": png("red"), "n": 1, "list": ["a", "b"]}
    assert row_sha256(row) == row_sha256({"list": ["a", "b"], "n": 1, "image": png("red")})
    for other in ({"image": png("blue")}, {"n": "1"}, {"list": ["ab"]}, {"more": None}):
        assert row_sha256(row | other) != row_sha256(row)


# ------------------------------------------------------------------------------------------------ what is wrong


def test_unknown_task_names_the_nearest(folder):
    with pytest.raises(TaskError, match="unknown task 'colors'; did you mean 'colours'"):
        load_tasks(["colors"], folder)


def test_missing_split_names_what_is_there(folder):
    with pytest.raises(TaskError, match="no split 'val' in .*made: expected val.parquet, found dev, test"):
        load_split("made", None, "val", folder)


def test_missing_column_names_task_key_and_columns(folder):
    (folder / "wrong.yaml").write_text(ASKED.replace("task: asked", "task: wrong").replace('"answer"', '"{{reply}}"'))
    task = only("wrong", folder)
    with pytest.raises(TaskError, match="task wrong: doc_to_target finds no column .*reply.*; its columns are question, "):
        task.target(task.docs(folder)[0])
    del (row := task.docs(folder)[0])["image"]
    with pytest.raises(TaskError, match="doc_to_visual finds no column 'image'"):
        task.request(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("test_split:", "test_spilt:"), "unknown key 'test_spilt'; did you mean 'test_split'"),
        (("metric_list:", "tag:"), "the key 'metric_list' is missing"),
        (("utils.text", "utils.txt"), "defines no 'txt'"),
        (("utils.text", "other.text"), "there is no .*other.py"),
        (("task: asked", "task: asked\ninclude: nothing.yaml"), "includes nothing.yaml, but there is no"),
        (("task: asked", "task: asked\noutput_type: multiple_choice"), "without process_results has 'acc' alone"),
        (("task: asked", "task: asked\noutput_type: loglikelihood"), "expected 'generate_until' or 'multiple_choice'"),
    ],
)
def test_wrong_files(folder, change, message):
    (folder / "asked.yaml").write_text(ASKED.replace(*change))
    with pytest.raises(TaskError, match=message):
        load_tasks(["asked"], folder)


def test_failing_functions_name_the_task(folder):
    task = only("asked", folder)
    row = task.docs(folder)[0] | {"image": None}
    with pytest.raises(ValueError, match="task asked: doc_to_visual fails on a row: AttributeError: 'NoneType'"):
        task.request(row)  # a medium of this row
    (folder / "utils.py").write_text(UTILS.replace("return lmms", "return 1 / 0 + lmms"))
    load_module.cache_clear()
    with pytest.raises(TaskError, match="task asked: doc_to_text fails on a row: ZeroDivisionError"):
        only("asked", folder).request(task.docs(folder)[0])


def test_missing_packages_are_named(folder):
    (folder / "utils.py").write_text("import no_such_package\n")
    load_module.cache_clear()
    with pytest.raises(TaskError, match="utils.py imports what is not installed here: No module named 'no_such_package'"):
        only("asked", folder)


def test_request_defaults():
    request = Request("text")
    assert request.tools is None and request.choices is None and request.generation_kwargs == {}
