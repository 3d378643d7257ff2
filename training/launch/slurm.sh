#!/bin/bash
# One stage on 32 machines of 8 GPUs under Slurm. From the root of the repository:
#
#     sbatch training/launch/slurm.sh training/recipes/instruct/full.yaml [--any_field value]
#     sbatch --nodes 4 training/launch/slurm.sh training/recipes/align/full.yaml      # fewer machines
#     ENGINE=zero3 sbatch training/launch/slurm.sh ...                                # DeepSpeed instead of FSDP2
#     MODULE=training.speech ENGINE=speech sbatch training/launch/slurm.sh training/recipes/speech/full.yaml
#     DRY_RUN=1 training/launch/slurm.sh training/recipes/instruct/full.yaml          # shows the command, runs nothing
#
# The repository, its .venv and the output folder lie on a disk that all machines share. A job that is preempted, whose
# machine fails or whose time ends is put back into the queue; the same command then goes on from the last whole checkpoint.
# The job's own log is slurm-JOB.log; runs/slurm/JOB/ has one of each process, by machine. To try the cluster out first:
#
#     MODULE=training.launch.engine sbatch --time 00:10:00 training/launch/slurm.sh

#SBATCH --job-name=eagle
#SBATCH --nodes=32
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -euo pipefail

ENGINE=${ENGINE:-fsdp2}
MODULE=${MODULE:-training.sft}
NODES=${SLURM_JOB_NUM_NODES:-32}
GPUS=${SLURM_GPUS_ON_NODE:-8}
JOB=${SLURM_JOB_ID:-0}

arguments=("$@")
if [ "$MODULE" = training.sft ] || [ "$MODULE" = training.speech ]; then
    : "${1:?give a recipe, such as training/recipes/instruct/full.yaml}"
    arguments=(--config "$@")
    # FSDP checkpoints activations itself, and refuses to do it twice.
    if [ "$ENGINE" = fsdp2 ]; then arguments+=(--activation_checkpointing false); fi
fi

export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

# This script runs on the first machine of the job, where the others meet. What is escaped is known on each machine only.
launch="${VENV:-.venv}/bin/python -m accelerate.commands.launch --config_file training/launch/$ENGINE.yaml \
--num_machines $NODES --num_processes $((NODES * GPUS)) --machine_rank \$SLURM_NODEID \
--main_process_ip $(hostname) --main_process_port $((20000 + JOB % 10000)) \
--log_dir runs/slurm/$JOB/machine-\$SLURM_NODEID --tee 3 -m $MODULE${arguments[*]:+ ${arguments[*]@Q}}"

if [ "${DRY_RUN:-0}" = 1 ]; then
    echo "srun --kill-on-bad-exit=1 bash -c ${launch@Q}"
    exit
fi

trap 'scontrol requeue $JOB' USR1
srun --kill-on-bad-exit=1 bash -c "$launch" &
wait $!
