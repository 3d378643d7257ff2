"""THE table of formats that weights are shipped in, and what exactly each makes of a tensor.

Training, evaluation, export and documentation read it here. The formats are llama.cpp's: a row is cut into blocks of 32
weights, and a block is stored as small whole numbers beside one or two float16 values. `rounded` gives the weights that
llama.cpp reads back, bit for bit (sources: gguf-py's quants.py, ggml's ggml-quants.c; tests compare with both).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

BLOCK = 32  # weights that share a scale


def half(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def largest(blocks: torch.Tensor) -> torch.Tensor:
    """(..., 32) -> (..., 1): the value that is largest in size, with its sign; of several the first."""
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale; 0 where the stored scale is 0, and with it every weight of the block, however small the divisor."""
    return torch.where(half(scale) == 0, 0.0, 1 / scale)


def symmetric(levels: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """2 * levels whole numbers, -levels being the block's largest weight."""

    def round_blocks(blocks: torch.Tensor) -> torch.Tensor:
        scale = largest(blocks) / -levels
        whole = torch.trunc(blocks * inverse(scale) + (levels + 0.5)).clamp_(0, 2 * levels - 1)
        return (whole - levels) * half(scale)

    return round_blocks


def asymmetric(blocks: torch.Tensor) -> torch.Tensor:
    """16 whole numbers from the block's smallest weight to its largest."""
    low = blocks.amin(-1, keepdim=True)
    scale = (blocks.amax(-1, keepdim=True) - low) / 15
    whole = torch.trunc((blocks - low) * inverse(scale) + 0.5).clamp_(0, 15)
    return whole * half(scale) + half(low)


def eight_bits(blocks: torch.Tensor) -> torch.Tensor:
    """-127 to 127; halves are rounded away from zero, as C's roundf does."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    exact = blocks * inverse(scale)
    size = exact.abs()
    floor = size.floor()
    return exact.sign() * (floor + (2 * (size - floor)).floor()) * half(scale)


@dataclass(frozen=True)
class Format:
    """How a tensor is stored.

    ggml: the type's name in ggml. bits: of a weight, scales included. block: weights that share a scale; rows are multiples
    of it. round_blocks: (..., block) float32 -> what is read back, float32.
    """

    ggml: str
    bits: float
    block: int
    round_blocks: Callable[[torch.Tensor], torch.Tensor]

    def read_back(self, weight: torch.Tensor) -> torch.Tensor:
        """`rounded`, without looking at the values first: for use in each step of a training."""
        return self.round_blocks(weight.float().unflatten(-1, (-1, self.block))).flatten(-2)


FORMATS = {
    "f32": Format("F32", 32, 1, lambda x: x),
    "bf16": Format("BF16", 16, 1, lambda x: x.bfloat16().float()),
    "f16": Format("F16", 16, 1, half),
    "q8_0": Format("Q8_0", 8.5, BLOCK, eight_bits),
    "q5_0": Format("Q5_0", 5.5, BLOCK, symmetric(16)),
    "q4_1": Format("Q4_1", 5.0, BLOCK, asymmetric),
    "q4_0": Format("Q4_0", 4.5, BLOCK, symmetric(8)),
}


def find_format(name: str) -> Format:
    """The format of that name; ValueError where there is none."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def rounded(weight: torch.Tensor, name: str) -> torch.Tensor:
    """`weight` (any shape, any float type) as it is read back from the format, float32, bit for bit.

    Rounding again changes nothing. Raises ValueError for an unknown format, rows that are no multiple of the block, and
    values that are not finite (before or after: float16 and its scales end at 65,504).
    """
    found = find_format(name)
    width = weight.shape[-1]
    if width % found.block:
        raise ValueError(f"rows of {width} weights cannot be {name}, whose blocks are {found.block}; a plan of export.allocate keeps such in f16")
    result = found.read_back(weight)
    if not torch.isfinite(result).all():
        what = "holds values that are not finite" if not torch.isfinite(weight).all() else f"goes beyond the range of {name}"
        raise ValueError(f"a tensor of shape {list(weight.shape)} {what}, so that it cannot be {name}")
    return result


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """{name: module} of what a format stores: each linear layer's matrix, and the embedding of text tokens.

    Norms, biases, positions and convolutions stay in float: they are small, and llama.cpp wants them so. What speaks is
    shipped otherwise, and what no output depends on not at all.
    """
    text = model.get_input_embeddings()
    left_out = ("speech_", *(f"model.{part}" for part in model.config.unread_parts))
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or module is text) and not name.startswith(left_out)
    }


def read_plan(path: Path) -> dict[str, str]:
    """{module: format} of a plan file; ValueError for another file, and for a format that is unknown."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))["formats"]
        for name in plan.values():
            find_format(name)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no plan of export.allocate: it must hold formats, {{module: format}}") from error
    return plan


def plan_of(model: nn.Module, quantization: str) -> dict[str, str]:
    """{name: format} of the model's `matrices`: one format for all, or as a plan of export/allocate.py (*.json) says.

    Raises ValueError for an unknown format, and for a plan of another model.
    """
    stored = matrices(model).keys()
    if not quantization.endswith(".json"):
        find_format(quantization)
        return dict.fromkeys(stored, quantization)
    plan = read_plan(Path(quantization))
    if missing := sorted(stored - plan.keys()):
        raise ValueError(f"{quantization} is the plan of another model: it lacks {missing[0]!r}, one of {len(missing)}")
    if foreign := sorted(plan.keys() - stored):
        raise ValueError(f"{quantization} is the plan of another model: it names {foreign[0]!r}, one of {len(foreign)}")
    return plan
