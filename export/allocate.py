"""Chooses a format for each matrix, so that a model of a given average size loses least: mixed precision by measurement.

    python -m export.allocate --model . --output export/out/eagle-tiny/mixed-5.5.json
    python -m training.sft --config ... --quantization export/out/eagle-tiny/mixed-5.5.json

What a matrix loses in a format is measured on calibration rows: each is rounded alone, and the loss is the Kullback-Leibler
divergence of the answer's tokens from those of the model in float. The sum of the losses is made as small as it can be under
the average of bits a weight, exactly: an integer program, solved by HiGHS. That losses add up is an assumption, which
`--output`'s figures let one check: they hold the sum, and what the plan as a whole really loses. Matrices whose rows are no multiple of a block stay in float16 and out of the
average.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor

from export.formats import BLOCK, FORMATS, matrices, rounded
from training import attention
from training.collator import EagleCollator
from training.data import BadRows, Mixture

CANDIDATES = ("q4_0", "q5_0", "q8_0")
SAMPLES = 4  # a batch


def groups_of(model) -> list[list[str]]:
    """Names of the modules that a format stores, those that share one matrix together."""
    groups: dict[int, list[str]] = {}
    for name, module in matrices(model).items():
        groups.setdefault(id(module.weight), []).append(name)
    return list(groups.values())


@torch.inference_mode()
def answers(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logarithms of the probabilities of what may stand at each labelled place: (labelled tokens, vocabulary), float64."""
    labelled = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100) != -100
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, logits_to_keep=labelled.to(model.device), use_cache=False).logits
    return logits.double().log_softmax(-1)  # in float32, what a small matrix changes drowns


def divergence(model, batches: list[dict], expected: list[torch.Tensor]) -> float:
    """Mean Kullback-Leibler divergence, in nats a token, of the model's answers from the expected ones."""
    sums = [(e.exp() * (e - answers(model, batch))).sum().item() for batch, e in zip(batches, expected, strict=True)]
    return sum(sums) / sum(len(e) for e in expected)


def with_formats(model, plan: dict[str, str], measure):
    """What `measure()` gives while the matrices of the named modules are rounded to their formats."""
    kept = {name: model.get_submodule(name).weight.data for name in plan}
    for name, chosen in plan.items():
        model.get_submodule(name).weight.data = rounded(kept[name], chosen).to(kept[name].dtype)
    try:
        return measure()
    finally:
        for name, weight in kept.items():
            model.get_submodule(name).weight.data = weight


def allocate(sizes: np.ndarray, losses: np.ndarray, bits: np.ndarray, average: float) -> np.ndarray:
    """The format of each group that makes the sum of losses smallest.

    Args:
        sizes: weights of each group, (groups,).
        losses: of each group in each format, (groups, formats), any unit.
        bits: of a weight in each format, (formats,).
        average: bits a weight that all groups together may take.

    Returns indices of formats, (groups,). Raises ValueError where even the smallest format takes more.
    """
    if average < bits.min():
        raise ValueError(f"an average of {average} bits cannot be reached: the smallest format takes {bits.min()}")
    groups, formats = losses.shape
    one_each = scipy.optimize.LinearConstraint(np.kron(np.eye(groups), np.ones(formats)), 1, 1)
    small_enough = scipy.optimize.LinearConstraint(np.outer(sizes, bits).ravel() / sizes.sum(), -np.inf, average)
    solved = scipy.optimize.milp(
        losses.ravel() / (losses.max() or 1), integrality=1, bounds=(0, 1), constraints=[one_each, small_enough], options={"mip_rel_gap": 0}
    )
    if not solved.success:
        raise RuntimeError(f"the allocation could not be solved: {solved.message}")
    return solved.x.reshape(groups, formats).argmax(1)


def make_plan(model, batches: list[dict], average: float) -> dict:
    """The plan file's content; see `main`."""
    plan = {name: "f16" for name, module in matrices(model).items() if module.weight.shape[1] % BLOCK}
    groups = [group for group in groups_of(model) if group[0] not in plan]
    expected = [answers(model, batch) for batch in batches]
    losses = np.zeros((len(groups), len(CANDIDATES)))
    for i, group in enumerate(tqdm(groups, desc="sensitivity", unit="matrix")):
        for j, name in enumerate(CANDIDATES):
            losses[i, j] = with_formats(model, dict.fromkeys(group, name), lambda: divergence(model, batches, expected))
    losses = losses.clip(0)  # a divergence of nothing is a rounding error above or below it
    sizes = np.array([model.get_submodule(group[0]).weight.numel() for group in groups])
    bits = np.array([FORMATS[name].bits for name in CANDIDATES])
    chosen = allocate(sizes, losses, bits, average)
    plan |= {name: CANDIDATES[j] for group, j in zip(groups, chosen, strict=True) for name in group}
    return {
        "average_bits": float(sizes @ bits[chosen] / sizes.sum()),
        "sum_of_divergences": float(losses[np.arange(len(groups)), chosen].sum()),
        "divergence": with_formats(model, plan, lambda: divergence(model, batches, expected)),
        "formats": plan,
        "divergences": {group[0]: dict(zip(CANDIDATES, row.tolist(), strict=True)) for group, row in zip(groups, losses, strict=True)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".", help="checkpoint (default: the one at the root)")
    parser.add_argument("--bits", type=float, default=5.5, help="average of a weight (default: %(default)s)")
    paths = [f"world:{skill}" for skill in ("sign", "code", "sentence", "chart", "scene", "spoken_picture", "fact", "in_context_request")]
    parser.add_argument("--paths", nargs="+", default=paths, help="calibration rows: sources of a recipe (default: of the small world)")
    parser.add_argument("--rows", type=int, default=64, help="calibration rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the plan, a JSON file")
    args = parser.parse_args()
    model = AutoModelForMultimodalLM.from_pretrained(args.model, trust_remote_code=True, dtype=torch.float32).eval()
    model.merge_factors()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    if model.device.type == "cpu":
        model.set_attn_implementation(attention.NAME)
    collator = EagleCollator(AutoProcessor.from_pretrained(args.model, trust_remote_code=True))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    data = {path: {"path": path, "weight": 1} for path in args.paths}
    bad_rows = BadRows(args.output.with_suffix(".bad_rows.jsonl"), 0)
    mixture = Mixture(data, -(-args.rows // SAMPLES), SAMPLES, args.seed, collator.features, bad_rows)
    batches = [collator(mixture.batch(i)) for i in tqdm(range(mixture.batches), desc="rows", unit="batch")]
    plan = make_plan(model, batches, args.bits)
    part = args.output.with_suffix(".part")
    part.write_text(json.dumps(plan, indent=1) + "\n")
    os.replace(part, args.output)
    print(f"{args.output}: {plan['average_bits']:.3f} bits a weight, {plan['divergence']:.4f} nats a token lost")


if __name__ == "__main__":
    main()
