"""Writes a checkpoint as two GGUF files that unpatched llama.cpp runs: the language model, and "mmproj" with towers and projectors.

    python -m export.gguf --model . --format q8_0 --output export/out/eagle-tiny
    python -m export.gguf --model checkpoints/eagle-edge --format q4_0 --output export/out/eagle-edge
    python -m export.gguf --model . --format export/out/eagle-tiny/mixed-5.5.json --output export/out/eagle-tiny  # a plan of export.allocate

OUTPUT holds NAME-FORMAT.gguf, mmproj-NAME-FORMAT.gguf (NAME is OUTPUT's) and manifest.json. Tensors are read, converted and written
one by one, so that the memory never holds the model (full-size EAGLE's largest takes 1.8 GB in all). The files appear once llama.cpp
has computed with them what torch computes with the same weights (export/gguf_check.py); --no-check leaves that out: it needs memory
for the model in float32.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from tqdm import tqdm
from transformers import AutoConfig, AutoProcessor

from export import gguf_check, gguf_tensors
from export.formats import FORMATS, find_format, read_plan
from export.gguf_tensors import Tensor
from export.gguf_tokenizer import add_tokenizer
from training import parts
from training.shards import write_beside

MANIFEST = "manifest.json"
HEADER_ALLOWANCE = 20_000_000  # bytes on the disk for a vocabulary and what else stands before the tensors
MINICPM_VERSION = 3  # the version of MiniCPM-V whose resampler has positions for any grid, and this slicing


@dataclass(frozen=True)
class Source:
    """A checkpoint: where each tensor of its weight files lies, and its shape."""

    folder: Path
    files: dict[str, Path]
    shapes: parts.Shapes

    def stored(self, name: str) -> list[str]:
        """Where a tensor is stored: under its own name or, of a factored layer, as two factors whose product it is, and a bias."""
        layer, _, part = name.rpartition(".")
        factored = [f"{layer}.up.bias"] if part == "bias" else [f"{layer}.up.weight", f"{layer}.down.weight"]
        for names in ([name], factored):
            if all(part in self.files for part in names):
                return names
        raise ValueError(f"{self.folder} lacks the tensor {name}, which its config.json asks for")

    def shape(self, name: str) -> tuple[int, ...]:
        shapes = [self.shapes[part] for part in self.stored(name)]
        return (shapes[0][0], *shapes[-1][1:])

    def read(self, name: str) -> torch.Tensor:
        """The tensor in float32. Raises ValueError for one that is missing, or holds NaN or infinity."""
        return functools.reduce(torch.matmul, [self.read_stored(part) for part in self.stored(name)])

    def read_stored(self, name: str) -> torch.Tensor:
        tensor = parts.read_tensor(self.files[name], name).float()
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise ValueError(f"{name} in {self.files[name]} holds {bad} values that are NaN or infinite; all must be finite")
        return tensor


def open_source(folder: Path) -> Source:
    files, shapes = {}, {}
    for file in parts.weight_files(folder):
        for name, shape in parts.read_shapes(file).items():
            files[name], shapes[name] = file, shape
    return Source(folder, files, shapes)


# --- tensors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A tensor of the file with its shape and type there."""

    tensor: Tensor
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return gguf.quant_shape_to_byte_shape(self.shape, self.type)

    @property
    def bytes(self) -> int:
        return math.prod(self.byte_shape)


def plan(source: Source, tensors: Iterable[Tensor], format_of: Callable[[str], str]) -> list[Planned]:
    """Shape and type of each tensor. Raises ValueError for one that is missing, or too narrow for its format."""
    planned = []
    for tensor in tensors:
        given = tensor.source if isinstance(tensor.source, torch.Tensor) else torch.empty(source.shape(tensor.source))
        shape = tuple(tensor.change(given).shape)
        name = format_of(tensor.source) if tensor.kind == "matrix" else {"half": "f16", "float": "f32"}[tensor.kind]
        if shape[-1] % FORMATS[name].block:
            raise ValueError(
                f"{tensor.source} has rows of {shape[-1]}, which cannot be {name}: they must be a multiple of its block, "
                f"{FORMATS[name].block}; take f16 or bf16"
            )
        planned.append(Planned(tensor, shape, GGMLQuantizationType[FORMATS[name].ggml]))
    return planned


def values(source: Source, planned: Planned) -> np.ndarray:
    """The tensor as it is stored: of its type, or blocks as bytes. Raises ValueError where it goes beyond the type's range."""
    tensor = planned.tensor
    given = tensor.source if isinstance(tensor.source, torch.Tensor) else source.read(tensor.source)
    changed = tensor.change(given).numpy()
    stored = gguf.quantize(changed, planned.type)
    if not np.isfinite(gguf.dequantize(stored, planned.type)).all():
        raise ValueError(
            f"{tensor.source} holds {np.abs(changed).max():.4g}, beyond what {planned.type.name} can keep (float16, for values or "
            f"scales): take bf16 or f32"
        )
    return stored


def write(path: Path, writer: GGUFWriter, source: Source, planned: list[Planned], bar: tqdm) -> None:
    """Writes header, keys and then tensor after tensor."""
    for tensor in planned:
        writer.add_tensor_info(tensor.tensor.name, tensor.byte_shape, np.dtype(np.uint8), tensor.bytes, tensor.type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in planned:
        writer.write_tensor_data(values(source, tensor))
        bar.update(tensor.bytes)
    writer.close()


# --- keys ---------------------------------------------------------------------------------------------------------------


def new_writer(arch: str, facts: dict[str, Any], format_name: str) -> GGUFWriter:
    """A writer with the keys that say what the file is and what it was made of."""
    file_types = {name: "ALL_F32" if name == "f32" else f"MOSTLY_{found.ggml}" for name, found in FORMATS.items()}
    writer = GGUFWriter(None, arch)
    writer.add_name(facts["name"])
    writer.add_license(facts["license"])
    writer.add_file_type(LlamaFileType[file_types.get(format_name, "GUESSED")])  # what llama.cpp takes for a mixture
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("general.source.revision", facts["revision"])
    writer.add_string("general.source.sha256", json.dumps(facts["sha256"]))
    return writer


def add_text_keys(writer: GGUFWriter, text) -> None:
    head = text.hidden_size // text.num_attention_heads
    rope = text.rope_parameters
    writer.add_type("model")
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_vocab_size(text.vocab_size)
    writer.add_rope_dimension_count(int(head * rope["partial_rotary_factor"]))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_orig_ctx_len(text.original_max_position_embeddings)
    writer.add_rope_scaling_attn_factors(gguf_tensors.attention_factor(text))
    writer.add_sliding_window(text.sliding_window or text.max_position_embeddings)  # has to be there; is not used


def add_media_keys(writer: GGUFWriter, config, processor) -> None:
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(config.vision_config is not None)
    writer.add_clip_has_audio_encoder(config.audio_config is not None)
    if config.vision_config is not None:
        add_vision_keys(writer, config, processor.image_processor)
    if config.audio_config is not None:
        add_audio_keys(writer, config)


def add_vision_keys(writer: GGUFWriter, config, image_processor) -> None:
    vision, side = config.vision_config, image_processor.crop_size
    if side != vision.image_size:
        raise ValueError(f"the processor cuts crops of {side} pixels, but vision_config.image_size is {vision.image_size}")
    canvases = sys.modules[type(image_processor).__module__].grid_pinpoints(image_processor.max_slices)
    writer.add_clip_vision_projector_type("resampler")
    writer.add_int32("clip.minicpmv_version", MINICPM_VERSION)
    writer.add_uint32("clip.minicpmv_query_num", config.num_image_tokens)
    writer.add_vision_image_size(side)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(gguf_tensors.num_vision_layers(config))
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_image_mean(image_processor.image_mean)
    writer.add_vision_image_std(image_processor.image_std)
    pinpoints = [size * side for rows, columns in canvases for size in (columns, rows)]
    writer.add_array("clip.vision.image_grid_pinpoints", pinpoints)


def add_audio_keys(writer: GGUFWriter, config) -> None:
    audio = config.audio_config
    writer.add_clip_audio_projector_type("ultravox")
    writer.add_audio_num_mel_bins(audio.num_mel_bins)
    writer.add_audio_embedding_length(audio.d_model)
    writer.add_audio_feed_forward_length(audio.encoder_ffn_dim)
    writer.add_audio_block_count(audio.encoder_layers)
    writer.add_audio_head_count(audio.encoder_attention_heads)
    writer.add_audio_attention_layernorm_eps(1e-5)  # Whisper's is torch's default, not in its configuration
    writer.add_audio_projection_dim(config.text_config.hidden_size)
    writer.add_audio_stack_factor(config.audio_stack_factor)


# --- files --------------------------------------------------------------------------------------------------------------


def read_format(given: str) -> tuple[str, Callable[[str], str]]:
    """What a format is called, and the one of each matrix of a checkpoint; a plan file is called by its name."""
    if not given.endswith(".json"):
        find_format(given)
        return given, lambda source: given
    formats = read_plan(Path(given))
    if Path(given).stem in FORMATS:
        raise ValueError(f"{given} is a plan, but its name is that of a format, and names the files; rename it")

    def format_of(source: str) -> str:
        module = source.removesuffix(".weight")
        if module not in formats:
            raise ValueError(f"{given} is the plan of another model: it lacks {module!r}")
        return formats[module]

    return Path(given).stem, format_of


def export(folder: Path, given: str, output: Path, is_checked: bool = True, license: str | None = None) -> dict[str, Any]:
    """Writes the files to `output`; returns what the manifest says of them.

    Args:
        folder: a checkpoint as `save_pretrained` writes it.
        given: a format of the table, or a plan of export/allocate.py (*.json).
        license: of the weights; None takes that of the folder's README.md.

    Raises ValueError for a model, tokenizer or tensor that cannot be written so, and for files that fail the check; OSError
    where something is missing or the disk is too full. Nothing is left behind then.
    """
    format_name, format_of = read_format(given)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; --model is a folder with a checkpoint")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    gguf_tensors.check_layout(config)
    source, processor = open_source(folder), AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    facts = {
        "name": output.resolve().name,
        "license": license or license_of(folder),
        "revision": revision_of(folder),
        "sha256": {file.name: parts.sha256(file) for file in parts.weight_files(folder)},
    }
    plans = {f"{facts['name']}-{format_name}.gguf": plan(source, gguf_tensors.text_tensors(config), format_of)}
    writers = [text_writer(config, processor, facts, format_name)]
    if media := list(gguf_tensors.media_tensors(config)):
        plans[f"mmproj-{facts['name']}-{format_name}.gguf"] = plan(source, media, format_of)
        writers.append(media_writer(config, processor, facts, format_name))
    size = sum(planned.bytes for tensors in plans.values() for planned in tensors)
    parts.check_disk({output: size + HEADER_ALLOWANCE})
    output.mkdir(parents=True, exist_ok=True)
    with unfinished([output / name for name in plans]) as pending:
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"{facts['name']}-{format_name}") as bar:
            for part, writer, planned in zip(pending, writers, plans.values(), strict=True):
                write(part, writer, source, planned, bar)
        measured = gguf_check.check(folder, format_name, *pending) if is_checked else None
    return note(output / MANIFEST, facts, format_name, [output / name for name in plans], measured)


def text_writer(config, processor, facts: dict[str, Any], format_name: str) -> GGUFWriter:
    writer, ends = new_writer("phi3", facts, format_name), config.text_config.eos_token_id
    add_text_keys(writer, config.text_config)
    add_tokenizer(writer, processor.tokenizer, config.text_config.vocab_size, ends if isinstance(ends, list) else [ends])
    return writer


def media_writer(config, processor, facts: dict[str, Any], format_name: str) -> GGUFWriter:
    writer = new_writer("clip", facts, format_name)
    add_media_keys(writer, config, processor)
    return writer


@contextlib.contextmanager
def unfinished(files: list[Path]) -> Iterator[list[Path]]:
    """Paths beside `files` to write to; the files take their names at the end, all or none."""
    pending = [file.with_name(f"{file.name}.part") for file in files]
    try:
        yield pending
        for part, file in zip(pending, files):
            os.replace(part, file)
    finally:
        for part in pending:
            part.unlink(missing_ok=True)


def note(manifest: Path, facts: dict[str, Any], format_name: str, files: list[Path], measured: dict[str, float] | None) -> dict:
    """Says in the manifest what the files of this format are made of, and what their check measured (None: not checked)."""
    content = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    described = {file.name: {"bytes": file.stat().st_size, "sha256": parts.sha256(file)} for file in files}
    versions = {name: version(name) for name in ("gguf", "xllamacpp", "torch", "transformers")}
    entry = facts | {"files": described, "check": measured, "versions": versions}
    content.setdefault("gguf", {})[format_name] = entry
    write_beside(manifest, content)
    return entry


def license_of(folder: Path) -> str:
    """The licence in the head of a folder's README.md, by its identifier on the Hub; "other" where there is none."""
    readme = folder / "README.md"
    found = re.search(r"^license: *(\S+)", readme.read_text(encoding="utf-8"), re.MULTILINE) if readme.is_file() else None
    return found[1] if found else "other"


def revision_of(folder: Path) -> str:
    """The commit that a checkpoint is of: the name of a folder of the Hub's cache, or git's last one of its weights, or ""."""
    if re.fullmatch(r"[0-9a-f]{40}", folder.resolve().name):
        return folder.resolve().name
    command = ["git", "log", "-1", "--format=%H", "--", "*.safetensors*"]
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("."), help="folder of a checkpoint (default: %(default)s)")
    parser.add_argument("--format", default="q8_0", help=f"of the matrices: {', '.join(FORMATS)}, or a plan of export.allocate (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="a folder; its name becomes the model's")
    parser.add_argument("--license", help="of the weights (default: that of the checkpoint's README.md)")
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with torch")
    args = parser.parse_args()
    try:
        entry = export(args.model, args.format, args.output, not args.no_check, args.license)
    except (ValueError, OSError) as error:
        sys.exit(f"export.gguf: {error}")
    for name, file in entry["files"].items():
        print(f"{args.output / name}: {file['bytes'] / 1e6:,.1f} MB")
    print(gguf_check.report(entry["check"]) if entry["check"] else "not checked against torch")


if __name__ == "__main__":
    main()
