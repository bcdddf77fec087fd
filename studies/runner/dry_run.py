"""What a study would run, what it would cost, and what it could answer, before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from analysis.stats.paired import min_p
from analysis.stats.power import detectable_effect, min_seeds
from analysis.stats.sequential import final_level
from analysis.verdicts import number_format as fmt
from analysis.verdicts.component_design import alias_lines
from analysis.verdicts.costs import CostEstimate, hours_text, same_but_seed, with_configs
from analysis.verdicts.number_format import count
from cluster.resources import Resources
from cluster.scheduling.packs import form_packs, trial_bytes
from cluster.scheduling.run import open_trials
from jbot.config import Config, from_dict, override
from jbot.evaluation.anomaly.grid import grid_file, grid_seconds
from jbot.store.plan import Contrast, Plan
from jbot.store.record import Record
from jbot.store.search_ledger import load_ledger
from jbot.store.storage import Storage
from jbot.trainer.workload import jet_passes
from studies.runner.estimate import Costs, cores, ended_records, reusable_configs, slots_at, slots_here
from studies.runner.looks import describe_looks, needed_seeds
from studies.runner.options import RunOptions
from studies.runner.study import Study
from studies.runner.trials import cached_plan_jets, plan_needs, planned_configs, started_study, trial_specs

JETS_A_SECOND = 90.0
"""Jets that one core generates (docs/performance.md: 80 to 100)."""


@dataclass(frozen=True, kw_only=True)
class ExtraWork:
    """Work of a study beside the trials of its plan: the points of a search, say."""

    what: str
    seconds: float
    """Device seconds that are still to be spent."""
    trials: int = 0
    """Trials of an arm that is not known yet."""


def search_left(study: Study, plan: Plan, costs: Costs, storage: Storage) -> ExtraWork | None:
    """The open points of a search at the study's own options, at most, and the trials of its winner; None when both
    have ended."""
    if study.search is None or "winner" in plan.arms:
        return None
    base, ledger = from_dict(plan.base), load_ledger(storage, plan.study)
    if ledger is None or from_dict(ledger["plan"]["base"] | {"seed": base.seed}) != base:  # of another base
        ledger = {"points": []}
    left = max(0, study.search.points[plan.preset] - sum(entry["state"] != "open" for entry in ledger["points"]))
    trials = len(plan.seeds)
    if left == 0 and "winner" in ledger:
        trials = len(_winner_left(plan, base, ledger, storage))
    cost = costs.of(base, fresh=True)
    seconds = (cost.seconds if cost else 0.0) * (left + trials)
    what = f"at most {left} points of the search, and its winner" if left else "the winner of the search"
    return ExtraWork(what=what, seconds=seconds) if left + trials else None


def _winner_left(plan: Plan, base: Config, ledger: dict[str, Any], storage: Storage) -> list[Config]:
    """Trials of a search's winner that have no record; none where the base has won, or no point ran to its end."""
    if ledger["winner"] is None:
        return []
    won = override(base, ledger["points"][ledger["winner"]]["overrides"])
    if won == base:
        return []
    recorded = reusable_configs(ended_records(storage))
    trials = [override(won, {"seed": seed}) for seed in plan.seeds]
    return [config for config in trials if config not in recorded]


def grids_left(study: Study, plan: Plan, storage: Storage) -> ExtraWork | None:
    """Anomaly grids that the trials of a plan have not; all of them where its trials are not known yet."""
    if study.anomaly_grid is None:
        return None
    planned = [override(from_dict(plan.base), changes) for changes in plan.arms.values() for _ in plan.seeds]
    if found := started_study(plan, storage):
        there = [storage.exists(grid_file(study.anomaly_grid, trial.trial_id)) for trial in found.trials]
        planned = planned[sum(there) :]  # they cost the same
    seconds = sum(grid_seconds(study.anomaly_grid, config) for config in planned)
    return ExtraWork(what=f"{len(planned)} anomaly grids", seconds=seconds) if planned else None


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """A study at this moment: its trials, which of them are left, and what these cost."""

    plan: Plan
    contrasts: tuple[Contrast, ...]
    """Those of the plan, and what it will be asked of arms that are not known yet."""
    jets: dict[str, str]
    """Arm -> fingerprint; empty where the jets are not at hand: then nobody knows which trials have a record."""
    left: list[Config]
    """Trials without a record, block by block."""
    shared: int
    """Trials whose record another study made."""
    records: list[Record]
    """All of the storage."""
    costs: Costs
    cost: CostEstimate
    """The cost of what is left."""
    extra: tuple[ExtraWork, ...]

    @property
    def trials(self) -> int:
        """All of the study, those of arms that are not known yet among them."""
        return len(self.plan.arms) * len(self.plan.seeds) + self.unknown

    @property
    def unknown(self) -> int:
        """Trials of arms that are not known yet."""
        return sum(more.trials for more in self.extra)

    @property
    def seconds(self) -> float:
        """Device seconds of all that is left."""
        return self.cost.seconds + sum(more.seconds for more in self.extra)


def estimate_remaining(
    study: Study,
    plan: Plan,
    storage: Storage,
    source: str,
    costs: Costs,
    records: list[Record],
    to_come: tuple[Contrast, ...] = (),
) -> StudyStatus:
    """Which trials of a plan are left, and their cost. Generates no jets and writes nothing.

    Parameters
    ----------
    source : str
        Of the jets, as the user named it.
    to_come : tuple of Contrast
        Contrasts of arms that are not known yet, and will cost what the base does: the winner of a search.
    """
    data = cached_plan_jets(plan, source)
    specs = trial_specs(plan, data) if data else []
    seeds = needed_seeds(plan, storage)
    left = [spec.config for spec in open_trials(specs, storage)] if data else planned_configs(plan)
    left = [config for config in left if config.seed in seeds]
    cost, fresh = costs.total(left), costs.of(from_dict(plan.base), fresh=True)
    assert cost is not None  # what has no record is timed
    assert fresh is not None
    n = len(plan.seeds)
    unknown = [
        ExtraWork(what=f"{contrast.treatment}, whatever it will be", seconds=n * fresh.seconds, trials=n)
        for contrast in to_come
    ]
    made_by = {record.trial_id: record.study for record in records}
    return StudyStatus(
        plan=plan,
        contrasts=(*plan.contrasts, *to_come),
        jets={spec.arm: spec.data_fingerprint for spec in specs},
        left=left,
        shared=sum(made_by.get(spec.trial_id, plan.study) != plan.study for spec in specs),
        records=records,
        costs=costs,
        cost=cost,
        extra=(*extra_work(study, plan, costs, storage), *unknown),
    )


def extra_work(study: Study, plan: Plan, costs: Costs, storage: Storage) -> tuple[ExtraWork, ...]:
    """What a study still needs beside the trials of its plan."""
    return tuple(filter(None, [search_left(study, plan, costs, storage), grids_left(study, plan, storage)]))


# --- what is printed ------------------------------------------------------------------------------------------------


def describe(
    study: Study, plan: Plan, storage: Storage, options: RunOptions, to_come: tuple[Contrast, ...] = ()
) -> None:
    """Print the plan: trials, device hours, smallest p-value, the smallest effect it can find."""
    base, records, resources = from_dict(plan.base), ended_records(storage), options.resources
    costs = Costs(records, resources)
    status = estimate_remaining(study, plan, storage, options.data, costs, records, to_come)
    arms = [*plan.arms, *(contrast.treatment for contrast in to_come)]
    table = Table(title=f"{plan.study}: dry run, nothing is started", show_header=False, title_justify="left")
    table.add_row("question", plan.question)
    table.add_row("arms", ", ".join(arms))
    table.add_row("trials", f"{status.trials} = {count(len(arms), 'arm')} x {count(len(plan.seeds), 'seed')}")
    table.add_row("to be run", trials_left(status))
    table.add_row("each trial", "\n".join(pre_training(plan, base)))
    table.add_row("device hours", "\n".join(cost_lines(status)))
    table.add_row("wall clock", wall_line(status.seconds, status.cost.longest, *slots(options)))
    if options.price is not None:
        money = hours_text(costs.hours(status.seconds) * options.price)
        table.add_row("price", f"{money} USD at {options.price:g} USD a {costs.unit} hour")
    table.add_row("packs", packing(status, base, resources))
    table.add_row("metric", f"{plan.metric}, margin {plan.margin:g}")
    table.add_row("what it can answer", "\n".join(power_lines(status)))
    if looks := look_lines(status, options.until_decided):
        table.add_row("until decided", "\n".join(looks))
    if aliases := alias_lines(plan):
        table.add_row("aliased", "\n".join(aliases))
    table.add_row("plan hash", "known when all arms are" if to_come else plan.hash)
    Console().print(table)


def trials_left(status: StudyStatus) -> str:
    """``18, as 6 have a record already (6 made by other studies)``."""
    if not status.jets:
        jets = sum(sum(counts.values()) for counts in plan_needs(status.plan).values())
        minutes = jets / JETS_A_SECOND / cores() / 60
        return (
            f"all, as far as one can know: the jets are not at hand (at most {jets:,} to be generated, which takes"
            f" this machine some {minutes:,.0f} min), so trials that have a record already are not found"
        )
    open_trials = len(status.left) + status.unknown
    done = status.trials - open_trials
    others = f" ({status.shared} made by other studies)" if status.shared else ""
    return f"{open_trials}, as {done} have a record already{others}" if done else "all, none has a record yet"


def pre_training(plan: Plan, base: Config) -> list[str]:
    """Jet passes of a trial; a line for all arms, or one for those that share them."""
    arms: dict[str, list[str]] = {}
    for arm, changes in plan.arms.items():
        config = override(base, changes)
        epochs = config.train.last_epoch
        line = f"{config.data.train_jets:,} jets x {epochs} epochs = {jet_passes(config):,} jet passes"
        arms.setdefault(line, []).append(arm)
    return [line if len(arms) == 1 else f"{line}: {', '.join(names)}" for line, names in arms.items()]


def cost_lines(status: StudyStatus) -> list[str]:
    """Device hours of what is left, and what the figure rests on."""
    costs = status.costs
    each = [cost.seconds for config in status.left if (cost := costs.of(config))]
    span = list(dict.fromkeys(fmt.duration(end) for end in (min(each), max(each)))) if each else []
    lines = [costs.words(costs.hours(status.cost.seconds))]
    lines[0] += f" ({' to '.join(span)} a trial)" if span else ""
    lines += [f"{hours_text(costs.hours(more.seconds))} more for {more.what}" for more in status.extra]
    return [*lines, *status.cost.basis]


def slots(options: RunOptions) -> tuple[int, str]:
    """Packs that run at once, and where."""
    if options.inline:
        return 1, "one after another in one process"
    if options.address:
        most = slots_at(options.address, options.resources)
        return most, f"in {count(most, 'slot')} of the cluster at {options.address}"
    most = slots_here(options.resources)
    return most, f"in {count(most, 'slot')} of this machine"


def wall_line(seconds: float, longest: float, most: int, where: str) -> str:
    """``12 min in 2 slots of this machine``; no number of slots makes a single trial faster."""
    if most < 1:
        return f"unknown: nothing here can hold one trial ({where})"
    return f"{fmt.duration(max(seconds / most, longest))} {where}, without start, jets and pictures"


def packing(status: StudyStatus, base: Config, resources: Resources) -> str:
    """How trials are put together on a device. Arms that are not known yet have the shapes of the base, most likely."""
    plan = status.plan
    if resources.pack is None and resources.gpus > 0:
        most = max(trial_bytes(override(base, changes)) for changes in plan.arms.values())
        return f"what fits on the GPU, some {most / 1e6:,.0f} MB a trial"
    specs = trial_specs(plan, None)
    sizes = [len(pack) for pack in form_packs([*specs, *specs[: status.unknown]], size=resources.pack)]
    return f"{len(sizes)} of at most {max(sizes)} trial(s); CPUs a pack: {resources.cpus:g}, GPUs: {resources.gpus:g}"


# --- what it can answer ---------------------------------------------------------------------------------------------


def power_lines(status: StudyStatus) -> list[str]:
    """The smallest p-value and minimum detectable effect of the primary family, in plain words."""
    plan = status.plan
    if not status.contrasts:
        return ["the plan states no contrast: nothing is compared, every figure comes with its spread over seeds"]
    primary = [contrast for contrast in status.contrasts if contrast.primary]
    n, family = len(plan.seeds), max(1, len(primary))
    smallest = min_p(n, family)
    claim = f"after Holm over {family} primary contrast(s)" if primary else "of an exploratory contrast"
    lines = [f"smallest p-value {claim} at n = {n}: {smallest:.3g}"]
    if smallest > plan.alpha:
        enough, equal = min_seeds(plan.alpha, family)
        lines.append(f'CANNOT say "better" or "worse": that needs p <= {plan.alpha:g}, so at least {enough} seeds')
        if n < equal:
            lines.append(f'CANNOT say "equivalent": that needs at least {equal} seeds')
        return lines
    effect = detectable_effect(n, final_level(plan.looks, plan.alpha), family)
    lines.append(f"detectable difference (80% power): {effect:.2f} sd of the paired difference")
    earlier = earlier_records(status)
    return lines + [line for contrast in primary if (line := _detectable(plan, contrast, earlier, effect))]


def look_lines(status: StudyStatus, asked: Sequence[int] | None) -> list[str]:
    """When the study may stop early, and what that may save; nothing where nobody asked."""
    plan, costs, earlier = status.plan, status.costs, earlier_records(status)
    blocks = [costs.total([config for config in status.left if config.seed == seed]) for seed in plan.seeds]
    unknown = sum(more.seconds for more in status.extra if more.trials) / len(blocks)
    hours = [costs.hours(unknown + (block.seconds if block else 0.0)) for block in blocks]
    pairs = [paired(plan, contrast, earlier) for contrast in status.contrasts if contrast.primary]
    return describe_looks(plan, asked, hours, pairs, f"{costs.unit} hours")


Earlier = dict[str, dict[int, Record]]
"""By arm and seed."""


def earlier_records(status: StudyStatus) -> Earlier:
    """Complete records of the plan's arms at any seed, whatever study made them."""
    arms = {arm: override(from_dict(status.plan.base), changes) for arm, changes in status.plan.arms.items()}
    earlier: Earlier = {}
    for config, record in with_configs(status.records):
        jets = record.data.get("fingerprint")
        for arm in (arm for arm, own in arms.items() if same_but_seed(config, own)):
            if status.jets.get(arm, jets) == jets:
                earlier.setdefault(arm, {})[record.seed] = record
    return earlier


def _detectable(plan: Plan, contrast: Contrast, earlier: Earlier, effect: float) -> str | None:
    """The detectable difference in units of the metric, from the spread of earlier records."""
    differences = paired(plan, contrast, earlier)
    if len(differences) > 1:
        sd = float(np.std(differences, ddof=1))
        enough = f"{effect * sd:.3g}, as sd is {sd:.3g} in {len(differences)} earlier pairs"
        beyond = f"; more than the margin of {plan.margin:g}" if effect * sd > plan.margin else ""
        return f"  {contrast.name}: {enough}{beyond}"
    for arm, metric in zip(
        (contrast.control, contrast.treatment), reversed(contrast.metrics(plan.metric)), strict=True
    ):
        values = [record.metrics[metric] for record in earlier.get(arm, {}).values() if metric in record.metrics]
        if len(values) > 2:
            sd = float(np.std(values, ddof=1)) * 2**0.5
            return (
                f"  {contrast.name}: {effect * sd:.3g} if seeds had nothing in common, from the {len(values)} earlier"
                f" seeds of {arm}; pairing makes it smaller"
            )
    return None


def paired(plan: Plan, contrast: Contrast, earlier: Earlier) -> list[float]:
    """Treatment minus control at seeds where both arms have a record with their metric."""
    own, other = contrast.metrics(plan.metric)
    treatments, controls = earlier.get(contrast.treatment, {}), earlier.get(contrast.control, {})
    return [
        treatments[seed].metrics[own] - controls[seed].metrics[other]
        for seed in sorted(set(treatments) & set(controls))
        if own in treatments[seed].metrics and other in controls[seed].metrics
    ]
