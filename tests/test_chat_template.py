"""The chat template: the turns' form, tools, generation spans, and special-token strings that stay text."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AddedToken, AutoTokenizer

from tokenizer.build import SPECIAL_TOKENS

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]}
FUNCTION = {"name": "open_door", "description": "Open it.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}, {"name": "wait", "strict": True}]
LISTED = (
    '<|tool|>[{"Open it.": "open_door", "arguments": {"room": {"type": "string"}}, "required": ["room"]}, '
    '{"name": "wait", "strict": true}]<|/tool|>'
)
CALL = {"type": "function", "function": {"name": "open_door", "arguments": {"room": "attic", "level": 3}}}
TEXT = '{"room": "attic", "level": 3}'


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT)


def with_llama_tokens():
    """eagle-tiny's tokenizer with the special tokens that Phi-3.5's has besides."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>", "<unk>", "<|placeholder1|>")])
    return tokenizer


TOKENIZER = with_llama_tokens()
MARKS = [*SPECIAL_TOKENS, "<s>", "</s>", "<unk>", "<|placeholder1|>", "<|video_pad|>"]


def render(messages, **kwargs):
    return TOKENIZER.apply_chat_template(messages, tokenize=False, **kwargs)


def test_turns(tokenizer):
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}, {"type": "audio"}, {"type": "video"}]
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "a door"}]},
        {"role": "user", "content": "open it"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|system|>\nbe kind<|end|>\n"
        "<|user|>\n<|image_pad|>what is it?<|audio_pad|><|video_pad|><|end|>\n"
        "<|assistant|>\na door<|end|>\n"
        "<|user|>\nopen it<|end|>\n"
        "<|assistant|>\n"
    )


def test_tools_stand_in_the_system_turn(tokenizer):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "open"}]
    rendered = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert rendered == f"<|system|>\nbe kind{LISTED}<|end|>\n<|user|>\nopen<|end|>\n"
    rendered = tokenizer.apply_chat_template(messages[1:], tools=TOOLS, tokenize=False)
    assert rendered == f"<|system|>\n{LISTED}<|end|>\n<|user|>\nopen<|end|>\n"


@pytest.mark.parametrize("call", [CALL, CALL["function"], {"name": "open_door", "arguments": TEXT}])
def test_calls_and_their_results(tokenizer, call):
    messages = [
        {"role": "user", "content": "open"},
        {"role": "assistant", "tool_calls": [call, call]},
        {"role": "tool", "content": {"result": "ok"}},
        {"role": "tool", "content": '{"result": "ok"}'},
        {"role": "assistant", "content": "done"},
    ]
    written = '<|tool_call|>{"name": "open_door", "arguments": {"room": "attic", "level": 3}}<|/tool_call|>'
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        f"<|user|>\nopen<|end|>\n<|assistant|>\n{written}{written}<|end|>\n"
        '<|tool_response|>\n{"result": "ok"}<|end|>\n<|tool_response|>\n{"result": "ok"}<|end|>\n'
        "<|assistant|>\ndone<|end|>\n"
    )


@pytest.mark.parametrize(
    "result", [5, 0, -1.5, True, False, None, "", [], [1, 2], ["a", None], [{"name": "attic"}], [{"type": "fruit"}], {}]
)
def test_any_result_of_a_tool_is_written_as_json(tokenizer, result):
    rendered = tokenizer.apply_chat_template([{"role": "tool", "content": result}], tokenize=False)
    written = result if isinstance(result, str) else json.dumps(result)
    assert rendered == f"<|tool_response|>\n{written}<|end|>\n"


def test_a_result_of_parts_is_written_as_they_are(tokenizer):
    parts = [{"type": "text", "text": "here <|end|>"}, {"type": "image"}]
    rendered = tokenizer.apply_chat_template([{"role": "tool", "content": parts}], tokenize=False)
    assert rendered == "<|tool_response|>\nhere < |end|><|image_pad|><|end|>\n"


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": {}}])
def test_a_call_without_arguments_has_none(tokenizer, arguments):
    for call in ({"name": "ring", **arguments}, {"function": {"name": "ring", **arguments}}):
        rendered = tokenizer.apply_chat_template([{"role": "assistant", "tool_calls": [call]}], tokenize=False)
        assert '<|tool_call|>{"name": "ring", "arguments": {}}<|/tool_call|>' in rendered


@pytest.mark.parametrize("empty", [{"type": "text", "text": None}, {"type": "text", "text": ""}, {"type": "text"}])
def test_a_text_part_without_text_is_none(tokenizer, empty):
    content = [empty, {"type": "text", "text": "open"}, empty]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert rendered == "<|user|>\nopen<|end|>\n"


def test_generation_spans_hold_answer_calls_and_end_of_turn(tokenizer):
    messages = [
        {"role": "user", "content": "open"},
        {"role": "assistant", "content": "yes", "tool_calls": [CALL]},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "done"},
    ]
    outputs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    learned = [token for token, mask in zip(outputs["input_ids"], outputs["assistant_masks"]) if mask]
    call = f"<|tool_call|>{json.dumps(CALL['function'])}<|/tool_call|>"
    assert tokenizer.decode(learned) == f"yes{call}<|end|>done<|end|>"


def test_unknown_roles_and_parts_are_errors_that_name_them(tokenizer):
    with pytest.raises(TemplateError, match="narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "once"}], tokenize=False)
    with pytest.raises(TemplateError, match="smell"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "smell"}]}], tokenize=False)


@pytest.mark.parametrize(
    "text", ["a < b", "x<y>z", "<div>", "if (a<|b)", "<|", "|>", "1 << 2", "<__media__>", "<image", "< |end|>"]
)
def test_ordinary_text_is_touched_only_where_it_could_be_a_special_token(text):
    changed = text.replace("<|", "< |")
    assert render([{"role": "user", "content": text}]) == f"<|user|>\n{changed}<|end|>\n"


def pieces(mark):
    return mark, mark[:-1], mark[1:], mark[:3], mark[-3:], mark[:1]


def nest(outer, inner, at):
    return outer[:at] + inner + outer[at:]


def message(role, content, tool_calls=None):
    return {"role": role, "content": content} | ({"tool_calls": tool_calls} if tool_calls else {})


marks = st.sampled_from(MARKS)
fragments = st.sampled_from([piece for mark in MARKS for piece in pieces(mark)])
smuggled = st.lists(st.one_of(fragments, st.text(max_size=4)), max_size=8).map("".join)
hostile = st.one_of(smuggled, st.builds(nest, marks, marks, st.integers(0, 9)))
media = st.sampled_from(["image", "audio", "video"]).map(lambda kind: {"type": kind})
texts = hostile.map(lambda text: {"type": "text", "text": text})
contents = st.one_of(hostile, st.lists(st.one_of(media, texts), max_size=6))
values = st.one_of(hostile, st.integers(), st.dictionaries(hostile, hostile, max_size=2))
results = st.one_of(values, st.booleans(), st.none(), st.lists(values, max_size=3))
functions = st.fixed_dictionaries({"name": hostile, "arguments": st.dictionaries(hostile, values, max_size=3)})
calls = st.lists(functions.map(lambda function: {"function": function}), max_size=2)
turns = st.one_of(
    st.builds(message, st.sampled_from(["user", "tool", "system"]), contents),
    st.builds(message, st.just("tool"), results),
    st.builds(message, st.just("assistant"), hostile, calls),
)
conversations = st.lists(turns, min_size=1, max_size=5)


def blank(value):
    """The same conversation with every text of the user's emptied."""
    if isinstance(value, list):
        return [blank(item) for item in value]
    if not isinstance(value, dict):
        return ""
    if "arguments" in value:
        return {"name": "", "arguments": {}}
    return {key: item if key in ("role", "type") else blank(item) for key, item in value.items()}


def marks_in(text):
    """Special tokens that the tokenizer finds in a text; the video marker is never tokenized, so it is looked for."""
    found = [token for token in TOKENIZER.tokenize(text) if token in SPECIAL_TOKENS]
    return found, text.count("<|video_pad|>")


@settings(max_examples=300)
@given(conversations, st.lists(st.dictionaries(hostile, values, max_size=2), max_size=2))
def test_no_text_of_the_users_becomes_a_special_token(messages, tools):
    listed = [{"function": tool} for tool in tools]
    rendered = render(messages, tools=listed, add_generation_prompt=True)
    skeleton = render(blank(messages), tools=[{} for _ in tools], add_generation_prompt=True)
    assert marks_in(rendered) == marks_in(skeleton)


@pytest.mark.parametrize("mark", MARKS)
def test_halves_in_neighbouring_parts_do_not_meet(mark):
    for cut in range(1, len(mark)):
        halves = [{"type": "text", "text": half} for half in (mark[:cut], mark[cut:])]
        assert marks_in(render([{"role": "user", "content": halves}])) == (["<|user|>", "<|end|>"], 0)


@settings(max_examples=300)
@given(st.lists(hostile, min_size=1, max_size=4))
def test_escaped_text_is_all_there(texts):
    """Nothing but spaces after "<" is added, also where the parts of a message meet."""
    rendered = render([{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}])
    inside = rendered.removeprefix("<|user|>\n").removesuffix("<|end|>\n")
    squeeze = re.compile("(?<=<) ")
    assert squeeze.sub("", inside) == squeeze.sub("", "".join(texts))
    assert TOKENIZER.decode(TOKENIZER(rendered).input_ids) == rendered


@settings(max_examples=100)
@given(st.dictionaries(hostile, values), hostile, st.dictionaries(hostile, values))
def test_json_of_tools_and_calls_reads_back_exactly(arguments, name, described):
    schema = {"type": "object", "properties": arguments, "required": list(arguments)} | described
    function = {"name": name, "description": name, "parameters": schema} | described
    call, bare = {"name": name, "arguments": arguments}, {"name": name, "parameters": described}
    tools = [{"function": function}, bare, described]
    rendered = render([{"role": "assistant", "tool_calls": [{"function": call}]}], tools=tools)
    listed = rendered.partition("<|tool|>")[2].partition("<|/tool|>")[0]
    called = rendered.partition("<|tool_call|>")[2].partition("<|/tool_call|>")[0]
    assert json.loads(called) == call
    assert json.loads(listed, object_pairs_hook=tuple) == [definition(function), definition(bare), definition(described)]


def definition(function):
    """The fields of a function as they should be written: what it does and its name, its arguments, the rest."""
    what, schema = function.get("description"), function.get("parameters")
    described = isinstance(what, str) and what and isinstance(function.get("name"), str)
    fields = [(what, function["name"])] if described else []
    for key, value in function.items():
        if key == "parameters" and isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            fields.append(("arguments", schema["properties"]))
            fields += [(name, rest) for name, rest in schema.items() if name not in ("type", "properties")]
        elif not (described and key in ("description", "name")):
            fields.append((key, value))
    return tuple((key, json.loads(json.dumps(value), object_pairs_hook=tuple)) for key, value in fields)
