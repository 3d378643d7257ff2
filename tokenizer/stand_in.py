"""Tokenizers with the layout of Phi-3.5's and Whisper's, for a machine without the Hub: same rows, same ids of the special
tokens, same way of cutting text up, but pieces learned from the small world. Weights trained with the real ones do not fit.

    from tokenizer import stand_in
    stand_in.language_tokenizer().save_pretrained("phi")
"""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from tokenizer.build import training_text

PIECES = 32_000  # of Phi-3.5, before its added tokens
PHI_ADDED = (
    "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>",
    "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>",
)
TRANSCRIPT_PIECES = 50_257  # of Whisper (multilingual), before its added tokens
WHISPER_ADDED = (
    "<|startoftranscript|>", *(f"<|{language}|>" for language in list(LANGUAGES)[:99]), "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>", *(f"<|{i * 0.02:.2f}|>" for i in range(1501)),
)


def padded(pieces: list[str], count: int) -> dict[str, int]:
    """The vocabulary {piece: id} of `pieces`, filled up with unused entries."""
    names = [*pieces, *(f"<unused{i}>" for i in range(count - len(pieces)))]
    return {name: index for index, name in enumerate(names)}


def language_tokenizer() -> PreTrainedTokenizerFast:
    """Phi-3.5's layout, 32,011 entries: a converted sentencepiece BPE with byte fallback; its roles take the space after."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(training_text(), trainers.BpeTrainer(min_frequency=2, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocabulary = padded(pieces, PIECES)
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_special_tokens(
        [AddedToken(text, rstrip=text != "<|endoftext|>", normalized=False, special=True) for text in PHI_ADDED]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )


def transcript_tokenizer() -> WhisperTokenizer:
    """Whisper's layout, 51,865 entries: bytes, unused pieces, then its languages, tasks and times."""
    vocabulary = padded(sorted(pre_tokenizers.ByteLevel.alphabet()), TRANSCRIPT_PIECES)
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in WHISPER_ADDED])
    return tokenizer
