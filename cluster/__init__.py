"""Trials -> packs -> Ray Tune -> records, and the MLflow view of them. The only importer of ray and mlflow."""

import os

# Read when ray is imported. Ray would give SIGTERM its default at shutdown, whatever handler was there, and a driver
# that is told to stop while it writes its report would die.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
