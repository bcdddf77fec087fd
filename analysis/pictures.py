"""Draw every figure of a trial, from the files it left.

    python -m analysis.pictures <storage>/trials/<id> [--out folder]

Writes SVG and PDF into the trial's own ``figures/``, or into ``--out``. For a study's folder it draws the SVGs of all
trials that have ended and have none yet; ``python -m cluster.mirror`` then shows them in MLflow.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from analysis.plots import svg
from analysis.report.trial_pictures import trial_pictures
from jbot.cli import Parser, bad_input, program
from jbot.messages import first_line
from jbot.store.record import trial_folder
from jbot.store.storage import RecordError, Storage, open_folder

INDEX = "figures.json"
"""Name -> caption, beside the figures, written last: a folder with this file is whole."""


def draw_trial(storage: Storage, trial: str, pdf: bool = False) -> list[str]:
    """Draw a trial's figures into its folder, and return their names."""
    folder, captions = f"{trial_folder(trial)}/figures", {}
    for picture in trial_pictures(storage, trial):
        storage.write(f"{folder}/{picture.name}.svg", svg.to_svg(picture.figure).encode())
        if pdf:
            storage.write(f"{folder}/{picture.name}.pdf", svg.to_pdf(picture.figure))
        captions[picture.name] = picture.caption
    storage.write_json(f"{folder}/{INDEX}", captions)
    return list(captions)


def draw_trials(storage: Storage, trials: Sequence[str], processes: int | None = None) -> dict[str, str]:
    """Draw the figures of all trials that have ended and have none yet, on all cores; returns errors by trial.

    Slow enough (seconds per trial) to wait until a study has ended.
    """
    todo = [
        trial
        for trial in dict.fromkeys(trials)
        if storage.exists(f"{trial_folder(trial)}/record.json")
        and not storage.exists(f"{trial_folder(trial)}/figures/{INDEX}")
    ]
    if not todo:
        return {}
    # Not forked: a copy of a process that runs Ray, MLflow and torch threads may hang.
    spawn = multiprocessing.get_context("spawn")
    workers = min(processes or os.cpu_count() or 1, len(todo))
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        errors = pool.map(_draw_or_say, [storage] * len(todo), todo)
        return {trial: error for trial, error in zip(todo, errors, strict=True) if error}


def _draw_or_say(storage: Storage, trial: str) -> str:
    try:
        draw_trial(storage, trial)
    except Exception as error:  # a figure that cannot be drawn must not cost the others theirs
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when all is drawn, 2 when the input is no trial and no study."""
    parser = Parser(prog="python -m analysis.pictures", description="Draw the figures of a trial.")
    parser.add_argument("folder", help="<storage>/trials/<id>, or <storage>/<study> for all its trials")
    parser.add_argument("--out", type=Path, help="where to write (default: figures/ in the trial's folder)")
    options = parser.parse_args(arguments)
    storage, name = open_folder(options.folder)
    if storage.exists(f"{name}/study.json"):
        return _draw_study(storage, name, options.out)
    trials, _ = open_folder(storage.address)
    if storage.uri.rpartition("/")[2] != "trials":
        raise RecordError(f"{options.folder} must be <storage>/trials/<id> or the folder of a study")
    if options.out is None:
        draw_trial(trials, name, pdf=True)
    else:
        for picture in trial_pictures(trials, name):
            svg.save(picture.figure, options.out, picture.name)
    print(options.out or f"{trials.uri}/{trial_folder(name)}/figures")
    return 0


def _draw_study(storage: Storage, study: str, out: Path | None) -> int:
    if out is not None:
        raise RecordError("--out is for one trial: a study's figures lie in the folders of its trials")
    content = storage.read_json(f"{study}/study.json")
    if not isinstance(content, dict) or not isinstance(content.get("trials"), list):
        raise RecordError(f"{storage.uri}/{study}/study.json is not a study")
    trials = [trial["trial_id"] for trial in content["trials"]]
    errors = draw_trials(storage, trials)
    for trial, error in errors.items():
        bad_input(f"trial {trial}: {error}")
    print(f"{storage.uri}/{trial_folder('<id>')}/figures")
    return 2 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
