"""eagle-tiny's tokenizer: reproducible, one token a word, codes letter by letter; our tokens in other tokenizers.

The chat template is tested in test_chat_template.py.
"""

import filecmp
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokenizer.build import BEFORE_ARGUMENTS, FILES, SPECIAL_TOKENS, extend
from training.synthesis import world

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT)


def test_rebuilding_gives_the_committed_bytes(tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "tokenizer.build", "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert filecmp.cmpfiles(ROOT / "tokenizer", tmp_path, FILES, shallow=False) == (list(FILES), [], [])


def test_root_holds_identical_copies():
    assert filecmp.cmpfiles(ROOT, ROOT / "tokenizer", FILES, shallow=False) == (list(FILES), [], [])


def test_loads_as_a_stock_class_without_remote_code(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert type(tokenizer).__module__.startswith("transformers.")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(ROOT / "tokenizer").get_vocab()
    assert (tokenizer.model_max_length, tokenizer.padding_side, tokenizer.chat_template[:3]) == (8192, "left", "{#-")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|end|>")
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer) <= 4096


def test_special_tokens_have_the_ids_the_model_is_trained_with(tokenizer):
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert tokenizer("".join(SPECIAL_TOKENS)).input_ids == list(range(len(SPECIAL_TOKENS)))


def test_decoding_an_answer_keeps_the_marks_of_tool_calls(tokenizer):
    answer = tokenizer('ok<|tool_call|>{"name": "open"}<|/tool_call|><|end|>').input_ids
    assert tokenizer.decode(answer, skip_special_tokens=True) == 'ok<|tool_call|>{"name": "open"}<|/tool_call|>'


def test_each_word_of_the_world_is_one_token(tokenizer):
    ids = tokenizer([form for word in world.WORDS for form in (word, " " + word)]).input_ids
    assert {len(tokens) for tokens in ids} == {1}


def test_newline_is_one_ordinary_token(tokenizer):
    assert tokenizer.tokenize("\n") == ["Ċ"]
    assert tokenizer.tokenize("open\n\nwindow") == ["open", "Ċ", "Ċ", "window"]


def test_digits_and_capitals_stay_single(tokenizer):
    assert tokenizer.tokenize("at 1250.75 K7PX9 OPEN") == ["at", *"Ġ1250.75", *"ĠK7PX9", *"ĠOPEN"]
    learned = tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS) + 256, len(tokenizer))))
    assert [token for token in learned if re.search(r"\d|[A-Z].*[A-Z]|Ġ[A-Z]|Ċ", token)] == []


def test_a_functions_first_parameter_stands_one_token_after_its_name(tokenizer):
    function = {"name": "paint_room", "description": "Paint.", "parameters": {"type": "object", "properties": {"day": {}}}}
    call = {"name": "paint_room", "arguments": {"day": "sunday"}}
    messages = [{"role": "user", "content": "paint"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tokens = tokenizer.tokenize(tokenizer.apply_chat_template(messages, tools=[function], tokenize=False))
    places = [place for place, token in enumerate(tokens) if token == BEFORE_ARGUMENTS]
    assert [tokens[place - 1 : place + 2] for place in places] == [["room", BEFORE_ARGUMENTS, "day"]] * 2


def test_any_text_survives(tokenizer):
    for text in ("  two  spaces\t\n ", "Übermäßig 東京 🦅 \x00\x7f", "a" * 1000, "open" + BEFORE_ARGUMENTS + "day"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def llama_style_tokenizer():
    """A tokenizer of Phi-3.5's layout: converted sentencepiece BPE with byte fallback and some of our tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_extending_a_llama_tokenizer_fills_the_spare_rows_in_order(tmp_path):
    plain = llama_style_tokenizer()
    plain.save_pretrained(tmp_path)
    extended = extend(tmp_path)
    added = [token for token in SPECIAL_TOKENS if token not in plain.get_vocab()]
    assert len(added) == len(SPECIAL_TOKENS) - 4
    assert extended.convert_tokens_to_ids(added) == list(range(len(plain), len(plain) + len(added)))
    assert {token: extended.get_vocab()[token] for token in plain.get_vocab()} == plain.get_vocab()
    assert (extended.eos_token, extended.pad_token, extended.padding_side) == ("<|end|>", "<|endoftext|>", "left")


def test_extending_keeps_each_special_token_whole_and_plain_text_as_it_was(tmp_path):
    plain = llama_style_tokenizer()
    plain.save_pretrained(tmp_path / "plain")
    extend(tmp_path / "plain").save_pretrained(tmp_path / "extended")
    extended = AutoTokenizer.from_pretrained(tmp_path / "extended")
    assert extended("hello there\n").input_ids == plain("hello there\n").input_ids
    spans = extended("<image><|image_pad|></image>\n<|end|>", add_special_tokens=False).input_ids
    assert extended.convert_ids_to_tokens(spans)[:3] == ["<image>", "<|image_pad|>", "</image>"]
    assert extended.convert_ids_to_tokens(spans)[-1] == "<|end|>"
    message = [{"role": "user", "content": "hello"}]
    assert extended.apply_chat_template(message, tokenize=False) == "<|user|>\nhello<|end|>\n"
