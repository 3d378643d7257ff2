"""Function calling: what is drawn is held out, its calls fit their definitions and can be read off the request, and it scores."""

import hashlib
import json
import random
import re

import pytest
from transformers import AutoProcessor

from eval import mini
from eval.metrics.function_calling.function_calling import failure
from eval.task import load_tasks
from training import shards
from training.collator import EagleCollator
from training.synthesis import assistant, function_calling, samples, world
from training.synthesis.voices import HELD_OUT_VOICES

ROOT = "."
DRAWS = {
    "in_context": function_calling.in_context_request,
    "mixed": function_calling.mixed_request,
    "multimodal": function_calling.multimodal_request,
    "fine_tuned": lambda rng, split: function_calling.fine_tuned_request(rng, split, 0),
}
JSON_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)


def rows(setting: str, split: str = "train", count: int = 60) -> list[dict]:
    return [DRAWS[setting](random.Random(f"{setting} {number}"), split) for number in range(count)]


def calls(row: dict) -> list[dict]:
    messages = [json.loads(message["tool_calls"]) for message in row["messages"] if message.get("tool_calls")]
    return [call["function"] for message in messages for call in message]


def tools(row: dict) -> dict[str, dict]:
    """The functions that a row's calls may name."""
    defined = json.loads(row["tools"]) if row["tools"] else []
    return {tool["function"]["name"]: tool["function"] for tool in (*assistant.FUNCTIONS, *defined)}


def violation(call: dict, definition: dict) -> str | None:
    """Why a call breaks the JSON schema of its function."""
    schema, arguments = definition["parameters"], call["arguments"]
    if missing := set(schema["required"]) - set(arguments):
        return f"missing {missing}"
    for name, value in arguments.items():
        wanted = schema["properties"].get(name)
        if wanted is None or type(value) is not JSON_TYPES[wanted["type"]] or value not in wanted.get("enum", [value]):
            return f"{name} is {value!r}, expected {wanted}"
        if not wanted.get("minimum", 0) <= (value if isinstance(value, int) else 0) <= wanted.get("maximum", 10**9):
            return f"{name} is {value!r}, expected {wanted}"
    return None


def function_of(tool: dict) -> tuple:
    """What a definition does, from its description, without its names."""
    return tuple(re.fullmatch(r"(\w+) the (\w+)\.", tool["function"]["description"].lower()).groups())


def drawn_functions(split: str) -> set[tuple]:
    found = [
        json.loads(row["tools"] or "[]") for setting in ("in_context", "mixed") for row in rows(setting, split, 400)
    ]
    names = {known.name for known in function_calling.ASSISTANT}
    return {function_of(tool) for some in found for tool in some if tool["function"]["name"] not in names}


# ------------------------------------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("setting", DRAWS)
def test_the_same_seed_gives_the_same_bytes(setting):
    first, again = ([function_calling.draw(3, "train", setting, number) for number in range(4)] for _ in range(2))
    assert first == again
    assert (
        first != [function_calling.draw(4, "train", setting, number) for number in range(4)] or setting == "fine_tuned"
    )
    for row in first:
        shards.check_row(row)


def test_held_out_requests_stay_the_ones_that_scores_were_measured_on():
    scored = {task: [task(index) for index in range(200)] for task in (mini.in_context, mini.mixed)}
    digests = {task.__name__: hashlib.sha256(json.dumps(some).encode()).hexdigest()[:12] for task, some in scored.items()}
    assert digests == {"in_context": "3e8d47cf409c", "mixed": "abf562717ea6"}


def test_no_function_is_defined_in_both_splits():
    train, test = drawn_functions("train"), drawn_functions("test")
    assert len(train) > 1500 and len(test) > 300 and not train & test
    evaluated = {(function.verb, function.thing) for function in mini.HELD_OUT}
    assert len(evaluated) == 40 and not evaluated & train


def test_masked_requests_ask_once_for_each_function_under_names_of_any_words():
    drawn = [function_calling.masked_request(random.Random(number), "train") for number in range(200)]
    assert 100 < sum(function_calling.REFUSAL in json.dumps(row["messages"]) for row in drawn) < 180  # some ask for what is not there
    heard = {world.split("function", *function_of(tool)) for row in drawn for tool in json.loads(row["tools"])}
    assert heard == {"train"}
    for row in drawn:
        defined = {tool["function"]["name"]: tool["function"] for tool in json.loads(row["tools"])}
        called = calls(row)
        assert sorted(call["name"] for call in called) == sorted(defined)
        assert [why for call in called if (why := violation(call, defined[call["name"]]))] == []
    names = {word for row in drawn for tool in json.loads(row["tools"]) for word in tool["function"]["name"].split("_")}
    assert len(names) > 300 and names <= set(world.WORDS)


def test_look_up_answers_with_the_name_beside_what_is_asked_for():
    kinds, schemas = set(), set()
    for number in range(200):
        row = samples.look_up(random.Random(number), "train")
        questions = [message["content"][0]["text"] for message in row["messages"] if message["role"] == "user"]
        table, _, questions[0] = questions[0].rpartition("\n")
        if "tools" in row:
            functions = [tool["function"] for tool in json.loads(row["tools"])]
            names = {function["description"].lower().removesuffix("."): function["name"] for function in functions}
            taken = [function["parameters"] for function in functions if "parameters" in function]
            assert len(taken) in (0, len(functions)) and not any(schema["required"] for schema in taken)
            schemas.add((bool(taken), any(schema["properties"] for schema in taken)))
        else:
            pairs = json.loads(table) if table.startswith("{") else dict(line.split(": ") for line in table.split("\n"))
            names = {thing.lower(): name for thing, name in pairs.items()}
        *answers, listed = [message for message in row["messages"] if message["role"] == "assistant"]
        for question, answer in zip(questions, answers):
            text = answer["content"][0]["text"].lower()
            if answer.get("tool_calls"):
                (call,) = json.loads(answer["tool_calls"])
                thing, name = text.removesuffix("."), call["function"]["name"]
            else:
                thing, _, name = text.partition(": ")
            assert thing in question.lower() and names[thing] == name
            kinds.add(("tools" in row, table[:1] == "{", "tool_calls" in answer))
        assert len(answers) == len(names) == len(listed["content"][0]["text"].split("\n"))
    assert len(kinds) == 6, "functions, an object or lines, answered by a call or a line"
    assert len(schemas) == 3, "without a schema, with one that takes nothing, with parameters"


def test_look_up_names_no_held_out_function():
    things = ["push the door"]
    for number in range(2000):
        things.append(samples.draw_thing(random.Random(number), things))
    words = [thing.replace(" the ", " ").split() for thing in things[1:] if not thing.endswith(" the")]
    assert {world.split("function", *pair) for pair in words} == {"train"}
    assert sum(verb in function_calling.VERBS and thing in function_calling.THINGS for verb, thing in words) > 900


@pytest.mark.parametrize("form", samples.FORMS)
def test_words_in_a_form_can_be_read_again(form):
    written = samples.in_form(form, ["door", "lion", "cup", "run"])
    assert re.findall(r"door|lion|cup|run", written) == ["door", "lion", "cup", "run"]
    if written[0] in "[{":
        json.loads(written)


def test_no_wording_is_heard_in_both_splits():
    numbers = {
        split: {n for n in range(len(function_calling.WORDINGS)) if world.split("phrasing", "function", n) == split}
        for split in ("train", "test")
    }
    asked = {split: {function_calling.worded(random.Random(n), split, "x") for n in range(200)} for split in numbers}
    assert not asked["train"] & asked["test"]
    assert asked == {split: {function_calling.WORDINGS[n].format("x") for n in some} for split, some in numbers.items()}


def test_verbs_are_not_those_of_the_assistant():
    phrasings = " ".join(phrasing for some in assistant.PHRASINGS.values() for phrasing in some).split()
    values = " ".join(words for _, said in assistant.KINDS.values() for words in said).split()
    assert not set(function_calling.VERBS) & {*phrasings, *values}
    assert set(function_calling.VERBS) <= set(world.WORDS)


@pytest.mark.parametrize("setting", DRAWS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_calls_fit_their_definitions(setting, split):
    drawn = rows(setting, split)
    found = [(call, tools(row)) for row in drawn for call in calls(row)]
    assert len(found) >= 0.7 * len(drawn)
    assert [why for call, offered in found if (why := violation(call, offered[call["name"]]))] == []


def test_a_broken_call_does_not_fit():
    function = next(function for function in mini.HELD_OUT if any(p.type == "integer" for p in function.parameters))
    good = function.call(function.values(random.Random(0)))
    assert violation(good, function.definition["function"]) is None
    for key, value in good["arguments"].items():
        if isinstance(value, int):
            assert violation(
                {**good, "arguments": good["arguments"] | {key: str(value)}}, function.definition["function"]
            )
    assert violation({**good, "arguments": good["arguments"] | {"more": 1}}, function.definition["function"])


def said_for(function: function_calling.Drawn, name: str, value) -> str:
    parameter = next(parameter for parameter in function.parameters if parameter.name == name)
    return next(words for words, meant in parameter.said.items() if meant == value)


def test_a_request_says_every_argument_and_nothing_left_out():
    rng = random.Random(0)
    for function in function_calling.catalogue(rng, "train", 300):
        text, call = function.ask(rng, "train")
        words = [said_for(function, name, value) for name, value in call["arguments"].items()]
        assert text.startswith(f"{function.verb} the {function.thing}") and all(some in text for some in words)
        assert len(text) <= len(f"{function.verb} the {function.thing}") + sum(len(some) + 22 for some in words)


def test_in_context_rows_hold_turns_of_every_kind():
    drawn = rows("in_context", count=300)
    text = json.dumps([row["messages"] for row in drawn])
    assert function_calling.REFUSAL in text and "please tell me the" in text and '"role": "tool"' in text
    several = [
        message
        for row in drawn
        for message in row["messages"]
        if len(json.loads(message.get("tool_calls") or "[]")) == 2
    ]
    assert len(several) > 30
    types = {
        p["type"]
        for row in drawn
        for tool in json.loads(row["tools"])
        for p in tool["function"]["parameters"]["properties"].values()
    }
    assert types == set(JSON_TYPES) and "enum" in json.dumps([row["tools"] for row in drawn])


def test_fine_tuned_rows_ask_for_each_function_equally_often():
    asked = [
        call["name"]
        for index in range(100)
        for call in calls(function_calling.fine_tuned_request(random.Random(index), "train", 6 * index))
    ]
    assert len(asked) == 600 and {asked.count(name) for name in assistant.ASSISTANT} == {15}


def test_mixed_rows_call_what_is_defined_and_what_is_not():
    found = [call["name"] in (row["tools"] or "") for row in rows("mixed") for call in calls(row)]
    assert 0.3 < sum(found) / len(found) < 0.8


def test_multimodal_rows_hold_the_value_in_their_medium():
    drawn = rows("multimodal", count=80)
    assert {row["meta"]["medium"] for row in drawn} == {"speech", "sign", "chart", "recording"}
    followed = sum(row["messages"][-1]["role"] == "assistant" and len(row["messages"]) == 4 for row in drawn)
    assert 4 < followed < 30
    for row in drawn:
        parts = [part["type"] for message in row["messages"] for part in message["content"] if isinstance(part, dict)]
        assert parts.count("image") == len(row["images"]) and parts.count("audio") == len(row["audios"])
        assert row["meta"].get("voice") not in HELD_OUT_VOICES
        assert len(row["images"]) + len(row["audios"]) == 1


def test_every_argument_is_said_or_shown():
    said = {str(value): words for kind in function_calling.KINDS for words, value in kind.said.items()}
    for row in rows("multimodal", count=80):
        if row["meta"]["medium"] == "speech":
            continue
        (text,) = [part["text"].lower() for part in row["messages"][0]["content"] if part["type"] == "text"]
        arguments, record = calls(row)[0]["arguments"], row["meta"]["record"]
        value = arguments.pop(row["meta"]["parameter"])
        assert f"take the {row['meta']['parameter'].replace('_', ' ')} from the" in text
        assert all(said[str(other)].removesuffix("quiet").removesuffix("fast") in text for other in arguments.values())
        if row["meta"]["medium"] == "chart":
            assert value == record[re.search(r"from the bar (\w+)", text)[1]]
        else:
            assert said[str(value)] == record


# ------------------------------------------------------------------------------------------------ training


def labelled(batch: dict, row: int, processor) -> str:
    ids = batch["input_ids"][row][batch["labels"][row] != -100]
    return processor.decode(ids)


def test_rows_are_batches_with_labels_on_the_assistant_alone(processor):
    drawn = [
        next(row for row in rows("in_context") if '"tool"' in json.dumps(row["messages"])),
        rows("mixed")[0],
        rows("fine_tuned")[0],
    ]
    batch = EagleCollator(processor)(drawn)
    for number, row in enumerate(drawn):
        expected = "".join(
            "".join(part["text"] for part in message["content"] or ())
            + "".join(
                f"<|tool_call|>{json.dumps(call['function'])}<|/tool_call|>"
                for call in json.loads(message.get("tool_calls") or "[]")
            )
            + "<|end|>"
            for message in row["messages"]
            if message["role"] == "assistant"
        )
        assert labelled(batch, number, processor) == expected
        everything = processor.decode(batch["input_ids"][number])
        assert ("<|tool|>" in everything) == bool(row["tools"])
        assert ("<|tool_response|>" in everything) == any(message["role"] == "tool" for message in row["messages"])


def test_prompts_are_short(processor):
    lengths = [len(processor.tokenizer(row["tools"]).input_ids) for row in rows("in_context", count=200)]
    assert sum(lengths) / len(lengths) < 400 and max(lengths) < 1000


# ------------------------------------------------------------------------------------------------ evaluation


def answered(calls: list[dict]) -> str:
    return "".join(f"<|tool_call|>{json.dumps(call)}<|/tool_call|>" for call in calls)


@pytest.mark.parametrize("name", ["in_context", "fine_tuned", "mixed", "parallel"])
def test_the_right_calls_score_and_any_other_does_not(name):
    task = next(task for task in load_tasks(["mini"]) if task.dataset_path == f"mini/{name}")
    make = {function.__name__: function for function in mini.ROWS}[name]
    for index in range(40):
        row = make(index)
        right = [
            {"name": name, "arguments": {key: values[0] for key, values in arguments.items()}}
            for call in json.loads(row["ground_truth"])
            for name, arguments in call.items()
        ]
        assert task.score(row, [answered(right)])["accuracy"] == 1
        assert task.score(row, [answered(right[:-1])])["accuracy"] == 0
        renamed = [*right[:-1], right[-1] | {"name": right[-1]["name"] + "_"}]
        assert task.score(row, [answered(renamed)])["accuracy"] == 0
        for key, value in right[-1]["arguments"].items():
            wrong = (
                not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else value + "s"
            )
            other = right[-1]["arguments"] | {key: wrong}
            assert task.score(row, [answered([*right[:-1], right[-1] | {"arguments": other}])])["accuracy"] == 0


def test_held_out_has_28_requests_for_each_of_40_functions():
    tasks = load_tasks(["function_calling_held_out"])
    assert [task.task.removeprefix("mini_function_calling_") for task in tasks] == ["in_context", "fine_tuned", "mixed"]
    assert {task.drawn_rows for task in tasks} == {28 * 40}
    for name in ("in_context", "fine_tuned"):
        make = {function.__name__: function for function in mini.ROWS}[name]
        called = [next(iter(json.loads(make(index)["ground_truth"])[0])) for index in range(120)]
        assert {called.count(name) for name in set(called)} == {3} and len(set(called)) == 40
    mixed = [mini.mixed(index) for index in range(80)]
    assert [row["category"] for row in mixed].count("fine_tuned") == 40
    for row in mixed:
        (name,) = json.loads(row["ground_truth"])[0]
        assert (f'"name": "{name}"' in row["function"]) == (row["category"] == "in_context")


def test_evaluation_asks_in_the_form_of_training(processor):
    """The prompt of a row is that of a conversation of training up to its first answer."""
    task = next(task for task in load_tasks(["mini"]) if task.dataset_path == "mini/in_context")
    row = mini.in_context(7)
    _, _, functions = mini.held_out_catalogue("in_context", 7)
    request = task.request(row)
    asked = processor.apply_chat_template(
        request.prompt, tools=request.tools, add_generation_prompt=True, tokenize=False
    )
    sample = function_calling.conversation([function_calling.said("x")], functions, "in_context")
    message = {"role": "user", "content": [{"type": "text", "text": row["question"][0][0]["content"]}]}
    trained = processor.apply_chat_template(
        [message], tools=json.loads(sample["tools"]), add_generation_prompt=True, tokenize=False
    )
    assert asked == trained


def test_no_call_is_right_where_nothing_fits():
    for index in range(20):
        row = mini.irrelevance(index)
        assert json.loads(row["ground_truth"]) == []
        assert failure([], [], json.loads(row["function"])) is None
        assert failure([{"name": "f", "arguments": {}}], [], json.loads(row["function"]))
