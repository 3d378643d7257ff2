"""THE table of formats that weights are shipped in. The formats are llama.cpp's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """How a tensor is stored.

    ggml: the type's name in ggml. bits: of a weight, scales included. block: weights that share a scale; rows are multiples of it.
    """

    ggml: str
    bits: float
    block: int


FORMATS = {
    "f32": Format("F32", 32, 1),
    "bf16": Format("BF16", 16, 1),
    "f16": Format("F16", 16, 1),
    "q8_0": Format("Q8_0", 8.5, 32),
    "q5_0": Format("Q5_0", 5.5, 32),
    "q4_1": Format("Q4_1", 5.0, 32),
    "q4_0": Format("Q4_0", 4.5, 32),
}


def find_format(name: str) -> Format:
    """The format of that name; ValueError where there is none."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]
