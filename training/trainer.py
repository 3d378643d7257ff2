"""TRL's SFTTrainer with a learning rate per module, checkpoints that are whole or not there, and a report of the run."""

import os
import shutil
import time
from pathlib import Path

import psutil
import torch
import yaml
from transformers.trainer_pt_utils import get_model_param_count
from transformers.trainer_utils import rotate_checkpoints, sort_checkpoints
from trl import SFTTrainer

from training.optimizer import MuonAdamW

STAGING = ".unfinished"  # folder inside the output folder in which files are written before they get their names
OPTIMIZER_BYTES = 8  # of a trained parameter: two moments in float32


class EagleTrainer(SFTTrainer):
    """SFTTrainer for one recipe.

    Args:
        rates: learning rate of each trained module of EagleModel, or of a part of one.
        muon: hidden matrices by Muon, see training/optimizer.py.
        recipe: what the report of the run names as its settings, beside those of `args`.

    Raises OSError or MemoryError at once where disk or memory will not do, and FloatingPointError at a loss that is NaN or
    infinite; what was saved before stays.
    """

    def __init__(self, model, args, data_collator, train_dataset, *, rates: dict[str, float], muon: bool, recipe: dict, **kwargs):
        self.rates, self.muon, self.recipe = rates, muon, recipe
        self.started = None
        super().__init__(model, args, data_collator, train_dataset, **kwargs)
        if muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("muon works on whole matrices, which FSDP and DeepSpeed cut up; leave `muon` out")
        check_machine(self.model, args, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def create_optimizer(self, model=None):
        named = {module_name(name): p for name, p in self.model.named_parameters() if p.requires_grad}
        groups = []
        for module in sorted(self.rates, key=len, reverse=True):  # parts before their wholes
            names = [name for name in named if name.startswith(f"{module}.")]
            groups.append(([(name, named.pop(name)) for name in names], self.rates[module]))
        if self.muon:
            self.optimizer = MuonAdamW(groups, self.args.weight_decay)
        else:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(decayed(groups, self.args.weight_decay), **options)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        """None: each batch of a step counts the same, as its mean. By tokens, pages would drown one-word answers."""

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """Mean cross-entropy of the labelled tokens; the head works at their positions alone.

        TRL's own head takes the logits of every position twice where there is no GPU, and its weights without what
        quantization does to them.
        """
        if self.args.loss_type != "nll":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**inputs, logits_to_keep=labels != -100, use_cache=False)
        targets = labels[labels != -100]
        loss = torch.nn.functional.cross_entropy(
            outputs.logits.float(), targets, label_smoothing=self.args.label_smoothing_factor
        )
        self.count(outputs.logits, targets, inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def count(self, logits: torch.Tensor, targets: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Adds to the log how many labelled tokens were foretold, and how many tokens were read."""
        counts = torch.stack([(logits.argmax(-1) == targets).sum(), targets.new_tensor(len(targets)), attention_mask.sum()])
        right, labelled, read = self.accelerator.reduce(counts).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["mean_token_accuracy"].append(right / labelled)
        self._total_train_tokens += read if self.model.training else 0
        metrics["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the `seconds` that the run took so far; one that goes on counts on from the last entry it has."""
        seconds = round(time.monotonic() - self.started) if self.started else 0
        super().log(logs | {"seconds": seconds}, start_time)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.started is None:
            self.started = time.monotonic() - max((entry.get("seconds", 0) for entry in self.state.log_history), default=0)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            saved = sort_checkpoints(self.args.output_dir)
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; the last good checkpoint is "
                f"{saved[-1] if saved else 'none'}. Go on with it as `model`, lower `rates` or `max_grad_norm`, and another `output_dir`"
            )
        return loss

    def _save_checkpoint(self, model, trial) -> None:
        """Writes beside, then renames: a checkpoint that carries its name is whole, whenever the run was killed."""
        broken = [name for name, p in self.model.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
        if broken:
            raise FloatingPointError(f"{broken[0]} holds NaN or infinite values after step {self.state.global_step}; not saved")
        output, push = self.args.output_dir, self.args.push_to_hub
        self.clear_staging()
        self.args.output_dir, self.args.push_to_hub = os.path.join(output, STAGING), False
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir, self.args.push_to_hub = output, push
        self.accelerator.wait_for_everyone()
        checkpoint = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            replace_folder(Path(output, STAGING, checkpoint), Path(output, checkpoint))
            self.create_model_card()
            rotate_checkpoints(output, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if push:
            for file in Path(output, checkpoint).glob("*.py"):  # transformers pushes what lies in `output`, and puts no code there
                shutil.copy(file, output)
            self._push_from_checkpoint(os.path.join(output, checkpoint))

    def save_result(self) -> None:
        """The trained checkpoint, or with LoRA its adapter, with processor, code and report, to `output_dir`.

        In bfloat16; with quantization in float32, whose rounding to the format is what was trained.
        """
        state = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.is_world_process_zero():
            return
        output = Path(self.args.output_dir)
        shutil.rmtree(output / STAGING, ignore_errors=True)
        dtype = torch.float32 if self.recipe["quantization"] else torch.bfloat16
        model = self.accelerator.unwrap_model(self.model).to(dtype)
        tied = model.all_tied_weights_keys  # copies by now, which transformers would write beside what they repeat
        state = {name: w.to(dtype) if w.is_floating_point() else w for name, w in state.items() if name not in tied}
        model.save_pretrained(output / STAGING, state_dict=state, max_shard_size="4GB")
        self.processing_class.save_pretrained(output / STAGING)
        for file in sorted((output / STAGING).iterdir(), key=lambda file: file.suffix == ".safetensors"):
            replace_folder(file, output / file.name)
        (output / STAGING).rmdir()
        self.create_model_card()
        if self.args.push_to_hub:
            self.push_to_hub()

    def clear_staging(self) -> None:
        """Removes what a killed run had not finished."""
        if self.is_world_process_zero():
            shutil.rmtree(Path(self.args.output_dir, STAGING), ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """README.md and curves.png of the run; while a checkpoint is being written, nothing."""
        if self.is_world_process_zero() and Path(self.args.output_dir).name != STAGING:
            write_report(Path(self.args.output_dir), self)


def module_name(parameter: str) -> str:
    """A parameter's name inside EagleModel, whatever wraps that."""
    return parameter.removeprefix("base_model.model.").removeprefix("model.")


def decayed(groups: list[tuple[list, float]], weight_decay: float) -> list[dict]:
    """Optimizer groups of (named parameters, rate) pairs; vectors (norms, biases) and embeddings are not decayed."""
    found = []
    for named, rate in groups:
        matrices = [p for name, p in named if p.ndim > 1 and "embed" not in name]
        others = [p for name, p in named if not (p.ndim > 1 and "embed" not in name)]
        found += [{"params": matrices, "lr": rate, "weight_decay": weight_decay}] if matrices else []
        found += [{"params": others, "lr": rate, "weight_decay": 0.0}] if others else []
    return found


def check_machine(model: torch.nn.Module, args, sharded: bool) -> None:
    """Raises OSError or MemoryError where checkpoints, or gradients and optimizer, will not fit.

    A run that goes on needs no more room for the checkpoints that are there, and LoRA saves what it trains alone. Without
    sharding every process holds everything; those of a machine without GPUs share its memory.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZER_BYTES * sum(p.numel() for p in trained)
    stored = sum(p.numel() * p.element_size() for p in (trained if hasattr(model, "peft_config") else model.parameters()))
    os.makedirs(args.output_dir, exist_ok=True)
    kept = (args.save_total_limit or 2) + 1  # the one that is being written
    missing = 0 if args.save_strategy == "no" else max(kept - len(sort_checkpoints(args.output_dir)), 0)
    needed, free = missing * (stored + optimizer), shutil.disk_usage(args.output_dir).free
    if free < needed:
        raise OSError(
            f"{args.output_dir} has {free / 1e9:.1f} GB free, but {missing} checkpoints take {needed / 1e9:.1f} GB; make "
            "room, lower save_total_limit or choose another output_dir"
        )
    needed = sum(4 * p.numel() for p in trained) + optimizer  # gradients first
    needed //= args.world_size if sharded else 1
    needed *= int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if args.use_cpu else 1
    free = psutil.virtual_memory().available if args.use_cpu else torch.cuda.mem_get_info()[0]
    if free < needed:
        raise MemoryError(
            f"{free / 1e9:.1f} GB of memory are free, but gradients and optimizer of the trained parameters take "
            f"{needed / 1e9:.1f} GB of it; train fewer modules (`rates`), use `lora`, or shard over more GPUs"
        )


def replace_folder(source: Path, target: Path) -> None:
    """Renames a file or folder to a name that may be taken by an older one."""
    if target.is_dir():
        old = target.with_name(f"{STAGING}-{target.name}")
        os.replace(target, old)
        os.replace(source, target)
        shutil.rmtree(old)
    else:
        os.replace(source, target)


def write_report(output: Path, trainer: EagleTrainer) -> None:
    """README.md (model card) and curves.png of a run, from the trainer's own log."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    if history:
        plot_curves(output / "curves.png", history)
    settings = {key: value for key, value in trainer.recipe.items() if value is not None}
    settings["model"] = os.path.relpath(settings["model"]) if os.path.isdir(settings["model"]) else settings["model"]
    args = trainer.args
    settings |= {"batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size, "seed": args.seed}
    settings |= {"scheduler": str(args.lr_scheduler_type.value), "weight_decay": args.weight_decay}
    bad = output / "bad_rows.jsonl"
    lines = [
        "---", "library_name: transformers", "pipeline_tag: any-to-any", "tags: [eagle, trl, sft]", "---", "",
        f"# {output.name}", "",
        f"Trained from `{settings['model']}` by `training.sft`: step {trainer.state.global_step:,} of {args.max_steps:,}, "
        f"{get_model_param_count(trainer.model, trainable_only=True):,} trained parameters, {args.world_size} processes, "
        f"{max((entry.get('seconds', 0) for entry in history), default=0) / 60:.1f} minutes.",
        f"Rows that could not be read: {len(bad.read_text().splitlines()) if bad.exists() else 0}.", "",
        *(["![Loss and learning rate](curves.png)", "", *table(history), ""] if history else []),
        "```yaml", yaml.safe_dump(settings, sort_keys=False).strip(), "```", "",
    ]  # fmt: skip
    part = output / f"{STAGING}.md"
    part.write_text("\n".join(lines))
    os.replace(part, output / "README.md")


def table(history: list[dict]) -> list[str]:
    """The log's first, middle and last entries."""
    shown = [history[i] for i in sorted({0, len(history) // 2, len(history) - 1})]
    rows = [f"| {e['step']} | {float(e['loss']):.3f} | {float(e['learning_rate']):.2g} |" for e in shown]
    return ["| step | loss | learning rate |", "|---|---|---|", *rows]


def plot_curves(path: Path, history: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = [entry["step"] for entry in history]
    loss.plot(steps, [float(entry["loss"]) for entry in history], linewidth=1)
    loss.set_ylabel("loss")
    rate.plot(steps, [float(entry["learning_rate"]) for entry in history], linewidth=1, color="tab:orange")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    for axes in (loss, rate):
        axes.grid(alpha=0.3)
    part = path.with_name(f"{STAGING}.png")
    figure.savefig(part, dpi=110)
    os.replace(part, path)
