"""The trials of a plan, and the jets that they need."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cluster.doctor.facts import memory
from cluster.scheduling.packs import trial_bytes
from jbot.config import Config, ConfigError, from_dict, override
from jbot.data.load import Jets, Needed, cached_jets, load_jets, needed_by
from jbot.store.plan import FILE, Plan, PlannedTrial, StudyRecords, load_study
from jbot.store.record import TrialSpec
from jbot.store.storage import Storage
from jbot.trial.provenance import git_commit

MEMORY_SLACK = 4
"""A trial is refused when it is said to need so many times the memory there is: the C++ kernel takes less (assumed)."""
MAX_NODE_BYTES = 4 * 2**40
"""Memory that no node of a cluster is thought to exceed (assumed): what each has is asked when it is connected."""


def planned_configs(plan: Plan) -> list[Config]:
    """The Config of every trial, block by block: all arms at the first seed, then all at the second, ..."""
    base = from_dict(plan.base)
    return [override(base, {**changes, "seed": seed}) for seed in plan.seeds for changes in plan.arms.values()]


def trial_specs(plan: Plan, jets: Jets | None) -> list[TrialSpec]:
    """Every trial of a plan, block by block.

    Without jets the trials have ids of their own, under which no record lies.
    """
    return [
        TrialSpec(
            study=plan.study,
            arm=arm,
            plan_hash=plan.hash,
            config=config,
            data_fingerprint=jets.fingerprint(config) if jets else "",
            git_commit=git_commit(),
        )
        for arm, config in zip(list(plan.arms) * len(plan.seeds), planned_configs(plan), strict=True)
    ]


def check_memory(plan: Plan, address: str | None) -> None:
    """Raise ConfigError for a plan whose trials this machine, or with an address any node, could not hold."""
    total = MAX_NODE_BYTES if address else memory()[1]
    where = "no node of a cluster has" if address else "this machine has"
    for arm, changes in plan.arms.items():
        config = override(from_dict(plan.base), changes)
        if (needed := trial_bytes(config)) > MEMORY_SLACK * total:
            model = config.model
            shape = f"{model.layers:,} layers of width {model.dim:,} at batches of {config.train.batch:,}"
            raise ConfigError(
                f"a trial of arm {arm} ({shape}) needs some {needed / 2**30:,.0f} GiB of memory, {where} "
                f"{total / 2**30:,.0f}"
            )


def planned_trials(specs: list[TrialSpec]) -> list[PlannedTrial]:
    """The plan's trials and their ids, for study.json."""
    return [PlannedTrial(arm=spec.arm, seed=spec.config.seed, trial_id=spec.trial_id) for spec in specs]


def started_study(plan: Plan, storage: Storage) -> StudyRecords | None:
    """The study as found in the storage, where it is of this plan."""
    if not storage.exists(f"{plan.study}/{FILE}"):
        return None
    found = load_study(f"{storage.address}/{plan.study}")
    return found if found.plan.hash == plan.hash else None


# --- jets: at each jet pT, of each class as many as the arm that wants most ----------------------------------------


def plan_needs(plan: Plan, tasks: Collection[str] = ()) -> Needed:
    """Jet pT [GeV] -> class -> jets, of the arms and of the base at other tasks."""
    base = from_dict(plan.base)
    arms = [*plan.arms.values(), *({"data.task": task} for task in tasks)]
    return needed_by(override(base, changes) for changes in arms)


def load_plan_jets(plan: Plan, source: str, address: str | None = None, tasks: Collection[str] = ()) -> Jets:
    """Load the jets of a plan.

    Parameters
    ----------
    source : str
        What the user named: pythia, jetnet or a path.
    address : str, optional
        Of a Ray cluster on which jets are generated.
    tasks : collection of str
        Tasks at which the base is run besides.

    Raises
    ------
    DataError
        One line; also for a file that is to give several jet pTs, or another one than its own.
    """
    executor = None
    if address and source == "pythia":
        from cluster.generate import cluster_executor

        executor = cluster_executor(address)
    return load_jets(source, plan_needs(plan, tasks), executor=executor)


def cached_plan_jets(plan: Plan, source: str, cache: Path | None = None, tasks: Collection[str] = ()) -> Jets | None:
    """The jets of a plan where nothing has to be generated or downloaded, else None: dry runs find records by them."""
    return cached_jets(source, plan_needs(plan, tasks), cache)
