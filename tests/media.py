"""The processor that tests use, and sounds, pictures and conversations to give it."""

import io

import numpy as np
import soundfile
from conftest import ROOT
from eagle.image_processing_eagle import EagleImageProcessor
from eagle.processing_eagle import EagleProcessor
from transformers import AutoTokenizer, WhisperFeatureExtractor

IMAGE, AUDIO, VIDEO = "<|image_pad|>", "<|audio_pad|>", "<|video_pad|>"
CROP = f"<image>{IMAGE * 128}</image>"
ASK = {"type": "text", "text": "what is it?"}


def build(**options):
    tokenizer = AutoTokenizer.from_pretrained(ROOT)
    parts = EagleImageProcessor(), WhisperFeatureExtractor(), tokenizer
    return EagleProcessor(*parts, chat_template=tokenizer.chat_template, **options)


PROCESSOR = build()
TOKENIZER = PROCESSOR.tokenizer


def tone(seconds, rate=16000, pitch=440.0):
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def picture(height=100, width=100, value=90):
    return np.full((height, width, 3), value, np.uint8)


def chat(messages, **kwargs):
    return PROCESSOR.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)


def user(*content):
    return [{"role": "user", "content": list(content)}]


def audio_span(*counts):
    return "".join(f"<audio>{AUDIO * count}</audio>" for count in counts)


def wav(samples, rate, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=options.pop("format", "WAV"), **options)
    return buffer.getvalue()
