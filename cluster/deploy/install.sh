#!/usr/bin/env bash
# What a node needs, in steps. The Dockerfile runs these, and so can any machine with Debian 12 or a Python of its own:
#
#   cluster/deploy/install.sh system      as root: compiler, rsync and ssh (ray up), wget (the probes of KubeRay), tmux
#   cluster/deploy/install.sh python      the tested versions of constraints.txt and this checkout, into $VENV
#   cluster/deploy/install.sh tracking    MLflow with its drivers for PostgreSQL and S3, into $VENV
#
#   VENV=~/venv PYTHON=python3.12 cluster/deploy/install.sh python      elsewhere, with another Python
set -euo pipefail
cd "$(dirname "$0")/../.."
VENV="${VENV:-$PWD/.venv}"
PYTHON="${PYTHON:-python3}"

install_with() { "$VENV/bin/python" -m pip install --quiet --no-cache-dir --constraint constraints.txt "$@"; }

system() {
    apt-get update -qq
    # g++ and python3-dev: the C++ kernel on CPUs, and the launchers that torch.compile makes on GPUs.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        python3 python3-dev python3-venv g++ ca-certificates openssh-client procps rsync tmux wget
    rm -rf /var/lib/apt/lists/*
}

python() {
    "$PYTHON" -m venv "$VENV"
    install_with torch # first and pinned; the default build brings its own CUDA
    install_with --editable ".[all,launch]"
}

tracking() {
    "$PYTHON" -m venv "$VENV"
    install_with mlflow psycopg2-binary boto3
}

case "${1:-}" in
    system | python | tracking) "$1" ;;
    *)
        echo "install.sh: the step must be system, python or tracking, got '${1:-}'" >&2
        exit 2
        ;;
esac
