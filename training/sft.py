"""Supervised fine-tuning through TRL's SFTTrainer: one recipe a stage.

    python -m training.sft --config training/recipes/instruct/tiny.yaml
    python -m training.sft --config training/recipes/instruct/tiny.yaml --max_steps 20 --output_dir runs/try
    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 -m training.sft --config ...  # one process a core

Any field of the recipe can be given on the command line; an unknown one is an error. A killed run goes on from its last
checkpoint.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer, TrlParser

from training import attention
from training.collator import EagleCollator, EncodedCollator
from training.data import encoded_dataset, world_dataset
from training.optimizer import MuonAdamW


@dataclass
class EagleArguments:
    """What TRL's SFTConfig does not know.

    `model`: a checkpoint folder or repository. `mix`: probability of each skill. `rates`: learning rate of each trained
    module of EagleModel, such as `language_model`, or of a part of one, such as `language_model.embed_tokens`; what is not
    named stays frozen. `encoded`: folders of training/encode.py to read rows of at most `longest` tokens from; without
    them rows are drawn anew. (JSON on the command line, mappings in a recipe.)
    """

    model: str
    mix: dict | str
    rates: dict | str
    encoded: list[str] | None = None
    longest: int = 8192


@dataclass
class EagleSFTConfig(SFTConfig):
    """TRL's SFTConfig with what our rows and this machine need."""

    def __post_init__(self):
        self.use_cpu = not torch.cuda.is_available()  # without it, bf16 is refused on a machine without a GPU
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # the collator does it all
        self.remove_unused_columns = False
        self.max_length = None
        self.train_sampling_strategy = "sequential"  # the data set is drawn in order, one skill a batch
        super().__post_init__()


class EagleTrainer(SFTTrainer):
    """SFTTrainer with a learning rate per module, in which every skill counts the same."""

    def __init__(self, *args, rates: dict[str, float], **kwargs):
        self.rates = rates
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model=None):
        named = dict(self.accelerator.unwrap_model(self.model).model.named_parameters())
        groups = []
        for module in sorted(self.rates, key=len, reverse=True):  # parts before their wholes
            names = [name for name in named if name.startswith(f"{module}.")]
            groups.append(([(name, named.pop(name)) for name in names], self.rates[module]))
        self.optimizer = MuonAdamW(groups, self.args.weight_decay)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        """None: each batch of a step counts the same, as its mean. By tokens, pages would drown one-word answers."""


def freeze(model, rates: dict[str, float]) -> None:
    """Leaves only the named modules trainable; raises ValueError for a module that the model does not have."""
    modules = dict(model.model.named_modules())
    for name in rates:
        if name not in modules:
            parts = ", ".join(name for name, _ in model.model.named_children())
            raise ValueError(f"the recipe trains {name!r}, but the model has {parts}, and what is in these")
    model.requires_grad_(False)
    for name in rates:
        modules[name].requires_grad_(True)


def main() -> None:
    arguments, config = TrlParser((EagleArguments, EagleSFTConfig)).parse_args_and_config()
    mix, rates = (json.loads(v) if isinstance(v, str) else v for v in (arguments.mix, arguments.rates))
    model = AutoModelForMultimodalLM.from_pretrained(arguments.model, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    if config.use_cpu:
        model.set_attn_implementation(attention.NAME)
    freeze(model, rates)
    if arguments.encoded and (moving := [name for name in rates if not name.startswith("language_model")]):
        raise ValueError(f"the recipe trains {moving[0]!r}, which encoded rows have behind them; only language_model can be")
    batches = config.max_steps * config.gradient_accumulation_steps * config.world_size
    drawn = mix, batches, config.per_device_train_batch_size, config.seed
    if arguments.encoded:
        dataset = encoded_dataset(arguments.encoded, *drawn, arguments.longest)
        collator = EncodedCollator(model.config.text_config.pad_token_id, model.config.text_config.hidden_size)
    else:
        dataset, collator = world_dataset(*drawn), EagleCollator(processor)
    trainer = EagleTrainer(model, config, collator, dataset, processing_class=processor, rates=rates)
    last = get_last_checkpoint(config.output_dir) if Path(config.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        model.to(torch.bfloat16).save_pretrained(config.output_dir)
        processor.save_pretrained(config.output_dir)


if __name__ == "__main__":
    main()
