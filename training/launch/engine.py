"""Whether the engine that the launcher asked for is the one that runs.

    accelerate launch --config_file training/launch/fsdp2.yaml ... -m training.launch.engine      # tries a cluster out

accelerate trains with DDP, without a word, where it cannot have FSDP: on a machine without GPU, for instance.
"""

import os

import torch
from accelerate import Accelerator, DistributedType


def asked() -> tuple[str, int | str]:
    """Engine and processes as the environment names them, which `accelerate launch` and torchrun set."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if "WORLD_SIZE" not in os.environ and {"ACCELERATE_DYNAMO_BACKEND", "MASTER_ADDR"} <= set(os.environ):
        return "DDP", "several"  # `accelerate launch --cpu` names no number, and starts one
    for variable, engine in (("ACCELERATE_USE_FSDP", "FSDP2"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() == "true":
            return engine, processes
    return "DDP" if processes > 1 else "no engine", processes


def found(accelerator: Accelerator) -> tuple[str, int]:
    """Engine and processes that the accelerator has."""
    engine = "DDP" if accelerator.num_processes > 1 else "no engine"
    if accelerator.distributed_type == DistributedType.FSDP:
        engine = "FSDP2" if accelerator.is_fsdp2 else "FSDP1"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = "DeepSpeed"
    return engine, accelerator.num_processes


def check_engine(accelerator: Accelerator) -> None:
    """Raises RuntimeError unless `accelerator` has the engine and the number of processes that were asked for."""
    if asked() != found(accelerator):
        (wanted, processes), (engine, running) = asked(), found(accelerator)
        raise RuntimeError(
            f"the launcher asked for {wanted} on {processes} processes, but {engine} on {running} is what runs, on "
            f"{accelerator.device}; FSDP2 and DeepSpeed need a GPU for each process. Without GPUs start DDP: "
            "python -m torch.distributed.run --nproc-per-node 2 -m training.sft ..."
        )


def main() -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    check_engine(accelerator)
    engine, processes = found(accelerator)
    accelerator.print(f"{engine} on {processes} processes")


if __name__ == "__main__":
    main()
