#!/usr/bin/env bash
# One Ray node for as long as it is needed, on machines that a batch system hands out (slurm.sh, skypilot.yaml):
#
#   cluster/deploy/node.sh address PORT               what a head here will be called
#   cluster/deploy/node.sh head PORT COMMAND...       a head here; COMMAND --address HOST:PORT; then the head ends, too
#   cluster/deploy/node.sh worker HOST:PORT           joins; ends with the head, or after IDLE_MINUTES (10) without work
#
# The token is in RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH. VENV is the environment, NUM_CPUS what Ray may use.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="${VENV:-$PWD/.venv}/bin:$PATH" RAY_AUTH_MODE=token
ray='' idle=''

# A temporary folder for each user and port: others may run Ray on this machine, too. Short, for the names of sockets.
common() {
    local options=(--block --disable-usage-stats)
    [ -z "${NUM_CPUS:-}" ] || options+=(--num-cpus "$NUM_CPUS")
    ray start "${options[@]}" "$@" &
    ray=$!
    trap stop EXIT
    trap 'exit 143' TERM # a spot machine that goes, or a job at its time limit
}

stop() {
    kill -TERM "$ray" ${idle:+"$idle"} 2>/dev/null || true
    wait "$ray" || true
}

address() { python -c "import ray; print(ray.util.get_node_ip_address())" | sed "s/\$/:$1/"; }

head() {
    local port=$1 address
    shift
    address=${ADDRESS:-$(address "$port")}
    common --head --node-ip-address "${address%:*}" --port "$port" --temp-dir "/tmp/ray-$(id -u)-$port" \
        --dashboard-host 127.0.0.1 --dashboard-port "$((port + 1))" --ray-client-server-port "$((port + 2))"
    until ray health-check --address "$address" >/dev/null 2>&1; do
        kill -0 "$ray" || exit 1
        sleep 1
    done
    "$@" --address "$address" & # in the background, so that a signal is not kept waiting
    local study=$! status=0
    trap 'kill -TERM "$study" 2>/dev/null || true; wait "$study" || true; exit 143' TERM
    wait "$study" || status=$?
    exit "$status"
}

worker() {
    common --address "$1"
    python -m cluster.idle --address "$1" --minutes "${IDLE_MINUTES:-10}" &
    idle=$!
    wait -n "$idle" "$ray" || true # whichever ends first: no work, or no head
}

[ -n "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ] || { echo "node.sh: set RAY_AUTH_TOKEN_PATH" >&2; exit 2; }
case "${1:-}" in
    address | head | worker) "$@" ;;
    *)
        echo "node.sh: must be address, head or worker, got '${1:-}'" >&2
        exit 2
        ;;
esac
