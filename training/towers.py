"""Stage 0 of eagle-tiny: teaches a tower and its projector what lies where, from dense targets.

    python -m training.towers --config training/recipes/towers/vision.yaml
    python -m training.towers --config training/recipes/towers/audio.yaml --steps 200 --output_dir runs/try

A full-size EAGLE starts from CLIP and Whisper and skips this. Linear heads on the tower's features and on the
projector's tokens predict the targets of `training/synthesis/dense.py`; the heads are thrown away afterwards.
A killed run goes on where its last checkpoint stood: every step draws its batch from (seed, step) alone.
"""

import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import WhisperFeatureExtractor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from trl import TrlParser

from training.synthesis import dense

ROOT = str(Path(__file__).parents[1])
EagleModel = get_class_from_dynamic_module("modeling_eagle.EagleModel", ROOT)
MODULES = {"vision": ("vision_tower", "multi_modal_projector"), "audio": ("audio_tower", "audio_projector")}


@dataclass
class TowerConfig:
    """One run. `muon_learning_rate` is for the matrices of the tower's layers, `learning_rate` (AdamW) for the rest."""

    tower: str
    output_dir: str
    preset: str = "configs/eagle-tiny.json"
    steps: int = 20_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    muon_learning_rate: float = 8e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    decay_fraction: float = 0.3  # the last part of the steps, in which the learning rates fall to zero
    empty_weight: float = 0.25  # loss weight of positions that hold nothing, which are by far the most
    seed: int = 0
    logging_steps: int = 50
    save_steps: int = 500


class DenseHeads(nn.ModuleDict):
    """One linear classifier per kind of target, on tower features ("patch_", "frame_") or projected tokens ("token_")."""

    def __init__(self, kinds: list[str], tower_width: int, token_width: int):
        super().__init__()
        for kind in kinds:
            width = token_width if kind.startswith("token_") else tower_width
            self[kind] = nn.Linear(width, dense.SLOTS.get(kind, 1) * dense.CLASSES[kind])

    def losses(self, features, tokens, targets, empty_weight: float) -> tuple[dict, dict]:
        """Cross-entropy of each kind and its accuracy where something is; features (N, P, D), tokens (N, T, D)."""
        losses, accuracies = {}, {}
        for kind, target in targets.items():
            logits = self[kind](tokens if kind.startswith("token_") else features).float()
            logits, target = logits.reshape(-1, dense.CLASSES[kind]), target.reshape(-1)
            weight = torch.ones(dense.CLASSES[kind])
            weight[0] = empty_weight
            losses[kind] = F.cross_entropy(logits, target, weight)
            something = target > 0
            if something.any():
                accuracies[kind] = (logits[something].argmax(-1) == target[something]).float().mean().item()
        return losses, accuracies


def build_model(config: TowerConfig) -> nn.Module:
    """The preset's model with only the asked-for tower and its projector, near-identity attention in the tower."""
    eagle = EagleModel.config_class.from_json_file(config.preset)
    eagle.text_config.num_hidden_layers = 1  # not used here
    other = "audio_config" if config.tower == "vision" else "vision_config"
    setattr(eagle, other, None)
    torch.manual_seed(config.seed)
    model = EagleModel(eagle)
    start_local(getattr(model, MODULES[config.tower][0]))
    if config.tower == "vision":
        whiten(model.vision_tower.embeddings.patch_embedding)
    return model.train()


@torch.no_grad()
def start_local(tower: nn.Module) -> None:
    """Sine/cosine position codes and queries and keys that are nearly the identity: each patch first looks around itself."""
    for name, parameter in tower.named_parameters():
        if name.endswith("position_embedding.weight"):
            parameter[1:] = 0.5 * grid_code(parameter.shape[0] - 1, parameter.shape[1])  # row 0: class token
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.normal_(std=0.01)
            parameter += torch.eye(parameter.shape[0])


@torch.no_grad()
def whiten(patch_embedding: nn.Conv2d) -> None:
    """Sets the filters to the principal components of picture patches, scaled to unit variance.

    Strokes then stand beside brightness, which fills most of a patch's variance and would drown them in a random start
    (as in Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU").
    """
    rng = random.Random(0)
    batches = [picture_batch(rng, 16, progress)[0] for progress in (0.0, 0.3, 0.6, 1.0)]
    patches = torch.cat([F.unfold(b, dense.PATCH, stride=dense.PATCH).transpose(1, 2).flatten(0, 1) for b in batches])
    centred = patches - patches.mean(0)
    variances, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    filters = components / (variances + 1e-3).sqrt()
    count = patch_embedding.weight.shape[0]
    patch_embedding.weight.copy_(filters.T.flip(0)[:count].reshape(patch_embedding.weight.shape))


def grid_code(positions: int, width: int) -> torch.Tensor:
    """(positions, width) sine/cosine code of a square grid, row by row: x in the first half, y in the second."""
    side = math.isqrt(positions)
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    code = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([code.repeat(side, 1), code.repeat_interleave(side, 0)], 1)


def picture_batch(rng: random.Random, size: int, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`size` normalised crops (N, 3, 336, 336) float32 and their targets."""
    crops = []
    while len(crops) < size:
        crops += dense.picture_crops(rng, dense.random_picture(rng, progress))
    crops = crops[:size]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in crops])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std, stack_targets([targets for _, targets in crops])


def recording_batch(rng: random.Random, size: int, progress: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`size` log-mel windows (N, 80, 3000) float32 and their targets; the same all along."""
    recordings = [dense.random_recording(rng) for _ in range(size)]
    extractor = WhisperFeatureExtractor()
    features = extractor([w for w, _ in recordings], sampling_rate=16_000, return_tensors="pt").input_features
    return features, stack_targets([targets for _, targets in recordings])


def stack_targets(targets: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {kind: torch.from_numpy(np.stack([t[kind] for t in targets])) for kind in targets[0]}


def encode(model: nn.Module, tower: str, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tower features (N, positions, tower width) and projected tokens (N, tokens, text width)."""
    if tower == "vision":
        output = model.get_image_features(batch)
    else:
        output = model.get_audio_features(batch, torch.ones(batch.shape[0], batch.shape[2], dtype=torch.long))
    tokens = output.pooler_output
    return output.last_hidden_state, tokens.reshape(batch.shape[0], -1, tokens.shape[-1])


def build_optimizers(config: TowerConfig, model: nn.Module, heads: DenseHeads) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the tower's layers, AdamW for everything else that is trained."""
    modules = [getattr(model, name) for name in MODULES[config.tower]]
    named = [(n, p) for module in (*modules, heads) for n, p in module.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if "layers." in n and p.ndim == 2]
    rest = [p for n, p in named if not ("layers." in n and p.ndim == 2)]
    muon = torch.optim.Muon(
        matrices, config.muon_learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(rest, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    return [muon, adamw]


def schedule(config: TowerConfig, step: int) -> float:
    """Factor on the learning rates: linear warm-up, constant, linear decay to zero."""
    left = (config.steps - step) / max(1, config.decay_fraction * config.steps)
    return min(1.0, (step + 1) / config.warmup_steps, left)


def save(path: Path, write) -> None:
    """Writes beside `path`, then renames: a kill leaves the last good file."""
    partial = path.with_suffix(".partial")
    write(partial)
    os.replace(partial, path)


def export(config: TowerConfig, model: nn.Module) -> dict[str, torch.Tensor]:
    """The hand-over to the next stage: bf16 weights of the tower and its projector, named as in EagleModel."""
    return {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(MODULES[config.tower])
    }


def train(config: TowerConfig) -> None:
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(config)
    make_batch = picture_batch if config.tower == "vision" else recording_batch
    _, targets = make_batch(random.Random(0), 1, 0.0)
    tower_width = getattr(model.config, f"{config.tower}_config").hidden_size
    heads = DenseHeads(list(targets), tower_width, model.config.text_config.hidden_size)
    optimizers = build_optimizers(config, model, heads)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first = saved["step"]
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    started, window = time.time(), []
    for step in tqdm(range(first, config.steps), initial=first, total=config.steps, mininterval=30):
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * schedule(config, step)
        batch, targets = make_batch(random.Random(f"{config.seed}/{step}"), config.batch_size, step / config.steps)
        with torch.autocast("cpu", torch.bfloat16):
            features, tokens = encode(model, config.tower, batch)
            losses, accuracies = heads.losses(features, tokens, targets, config.empty_weight)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        window.append((accuracies, {f"loss_{kind}": loss.item() for kind, loss in losses.items()}))
        if (step + 1) % config.logging_steps == 0:
            log(folder / "log.jsonl", step + 1, time.time() - started, window)
            window = []
        if (step + 1) % config.save_steps == 0 or step + 1 == config.steps:
            states = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizers": states, "step": step + 1}
            save(checkpoint, lambda path, state=state: torch.save(state, path))
            save(folder / "model.safetensors", lambda path: save_file(export(config, model), path))


def log(path: Path, step: int, seconds: float, window: list[tuple[dict, dict]]) -> None:
    """Appends the means of accuracies and losses since the last line."""
    line = {"step": step, "seconds": round(seconds)}
    for kind in sorted({k for pair in window for values in pair for k in values}):
        values = [v[kind] for pair in window for v in pair if kind in v]
        line[kind] = round(sum(values) / len(values), 4)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    train(TrlParser(TowerConfig).parse_args_and_config()[0])
