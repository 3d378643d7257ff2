"""Requests of text, pictures and sound as the processor would give them, of random numbers, for tiny models of conftest.py."""

import torch

IMAGE, AUDIO, PAD = 16, 17, 0
CROP = [10, *[IMAGE] * 8, 11]  # <image> 8 placeholders </image>


def sound(*seconds, window=2):
    """Random log-mel windows (W, 80, frames) and the mask of the frames that hold sound, for windows of these lengths."""
    frames = torch.tensor([round(100 * length) for length in seconds])
    mask = (torch.arange(100 * window) < frames[:, None]).long()
    return {"input_features": torch.randn(len(seconds), 80, 100 * window), "input_features_mask": mask}


def window(tokens):
    return [14, *[AUDIO] * tokens, 15]  # <audio> placeholders </audio>


def pad_left(*rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def mixed_sample(crops=1, seconds=(1.0,), text=(50, 51, 52)):
    """One sample of text, crops and windows of sound, as the processor would give it."""
    torch.manual_seed(len(text) + 10 * crops)
    tokens = [-(-round(100 * length) // 32) for length in seconds]
    ids = [30, *CROP * crops, *text, *[token for count in tokens for token in window(count)], 31]
    return {**pad_left(ids), "pixel_values": torch.randn(crops, 3, 56, 56), **sound(*seconds)}


def batch_of(*samples):
    rows = [sample["input_ids"][0].tolist() for sample in samples]
    media = ("pixel_values", "input_features", "input_features_mask")
    return pad_left(*rows) | {name: torch.cat([sample[name] for sample in samples]) for name in media}


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


def lively_decoder(model):
    """Larger output rows, so that a random decoder writes transcripts that differ from window to window."""
    torch.manual_seed(3)
    torch.nn.init.normal_(model.model.audio_tower.decoder.embed_tokens.weight, std=1.0)
    for layer in model.model.audio_tower.decoder.layers:
        torch.nn.init.normal_(layer.encoder_attn.out_proj.weight, std=1.0)
        torch.nn.init.normal_(layer.encoder_attn.v_proj.weight, std=1.0)
    return model
