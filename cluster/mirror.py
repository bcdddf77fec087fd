"""Rebuild the MLflow view of a study from its records:

python -m cluster.mirror results/masking_ablation [--tracking-uri URI]
"""

from __future__ import annotations

import shlex
import sys

from cluster.tracking.pages import DEFAULT_UI, page
from jbot.cli import Parser, bad_input, docstring, program
from jbot.messages import first_line, one_line, without_secret
from jbot.store.storage import RecordError, Storage, open_folder


def default_tracking_uri(storage: Storage) -> str:
    """SQLite beside the records, or in ./results when those are in an object store.

    Raises RecordError for a folder that the address of a database cannot name.
    """
    folder = storage.uri if storage.local else "results"
    if odd := [letter for letter in "?%#" if letter in folder]:
        rule = f"must be without {odd[0]} for MLflow's database to lie in it; or give --tracking-uri"
        raise RecordError(f"the storage's path {rule}, got {folder}")
    return f"sqlite:///{folder}/mlflow.db"


def see(uri: str, storage: Storage, study: str) -> str:
    """The address of a study's arms in the UI, after the command that serves it in this environment."""
    where = storage.read_json(f"{study}/mlflow.json")
    address = page(where["ui"] or DEFAULT_UI, where["experiment_id"], "arms")
    if where["ui"]:
        return f"compare the trials: {address}"
    command = shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", without_secret(uri)])
    return f"compare the trials: {command}\n  then open {address}"


@program
def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 2 on bad input."""
    parser = Parser(prog="python -m cluster.mirror", description=docstring(__file__))
    parser.add_argument("folder", help="study folder, <storage>/<study>")
    parser.add_argument("--tracking-uri", help="MLflow server (default: mlflow.db beside the records)")
    options = parser.parse_args(arguments)
    uri = options.tracking_uri
    try:
        storage, study = open_folder(options.folder)
        known = storage.exists(f"{study}/search.json")  # one may still be searching for its arms
        storage.read_json(
            f"{study}/{'search' if known else 'study'}.json"
        )  # before MLflow makes a database for nothing
        uri = uri or default_tracking_uri(storage)
        from cluster.tracking.publish import rebuild

        done = rebuild(storage, study, uri)
    except (RecordError, KeyError, TypeError) as error:
        return bad_input(f"{options.folder} is not a study folder: {one_line(error)}")
    except Exception as error:  # whatever the server answers
        words = f"MLflow at {uri} failed: {type(error).__name__}: {first_line(error)}"
        print(without_secret(words), file=sys.stderr)
        return 1
    print(f"{done} trials in {without_secret(uri)}; {see(uri, storage, study)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
