"""Rows of conversations to batches: the processor's inputs, and labels on what the assistant says."""

import json
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


class EagleCollator:
    """Makes a right-padded batch of rows (columns `messages`, `images`, `audios`, `videos`; see training/data.py).

    `labels` (batch, tokens) int64 hold the ids of the assistant's turns, end-of-turn token included, as the chat
    template's own `{% generation %}` mask marks them, and -100 elsewhere. Raises ValueError for a batch without a
    single label, which would train nothing.

    A column `cell_words` (training/synthesis/dense.py) labels the tokens of a row's first picture as well. A picture
    then teaches dozens of words where its answer holds three.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        layouts = {key: rows[0][key] for key in ("image_layout", "audio_layout") if key in rows[0]}
        batch = self.processor.apply_chat_template(
            [with_media(row) for row in rows],
            tools=tools_of(rows),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding_side": "right", **layouts},
        )
        is_answer = batch.pop("assistant_masks").bool()
        if not is_answer.any():
            raise ValueError(f"no token of this batch is the assistant's; its first row is {rows[0]['messages']}")
        batch["labels"] = batch["input_ids"].masked_fill(~is_answer, -100)
        for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=True):
            self.label_cells(ids, labels, row.get("cell_words", []))
        return dict(batch)

    def label_cells(self, input_ids: torch.Tensor, labels: torch.Tensor, cell_words: list[str]) -> None:
        """Writes the last token of each cell's word into `labels` (tokens,), where the cell's own token predicts it."""
        positions = (input_ids == self.processor.image_token_id).nonzero().flatten().tolist()
        for position, word in zip(positions, cell_words, strict=False):
            if word:
                labels[position + 1] = self.processor.tokenizer(word, add_special_tokens=False).input_ids[-1]


class EncodedCollator:
    """Makes a right-padded batch of rows that training/encode.py wrote; media tokens are `width` wide."""

    def __init__(self, pad_token_id: int, width: int):
        self.pad_token_id, self.width = pad_token_id, width

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }
        for kind in ("image", "audio"):
            tokens = bytearray(b"".join(row[f"{kind}_tokens"] for row in rows))
            if tokens:
                batch[f"{kind}_hidden_states"] = torch.frombuffer(tokens, dtype=torch.bfloat16).view(-1, self.width)
        return batch


def tools_of(rows: list[dict[str, Any]]) -> list | None:
    """The tools of all rows, a list or its JSON; ValueError where they differ: the template renders one list a batch."""
    tools = [row.get("tools") for row in rows]
    if any(other != tools[0] for other in tools):
        raise ValueError("rows of one batch have different `tools`; give batches of one row, or rows with equal tools")
    return json.loads(tools[0]) if isinstance(tools[0], str) else tools[0]


def with_media(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's messages with each medium in the content part that shows it, and tool calls read from their JSON."""
    media = {kind: iter(row[f"{kind}s"]) for kind in ("image", "audio", "video")}
    messages = []
    for message in row["messages"]:
        filled = {"role": message["role"], "content": message["content"]}
        if not isinstance(message["content"], str):
            filled["content"] = [
                part if part["type"] == "text" else {"type": part["type"], part["type"]: next(media[part["type"]])}
                for part in message["content"]
            ]
        if message.get("tool_calls"):
            filled["tool_calls"] = json.loads(message["tool_calls"])
        messages.append(filled)
    return messages
