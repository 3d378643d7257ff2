"""Builds a checkpoint from a preset: configuration, weights, processor and code in one folder that `from_pretrained` loads.

    python -m training.assemble --preset eagle-tiny --weights runs/towers-vision runs/towers-audio --output runs/start

Weights that no `--weights` folder holds start at random; of several folders that hold one the last counts. A folder is
what a tower stage or another stage wrote.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

ROOT = Path(__file__).parents[1]
TOKEN_SCALE = 0.5  # root mean square of a text token's embedding at the start, near that of the towers' tokens


def assemble(preset: str, weights: list[Path], output: Path, seed: int) -> None:
    """Writes the checkpoint to `output`.

    Raises ValueError for a weight that the model has no place for, and for a preset whose vocabulary is not the one that
    lies here.
    """
    model_class = get_class_from_dynamic_module("modeling_eagle.EagleForConditionalGeneration", str(ROOT))
    config = model_class.config_class.from_json_file(ROOT / "configs" / f"{preset}.json")
    processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"the preset {preset!r} has its image placeholder at {config.image_token_id}, but the tokenizer of this "
            f"repository at {processor.image_token_id}; 'eagle-tiny' is the preset that goes with it"
        )
    torch.manual_seed(seed)
    model = model_class(config)
    scale_embeddings(model)
    for folder in weights:
        named = {name.removeprefix("model."): w for name, w in load_file(folder / "model.safetensors").items()}
        unexpected = model.model.load_state_dict(named, strict=False).unexpected_keys
        if unexpected:
            raise ValueError(f"{folder} holds {unexpected[0]!r}, which the preset {preset!r} has no place for")
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)
    print(f"{output}: {sum(p.numel() for p in model.parameters()):,} parameters")


@torch.no_grad()
def scale_embeddings(model: torch.nn.Module) -> None:
    """Gives text tokens TOKEN_SCALE and takes it from the final norm, so that the logits stay as they are.

    At the usual 0.02 text is far smaller than picture tokens (0.6) and than the first layer's output, which buries which
    token stands where (docs/LOG.md).
    """
    factor = TOKEN_SCALE / model.get_input_embeddings().weight.pow(2).mean().sqrt()
    model.get_input_embeddings().weight *= factor
    model.model.language_model.norm.weight /= factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="eagle-tiny")
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="folders with a model.safetensors each")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    assemble(args.preset, args.weights, args.output, args.seed)


if __name__ == "__main__":
    main()
