"""The best encoder of each arm in MLflow's model registry: safetensors, record and card, no pickle.

One registered model per study; its alias is the arm: ``models:/masking_ablation@momentum``, see :func:`alias_names`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.tracking import pages
from cluster.tracking.runs import Runs, pages_of
from jbot.config import from_dict
from jbot.evaluation.metrics_registry import find_metric
from jbot.store.record import Record, load_curves, trial_folder
from jbot.store.storage import Storage
from jbot.trial.card import CARD, model_card

CODE = Path(__file__).with_name("encoder.py")
WEIGHTS = "student.safetensors"
INPUT = (-1, -1, 4)
"""Jets, particles, and eta_rel, phi_rel, pt_rel, valid."""
Ended = tuple[str, str, Record]
"""Id, arm, and record of a trial that has ended."""


def register_best(runs: Runs, info: pages.StudyInfo, storage: Storage, ended: Sequence[Ended]) -> None:
    """Register the best encoder of each arm that has a complete trial, and point the arm's alias to it.

    A trial is registered once: what is there already costs one query.
    """
    best = choose(storage, ended, info.metric, info.higher_is_better)
    if not best:
        return
    versions, aliases = _registered(runs, info)
    logged: dict[str, Any] = {}
    """Logged models of the experiment that are whole, by trial."""
    if {trial for trial, _, _ in best.values()} - versions.keys():
        models = pages_of(functools.partial(runs.client.search_logged_models, [runs.experiment]))
        logged = {one.tags["trial_id"]: one for one in models if "trial_id" in one.tags and one.status == "READY"}
    names, failed = alias_names(info.arms or best), []
    for arm, (trial, record, why) in best.items():
        try:
            if trial not in versions:
                versions[trial] = _register(runs, info.name, storage, arm, record, why, logged)
            if aliases.get(names[arm]) != versions[trial]:
                runs.client.set_registered_model_alias(info.name, names[arm], versions[trial])
        except Exception as error:  # whatever MLflow or the network raise: the others are registered first
            failed.append(error)
    if failed:
        raise failed[0]


def alias_names(arms: Iterable[str]) -> dict[str, str]:
    """The alias of each arm: its name as MLflow takes it, of letters, digits, _ and -, but not ``latest`` or ``v1``."""
    names: dict[str, str] = {}
    for arm in arms:
        name = re.sub(r"[^\w-]", "-", arm, flags=re.ASCII)
        name = f"arm-{name}" if re.fullmatch(r"latest|v\d+", name, re.IGNORECASE) else name
        numbered = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
        names[arm] = next(one for one in numbered if one not in names.values())
    return names


def choose(
    storage: Storage, ended: Sequence[Ended], metric: str, higher_is_better: bool
) -> dict[str, tuple[str, Record, str]]:
    """By arm: id and record of the trial whose encoder is best on the validation jets, and why it was taken.

    Test jets choose nothing: where no learning curve holds the metric on validation jets, it is the first seed.
    """
    curve, sign = find_metric(metric).on_validation, 1 if higher_is_better else -1
    ranked: dict[str, list[tuple[float, int, str, Record]]] = {}
    for trial, arm, record in ended:
        if record.state == "complete" and storage.exists(f"{trial_folder(trial)}/{WEIGHTS}"):
            values = [row[curve] for row in load_curves(storage, trial) if row.get(curve) is not None]
            score = sign * float(values[-1]) if values else float("-inf")
            ranked.setdefault(arm, []).append((score, -record.seed, trial, record))
    best = {}
    for arm, trials in ranked.items():
        score, _, trial, record = max(trials, key=lambda one: one[:2])
        why = f"first seed of {len(trials)}"
        if score > float("-inf"):
            why = f"best of {len(trials)} seeds by its last {curve}, {sign * score:.4g}"
        best[arm] = (trial, record, why)
    return best


def _registered(runs: Runs, info: pages.StudyInfo) -> tuple[dict[str, str], dict[str, str]]:
    """Versions by trial, and versions by alias, of the study's model, which is made when there is none."""
    from mlflow.exceptions import MlflowException

    client, name = runs.client, info.name
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        text = f"{info.question}\n\nThe best encoder of each arm, by the alias of its name."
        model = client.create_registered_model(name, tags={"study": name}, description=text)
    registered = pages_of(functools.partial(client.search_model_versions, f"name = '{name}'", max_results=200))
    here = ("models:/", runs.location)  # of a storage that was moved, the others' files are elsewhere
    whole = [one for one in registered if "trial_id" in one.tags and one.source.startswith(here)]
    versions = {one.tags["trial_id"]: str(one.version) for one in whole}
    return versions, {alias: str(version) for alias, version in model.aliases.items()}


def _register(
    runs: Runs, name: str, storage: Storage, arm: str, record: Record, why: str, logged: dict[str, Any]
) -> str:
    """A logged model of the trial's run, and a version of the study's registered model; returns the version."""
    trial = record.trial_id
    tags = {"trial_id": trial, "arm": arm, "seed": str(record.seed), "chosen": why}  # another study may have run it
    run = runs.known["trial", trial].id
    model = logged.get(trial) or _log_model(runs, storage, record, run, tags)
    # A SQLite registry looks models:/ up in whatever server this process has as its default.
    source = f"models:/{model.model_id}" if runs.uri.startswith("http") else model.artifact_location
    text = pages.shortened(f"Chosen: {why}.\n\n{pages.shortened(_card(storage, record), 10 * pages.MAX_CHARACTERS)}")
    made = runs.client.create_model_version(
        name, source, run, tags, description=text, model_id=model.model_id, await_creation_for=0
    )
    return str(made.version)


def _log_model(runs: Runs, storage: Storage, record: Record, run: str, tags: dict[str, str]) -> Any:
    """A logged model of the run: code, weights, record, card."""
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    client, kind = runs.client, np.dtype(np.float32)
    outputs = Schema([TensorSpec(kind, (-1, from_dict(record.config).model.dim))])
    with tempfile.TemporaryDirectory() as folder:
        encoder, saved = Path(folder) / "encoder", Path(folder) / "model"
        encoder.mkdir()
        for name in (WEIGHTS, "record.json"):
            (encoder / name).write_bytes(storage.read(f"{trial_folder(record.trial_id)}/{name}"))
        (encoder / CARD).write_text(_card(storage, record))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a signature without an example may be wrong: a test loads and predicts
            mlflow.pyfunc.save_model(
                saved,
                python_model=str(CODE),
                artifacts={"encoder": str(encoder)},
                signature=ModelSignature(inputs=Schema([TensorSpec(kind, INPUT)]), outputs=outputs),
                pip_requirements=[f"jbot-studies=={importlib.metadata.version('jbot-studies')}"],
            )
        name = f"{alias_names([tags['arm']])[tags['arm']]}-seed-{record.seed}"
        model = client.create_logged_model(runs.experiment, name, run, tags, None, "jbot")
        client.log_model_artifacts(model.model_id, str(saved))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(model.model_id, 0)])
    return model


def _card(storage: Storage, record: Record) -> str:
    name = f"{trial_folder(record.trial_id)}/{CARD}"
    return storage.read(name).decode() if storage.exists(name) else model_card(record)
