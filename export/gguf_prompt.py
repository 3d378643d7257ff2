"""Conversations as llama.cpp takes them: a prompt in which a marker stands for each picture and sound, and these beside it.

llama.cpp writes `<image>` and `</image>` around a picture by itself, and cuts a larger one up as the "overview" layout says; around
sound it writes nothing, so `<audio>` and `</audio>` stand in the prompt. The "grid" layout comes from crops that are cut before: one
crop is a picture that is not cut again.
"""

import re
from typing import Literal

import numpy as np

from export.gguf_tokenizer import strip_swallowed

MARKER = "<__media__>"  # mtmd's default


def prepare(
    processor, messages: list[dict], image_layout: Literal["overview", "grid"], marker: str = MARKER, **options
) -> tuple[str, list[np.ndarray]]:
    """The prompt for an answer to `messages`, and its media in order.

    Args:
        processor: an EagleProcessor.
        messages: as its `apply_chat_template` takes them, with media; `options` (such as `tools`) are handed on to it.
        marker: what stands for a medium; text that holds it is refused.

    Returns the prompt, and pictures as uint8 (height, width, 3), sounds as float32 (samples,) at 16 kHz of at most 30 s.

    Raises ValueError for damaged media, and for text that holds the marker.
    """
    loaded = processor.load_media(messages)
    parts = [part for message in loaded if not isinstance(message["content"], str) for part in message["content"] or []]
    media = iter([part[part["type"]] for part in parts if part["type"] in ("image", "audio")])
    rendered = processor.apply_chat_template(loaded, tokenize=False, add_generation_prompt=True, **options)
    if marker in rendered:
        raise ValueError(f"the text holds {marker!r}, which stands for a picture or a sound in llama.cpp's prompts; take it out")
    prompt, bitmaps = "", []
    for piece in re.split(r"(<\|image_pad\|>|<\|audio_pad\|>)", rendered):
        if piece == processor.image_token:
            rows, cut = cut_picture(processor.image_processor, next(media), image_layout)
            piece = "\n".join([marker * (len(cut) // rows)] * rows)
            bitmaps += cut
        elif piece == processor.audio_token:
            cut = cut_sound(next(media), processor.feature_extractor.n_samples)
            piece = f"<audio>{marker}</audio>" * len(cut)
            bitmaps += cut
        prompt += piece
    return strip_swallowed(processor.tokenizer, prompt), bitmaps


def cut_picture(image_processor, picture, image_layout: str) -> tuple[int, list[np.ndarray]]:
    """Rows of crops, and the pictures to give: the crops of the grid, or the whole one, which llama.cpp cuts up itself."""
    array = image_processor.to_rgb(image_processor.fetch_images(picture))
    if image_layout == "overview":
        return 1, [array]
    rows, _ = image_processor.get_crop_grid(*array.shape[:2], image_layout)
    return rows, list(image_processor.cut(array, image_layout, None))


def cut_sound(sound: np.ndarray, length: int) -> list[np.ndarray]:
    """Windows of `length` samples as the processor makes them, a full one without its last 161.

    llama.cpp puts 30 s of silence behind a sound and takes every 30 s that this fills, so that a window of 29.99 s or more would be
    followed by one of silence.
    """
    return [sound[start : start + length][: length - 161] for start in range(0, len(sound), length)]
