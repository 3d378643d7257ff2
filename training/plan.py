"""What training takes: memory of each GPU, tokens a second, hours and cost of every stage of the paper's recipe.

    python -m training.plan --preset eagle --nodes 32 --gpus 8
    python -m training.plan --preset eagle --nodes 1 --gpus 8 --gpu a100 --efficiency 0.4 --price 1.5 --json

Rows, their shares and what is trained come from training/recipes/STAGE/full.yaml; parameters are counted on the model
itself. What the paper does not state is assumed, and ROWS says so. Efficiency is the share of the GPU's dense bf16 peak
that goes into the operations counted here: those of matrices and attention, without the second forward pass that
checkpointing costs, and without padding.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module

ROOT = Path(__file__).parents[1]
STAGES = ("align", "pretrain", "instruct", "chat", "function-calling")
PAPER_HOURS, PAPER_GPUS = 39, 256  # Table 3: 32 machines of 8 H100, for all of it
RECIPE_GPUS = 256  # the full recipes' steps and batches are for as many
AUDIO_TOKENS = 3  # a second of sound (Fig. 2)
USABLE = 0.9  # share of a GPU's memory; the rest holds CUDA, buffers of the network, tiles of logits, gaps

# Dense bf16 operations a second and bytes of memory (NVIDIA's data sheets, SXM modules).
GPUS = {"a100": (312e12, 80e9), "h100": (989e12, 80e9), "h200": (989e12, 141e9)}

# Bytes that a layer keeps of each token for the backward pass, in bf16 with fused attention: so many times its width and so
# many times its inner width. Measured on transformers' layers with torch.autograd.graph.saved_tensors_hooks.
KEPT = {"phi3": (30, 8), "clip_vision_model": (16, 6), "whisper": (18, 4)}
STATE_BYTES = {"parameters": 4, "gradients": 4, "optimizer": 8}  # of a trained parameter: float32, AdamW
FROZEN_BYTES = 2  # of another: bf16


@dataclass(frozen=True)
class Row:
    """What one row of a source holds on average: text tokens, 336 px crops, 30 s windows and the seconds of sound in them."""

    text: float
    crops: float
    windows: float
    seconds: float
    origin: str


CHAT = (1000, 4, 2, 20, "assumed: 1,000 tokens, a picture of 4 crops, 2 utterances of 10 s")
ROWS = {
    "laion-coco": Row(40, 2, 0, 0, "assumed: a caption of 40 tokens with its request, 2 crops"),
    "obelics": Row(816, 10, 0, 0, "its paper: 115 B tokens and 353 M pictures in 141 M documents; assumed: 4 crops each"),
    "rendered-text": Row(60, 16, 0, 0, "its page: 1024 x 1024 pixels; assumed: 60 tokens"),
    "idl": Row(300, 16, 0, 0, "assumed: a page of 300 tokens and as many crops as the processor makes"),
    "pdfa": Row(500, 16, 0, 0, "assumed: a page of 500 tokens and as many crops as the processor makes"),
    "spoken-trivia": Row(20, 0, 1, 6, "assumed: a question of 6 s, an answer of 20 tokens"),
    "librispeech": Row(50, 0, 1, 12.3, "its page: 960 h in 281,241 utterances; assumed: 50 tokens"),
    "synthetic": Row(300, 4, 0.3, 3, "assumed: 300 tokens, 4 crops, 10 s of speech in 3 of 10"),
    "cauldron": Row(490, 8, 0, 0, "paper: 462 M tokens, 3.7 M pictures; of answers, so as many of questions; 4 crops each"),
    "any-instruct": Row(*CHAT),
    "chat/synthetic": Row(*CHAT),
    "real": Row(*CHAT),
    "rephrased": Row(*CHAT),
    "xlam": Row(600, 0, 0, 0, "assumed: 600 tokens with the tools"),
    "glaive": Row(700, 0, 0, 0, "assumed: 700 tokens with the tools"),
    "multimodal": Row(600, 4, 1, 8, "assumed: 600 tokens, a picture of 4 crops, a request of 8 s"),
}
# Rows of the public sets that the paper names for pre-training, and their own papers or pages count.
ONCE = {
    "laion-coco": 600e6, "obelics": 141e6, "rendered-text": 12e6, "idl": 19e6, "pdfa": 18.6e6, "spoken-trivia": 95e3,
    "librispeech": 281_241,
}  # fmt: skip


# --- the model ----------------------------------------------------------------------------------------------------------


def build(preset: str) -> nn.Module:
    """The preset's model on the meta device: every shape, no memory."""
    model_class = get_class_from_dynamic_module("modeling_eagle.EagleForConditionalGeneration", str(ROOT))
    with torch.device("meta"):
        return model_class(model_class.config_class.from_json_file(ROOT / "configs" / f"{preset}.json"))


def is_trained(parameter: str, trained: list[str]) -> bool:
    """Whether a recipe's `rates` name the module that a parameter of the whole model is in."""
    return parameter.removeprefix("model.").startswith(tuple(f"{module}." for module in trained))


def states(model: nn.Module, trained: list[str]) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer on all GPUs together."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    learning = sum(size for name, size in sizes.items() if is_trained(name, trained))
    found = {name: size * learning for name, size in STATE_BYTES.items()}
    found["parameters"] += FROZEN_BYTES * (sum(sizes.values()) - learning)
    return found


def layers(config) -> list[tuple[str, int, int, int, tuple[int, int]]]:
    """(unit, its tokens in the layer, layers, width, bytes kept a token) of each stack of transformer layers."""
    text, vision, audio = config.text_config, config.vision_config, config.audio_config
    parts = [("token", 1, text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.model_type)]
    patches = config.patches_per_side**2 + config.vision_use_cls
    parts.append(("crop", patches, vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size, vision.model_type))
    frames = audio.max_source_positions, audio.encoder_layers, audio.d_model, audio.encoder_ffn_dim
    parts.append(("window", *frames, audio.model_type))
    return [
        (unit, tokens, count, width, KEPT[kind][0] * width + KEPT[kind][1] * inner)
        for unit, tokens, count, width, inner, kind in parts
    ]


def passing(trained: list[str]) -> dict[str, bool]:
    """Whether gradients pass the layers that a unit goes through: always the language model's, a tower's if it is trained."""
    towers = {"token": "", "crop": "vision_tower", "window": "audio_tower", "sound token": "audio_tower"}
    return {unit: any(name.startswith(tower) for name in trained) for unit, tower in towers.items()}


def activations(config, trained: list[str], amounts: dict[str, float], checkpointing: bool) -> float:
    """Bytes kept for the backward pass of so many tokens, crops and windows. With checkpointing a layer keeps its input
    (bf16), and one layer at a time is computed again. Projectors and Whisper's decoder, a few per cent, are left out."""
    kept, again = 0.0, 0.0
    for unit, tokens, count, width, a_token in layers(config):
        rows = tokens * amounts[unit] * passing(trained)[unit]
        kept += count * rows * (2 * width if checkpointing else a_token)
        again = max(again, rows * a_token)
    return kept + again * checkpointing


def gathered(model: nn.Module) -> float:
    """Bytes of whole bf16 parameters and gradients while they are in use: a layer, the next one that is fetched meanwhile,
    and embedding and head."""
    stacked = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in stacked)
    ends = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    return 2 * 3 * largest + 2 * 2 * sum(weight.numel() for weight in ends)


# --- operations ---------------------------------------------------------------------------------------------------------


def passes_of(name: str, config) -> tuple[str, float]:
    """Which unit brings rows through the matrix `name`, and how many each: "token" of the language model, "crop", "window" of
    sound, "sound token"."""
    patches = config.patches_per_side**2
    if "vision_tower" in name:
        return "crop", patches + (config.vision_use_cls and "patch_embedding" not in name)
    if "multi_modal_projector.q_proj" in name:
        return "crop", 0  # the queries are the same for all
    if "multi_modal_projector" in name:
        return "crop", config.num_image_tokens if name.split(".")[2] in ("out_proj", "proj") else patches
    if "audio_tower.encoder" in name or "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name:
        return "window", config.audio_config.max_source_positions * (2 if name.endswith("conv1") else 1)
    return ("sound token" if "audio" in name else "token"), 1


def operations(model: nn.Module, trained: list[str], length: float) -> dict[str, float]:
    """Operations of a training step for each "token" (of a sequence of `length`), "crop", "window" and "sound token".

    A matrix of N weights takes 2 N a row forward, 2 N more for the gradient of its input if something before it is trained,
    and 2 N more for its own if it is: 6 N trained, 4 N in a frozen language model that gradients pass, 2 N in a frozen tower.
    Attention takes 4 x width for each pair of query and key, and twice that again where gradients pass.
    """
    config, gradients = model.config, passing(trained)
    total = dict.fromkeys(gradients, 0.0)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            unit, rows = passes_of(name, config)
            learns = is_trained(f"{name}.weight", trained)
            inside = learns and "projector" in name and "kv_proj" not in name  # what is before it in its projector learns
            total[unit] += 2 * (1 + (gradients[unit] or inside) + learns) * rows * module.weight.numel()
    for unit, tokens, count, width, _ in layers(config):
        pairs = tokens * (length if unit == "token" else tokens)
        total[unit] += 4 * (1 + 2 * gradients[unit]) * count * width * pairs
    resampled = config.num_image_tokens * config.patches_per_side**2 * config.text_config.hidden_size
    total["crop"] += 4 * (1 + 2 * bool({"multi_modal_projector", "vision_tower"} & set(trained))) * resampled
    if config.audio_token_source == "decoder":
        audio = config.audio_config
        total["sound token"] += (
            4 * (1 + 2 * gradients["window"]) * audio.decoder_layers * audio.d_model * audio.max_source_positions
        )
    return total


# --- stages -------------------------------------------------------------------------------------------------------------


def amounts_of(stage: str, rows: dict[str, float], config) -> tuple[dict[str, float], float]:
    """Tokens of the language model, crops, windows and sound tokens of so many rows of each source; and the length of the row
    that an average token is in."""
    for name in rows:
        if size_name(stage, name) not in ROWS:
            known = ", ".join(ROWS)
            raise ValueError(f"the recipe of {stage} reads {name!r}, of which ROWS in training/plan.py has no size; known: {known}")
    total, squares = dict.fromkeys(("token", "crop", "window", "sound token"), 0.0), 0.0
    for name, count in rows.items():
        row = ROWS[size_name(stage, name)]
        sound = AUDIO_TOKENS * row.seconds
        length = row.text + config.num_image_tokens * row.crops + sound
        for unit, amount in zip(total, (length, row.crops, row.windows, sound)):
            total[unit] += count * amount
        squares += count * length**2
    return total, squares / total["token"]


def size_name(stage: str, source: str) -> str:
    """The key in ROWS: of two sources with one name, the stage tells them apart."""
    return f"{stage}/{source}" if f"{stage}/{source}" in ROWS else source


def read_stage(stage: str) -> tuple[list[str], dict[str, float]]:
    """What the stage's full recipe trains, and the rows that it takes of each source."""
    recipe = yaml.safe_load((ROOT / "training" / "recipes" / stage / "full.yaml").read_text())
    batch = recipe["per_device_train_batch_size"] * recipe.get("gradient_accumulation_steps", 1) * RECIPE_GPUS
    weights = {name: source["weight"] for name, source in recipe["data"].items()}
    rows = recipe["max_steps"] * batch / sum(weights.values())
    return list(recipe["rates"]), {name: weight * rows for name, weight in weights.items()}


def memory(model: nn.Module, trained: list[str], amounts: dict[str, float], tokens: int, gpus: int) -> dict[str, float]:
    """Bytes on each GPU for a micro-batch of `tokens`, with crops and windows in the stage's proportion."""
    batch = {unit: amount * tokens / amounts["token"] for unit, amount in amounts.items()}
    found = {name: size / gpus for name, size in states(model, trained).items()}
    found["gathered"] = gathered(model)
    found["activations"] = activations(model.config, trained, batch, checkpointing=False)
    found["activations, checkpointed"] = activations(model.config, trained, batch, checkpointing=True)
    return found


def check_fit(stage: str, needed: dict[str, float], args) -> None:
    """Raises ValueError, with the number of GPUs that would do, where a GPU is too small with checkpointing."""
    usable = USABLE * GPUS[args.gpu][1]
    gpus = args.nodes * args.gpus
    shared = gpus * sum(needed[name] for name in STATE_BYTES)
    own = needed["gathered"] + needed["activations, checkpointed"]
    if shared / gpus + own <= usable:
        return
    advice = "no number of GPUs would do: lower --micro-batch or --length"
    if own < usable:
        advice = f"{math.ceil(shared / (usable - own))} GPUs would do"
    raise ValueError(
        f"{stage} takes {(shared / gpus + own) / 1e9:.1f} GB of each of {gpus} {args.gpu}, of which {usable / 1e9:.1f} GB are "
        f"usable; {advice}"
    )


def plan(args) -> dict:
    """All numbers: `stages`, those of the recipes and last pre-training on each public set once; `totals` of our recipes and of
    the paper's stages, with the efficiency at which these take the paper's hours."""
    model = build(args.preset)
    gpus = args.nodes * args.gpus
    speed = GPUS[args.gpu][0] * args.efficiency * gpus
    wanted = {stage: read_stage(stage) for stage in STAGES}
    wanted["pretrain, each set once"] = wanted["pretrain"][0], ONCE
    stages = {}
    for stage, (trained, rows) in wanted.items():
        amounts, length = amounts_of(stage, rows, model.config)
        each = operations(model, trained, length)
        needed = memory(model, trained, amounts, args.micro_batch * args.length, gpus)
        check_fit(stage, needed, args)
        work = sum(each[unit] * amounts[unit] for unit in each)
        stages[stage] = {
            "trained": trained, "rows": sum(rows.values()), "amounts": amounts, "operations_each": each, "operations": work,
            "operations_per_token": work / amounts["token"], "tokens_per_second": speed / work * amounts["token"],
            "hours": work / speed / 3600, "cost": work / speed / 3600 * gpus * args.price, "memory": needed,
            "origins": {size_name(stage, name): ROWS[size_name(stage, name)].origin for name in rows},
        }  # fmt: skip
    both = {"recipes": STAGES, "paper": [*(stage for stage in STAGES if stage != "pretrain"), "pretrain, each set once"]}
    totals = {
        name: {key: sum(stages[stage][key] for stage in chosen) for key in ("operations", "hours", "cost")}
        for name, chosen in both.items()
    }
    totals["paper"]["efficiency"] = totals["paper"]["operations"] / (PAPER_HOURS * 3600 * PAPER_GPUS * GPUS["h100"][0])
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    parameters["lm_head"] = sum(p.numel() for p in model.lm_head.parameters())
    return {"arguments": vars(args), "parameters": parameters, "stages": stages, "totals": totals}


# --- what is printed ----------------------------------------------------------------------------------------------------


def short(number: float) -> str:
    """1234567 -> "1.23 M"; B is 10^9."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def report(found: dict) -> str:
    args, gpus = argparse.Namespace(**found["arguments"]), found["arguments"]["nodes"] * found["arguments"]["gpus"]
    lines = [f"{args.preset}: " + ", ".join(f"{name} {short(count)}" for name, count in found["parameters"].items()), ""]
    lines += [f"{args.nodes} x {args.gpus} {args.gpu}, efficiency {args.efficiency:.0%}, {args.price:g} $ a GPU and hour", ""]
    head = "stage", "rows", "tokens", "crops", "sound", "op/token", "tokens/s", "hours", "cost"
    lines.append(f"{head[0]:<25}" + "".join(f"{title:>10}" for title in head[1:]))
    for name, stage in found["stages"].items():
        amounts = stage["amounts"]
        sound = f"{short(amounts['sound token'] / AUDIO_TOKENS / 3600)} h"
        cells = [short(stage["rows"]), short(amounts["token"]), short(amounts["crop"]), sound]
        cells += [short(stage["operations_per_token"]), short(stage["tokens_per_second"])]
        cells += [f"{stage['hours']:.3g}", f"{stage['cost']:,.0f} $"]
        lines.append(f"{name:<25}" + "".join(f"{cell:>10}" for cell in cells))
    lines += ["", f"GB on each GPU for {args.micro_batch} rows of {args.length} tokens"]
    names = list(found["stages"]["align"]["memory"])
    lines.append(" " * 25 + "".join(f"{name:>{len(name) + 2}}" for name in names))
    for stage in ("align", "pretrain"):
        sizes = found["stages"][stage]["memory"]
        lines.append(f"{stage:<25}" + "".join(f"{sizes[name] / 1e9:>{len(name) + 2}.2f}" for name in names))
    lines += ["", "Sizes of rows (rows of our recipes: training/recipes; tokens that the paper states: 30 M align, 462 M Cauldron)"]
    origins = {name: origin for stage in found["stages"].values() for name, origin in stage["origins"].items()}
    lines += [f"  {name:<16}{origin}" for name, origin in origins.items()]
    labels = {"recipes": "Our recipes", "paper": "The paper's stages, each public set once (its own, of unstated sizes, left out)"}
    lines.append("")
    for name, label in labels.items():
        total = found["totals"][name]
        lines.append(f"{label}: {total['hours']:.1f} hours, {total['hours'] * gpus:,.0f} GPU hours, {total['cost']:,.0f} $.")
    efficiency = found["totals"]["paper"]["efficiency"]
    lines.append(f"The latter in the paper's {PAPER_HOURS} hours on {PAPER_GPUS} H100 is an efficiency of {efficiency:.1%}.")
    speed = GPUS["h100"][0] * args.efficiency * PAPER_GPUS
    held = speed * PAPER_HOURS * 3600 / found["stages"]["pretrain"]["operations_per_token"]
    lines.append(f"At {args.efficiency:.0%} those hours hold {short(held)} tokens of such pre-training.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = sorted(path.stem for path in (ROOT / "configs").glob("*.json"))
    parser.add_argument("--preset", choices=presets, default="eagle")
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--gpus", type=int, default=8, help="in each node")
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--efficiency", type=float, default=0.35)
    parser.add_argument("--price", type=float, default=2.5, help="dollars a GPU and hour")
    parser.add_argument("--micro-batch", type=int, default=2, help="rows on a GPU at once")
    parser.add_argument("--length", type=int, default=4096, help="tokens of such a row")
    parser.add_argument("--json", action="store_true", help="all numbers instead of the tables")
    args = parser.parse_args()
    if min(args.nodes, args.gpus, args.micro_batch, args.length) < 1 or not 0 < args.efficiency <= 1:
        parser.error("numbers of nodes, GPUs, rows and tokens start at 1, and the efficiency lies between 0 and 1")
    try:
        found = plan(args)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=2) if args.json else report(found))


if __name__ == "__main__":
    main()
