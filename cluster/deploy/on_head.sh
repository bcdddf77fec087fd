#!/usr/bin/env bash
# A study from start to end on the head of an autoscaling cluster, so that the laptop may be closed:
#
#   cluster/deploy/on_head.sh studies/masking_ablation.py --preset paper --storage s3://BUCKET/jbot --grow-to 8
#
# When it has ended, well or not, the workers go; whoever called this turns off the head. Records are in the storage:
# the same command on a new cluster continues.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
[ $# -gt 0 ] || { echo "on_head.sh: which study?" >&2; exit 2; }
python "$@" --address auto
status=$?
# Of a cluster that ray up made. A worker outlives its head, and the bill goes on.
if [ -f ~/ray_bootstrap_config.yaml ]; then
    ray teardown ~/ray_bootstrap_config.yaml --yes --workers-only
fi
exit "$status"
