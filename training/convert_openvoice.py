"""Weights of OpenVoice's tone-colour converter for the speech decoder: its flow, posterior encoder, vocoder, reference encoder.

    python -m training.convert_openvoice --from checkpoints_v2/converter --preset eagle-a --output runs/openvoice
    python -m training.assemble --preset eagle-a --weights runs/openvoice --output runs/eagle-a

Source: https://github.com/myshell-ai/OpenVoice (MIT; arXiv 2312.01479), openvoice/models.py and modules.py. The folder holds
checkpoint.pth (or safetensors) and config.json, of V1 or V2, whose layouts are one. The vocoder's weight norm is multiplied out,
since ours has none. V2's `zero_g` gives posterior encoder and vocoder a voice of zeros, of which only the biases of their layers
for it are left: here the weights of these layers become zero. Nothing is fetched, and pickles are read as weights only.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training import parts
from training.assemble import empty_model

CHECKPOINTS = ("checkpoint.pth", "checkpoint.safetensors", "model.safetensors")
WANTED = "checkpoints_v2/converter/checkpoint.pth, or of V1 checkpoints/converter/checkpoint.pth"
MODULES = {"flow": "flow", "posterior_encoder": "enc_q", "decoder": "dec", "reference_encoder": "ref_enc"}  # ours: theirs
BASE_SPEAKER = ("enc_p.", "sdp.", "dp.", "emb_g.")  # what only the models that read text have
OF_ZERO_G = ("posterior_encoder.wavenet.cond_layer.parametrizations.weight.original0", "decoder.cond.weight")

# Length and direction of a weight under weight norm, as older and newer PyTorch call them. Ours are called the latter.
OLD_PAIR = (".weight_g", ".weight_v")
NEW_PAIR = (".parametrizations.weight.original0", ".parametrizations.weight.original1")

# Keys of OpenVoice's config.json -> of EagleSpeechConfig.
SIZES = {
    "data.sampling_rate": "sampling_rate", "data.filter_length": "fft_size", "data.win_length": "fft_size",
    "data.hop_length": "hop_length", "model.inter_channels": "flow_size", "model.hidden_channels": "wavenet_hidden_size",
    "model.gin_channels": "speaker_embedding_size", "model.resblock_kernel_sizes": "resblock_kernel_sizes",
    "model.resblock_dilation_sizes": "resblock_dilation_sizes", "model.upsample_rates": "upsample_rates",
    "model.upsample_kernel_sizes": "upsample_kernel_sizes", "model.upsample_initial_channel": "upsample_initial_channel",
}  # fmt: skip
WRITTEN_OUT = {"wavenet_dilation_rate": 1, "leaky_relu_slope": 0.1}  # in OpenVoice's code, and no shape tells them

Sources = dict[str, tuple[int, ...]]  # what one of our tensors is made of: names in OpenVoice's file, and shapes


def convert(folder: Path, preset: str, output: Path) -> None:
    """Writes `output`/model.safetensors, float32: a new folder that training.assemble takes as `--weights`.

    `folder` holds one of CHECKPOINTS and config.json; `preset` is a name in configs/, or a JSON file like those. Raises
    FileNotFoundError for a folder without these, ValueError for what is not OpenVoice's converter at the preset's sizes.
    """
    if output.exists():
        raise ValueError(f"{output} is there already; remove it, or name another folder")
    decoder = speech_decoder(preset)
    settings = read_settings(folder / "config.json")
    check_settings(folder / "config.json", settings, decoder.config)
    file, theirs = read_weights(folder)
    places = layout(decoder, NEW_PAIR if any(name.endswith(NEW_PAIR) for name in theirs) else OLD_PAIR)
    check_tensors(file, theirs, places)
    ours = {name: join(*(theirs[source] for source in sources)) for name, sources in places.items()}
    if settings["model"].get("zero_g", False):
        ours |= {name: torch.zeros_like(ours[name]) for name in OF_ZERO_G}
    facts = {"format": "pt", "source": "OpenVoice's tone-colour converter", "license": "MIT", "sha256": parts.sha256(file)}
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({f"speech_decoder.{name}": tensor for name, tensor in ours.items()}, part / "model.safetensors", facts)
    os.replace(part, output)
    print(f"{output}: {sum(tensor.numel() for tensor in ours.values()):,} parameters of {len(theirs)} tensors in {file}")


def speech_decoder(preset: str):
    """The preset's speech decoder on the meta device; ValueError for a preset without one, or without HiFi-GAN."""
    model = empty_model(preset)
    config = model.config.speech_config
    if config is None or config.vocoder_type != "hifigan":
        found = "no speech_config" if config is None else f"speech_config.vocoder_type {config.vocoder_type!r}"
        raise ValueError(f"the preset {preset!r} has {found}; OpenVoice's weights are for a speech decoder with 'hifigan'")
    return model.speech_decoder


# --- reading --------------------------------------------------------------------------------------------------------------


def read_settings(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; it lies beside OpenVoice's {WANTED}")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); OpenVoice's is an object with 'data' and 'model'") from error
    for section in ("data", "model"):
        if not isinstance(settings, dict) or not isinstance(settings.get(section), dict):
            found = ", ".join(settings) if isinstance(settings, dict) else type(settings).__name__
            raise ValueError(f"{file} has no {section!r}, so it is not OpenVoice's; found: {found}")
    return settings


def check_settings(file: Path, settings: dict, config) -> None:
    """Raises ValueError where OpenVoice's configuration and the preset's `speech_config` do not say the same."""
    for key, name in SIZES.items():
        section, theirs = key.split(".")
        found, ours = settings[section].get(theirs), json.loads(json.dumps(getattr(config, name)))  # lists, not tuples
        if found != ours:
            raise ValueError(f"{key} is {found} in {file}, but the preset's speech_config.{name} is {ours}")
    for name, theirs in WRITTEN_OUT.items():
        if getattr(config, name) != theirs:
            raise ValueError(f"the preset's speech_config.{name} is {getattr(config, name)}; OpenVoice's is {theirs}")
    if settings["model"].get("resblock") != "1":
        raise ValueError(f"model.resblock is {settings['model'].get('resblock')!r} in {file}; ours are OpenVoice's '1'")


def read_weights(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder's checkpoint and the state dict in it, alone or as "model" beside other things."""
    file = next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(CHECKPOINTS)}; give the folder of OpenVoice's {WANTED}")
    try:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is damaged or no weight file: {error}") from error
    found = found.get("model", found) if isinstance(found, dict) else found
    names = list(found) if isinstance(found, dict) else []
    if others := [name for name in names if name.startswith(BASE_SPEAKER)]:
        raise ValueError(f"{file} is a base speaker's ({listed(others)}); give the converter's: {WANTED}")
    beginnings = tuple(f"{theirs}." for theirs in MODULES.values())
    if not any(name.startswith(beginnings) for name in names):
        what = listed(names) if names else f"a {type(found).__name__} without names"
        raise ValueError(f"{file} is not OpenVoice's converter: looked for names with {', '.join(beginnings)}; found: {what}")
    return file, found


def listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- fitting --------------------------------------------------------------------------------------------------------------


def layout(decoder, pair: tuple[str, str]) -> dict[str, Sources]:
    """What each tensor in the four modules is made of, {our name: sources}, in a file that calls weight norm `pair`."""
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    return {name: sources(name, shape, pair) for name, shape in shapes.items() if name.split(".")[0] in MODULES}


def sources(ours: str, shape: tuple[int, ...], pair: tuple[str, str]) -> Sources:
    module, rest = ours.split(".", 1)
    if module == "flow":  # each layer is followed by a Flip, which counts and has no weights
        rest = re.sub(r"\d+", lambda number: str(2 * int(number[0])), rest, count=1)
    if module in ("flow", "posterior_encoder"):
        rest = rest.replace("conv_", "").replace("wavenet.", "enc.")
    name = f"{MODULES[module]}.{rest}".replace("dec.upsampler.", "dec.ups.")
    if re.fullmatch(r"dec\.(ups|resblocks)\..*\.weight", name):
        stem = name.removesuffix(".weight")
        return {stem + pair[0]: (shape[0], *[1] * (len(shape) - 1)), stem + pair[1]: shape}
    for mine, theirs in zip(NEW_PAIR, pair):
        name = name.replace(mine, theirs)
    return {name: shape}


def join(*tensors: torch.Tensor) -> torch.Tensor:
    """The one tensor as it is, or of a length and a direction the weight: weight norm over all dimensions but the first."""
    if len(tensors) == 1:
        return tensors[0].float().contiguous()
    length, direction = (tensor.float() for tensor in tensors)
    return length * direction / direction.flatten(1).norm(dim=1).view_as(length)


def check_tensors(file: Path, theirs: dict[str, torch.Tensor], places: dict[str, Sources]) -> None:
    """Raises ValueError unless the file holds every source, nothing else, and all in the preset's shapes."""
    expected = {source: (shape, ours) for ours, sources in places.items() for source, shape in sources.items()}
    missing, left_over = [name for name in expected if name not in theirs], [name for name in theirs if name not in expected]
    if missing or left_over:
        raise ValueError(
            f"{file} does not fit the preset: missing: {listed(missing) or 'nothing'}; without a place in the speech decoder: "
            f"{listed(left_over) or 'nothing'}; expected {len(expected)} tensors, found {len(theirs)}"
        )
    for name, (shape, ours) in expected.items():
        if tuple(theirs[name].shape) != shape:
            raise ValueError(f"{name} in {file} has shape {list(theirs[name].shape)}; speech_decoder.{ours} needs {list(shape)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", type=Path, required=True, dest="folder", metavar="DIR", help="checkpoint.pth, config.json")
    parser.add_argument("--preset", default="eagle-a", help="a name in configs/, or a JSON file (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="a new folder, for `training.assemble --weights`")
    args = parser.parse_args()
    try:
        convert(args.folder, args.preset, args.output)
    except (ValueError, OSError) as error:
        sys.exit(f"training.convert_openvoice: {error}")


if __name__ == "__main__":
    main()
