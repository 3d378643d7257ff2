"""Quantization-aware training: the forward pass sees the weights as they are shipped, the gradient passes through to the masters.

    python -m training.sft --config training/recipes/pretrain/tiny.yaml --model . --quantization q4_0 --output_dir runs/q4

`quantize` changes the class of every layer that a format stores, and nothing else: names, sharing, saving, checkpointing,
FSDP2 and PEFT see the model as it was. The gradient of rounding is taken to be one (straight-through estimator, Bengio et
al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877). Under bfloat16 autocast the rounded weights are rounded once
more, to bfloat16, as all weights are there; in float32 they are the shipped ones to the last bit.
"""

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from export.formats import FORMATS, matrices, plan_of, rounded


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: torch.Tensor, name: str) -> torch.Tensor:
        return FORMATS[name].read_back(weight).to(weight.dtype)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class QuantizedLinear(nn.Linear):
    """A linear layer whose matrix is rounded to `format` in each forward pass."""

    format: str

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, StraightThrough.apply(self.weight, self.format), self.bias)


class QuantizedEmbedding(nn.Embedding):
    """An embedding whose rows are rounded to `format` as they are looked up: blocks lie within a row."""

    format: str

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return StraightThrough.apply(super().forward(ids), self.format)


class QuantizedLoraLinear(lora.Linear):
    """LoRA on a QuantizedLinear: what is rounded is the sum of matrix and adapter, as it is shipped once merged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = self.get_base_layer()
        weight = base.weight
        if not self.disable_adapters and not self.merged:
            weight = weight + sum(self.get_delta_weight(name) for name in self.active_adapters if name in self.lora_A)
        return F.linear(x, StraightThrough.apply(weight, base.format).to(base.weight.dtype), base.bias)


SWAPPED = {nn.Linear: QuantizedLinear, nn.Embedding: QuantizedEmbedding}


def quantize(model: nn.Module, quantization: str) -> None:
    """Lets `model` compute with weights as they are read back from their formats, factored matrices multiplied out.

    `quantization` is a format's name or a plan (`export.formats.plan_of`). Raises ValueError as that and
    `export.formats.rounded` do, naming the tensor.
    """
    model.merge_factors()
    stored = matrices(model)
    for path, name in plan_of(model, quantization).items():
        module = stored[path]
        if type(module) not in SWAPPED:
            raise ValueError(f"{path} is a {type(module).__name__}; only Linear and Embedding can be quantized, and only once")
        try:
            rounded(module.weight.detach(), name)
        except ValueError as error:
            raise ValueError(f"{path}.weight: {error}") from error
        module.__class__, module.format = SWAPPED[type(module)], name


def adapt(config: LoraConfig) -> LoraConfig:
    """The same adapters, for a quantized model too. Dropout would round another matrix than the one that is shipped."""
    if config.lora_dropout:
        raise ValueError(f"the adapter's dropout is {config.lora_dropout}; with quantization it must be 0")
    config._register_custom_module({QuantizedLinear: QuantizedLoraLinear})
    return config
