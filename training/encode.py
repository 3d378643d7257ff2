"""Reads rows of sources and encodes their media once, for stages in which towers and projectors stand still.

    python -m training.encode --model runs/start --paths world:sign data/tiny/speech --rows 4000 --seed 1 --output runs/encoded

Sources are those of a recipe (training/data.py). OUTPUT/<last part of the path>/ holds Parquet shards, one row a sample: `input_ids` and `labels` (tokens,), `image_tokens` and
`audio_tokens` (n, D) as bytes of bfloat16. A shard appears when it is complete; a killed run goes on with the next.
"""

import argparse
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor

from training import attention
from training.collator import EagleCollator
from training.data import BadRows, Mixture
from training.settings import fingerprint, keep
from training.synthesis import samples

BATCH, SHARD_BATCHES = 8, 8  # a shard is one row group, from which training makes batches of like length
SCHEMA = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("image_tokens", pa.binary()), ("audio_tokens", pa.binary())]
)


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


def encode_source(model, collator: EagleCollator, path: str, shards: int, seed: int, output: Path) -> None:
    """Writes the shards of the source that are not there yet; ValueError where those are another model's, or of other rows."""
    keep(output, {"path": path, "seed": seed, "model": fingerprint(model.name_or_path)})
    data = {path: {"path": path, "weight": 1}}
    bad_rows = BadRows(output / "bad_rows.jsonl", 0)
    mixture = Mixture(data, shards * SHARD_BATCHES, BATCH, seed, collator.features, bad_rows)
    for shard in tqdm(range(shards), desc=path, unit="shard"):
        file = output / f"shard-{shard:05d}.parquet"
        if file.exists():
            continue
        batches = [mixture.batch(shard * SHARD_BATCHES + i) for i in range(SHARD_BATCHES)]
        rows = [row for batch in batches for row in encode(model, collator(batch))]
        part = file.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), part, compression="zstd")
        os.replace(part, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint whose towers and projectors encode")
    parser.add_argument("--paths", nargs="+", default=[f"world:{skill}" for skill in samples.SKILLS], help="(default: all skills)")
    parser.add_argument("--rows", type=int, required=True, help="rows of each source, rounded up to shards of 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    model = AutoModelForMultimodalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    if model.device.type == "cpu":
        model.set_attn_implementation(attention.NAME)
    collator = EagleCollator(AutoProcessor.from_pretrained(args.model, trust_remote_code=True))
    for path in args.paths:
        output = args.output / path.rstrip("/").replace(":", "/").rpartition("/")[2]
        encode_source(model, collator, path, -(-args.rows // (BATCH * SHARD_BATCHES)), args.seed, output)


if __name__ == "__main__":
    main()
