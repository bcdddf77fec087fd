"""Rebuild the MLflow view of a study from its records:

python -m cluster.mirror results/masking_ablation [--tracking-uri URI]
"""

from __future__ import annotations

import argparse
import sys

from jbot.record import RecordError, Storage


def default_tracking_uri(storage: Storage) -> str:
    """SQLite beside the records, or in ./results when those are in an object store."""
    return f"sqlite:///{storage.uri if storage.local else 'results'}/mlflow.db"


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m cluster.mirror", description=__doc__)
    parser.add_argument("folder", help="study folder, <storage>/<study>")
    parser.add_argument("--tracking-uri", help="MLflow server (default: mlflow.db beside the records)")
    options = parser.parse_args(arguments)
    root, _, study = options.folder.rstrip("/").rpartition("/")
    storage = Storage(root or ".")
    uri = options.tracking_uri or default_tracking_uri(storage)
    try:
        from cluster.mlflow_view import rebuild

        done = rebuild(storage, study, uri)
    except (RecordError, KeyError, TypeError) as error:
        print(f"{options.folder} is not a study folder: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever the server answers
        print(f"MLflow at {uri} failed: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    print(f"{done} trials in {uri}; see them with: mlflow ui --backend-store-uri {uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
