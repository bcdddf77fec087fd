"""Population-based training (Jaderberg et al., arXiv:1711.09846) as generations of ordinary trials.

    generation 0: every member draws its knobs and trains to the first stop
    then, at each stop: the worst quarter copies members of the best quarter, and changes their knobs; all train on

A member is an arm: knobs to begin with and a `train.schedule` of what was changed since. All share one seed, so to
copy another's weights is to take over its schedule: the copy starts from the state which the other's trial has left
(jbot.saved), and the schedule that wins can be trained again from zero, at other seeds, by any study.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from cluster.run import ClusterError
from jbot.config import Config, ConfigError, at_epoch, can_change, flatten, override
from jbot.record import Record, Storage, load_curves, load_record
from jbot.searches import POPULATION, Member, Population, ranking
from jbot.trial import TrialSpec

SHARE = 4
"""One in so many members copies, and as many may be copied (the paper: one in five)."""
FACTORS = (0.8, 1.25)
"""What a copied knob is multiplied by: its own inverse, so that a knob can come back (the paper: 0.8 or 1.2)."""
RESAMPLE = 0.25
"""Probability with which a copied knob is drawn afresh instead (the default of Ray Tune's scheduler)."""
DIGITS = 4
"""Of a knob: more no search tells apart (assumed), and schedules stay readable."""
ATTEMPTS = 100
"""Draws of knobs that are a valid Config together."""

Plan = Mapping[str, Any]
"""Overrides of the base: knobs to begin with, and `train.schedule`."""


class Axis(Protocol):
    """What a knob may be: a list of numbers, or a range (search_spaces.axis.Axis)."""

    @property
    def field(self) -> str:
        """Dotted Config field."""

    @property
    def values(self) -> tuple[Any, ...]:
        """All numbers it may be; empty for a range."""

    @property
    def low(self) -> float:
        """Of a range."""

    @property
    def high(self) -> float:
        """Of a range."""

    @property
    def log(self) -> bool:
        """Whether factors, not differences, are alike on it."""


def population(
    base: Config,
    space: Sequence[Axis],
    *,
    study: str,
    storage: Storage,
    members: int,
    generations: int,
    seed: int,
    run: Callable[[list[TrialSpec]], None],
    spec_of: Callable[[str, Config], TrialSpec],
    metric: str = "val/knn_accuracy",
    higher_is_better: bool = True,
) -> Population:
    """Train a population, or what of it has no record yet: killed and called again it goes on, and ends the same.

    Costs members x train.epochs epochs of training, and judges members x generations trials on the test jets, which
    nothing here looks at. ``<storage>/<study>/population.json`` is written after every generation.

    Parameters
    ----------
    base : Config
        What all members share, its seed too. Member 0 begins with the base's own knobs where they are on their axes.
    space : sequence of Axis
        The knobs: float fields that a schedule may change (:func:`jbot.config.can_change`).
    study : str
        Names the folder of population.json.
    members, generations : int
        At least 2 and 1; generation g ends at epoch train.epochs * (g + 1) // generations.
    seed : int
        Of the search: a member's draws depend on (seed, generation, member) alone.
    run : callable
        Runs trials until each has its record, as :func:`cluster.run.run_inline` and :func:`cluster.tune.run_ray` do.
        Called once a generation; need not do anything for trials with a record.
    spec_of : callable
        The trial of an arm, given its name (``pbt-03`` is member 3) and Config.
    metric : str
        Column of the learning curves; its last point ranks the members. A failed member is the worst.

    Raises
    ------
    ConfigError
        For a field no schedule may change, or a metric the curves do not have.
    ClusterError
        When trials have no record after `run`, or every member has failed.
    """
    _check(base, space, members, generations, metric)
    stops = tuple(base.train.epochs * (number + 1) // generations for number in range(generations))
    rows: list[Member] = []
    for generation, stop in enumerate(stops):
        before = rows[-members:]
        order = ranking([row.value for row in before], higher_is_better)
        draws = [np.random.default_rng([seed, generation, member]) for member in range(members)]
        plans = [_plan(base, space, before, order, member, draws[member]) for member in range(members)]
        specs = [
            spec_of(f"pbt-{member:02d}", override(base, {**plan, "train.until": stop}))
            for member, (plan, _, _) in enumerate(plans)
        ]
        run(specs)
        records = _records(specs, storage, generation)
        for member, (plan, came, parent) in enumerate(plans):
            now = flatten(at_epoch(specs[member].config, stop))
            rows.append(
                Member(
                    generation=generation,
                    member=member,
                    epoch=stop,
                    came=came,
                    parent=parent,
                    knobs={axis.field: now[axis.field] for axis in space},
                    trial_id=specs[member].trial_id,
                    state=records[member].state,
                    value=_value(records[member], storage, metric),
                    overrides=dict(plan),
                )
            )
        order = ranking([row.value for row in rows[-members:]], higher_is_better)
        found = Population(
            metric=metric,
            higher_is_better=higher_is_better,
            seed=seed,
            members=members,
            stops=stops,
            fields=tuple(axis.field for axis in space),
            lineage=tuple(rows),
            best=order[0] if generation == generations - 1 else None,
        )
        storage.write_json(f"{study}/{POPULATION}", dataclasses.asdict(found))
        if rows[-members + order[0]].value is None:
            raise ClusterError(f"every member of generation {generation} has failed, e.g. {records[0].reason}")
    return found


def winning_overrides(found: Population) -> dict[str, Any]:
    """The best member's knobs and schedule, as the overrides of an arm. Its own value is the best of many, on the
    jets it was chosen by: train the arm at fresh seeds.

    Raises
    ------
    ClusterError
        When the last generation has not ended.
    """
    if found.best is None:
        raise ClusterError(f"the population has not ended: generation {len(found.stops) - 1} is missing")
    return dict(found.generations[-1][found.best].overrides)


def _plan(
    base: Config,
    space: Sequence[Axis],
    before: Sequence[Member],
    order: Sequence[int],
    member: int,
    draws: np.random.Generator,
) -> tuple[Plan, Literal["drawn", "kept", "copied"], int | None]:
    """A member's overrides in the next generation, how it came by them, and whom it goes on from."""
    if not before:
        return _first_plan(base, space, member, draws), "drawn", None
    share = max(1, len(before) // SHARE)
    donors = [one for one in order[:share] if before[one].value is not None]
    copies = member in order[-share:] or before[member].value is None
    if not copies or member in donors:
        return before[member].overrides, "kept", member
    donor = before[int(draws.choice(donors))]
    return explored(base, space, donor, draws), "copied", donor.member


def _first_plan(base: Config, space: Sequence[Axis], member: int, draws: np.random.Generator) -> Plan:
    own = flatten(base)
    if member == 0 and all(_is_on(axis, own[axis.field]) for axis in space):
        return {axis.field: own[axis.field] for axis in space}
    for _ in range(ATTEMPTS):
        plan = {axis.field: drawn(axis, draws) for axis in space}
        try:
            override(base, plan)
        except ConfigError as error:
            problem = error
        else:
            return plan
    raise ConfigError(f"the axes of the population never give a Config: {problem}")


def explored(base: Config, space: Sequence[Axis], donor: Member, draws: np.random.Generator) -> Plan:
    """The donor's overrides, with changes of its knobs at the epoch where it stands; its own when none is a Config."""
    theirs = override(base, donor.overrides)
    for _ in range(ATTEMPTS):
        changes = [f"{donor.epoch} {axis.field}={perturbed(axis, donor.knobs[axis.field], draws)!r}" for axis in space]
        try:
            config = override(theirs, {"train.schedule": [*theirs.train.schedule, *changes]})
        except ConfigError:  # the knobs contradict each other
            continue
        if config != theirs:  # the same would be trained twice for nothing
            return {**donor.overrides, "train.schedule": list(config.train.schedule)}
    return donor.overrides


def perturbed(axis: Axis, value: float, draws: np.random.Generator) -> float:
    """A knob, drawn afresh or moved a little: by a factor within the range, to a neighbour in a list."""
    if draws.random() < RESAMPLE:
        return drawn(axis, draws)
    up = bool(draws.integers(2))
    if axis.values:
        numbers = sorted(map(float, axis.values))
        place = numbers.index(value) + (1 if up else -1)
        return numbers[min(max(place, 0), len(numbers) - 1)]
    return _rounded(axis, value * FACTORS[up])


def drawn(axis: Axis, draws: np.random.Generator) -> float:
    """A number of an axis: any of a list, uniform or log-uniform in a range."""
    if axis.values:
        return float(axis.values[int(draws.integers(len(axis.values)))])
    if axis.log:
        return _rounded(axis, math.exp(draws.uniform(math.log(axis.low), math.log(axis.high))))
    return _rounded(axis, draws.uniform(axis.low, axis.high))


def _rounded(axis: Axis, value: float) -> float:
    return float(min(max(float(f"{value:.{DIGITS}g}"), axis.low), axis.high))


def _is_on(axis: Axis, value: float) -> bool:
    return value in axis.values if axis.values else axis.low <= value <= axis.high


def _check(base: Config, space: Sequence[Axis], members: int, generations: int, metric: str) -> None:
    if members < 2:
        raise ConfigError(f"a population needs at least 2 members, got {members}")
    if not 1 <= generations <= base.train.epochs:
        raise ConfigError(f"generations must be 1 to train.epochs = {base.train.epochs}, got {generations}")
    if base.train.schedule or base.train.until:
        raise ConfigError("the base of a population must not set train.schedule or train.until")
    if not space:
        raise ConfigError("a population needs at least one axis")
    for axis in space:
        if not can_change(axis.field):
            raise ConfigError(f"a population needs fields that train.schedule may change, got {axis.field}")
    if not metric.startswith("val/"):
        raise ConfigError(f"a population must be ranked by the validation jets, val/..., got {metric!r}")


def _records(specs: Sequence[TrialSpec], storage: Storage, generation: int) -> list[Record]:
    """Those of a generation, all there: who ranks fewer today ranks others tomorrow."""
    found = [load_record(storage, spec.trial_id) for spec in specs]
    records = [record for record in found if record is not None]
    if len(records) < len(specs):
        missing = len(specs) - len(records)
        raise ClusterError(
            f"{missing} of {len(specs)} trials of generation {generation} have no record: the same command continues"
        )
    return records


def _value(record: Record, storage: Storage, metric: str) -> float | None:
    """The metric at the end of a trial; None for one that failed."""
    if record.state != "complete":
        return None
    point = load_curves(storage, record.trial_id)[-1]
    if metric not in point:
        known = ", ".join(name for name in point if name.startswith("val/"))
        raise ConfigError(f"metric {metric!r} is not in the learning curves, which have {known}")
    value = point[metric]
    return None if value is None or not math.isfinite(value) else float(value)
