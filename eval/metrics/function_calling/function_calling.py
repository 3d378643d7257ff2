"""Function calling: whether a model's calls are those asked for, by name, arguments, types and values.

    evaluate.load("eval/metrics/function_calling").compute(
        predictions=['[{"name": "f", "arguments": {"x": 1}}]'],
        references=['{"tools": [{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}],
                      "answers": [{"f": {"x": [1, 2]}}]}'])

Source: the Berkeley Function-Calling Leaderboard (Patil et al. 2025), its AST check for Python and its row format: an
answer is {name: {argument: [allowed values]}}, where the value "" says that the argument may be left out. It compares
what is written; nothing is run.
"""

import json
import re

import evaluate
from datasets import Features, Value
from scipy.optimize import linear_sum_assignment

LISTS = ("array", "tuple")
TYPES = {"string": str, "integer": int, "float": float, "number": float, "boolean": bool, "dict": dict, "object": dict}


def standardize(text: str) -> str:
    """Lower case without spaces and ,./-_*^ so that "April 1, 2024" is "april 1 2024"; one kind of quote."""
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def has_type(value, schema: dict) -> bool:
    """Whether the value has the type of a parameter's schema; an int passes as a float, no other type as another."""
    name = schema.get("type", "any")
    if name in LISTS:
        return isinstance(value, list) and all(has_type(item, schema.get("items", {})) for item in value)
    if name in TYPES:
        return type(value) is TYPES[name] or (TYPES[name] is float and type(value) is int)
    return True


def is_same(value, allowed) -> bool:
    """Whether a value is the allowed one: strings by `standardize`, lists and dicts by contents; True is not 1."""
    if isinstance(value, str) and isinstance(allowed, str):
        return standardize(value) == standardize(allowed)
    if isinstance(value, list) and isinstance(allowed, list):
        return len(value) == len(allowed) and all(map(is_same, value, allowed))
    if isinstance(value, dict) and isinstance(allowed, dict):
        return mismatch(value, allowed, {}) is None
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def has_type_of(value, allowed) -> bool:
    """Whether both have one type, and items of lists too: the leaderboard's data at times break their schema."""
    same = type(value) is type(allowed)
    return same and all(map(has_type_of, value, allowed)) if isinstance(value, list) else same


def mismatch(values: dict, answer: dict, properties: dict) -> str | None:
    """Why {name: value} does not fit {name: [allowed values]} and {name: schema}; None if it does.

    Within a dict that is itself an allowed value, a name may have one value that is not in a list.
    """
    answer = {name: allowed if isinstance(allowed, list) else [allowed] for name, allowed in answer.items()}
    for name, value in values.items():
        if name not in answer:
            return f"unexpected {name!r}"
        schema, allowed = properties.get(name, {}), answer[name]
        same = [one for one in allowed if is_same(value, one)]
        if not has_type(value, schema) and not any(has_type_of(value, one) for one in same):
            return f"{name!r} is {value!r}, expected type {schema['type']}"
        if not same:
            return f"{name!r} is {value!r}, expected one of {allowed}"
    missing = [name for name, allowed in answer.items() if name not in values and "" not in allowed]
    return f"missing {missing[0]!r}" if missing else None


def call_failure(call: dict, answer: dict, tools: list[dict]) -> str | None:
    """Why a call, {"name", "arguments"}, is not the answer's; None if it is."""
    ((name, allowed),) = answer.items()
    if call["name"] != name:
        return f"called {call['name']!r}, expected {name!r}"
    parameters = next(tool["parameters"] for tool in tools if tool["name"] == name)
    missing = [key for key in parameters.get("required", []) if key not in call["arguments"]]
    return f"missing {missing[0]!r}" if missing else mismatch(call["arguments"], allowed, parameters["properties"])


def failure(calls: list[dict], answers: list[dict], tools: list[dict]) -> str | None:
    """The first reason why a model's calls are wrong; None if they are right.

    calls: what was decoded, {"name": str, "arguments": dict}, or {"name": None} for a call that cannot be read; their
    order is no matter. answers: one a call; without any (irrelevance) nothing must decode. tools: the functions on
    offer. Raises ValueError if an answer's function is not on offer.
    """
    offered = {tool["name"] for tool in tools}
    if unknown := {name for answer in answers for name in answer} - offered:
        raise ValueError(f"the answer calls {sorted(unknown)}, but the tools on offer are {sorted(offered)}")
    if not answers:
        decoded = [call["name"] for call in calls if call["name"] is not None]
        return f"called {decoded[0]!r}, expected no call" if decoded else None
    if len(calls) != len(answers):
        return f"number of calls is {len(calls)}, expected {len(answers)}"
    reasons = [[call_failure(call, answer, tools) for call in calls] for answer in answers]
    pairs = linear_sum_assignment([[reason is not None for reason in row] for row in reasons])
    return next((reasons[i][j] for i, j in zip(*pairs, strict=True) if reasons[i][j]), None)


class FunctionCalling(evaluate.Metric):
    """{"function_calling": share in 0..1 of right items, "failures": the reason of each, "" where it is right}.

    predictions: the calls as JSON. references: {"answers", "tools"} as JSON.
    """

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        url = "https://gorilla.cs.berkeley.edu/leaderboard.html"
        return evaluate.MetricInfo(description=__doc__, citation=url, features=features)

    def _compute(self, predictions, references):
        rows = zip(map(json.loads, predictions), map(json.loads, references), strict=True)
        failures = [failure(calls, row["answers"], row["tools"]) or "" for calls, row in rows]
        return {"function_calling": failures.count("") / len(failures), "failures": failures}
