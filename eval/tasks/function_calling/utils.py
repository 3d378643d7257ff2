"""Function calling: definitions for the chat template, the calls in an answer, and scores."""

import json
import re

from eval.metrics.function_calling.function_calling import failure

CALL = re.compile(r"<\|tool_call\|>(.*?)(<\|/tool_call\|>|(?=<\|tool_call\|>)|\Z)", re.DOTALL)
JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # of the leaderboard's names for Python's types


def to_json_schema(schema):
    """A parameter's schema in JSON Schema's words; of type "any", without a type."""
    if isinstance(schema, list):
        return [to_json_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {key: to_json_schema(value) for key, value in schema.items()}
    if isinstance(kind := schema.get("type"), str):
        converted["type"] = JSON_TYPES.get(kind, kind)
        if kind == "any":
            del converted["type"]
    return converted


def messages(doc):
    """The first turn's messages, and the definitions as transformers' chat templates take them."""
    functions = [function | {"parameters": to_json_schema(function["parameters"])} for function in json.loads(doc["function"])]
    tools = [{"type": "function", "function": function} for function in functions]
    return {"messages": doc["question"][0], "tools": tools or None}


def parse_call(text, is_closed):
    """{"name", "arguments"} of one call's JSON, both None if it cannot be read."""
    try:
        call = json.loads(text) if is_closed else None
    except (ValueError, RecursionError):
        call = None
    if isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict):
        return {"name": call["name"], "arguments": call["arguments"]}
    return {"name": None, "arguments": None}


def parse_calls(answer):
    """The calls in a model's text, as the processor's `parse_tool_calls` reads them."""
    return [parse_call(text, bool(end)) for text, end in CALL.findall(answer)]


def score(doc, results):
    """An answer is unreadable if one of its calls is, and that made it wrong: where no call is right, none was made."""
    calls = parse_calls(results[0])
    tools = json.loads(doc["function"]) + json.loads(doc["trained_function"])
    is_right = failure(calls, json.loads(doc["ground_truth"]), tools) is None
    return {"accuracy": float(is_right), "parsed": is_right or all(call["name"] is not None for call in calls)}
