"""Train eagle-tiny's tokenizer, or give another tokenizer EAGLE's special tokens. Run from the root:

    python -m tokenizer.build                                   # eagle-tiny: tokenizer/ and its copies at the root
    python -m tokenizer.build --from microsoft/Phi-3.5-mini-instruct --output out/tokenizer

eagle-tiny's is a byte-level BPE with GPT-2's pre-tokenizer, which llama.cpp knows as `gpt-2`. Every word of the small
world is one token, with and without the space before it. Digits and capitals stay single: the training text holds no
digit and no two capitals in a row, so that codes are always read letter by letter.
"""

import argparse
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from training.synthesis import world

ROOT = Path(__file__).resolve().parent.parent
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

# In the order of their ids in eagle-tiny, 0 to 17; other tokenizers get the ones they lack, in this order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_call|>",
    "<|/tool_call|>", "<|tool_response|>", "<image>", "</image>", "<slice>", "</slice>", "<audio>", "</audio>",
    "<|image_pad|>", "<|audio_pad|>",
)
# Markers of the answer itself: decoding with skip_special_tokens=True must keep them, or calls read as plain JSON.
KEPT_IN_ANSWERS = ("<|tool_call|>", "<|/tool_call|>")
# eagle-tiny's alone: between a function's name and its first parameter stands one token, in definitions and in calls, where
# the pre-tokenizer makes five. It finds what follows a name by the tokens right before, and over five it did not (docs/LOG.md).
BEFORE_ARGUMENTS = '", "arguments": {"'

MAX_VOCABULARY = 4096
MODEL_MAX_LENGTH = 8192

SAID_ONLY = ("a", "an", "to", "for")  # in questions and requests, though not in the world's list of words
# What opens a sentence or is a name: these words are single tokens with a capital too.
CAPITALISED = (
    *world.FUNCTION_WORDS, *world.VERBS, *world.TALK, *world.HOUSE, *sorted(world.PROPER), "in", "at", "book", "day",
)
TOOL_WORDS = (
    "arguments", "function", "parameters", "properties", "description", "type", "object", "array", "string", "integer",
    "boolean", "required", "enum", "items", "minimum", "maximum", "null", "result", "error", "ok", "status", "unit",
    "device", "area", "vehicle", "instrument", "animal", "expert", "task", "route",
)
TOOL_LINES = (
    '{"name": "turn_on", "arguments": {"room": "kitchen", "list": ["milk", "bread"]}}',
    '[{"type": "function", "function": {"name": "open", "description": "open the door.", "parameters": {"type": ',
    '"object", "properties": {"room": {"type": "string", "enum": ["kitchen", "hall"]}, "door": {"type": "string"}}, ',
    '"required": ["room", "door"]}}}, {"properties": {"room": {"enum": ["hall"]}}, "required": []}}}, ',
    '{"properties": {"room": {"type": "string"}}, "required": ["room"]}}}]',
    '{"name": "list", "arguments": {}}',
    '{"result": "ok", "error": null, "list": [], "open": true, "closed": false}',
    "what is the price? it is high, very high. say: yes! \"no\", the king said; it's the queen's.",
)


def special_token(text):
    return AddedToken(text, special=text not in KEPT_IN_ANSWERS, normalized=False)


def training_text():
    """Yield the lines that eagle-tiny's tokenizer is trained on; a merge needs two occurrences."""
    for word in (*world.WORDS, *SAID_ONLY, *TOOL_WORDS):
        yield from (" " + word, " " + word, " " + word, word, word)
    for line in (*map(str.capitalize, CAPITALISED), *TOOL_LINES):
        yield from (line, line)


def train():
    """Train eagle-tiny's tokenizer. The same code gives the same bytes; returns a `PreTrainedTokenizerFast`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=2,
        special_tokens=[special_token(text) for text in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(training_text(), trainer)
    backend.add_tokens([special_token(text) for text in KEPT_IN_ANSWERS])  # the trainer marks every one as special
    backend.add_tokens([AddedToken(BEFORE_ARGUMENTS, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|end|>",
        padding_side="left",
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(),
    )


def chat_template():
    return (ROOT / "chat_template.jinja").read_text(encoding="utf-8")


def extend(source):
    """Load a tokenizer, of a folder or by its Hub name, and `add_specials`."""
    return add_specials(AutoTokenizer.from_pretrained(source))


def add_specials(tokenizer):
    """Give a tokenizer the special tokens it lacks, EAGLE's chat template and left padding; returns it.

    Tokens take the next free ids in the order of `SPECIAL_TOKENS`: in Phi-3.5 (32,064 rows, 32,011 used) the ids from
    32,011 on, so the model needs no resizing.
    """
    present = tokenizer.get_vocab()
    tokenizer.add_tokens([special_token(text) for text in SPECIAL_TOKENS if text not in present])
    tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", "<|end|>"
    tokenizer.padding_side = "left"
    tokenizer.chat_template = chat_template()
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", help="folder or Hub name of a tokenizer to extend; without it, train")
    parser.add_argument("--output", type=Path, help="folder to write; by default tokenizer/ and copies at the root")
    options = parser.parse_args()
    if options.source and not options.output:
        parser.error("--from needs --output: the files in tokenizer/ are eagle-tiny's")
    tokenizer = extend(options.source) if options.source else train()
    folder = options.output or ROOT / "tokenizer"
    tokenizer.save_pretrained(folder)
    if not options.output:
        for name in FILES[:2]:
            shutil.copyfile(folder / name, ROOT / name)
    print(f"{len(tokenizer)} tokens in {folder}")


if __name__ == "__main__":
    main()
