#!/usr/bin/env bash
# The tracking server of compose.yaml, or of any machine that has PostgreSQL and an S3-compatible store:
#
#   cluster/deploy/tracking.sh secrets      refuses secrets that are missing, short, or those of env.example
#   cluster/deploy/tracking.sh serve        makes the bucket, then MLflow on HOST:PORT (0.0.0.0:5000 within its container)
#
# Environment: POSTGRES_PASSWORD, POSTGRES_HOST (host or host:port), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
# MLFLOW_S3_ENDPOINT_URL, ALLOWED_HOSTS (names under which people reach it).
set -euo pipefail

secrets() {
    local name
    for name in POSTGRES_PASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
        # Hexadecimal, as it becomes part of an address and of a comma-separated list.
        if ! [[ "${!name:-}" =~ ^[0-9A-Za-z]{16,}$ ]]; then
            echo "tracking.sh: $name must be 16 or more letters and digits, write it into cluster/.env: openssl rand -hex 24" >&2
            exit 2
        fi
    done
}

serve() {
    secrets
    python - <<'PYTHON'
import os

import boto3

store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
if "mlflow" not in [bucket["Name"] for bucket in store.list_buckets()["Buckets"]]:
    store.create_bucket(Bucket="mlflow")
PYTHON
    # Of libpq: an address on the command line would show the password to ps.
    export PGPASSWORD=$POSTGRES_PASSWORD
    # Nothing here runs MLflow's own jobs. A worker that is busy for 5 s, as at its start on a loaded machine, would be
    # taken for dead, killed and started again for ever.
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    # Clients send artifacts to this server, which alone has the keys of the store. It answers only to names it knows.
    exec mlflow server --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" --workers "${WORKERS:-4}" \
        --uvicorn-opts "--timeout-worker-healthcheck 120" \
        --backend-store-uri "postgresql+psycopg2://mlflow@${POSTGRES_HOST:-127.0.0.1}/mlflow" \
        --artifacts-destination s3://mlflow --serve-artifacts \
        --allowed-hosts "${ALLOWED_HOSTS:-localhost,localhost:*,127.0.0.1,127.0.0.1:*}"
}

case "${1:-}" in
    secrets | serve) "$1" ;;
    *)
        echo "tracking.sh: must be secrets or serve, got '${1:-}'" >&2
        exit 2
        ;;
esac
