"""Adds an adapter of `training.sft` (LoRA) to the checkpoint that it was trained on: a checkpoint like any other.

    python -m training.merge --adapter runs/lora --output runs/merged
    python -m training.merge --adapter runs/lora-q4 --output runs/merged-q4 --dtype float32
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor


def merge(adapter: Path, output: Path, model: str | None = None, dtype: str = "bfloat16") -> None:
    """Writes the merged checkpoint to `output`; `model` overrides the base that the adapter names.

    The sum is taken in float32, and must stay so where it was trained with `quantization`: bfloat16 would be rounded to
    other weights. A base that was trained in 4 bits is merged as it was before these.
    """
    base = model or PeftConfig.from_pretrained(adapter).base_model_name_or_path
    loaded = AutoModelForMultimodalLM.from_pretrained(base, trust_remote_code=True, dtype=torch.float32)
    merged = PeftModel.from_pretrained(loaded, adapter).merge_and_unload(safe_merge=True)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    merged.to(getattr(torch, dtype)).save_pretrained(part)
    AutoProcessor.from_pretrained(adapter, trust_remote_code=True).save_pretrained(part)
    os.replace(part, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="output folder of a run with `lora`")
    parser.add_argument("--model", help="the checkpoint it was trained on, if it no longer lies where the adapter says")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="float32 after training with `quantization`")
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output} is there already; remove it, or name another folder")
    merge(args.adapter, args.output, args.model, args.dtype)


if __name__ == "__main__":
    main()
