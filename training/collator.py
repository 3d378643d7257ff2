"""Rows of conversations to batches: the processor's inputs, and labels on what the assistant says."""

import json
from typing import Any

import torch


class EagleCollator:
    """Makes a right-padded batch of rows (columns `messages`, `images`, `audios`, `videos`; see training/data.py).

    `labels` (batch, tokens) int64 hold the ids of the assistant's turns, end-of-turn token included, as the chat
    template's own `{% generation %}` mask marks them, and -100 elsewhere. Raises ValueError for a batch without a
    single label, which would train nothing.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        layouts = {key: rows[0][key] for key in ("image_layout", "audio_layout") if key in rows[0]}
        batch = self.processor.apply_chat_template(
            [with_media(row) for row in rows],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding_side": "right", **layouts},
        )
        is_answer = batch.pop("assistant_masks").bool()
        if not is_answer.any():
            raise ValueError(f"no token of this batch is the assistant's; its first row is {rows[0]['messages']}")
        batch["labels"] = batch["input_ids"].masked_fill(~is_answer, -100)
        return dict(batch)


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
