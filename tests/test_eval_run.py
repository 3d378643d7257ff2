"""The harness at work with the checkpoint at the root: what it writes, kills, other weights, batches, processes, bad input."""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile
import torch
from conftest import ROOT
from datasets import Audio, Dataset, Features, Image, Value
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from eval import run as harness
from eval.models import Size, TorchModel
from eval.samples import read_lines
from eval.task import Request, TaskError, load_tasks
from training.synthesis import samples
from training.synthesis.make_assets import write_video

ROWS = 12
TASK = """
task: signs
dataset_path: signs
test_split: test
doc_to_visual: !function utils.visuals
doc_to_text: question
doc_to_target: answer
doc_to_category: kind
generation_kwargs: {max_new_tokens: 8}
process_results: !function utils.score
metric_list:
  - {metric: right, aggregation: mean, higher_is_better: true}
  - {metric: letters, aggregation: !function utils.total, higher_is_better: true, percent: false}
"""
LETTERS = """
task: letters
dataset_path: signs
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: !function utils.choices
doc_to_target: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
chance: 0.5
"""
UTILS = """
def visuals(doc):
    return [doc["image"]]


def choices(doc):
    return [doc["answer"], "what"]


def score(doc, results):
    return {"right": float(results[0] == doc["answer"]), "letters": len(results[0]), "parsed": bool(results[0])}


def total(values):
    return sum(values)
"""


def sign(index: int) -> dict:
    row = samples.make("sign", "test", index)
    answer = row["messages"][1]["content"][0]["text"]
    image = {"bytes": png(row["images"][0]), "path": None}
    return {"question": "What does the sign say?", "answer": answer, "kind": str(len(answer.split())), "image": image}


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A task on signs, and one on letters, with their rows."""
    (tmp_path / "signs.yaml").write_text(TASK)
    (tmp_path / "letters.yaml").write_text(LETTERS)
    (tmp_path / "utils.py").write_text(UTILS)
    (tmp_path / "signs").mkdir()
    write_rows(tmp_path, [sign(index) for index in range(ROWS)])
    return tmp_path


def write_rows(folder, rows):
    features = Features({name: Value("string") for name in ("question", "answer", "kind")} | {"image": Image()})
    Dataset.from_list(rows, features).to_parquet(folder / "signs" / "test.parquet")


def command(folder, output, *more):
    settings = ["--tasks", "signs,letters", "--data-root", folder, "--include-path", folder, "--output", output]
    return [sys.executable, "-m", "eval.run", "--model", ".", *map(str, settings), *map(str, more)]


def arguments(folder, output, **changes):
    defaults = {"model": str(ROOT), "tasks": "signs,letters", "data_root": folder, "include_path": folder, "output": output}
    defaults |= {"limit": None, "batch_size": 4, "dtype": None, "layout": None, "quantization": None, "submission": None}
    defaults |= {"constrain_calls": False, "num_beams": None}
    return argparse.Namespace(**defaults | changes)


def evaluate(folder, output, **changes):
    """results.json and the samples of a run in this process."""
    harness.run(arguments(folder, output, **changes))
    return json.loads((output / "results.json").read_text()), read_lines(output / "samples.jsonl")[0]


def test_a_run_writes_samples_results_and_reports(folder, capsys):
    results, lines = evaluate(folder, folder / "out")
    signs = results["tasks"]["signs"]
    assert [(line["task"], line["index"]) for line in lines] == [(t, i) for t in ("letters", "signs") for i in range(ROWS)]
    right = [line["response"] == line["target"] for line in lines if line["task"] == "signs"]
    assert signs["metrics"]["right"]["value"] == sum(right) / ROWS and 0 < sum(right) < ROWS
    low, high = signs["metrics"]["right"]["interval"]
    assert 0 <= low <= sum(right) / ROWS <= high <= 1 and signs["metrics"]["right"]["method"] == "wilson"
    assert signs["metrics"]["letters"]["value"] == sum(len(line["response"]) for line in lines if line["task"] == "signs")
    assert signs["items"] == signs["of"] == ROWS and signs["errors"] == 0 and signs["parse_failures"] == 0
    assert sum(entry["items"] for entry in signs["categories"].values()) == ROWS
    assert results["tasks"]["letters"]["chance"] == 0.5
    manifest = json.loads((folder / "out/manifest.json").read_text())
    assert manifest["model"]["dtype"] == "float32" and len(manifest["model"]["weights_sha256"]) == 64
    assert "signs" in (folder / "out/report.md").read_text() and "signs" in capsys.readouterr().out
    assert "<html" in (folder / "out/report.html").read_text()


def test_scores_do_not_change_with_batch_size(folder):
    one, lines_of_one = evaluate(folder, folder / "one", batch_size=1)
    five, lines_of_five = evaluate(folder, folder / "five", batch_size=5)
    assert [line["response"] for line in lines_of_one] == [line["response"] for line in lines_of_five]
    assert one["tasks"]["signs"] == five["tasks"]["signs"]
    assert one["tasks"]["letters"] == five["tasks"]["letters"]


def test_scores_do_not_change_with_the_number_of_processes(folder):
    one, _ = evaluate(folder, folder / "one")
    subprocess.run(command(folder, folder / "two", "--num-processes", 2, "--batch-size", 3), cwd=ROOT, check=True)
    two = json.loads((folder / "two/results.json").read_text())
    assert one["tasks"] == two["tasks"]
    assert sorted(path.name for path in (folder / "two").glob("samples*")) == ["samples.jsonl"]
    assert json.loads((folder / "two/manifest.json").read_text())["num_processes"] == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stood(folder):
    output = folder / "out"
    run = subprocess.Popen(command(folder, output, "--batch-size", 1), cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(read_lines(output / "samples.jsonl")[0]) < 3:
        time.sleep(0.01)
        assert run.poll() is None, "the run ended before it could be killed"
    run.send_signal(signal.SIGKILL)
    run.wait()
    written = (output / "samples.jsonl").read_text().splitlines()
    marked = [json.loads(line) for line in written if line.endswith("}")]
    for line in marked:
        line["response"] = "kept from the killed run"
    text = "".join(json.dumps(line) + "\n" for line in marked) + '{"task": "signs", "index": 11, "resp'
    (output / "samples.jsonl").write_text(text)

    again = subprocess.run(command(folder, output), cwd=ROOT, check=True, capture_output=True, text=True)
    lines = read_lines(output / "samples.jsonl")[0]
    assert "1 half-written lines are dropped" in again.stderr
    assert [(line["task"], line["index"]) for line in lines] == [(t, i) for t in ("letters", "signs") for i in range(ROWS)]
    kept = {(line["task"], line["index"]) for line in lines if line["response"] == "kept from the killed run"}
    assert kept == {(line["task"], line["index"]) for line in marked}  # nothing lost, nothing asked twice


def test_answers_of_other_weights_are_not_used_again(folder):
    model = folder / "model"
    shutil.copytree(ROOT, model, ignore=shutil.ignore_patterns(".*", "build", "runs", "out", "tests", "training", "docs"))
    _, before = evaluate(folder, folder / "out", model=str(model), tasks="signs")
    weights = load_file(model / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.language_model.embed_tokens.weight"
    weights[name] = torch.roll(weights[name], 1, 0).contiguous()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    _, after = evaluate(folder, folder / "out", model=str(model), tasks="signs")
    assert {line["key"] for line in before}.isdisjoint(line["key"] for line in after)
    assert len(read_lines(folder / "out/samples.stale.jsonl")[0]) == ROWS


def test_what_failed_is_asked_again(folder):
    _, lines = evaluate(folder, folder / "out", tasks="signs", limit=3)
    failed = [line | {"error": "OSError: the disk was away", "response": ""} for line in lines]
    (folder / "out/samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in failed))
    results, again = evaluate(folder, folder / "out", tasks="signs", limit=3)
    assert results["tasks"]["signs"]["errors"] == 0
    assert [line["response"] for line in again] == [line["response"] for line in lines]


def test_answers_come_back_when_their_settings_do(folder):
    _, first = evaluate(folder, folder / "out", tasks="signs", limit=3)
    evaluate(folder, folder / "out", tasks="signs", limit=3, layout="overview")
    stale = read_lines(folder / "out/samples.stale.jsonl")[0]
    assert [line["key"] for line in stale] == [line["key"] for line in first]
    marked = [line | {"response": "kept"} for line in stale]
    (folder / "out/samples.stale.jsonl").write_text("".join(json.dumps(line) + "\n" for line in marked))
    _, again = evaluate(folder, folder / "out", tasks="signs", limit=3)
    assert [line["response"] for line in again] == ["kept"] * 3
    assert len(read_lines(folder / "out/samples.stale.jsonl")[0]) == 3


def test_a_video_beside_the_rows_counts_and_a_missing_one_is_tried_again(folder):
    clips = folder / "clips"
    clips.mkdir()
    task = TASK.replace("task: signs", "task: clips").replace("path: signs", "path: clips").replace("visuals", "clip")
    (folder / "clips.yaml").write_text(task)
    (folder / "utils.py").write_text(UTILS + "\n\ndef clip(doc):\n    return [doc['kind']]\n")
    rows = [{"question": "Which shape is first?", "answer": "", "kind": name} for name in ("a.mp4", "b.mp4")]
    Dataset.from_list(rows).to_parquet(clips / "test.parquet")
    write_video(clips / "a.mp4", samples.make("clip", "test", 0)["videos"][0])
    results, before = evaluate(folder, folder / "out", tasks="clips")
    assert results["tasks"]["clips"]["errors"] == 1 and before[1]["error"]
    write_video(clips / "a.mp4", samples.make("clip", "test", 1)["videos"][0])
    write_video(clips / "b.mp4", samples.make("clip", "test", 2)["videos"][0])
    results, after = evaluate(folder, folder / "out", tasks="clips")
    assert results["tasks"]["clips"]["errors"] == 0
    assert before[0]["key"] != after[0]["key"] and len(after) == 2


def test_other_tasks_answers_stay(folder):
    evaluate(folder, folder / "out", tasks="letters")
    _, lines = evaluate(folder, folder / "out", tasks="signs", limit=4)
    assert sum(line["task"] == "letters" for line in lines) == ROWS
    results, lines = evaluate(folder, folder / "out", tasks="signs", limit=2)
    assert results["tasks"]["signs"]["items"] == 2 and results["tasks"]["signs"]["of"] == ROWS
    assert sum(line["task"] == "signs" for line in lines) == 4


def test_unreadable_pictures_are_counted_and_wrong(folder):
    rows = [sign(index) for index in range(5)]
    rows[1]["image"]["bytes"] = b"no picture"
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:-200]  # opens, and cannot be decoded
    rows[3]["image"]["bytes"] = png(PILImage.new("1", (20000, 20000)))
    write_rows(folder, rows)
    results, lines = evaluate(folder, folder / "out", tasks="signs")
    assert results["tasks"]["signs"]["errors"] == 3 and results["tasks"]["signs"]["items"] == 5
    assert [bool(line["error"]) for line in lines] == [False, True, True, True, False]
    assert "UnidentifiedImageError" in lines[1]["error"] and "DecompressionBombError" in lines[3]["error"]
    assert [line["metrics"]["right"] for line in lines[1:4]] == [0, 0, 0]


def test_tasks_that_need_more_have_no_figure(folder):
    results, lines = evaluate(folder, folder / "out", tasks="mmvet,voice")
    assert {name: entry["status"] for name, entry in results["tasks"].items()} == {"mmvet": "n/a", "voice_answers": "n/a"}
    assert "eval.voice" in results["tasks"]["voice_answers"]["reason"] and lines == []
    assert "a model that speaks" in (folder / "out/report.md").read_text()


def test_unreadable_sound_is_counted_and_wrong(folder):
    heard = TASK.replace("task: signs", "task: heard").replace("utils.visuals", "utils.sounds").replace("/signs", "/heard")
    (folder / "heard.yaml").write_text(heard)
    (folder / "utils.py").write_text(UTILS + "\n\ndef sounds(doc):\n    return [doc['image']]\n")
    speech = io.BytesIO()
    soundfile.write(speech, samples.make("sentence", "test", 0)["audios"][0], 16000, format="FLAC")
    sounds = [speech.getvalue(), speech.getvalue()[:300], b"no sound"]
    rows = [{"question": "What is said?", "answer": "", "kind": "", "image": {"bytes": sound, "path": None}} for sound in sounds]
    Dataset.from_list(rows).cast_column("image", Audio()).to_parquet(folder / "signs" / "test.parquet")
    results, lines = evaluate(folder, folder / "out", tasks="heard")
    assert results["tasks"]["heard"]["errors"] == 2
    assert [bool(line["error"]) for line in lines] == [False, True, True] and lines[0]["response"]


def test_no_readable_row_is_an_error(folder):
    write_rows(folder, [sign(0) | {"image": {"bytes": b"no picture", "path": None}}])
    with pytest.raises(TaskError, match="no row can be read; row 0 says: UnidentifiedImageError"):
        evaluate(folder, folder / "out", tasks="signs")


def test_too_long_prompts_are_told_before_anything_runs(folder):
    write_rows(folder, [sign(0), sign(1) | {"question": "What? " * 5000}])
    with pytest.raises(TaskError, match=r"task signs, row 1: its prompt has \d+ tokens, and the model reads \d+"):
        evaluate(folder, folder / "out", tasks="signs")
    assert not (folder / "out/samples.jsonl").exists()


def test_too_large_batches_are_told_before_anything_runs(folder, model):
    (task,) = load_tasks(["signs"], folder)
    benches = {"signs": harness.open_bench(task, folder)}
    items = [harness.Item("signs", index, "", "", "", Size(3000)) for index in range(100_000)]
    with pytest.raises(TaskError, match=r"a batch of 100000 prompts .* needs about .* GB, and .* Try --batch-size \d+"):
        harness.check_fits(model, benches, items, len(items), 1)


def test_commands_errors_are_one_line(folder):
    done = subprocess.run(
        command(folder, folder / "out", "--tasks", "sings"), cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == (
        "eval.run: unknown task 'sings'; did you mean 'signs'?"
    )


def test_a_headline_that_no_answer_gets_is_an_error(folder):
    (folder / "signs.yaml").write_text(TASK.replace("metric: right", "metric: rihgt"))
    with pytest.raises(TaskError, match="task signs: metric_list begins with 'rihgt', process_results gives letters, right"):
        evaluate(folder, folder / "out", tasks="signs", limit=1)


def test_a_servers_file_is_whole_or_refused(folder):
    server = "\n\ndef write(samples, docs, folder):\n    path = folder / 'all.txt'\n    path.write_text(str(len(samples)))\n    return path\n"
    (folder / "utils.py").write_text(UTILS + server)
    (folder / "signs.yaml").write_text(TASK + "submission: !function utils.write\n")
    (task,) = harness.tasks_of(arguments(folder, None, tasks=" signs ,"))
    for changes, message in (({"limit": 2}, "part of a file"), ({}, None)):
        args = arguments(folder, folder / "out", tasks="signs", submission=folder / "server", **changes)
        if message:
            with pytest.raises(TaskError, match=message):
                harness.check_submission(args, [task])
    with pytest.raises(TaskError, match="no server has the answers"):
        harness.check_submission(args, load_tasks(["letters"], folder))
    harness.run(args)
    assert (folder / "server/all.txt").read_text() == str(ROWS)
    entry = json.loads((folder / "out/results.json").read_text())["tasks"]["signs"]
    assert entry["status"] == "n/a" and "server" in entry["reason"]


# ------------------------------------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def model():
    return TorchModel(str(ROOT), "float32")


def test_sizes_are_those_of_the_real_inputs(model, tmp_path):
    row, speech, clip = (samples.make(skill, "test", 3) for skill in ("sign", "sentence", "clip"))
    write_video(tmp_path / "clip.mp4", clip["videos"][0])
    text = {"type": "text", "text": "what?"}
    image = {"type": "image", "image": row["images"][0]}
    sound = {"type": "audio", "audio": {"array": speech["audios"][0], "sampling_rate": 16000}}
    video = {"type": "video", "video": str(tmp_path / "clip.mp4")}
    for parts in ([image, text], [sound, text], [video, text], [text]):
        request = Request([{"role": "user", "content": parts}])
        real = model.prepare([request])["input_ids"].shape[1]
        assert real <= model.size(request).tokens <= 1.1 * real + 4



def test_likelihoods_are_those_of_the_model(model):
    prompts = [Request("red green", choices=[" blue", " yellow orange"]), Request("the sign says more", choices=[" x", " y z"])]
    answers = model.answer(prompts, model.prepare(prompts))
    tokenizer = model.processor.tokenizer
    for request, answer in zip(prompts, answers, strict=True):
        for choice, (found, _) in zip(request.choices, answer.logprobs, strict=True):
            start = tokenizer(request.prompt).input_ids
            ids = tokenizer(choice, add_special_tokens=False).input_ids
            logits = model.model(input_ids=torch.tensor([start + ids])).logits[0].log_softmax(-1)
            expected = sum(logits[len(start) + place - 1, token].item() for place, token in enumerate(ids))
            assert found == pytest.approx(expected, abs=1e-4)


def test_a_crop_is_encoded_once_and_answers_are_the_same(model):
    images = [samples.make("sign", "test", seed)["images"][0] for seed in (3, 4)]
    asked = [Request([{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}])
             for text in ("What does the sign say?", "Read the sign.") for image in images]  # fmt: skip
    model.crops.clear()
    alone = [model.answer([request], model.prepare([request]))[0] for request in asked]
    crops = len(model.crops)
    model.crops.clear()
    inputs = model.prepare(asked)
    assert model.answer(asked, inputs) == alone
    assert len(model.crops) == crops == len(inputs["pixel_values"]) / 2
    assert alone[0] != alone[1]
    ids = model.model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert [model.read(row, []).text for row in ids.tolist()] == [answer.text for answer in alone]


def test_memory_needed_is_near_what_a_batch_takes(model):
    sizes = [model.size(Request("word " * 100))] * 4
    assert model.memory_needed(sizes, 10) > model.memory_needed(sizes[:2], 10) > 1e5
