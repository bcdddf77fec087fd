"""Trials -> packs -> Ray Tune -> records, and the MLflow view of them. The only importer of ray and mlflow."""

import os

# Read when ray is imported. Ray would give SIGTERM its default at shutdown, whatever handler was there, and a driver
# that is told to stop while it writes its report would die.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# Read when mlflow is imported. A server that is down must cost seconds, not MLflow's default of several minutes a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
