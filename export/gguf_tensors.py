"""What a GGUF file of EAGLE holds: each tensor's name there, where it comes from, and in what type it is stored.

llama.cpp runs the language model as its `phi3`, the towers and projectors as its `clip`: CLIP without class token and the
`resampler` projector of MiniCPM-V, Whisper's encoder and the `ultravox` projector. Names and shapes are those that its loaders
ask for (src/llama-model.cpp, tools/mtmd/clip.cpp). What those graphs cannot express is refused by `check_layout`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# llama.cpp looks positions up in a table of 70 x 70, MiniCPM-V's, and scales a crop's grid to it.
POSITION_GRID = 70


@dataclass(frozen=True)
class Tensor:
    """One tensor of a GGUF file.

    name: in the file. source: its name in the checkpoint, or its values. kind: "matrix" takes the format asked for; "half" is always float16 and "float"
    always float32, since llama.cpp's operations take nothing else there. change: what is done to the source's float32 values.
    """

    name: str
    source: str | torch.Tensor
    kind: Literal["matrix", "half", "float"] = "float"
    change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous


def linear(name: str, source: str, bias: bool = False) -> Iterator[Tensor]:
    """The matrix of a linear layer, and its bias."""
    yield Tensor(f"{name}.weight", f"{source}.weight", "matrix")
    if bias:
        yield Tensor(f"{name}.bias", f"{source}.bias")


def norm(name: str, source: str) -> Iterator[Tensor]:
    """Weight and bias of a LayerNorm."""
    yield Tensor(f"{name}.weight", f"{source}.weight")
    yield Tensor(f"{name}.bias", f"{source}.bias")


# --- the language model -------------------------------------------------------------------------------------------------


def text_tensors(config) -> Iterator[Tensor]:
    """Tensors of the language model's file; without a head of its own, llama.cpp takes the embedding."""
    model = "model.language_model"
    yield Tensor("token_embd.weight", f"{model}.embed_tokens.weight", "matrix")
    for i in range(config.text_config.num_hidden_layers):
        ours, theirs = f"{model}.layers.{i}", f"blk.{i}"
        yield Tensor(f"{theirs}.attn_norm.weight", f"{ours}.input_layernorm.weight")
        yield from linear(f"{theirs}.attn_qkv", f"{ours}.self_attn.qkv_proj")
        yield from linear(f"{theirs}.attn_output", f"{ours}.self_attn.o_proj")
        yield Tensor(f"{theirs}.ffn_norm.weight", f"{ours}.post_attention_layernorm.weight")
        yield from linear(f"{theirs}.ffn_up", f"{ours}.mlp.gate_up_proj")  # gate first, as llama.cpp's swiglu has it
        yield from linear(f"{theirs}.ffn_down", f"{ours}.mlp.down_proj")
    yield Tensor("output_norm.weight", f"{model}.norm.weight")
    for name, values in rope_factors(config.text_config).items():
        yield Tensor(f"rope_factors_{name}.weight", values)
    if not config.tie_word_embeddings:
        yield from linear("output", "lm_head")


def rope_factors(text) -> dict[str, torch.Tensor]:
    """What a "longrope" divides its frequencies by, for "short" and "long" contexts; nothing for a plain rope."""
    rope = text.rope_parameters
    return {} if rope["rope_type"] == "default" else {name: torch.tensor(rope[f"{name}_factor"]) for name in ("long", "short")}


def attention_factor(text) -> float:
    """What the rope's sines and cosines are multiplied by; 1 for a plain rope."""
    rope_type = text.rope_parameters["rope_type"]
    return 1.0 if rope_type == "default" else ROPE_INIT_FUNCTIONS[rope_type](text, "cpu")[1]


# --- towers and projectors ----------------------------------------------------------------------------------------------


def media_tensors(config) -> Iterator[Tensor]:
    """Tensors of the mmproj file."""
    if config.vision_config is not None:
        yield from vision_tensors(config)
        yield from resampler_tensors()
    if config.audio_config is not None:
        yield from audio_tensors(config)


def vision_tensors(config) -> Iterator[Tensor]:
    tower = "model.vision_tower"
    place = partial(place_positions, side=config.patches_per_side)
    yield Tensor("v.patch_embd.weight", f"{tower}.embeddings.patch_embedding.weight")
    yield Tensor("v.position_embd.weight", f"{tower}.embeddings.position_embedding.weight", "float", place)
    yield from norm("v.pre_ln", f"{tower}.pre_layrnorm")
    for i in range(num_vision_layers(config)):
        ours, theirs = f"{tower}.encoder.layers.{i}", f"v.blk.{i}"
        yield from norm(f"{theirs}.ln1", f"{ours}.layer_norm1")
        for letter in "qkv":
            yield from linear(f"{theirs}.attn_{letter}", f"{ours}.self_attn.{letter}_proj", bias=True)
        yield from linear(f"{theirs}.attn_out", f"{ours}.self_attn.out_proj", bias=True)
        yield from norm(f"{theirs}.ln2", f"{ours}.layer_norm2")
        yield from linear(f"{theirs}.ffn_up", f"{ours}.mlp.fc1", bias=True)
        yield from linear(f"{theirs}.ffn_down", f"{ours}.mlp.fc2", bias=True)


def num_vision_layers(config) -> int:
    """Layers that `vision_feature_layer`, an index into layers + 1 hidden states, needs; llama.cpp runs all that are there."""
    layer = config.vision_feature_layer
    return layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer


def place_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """CLIP's positions (1 + side * side, width) as llama.cpp reads them: (70 * 70, width), without the class token's.

    For patch (i, j) it takes row floor(70 i / side) * 70 + floor(70 j / side).
    """
    buckets = torch.arange(side) * POSITION_GRID // side
    table = torch.zeros(POSITION_GRID**2, positions.shape[1])
    table[(buckets[:, None] * POSITION_GRID + buckets).flatten()] = positions[1:]
    return table


def resampler_tensors() -> Iterator[Tensor]:
    projector = "model.multi_modal_projector"
    yield Tensor("resampler.query", f"{projector}.query")
    # Has to be there, though the positions themselves are computed.
    yield Tensor("resampler.pos_embed_k", torch.zeros(1, 4))
    yield from linear("resampler.kv", f"{projector}.kv_proj")
    for name in ("q", "kv", "post"):
        yield from norm(f"resampler.ln_{name}", f"{projector}.ln_{name}")
    for name in ("q", "k", "v", "out"):
        yield from linear(f"resampler.attn.{name}", f"{projector}.{name}_proj", bias=True)
    yield from linear("resampler.proj", f"{projector}.proj")


def audio_tensors(config) -> Iterator[Tensor]:
    encoder, projector = "model.audio_tower.encoder", "model.audio_projector"
    for i in (1, 2):
        yield Tensor(f"a.conv1d.{i}.weight", f"{encoder}.conv{i}.weight", "half")
        yield Tensor(f"a.conv1d.{i}.bias", f"{encoder}.conv{i}.bias", "float", lambda bias: bias[:, None])
    yield Tensor("a.position_embd.weight", f"{encoder}.embed_positions.weight")
    for i in range(config.audio_config.encoder_layers):
        ours, theirs = f"{encoder}.layers.{i}", f"a.blk.{i}"
        yield from norm(f"{theirs}.ln1", f"{ours}.self_attn_layer_norm")
        for letter in "qkv":
            yield from linear(f"{theirs}.attn_{letter}", f"{ours}.self_attn.{letter}_proj", bias=letter != "k")
        yield from linear(f"{theirs}.attn_out", f"{ours}.self_attn.out_proj", bias=True)
        yield from norm(f"{theirs}.ln2", f"{ours}.final_layer_norm")
        yield from linear(f"{theirs}.ffn_up", f"{ours}.fc1", bias=True)
        yield from linear(f"{theirs}.ffn_down", f"{ours}.fc2", bias=True)
    yield from norm("a.post_ln", f"{encoder}.layer_norm")
    yield Tensor("mm.a.norm_pre.weight", f"{projector}.ln_pre.weight")
    yield from linear("mm.a.mlp.1", f"{projector}.linear_1")
    yield Tensor("mm.a.norm_mid.weight", f"{projector}.ln_mid.weight")
    yield from linear("mm.a.mlp.2", f"{projector}.linear_2")


# --- what llama.cpp's graphs cannot express -----------------------------------------------------------------------------


def check_layout(config) -> None:
    """Raises ValueError for a model that llama.cpp's graphs would compute otherwise, naming the key that says so."""
    text, vision, audio = config.text_config, config.vision_config, config.audio_config
    wanted = [
        ("text_config.model_type", text.model_type, "phi3"),
        ("text_config.hidden_act", getattr(text, "hidden_act", None), "silu"),
        ("lm_head_bias", config.lm_head_bias, False),
        ("text_config.rope_parameters.rope_type", text.rope_parameters["rope_type"], ("default", "longrope")),
    ]
    if vision is not None:
        wanted += [
            ("vision_config.model_type", vision.model_type, "clip_vision_model"),
            ("vision_config.hidden_act", getattr(vision, "hidden_act", None), "quick_gelu"),
            ("vision_use_cls", config.vision_use_cls, False),
            ("image_projector_type", config.image_projector_type, "resampler"),
        ]
    if audio is not None:
        wanted += [
            ("audio_token_source", config.audio_token_source, "encoder"),
            ("audio_config.activation_function", audio.activation_function, "gelu"),
            ("audio_config.max_source_positions", audio.max_source_positions, 1500),
            ("audio_config.scale_embedding", audio.scale_embedding, False),
        ]
    for key, found, right in wanted:
        if found not in (right if isinstance(right, tuple) else (right,)):
            raise ValueError(
                f"{key} is {found!r}, which llama.cpp's graphs cannot express; it must be {right!r}, as in the presets "
                "eagle-edge and eagle-tiny"
            )
    check_sizes(text, vision, audio)


def check_sizes(text, vision, audio) -> None:
    window, context = text.sliding_window, text.max_position_embeddings
    if window is not None and window < context:
        raise ValueError(
            f"text_config.sliding_window is {window}, but llama.cpp's phi3 attends to the whole context of {context}; it must be "
            "null or at least that"
        )
    if vision is not None and vision.image_size // vision.patch_size > POSITION_GRID:
        raise ValueError(
            f"a crop has {vision.image_size // vision.patch_size} patches a side; llama.cpp has {POSITION_GRID} places at most"
        )
    widths = [("vision_config", vision, "hidden_size", "intermediate_size"), ("audio_config", audio, "d_model", "encoder_ffn_dim")]
    for name, part, width_key, inner_key in widths:
        if part is not None and getattr(part, width_key) == getattr(part, inner_key):
            raise ValueError(
                f"{name}.{inner_key} is {getattr(part, inner_key)}, as {width_key} is; llama.cpp tells ffn_up from ffn_down by "
                "their shapes, so the two must differ"
            )
