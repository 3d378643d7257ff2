"""How fast a step of training.sft is beside a bare PyTorch loop, and what share of it goes into the data.

    OMP_NUM_THREADS=1 python -m training.benchmark_speed --config training/recipes/instruct/tiny.yaml --rounds 5 --steps 12

Both train the recipe's model on the same batches with the same optimizer: the loop is forward, backward, clipping and step
on tensors that lie ready. Rounds are paired, and every other one turns the order round: the machine may be shared, so only
ratios count. The data are timed alone, drawn and collated in one process as the recipe says.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import TrlParser

from training import sft
from training.trainer import EagleTrainer

WARM_UP = 2  # steps before the clock starts


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


class Ready:
    """A mixture whose batches were drawn before."""

    def __init__(self, mixture, batches: int):
        self.features = [mixture.batch(number) for number in range(batches)]
        self.batch_size = mixture.batch_size

    def draw(self, columns: dict[str, list[int]]) -> dict[str, list]:
        return {"features": self.features[columns["row"][0] // self.batch_size][: len(columns["row"])]}


def parse(config: str, steps: int, folder: str):
    """The recipe's arguments for `steps` steps that leave nothing behind."""
    overrides = {"max_steps": steps, "output_dir": folder, "save_strategy": "no", "report_to": "none", "logging_steps": steps}
    sys.argv = ["sft", "--config", config, *(str(word) for key, value in overrides.items() for word in (f"--{key}", value))]
    return TrlParser((sft.EagleArguments, sft.EagleSFTConfig)).parse_args_and_config()


def trainer_seconds(trainer: EagleTrainer) -> float:
    """Seconds a step of the trainer."""
    clock = Clock()
    trainer.add_callback(clock)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return (clock.ends[-1] - clock.ends[WARM_UP - 1]) / (len(clock.ends) - WARM_UP)


def loop_seconds(trainer: EagleTrainer, batches: list[dict[str, torch.Tensor]]) -> float:
    """Seconds a step of a bare loop over the same model, batches and kind of optimizer."""
    model, args = trainer.model.train(), trainer.args
    optimizer = trainer.create_optimizer()
    trained = [p for p in model.parameters() if p.requires_grad]
    ends, per_step = [], args.gradient_accumulation_steps
    for first in range(0, len(batches), per_step):
        for batch in batches[first : first + per_step]:
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
                loss = model(**batch, use_cache=False).loss / per_step
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="training/recipes/instruct/tiny.yaml", help="the recipe")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="steps of each in a round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments, config = parse(args.config, args.steps, folder)
        collator, mixture = sft.load_data(arguments, config)
        start = time.perf_counter()
        count = sum(1 for _ in DataLoader(mixture.rows, batch_size=mixture.batch_size, collate_fn=collator))
        data = (time.perf_counter() - start) / count * config.gradient_accumulation_steps
        ready = Ready(mixture, mixture.batches)
        rows = mixture.rows.with_transform(ready.draw)
        batches = [collator(features) for features in ready.features]
        times = {"trainer": [], "loop": []}
        for number in range(args.rounds):
            trainer = sft.load_trainer(arguments, config, collator, rows)
            for name in list(times)[:: -1 if number % 2 else 1]:
                times[name].append(trainer_seconds(trainer) if name == "trainer" else loop_seconds(trainer, batches))
            ratio = times["loop"][-1] / times["trainer"][-1]
            print(f"round {number + 1}: loop {times['loop'][-1]:.3f} s, trainer {times['trainer'][-1]:.3f} s a step: {ratio:.3f}")
    ratios = [loop / trainer for loop, trainer in zip(times["loop"], times["trainer"])]
    print(f"speed of the trainer beside the loop: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"data: {data:.3f} s a step, {data / (data + statistics.median(times['trainer'])):.1%} of a step without loader workers")


if __name__ == "__main__":
    main()
