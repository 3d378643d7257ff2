"""Every benchmark on twenty rows of its true schema: its prompts to the letter, its scores, its groups, its submissions."""

import functools
import json
import math
from pathlib import Path

import pytest
import yaml
from benchmark_rows import MVBENCH, write_all
from eagle.processing_eagle import EagleProcessor
from openpyxl import load_workbook

from eval.results import results_of, scored
from eval.task import TASKS, Request, Rows, Task, load_module, load_tasks, task_files

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."
VIDEO_CHOICE = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)
MULTIPLE_CHOICE = "The following are multiple choice questions (with answers) about high school physics.\n\n" + "".join(
    f"What is {number} plus 2?\nA. {number}\nB. {number + 1}\nC. {number + 2}\nD. {number + 3}\nAnswer: {'ABCD'[number % 4]}\n\n"
    for number in (100, 102, 104, 106, 108)
)
MMBENCH_EN = "<image>Count them. How many dots are here? There are several options:\nA. one\nB. two\nC. three\n\n" + LETTER
SEEDBENCH = f"<image>How many towels are in the image?\nA. 1 towels\nB. 2 towels\nC. 3 towels\nD. 4 towels\n{LETTER}"
MMMU = f"<image>shows the sales of 0 days. What is the mean?\nA. $6\nB. $7\nC. $8\nD. $9\n\n{LETTER}"
VQAV2 = f"<image>How many birds are on roof 0?\n{PHRASE}"
LIBRISPEECH = "<audio>Please recognize the speech and only output the recognized content:"
MVBENCH_PROMPT = (
    "<video>Question:What did the person do with the box?\nOption:\n(A) Threw it.\n(B) Took it.\n(C) Opened it.\n"
    "(D) Put it down.\nOnly give the best option.\n"
)
LIT = "Set the kitchen light to half."

PROMPTS = {  # of row 0
    "mmmu_val": MMMU,
    "mmmu_test": MMMU,
    "scienceqa_full": f"Which of these is 0 metres long?\nA. a pencil\nB. a bus\n{LETTER}",
    "scienceqa_img": f"<image>Context: A bus has many seats.\nWhich of these is 0 metres long?\nA. a pencil\nB. a bus\n{LETTER}",
    "mmlu": f"{MULTIPLE_CHOICE}What is 0 plus 2?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:",
    "chartqa": "<image>What was sold in 2000?\nAnswer the question with a single word.",
    "mmbench_en_dev": MMBENCH_EN,
    "mmbench_en_test": MMBENCH_EN,
    "mmbench_cn_dev": (
        "<image>数一数。 这里有几个点？ There are several options:\nA. 一个\nB. 两个\nC. 三个\n\n"  # noqa: RUF001
        "请直接使用所提供的选项字母作为答案回答。"
    ),
    "vqav2_val": VQAV2,
    "vqav2_testdev": VQAV2,
    "gqa": f"<image>Is it overcast?\n{PHRASE}",
    "vizwiz_val": (
        "<image>What can is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + PHRASE
    ),
    "textvqa_val": f"<image>What is the brand of this camera?\n{PHRASE}",
    "pope": f"<image>Is there a car in the image?\n{PHRASE}",
    "mme": f'<image>Is the word in the picture "sale"?\n{PHRASE}',
    "seedbench": SEEDBENCH,
    "seedbench_image": SEEDBENCH,
    "mmvet": (
        "<image>First please perform reasoning, and think step by step to provide best answer to the following question: "
        "\n\nWhat is x in the equation?"
    ),
    "librispeech_test_clean": LIBRISPEECH,
    "librispeech_test_other": LIBRISPEECH,
    "audiocaps": "<audio>Describe the sounds of this recording in one short sentence.",
    "videomme": f"<video>{VIDEO_CHOICE}\nHow many flags are in the video?\nA. One.\nB. Two.\nC. Three.\nD. None.\n\n{LETTER}",
    **{f"mvbench_{name}": MVBENCH_PROMPT for name in MVBENCH},
    "function_calling_in_context": LIT,
    "function_calling_fine_tuned": LIT,
    "function_calling_mixed": "Start a timer of 5 minutes.",
    "function_calling_irrelevance": "Who wrote Hamlet?",
    "function_calling_parallel": "Set the kitchen light to half and start a timer of 5 minutes.",
}
MAX_NEW_TOKENS = {
    128: ["mmmu_val", "mmmu_test", "pope"],
    16: ["scienceqa_full", "scienceqa_img", "chartqa", "vqav2_val", "vqav2_testdev", "gqa", "vizwiz_val", "textvqa_val", "mme",
         "seedbench", "seedbench_image", "videomme", "mvbench_action_count"],
    1024: ["mmbench_en_dev", "mmbench_cn_dev", "mmbench_en_test", "mmvet"],
    256: ["librispeech_test_clean", "librispeech_test_other", "function_calling_mixed"],
    64: ["audiocaps"],
}  # fmt: skip
GROUPS = {
    "eagle_table1": ["mmmu_val", "scienceqa_full", "mmlu", "chartqa", "mmbench_en_dev", "librispeech_test_clean", "audiocaps"],
    "bunny": ["mme", "mmbench_en_dev", "seedbench", "mmmu_val", "vqav2_val", "gqa", "scienceqa_img", "pope"],
    "mipha": ["vqav2_val", "gqa", "vizwiz_val", "scienceqa_img", "textvqa_val", "pope", "mme", "mmbench_en_dev",
              "mmbench_cn_dev", "seedbench_image", "mmvet"],
    "mvbench": [f"mvbench_{name}" for name in MVBENCH],
    "function_calling": [f"function_calling_{name}" for name in "in_context fine_tuned mixed irrelevance parallel".split()],
}  # fmt: skip

# The wrong and the unreadable answer to every row; None: every answer of this task can be read.
CHOICE_ANSWERS = ("E", "I cannot tell.")
ANSWERS = {
    "mmmu_val": ("D", "?"),
    "scienceqa_full": ("C", "the bus"),
    "scienceqa_img": ("C", "the bus"),
    "chartqa": ("300", None),
    "mmbench_en_dev": ("C", "I cannot tell."),
    "mmbench_cn_dev": ("C", "不知道"),
    "vqav2_val": ("seven", None),
    "gqa": ("maybe", None),
    "vizwiz_val": ("rice", None),
    "textvqa_val": ("canon", None),
    "seedbench": CHOICE_ANSWERS,
    "seedbench_image": CHOICE_ANSWERS,
    "pope": ("maybe", "Yes, there is."),
    "mme": ("perhaps", "I cannot tell."),
    "videomme": CHOICE_ANSWERS,
    **dict.fromkeys(GROUPS["mvbench"], CHOICE_ANSWERS),
    "function_calling_in_context": ('<|tool_call|>{"name": "set_light", "arguments": {}}<|/tool_call|>', "<|tool_call|>{<|/tool_call|>"),
    "function_calling_fine_tuned": ("I set it.", '<|tool_call|>{"name": "set_light", "arguments": {}}'),
    "function_calling_mixed": ("Done.", '<|tool_call|>{"name": "set_timer"}<|/tool_call|>'),
    "function_calling_irrelevance": ('<|tool_call|>{"name": "set_timer", "arguments": {"minutes": 5}}<|/tool_call|>', None),
    "function_calling_parallel": ("Done.", "<|tool_call|>[]<|/tool_call|>"),
}
BEST = {"mme": 400.0}  # of a right answer to every row, where that is not 1: here there are two of the fourteen categories


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks")
    assert len(list(write_all(root))) == 18
    return root


@functools.cache
def the(name: str) -> Task:
    (task,) = load_tasks([name])
    return task


def request(name: str, data_root: Path, index: int = 0) -> Request:
    """What the harness asks about a row."""
    task = the(name)
    docs = task.docs(data_root)
    return task.request(docs[index], task.shots(data_root), docs.folder)


def shown(prompt: list | str) -> str:
    """A prompt as text, with each medium's kind where the medium is."""
    if isinstance(prompt, str):
        return prompt
    (message,) = prompt
    assert message["role"] == "user"
    if isinstance(message["content"], str):
        return message["content"]
    return "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])


def answer(task: Task, docs: Rows, responses: list[str]) -> dict:
    """The task's results when its rows are answered so."""
    blank = {"logprobs": None, "error": None}
    samples = [scored(task, docs, {"index": index, "response": text, **blank}) for index, text in enumerate(responses)]
    return results_of(task, len(docs), samples)


def headline(results: dict) -> float:
    return results["metrics"][results["headline"]]["value"]


def said(calls: list[dict]) -> str:
    """A model's text that calls the functions with the first values that are allowed."""
    given = [
        {"name": name, "arguments": {key: values[0] for key, values in arguments.items() if values[0] != ""}}
        for call in calls
        for name, arguments in call.items()
    ]
    return "".join(f"<|tool_call|>{json.dumps(call)}<|/tool_call|>" for call in given) + "<|end|>"


def right_answer(task: Task, doc: dict) -> str:
    if task.task.startswith("function_calling"):
        return said(json.loads(doc["ground_truth"]))
    target = task.target(doc)
    return max(target, key=target.count) if isinstance(target, list) else target


# ------------------------------------------------------------------------------------------------ prompts


def test_every_task_is_tested():
    files = {name: path.relative_to(TASKS).parts[0] for name, path in task_files([TASKS]).items()}
    assert {name for name, folder in files.items() if folder not in ("mini", "voice")} - set(GROUPS) - {"voice"} == set(PROMPTS)
    assert set(ANSWERS) == set(PROMPTS) - {
        "mmlu", "mmvet", "audiocaps", "librispeech_test_clean", "librispeech_test_other",  # tested one by one
        "mmmu_test", "mmbench_en_test", "vqav2_testdev",  # without answers: submissions
    }  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_is_the_benchmarks_to_the_letter(name, data_root):
    assert shown(request(name, data_root).prompt) == PROMPTS[name]


@pytest.mark.parametrize(("tokens", "names"), MAX_NEW_TOKENS.items())
def test_answers_have_the_benchmarks_length(tokens, names):
    assert {task.generation_kwargs["max_new_tokens"] for task in load_tasks(names)} == {tokens}


def test_choices_are_letters_after_a_space(data_root):
    asked = request("mmlu", data_root)
    assert asked.choices == [" A", " B", " C", " D"] and isinstance(asked.prompt, str)


def test_pictures_of_mmmu_stand_where_the_text_has_them(data_root):
    content = request("mmmu_val", data_root, 3).prompt[0]["content"]
    assert [part["type"] for part in content] == ["image", "text", "image", "text"]
    assert content[0]["image"].getpixel((0, 0)) == (36,) * 3 and content[2]["image"].getpixel((0, 0)) == (48,) * 3
    assert content[1]["text"].endswith("\nC. $8\nD.") and content[3]["text"] == LETTER
    assert shown(request("mmmu_val", data_root, 4).prompt) == f"<image>shows the sales of 4 days. What is the mean?\n\n{PHRASE}"


def test_a_missing_hint_leaves_no_gap(data_root):
    assert shown(request("mmbench_en_dev", data_root, 2).prompt).startswith("<image>How many dots are here? There are")


def test_videos_are_found_beside_the_rows(data_root):
    for name in ("videomme", *GROUPS["mvbench"]):
        part, _ = request(name, data_root, 7).prompt[0]["content"]
        assert Path(part["video"]).is_file(), part


def test_frames_of_seedbench_are_pictures(data_root):
    assert shown(request("seedbench", data_root, 3).prompt).startswith("<image>" * 8 + "How many")
    assert set(the("seedbench_image").docs(data_root).dataset["data_type"]) == {"image"}


def test_pictures_of_gqa_come_from_its_other_part(data_root):
    docs = the("gqa").docs(data_root)
    assert [docs[index]["image"].getpixel((0, 0))[0] for index in (0, 3, 4, 19)] == [0, 0, 12, 48]


def test_captions_of_a_clip_are_one_row(data_root):
    docs = the("audiocaps").docs(data_root)
    assert len(docs) == 4 and all(len(docs.raw(index)["captions"]) == 5 for index in range(4))
    assert docs[0]["captions"][:2] == ["a train horn sounds", "a train horn sounds loudly"]
    assert docs[1]["audio"]["array"][0] == pytest.approx(0.01, abs=1e-3) and docs[1]["audio"]["sampling_rate"] == 44100


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("name", ANSWERS)
def test_right_answers_score_full_and_wrong_ones_nothing(name, data_root):
    task, (wrong, unreadable) = the(name), ANSWERS[name]
    docs = task.docs(data_root)
    right = answer(task, docs, [right_answer(task, docs.raw(index)) for index in range(len(docs))])
    assert headline(right) == BEST.get(name, 1.0) and not right["parse_failures"]
    assert headline(answer(task, docs, [wrong] * len(docs))) == 0
    if unreadable is None:
        assert not answer(task, docs, [wrong] * len(docs))["parse_failures"]
    else:
        silent = answer(task, docs, [unreadable] * len(docs))
        assert headline(silent) == 0 and silent["parse_failures"] == (16 if name == "mmmu_val" else len(docs))


def test_guesses_are_reported_beside_and_repeat(data_root):
    task = the("mmmu_val")
    docs = task.docs(data_root)
    first, second = (answer(task, docs, ["?"] * len(docs))["metrics"] for _ in range(2))
    assert first == second and first["accuracy"]["value"] == 0 < first["accuracy_with_guess"]["value"] < 0.6


def test_mmlu_takes_the_likeliest_letter(data_root):
    task = the("mmlu")
    docs = task.docs(data_root)
    likely, unlikely = (-1.0, True), (-9.0, False)
    for place, value in ((2, 1.0), (0, 0.0)):
        logprobs = [likely if letter == place else unlikely for letter in range(4)]
        samples = [scored(task, docs, {"index": i, "response": None, "logprobs": logprobs, "error": None}) for i in range(20)]
        results = results_of(task, 20, samples)
        assert headline(results) == value and set(results["categories"]) == {"anatomy", "high_school_physics"}


@pytest.mark.parametrize("name", ["librispeech_test_clean", "librispeech_test_other"])
def test_word_errors_are_of_the_corpus_and_normalised(name, data_root):
    task = the(name)
    docs = task.docs(data_root)
    assert headline(answer(task, docs, ["Mr. Brown has 22 hens."] * 20)) == 0
    assert headline(answer(task, docs, [""] * 20)) == 1
    assert headline(answer(task, docs, ["mister brown has twenty two dogs"] + ["mister brown has 22 hens"] * 19)) == 1 / 100


def test_cider_is_of_the_corpus_and_in_the_papers_unit(data_root):
    task = the("audiocaps")
    docs = task.docs(data_root)
    right = answer(task, docs, [docs.raw(index)["captions"][0] for index in range(4)])
    assert 100 < headline(right) <= 1000 and right["metrics"]["cider"]["percent"] is False
    assert headline(answer(task, docs, ["silence"] * 4)) == 0


def test_one_wrong_rotation_spoils_a_question(data_root):
    task = the("mmbench_en_dev")
    docs = task.docs(data_root)
    results = answer(task, docs, ["A"] + [docs.raw(index)["answer"] for index in range(1, 20)])
    assert headline(results) == 0.9
    assert results["categories"]["object_localization"]["value"] == 0.8
    assert results["categories"]["attribute_recognition"]["value"] == 1.0


def test_figures_of_pope_are_means_over_categories(data_root):
    task = the("pope")
    results = answer(task, task.docs(data_root), ["yes"] * 24)
    values = {name: metric["value"] for name, metric in results["metrics"].items()}
    assert values == pytest.approx({"f1": 2 / 3, "precision": 0.5, "recall": 1.0, "accuracy": 0.5, "yes_ratio": 1.0})
    assert set(results["categories"]) == {"adversarial", "popular", "random"}


def test_mme_counts_answers_and_pairs(data_root):
    task = the("mme")
    docs = task.docs(data_root)
    values = {name: metric["value"] for name, metric in answer(task, docs, ["Yes"] * 20)["metrics"].items()}
    assert values == {"total": 100, "perception": 50, "cognition": 50}
    limited = answer(task, docs, ["Yes", "No", "Yes"])
    assert headline(limited) == 200  # the second picture was asked about once only


@pytest.mark.parametrize(
    ("name", "response", "index", "value"),
    [
        ("chartqa", "104", 0, 1), ("chartqa", "106", 0, 0), ("chartqa", "100%", 0, 0),
        ("vqav2_val", "3", 0, 1), ("vqav2_val", "many", 0, 0.3), ("vqav2_val", "Two.", 0, 1),
        ("textvqa_val", "dakota digital", 0, 0.6), ("vizwiz_val", "Unanswerable", 0, 0.3), ("vizwiz_val", "Unanswerable", 1, 1),
        ("gqa", "No.", 0, 1), ("pope", " YES\n", 0, 1), ("seedbench", "a) 1 towels", 0, 1), ("scienceqa_img", "a", 0, 1),
        ("scienceqa_img", "A. a pencil", 0, 1), ("mmmu_val", "The answer is (B).", 0, 1), ("mmmu_val", "It is 7.50 dollars", 4, 1),
        ("videomme", "The answer is A.", 0, 1), ("mvbench_state_change", "(A) Threw it.", 0, 1),
        ("mmbench_en_dev", "The picture shows two dots", 0, 1),
    ],
)  # fmt: skip
def test_answers_in_other_words(name, response, index, value, data_root):
    task = the(name)
    docs = task.docs(data_root)
    sample = scored(task, docs, {"index": index, "response": response, "logprobs": None, "error": None})
    assert headline(results_of(task, len(docs), [sample])) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "clusters"),
    [("mmbench_en_dev", 10), ("vqav2_val", 10), ("gqa", 5), ("textvqa_val", 10), ("pope", 4), ("mme", 10), ("seedbench", 3),
     ("videomme", 7), ("mvbench_object_shuffle", 10), ("chartqa", 20), ("scienceqa_full", 20), ("audiocaps", 3),
     ("mmmu_val", 20)],
)  # fmt: skip
def test_rows_on_one_picture_or_video_are_one_cluster(name, clusters, data_root):
    task = the(name)
    docs = task.docs(data_root)
    samples = [scored(task, docs, {"index": i, "response": "", "logprobs": None, "error": None}) for i in range(len(docs))]
    assert len({sample["cluster"] for sample in samples}) == clusters
    ids = {sample["id"] for sample in samples}
    assert len(ids) == len(docs)


def test_charts_are_told_apart_by_their_bytes(data_root):
    docs = the("chartqa").docs(data_root)
    rows = [docs.raw(index) for index in (0, 0, 1)]
    clusters = [the("chartqa").value("doc_to_cluster", row | {"question": str(place)}) for place, row in enumerate(rows)]
    assert clusters[0] == clusters[1] != clusters[2]


# ------------------------------------------------------------------------------------------------ function calling


def test_definitions_go_into_the_prompt_as_json_schema(data_root):
    light, timer = request("function_calling_in_context", data_root).tools
    assert light["type"] == "function" and timer["function"]["name"] == "set_timer"
    schema = light["function"]["parameters"]
    assert schema["type"] == "object" and schema["properties"]["level"]["type"] == "number"
    assert schema["properties"]["room"]["enum"] == ["kitchen", "hall"]
    assert request("function_calling_fine_tuned", data_root).tools is None


def test_a_parameter_may_be_called_type():
    utils = load_module(TASKS / "function_calling" / "utils.py")
    schema = {"type": "dict", "properties": {"type": {"type": "any"}, "size": {"type": "tuple", "items": {"type": "float"}}}}
    size = {"type": "array", "items": {"type": "number"}}
    assert utils.to_json_schema(schema) == {"type": "object", "properties": {"type": {}, "size": size}}


def test_calls_may_come_in_any_order_and_must_all_be_there(data_root):
    task = the("function_calling_parallel")
    docs = task.docs(data_root)
    light, timer = json.loads(docs.raw(0)["ground_truth"])
    assert task.score(docs.raw(0), [said([timer, light])]) == {"accuracy": 1.0, "parsed": True}
    assert task.score(docs.raw(0), [said([light])]) == {"accuracy": 0.0, "parsed": True}
    broken = "<|tool_call|>oops<|/tool_call|>"
    assert task.score(docs.raw(0), [said([light]) + broken]) == {"accuracy": 0.0, "parsed": False}
    irrelevance = the("function_calling_irrelevance")
    assert irrelevance.score(irrelevance.docs(data_root).raw(1), [broken]) == {"accuracy": 1.0, "parsed": True}


@pytest.mark.parametrize(
    "text",
    [
        '<|tool_call|>{"name": "f", "arguments": {"x": 1}}<|/tool_call|><|end|>',
        'So: <|tool_call|>{"name": "f", "arguments": {}}<|/tool_call|><|tool_call|>{"name": "g"}<|/tool_call|>',
        '<|tool_call|>{"name": "f", "arguments": {}}<|tool_call|>{"name": "g", "arguments": {}}<|/tool_call|>',
        '<|tool_call|>{"name": "f", "arguments": {}}',
        '<|tool_call|>{"name": 1, "arguments": {}}<|/tool_call|>',
        "<|tool_call|>" + "[" * 100_000 + "<|/tool_call|>",
        "no call",
    ],
)
def test_calls_are_read_as_the_processor_reads_them(text):
    expected = [{key: call[key] for key in ("name", "arguments")} for call in EagleProcessor.parse_tool_calls(None, text)]
    assert load_module(TASKS / "function_calling" / "utils.py").parse_calls(text) == expected


# ------------------------------------------------------------------------------------------------ submissions


def submitted(name: str, responses: list[str], data_root: Path, folder: Path) -> tuple[Path, float]:
    """The file for the server, and the share of rows with an answer."""
    task = the(name)
    docs = task.docs(data_root)
    blank = {"logprobs": None, "error": None}
    samples = [scored(task, docs, {"index": index, "response": text, **blank}) for index, text in enumerate(responses)]
    return task.submission(samples, docs, folder), headline(results_of(task, len(docs), samples))


def test_submission_of_vqav2(data_root, tmp_path):
    path, answered = submitted("vqav2_testdev", [" two\n", ""] * 10, data_root, tmp_path)
    answers = json.loads(path.read_text())
    assert answers[:2] == [{"question_id": 393_225_000, "answer": "two"}, {"question_id": 393_225_001, "answer": ""}]
    assert len(answers) == 20 and answered == 0.5


def test_submission_of_mmmu(data_root, tmp_path):
    path, answered = submitted("mmmu_test", ["(B)", "?", "A", "D", "It is 7.5"] * 4, data_root, tmp_path)
    answers = json.loads(path.read_text())
    assert list(answers.items())[:2] == [("test_Accounting_1", "B"), ("test_Art_Theory_2", "")]
    assert answers["test_Accounting_5"] == "It is 7.5" and len(answers) == 20 and answered == 0.8


def test_submission_of_mmbench(data_root, tmp_path):
    path, answered = submitted("mmbench_en_test", ["B", "=1+1"] * 10, data_root, tmp_path)
    header, first, second, *rest = load_workbook(path).active.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "C", "D", "prediction") and len(rest) == 18
    assert first == (241, "How many dots are here?", "one", "two", "three", "nan", "B")
    assert second[0] == 1_000_241 and second[-1] == "=1+1" and answered == 0.5


# ------------------------------------------------------------------------------------------------ groups and papers


@pytest.mark.parametrize("group", GROUPS)
def test_group_is_complete(group):
    assert [task.task for task in load_tasks([group])] == GROUPS[group]


def test_a_score_of_a_judge_is_not_made_up():
    assert the("mmvet").needs.startswith("a judge")


def published() -> list[dict]:
    return yaml.safe_load((TASKS.parent / "published.yaml").read_text())


def test_papers_figures_are_of_tasks_and_metrics_that_exist():
    metrics = {name: [entry["metric"] for entry in the(name).metric_list] for name in PROMPTS}
    for figure in published():
        assert set(figure) == {"system", "task", "metric", "split", "value", "source"}
        assert figure["system"] and figure["split"] and figure["source"].startswith("arXiv:24"), figure
        assert isinstance(figure["value"], int | float) and math.isfinite(figure["value"]), figure
        assert figure["task"] is None or figure["metric"] in metrics[figure["task"]], figure
    keys = [(figure["system"], figure["task"], figure["metric"], figure["split"]) for figure in published()]
    assert len(keys) == len(set(keys))


def test_papers_figures_compare_with_their_own_split_only():
    compares_to = {name: the(name).compares_to for name in PROMPTS}
    eagle = {figure["task"]: figure for figure in published() if figure["system"] == "EAGLE" and figure["task"]}
    assert list(eagle) == GROUPS["eagle_table1"]
    assert [figure["value"] for figure in eagle.values()] == [46.3, 94.6, 72.9, 84.4, 80.1, 2.6, 86.3]
    comparable = {task for task, figure in eagle.items() if figure["split"] == compares_to[task]}
    assert comparable == set(eagle) - {"mmbench_en_dev"}
    bunny = [figure for figure in published() if figure["system"].startswith("Bunny-3B")]
    assert [figure["value"] for figure in bunny] == [1488.8, 289.3, 69.2, 68.6, 62.5, 38.2, 33.0, 79.8, 62.5, 70.9, 86.8]
    others = {(figure["task"], figure["split"]) for figure in bunny if figure["split"] != compares_to[figure["task"]]}
    assert others == {("mmbench_en_dev", "test"), ("mmmu_val", "test"), ("vqav2_val", "testdev")}
