"""What a study would run, what it would cost, and what it could answer, before anything is spent."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from analysis.plan import FILE, Plan, load_study
from analysis.statistics import minimum_detectable_effect, p_floor
from cluster.packs import form_packs, trial_bytes
from cluster.run import Resources
from jbot.config import Config, digest, override
from jbot.data.splits import TARGETS
from jbot.engine import find_engine
from jbot.evaluate import fine_tunings
from jbot.finetune import LabeledRows, finetune_step, init_finetune, runs_of, stack_knobs
from jbot.model import init_weights
from jbot.pack import Pack
from jbot.record import Record, Storage
from jbot.train import VIEW_JETS, init_state, run_steps
from studies.study import trial_specs

PROBE_REPEATS = 3
COSTLY = ("data", "train", "model", "probe", "finetune", "anomaly")
"""Parts of a Config that decide how much work a trial is."""


def describe(plan: Plan, base: Config, storage: Storage, held: Resources) -> None:
    """Print the plan: trials, device hours, p floor, the smallest effect it can find."""
    trials = len(plan.arms) * len(plan.seeds)
    pilot = pilot_records(plan, storage)
    costs, basis = arm_seconds(plan, base, [record for _, record in pilot], held)
    seconds = sum(costs.values()) / len(costs)
    table = Table(title=f"{plan.study}: dry run, nothing is started", show_header=False, title_justify="left")
    table.add_row("question", plan.question)
    table.add_row("arms", ", ".join(plan.arms))
    table.add_row("trials", f"{trials} = {len(plan.arms)} arms x {len(plan.seeds)} seeds (blocks)")
    table.add_row("each trial", "\n".join(pre_training(plan, base)))
    each = (
        f"{min(costs.values()):,.0f} to {max(costs.values()):,.0f}"
        if len(set(costs.values())) > 1
        else f"{seconds:,.0f}"
    )
    table.add_row("device hours", f"{trials * seconds / 3600:,.1f} ({each} s a trial, {basis})")
    table.add_row("packs", packing(plan, base, held))
    table.add_row("metric", f"{plan.metric}, margin {plan.margin:g}")
    table.add_row("what it can answer", "\n".join(power_lines(plan, pilot)))
    table.add_row("plan hash", plan.hash)
    Console().print(table)


def pre_training(plan: Plan, base: Config) -> list[str]:
    """Jet passes of a trial; a line for all arms, or one for those that share them."""
    arms: dict[str, list[str]] = {}
    for arm, changes in plan.arms.items():
        config = override(base, changes)
        jets, epochs = config.data.train_jets, config.train.last_epoch
        line = f"{jets:,} jets x {epochs} epochs = {jets * epochs:,} jet passes"
        arms.setdefault(line, []).append(arm)
    return [line if len(arms) == 1 else f"{line}: {', '.join(names)}" for line, names in arms.items()]


def packing(plan: Plan, base: Config, held: Resources) -> str:
    """How trials are put together on a device."""
    if held.pack is None and held.gpus > 0:
        most = max(trial_bytes(override(base, changes)) for changes in plan.arms.values())
        return f"what fits on the GPU, some {most / 1e6:,.0f} MB a trial"
    sizes = [len(pack) for pack in form_packs(trial_specs(plan, base, None), size=held.pack)]
    return f"{len(sizes)} of at most {max(sizes)} trial(s); CPUs a pack: {held.cpus:g}, GPUs: {held.gpus:g}"


def power_lines(plan: Plan, pilot: list[tuple[str, Record]]) -> list[str]:
    """The p floor and minimum detectable effect of the primary family, in plain words."""
    if not plan.contrasts:
        return ["the plan states no contrast: nothing is compared, every figure comes with its spread over seeds"]
    primary = [contrast for contrast in plan.contrasts if contrast.primary]
    n, family = len(plan.seeds), max(1, len(primary))
    floor = p_floor(n, family)
    claim = f"after Holm over {family} primary contrast(s)" if primary else "of an exploratory contrast"
    lines = [f"smallest p-value {claim} at n = {n}: {floor:.3g}"]
    if floor > plan.alpha:
        enough = next(m for m in range(1, 100) if p_floor(m, family) <= plan.alpha)
        lines.append(f'CANNOT say "better" or "worse": that needs p <= {plan.alpha:g}, so at least {enough} seeds')
    effect = minimum_detectable_effect(n, alpha=plan.alpha / family)
    lines.append(f"detectable difference (80% power): {effect:.2f} sd of the paired difference")
    for contrast in primary:
        differences = paired(contrast.treatment, contrast.control, pilot, plan.metric)
        if len(differences) > 1:
            sd = float(np.std(differences, ddof=1))
            lines.append(f"  {contrast.name}: {effect * sd:.3g}, as sd is {sd:.3g} in {len(differences)} earlier pairs")
    return lines


def pilot_records(plan: Plan, storage: Storage) -> list[tuple[str, Record]]:
    """(arm, record) of complete trials of an earlier run of this study and preset."""
    if not storage.exists(f"{plan.study}/{FILE}"):
        return []
    found = load_study(f"{storage.uri}/{plan.study}")
    records = [(trial.arm, found.records[trial.trial_id]) for trial in found.trials]
    return [(arm, record) for arm, record in records if record and record.state == "complete"]


def paired(treatment: str, control: str, pilot: list[tuple[str, Record]], metric: str) -> list[float]:
    """Differences of the metric at seeds where both arms have a record."""
    values = {(arm, record.seed): record.metrics[metric] for arm, record in pilot if metric in record.metrics}
    seeds = {seed for arm, seed in values if arm == treatment} & {seed for arm, seed in values if arm == control}
    return [values[treatment, seed] - values[control, seed] for seed in sorted(seeds)]


def arm_seconds(plan: Plan, base: Config, pilot: list[Record], held: Resources) -> tuple[dict[str, float], str]:
    """Device seconds of a trial of each arm, and what they rest on: earlier records, else steps timed here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # as a trial on a CPU
    where = "one CPU thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    seconds: dict[str, float] = {}
    bases: list[str] = []
    timed: dict[tuple[Any, ...], float] = {}
    for arm, changes in plan.arms.items():
        config = override(base, changes)
        if same := [record.device_seconds for record in pilot if costs_as_much(record, config)]:
            seconds[arm] = float(np.median(same))
            bases.append("median of earlier records")
            continue
        step = override(config, {"train.batch": min(config.train.batch, 1024)})
        shape = (step.model, step.train.batch, step.train.precision, step.data.particles)
        if shape not in timed:  # arms of one shape differ little in what a step costs
            timed[shape] = seconds_a_step(step, device, held.engine)
        seconds[arm] = timed[shape] * config.train.last_epoch * -(-config.data.train_jets // step.train.batch)
        if config.finetune.fractions:
            tuning = (*shape, config.finetune.batch)
            if tuning not in timed:
                timed[tuning] = seconds_a_finetune_step(config, device)
            seconds[arm] += timed[tuning] * finetune_steps(config)
        bases.append(f"steps timed here on {where}, probes not counted")
    return seconds, "; ".join(dict.fromkeys(bases))


def costs_as_much(record: Record, config: Config) -> bool:
    """Whether a trial of this Config does as much work as the record's did."""
    return all(digest(record.config.get(part)) == digest(part_of(config, part)) for part in COSTLY)


def part_of(config: Config, part: str) -> dict[str, object]:
    """One part of a Config as a record holds it."""
    return dict(vars(getattr(config, part)))


def finetune_steps(config: Config) -> int:
    """Of all fine-tunings and twins of a trial, if none ends early."""
    wanted, jets = config.finetune, config.data.train_jets
    return sum(wanted.epochs * -(-round(share * jets) // wanted.batch) for share in fine_tunings(config).values())


def seconds_a_finetune_step(config: Config, device: torch.device) -> float:
    """Wall seconds of one step of one fine-tuning, on jets of random numbers."""
    batch, classes = config.finetune.batch, len(TARGETS[config.data.task])
    targets = torch.arange(batch, device=device) % classes
    jets = LabeledRows(rows=torch.arange(batch, device=device), targets=targets)
    whole = override(config, {"finetune.fractions": [1.0]})
    (run, *_) = runs_of(whole, init_weights(config.model, 0), jets, jets)
    state, knobs = init_finetune([run], device), stack_knobs([run], device)
    particles = torch.rand(1, batch, config.data.particles, 4, device=device)
    particles[..., 3] = 1.0
    for repeat in range(PROBE_REPEATS + 1):
        if repeat == 1:  # the first one warms up
            started = time.perf_counter()
        finetune_step(state, particles, targets[None], knobs)["loss"].item()  # waits for the device
    return (time.perf_counter() - started) / PROBE_REPEATS


def seconds_a_step(config: Config, device: torch.device, engine: str) -> float:
    """Wall seconds of one training step, on jets of random numbers."""
    state, pack = init_state(config, [0], device), Pack([config], device)
    forward = find_engine(engine, config, device).forward
    ahead = max(1, VIEW_JETS[device.type] // config.train.batch)  # steps whose views are made together
    jets = torch.rand(ahead, 1, config.train.batch, config.data.particles, 4).to(device)
    jets[..., 3] = 1.0
    lr, momentum = torch.tensor([[1e-3], [0.99]], dtype=torch.float64, device=device)
    for repeat in range(PROBE_REPEATS + 1):
        if repeat == 1:  # the first one warms up
            started = time.perf_counter()
        run_steps(state, jets, pack, (0,), lr, momentum, forward)[0].item()  # waits for the device
    return (time.perf_counter() - started) / (PROBE_REPEATS * ahead)
