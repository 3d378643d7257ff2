"""Builds a checkpoint from a preset: weights, configuration, processor and code in one folder that `from_pretrained` loads.

    python -m training.assemble --preset eagle --output runs/eagle                 # of parts of the Hub (training/parts.py)
    python -m training.assemble --preset eagle --from phi clip whisper --output runs/eagle          # of local folders
    python -m training.assemble --preset eagle-edge --random-init --output runs/eagle-edge          # without any parts
    python -m training.assemble --preset eagle-tiny --weights runs/towers-vision runs/towers-audio --output runs/start

The language model and the towers are published models; the projectors start as EagleModel starts them. What a `--weights`
folder holds takes their place; of several that hold one the last counts. Such a folder is what a tower stage or another
stage wrote. eagle-tiny is made of nothing published: what no `--weights` folder holds starts at random.

Weights are written in bfloat16, tensor by tensor, so that the memory never holds the model. The same command again goes on
where a killed one stood. `manifest.json` names every source and every file.
"""

import argparse
import copy
import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import split_state_dict_into_shards_factory
from tqdm import tqdm
from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel, WhisperFeatureExtractor
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module

from tokenizer import build, stand_in
from training import parts

ROOT = Path(__file__).parents[1]
MANIFEST, UNFINISHED, INDEX = "manifest.json", "unfinished.json", "model.safetensors.index.json"
MADE_OF_NOTHING = ("eagle-tiny", "eagle-tiny-a")  # presets without published parts
TOKEN_SCALE = 0.5  # root mean square of a text token's embedding at the start, near that of the towers' tokens
SPELLING = 2.0  # what a word's spellings have in common at the start, beside what each has for itself
EMBEDDING, NORM = "model.language_model.embed_tokens.weight", "model.language_model.norm.weight"
UNIT = 2**27  # parameters that start together, in float32: half a GB, a layer of Phi-3.5
ALLOWANCE = 50_000_000  # bytes on the disk for all that is no weight


def assemble(
    preset: str,
    weights: list[Path],
    output: Path,
    seed: int = 0,
    folders: list[Path] | None = None,
    random_init: bool = False,
    revisions: dict[str, str] | None = None,
    max_shard_size: str = "4GB",
) -> None:
    """Writes the checkpoint to `output`.

    Args:
        preset: a name in configs/, or a JSON file like those.
        weights: folders whose tensors, named as in EagleForConditionalGeneration or EagleModel, go before all others.
        folders: one for each of the preset's parts; without them they come from the Hub at `revisions` (or parts.PARTS').
        random_init: neither: everything starts at random.
        max_shard_size: of a file of weights, such as "4GB".

    Raises ValueError for parts or weights that do not fit the preset, a tokenizer with other ids, and a folder that holds
    something else; OSError where a disk is too full or a part is not to be had.
    """
    earlier = read_record(output)
    model = empty_model(preset)
    config, shapes = model.config, {name: tuple(p.shape) for name, p in model.named_parameters()}
    present = sum(file.stat().st_size for file in output.glob("model*.safetensors"))
    room = {output: sum(map(bytes_of, shapes.values())) - present + ALLOWANCE}
    if folders or random_init or preset in MADE_OF_NOTHING:
        parts.check_disk(room)
        components = parts.recognise(folders, parts.needed(config)) if folders else []
    else:
        components = parts.fetch(parts.needed(config), revisions or {}, room)
    processor, tokenizer = make_processor(config, {part.name: part.folder for part in components})
    origin, described = {}, {}
    for part in components:
        parts.check_arithmetic(part, config)
        placed, left_out = parts.place(part, config, shapes)
        origin |= placed
        described[part.name] = part.facts | {"left_out": left_out}
    for folder in weights:
        origin |= own_weights(folder, shapes, preset)
    facts = {
        "preset": preset,
        "config_sha256": hashlib.sha256(config.to_json_string().encode()).hexdigest(),
        "components": described,
        "weights": [{f.name: parts.sha256(f) for f in parts.weight_files(folder)} for folder in weights],
        "random": sorted({module_of(name) for name in shapes if name not in origin}),
        "tokenizer": tokenizer,
        "seed": seed,
        "parameters": sum(map(math.prod, shapes.values())),
        "max_shard_size": max_shard_size,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    kept = kept_weights(output, earlier, facts)
    written = write(output, shapes, functools.partial(start_value, model, processor.tokenizer, seed, origin), facts, kept)
    save_rest(output, model, processor)
    finish(output, facts, written)


def empty_model(preset: str) -> PreTrainedModel:
    """The preset's model on the meta device, where it takes no memory."""
    path = Path(preset) if preset.endswith(".json") else ROOT / "configs" / f"{preset}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (ROOT / "configs").glob("*.json")))
        raise ValueError(f"there is no preset {preset!r}; give one of {known}, or a JSON file like theirs")
    model_class = get_class_from_dynamic_module("modeling_eagle.EagleForConditionalGeneration", str(ROOT))
    config = model_class.config_class.from_json_file(path)
    config.architectures, config.dtype = [model_class.__name__], "bfloat16"
    with torch.device("meta"):
        return model_class(config)


def module_of(name: str) -> str:
    return name.removeprefix("model.").split(".")[0]


def bytes_of(shape: tuple[int, ...]) -> int:
    return torch.bfloat16.itemsize * math.prod(shape)


# --- processor ----------------------------------------------------------------------------------------------------------


def make_processor(config, folders: dict[str, Path]) -> tuple[Any, str]:
    """The processor for a preset, and whose tokenizer it has; `folders` are those of the parts by name."""
    root = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    if "language_model" in folders:
        tokenizer, whose = build.extend(folders["language_model"]), "the language model's"
    elif root.image_token_id == config.image_token_id:
        tokenizer, whose = root.tokenizer, "eagle-tiny's"
    else:
        tokenizer, whose = build.add_specials(stand_in.language_tokenizer()), "stand-in"
    processor = type(root)(
        image_processor=type(root.image_processor)(
            crop_size=config.vision_config.image_size, image_layout=config.image_layout
        ),
        feature_extractor=WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        num_image_tokens=config.num_image_tokens,
        audio_token_source=config.audio_token_source,
        audio_layout=config.audio_layout,
        audio_stack_factor=config.audio_stack_factor,
    )
    if config.audio_token_source == "decoder":
        processor.transcript_tokenizer = (
            AutoTokenizer.from_pretrained(folders["audio_tower"]) if folders else stand_in.transcript_tokenizer()
        )
    check_ids(processor, config)
    return processor, whose


def check_ids(processor, config) -> None:
    """Raises ValueError where a token of the tokenizer is not at the id, or in the rows, that the configuration says."""
    text, audio = config.text_config, config.audio_config
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    markup = dict(zip(("<image>", "</image>", "<slice>", "</slice>", "\n"), config.image_markup_token_ids, strict=True))
    ids = {"<|image_pad|>": config.image_token_id, "<|audio_pad|>": config.audio_token_id, "<|end|>": ends[0], **markup}
    checked = [("tokenizer", processor.tokenizer, ids, text.vocab_size)]
    if processor.transcript_tokenizer is not None:
        starts = {"<|startoftranscript|>": audio.decoder_start_token_id, "<|endoftext|>": audio.eos_token_id}
        checked.append(("transcript tokenizer", processor.transcript_tokenizer, starts, audio.vocab_size))
    for name, tokenizer, expected, rows in checked:
        if len(tokenizer) > rows:
            raise ValueError(f"the {name} has {len(tokenizer)} entries, but the preset's embedding {rows} rows")
        for token, wanted in expected.items():
            found = tokenizer(token, add_special_tokens=False).input_ids[-1]
            if found != wanted:
                raise ValueError(f"{token!r} has id {found} in the {name}, but {wanted} in the preset's configuration")


# --- values -------------------------------------------------------------------------------------------------------------


def own_weights(folder: Path, shapes: parts.Shapes, preset: str) -> dict[str, tuple[Path, str]]:
    """Where each tensor in a folder of ours goes: {our name: (file, its name)}; ValueError for one without a place."""
    origin = {}
    for file in parts.weight_files(folder):
        for key, shape in parts.read_shapes(file).items():
            name = key if key in shapes else f"model.{key}"
            if shapes.get(name) != shape:
                place = f"is {list(shapes[name])}" if name in shapes else "has no place"
                raise ValueError(f"{folder} holds {key!r} of shape {list(shape)}, which {place} in the preset {preset!r}")
            origin[name] = file, key
    return origin


def start_value(model: PreTrainedModel, tokenizer, seed: int, origin: dict[str, tuple[Path, str]], name: str) -> torch.Tensor:
    """The tensor `name` of the new checkpoint: that of its origin, or else a random start.

    A language model that starts at random gets TOKEN_SCALE. At the usual 0.02 text is far smaller than picture tokens (0.6)
    and than the first layer's output, which buries which token stands where (docs/LOG.md). Where the head is the embedding,
    the final norm takes the scale back, so that the logits stay as they are.
    """
    if name in origin:
        return parts.read_tensor(*origin[name])
    value = start_values(model, unit_of(model, name), seed)[name]
    factor = TOKEN_SCALE / model.config.text_config.initializer_range
    if name == EMBEDDING:
        return relate_spellings(value, tokenizer) * factor
    if name == NORM and EMBEDDING not in origin and model.config.tie_word_embeddings:
        return value / factor
    return value


def relate_spellings(embeddings: torch.Tensor, tokenizer) -> torch.Tensor:
    """Embeddings (vocab_size, width) of which those of one word's spellings (" Anna", "anna") lie close together.

    Else a model that has learnt to look words up in the conversation must learn of each that it may be spelt otherwise there.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    texts = [tokenizer.convert_tokens_to_string([token]).strip().lower() for token in tokens]
    first: dict[str, int] = {}
    groups = [first.setdefault(text, i) if text and "\ufffd" not in text else i for i, text in enumerate(texts)]
    groups = torch.tensor(groups + list(range(len(groups), len(embeddings))))  # ids without a token stay alone
    sums = torch.zeros_like(embeddings).index_add(0, groups, embeddings)
    related = embeddings + SPELLING * sums[groups] / groups.bincount(minlength=len(groups))[groups, None].sqrt()
    return torch.nn.functional.normalize(related) * embeddings.norm(dim=1, keepdim=True)  # zero stays zero


def unit_of(model: PreTrainedModel, name: str) -> str:
    """The outermost module around a tensor that has at most UNIT parameters, or else the innermost."""
    path = name.split(".")[:-1]
    around = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
    return next((unit for unit in around if size(model, unit) <= UNIT), around[-1])


@functools.lru_cache
def size(model: PreTrainedModel, module: str) -> int:
    return sum(parameter.numel() for parameter in model.get_submodule(module).parameters())


@functools.lru_cache(maxsize=1)
def start_values(model: PreTrainedModel, unit: str, seed: int) -> dict[str, torch.Tensor]:
    """Float32 start values of the tensors in a module of the empty model: a function of the seed and the module's name."""
    torch.manual_seed(int(hashlib.sha256(f"{seed}/{unit}".encode()).hexdigest()[:15], 16))
    steps = unit.split(".")
    around = [model, *(model.get_submodule(".".join(steps[:depth])) for depth in range(1, len(steps)))]
    owner = [module for module in around if isinstance(module, PreTrainedModel)][-1]
    module = copy.deepcopy(model.get_submodule(unit)).to_empty(device="cpu")
    initialise(module, owner._init_weights)
    return {f"{unit}.{name}": parameter.data for name, parameter in module.named_parameters()}


@torch.no_grad()
def initialise(module: torch.nn.Module, init: Callable[[torch.nn.Module], None]) -> None:
    """What transformers does to a model that it has built: children first, each by the model that it belongs to."""
    if isinstance(module, PreTrainedModel):
        init = module._init_weights
    for child in module.children():
        initialise(child, init)
    init(module)


# --- files --------------------------------------------------------------------------------------------------------------


def read_record(output: Path) -> dict[str, Any] | None:
    """What an earlier run says of the folder; None for a new one. Raises ValueError for one with anything else in it."""
    for name in (UNFINISHED, MANIFEST):
        if (output / name).is_file():
            return json.loads((output / name).read_text(encoding="utf-8"))
    if output.exists() and any(not file.name.endswith(".part") for file in output.iterdir()):
        raise ValueError(f"{output} is not empty and has no {MANIFEST} of this script; give a new folder")
    return None


def kept_weights(output: Path, earlier: dict[str, Any] | None, facts: dict[str, Any]) -> dict[str, dict]:
    """The weight files of the earlier run that are whole: {name: {bytes, sha256}}; ValueError if it was another's."""
    if earlier is None:
        return {}
    for key, value in facts.items():
        if earlier.get(key) != value:
            raise ValueError(
                f"{output} holds a checkpoint with another {key!r} ({UNFINISHED} or {MANIFEST} there); give a new folder, or "
                "remove that one"
            )
    files = {output / name: entry for name, entry in earlier["files"].items() if name.endswith(".safetensors")}
    return {file.name: entry for file, entry in files.items() if file.is_file() and describe(file) == entry}


def write(
    output: Path, shapes: parts.Shapes, value: Callable[[str], torch.Tensor], facts: dict[str, Any], kept: dict[str, dict]
) -> dict[str, dict]:
    """Writes the weights that are not kept, and their index; returns {weight file: {bytes, sha256}}."""
    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=bytes_of,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=facts["max_shard_size"],
    )
    output.mkdir(parents=True, exist_ok=True)
    done = dict(kept)
    write_json(output / UNFINISHED, facts | {"files": done})
    ready = sum(bytes_of(shapes[name]) for file in kept for name in split.filename_to_tensors[file])
    with tqdm(total=split.metadata["total_size"], initial=ready, unit="B", unit_scale=True, desc=output.name) as bar:
        for file, names in split.filename_to_tensors.items():
            if file not in kept:
                done[file] = write_shard(output / file, {name: shapes[name] for name in names}, value, bar)
                write_json(output / UNFINISHED, facts | {"files": done})
    if split.is_sharded:
        write_json(output / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return done


def describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": parts.sha256(file)}


def write_shard(path: Path, shapes: parts.Shapes, value: Callable[[str], torch.Tensor], bar: tqdm) -> dict[str, Any]:
    """Writes one safetensors file, beside and then renamed; returns its size and hash."""
    digest, part = hashlib.sha256(), path.with_name(path.name + ".part")
    with part.open("wb") as file:
        header = shard_header(shapes)
        file.write(header)
        digest.update(header)
        for name in shapes:
            tensor = value(name).to(torch.bfloat16).contiguous()
            data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
            file.write(data)
            digest.update(data)
            bar.update(len(data))
    size = part.stat().st_size
    os.replace(part, path)
    return {"bytes": size, "sha256": digest.hexdigest()}


def shard_header(shapes: parts.Shapes) -> bytes:
    """What stands before the tensors in a safetensors file: the length of a JSON text, 8 bytes, and the text.

    Written by hand since the library's own writer takes all of a file's tensors at once. Source: the format's description
    in safetensors' README.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + bytes_of(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def save_rest(output: Path, model: PreTrainedModel, processor) -> None:
    """Everything beside the weights, as `save_pretrained` of model and processor write it, code included."""
    custom_object_save(model, output, config=model.config)
    model.config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    processor.save_pretrained(output)


def finish(output: Path, facts: dict[str, Any], weights: dict[str, dict]) -> None:
    """Writes the manifest, which says that the checkpoint is complete."""
    names = sorted(file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file())
    others = {name: describe(output / name) for name in names if name not in {MANIFEST, UNFINISHED, *weights}}
    write_json(output / MANIFEST, facts | {"files": weights | others})
    (output / UNFINISHED).unlink()
    start = f"at random: {', '.join(facts['random']) or 'nothing'}; tokenizer: {facts['tokenizer']}"
    print(f"{output}: {facts['parameters']:,} parameters; {start}")


def named_revision(text: str) -> tuple[str, str]:
    name, separator, revision = text.partition("=")
    if name not in parts.PARTS or not separator or not revision:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=REVISION with a part of {', '.join(parts.PARTS)}")
    return name, revision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="eagle-tiny", help="a name in configs/, or a JSON file (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder, or that of the same command before")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument("--from", type=Path, nargs="+", dest="folders", metavar="DIR", help="a folder for each part")
    sources.add_argument("--random-init", action="store_true", help="no parts: random weights, stand-in tokenizer")
    sources.add_argument(
        "--revision", type=named_revision, nargs="+", default=[], metavar="PART=REVISION", dest="revisions",
        help="other commits, tags or branches of the Hub than those in training/parts.py",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="folders with weights of ours, which go before")
    parser.add_argument("--max-shard-size", default="4GB", help="of a file of weights (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        assemble(
            args.preset, args.weights, args.output, args.seed, args.folders, args.random_init, dict(args.revisions),
            args.max_shard_size,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(f"training.assemble: {error}")


if __name__ == "__main__":
    main()
