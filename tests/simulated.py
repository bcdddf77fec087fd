"""Studies of simulated records, whose truth is known: nothing is trained."""

import dataclasses

import numpy as np

from analysis.report.evidence import gather
from jbot.config import Config, from_dict, override
from jbot.store.plan import Plan, PlannedTrial, load_study, save_study
from jbot.store.record import Record, save_record, trial_folder, trial_id
from jbot.store.storage import Storage

FAILED = {"state": "failed", "reason": "loss is not finite at step 12", "metrics": {}}


def make_plan(arms, seeds=6, base=None, **changes):
    """A plan without contrasts; `base` are overrides of the default Config."""
    plan = {
        "study": "simulated",
        "question": "What moves the score?",
        "preset": "quick",
        "arms": arms,
        "base": dataclasses.asdict(override(Config(), base or {})),
        "seeds": tuple(range(seeds)),
        "metric": "test/knn_accuracy",
        "higher_is_better": True,
        "margin": 0.01,
        "contrasts": (),
    }
    return Plan(**plan | changes)


def complete_record(plan, trial, config, **fields):
    """The record of a planned trial that has ended; what is not given is as of any."""
    usual = {
        "trial_id": trial.trial_id,
        "state": "complete",
        "study": plan.study,
        "arm": trial.arm,
        "plan_hash": plan.hash,
        "config": dataclasses.asdict(config),
        "data": {"source": "pythia", "fingerprint": "jets"},
        "trainer_version": "1",
        "started": "2026-01-01T00:00:00+00:00",
        "wall_seconds": 30.0,
        "device_seconds": 25.0,
    }
    return Record(**usual | fields)


def simulate(root, plan, score, changes=None, more=None, curves=None):
    """The evidence of a study whose primary metric is `score(config, seed, rng)`.

    `changes` maps (arm, seed) to fields of that record, or to None while it runs; `more` gives further metrics of a
    score, `curves` the rows of a learning curve of one.
    """
    storage, rng = Storage(root), np.random.default_rng(11)
    trials = []
    for seed in plan.seeds:
        for arm, overrides in plan.arms.items():
            config = override(from_dict(plan.base), {**overrides, "seed": seed})
            trials.append((PlannedTrial(arm=arm, seed=seed, trial_id=trial_id(config, "jets", "1")), config))
    save_study(storage, plan, {"source": "pythia", "fingerprint": "jets"}, [trial for trial, _ in trials])
    for trial, config in trials:
        changed = (changes or {}).get((trial.arm, trial.seed), {})
        value = float(score(config, trial.seed, rng))
        metrics = {plan.metric: value} | (more(value) if more else {})
        fields = {"metrics": metrics, "uncertainties": {plan.metric: {"error": 0.008}}}
        if changed is not None:
            if curves:
                storage.write_rows(f"{trial_folder(trial.trial_id)}/curves.parquet", curves(value))
            save_record(storage, complete_record(plan, trial, config, **fields | changed))
    return gather(load_study(str(root / plan.study)))


def seed_offset(seed, sd=0.04):
    """What all arms of a block share."""
    return sd * float(np.random.default_rng(seed).normal())
