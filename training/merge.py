"""Adds an adapter of `training.sft` (LoRA) to the checkpoint that it was trained on: a checkpoint like any other.

    python -m training.merge --adapter runs/lora --output runs/merged
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor

from training.settings import SETTINGS


def merge(adapter: Path, output: Path, model: str | None = None) -> None:
    """Writes the merged checkpoint to `output`; `model` overrides the base that the adapter names.

    The sum is taken in float32, and stays so where it was trained with `quantization`, since bfloat16 would be rounded to
    other weights; else it becomes bfloat16. A base that was trained in 4 bits is merged as it was before these.
    """
    base = model or PeftConfig.from_pretrained(adapter).base_model_name_or_path
    loaded = AutoModelForMultimodalLM.from_pretrained(base, trust_remote_code=True, dtype=torch.float32)
    merged = PeftModel.from_pretrained(loaded, adapter).merge_and_unload(safe_merge=True)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    settings = adapter / SETTINGS
    is_quantized = settings.is_file() and json.loads(settings.read_text())["quantization"]
    merged.to(torch.float32 if is_quantized else torch.bfloat16).save_pretrained(part)
    AutoProcessor.from_pretrained(adapter, trust_remote_code=True).save_pretrained(part)
    os.replace(part, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="output folder of a run with `lora`")
    parser.add_argument("--model", help="the checkpoint it was trained on, if it no longer lies where the adapter says")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output} is there already; remove it, or name another folder")
    merge(args.adapter, args.output, args.model)


if __name__ == "__main__":
    main()
