"""Conversations to tensors: the processor's inputs, with labels on what the assistant says, and batches of them."""

import json
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

PADDED = {"input_ids": None, "attention_mask": 0, "labels": -100}  # names of (tokens,) tensors and what pads them
TRANSCRIPTS = ("audio_transcript_ids", "audio_transcript_mask")  # (windows, longest): padded, then one below the other


class EagleCollator:
    """Makes a right-padded batch of conversation rows, of rows that training/encode.py wrote, or of `features` of them.

    `labels` (batch, tokens) int64 hold the ids of the assistant's turns, end-of-turn token included, as the chat
    template's own `{% generation %}` mask marks them, and -100 elsewhere. Rows may differ in their media and tools.
    Raises ValueError for a row without a single label, which would train nothing.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [row.get("features", row) for row in rows]
        rows = [row if isinstance(row.get("labels"), torch.Tensor) else self.features(row) for row in rows]
        padding = PADDED | {"input_ids": self.processor.tokenizer.pad_token_id}
        batch = {
            name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
        for name in {name for row in rows for name in row} - set(padding):
            batch[name] = stack([row[name] for row in rows if name in row], padded=name in TRANSCRIPTS)
        return batch

    def features(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One row's tensors, its token-wise ones (tokens,).

        A conversation's media are pictures, waveforms and frames, or files as bytes or a path; `image_layout` and
        `audio_layout` override the processor's own. Where the audio tower's decoder makes the tokens, `meta` names what is
        said: "transcripts", one a window. `cell_words` (training/synthesis/dense.py) label the tokens of the first picture
        as well: it then teaches dozens of words where its answer holds three.
        """
        features = self.encoded(row) if "input_ids" in row else self.processed(row)
        if (features["labels"] == -100).all():
            raise ValueError("no token of the row is the assistant's")
        return features

    def processed(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        options = {key: row[key] for key in ("image_layout", "audio_layout") if key in row}
        if row.get("audios") and self.processor.audio_token_source == "decoder":
            options["audio_transcripts"] = from_json(row["meta"])["transcripts"]
        batch = dict(
            self.processor.apply_chat_template(
                [with_media(row)],
                tools=from_json(row.get("tools")),
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
                processor_kwargs=options,
            )
        )
        is_answer = batch.pop("assistant_masks").bool()
        batch["labels"] = batch["input_ids"].masked_fill(~is_answer, -100)
        features = {name: value[0] if name in PADDED else value for name, value in batch.items()}
        self.label_cells(features["input_ids"], features["labels"], row.get("cell_words", []))
        return features

    def label_cells(self, input_ids: torch.Tensor, labels: torch.Tensor, cell_words: list[str]) -> None:
        """Writes the last token of each cell's word into `labels` (tokens,), where the cell's own token predicts it."""
        positions = (input_ids == self.processor.image_token_id).nonzero().flatten().tolist()
        for position, word in zip(positions, cell_words, strict=False):
            if word:
                labels[position + 1] = self.processor.tokenizer(word, add_special_tokens=False).input_ids[-1]

    def encoded(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Of a row that training/encode.py wrote; its media tokens are (n, D) bfloat16."""
        input_ids = torch.tensor(row["input_ids"])
        features = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": torch.tensor(row["labels"])}
        for kind in ("image", "audio"):
            if tokens := row[f"{kind}_tokens"]:
                count = int((input_ids == getattr(self.processor, f"{kind}_token_id")).sum())
                features[f"{kind}_hidden_states"] = torch.frombuffer(bytearray(tokens), dtype=torch.bfloat16).view(count, -1)
        return features


def stack(tensors: list[torch.Tensor], padded: bool) -> torch.Tensor:
    """Media of several rows, one below the other; `padded` ones (n, length) are first brought to one length by zeros."""
    if padded:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors]
    return torch.cat(tensors)


def from_json(value: Any) -> Any:
    """What a column of JSON holds; what is an object already, or None, stays."""
    return json.loads(value) if isinstance(value, str) else value


def with_media(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's messages with each medium in the content part that shows it, and tool calls read from their JSON.

    Raises ValueError where a kind's media are more or fewer than the parts that show them.
    """
    media = {kind: list(row.get(f"{kind}s") or []) for kind in ("image", "audio", "video")}
    messages = []
    for message in row["messages"]:
        filled = {"role": message["role"], "content": message["content"]}
        if not isinstance(message["content"], str):
            filled["content"] = [
                {"type": "text", "text": part["text"]} if part["type"] == "text" else show(part["type"], media)
                for part in message["content"] or []
            ]
        if message.get("tool_calls"):
            filled["tool_calls"] = from_json(message["tool_calls"])
        messages.append(filled)
    if left := [f"{len(rest)} {kind}" for kind, rest in media.items() if rest]:
        raise ValueError(f"the messages do not show {' and '.join(left)} that the row holds")
    return messages


def show(kind: str, media: dict[str, list]) -> dict[str, Any]:
    if not media[kind]:
        raise ValueError(f"the messages show more {kind}s than the row holds")
    return {"type": kind, kind: media[kind].pop(0)}
