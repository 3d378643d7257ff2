"""Tool calls: read from an answer, and held to their definitions while it is written.

    tools = [{"type": "function", "function": {"name": "ring_bell", "parameters": {...}}}]
    inputs = processor.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = model.generate(**inputs, logits_processor=[processor.constrain_tool_calls(tools)])

A small model makes up names that sound right. Constrained, it writes a function that is there, with parameters that it has and
values of their types; whether it calls one, and which, it still decides itself. (As llama.cpp's server does for the formats
of calls that it knows, and vLLM where a call is required.)
"""

import functools
import json
import re

import torch
from transformers import LogitsProcessor
from transformers.utils import get_json_schema

CALL, END = "<|tool_call|>", "<|/tool_call|>"
# JSON as the chat template writes calls; keywords of JSON Schema that the grammar does not know are passed over.
STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": True}


def call_schema(tools: list) -> dict:
    """JSON Schema of one call of any of the tools, which are given as to `apply_chat_template`.

    Parameters keep their order. Each definition lies under `$defs` as a whole, where its own references lead.
    """
    calls, definitions = [], {}
    for number, tool in enumerate(tools):
        tool = get_json_schema(tool) if callable(tool) else tool
        function = tool.get("function", tool)
        if not isinstance(function.get("name"), str):
            raise ValueError(f"a tool needs a name, but this has none: {tool}")
        parameters = function.get("parameters") or {}
        if parameters and parameters.get("type") != "object":
            raise ValueError(f"parameters of {function['name']} must be a JSON Schema of type object, but are {parameters}")
        arguments = {"type": "object", "properties": {}, "additionalProperties": False} | parameters
        references = json.dumps(arguments).replace('"$ref": "#', f'"$ref": "#/$defs/{number}')
        definitions[str(number)] = json.loads(references)
        properties = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{number}"}}
        calls.append({"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False})
    return {"anyOf": calls, "$defs": definitions, "x-guidance": STYLE}


def import_llguidance():
    try:
        import llguidance.hf
    except ImportError as error:
        raise ImportError("constrained tool calls need llguidance: pip install llguidance") from error
    return llguidance


@functools.lru_cache(maxsize=2)
def grammar_tokenizer(tokenizer):
    """The tokenizer as llguidance reads it; a call ends with its own token, not with the turn's."""
    return import_llguidance().hf.from_tokenizer(tokenizer, eos_token=tokenizer.convert_tokens_to_ids(END))


class ToolCallLogitsProcessor(LogitsProcessor):
    """Within a call, leaves only tokens with which it can still become one of a tool; elsewhere everything.

    It keeps nothing from token to token but what the grammar was compiled to, so that it serves beams and batches.

    Args:
        tokenizer: a fast tokenizer with EAGLE's special tokens.
        tools: those of each row of the batch, or of one conversation for all rows; None: the row is left alone.

    Raises ValueError for tools without name or schema, and later for a batch of another number of rows.

    A string in a call cannot hold "<|/tool_call|>": it would end there.
    """

    def __init__(self, tokenizer, tools: list):
        matcher = import_llguidance().LLMatcher
        one_for_all = not tools or isinstance(tools[0], dict) or callable(tools[0])
        wrapped = grammar_tokenizer(tokenizer)
        self.rows = [
            matcher(wrapped, matcher.grammar_from_json_schema(json.dumps(call_schema(row)))) if row else None
            for row in ([tools] if one_for_all else tools)
        ]
        for row in filter(None, self.rows):
            if row.is_error():
                raise ValueError(f"the tools cannot be turned into a grammar: {row.get_error()}")
        self.call, self.end = (tokenizer.convert_tokens_to_ids(token) for token in (CALL, END))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(rows, tokens so far), (rows, vocabulary) -> the scores, minus infinity where a token would break a call."""
        if len(input_ids) % len(self.rows):
            raise ValueError(f"tools were given for {len(self.rows)} rows, but there are {len(input_ids)} sequences")
        beams = len(input_ids) // len(self.rows)
        for row, ids in enumerate(input_ids.tolist()):
            matcher = self.rows[row // beams]
            written = self.open_call(ids)
            if matcher is None or written is None:
                continue
            matcher.reset()
            if matcher.try_consume_tokens(written) < len(written):
                continue  # another processor chose against this one
            bits = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
            allowed = (bits[:, None] >> torch.arange(8) & 1).flatten().bool()[: scores.shape[1]]
            scores[row, : len(allowed)].masked_fill_(~allowed.to(scores.device), -torch.inf)
            scores[row, len(allowed) :] = -torch.inf
        return scores

    def open_call(self, ids: list[int]) -> list[int] | None:
        """The tokens of the call that is being written, perhaps none yet; None outside of one."""
        for place in range(len(ids) - 1, -1, -1):
            if ids[place] == self.end:
                return None
            if ids[place] == self.call:
                return ids[place + 1 :]
        return None


def parse_tool_calls(text):
    """See `EagleProcessor.parse_tool_calls`."""
    calls = re.findall(r"<\|tool_call\|>(.*?)(<\|/tool_call\|>|(?=<\|tool_call\|>)|\Z)", text, flags=re.DOTALL)
    return [parse_tool_call(call, closed=bool(end)) for call, end in calls]


def parse_tool_call(text, closed):
    """One call's JSON, or why it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        call, reason = None, str(error)
    else:
        reason = call_defect(call, closed)
    if reason:
        return {"name": None, "arguments": None, "error": reason, "text": text}
    return {"name": call["name"], "arguments": call["arguments"]}


def call_defect(call, closed):
    """What is wrong with a call that is valid JSON, or an empty string."""
    if not closed:
        return "the call has no <|/tool_call|>"
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return 'expected an object with a string "name"'
    return "" if isinstance(call.get("arguments"), dict) else 'expected "arguments" to be an object'
