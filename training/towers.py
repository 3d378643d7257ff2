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
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import WhisperFeatureExtractor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from trl import TrlParser

from training import attention
from training.optimizer import MuonAdamW
from training.synthesis import dense

ROOT = str(Path(__file__).parents[1])
EagleModel = get_class_from_dynamic_module("modeling_eagle.EagleModel", ROOT)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULES = {"vision": ("vision_tower", "multi_modal_projector"), "audio": ("audio_tower", "audio_projector")}


@dataclass
class TowerConfig:
    """One run; the learning rate is that of training/optimizer.py."""

    tower: str
    output_dir: str
    preset: str = "configs/eagle-tiny.json"
    start_from: str | None = None  # output folder of an earlier stage, for its tower and projector
    frozen_steps: int = 0  # first steps, in which the tower stands still while the new heads come to know it
    quadrants: bool = False  # vision: attention within quarters of a crop and patch targets only, at half the price
    easiest: float = 0.0  # difficulty of the first and
    hardest: float = 1.0  # of the last pictures, see dense.random_picture
    steps: int = 20_000
    batch_size: int = 16
    learning_rate: float = 2e-3
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
        """Cross-entropy of each kind and its accuracy where something is; features (N, P, D), tokens (N, T, D) or None."""
        losses, accuracies = {}, {}
        for kind, target in targets.items():
            states = tokens if kind.startswith("token_") else features
            if states is None:
                continue
            logits = self[kind](states).float()
            logits, target = logits.reshape(-1, dense.CLASSES[kind]), target.reshape(-1)
            weight = torch.ones(dense.CLASSES[kind], device=logits.device)
            weight[0] = empty_weight
            losses[kind] = F.cross_entropy(logits, target, weight)
            something = target > 0
            if something.any():
                accuracies[kind] = (logits[something].argmax(-1) == target[something]).float().mean().item()
        return losses, accuracies


def build_model(config: TowerConfig) -> nn.Module:
    """The preset's model with only the asked-for tower and its projector, from a start that suits small data."""
    eagle = EagleModel.config_class.from_json_file(config.preset)
    eagle.text_config.num_hidden_layers = 1  # not used here
    other = "audio_config" if config.tower == "vision" else "vision_config"
    setattr(eagle, other, None)
    torch.manual_seed(config.seed)
    model = EagleModel(eagle)
    if config.tower == "vision":
        start_local(model.vision_tower)
    else:
        start_near_identity(model.audio_tower)
    if DEVICE == "cpu":
        model.set_attn_implementation(attention.NAME)
    return model.to(DEVICE).train()


@torch.no_grad()
def start_near_identity(tower: nn.Module) -> None:
    """Queries and keys that are nearly the identity: each frame first looks at those that are like it."""
    for name, parameter in tower.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.normal_(std=0.01)
            parameter += torch.eye(parameter.shape[0])


@torch.no_grad()
def start_local(tower: nn.Module) -> None:
    """A vision tower that starts like a convolution: its heads look at the patches left, right, above and below.

    The first 64 channels hold the position code, the others what the patch shows; queries are the code turned by the
    head's offset, keys the code itself, so that attention falls where the two agree (the idea of d'Ascoli et al. 2021,
    "ConViT", without its gates: the architecture stays CLIP's). Offsets reach further from layer to layer.
    """
    embeddings, side = tower.embeddings, math.isqrt(tower.embeddings.num_patches)
    patches = torch.arange(side * side)
    embeddings.position_embedding.weight.zero_()
    code = torch.cat([axis_code(patches % side), axis_code(patches // side)], 1)
    embeddings.position_embedding.weight[1:, : code.shape[1]] = math.sqrt(2) * code  # row 0 is the class token's
    embeddings.patch_embedding.weight.zero_()
    filters = whitening_filters(embeddings.patch_embedding.weight.shape[0] - code.shape[1])
    embeddings.patch_embedding.weight[code.shape[1] :] = filters
    for depth, layer in enumerate(tower.encoder.layers):
        attention, reach = layer.self_attn, (1, 1, 2, 3)[min(depth, 3)]
        for head in range(attention.num_heads):
            rows = slice(head * attention.head_dim, head * attention.head_dim + code.shape[1])
            dx, dy = ((-reach, 0), (reach, 0), (0, -reach), (0, reach))[head % 4]
            scale = 1.1 + 0.3 * depth  # what deeper layers add to the channels weakens the code's share
            for projection, turn in ((attention.q_proj, (dx, dy)), (attention.k_proj, (0, 0))):
                projection.weight[rows] = torch.randn_like(projection.weight[rows]) * 0.005
                projection.weight[rows, : code.shape[1]] += scale * torch.block_diag(*map(axis_turn, turn))


def axis_frequencies() -> torch.Tensor:
    """16 frequencies from pi a patch, which tells neighbours apart, down to about the width of a crop."""
    return math.pi / 30 ** (torch.arange(16) / 16)


def axis_code(positions: torch.Tensor) -> torch.Tensor:
    """(n,) positions on one axis -> (n, 32): cosine and sine of each frequency, side by side."""
    angles = positions[:, None] * axis_frequencies()
    return torch.stack([angles.cos(), angles.sin()], -1).flatten(1)


def axis_turn(offset: int) -> torch.Tensor:
    """(32, 32) matrix that maps the code of any position to the code of the one `offset` patches on."""
    angles = offset * axis_frequencies()
    return torch.block_diag(*(torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]]) for a in angles))


def whitening_filters(count: int) -> torch.Tensor:
    """(count, 3, 14, 14) principal components of picture patches, scaled to unit variance.

    Strokes then stand beside brightness, which fills most of a patch's variance and would drown them in a random start
    (as in Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU").
    """
    rng = random.Random(0)
    batches = [picture_batch(rng, 16, difficulty)[0] for difficulty in (0.0, 0.3, 0.6, 1.0)]
    patches = torch.cat([F.unfold(b, dense.PATCH, stride=dense.PATCH).transpose(1, 2).flatten(0, 1) for b in batches])
    centred = patches - patches.mean(0)
    variances, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    filters = components / (variances + 1e-3).sqrt()
    return filters.T.flip(0)[:count].reshape(count, 3, dense.PATCH, dense.PATCH)


def picture_batch(rng: random.Random, size: int, difficulty: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`size` normalised crops (N, 3, 336, 336) float32 and their targets."""
    crops = []
    while len(crops) < size:
        crops += dense.picture_crops(rng, dense.random_picture(rng, difficulty))
    crops = crops[:size]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in crops])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std, stack_targets([targets for _, targets in crops])


def recording_batch(rng: random.Random, size: int, difficulty: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`size` log-mel windows (N, 80, 3000) float32 and their targets; the same all along."""
    recordings = [dense.random_recording(rng) for _ in range(size)]
    extractor = WhisperFeatureExtractor()
    features = extractor([w for w, _ in recordings], sampling_rate=16_000, return_tensors="pt").input_features
    return features, stack_targets([targets for _, targets in recordings])


def stack_targets(targets: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {kind: torch.from_numpy(np.stack([t[kind] for t in targets])) for kind in targets[0]}


def encode(model: nn.Module, config: TowerConfig, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tower features (N, positions, tower width) and projected tokens (N, tokens, text width)."""
    if config.quadrants:
        return encode_quadrants(model.vision_tower, batch), None
    if config.tower == "vision":
        output = model.get_image_features(batch)
    else:
        output = model.get_audio_features(batch, batch.new_ones(batch.shape[0], batch.shape[2], dtype=torch.long))
    tokens = output.pooler_output
    return output.last_hidden_state, tokens.reshape(batch.shape[0], -1, tokens.shape[-1])


def encode_quadrants(tower: nn.Module, crops: torch.Tensor) -> torch.Tensor:
    """Vision features (N, 576, width) of crops whose quarters do not see each other."""
    side = dense.PATCHES // 2
    patches = tower.pre_layrnorm(tower.embeddings(crops)).unflatten(1, (2, side, 2, side))
    quarters = patches.transpose(2, 3).flatten(0, 2).flatten(1, 2)
    states = tower.encoder(inputs_embeds=quarters).last_hidden_state
    return states.unflatten(1, (side, side)).unflatten(0, (-1, 2, 2)).transpose(2, 3).flatten(1, 4)


def schedule(config: TowerConfig, step: int) -> float:
    """Factor on the learning rates: linear warm-up, constant, linear decay to zero."""
    left = (config.steps - step) / max(1, config.decay_fraction * config.steps)
    return min(1.0, (step + 1) / config.warmup_steps, left)


def save(path: Path, write) -> None:
    """Writes beside `path`, then renames: a kill leaves the last good file."""
    partial = path.with_suffix(".partial")
    write(partial)
    os.replace(partial, path)


def tower_state(config: TowerConfig, model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the tower and its projector, named as in EagleModel."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(MODULES[config.tower])}


def train(config: TowerConfig) -> None:
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(config)
    make_batch = picture_batch if config.tower == "vision" else recording_batch
    _, targets = make_batch(random.Random(0), 1, 0.0)
    tower_width = getattr(model.config, f"{config.tower}_config").hidden_size
    heads = DenseHeads(list(targets), tower_width, model.config.text_config.hidden_size).to(DEVICE)
    trained = [getattr(model, name) for name in MODULES[config.tower]] + [heads]
    named = [pair for module in trained for pair in module.named_parameters()]
    optimizer = MuonAdamW([(named, config.learning_rate)], config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(schedule, config))
    if config.start_from:
        model.load_state_dict(load_file(Path(config.start_from) / "model.safetensors"), strict=False)
    first = 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=DEVICE)
        model.load_state_dict(saved["model"], strict=False)
        heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"] | {"base_lrs": scheduler.base_lrs})  # the rate may be another now
        first = saved["step"]
    tower = trained[0]
    started, window = time.time(), []
    for step in tqdm(range(first, config.steps), initial=first, total=config.steps, mininterval=30):
        difficulty = config.easiest + (config.hardest - config.easiest) * step / config.steps
        batch, targets = make_batch(random.Random(f"{config.seed}/{step}"), config.batch_size, difficulty)
        # New heads' random gradients would undo in 100 steps what the tower has learnt (docs/LOG.md).
        tower.requires_grad_(step >= config.frozen_steps)
        batch, targets = batch.to(DEVICE), {kind: target.to(DEVICE) for kind, target in targets.items()}
        with torch.autocast(DEVICE, torch.bfloat16):
            features, tokens = encode(model, config, batch)
            losses, accuracies = heads.losses(features, tokens, targets, config.empty_weight)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

        window.append((accuracies, {f"loss_{kind}": loss.item() for kind, loss in losses.items()}))
        if (step + 1) % config.logging_steps == 0:
            log(folder / "log.jsonl", step + 1, time.time() - started, window)
            window = []
        if (step + 1) % config.save_steps == 0 or step + 1 == config.steps:
            weights = tower_state(config, model)
            state = {"model": weights, "heads": heads.state_dict(), "step": step + 1}
            state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            save(checkpoint, lambda path, state=state: torch.save(state, path))
            handover = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
            save(folder / "model.safetensors", lambda path, tensors=handover: save_file(tensors, path))


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
