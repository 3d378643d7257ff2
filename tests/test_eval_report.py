"""Reports of a run, and its figures in the Hub's formats: on a folder as eval.run writes it."""

import base64
import hashlib
import html
import io
import json
import re
import struct
import subprocess
import sys
import wave
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image, ImageDraw

from eval import hub, report
from eval.models import WEIGHTS, files_sha256
from eval.results import mean
from eval.statistics import interval

ROOT = Path(__file__).parent.parent
HOSTILE = '<script>alert("x")</script> | [link](javascript:x) "quoted"'
PUBLISHED = [
    {"system": "EAGLE", "task": "chartqa", "metric": "relaxed", "split": "test", "value": 84.4, "source": "EAGLE, Table 1"},
    {"system": "Phi-3-vision", "task": "chartqa", "metric": "relaxed", "split": "test", "value": 81.4, "source": "EAGLE, Table 1"},
    {"system": "Bunny-3B", "task": "vqav2_val", "metric": "accuracy", "split": "test-dev", "value": 79.8, "source": "Bunny, Table 2"},
    {"system": "EAGLE", "task": "librispeech", "metric": "wer", "split": "test.clean", "value": 2.6, "source": "EAGLE, Table 1"},
    {"system": "Bunny-3B", "task": "mme", "metric": "cognition", "split": "test", "value": 289.3, "source": "Bunny, Table 2"},
    {"system": "Mipha-3B", "task": "mmlu", "metric": "acc_norm", "split": "test", "value": 55.5, "source": "Mipha, Table 1"},
    {"system": "Mipha-3B", "task": "mmvet", "metric": "gpt_score", "split": "test", "value": 32.1, "source": "Mipha, Table 1"},
]


def share(seed: str) -> float:
    """A number in 0..1 that hangs on the text alone."""
    return int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16) / 16**8


def sample(task: str, index: int, metrics: dict, **facts) -> dict:
    return {
        "task": task,
        "index": index,
        "id": f"{task}-{index}",
        "category": None,
        "cluster": str(index),
        "key": hashlib.sha256(f"{task} {index}".encode()).hexdigest(),
        "row_sha256": hashlib.sha256(f"row {task} {index}".encode()).hexdigest(),
        "prompt": f"<|user|>\n<|image|>\nWhat is bar {index}?\nAnswer the question with a single word.<|end|>\n<|assistant|>\n",
        "target": str(index),
        "response": str(index),
        "logprobs": None,
        "metrics": metrics,
        "parsed": None,
        "error": None,
        "prompt_tokens": 150,
        "new_tokens": 3,
    } | facts


def chart_sample(index: int) -> dict:
    category = ("human", "augmented")[index % 2]
    right = float(share(f"chart {index}") < 0.55 + 0.3 * (index % 2))
    response = str(index) if right else HOSTILE if index % 3 else "no idea"
    return sample("chartqa", index, {"relaxed": right}, category=category, response=response, parsed=index % 10 != 3)


def figure(values: list, clusters=None, percent=True, higher_is_better=True) -> dict:
    low, high, method = interval(values, clusters)
    shown = {"percent": percent, "higher_is_better": higher_is_better}
    return {"value": mean(values), "interval": [low, high], "method": method, "items": len(values)} | shown


def entry(samples: list[dict], headline: str, of: int, **facts) -> dict:
    values = [one["metrics"][headline] for one in samples]
    categories = {}
    for category in sorted({one["category"] for one in samples if one["category"]}):
        categories[category] = figure([one["metrics"][headline] for one in samples if one["category"] == category])
    return {
        "status": "ok",
        "reason": None,
        "split": "test",
        "compares_to": "test",
        "items": len(samples),
        "of": of,
        "errors": sum(one["error"] is not None for one in samples),
        "parse_failures": None,
        "headline": headline,
        "chance": None,
        "trained": None,
        "metrics": {headline: figure(values)},
        "categories": categories,
    } | facts


def write_run(folder: Path) -> Path:
    """A run's OUTPUT of six tasks: whole, limited, a word error rate, not in per cent, by likelihood, and N/A."""
    runs = {"chartqa": [chart_sample(index) for index in range(60)]}
    runs["vqav2_val"] = [sample("vqav2_val", i, {"accuracy": round(share(f"vqa {i}") * 3) / 3}, target=["no"] * 10) for i in range(8)]
    runs["librispeech"] = [
        sample("librispeech", i, {"wer": {"errors": i % 3, "words": 9}}, prompt="<|audio|>\nPlease recognize the speech", response="a <b> word")
        for i in range(12)
    ]
    runs["mme"] = [sample("mme", i, {"perception": {"score": i % 2}, "cognition": 0.0}, category=f"category {i % 3}") for i in range(12)]
    runs["mmlu"] = [
        sample("mmlu", i, {"acc": float(i % 4 == 0)}, response=None, logprobs=[[-1.25 - i, False], [-0.5, True]], target=i % 2)
        for i in range(10)
    ]
    runs["chartqa"][5] |= {"error": "UnidentifiedImageError: cannot identify image file", "response": "", "metrics": {"relaxed": 0.0}}
    rate = {"value": 0.111, "interval": [0.07, 0.16], "method": "bootstrap", "percent": True, "higher_is_better": False}
    points = {"method": "clustered bootstrap", "percent": False, "higher_is_better": True}
    results = {
        "chartqa": entry(runs["chartqa"], "relaxed", 60, parse_failures=6, chance=0.1),
        "vqav2_val": entry(runs["vqav2_val"], "accuracy", 214354, split="validation", compares_to="validation", trained=False),
        "librispeech": entry(runs["mmlu"], "acc", 12) | {
            "items": 12, "headline": "wer", "metrics": {"wer": rate}, "split": "test.clean", "compares_to": "test.clean",
        },
        "mme": entry(runs["mmlu"], "acc", 12) | {
            "items": 12,
            "headline": "perception",
            "chance": 1050,
            "metrics": {
                "perception": {"value": 1412.5, "interval": [1380.1, 1440.9]} | points,
                "cognition": {"value": 251.0, "interval": [None, None]} | points,
            },
            "categories": {
                f"category {i}": {"value": 120.0 + 10 * i, "interval": [100.0 + 10 * i, 160.0], "items": 4} for i in range(3)
            },
        },
        "mmlu": entry(runs["mmlu"], "acc", 10, chance=0.25),
        "mmvet": {"status": "n/a", "reason": "needs a judge, and none was given", "split": "test", "compares_to": "test"},
    }  # fmt: skip
    facts = {"split": "test", "revision": "5503434ddd753f426f4b38109466949a1217c2bb", "rows_sha256": "ab" * 32}
    facts |= {"prompt_sha256": "cd" * 32, "generation_kwargs": {"max_new_tokens": 16}, "limit": None, "data_root": None}
    manifest = {
        "model": {
            "path": ".",
            "weights_sha256": "0" * 64,
            "config_sha256": "1" * 64,
            "dtype": "bfloat16",
            "quantization": None,
            "image_layout": "grid",
            "parameters": 12_345_678,
        },
        "code_sha256": "2" * 64,
        "versions": {"torch": "2.15.0"},
        "tasks": {name: {"dataset": f"lmms-lab-encoder/{name}", **facts} for name in runs},
        "batch_size": 16,
        "num_processes": 1,
        "hardware": "x86_64, 2 cores, 24 GB",
        "started": "2026-11-24T10:00:00+00:00",
        "seconds": 312.4,
    }
    manifest["tasks"]["vqav2_val"]["limit"] = 8
    manifest["tasks"]["mme"] |= {"data_root": "data", "revision": None}
    lines = [one for samples in runs.values() for one in samples]
    lines.append(sample("vqav2_val", 8, {"accuracy": 0.0}))  # of an earlier run with a higher limit
    lines.append({"task": "gqa", "index": 0, "key": "3" * 64})  # of a run of other tasks, not scored
    folder.mkdir(exist_ok=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    average = {"tasks": ["chartqa", "mmlu"], "value": 0.51, "interval": [0.45, 0.57]}
    (folder / "results.json").write_text(json.dumps({"model": "eagle-tiny", "tasks": results, "average": average}))
    (folder / "published.yaml").write_text(yaml.safe_dump(PUBLISHED))
    return folder


def picture(index: int, side: int = 400) -> bytes:
    image, file = Image.new("RGB", (side, side * 3 // 4), "white"), io.BytesIO()
    draw = ImageDraw.Draw(image)
    for bar in range(5):
        height = share(f"{index} {bar}") * side / 2
        draw.rectangle((30 + bar * side / 6, side * 0.7 - height, 70 + bar * side / 6, side * 0.7), fill=(40, 90 + 30 * bar, 170))
    image.save(file, "PNG")
    return file.getvalue()


def tone() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(struct.pack("<800h", *range(800)))
    return file.getvalue()


def media_of(task: str, index: int) -> list[tuple[str, bytes, str]]:
    if task == "librispeech":
        return [("audio", tone(), "audio/wav")]
    if task == "mme":
        return [("video", b"\0" * 100, "video/mp4"), ("video", bytes(report.MEDIUM_BYTES + 1), "video/mp4")]
    return [("image", picture(index, 2000 if task == "vqav2_val" else 400), "image/png")] if task != "mmlu" else []


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run) -> str:
    report.write_report(run, media_of, run / "published.yaml")
    return (run / "report.html").read_text()


def row_of(page: str, task: str) -> str:
    """The text of the task's row in the first table."""
    rows = re.findall(r"<tr>\s*<td>(.*?)</tr>", page, re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", next(row for row in rows if task in row))).split())


def section(page: str, task: str) -> str:
    return re.search(rf'<section class="card" id="{task}">.*?</section>', page, re.DOTALL)[0]


# ------------------------------------------------------------------------------------------------ reading


def test_samples_of_other_runs_are_left_out(run):
    _, _, samples = report.read_run(run)
    assert {name: len(own) for name, own in samples.items()} == {"chartqa": 60, "vqav2_val": 8, "librispeech": 12, "mme": 12, "mmlu": 10}


def test_a_folder_without_a_run_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no manifest.json: expected the OUTPUT folder of a finished eval.run"):
        report.read_run(tmp_path)


# ------------------------------------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [(0.844, True, "84.4 %"), (1.0, True, "100.0 %"), (1488.84, False, "1,488.8"), (0.4567, False, "0.457"), (-0.01, True, "-1.0 %")],
)
def test_figures_are_written_in_their_unit(value, percent, text):
    assert report.number(value, percent) == text


def test_headline_table_stands_beside_the_papers(page):
    chart = row_of(page, "chartqa")
    right = [chart_sample(index)["metrics"]["relaxed"] for index in range(60) if index != 5]
    assert f"{100 * sum(right) / 60:.1f} %" in chart and "10.0 %" in chart and chart.endswith("10.0 % 1 EAGLE 84.4 , Phi-3-vision 81.4")
    assert "not comparable" not in chart
    assert row_of(page, "librispeech").startswith("librispeech wer 11.1 % (7.0 to 16.0) 12")
    assert "Papers' figures, not ours" in page


def test_another_split_is_not_comparable_and_a_limited_run_says_so(page):
    row = row_of(page, "vqav2_val")
    assert "8 of 214,354 limited" in row and "not trained for" in row
    assert "not comparable (split test-dev): Bunny-3B 79.8" in row


def test_a_task_without_a_figure_is_not_zero(page):
    row = row_of(page, "mmvet")
    assert "N/A needs a judge, and none was given" in row and "Mipha-3B 32.1" in row and "0.0" not in row


def test_every_metric_is_shown_with_its_papers(page):
    text = section(page, "mme")
    assert "1,412.5" in text and "(1,380.1 to 1,440.9)" in text and "no interval from one cluster" in text
    assert "Bunny-3B&nbsp;<b>289.3</b>" in text and "Bunny-3B" not in row_of(page, "mme")


def test_a_figure_in_a_metric_that_we_do_not_have_is_not_comparable(page):
    assert row_of(page, "mmlu").endswith("not comparable (metric acc_norm): Mipha-3B 55.5")


def test_plot_places_bars_intervals_and_chance(run):
    _, results, _ = report.read_run(run)
    found = report.plot(results["tasks"]["chartqa"])
    value = results["tasks"]["chartqa"]["metrics"]["relaxed"]["value"]
    assert [bar["name"] for bar in found["bars"]] == ["all", "augmented", "human"] and found["chance"] == 10.0
    assert found["bars"][0]["width"] == pytest.approx(100 * value, abs=0.01) and found["axis"] == ["0.0 %", "50.0 %", "100.0 %"]
    assert all(bar["interval"][0] <= bar["width"] <= bar["interval"][1] for bar in found["bars"])
    points = report.plot(results["tasks"]["mme"])
    assert [bar["name"] for bar in points["bars"]] == ["category 0", "category 1", "category 2"] and points["chance"] is None
    assert points["axis"][-1] == "160.0" and points["bars"][0]["width"] == 75.0
    assert report.plot(results["tasks"]["mmlu"]) is None  # no categories


def test_markdown_has_the_same_figures(run, page):
    text = (run / "report.md").read_text()
    rows = {cells[0]: cells[1:] for line in text.splitlines() if len(cells := [part.strip() for part in line.strip("|").split("|")]) == 9}
    assert rows["mmvet"] == ["", "N/A", "needs a judge, and none was given", "", "", "", "", "Mipha-3B 32.1"]
    assert rows["vqav2_val (not trained for)"][3] == "8 of 214,354 (limited)"
    assert rows["vqav2_val (not trained for)"][-1] == "not comparable (split test-dev): Bunny-3B 79.8"
    assert rows["chartqa"][4:] == ["10.0 %", "10.0 %", "1", "EAGLE 84.4, Phi-3-vision 81.4"]
    assert "Average of the 2 tasks that the model was trained for: 51.0 % (45.0 to 57.0)" in text


def test_markup_in_a_markdown_cell_stays_text():
    assert report.cell("a|b\n<i> [x](y)") == "a\\|b &lt;i> \\[x](y)"


# ------------------------------------------------------------------------------------------------ items


@pytest.mark.parametrize(
    ("value", "higher_is_better", "parsed", "kind"),
    [
        (1.0, True, None, "right"),
        (True, True, None, "right"),
        (0, True, False, "wrong"),
        (0.3, True, None, "scored"),
        (0.0, False, None, "right"),
        (1.0, False, None, "scored"),
        ({"errors": 1, "words": 5}, False, None, "scored"),
        ({"group": "7", "right": False}, True, False, "wrong"),
    ],
)
def test_verdict_follows_the_metric(value, higher_is_better, parsed, kind):
    found, text = report.verdict(sample("t", 0, {"m": value}, parsed=parsed), "m", higher_is_better)
    assert found == kind and ("no answer could be read" in text) == (parsed is False)


def test_verdict_of_a_corpus_measure_is_taken_from_another_metric():
    metrics = {"f1": {"answer": "yes", "target": "no"}, "accuracy": 0.0, "yes_ratio": 1.0}
    assert report.verdict(sample("pope", 0, metrics), "f1", True) == ("wrong", "wrong")


def test_sampled_items_are_some_right_some_wrong_and_do_not_hang_on_the_order():
    samples = [sample("t", index, {"m": float(index < 90)}) for index in range(100)]
    kinds = [report.verdict(one, "m", True)[0] for one in samples]
    places = report.sampled(samples, kinds, 20)
    assert len(places) == len(set(places)) == 20
    assert [kinds[place] for place in places].count("wrong") == 10
    back = report.sampled(samples[::-1], kinds[::-1], 20)
    assert {samples[place]["id"] for place in places} == {samples[99 - place]["id"] for place in back}
    assert len(report.sampled(samples[:3], kinds[:3], 20)) == 3


def test_page_shows_items_with_media_and_escapes_what_they_hold(page):
    chart = section(page, "chartqa")
    assert chart.count("<article") == 20 and chart.count("<img") == 20 - chart.count("cannot identify image file")
    assert 'class="verdict right"' in chart and 'class="verdict wrong"' in chart
    assert "<script" not in page and "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in chart
    assert section(page, "librispeech").count("<audio") == 12 and "a &lt;b&gt; word" in page
    assert section(page, "mme").count("<video") == 12 and "video of 8 MB, not shown" in page
    assert "log-likelihoods: -1.25, -0.50" in section(page, "mmlu")


def test_page_needs_nothing_from_elsewhere(page):
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page


def test_large_pictures_are_shown_smaller(page):
    url = re.search(r'src="data:image/jpeg;base64,([^"]*)"', section(page, "vqav2_val"))
    assert Image.open(io.BytesIO(base64.b64decode(url[1]))).size == (640, 480)
    assert base64.b64encode(picture(int(re.search(r"item chartqa-(\d+)\"", page)[1]))).decode() in page  # a small one as it is


def test_many_tasks_share_the_page(run, monkeypatch):
    monkeypatch.setattr(report, "ITEMS_PER_PAGE", 15)
    report.write_report(run, None, run / "published.yaml")
    text = (run / "report.html").read_text()
    assert [section(text, task).count("<article") for task in ("chartqa", "mmlu")] == [3, 3] and "<img" not in text


def test_command_writes_both_reports(run, tmp_path):
    for name in ("samples.jsonl", "manifest.json", "results.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    subprocess.run([sys.executable, "-m", "eval.report", str(tmp_path)], cwd=ROOT, check=True)
    assert "eagle-tiny" in (tmp_path / "report.html").read_text() and "eagle-tiny" in (tmp_path / "report.md").read_text()


# ------------------------------------------------------------------------------------------------ the Hub

CARD = """---
license: apache-2.0
pipeline_tag: any-to-any
widget:
  - text: What does the sign say?
    output:
      text: "75"
model-index:
  - name: EAGLE
    results:
      - task: {type: any-to-any}
        dataset: {name: chartqa, type: lmms-lab-encoder/chartqa, split: test}
        metrics: [{type: relaxed, value: 1.0}]
      - task: {type: any-to-any}
        dataset: {name: other, type: some/other}
        metrics: [{type: accuracy, value: 2.0}]
---

# EAGLE

Text, with --- in it.
"""


@pytest.fixture
def model_dir(run, tmp_path) -> Path:
    """A model's folder with the weights that the run measured."""
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"] |= {"weights_sha256": files_sha256(tmp_path, WEIGHTS), "quantization": None}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_eval_results_hold_whole_runs_of_the_hubs_data_alone(run, model_dir):
    _, left_out = hub.publish(run, model_dir)
    assert left_out == {"vqav2_val": "limited to 8 of 214354 items", "mmvet": "needs a judge, and none was given"}
    assert {path.name for path in (model_dir / ".eval_results").iterdir()} == {"chartqa.yaml", "librispeech.yaml", "mmlu.yaml"}
    [entry] = parse_eval_result_entries(yaml.safe_load((model_dir / ".eval_results/librispeech.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("lmms-lab-encoder/librispeech", "librispeech", 11.1)
    assert entry.dataset_revision == "5503434ddd753f426f4b38109466949a1217c2bb" and entry.date == "2026-11-24T10:00:00+00:00"
    assert entry.notes.startswith("wer, 95 % interval 7.0 to 16.0 (bootstrap); 12 items of split test.clean; ")


def test_rows_of_which_the_manifest_does_not_tell_count_as_local():
    assert hub.is_local({}) and hub.is_local({"data_root": "data"}) and not hub.is_local({"data_root": None})


def test_model_index_holds_our_figures_and_keeps_the_rest_of_the_card(run, model_dir):
    hub.publish(run, model_dir)
    hub.publish(run, model_dir)  # a second time changes nothing
    card = ModelCard.load(model_dir / "README.md")
    name, results = model_index_to_eval_results(metadata_load(model_dir / "README.md")["model-index"])
    found = {(result.dataset_name, result.metric_type): result for result in results}
    assert name == "EAGLE" and len(found) == len(results) == 6
    assert {dataset for dataset, _ in found} == {"other", "chartqa", "librispeech", "mme (local rows)", "mmlu"}
    assert found["other", "accuracy"].metric_value == 2.0 and found["mmlu", "acc"].metric_value == 30.0
    assert found["chartqa", "relaxed"].metric_value != 1.0
    assert found["mme (local rows)", "perception"].metric_value == 1412.5
    assert found["librispeech", "wer"].metric_args["interval_95"] == [7.0, 16.0]
    assert card.text == ModelCard(CARD).text and card.data.widget == ModelCard(CARD).data.widget
    assert not list(model_dir.rglob("*.part"))


def test_no_published_figure_reaches_the_hub(run, model_dir):
    hub.publish(run, model_dir)
    written = "".join(path.read_text() for path in [model_dir / "README.md", *(model_dir / ".eval_results").iterdir()])
    assert not [figure["value"] for figure in PUBLISHED if str(figure["value"]) in written]


def test_figures_of_other_weights_are_refused(run, model_dir):
    (model_dir / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(hub.HubError, match="measured weights .* run eval.run again"):
        hub.publish(run, model_dir)
    assert (model_dir / "README.md").read_text() == CARD


def test_figures_of_quantized_weights_are_refused(run, model_dir):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"]["quantization"] = "q4_0"
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(hub.HubError, match="measured the weights as q4_0"):
        hub.publish(run, model_dir)


def test_a_folder_without_a_card_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no README.md"):
        hub.publish(run, tmp_path)
