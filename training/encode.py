"""Draws rows of skills and encodes their media once, for stages in which towers and projectors stand still.

    python -m training.encode --model runs/start --skills sign code --rows 4000 --seed 1 --output runs/encoded/reading

The output is a folder of `datasets`, one row a sample: `input_ids` and `labels` (tokens,), `image_tokens` and
`audio_tokens` (n, D) as bytes of bfloat16, and its `skill`. Rows of a skill lie sorted by length within each stretch of
BATCH x BATCHES, so that neighbours make a batch with little padding.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor

from training import attention
from training.collator import EagleCollator
from training.data import world_dataset
from training.synthesis import samples

BATCH, BATCHES = 8, 8


@torch.inference_mode()
def encode(model, batch: dict[str, torch.Tensor]) -> list[dict]:
    """The rows of one collated batch, without padding and with their media encoded."""
    with torch.autocast(model.device.type, torch.bfloat16):
        image, audio = image_tokens(model, batch), audio_tokens(model, batch)
    rows = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True):
        counts = [int((ids[mask] == token).sum()) for token in (model.config.image_token_id, model.config.audio_token_id)]
        rows.append({"input_ids": ids[mask].tolist(), "labels": labels[mask].tolist()})
        rows[-1] |= {"image_tokens": to_bytes(image[: counts[0]]), "audio_tokens": to_bytes(audio[: counts[1]])}
        image, audio = image[counts[0] :], audio[counts[1] :]
    return rows


def image_tokens(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(n, D), empty without pictures."""
    if "pixel_values" not in batch:
        return torch.empty(0)
    return model.get_image_features(batch["pixel_values"].to(model.device)).pooler_output.flatten(0, 1)


def audio_tokens(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(n, D), empty without sound."""
    if "input_features" not in batch:
        return torch.empty(0)
    inputs = [batch[name].to(model.device) for name in ("input_features", "input_features_mask")]
    return model.get_audio_features(*inputs).pooler_output


def to_bytes(tokens: torch.Tensor) -> bytes:
    return tokens.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()


def encoded_rows(model_path: str, skills: tuple[str, ...], rows: int, seed: int) -> Iterator[dict]:
    """`rows` rows of each skill, in turns."""
    model = AutoModelForMultimodalLM.from_pretrained(model_path, trust_remote_code=True, dtype=torch.float32)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    if model.device.type == "cpu":
        model.set_attn_implementation(attention.NAME)
    collator = EagleCollator(AutoProcessor.from_pretrained(model_path, trust_remote_code=True))
    stretches = -(-rows // (BATCH * BATCHES))
    for stretch in tqdm(range(stretches)):
        for skill in skills:
            drawn = world_dataset({skill: 1}, BATCHES, BATCH, f"{seed}/{stretch}")
            batches = [drawn[i : i + BATCH] for i in range(0, len(drawn), BATCH)]
            encoded = [row for batch in batches for row in encode(model, collator(unstacked(batch)))]
            yield from ({**row, "skill": skill} for row in sorted(encoded, key=lambda row: len(row["input_ids"])))


def unstacked(columns: dict[str, list]) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint whose towers and projectors encode")
    parser.add_argument("--skills", nargs="+", choices=samples.SKILLS, default=list(samples.SKILLS))
    parser.add_argument("--rows", type=int, required=True, help="rows of each skill, rounded up to stretches of 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output} is there already; remove it, or name another folder")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    drawn = {"model_path": args.model, "skills": tuple(args.skills), "rows": args.rows, "seed": args.seed}
    with tempfile.TemporaryDirectory(dir=args.output.parent) as beside:
        rows = Dataset.from_generator(encoded_rows, gen_kwargs=drawn, cache_dir=beside)
        rows.save_to_disk(f"{beside}/done")
        os.replace(f"{beside}/done", args.output)


if __name__ == "__main__":
    main()
