"""Conversations said in other words or in another language by a model: the paper's semi-synthetic data (section II.C).

    python -m training.synthesis.rephrase --shards data/chats --model Qwen/Qwen3-4B --output data/chats-rephrased
    python -m training.synthesis.rephrase --shards data/chats --model Qwen/Qwen3-4B --task translate --language German \\
        --output data/chats-german

Reads Parquet shards of conversation rows (training/shards.py) and has a causal language model of transformers write
every text of the user and the assistant anew. Turns, media, tools, calls and their results stay as they are; so do texts
without a word (numbers, codes), and texts for which the model writes nothing or finds no end: `meta` counts these as
`kept`, of `texts`, beside `task`, `language` and `model`. On one kind of machine the same seed gives the same bytes.
"""

import argparse
import copy
import functools
import hashlib
import json
import re

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import shards

NAME = "eagle-rephrased"
TASKS = {
    "rephrase": "Say the text that the user gives you in other words, in {language}. Keep its meaning, its names, its "
    "numbers, and whether it asks, asks for something, or tells. Answer with the new text only.",
    "translate": "Translate the text that the user gives you into {language}. Keep its names and numbers, and whether it "
    "asks, asks for something, or tells. Answer with the translation only.",
}
TEMPERATURE = 0.7
SPARE_TOKENS = 32  # a new text may have twice the tokens of the old one and these


@functools.lru_cache(maxsize=1)
def load(model: str):
    """The model and its tokenizer, once a process."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    on_gpu = torch.cuda.is_available()
    dtype = "auto" if on_gpu else torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True, dtype=dtype)
    return loaded.to("cuda" if on_gpu else "cpu").eval(), tokenizer


@torch.inference_mode()
def rewrite(model: str, system: str, texts: list[str], seed: str) -> list[str | None]:
    """Each text as the model writes it, None where it writes nothing or does not come to an end in time."""
    loaded, tokenizer = load(model)
    prompts = [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in texts]
    form = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "padding": True, "return_tensors": "pt"}
    inputs = tokenizer.apply_chat_template(prompts, **form).to(loaded.device)
    torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big", signed=True))
    limits = [2 * len(ids) + SPARE_TOKENS for ids in tokenizer(texts).input_ids]
    ids = loaded.generate(**inputs, max_new_tokens=max(limits), do_sample=True, temperature=TEMPERATURE, top_k=0)
    ends = loaded.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    new = [row[inputs["input_ids"].shape[1] :][:limit].tolist() for row, limit in zip(ids, limits, strict=True)]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() or None if ends & set(row) else None for row in new]


def rewritable(row: dict) -> list[dict]:
    """The text parts of the row that a person or the assistant says and that hold a word."""
    messages = [message for message in row["messages"] if message["role"] in ("user", "assistant")]
    parts = [part for message in messages for part in message["content"]]
    return [part for part in parts if part["type"] == "text" and re.search(r"[^\W\d_]{2}", part["text"])]


def draw(paths: tuple[str, ...], model: str, task: str, language: str, seed: int, index: int) -> dict:
    """The row of that number of the shards, rewritten."""
    row = copy.deepcopy(read(paths)[index])  # the rows that were read are kept
    parts = rewritable(row)
    kept = 0
    if parts:
        system = TASKS[task].format(language=language)
        new = rewrite(model, system, [part["text"].strip() for part in parts], f"{seed}/{index}")
        for part, text in zip(parts, new, strict=True):
            blanks = re.fullmatch(r"(\s*).*?(\s*)", part["text"], re.DOTALL)
            part["text"] = blanks[1] + text + blanks[2] if text else part["text"]
        kept = new.count(None)
    said = {"task": task, "language": language, "model": model, "texts": len(parts), "kept": kept}
    meta = json.loads(row["meta"] or "{}") | said
    new = {"id": f"{row['id']}/{task}/{language}", "meta": shards.to_json(meta)}
    return row | new | {"speech": None}  # what there is says the old text


@functools.lru_cache(maxsize=1)
def read(paths: tuple[str, ...]) -> shards.Rows:
    return shards.Rows(paths)


def licences(paths: tuple[str, ...]) -> str:
    """Those of all rows."""
    found = {name for path in paths for name in pq.read_table(path, columns=["license"])["license"].to_pylist()}
    return ", ".join(sorted(map(str, found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards.add_arguments(parser, rows=None, rows_help="rows to rewrite, from the first on")
    parser.add_argument("--shards", nargs="+", required=True, help="a folder of Parquet shards, or files")
    parser.add_argument("--model", required=True, help="a causal language model with a chat template")
    parser.add_argument("--task", choices=TASKS, default="rephrase")
    parser.add_argument("--language", default="English", help="of the new texts (default: English)")
    args = parser.parse_args()
    paths = tuple(shards.shard_files(args.shards[0] if len(args.shards) == 1 else args.shards))
    args.rows = min(args.rows or len(read(paths)), len(read(paths)))
    args.processes = args.processes or 1  # each holds the model
    digests = [shards.file_sha256(path) for path in paths]
    options = {"shards": digests, "model": args.model, "task": args.task, "language": args.language}
    draw_row = functools.partial(draw, paths, args.model, args.task, args.language, args.seed)
    written = {"source": NAME, "license": licences(paths), "options": options, "labels": ("task", "language", "kept")}
    shards.write_shards(draw_row, **written, **shards.arguments(args))


if __name__ == "__main__":
    main()
