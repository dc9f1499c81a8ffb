#!/bin/bash
# From raw shards of FineWeb-Edu to a trained model, on two nodes. Submit it from a clone on a file system that all nodes see:
#   RAW=/shared/fineweb-edu/sample/10BT sbatch accelerate_configs/slurm.sh
# Submit it again to resume after a failure. See README.md.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1          # one launcher, which starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300          # to this script, five minutes before the limit
#SBATCH --requeue                    # Slurm may also requeue the job, when a node fails
#SBATCH --open-mode=append           # one log for all starts
set -eu
export RAW=${RAW:-raw/fineweb_edu}   # the folder with the parquet files
export DATA=${DATA:-data/fineweb_edu} # where their tokens are written
export TOKENIZER=${TOKENIZER:-gpt2}
export RECIPE=${RECIPE:-recipes/pretrain.py --depth=12} # and any of its flags
export GPUS=${GPUS:-8}               # per node, as above

# Starts a program and waits for it; `stop` interrupts the wait.
run() {
    "$@" &
    program=$!
    wait "$program"
}

# When the time is nearly up, the run saves and ends, and the job goes back into the queue. srun passes USR1 to its tasks
# (TERM would make it end them).
stop() {
    kill -USR1 "$program" || true
    wait "$program" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit
}
trap stop USR1

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it from the job
if [ ! -e "$DATA/meta.json" ]; then  # on the first node; if interrupted, it resumes after the tokens it has written
    run python -m data_prep.fineweb_edu --source "$RAW" --out "$DATA" --tokenizer "$TOKENIZER"
fi

# A task turns USR1 into TERM, which the launcher passes on to its processes in every version of torch. From torch 2.12 on
# it gives them four minutes to save, before that 30 seconds.
export PET_SHUTDOWN_TIMEOUT=240
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # one per line
export FIRST=${nodes%%$'\n'*} PORT=$((20000 + SLURM_JOB_ID % 10000))
run srun --kill-on-bad-exit=1 bash -c 'trap "kill -TERM \$!" USR1 TERM
    accelerate launch --config_file accelerate_configs/multi_node.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$FIRST" --main_process_port "$PORT" $RECIPE --data="$DATA" --resume=auto &
    wait $! || wait $!' # a signal interrupts the first wait
