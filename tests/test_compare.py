"""Paired comparison of two runs: on folders as eval.run writes them, with task files of their own."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.compare import CompareError, compare, main, markdown
from eval.statistics import holm, mcnemar

ROOT = Path(__file__).parent.parent
TASK = """
task: {name}
dataset_path: example/{name}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
metric_list:
  - {{metric: {metric}, aggregation: {aggregation}, higher_is_better: {better}}}
"""
UTILS = """
def rate(values):
    return sum(value["errors"] for value in values) / sum(value["words"] for value in values)


def whole(values):
    groups = {value["group"] for value in values}
    return sum(all(value["right"] for value in values if value["group"] == group) for group in groups) / len(groups)


def points(values):
    return [10.0 * value for value in values]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with a task of right and wrong, a clustered one, a word error rate, one over groups, and one scored over the corpus."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "utils.py").write_text(UTILS)
    for name, metric, aggregation, better in (
        ("choice", "acc", "mean", "true"),
        ("video", "acc", "mean", "true"),
        ("speech", "wer", "!function utils.rate", "false"),
        ("circular", "acc", "!function utils.whole", "true"),
        ("caption", "cider", "mean", "true"),
    ):
        text = TASK.format(name=name, metric=metric, aggregation=aggregation, better=better)
        (folder / f"{name}.yaml").write_text(text)
    (folder / "caption.yaml").write_text(text.replace("better: true", "better: true, percent: false, per_item: !function utils.points"))
    return folder


def sample(task: str, index: int, metrics: dict, **facts) -> dict:
    response = json.dumps(metrics)
    return {
        "task": task,
        "index": index,
        "id": f"item {index}",
        "category": None,
        "cluster": str(index),
        "key": hashlib.sha256(response.encode()).hexdigest(),
        "row_sha256": hashlib.sha256(f"{task} {index}".encode()).hexdigest(),
        "prompt": f"<|user|>\nQuestion {index}?<|end|>\n<|assistant|>\n",
        "target": "A",
        "response": response,
        "logprobs": None,
        "metrics": metrics,
        "parsed": None,
        "error": None,
        "prompt_tokens": 20,
        "new_tokens": 3,
    } | facts


def write_run(folder: Path, samples: list[dict], unmet: tuple = (), **model) -> Path:
    names = list(dict.fromkeys(one["task"] for one in samples))
    facts = {"dataset": "example/x", "split": "test", "revision": None, "generation_kwargs": {"max_new_tokens": 16}, "limit": None}
    manifest = {
        "model": {"path": folder.name, "weights_sha256": "0" * 64, "dtype": "float32", "quantization": None} | model,
        "versions": {"torch": "2.15.0"},
        "tasks": dict.fromkeys(names, facts),
        "batch_size": 16,
        "started": f"2026-11-24T10:00:0{len(folder.name) % 10}+00:00",
        "seconds": 12.0,
    }
    results = {name: {"status": "ok", "reason": None} for name in names}
    results |= {name: {"status": "n/a", "reason": "needs a judge, and none was given"} for name in unmet}
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "results.json").write_text(json.dumps({"model": folder.name, "tasks": results, "average": None}))
    return folder


def choices(rights: list[int], task: str = "choice", **facts) -> list[dict]:
    return [sample(task, index, {"acc": float(right)}, **facts) for index, right in enumerate(rights)]


RIGHT_A = [1] * 20 + [0] * 20
RIGHT_B = [1] * 18 + [0] * 8 + [1] * 14  # 2 lost, 14 won


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    speech = [[sample("speech", i, {"wer": {"errors": (i % 4) // by, "words": 8}}) for i in range(40)] for by in (1, 2)]
    a = write_run(tmp_path / "a", choices(RIGHT_A) + speech[0], unmet=("judged",))
    b = write_run(tmp_path / "b", choices(RIGHT_B) + speech[1] + choices([1, 0], "video"), dtype="bfloat16")
    return a, b


def test_right_and_wrong_items_take_mcnemar(runs, tasks):
    found = compare(*runs, tasks)["tasks"]["choice"]
    assert (found["a"], found["b"], found["difference"]) == (0.5, 0.8, pytest.approx(0.3))
    assert (found["a_better"], found["b_better"], found["items"]) == (2, 14, 40)
    assert found["test"] == "McNemar" and found["p"] == mcnemar(2, 14) == pytest.approx(0.00418, abs=1e-5)
    assert 0.1 < found["interval"][0] < 0.3 < found["interval"][1] < 0.5


def test_a_corpus_measure_takes_the_paired_bootstrap(runs, tasks):
    found = compare(*runs, tasks)["tasks"]["speech"]
    assert found["a"] == pytest.approx(60 / 320) and found["b"] == pytest.approx(20 / 320)
    assert found["test"] == "paired bootstrap" and found["p"] < 0.01 and found["interval"][1] < 0
    assert "| B better |" in next(line for line in markdown(compare(*runs, tasks)).splitlines() if line.startswith("| speech"))


def test_p_values_are_corrected_over_the_tasks(runs, tasks):
    found = compare(*runs, tasks)["tasks"]
    assert [entry["p_holm"] for entry in found.values()] == holm([entry["p"] for entry in found.values()])
    assert found["speech"]["p_holm"] == 2 * found["speech"]["p"] < found["choice"]["p_holm"] == found["choice"]["p"]


def test_a_values_per_item_function_is_run_before_the_means(tmp_path, tasks):
    runs = [write_run(tmp_path / name, [sample("caption", i, {"cider": i % 3 + by}) for i in range(30)]) for name, by in (("a", 0), ("b", 0.5))]
    found = compare(*runs, tasks)["tasks"]["caption"]
    assert (found["a"], found["difference"], found["percent"]) == (pytest.approx(10), pytest.approx(5), False)


def test_clusters_are_drawn_together_and_weaken_the_test(tmp_path, tasks):
    rights = [[1] * 20 + [0] * 20, [1] * 30 + [0] * 10]
    found = []
    for size in (1, 10):
        samples = [[one | {"cluster": str(one["index"] // size)} for one in choices(side, "video")] for side in rights]
        runs = [write_run(tmp_path / f"{name}{size}", side) for name, side in zip("ab", samples)]
        found.append(compare(*runs, tasks)["tasks"]["video"])
    assert [entry["test"] for entry in found] == ["McNemar", "clustered paired bootstrap"]
    assert found[0]["p"] < 0.01 < 0.1 < found[1]["p"]


def test_equal_runs_differ_in_nothing(tmp_path, tasks):
    runs = [write_run(tmp_path / name, choices(RIGHT_A)) for name in "ab"]
    found = compare(*runs, tasks)
    entry = found["tasks"]["choice"]
    assert (entry["difference"], entry["p"], entry["flips"], entry["interval"]) == (0.0, 1.0, [], [0.0, 0.0])
    assert "no difference shown" in markdown(found) and found["differing"] == {"model.path": ["a", "b"]}


def test_what_the_runs_do_not_share_is_named(runs, tasks):
    found = compare(*runs, tasks)
    assert found["only_in_a"] == {"judged": "needs a judge, and none was given"} and found["only_in_b"] == {"video": "not in the other run"}
    assert found["differing"] == {"model.path": ["a", "b"], "model.dtype": ["float32", "bfloat16"]}
    text = markdown(found)
    assert "Not compared, of B: video (not in the other run)" in text and "| model.dtype | float32 | bfloat16 |" in text


def test_items_of_one_run_alone_are_counted_and_named(tmp_path, tasks):
    runs = write_run(tmp_path / "a", choices(RIGHT_A)), write_run(tmp_path / "b", choices(RIGHT_B)[3:25])
    found = compare(*runs, tasks)
    entry = found["tasks"]["choice"]
    assert entry["items"] == 22 and entry["only_in_b"] == [] and len(entry["only_in_a"]) == 18
    assert "choice: 18 items only in A: item 0, item 1, item 2, item 25, " in markdown(found) and " and 8 more" in markdown(found)


def test_items_beyond_the_limit_of_a_run_do_not_count(tmp_path, tasks):
    runs = [write_run(tmp_path / name, choices(RIGHT_A)) for name in "ab"]
    manifest = json.loads((runs[1] / "manifest.json").read_text())
    manifest["tasks"]["choice"]["limit"] = 10  # the samples after it are of an earlier run
    (runs[1] / "manifest.json").write_text(json.dumps(manifest))
    assert compare(*runs, tasks)["tasks"]["choice"]["items"] == 10


def test_ids_that_two_rows_share_are_paired_in_order(tmp_path, tasks):
    runs = [
        write_run(tmp_path / name, [one | {"id": f"picture {one['index'] // 2}"} for one in choices(side)])
        for name, side in (("a", RIGHT_A), ("b", RIGHT_B))
    ]
    assert compare(*runs, tasks)["tasks"]["choice"]["items"] == 40


def test_flipped_items_show_both_answers(runs, tasks):
    found = compare(*runs, tasks)
    flips = found["tasks"]["choice"]["flips"]
    assert [flip["better"] for flip in flips] == ["B"] * 5 + ["A"] * 2
    assert {flip["id"] for flip in flips[5:]} == {"item 18", "item 19"}
    assert flips[0] | {"a": '{"acc": 0.0}', "b": '{"acc": 1.0}', "target": "A"} == flips[0]
    assert "## Changed answers: choice" in markdown(found)


def test_log_likelihoods_are_shown_for_choices(tmp_path, tasks):
    samples = [
        [one | {"response": None, "logprobs": [[-1.5, True], [by, False]]} for one in choices(side)]
        for by, side in ((-2.25, RIGHT_A), (-0.5, RIGHT_B))
    ]
    runs = [write_run(tmp_path / name, side) for name, side in zip("ab", samples)]
    flip = compare(*runs, tasks)["tasks"]["choice"]["flips"][0]
    assert (flip["a"], flip["b"]) == ("-1.50, -2.25", "-1.50, -0.50")


def test_flips_of_a_metric_over_groups_are_those_of_its_items(tmp_path, tasks):
    sides = [[sample("circular", i, {"acc": {"group": i // 2, "right": i < cut}}) for i in range(10)] for cut in (4, 7)]
    runs = [write_run(tmp_path / name, side) for name, side in zip("ab", sides)]
    found = compare(*runs, tasks)["tasks"]["circular"]
    assert (found["a"], found["b"], found["a_better"], found["b_better"]) == (0.4, 0.6, 0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "Another?"}, "task choice: prompt differs in 1 items: item 7. Run both on the same rows"),
        ({"row_sha256": "0"}, "task choice: row_sha256 differs in 1 items: item 7"),
        ({"metrics": {"acc": 0.0}}, "equal answers have unequal scores in 1 items: item 7. The runs were scored by different code"),
    ],
)
def test_runs_that_asked_or_scored_differently_are_refused(tmp_path, tasks, change, message):
    a, b = choices(RIGHT_A), choices(RIGHT_A)
    b[7] |= change
    with pytest.raises(CompareError, match=message):
        compare(write_run(tmp_path / "a", a), write_run(tmp_path / "b", b), tasks)


def test_runs_with_nothing_in_common_are_refused(tmp_path, tasks):
    a = write_run(tmp_path / "a", choices(RIGHT_A)[:5])
    with pytest.raises(CompareError, match="no task has figures in both runs: A has choice; B has video"):
        compare(a, write_run(tmp_path / "b", choices(RIGHT_A, "video")), tasks)
    with pytest.raises(CompareError, match="task choice: no item is in both runs"):
        compare(a, write_run(tmp_path / "c", choices(RIGHT_A)[5:]), tasks)


def test_command_writes_both_files(runs, tasks, tmp_path):
    command = [sys.executable, "-m", "eval.compare", *map(str, runs), "--include-path", str(tasks), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (tmp_path / "out/compare.md").read_text().strip()
    assert json.loads((tmp_path / "out/compare.json").read_text()) == compare(*runs, tasks)


def test_command_refuses_in_one_line(runs, monkeypatch):
    (runs[0] / "results.json").unlink()
    monkeypatch.setattr(sys, "argv", ["eval.compare", *map(str, runs)])
    with pytest.raises(SystemExit, match="eval.compare: .* has no results.json"):
        main()
