"""Tool calls that keep to their definitions, whatever the weights: here they are random."""

import sys

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

PROMPT = "<|user|>\nhello<|end|>\n<|assistant|>\n"


def tool(name, required=(), **properties):
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "What it does.", "parameters": parameters}}


RING = tool("ring_bell")
LOCK = tool("lock_door", ["room"], room={"type": "string", "enum": ["kitchen", "attic"]}, fast={"type": "boolean"})
TURN = tool("turn_up", ["level", "parts"], level={"type": "integer", "minimum": 0, "maximum": 9}, parts={
    "type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "object", "properties": {
        "price": {"type": "number"}}, "required": ["price"], "additionalProperties": False}})  # fmt: skip


def fits(call):
    """Whether a call is one of the three; written out, as a second opinion on the schema."""
    name, arguments = call["name"], call["arguments"]
    if name == "ring_bell":
        return arguments == {}
    if name == "lock_door":
        rest = set(arguments) - {"room"}
        return arguments["room"] in ("kitchen", "attic") and (not rest or (rest == {"fast"} and arguments["fast"] in (True, False)))
    prices = [part["price"] for part in arguments["parts"]]
    return name == "turn_up" and arguments["level"] in range(10) and 1 <= len(prices) <= 2 and all(type(p) in (int, float) for p in prices)


@pytest.fixture(scope="module")
def parts(small_checkpoint):
    """Random weights that open a call, and never by themselves know how to go on."""
    model = AutoModelForMultimodalLM.from_pretrained(small_checkpoint, trust_remote_code=True, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(small_checkpoint, trust_remote_code=True)


def generate(parts, texts, tools, **kwargs):
    """What follows each text under the constraint, as text."""
    model, processor = parts
    inputs = processor.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    constraint = [processor.constrain_tool_calls(tools)]
    kwargs = {"max_new_tokens": 60, "do_sample": False} | kwargs
    ids = model.generate(**inputs, logits_processor=constraint, **kwargs)[:, inputs.input_ids.shape[1] :]
    return processor.tokenizer.batch_decode(ids, skip_special_tokens=False)


def call_of(parts, written):
    """The call that a text opens with; it must be closed, and spaced as the template writes it."""
    text = written.partition("<|/tool_call|>")[0]
    (call,) = parts[1].parse_tool_calls(f"<|tool_call|>{text}<|/tool_call|>")
    assert "<|/tool_call|>" in written and text.startswith(f'{{"name": "{call["name"]}", "arguments": {{'), written
    return call


def test_sampled_calls_fit_their_definitions(parts):
    torch.manual_seed(0)
    written = generate(parts, [PROMPT + "<|tool_call|>"] * 60, [RING, LOCK, TURN], do_sample=True, max_new_tokens=400)
    closed = [text for text in written if "<|/tool_call|>" in text]  # a random model may write digits without end
    calls = [call_of(parts, text) for text in closed]
    assert all(map(fits, calls)) and len(calls) > 50
    assert {call["name"] for call in calls} == {"ring_bell", "lock_door", "turn_up"}
    assert {"fast" in call["arguments"] for call in calls if call["name"] == "lock_door"} == {True, False}


def test_each_row_has_its_own_tools_and_its_beams(parts):
    texts = [PROMPT + "<|tool_call|>", PROMPT * 2 + "<|tool_call|>", PROMPT + "<|tool_call|>"]
    for beams in (1, 3):
        first, second, free = generate(parts, texts, [[RING], [LOCK], None], num_beams=beams)
        assert call_of(parts, first)["name"] == "ring_bell" and call_of(parts, second)["name"] == "lock_door"
        assert not free.startswith('{"name"')


def test_outside_of_a_call_nothing_changes(parts):
    _, processor = parts
    constraint = processor.constrain_tool_calls([RING])
    call = '<|tool_call|>{"name": "ring_bell", "arguments": {}}<|/tool_call|>'
    for text in (PROMPT, PROMPT + call, PROMPT + call + "<|end|>\n" + PROMPT):
        scores = torch.randn(1, len(processor.tokenizer))
        assert torch.equal(constraint(processor.tokenizer(text, return_tensors="pt").input_ids, scores.clone()), scores)
    ids = processor.tokenizer(PROMPT + call + "<|tool_call|>", return_tensors="pt").input_ids
    allowed = constraint(ids, torch.zeros(1, len(processor.tokenizer)))[0] == 0
    begins = {processor.tokenizer.decode(token) for token in allowed.nonzero().flatten()}
    assert begins and all('{"name": "ring_bell"'.startswith(token) or token.startswith("{") for token in begins)


def test_references_and_python_functions_are_tools_too(parts):
    def wave(hand: str, times: int):
        """
        Waves.

        Args:
            hand: which (choices: ["left", "right"])
            times: how often
        """

    point = {"type": "object", "properties": {"x": {"enum": [1, 2, "#3"]}}, "required": ["x"], "additionalProperties": False}
    go = tool("go", ["to"], to={"$ref": "#/$defs/point"})
    go["function"]["parameters"]["$defs"] = {"point": point}
    constraint, tokenizer = parts[1].constrain_tool_calls([RING, go, wave]), parts[1].tokenizer

    def follows(call, then):
        ids = tokenizer(PROMPT + "<|tool_call|>" + call, return_tensors="pt").input_ids
        allowed = constraint(ids, torch.zeros(1, len(tokenizer)))[0] == 0
        return bool(allowed[tokenizer(then, add_special_tokens=False).input_ids[0]])

    assert follows('{"name": "go", "arguments": {"to": {"x": "', "#")
    assert follows('{"name": "go", "arguments": {"to": {"x": ', "2") and not follows('{"name": "go", "arguments": {"to": {"x": ', "3")
    assert follows('{"name": "wave", "arguments": {"hand": "', "left") and not follows('{"name": "wave", "arguments": {"hand": "', "both")


def test_tools_that_are_none_are_named(parts):
    for broken, message in (
        (tool("ring_bell", volume={"type": "loud"}), "cannot be turned into a grammar"),
        ({"type": "function", "function": {"description": "What?"}}, "a tool needs a name"),
        ({"name": "go", "parameters": {"x": {"type": "int"}}}, "parameters of go must be a JSON Schema of type object"),
    ):
        with pytest.raises(ValueError, match=message):
            parts[1].constrain_tool_calls([broken])
    constraint = parts[1].constrain_tool_calls([[RING], [LOCK]])
    with pytest.raises(ValueError, match="tools were given for 2 rows, but there are 3 sequences"):
        constraint(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 9))


def test_without_llguidance_it_is_said_what_to_install(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)  # as Python finds it where it is not installed
    with pytest.raises(ImportError, match="constrained tool calls need llguidance: pip install llguidance"):
        parts[1].constrain_tool_calls([RING])
