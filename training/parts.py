"""Published models as parts of EAGLE: where they come from, what their tensors are called, and whether they fit a preset.

Used by training/assemble.py. A part is a folder as `from_pretrained` reads it (config.json, weights, tokenizer), of the Hub or
local; its tensors become the module of ours that PARTS names it for.
"""

import contextlib
import functools
import hashlib
import json
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import AutoConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """A model of the Hub and the module that it becomes.

    Args:
        repository, revision: on the Hub; the revision is a commit.
        weights: pattern of its weight files at that revision.
        config: the key of EagleConfig that holds its configuration.
        model_types: what its config.json may say.
        names: beginning of its tensors' names, old and new -> beginning of ours.
        left_out: beginnings of the names of tensors that we have no use for.
    """

    repository: str
    revision: str
    weights: str
    config: str
    model_types: tuple[str, ...]
    names: dict[str, str]
    left_out: str


PARTS = {
    "language_model": Part(
        repository="microsoft/Phi-3.5-mini-instruct",
        revision="2fe192450127e6a83f7441aef6e3ca586c338b77",
        weights="model*.safetensors*",
        config="text_config",
        model_types=("phi3",),
        names={r"model\.": "model.language_model.", r"lm_head\.": "lm_head."},
        left_out=r"(?!)",  # nothing
    ),
    "vision_tower": Part(
        repository="openai/clip-vit-large-patch14-336",
        revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        weights="pytorch_model.bin",
        config="vision_config",
        model_types=("clip", "clip_vision_model"),
        names={r"(vision_model\.)?(?=embeddings|encoder|pre_layrnorm|post_layernorm)": "model.vision_tower."},
        left_out=r"text_model\.|text_projection\.|visual_projection\.|logit_scale|(vision_model\.)?embeddings\.position_ids",
    ),
    "audio_tower": Part(
        repository="openai/whisper-small",
        revision="973afd24965f72e36ca33b3055d56a652f456b4d",
        weights="model*.safetensors*",
        config="audio_config",
        model_types=("whisper",),
        names={r"(model\.)?(?=encoder|decoder)": "model.audio_tower."},
        left_out=r"proj_out\.",  # the decoder's embedding once more
    ),
}

# What a tower or language model computes beyond what the shapes of its tensors tell.
ARITHMETIC = (
    "hidden_act", "activation_function", "layer_norm_eps", "rms_norm_eps", "num_attention_heads", "num_key_value_heads",
    "encoder_attention_heads", "decoder_attention_heads", "scale_embedding", "patch_size", "sliding_window",
    "max_position_embeddings", "original_max_position_embeddings", "rope_parameters",
)  # fmt: skip


@dataclass(frozen=True)
class Component:
    """A part as it lies in a folder: its weight files, and what the manifest says of it."""

    name: str
    folder: Path
    files: list[Path]
    facts: dict[str, Any]


def needed(config) -> list[str]:
    """Names of the parts that a preset is made of."""
    return [name for name, part in PARTS.items() if getattr(config, part.config) is not None]


# --- getting them -------------------------------------------------------------------------------------------------------


def fetch(names: list[str], revisions: dict[str, str], room: dict[Path, int]) -> list[Component]:
    """The parts of the Hub, or of its cache where the Hub is out of reach; `revisions` replace PARTS'.

    Raises OSError where the disk has no room for them and for what `room` asks besides (as in check_disk), or where a
    part is not to be had.
    """
    wanted = {
        name: {
            "repo_id": PARTS[name].repository,
            "revision": revisions.get(name, PARTS[name].revision),
            "allow_patterns": [PARTS[name].weights, "*.json", "merges.txt", "tokenizer.model"],
        }
        for name in names
    }
    missing = 0
    for arguments in wanted.values():
        with contextlib.suppress(DryRunError):  # out of reach: what lies in the cache has to do
            missing += sum(file.file_size for file in download(**arguments, dry_run=True) if file.will_download)
    check_disk({Path(constants.HF_HUB_CACHE): missing} | room)
    components = []
    for name, arguments in wanted.items():
        folder = Path(download(**arguments))
        # The folder carries the commit's hash, by whatever name the revision was asked for.
        components.append(component(name, folder, {"repository": arguments["repo_id"], "revision": folder.name}))
    return components


def download(repo_id: str, revision: str, **options):
    """huggingface_hub's snapshot_download, but what is not to be had is a FileNotFoundError that says what to do."""
    try:
        return snapshot_download(repo_id, revision=revision, **options)
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{repo_id} at {revision} is neither in {constants.HF_HUB_CACHE} nor to be had from the Hub; set HF_HUB_OFFLINE=0 "
            f"where there is a network, or use --from or --random-init ({error})"
        ) from error


def recognise(folders: list[Path], names: list[str]) -> list[Component]:
    """Local folders by the model_type in their config.json; ValueError unless there is one for each of `names`."""
    model_types = {model_type: name for name in names for model_type in PARTS[name].model_types}
    found: dict[str, Path] = {}
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json; a part is a folder with config.json and weights")
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if model_type not in model_types:
            raise ValueError(f"{folder} holds a {model_type!r}, but the preset is made of {', '.join(model_types)}")
        name = model_types[model_type]
        if name in found:
            raise ValueError(f"{found[name]} and {folder} both hold a {name}; give one of them")
        found[name] = folder
    for name in names:
        if name not in found:
            raise ValueError(f"no folder given holds the {name}: one whose model_type is {' or '.join(PARTS[name].model_types)}")
    return [component(name, found[name], {"folder": found[name].resolve().name}) for name in names]


def component(name: str, folder: Path, source: dict[str, str]) -> Component:
    files = weight_files(folder)
    hashes = {file.name: sha256(file) for file in tqdm([folder / "config.json", *files], desc=f"reading {name}", unit="file")}
    return Component(name, folder, files, source | {"sha256": hashes})


def check_disk(needs: dict[Path, int]) -> None:
    """Raises OSError where a disk has less room than `needs` ({a path on it: bytes}) ask of it together."""
    together: dict[int, int] = {}
    for path, size in needs.items():
        existing = next(folder for folder in [path.resolve(), *path.resolve().parents] if folder.exists())
        device = existing.stat().st_dev
        together[device] = together.get(device, 0) + size
        free = shutil.disk_usage(existing).free
        if together[device] > free:
            raise OSError(f"{existing} has {free / 1e9:.2f} GB free, but {together[device] / 1e9:.2f} GB are needed there")


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- reading them -------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The files with a folder's weights: sharded safetensors, one, or PyTorch's own. Raises FileNotFoundError."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if absent := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}, which its {index.name} names")
        return files
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise FileNotFoundError(f"{folder} has no weights: neither {index.name}, nor model.safetensors, nor pytorch_model.bin")


@functools.lru_cache(maxsize=1)
def read_pickled(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True)


def read_shapes(file: Path) -> Shapes:
    """Name and shape of every tensor in a weight file; raises ValueError for a damaged one."""
    try:
        if file.suffix == ".bin":
            return {name: tuple(tensor.shape) for name, tensor in read_pickled(file).items()}
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is damaged or no weight file: {error}") from error


def read_tensor(file: Path, name: str) -> torch.Tensor:
    if file.suffix == ".bin":
        return read_pickled(file)[name]
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


# --- fitting them -------------------------------------------------------------------------------------------------------


def our_name(key: str, names: dict[str, str]) -> str | None:
    """The name that one of the beginnings in `names` gives a tensor, or None."""
    for beginning, ours in names.items():
        if match := re.match(beginning, key):
            return ours + key[match.end() :]
    return None


def place(part: Component, config, shapes: Shapes) -> tuple[dict[str, tuple[Path, str]], list[str]]:
    """Where each of our tensors in the part's module comes from, {our name: (file, its name)}, and what is left out.

    `shapes` are those of all our tensors. Raises ValueError unless every tensor of the part is used once or left out on
    purpose, every one of ours is there, and all have our shapes. (Without class token, `vision_use_cls` false, the
    tensor of it comes along unused: the tower has CLIP's names.)
    """
    names, left_out = PARTS[part.name].names, PARTS[part.name].left_out
    if part.name == "audio_tower" and config.audio_token_source == "encoder":
        left_out += r"|(model\.)?decoder\."
    origin, unused, problems = {}, [], []
    for file in part.files:
        for key, shape in read_shapes(file).items():
            ours = our_name(key, names)
            if re.match(left_out, key):
                unused.append(key)
            elif ours not in shapes:
                problems.append(f"{key} has no place in the preset")
            elif ours in origin:
                problems.append(f"{key} is there twice")
            else:
                origin[ours] = file, key
                if shape != shapes[ours]:
                    problems.append(f"{key} has shape {list(shape)}, but the preset's is {list(shapes[ours])}")
    mine = [name for name in shapes if name.startswith(tuple(names.values()))]
    problems += [f"{name} is missing" for name in mine if name not in origin]
    if problems:
        more = f"; {len(problems)} such in all" if len(problems) > 3 else ""
        raise ValueError(f"{part.folder} does not fit the preset's {part.name}: {'; '.join(problems[:3])}{more}")
    return origin, unused


def check_arithmetic(part: Component, config) -> None:
    """Raises ValueError where the part's config.json computes otherwise than the preset with tensors of the same shapes."""
    theirs = AutoConfig.from_pretrained(part.folder)
    theirs = getattr(theirs, "vision_config", theirs)  # CLIP's config.json holds both of its towers
    ours = getattr(config, PARTS[part.name].config)
    for key in ARITHMETIC:
        if key.startswith("decoder") and config.audio_token_source == "encoder":
            continue
        their_value, our_value = getattr(theirs, key, None), getattr(ours, key, None)
        if isinstance(our_value, dict) and isinstance(their_value, dict):  # of a rope; how it is spelled out differs
            shared = our_value.keys() & their_value.keys()
            their_value, our_value = ({name: value[name] for name in shared} for value in (their_value, our_value))
        if their_value != our_value:
            raise ValueError(f"{part.folder} has {key} {their_value}, but the preset's {part.name} has {our_value}")
