"""The jets of a plan: at each jet pT, of each class as many as the arm that wants most."""

from __future__ import annotations

from pathlib import Path

from jbot.config import from_dict, override
from jbot.data.load import Jets, Needed, cached_jets, load_jets, needed_by
from jbot.store.plan import Plan


def plan_needs(plan: Plan) -> Needed:
    """Jet pT [GeV] -> class -> jets."""
    base = from_dict(plan.base)
    return needed_by(override(base, changes) for changes in plan.arms.values())


def load_plan_jets(plan: Plan, source: str, address: str | None = None) -> Jets:
    """From the source the user named: pythia, jetnet or a path; generated on the Ray cluster at an address, if any.

    Raises
    ------
    DataError
        One line; also for a file that is to give several jet pTs, or another one than its own.
    """
    executor = None
    if address and source == "pythia":
        from cluster.scheduling.generate import cluster_executor

        executor = cluster_executor(address)
    return load_jets(source, plan_needs(plan), executor=executor)


def cached_plan_jets(plan: Plan, source: str, cache: Path | None = None) -> Jets | None:
    """The same where nothing has to be generated or downloaded, else None: a dry run finds its records by them."""
    return cached_jets(source, plan_needs(plan), cache)
