"""Supervised fine-tuning through TRL's SFTTrainer: one recipe a stage.

    python -m training.sft --config training/recipes/pretrain/tiny.yaml --model .
    python -m training.sft --config training/recipes/pretrain/tiny.yaml --model . --max_steps 20 --output_dir runs/try
    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 -m training.sft --config ...  # one process a core

Any field of the recipe can be given on the command line; an unknown one is an error. A killed run goes on from its last
checkpoint. For many GPUs and machines see training/launch/.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForMultimodalLM, AutoProcessor, BitsAndBytesConfig
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, TrlParser

from export.formats import find_format, read_plan
from training import attention, qat
from training.collator import EagleCollator
from training.data import BadRows, Mixture, ParquetSource
from training.launch.engine import check_engine
from training.settings import SETTINGS, fingerprint, keep
from training.trainer import EagleTrainer


@dataclass
class EagleArguments:
    """What TRL's SFTConfig does not know. Mappings in a recipe are JSON on the command line, hence typed as strings.

    Args:
        model, revision: a checkpoint folder, or a repository of the Hub and its commit.
        data: name -> {path, weight, adapter}, see training/data.py.
        rates: learning rate of each trained module of EagleModel, such as `language_model`, or of a part of one, such as
            `language_model.embed_tokens`; what is not named stays frozen.
        lora: {r, alpha, dropout}: adapters of every linear layer of the language model train in its stead, at its rate.
        load_in_4bit: the frozen language model in 4 bits (QLoRA); needs `lora` and a CUDA GPU.
        muon: hidden matrices by Muon, training/optimizer.py; else everything by the `optim` of SFTConfig.
        quantization: the format (export/formats.py) that the weights will have, or the plan of export/allocate.py with one for
            each; trained as they are read back from it, and saved in float32, since bfloat16 would be rounded to other weights.
        longest: rows of more tokens are left out.
        phone_layouts: share of the batches whose pictures and sounds are cut as llama.cpp does it.
        max_bad_rows: so many rows may be unreadable; they are listed in bad_rows.jsonl of the output folder.
        lanes: sequences of batches that share no row group; 0: one a process and loader worker.
        together: so many lanes work at the same time, on the same source; 0: one a process.
    """

    model: str
    data: str
    rates: str
    revision: str | None = None
    lora: str | None = None
    load_in_4bit: bool = False
    muon: bool = False
    quantization: str | None = None
    longest: int = 8192
    phone_layouts: float = 1 / 3
    max_bad_rows: int = 0
    lanes: int = 0
    together: int = 0

    def __post_init__(self):
        self.data, self.rates, self.lora = (
            json.loads(value) if isinstance(value, str) else value for value in (self.data, self.rates, self.lora)
        )
        if self.quantization and not self.quantization.endswith(".json"):
            find_format(self.quantization)
        if self.lora is not None and set(self.lora) != {"r", "alpha", "dropout"}:
            raise ValueError(f"`lora` has the fields {sorted(self.lora)}; it takes r, alpha and dropout")
        if self.load_in_4bit and self.quantization:
            raise ValueError("load_in_4bit and quantization round the same weights to two formats; give one of them")
        if self.load_in_4bit and not self.lora:
            raise ValueError("load_in_4bit freezes the language model, so that nothing would train; give `lora`")
        if self.load_in_4bit and not torch.cuda.is_available():
            raise ValueError("load_in_4bit needs a CUDA GPU and bitsandbytes, and torch finds no GPU here")


@dataclass
class EagleSFTConfig(SFTConfig):
    """TRL's SFTConfig with what our rows and this machine need."""

    def __post_init__(self):
        self.use_cpu = not torch.cuda.is_available()  # without it, bf16 is refused on a machine without a GPU
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # training/data.py does it all
        self.remove_unused_columns = False
        self.max_length = None
        self.train_sampling_strategy = "sequential"  # the data set is mixed and shuffled in itself
        self.logging_nan_inf_filter = False  # it would show the last good loss in place of NaN
        super().__post_init__()
        if self.max_steps <= 0:
            raise ValueError(f"max_steps is {self.max_steps}; a mixture has no end, so give the number of steps")


def load_model(arguments: EagleArguments, config: EagleSFTConfig) -> torch.nn.Module:
    """The model with only the named modules trainable: these in float32, under bf16 the others as they are stored."""
    quantization = None
    if arguments.load_in_4bit:
        skipped = ["vision_tower", "audio_tower", "multi_modal_projector", "audio_projector", "lm_head"]
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=skipped,
        )
    model = AutoModelForMultimodalLM.from_pretrained(
        arguments.model,
        revision=arguments.revision,
        trust_remote_code=True,
        dtype="auto" if config.bf16 else torch.float32,
        quantization_config=quantization,
    )
    if arguments.quantization:
        qat.quantize(model, arguments.quantization)
    if config.use_cpu:
        model.set_attn_implementation(attention.NAME)
    freeze(model, arguments.rates)
    return model


def freeze(model, rates: dict[str, float]) -> None:
    """Leaves only the named modules trainable, in float32; raises ValueError for one that the model does not have."""
    heads = {name: module for name, module in model.named_modules() if name.partition(".")[0] not in ("", "model")}
    modules = dict(model.model.named_modules()) | heads
    for name in rates:
        if name not in modules:
            parts = ", ".join(name for name, _ in [*model.model.named_children(), *model.named_children()] if name != "model")
            raise ValueError(f"the recipe trains {name!r}, but the model has {parts}, and what is in these")
    if "lm_head" in rates and model.lm_head.weight is model.get_input_embeddings().weight:
        raise ValueError("lm_head is tied to language_model.embed_tokens; name that one")
    model.requires_grad_(False)
    for name in rates:
        for parameter in modules[name].parameters():
            if parameter.is_floating_point():  # what 4-bit loading packed is not
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
    # What no gradient reaches, which DDP and FSDP2's optimizer take for an error, and Whisper's positions, which never train.
    still = (*model.config.unread_parts, "audio_tower.encoder.embed_positions")
    for name, parameter in model.model.named_parameters():
        if name.startswith(still):
            parameter.requires_grad_(False)


def lora_config(model, arguments: EagleArguments) -> LoraConfig | None:
    """Adapters of the language model's linear layers; the other trained modules are trained, and saved, whole."""
    if not arguments.lora:
        return None
    linears = {n.rpartition(".")[2] for n, m in model.model.language_model.named_modules() if isinstance(m, torch.nn.Linear)}
    whole = [name for name in arguments.rates if not name.startswith("language_model")]
    adapters = LoraConfig(
        r=arguments.lora["r"],
        lora_alpha=arguments.lora["alpha"],
        lora_dropout=arguments.lora["dropout"],
        target_modules=rf"model\.language_model\..*\.({'|'.join(sorted(linears))})",
        modules_to_save=whole or None,
        task_type="CAUSAL_LM",
    )
    return qat.adapt(adapters) if arguments.quantization else adapters


def check_encoded(mixture: Mixture, arguments: EagleArguments) -> None:
    """Raises ValueError where the recipe changes what the rows of training/encode.py have behind them."""
    changed = [f"trains {name!r}" for name in arguments.rates if not name.startswith("language_model")]
    changed += ["rounds towers and projectors (`quantization`)"] if arguments.quantization else []
    for name, source in zip(mixture.names, mixture.sources):
        if changed and isinstance(source, ParquetSource) and source.encoded:
            raise ValueError(f"the recipe {changed[0]}, which the encoded rows of data.{name} have behind them")


def load_data(arguments: EagleArguments, config: EagleSFTConfig, make_collator=EagleCollator) -> tuple[EagleCollator, Mixture]:
    processor = AutoProcessor.from_pretrained(arguments.model, revision=arguments.revision, trust_remote_code=True)
    collator = make_collator(processor)
    mixture = Mixture(
        arguments.data,
        batches=config.max_steps * config.gradient_accumulation_steps * config.world_size,
        batch_size=config.per_device_train_batch_size,
        seed=config.seed,
        features=collator.features,
        bad_rows=BadRows(Path(config.output_dir, "bad_rows.jsonl"), arguments.max_bad_rows),
        longest=arguments.longest,
        phone_layouts=arguments.phone_layouts,
        lanes=arguments.lanes or config.world_size * max(1, config.dataloader_num_workers),
        together=arguments.together or config.world_size,
    )
    check_encoded(mixture, arguments)
    return collator, mixture


def load_trainer(
    arguments: EagleArguments, config: EagleSFTConfig, collator: EagleCollator, rows: Dataset, trainer_class=EagleTrainer
) -> EagleTrainer:
    model = load_model(arguments, config)
    trainer = trainer_class(
        model,
        config,
        collator,
        rows,
        processing_class=collator.processor,
        peft_config=lora_config(model, arguments),
        rates=arguments.rates,
        muon=arguments.muon,
        recipe=vars(arguments),
    )
    check_engine(trainer.accelerator)
    return trainer


def check_model(model: str) -> None:
    """Raises FileNotFoundError for a stage that did not run: the Hub would be asked for a repository of that name."""
    if model.startswith("runs/") and not Path(model).exists():
        raise FileNotFoundError(
            f"no checkpoint at {model!r}, which an earlier stage writes (`make train-tiny` runs all of eagle-tiny's); to start "
            "from eagle-tiny as it is, give --model ."
        )


def find_checkpoint(arguments: EagleArguments, config: EagleSFTConfig) -> str | None:
    """The last checkpoint in the output folder; raises ValueError where it is of a run with other settings.

    What may change when a run goes on: its length and end, what is logged, how many processes share the work.
    """
    output = Path(config.output_dir)
    last = get_last_checkpoint(output) if output.is_dir() else None
    settings = {name: value for name, value in vars(arguments).items() if name not in ("max_bad_rows", "lanes", "together")}
    if (arguments.quantization or "").endswith(".json"):
        settings["plan"] = read_plan(Path(arguments.quantization))
    settings |= {"seed": config.seed, "per_device_train_batch_size": config.per_device_train_batch_size}
    if config.process_index == 0:
        if not last:  # what a run without a checkpoint leaves does not count
            (output / SETTINGS).unlink(missing_ok=True)
        keep(output, settings | {"files": fingerprint(arguments.model)})
    return last


def train(arguments: EagleArguments, config: EagleSFTConfig, make_collator=EagleCollator, trainer_class=EagleTrainer) -> None:
    """A whole run: from the last checkpoint in the output folder, if there is one, to the result."""
    collator, mixture = load_data(arguments, config, make_collator)
    last = find_checkpoint(arguments, config)
    trainer = load_trainer(arguments, config, collator, mixture.rows, trainer_class)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_result()


def main() -> None:
    arguments, config = TrlParser((EagleArguments, EagleSFTConfig)).parse_args_and_config()
    check_model(arguments.model)
    train(arguments, config)


if __name__ == "__main__":
    main()
