"""Attention for training on a CPU: plain matrix products, one sample at a time, in the autocast dtype.

It takes half the time of torch's fused CPU kernel or less (docs/LOG.md): the weights of one sample stay in the cache, and
the softmax in bfloat16. The comparison on this machine:

    python -m training.attention
"""

import time

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "matmul"


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Queries, keys and values (batch, heads, tokens, head width) -> (batch, tokens, heads, head width)."""
    query, key = (query * scaling).to(value.dtype), key.to(value.dtype)
    masks = [None] * len(query) if attention_mask is None else attention_mask.to(value.dtype).expand(len(query), -1, -1, -1)
    with torch.autocast("cpu", enabled=False):  # it would take the softmax to float32
        outputs = [attend(*sample) for sample in zip(query, key, value, masks, strict=True)]
    return torch.stack(outputs).transpose(1, 2).contiguous(), None


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    scores = query @ key.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1) @ value


AttentionInterface.register(NAME, matmul_attention)
AttentionMaskInterface.register(NAME, eager_mask)


def seconds(attention, query: torch.Tensor) -> float:
    """Processor time of one pass in both directions."""
    start = time.process_time()
    attention(query, query, query).sum().backward()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    shapes = {"vision tower": (8, 4, 576, 64), "audio tower": (8, 3, 1500, 64), "language model": (8, 6, 667, 64)}
    for name, shape in shapes.items():
        query = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
        ratios = [
            seconds(F.scaled_dot_product_attention, query)
            / seconds(lambda *qkv: matmul_attention(None, *qkv, None, scaling=0.125)[0], query)
            for _ in range(6)
        ]
        print(f"{name} {shape}: torch's fused kernel takes {sorted(ratios[1:])[2]:.2f} times as long")


if __name__ == "__main__":
    main()
