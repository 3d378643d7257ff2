"""A tokenizer of `tokenizers` as llama.cpp reads it from a GGUF file.

llama.cpp has its own implementations of two kinds of byte-pair encoding. "gpt2" is byte-level, after GPT-2's pre-tokenizer:
eagle-tiny's. "llama" is sentencepiece's: spaces become "▁", and bytes that no piece covers are pieces of their own: Phi-3.5's. It
joins the pair whose piece has the highest score first, where `tokenizers` takes the first of its list of merges.
"""

import itertools
import json
import re

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SENTENCEPIECE = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, end_ids: list[int]) -> None:
    """Writes vocabulary, merges or scores, special ids and chat template.

    Args:
        rows: of the embedding; those beyond the vocabulary become unused tokens.
        end_ids: tokens that end an answer, the first of them the end of a turn.

    Raises ValueError for a tokenizer that llama.cpp would imitate wrongly.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = kind_of(described)
    tokens = [tokenizer.convert_ids_to_tokens(i) if i < len(tokenizer) else f"<|unused{i}|>" for i in range(rows)]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("gpt-2" if kind == "gpt2" else "default")
    writer.add_token_list(tokens)
    writer.add_token_types(token_types(described, tokens, len(tokenizer)))
    if kind == "gpt2":
        writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    else:
        check_scores(described["model"])
        writer.add_token_scores([-float(i) for i in range(rows)])
        writer.add_add_space_prefix(True)
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(end_ids[0])
    writer.add_eot_token_id(end_ids[0])
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    writer.add_chat_template(stripped_template(tokenizer))


def greedy_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Added tokens that swallow the whitespace after them, as Phi-3.5's roles do and llama.cpp's tokens do not."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.rstrip]


def strip_swallowed(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text without such whitespace: the tokenizer makes the same ids of it, and llama.cpp does too."""
    tokens = "|".join(map(re.escape, greedy_tokens(tokenizer)))
    return re.sub(rf"({tokens})\s+", r"\1", text) if tokens else text


def stripped_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template, which then writes no line break after such a token. (Text of the user's cannot hold one.)"""
    swallowed = "".join(f' | replace("{token}\\n", "{token}")' for token in greedy_tokens(tokenizer))
    if not swallowed:
        return tokenizer.chat_template
    return f"{{%- set rendered -%}}{tokenizer.chat_template}{{%- endset -%}}{{{{- rendered{swallowed} -}}}}"


def kind_of(described: dict) -> str:
    """llama.cpp's name of a tokenizer's kind, from its tokenizer.json."""
    model, normalizer, pre = described["model"], described["normalizer"], described["pre_tokenizer"]
    if model["type"] == "BPE" and not model["ignore_merges"]:
        if not model["byte_fallback"] and normalizer is None and pre == BYTE_LEVEL:
            return "gpt2"
        if model["byte_fallback"] and normalizer == SENTENCEPIECE and pre is None:
            return "llama"
    raise ValueError(
        f"the tokenizer is a {model['type']} with normalizer {normalizer} and pre-tokenizer {pre}; llama.cpp computes the same for a "
        "byte-level BPE without prefix space (eagle-tiny's) and for sentencepiece's BPE with byte fallback (Phi-3.5's)"
    )


def token_types(described: dict, tokens: list[str], used: int) -> list[TokenType]:
    """What llama.cpp does with each token: it looks for special ones where it is asked to, for other added ones always."""
    types = [TokenType.NORMAL if i < used else TokenType.UNUSED for i in range(len(tokens))]
    if described["model"]["byte_fallback"]:
        for byte in range(256):
            types[described["model"]["vocab"][f"<0x{byte:02X}>"]] = TokenType.BYTE
    for token in described["added_tokens"]:
        is_unknown = token["content"] == described["model"]["unk_token"]
        added = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        types[token["id"]] = TokenType.UNKNOWN if is_unknown else added
    return types


def check_scores(model: dict) -> None:
    """Raises ValueError unless an earlier merge makes a piece of a lower id, so that ids tell the order of the merges."""
    made = [model["vocab"]["".join(pair)] for pair in model["merges"]]
    for earlier, later in itertools.pairwise(made):
        if later < earlier:
            raise ValueError(
                f"the tokenizer's merges make piece {earlier} before piece {later}; llama.cpp joins by the order of the ids, so "
                "they must rise, as in a converted sentencepiece model"
            )
