#!/usr/bin/env bash
# A study on Slurm: a small job for head and driver, and as many one-GPU jobs as come free, each of which may be preempted.
#
#   sbatch cluster/deploy/slurm.sh studies/masking_ablation.py --preset paper --storage /shared/jbot
#   WORKERS=16 WORKER_OPTIONS="--partition=preempt --gpus=a100:1" sbatch cluster/deploy/slurm.sh ...
#
# From the repository, on a disk that all nodes see, with .venv made by cluster/deploy/install.sh python. Workers start when
# Slurm lets them, are queued again when preempted, and end after ten idle minutes or with the study. The same command
# continues a study whose head was lost. Site rules (--partition, --account) go on the command line.
#SBATCH --job-name=jbot
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output=jbot-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?is set by sbatch: sbatch cluster/deploy/slurm.sh STUDY OPTIONS}"
export NUM_CPUS="${SLURM_CPUS_PER_TASK:-1}"

if [ "${1:-}" = worker ]; then
    exec cluster/deploy/node.sh worker "$2"
fi

[ $# -gt 0 ] || { echo "slurm.sh: which study?" >&2; exit 2; }
workers=${WORKERS:-8}
read -ra worker_options <<<"${WORKER_OPTIONS:---gpus=1 --cpus-per-task=6 --mem=24G}"

array='' study=''
end() {
    [ -z "$array" ] || scancel "$array" || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap end EXIT
trap '[ -z "$study" ] || kill -TERM "$study"; wait "$study" || true; exit 143' TERM

# A token for this job alone, which only its user can read. Records and logs are as readable as the user wants.
mkdir -p -m 700 .slurm
export RAY_AUTH_TOKEN_PATH="$PWD/.slurm/token-$SLURM_JOB_ID"
(umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

port=$((20000 + SLURM_JOB_ID % 10000 * 4)) # of four, so that jobs on one machine do not meet
ADDRESS=$(cluster/deploy/node.sh address "$port")
export ADDRESS
array=$(sbatch --parsable --array="1-$workers" --requeue --signal=B:TERM@60 --job-name=jbot-worker \
    --output=jbot-worker-%A-%a.log "${worker_options[@]}" cluster/deploy/slurm.sh worker "$ADDRESS")
cluster/deploy/node.sh head "$port" python "$@" --grow-to "$workers" &
study=$!
wait "$study"
