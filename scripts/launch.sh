#!/bin/sh
# Start a method's program as several processes that train together: in a Slurm job by srun, else by torchrun.
# Usage: launch.sh TASKS NODES THREADS GPUS COMMAND...    (threads of each task, GPUs of all)
# Each process knows its rank, and the address of the first, by the variables of either (clue/benchmark/methods/launcher.py).
set -eu
tasks=$1 nodes=$2 threads=$3 gpus=$4
shift 4
set -- "$@" --tasks "$tasks"
if [ -z "${SLURM_JOB_ID:-}" ]; then
    exec python -m torch.distributed.run --standalone --nproc-per-node "$tasks" --no-python "$@"
fi
# This shell runs on the job's first node, as the first task does. A site with another network sets MASTER_ADDR itself.
: "${MASTER_ADDR:=$(hostname)}" "${MASTER_PORT:=$((20000 + SLURM_JOB_ID % 20000))}"
export MASTER_ADDR MASTER_PORT
[ "$gpus" -eq 0 ] || set -- --gpus="$gpus" "$@"
# One that fails ends the others, which would wait for it; one that has ended well does not.
exec srun --nodes="$nodes" --ntasks="$tasks" --cpus-per-task="$threads" --kill-on-bad-exit=1 --wait=0 "$@"
