"""Sections about the training step: limits, engines and precisions, its parts, threads, packs, growth."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.timing import (
    Clock,
    NotAvailable,
    Row,
    Sample,
    Variant,
    busy_rates,
    interleave,
    quartiles,
    rate_row,
    ratios,
    value_row,
)
from benchmarks.trainer import MAX_STEPS, MODELS, PARTS, StepGroup
from jbot.config import Config, override
from jbot.data.jets import JetData
from jbot.trainer.flops import step_flop

PAPER_PASSES = 700_000 * 80
"""Jets times epochs of the paper's pre-training (arXiv:2601.11719)."""
PAPER_BATCH = 1024
QUICK_BATCHES = {"S": 128, "B": 64}
GPU_PACK = 16
COMPARED = tuple((engine, precision) for precision in ("fp32", "bf16") for engine in ("plain", "compiled", "fused"))
"""Engines and precisions. On a CPU, plain and compiled bf16 is rounding by torch, and slower than fp32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What every section is given. It runs with one torch thread."""

    device: torch.device
    quick: bool
    data: JetData
    engine: str = "auto"
    """Engine of every section but `step`, which compares engines; in fp32."""
    preset: str | None = None
    """Of the section `evaluation`."""
    batches: Mapping[str, int] | None = None
    """Jets a step by model, in place of the usual ones."""
    max_steps: int = MAX_STEPS
    """Made at once."""

    def config(self, model: str, batch: int | None = None, **changes: Any) -> Config:
        """A model at its batch: the paper's 1024, or a smaller one for a quick run."""
        usual = self.batches or (QUICK_BATCHES if self.quick else dict.fromkeys(MODELS, PAPER_BATCH))
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return override(MODELS[model], {"train.batch": batch or usual[model], **changes})

    def timed(self, variants: Sequence[Variant], rounds: int, budget: float) -> dict[str, list[Sample]]:
        """Interleaved, fewer rounds of it in a quick run."""
        if self.quick:
            rounds, budget = min(rounds, 5), budget / 10
        return interleave(variants, rounds=rounds, budget=budget, device=self.device)

    def group(self, config: Config, engine: str | None = None, size: int = 1) -> StepGroup:
        """Steps on this setting's jets and device, by its engine unless another is named."""
        return StepGroup(
            config,
            torch.from_numpy(self.data.particles),
            size=size,
            device=self.device,
            engine=engine or self.engine,
            max_steps=self.max_steps,
        )

    def described(self, group: StepGroup, **more: Any) -> dict[str, Any]:
        """The settings of a row, for JSON."""
        return {
            "batch": group.config.train.batch,
            "pack": group.size,
            "steps_at_once": group.steps,
            "engine": group.engine.name,
            "precision": group.config.train.precision,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            **more,
        }


def step_variant(name: str, *groups: StepGroup, threads: int | None = None, least: int = 1) -> Variant:
    """Steps as the trainer makes them, at least so many, on other jets each time; of several groups, one by one.

    The amount is in jets, of one step of all.
    """
    times = -(-least // groups[0].steps)

    def prepare() -> None:
        if threads:
            torch.set_num_threads(threads)
        for group in groups:
            group.choose_jets()

    def run() -> None:
        for group in groups:
            for _ in range(times):
                group.run()

    amount = sum(group.jets_a_step for group in groups)
    return Variant(name=name, run=run, prepare=prepare, amount=amount, pieces=times * groups[0].steps)


# --- step: engines, precisions, limits ------------------------------------------------------------------------------


def limits(setting: Setting) -> list[Row]:
    """GEMM and memory limit of one thread, the best size of each."""
    probes = machine.probes(setting.device, setting.quick)
    samples = setting.timed(list(probes.values()), rounds=15, budget=20)
    return [
        rate_row(probe, samples, "GB/s" if name == "memory" else "GFLOP/s", settings={"device": setting.device.type})
        for name, probe in probes.items()
    ]


def step(setting: Setting) -> list[Row]:
    """jets/s of S and B by engine and precision, and the share of the machine's limits that they reach."""
    return [row for model in MODELS for row in _steps_of(setting, model)]


def _steps_of(setting: Setting, model: str) -> list[Row]:
    groups, rows = _groups_by_engine(setting, model)
    variants = {name: step_variant(name, group) for name, group in groups.items()}
    probes = machine.probes(setting.device, setting.quick)
    samples = setting.timed([*variants.values(), *probes.values()], rounds=12, budget=30)
    base = variants[f"{model} plain fp32"]
    measured = []
    for name, group in groups.items():
        shares = _shares_of_limits(group, samples[name], probes, samples)
        notes = [f"{100 * share[0]:.0f}% of {limit.split('_')[0]} limit" for limit, share in shares.items()]
        if group.config.train.batch == PAPER_BATCH:
            hours = PAPER_PASSES * quartiles([sample.wall for sample in samples[name]])[0] / PAPER_BATCH / 3600
            notes.append(f"{PAPER_PASSES / 1e6:.0f}M jet passes of the paper would take {hours:.3g} h without probes")
        settings = setting.described(group, model=model, **shares)
        measured.append(rate_row(variants[name], samples, "jets/s", base, settings=settings, note=", ".join(notes)))
    return measured + rows


def _groups_by_engine(setting: Setting, model: str) -> tuple[dict[str, StepGroup], list[Row]]:
    """Steps that have been made once, by name; and rows that say what is missing, and what compilation took."""
    groups: dict[str, StepGroup] = {}
    rows: list[Row] = []
    for engine, precision in COMPARED:
        name, started = f"{model} {engine} {precision}", time.perf_counter()
        if engine == "compiled" and setting.quick:
            rows.append(Row(what=name, note="left out by --quick: compiles for minutes"))
            continue
        try:
            group = setting.group(setting.config(model, train__precision=precision), engine)
            group.run()
            group.check_engine()
        except (NotAvailable, RuntimeError, NotImplementedError) as error:
            if (engine, precision) == COMPARED[0]:
                raise
            rows.append(Row(what=name, note=next(iter(str(error).splitlines()), type(error).__name__)))
            continue
        groups[name] = group
        if engine == "compiled":
            what, seconds = f"{name}, first steps, with compilation", time.perf_counter() - started
            rows.append(value_row(what, "s", [seconds], note="less when an earlier run has compiled it"))
    return groups, rows


def _shares_of_limits(
    group: StepGroup, samples: list[Sample], probes: Mapping[str, Variant], limits: Mapping[str, list[Sample]]
) -> dict[str, tuple[float, float, float]]:
    """Share of the GEMM limit, and of the memory limit where the bytes moved are known: median and quartiles.

    By `Sample.busy` of step and limit: other load on the machine cancels.
    """

    def share(amount: float, probe: Variant) -> tuple[float, float, float]:
        return ratios(busy_rates(samples, amount), busy_rates(limits[probe.name], probe.amount))

    used = []
    for _ in range(4):
        group.choose_jets()
        used.append(group.used_share())
    flop = step_flop(group.config, float(np.mean(used))) * group.jets_a_step
    shares = {"GEMM_share": share(flop / 1e9, probes[group.config.train.precision])}
    if (moved := group.traffic()) is not None:
        shares["memory_share"] = share(moved / 1e9, probes["memory"])
    return shares


# --- parts ----------------------------------------------------------------------------------------------------------


def parts(setting: Setting) -> list[Row]:
    """Where the time of a step goes."""
    return [row for model in MODELS for row in _parts_of(setting, model)]


def _parts_of(setting: Setting, model: str) -> list[Row]:
    """Microseconds a jet of each part, and its share of the sum of all parts; the whole step beside them."""
    group = setting.group(setting.config(model))
    clocks: list[Clock] = []

    def in_parts() -> None:
        clocks.append(Clock(setting.device))
        group.run_parts(clocks[-1])

    whole = step_variant("whole step", group)
    split = dataclasses.replace(whole, name="parts", run=in_parts)
    timed = setting.timed([split, whole], rounds=15, budget=15)
    clocks = clocks[-len(timed["parts"]) :]  # without the warm-up
    samples = {part: [clock.parts[part].each(group.steps) for clock in clocks] for part in PARTS}
    total = [sum(of_round[1:], start=of_round[0]) for of_round in zip(*samples.values(), strict=True)]
    note = "timed apart from its parts: 1 when they add up to it"
    if setting.device.type == "cuda":
        note = "timed apart from its parts, in one CUDA graph where it can be recorded; the parts are launched singly"
    return [
        value_row(
            f"{model} {part}",
            "us/jet",
            [1e6 * sample.wall / group.jets_a_step for sample in own],
            own,
            ratio=ratios([sample.wall for sample in own], [sample.wall for sample in total]),
            cpu_ratio=ratios([sample.cpu for sample in own], [sample.cpu for sample in total]),
            base="sum of parts",
            note=note if part == whole.name else "",
            settings=setting.described(group, model=model, part=part),
        )
        for part, own in {**samples, whole.name: timed[whole.name]}.items()
    ]


# --- threads --------------------------------------------------------------------------------------------------------


def threads(setting: Setting) -> list[Row]:
    """One and two threads, and two processes of one thread each."""
    if setting.device.type != "cpu":
        raise NotAvailable("a question of CPUs: run with --device cpu")
    if machine.cores() < 2:
        raise NotAvailable("this process may use one core")
    models = ["S"] if setting.quick else MODELS  # a worker takes seconds to start
    return [row for model in models for row in _threads_of(setting, model)]


def _threads_of(setting: Setting, model: str) -> list[Row]:
    config = setting.config(model)
    counts = sorted({1, 2, machine.cores()})
    with worker_processes(2, config, setting) as all_step:
        group = setting.group(config)
        variants = [step_variant(f"{model} {n} thread{'s' * (n > 1)}", group, threads=n) for n in counts]
        name = f"{model} 2 processes of 1 thread"
        variants.append(dataclasses.replace(variants[0], name=name, run=all_step, amount=2 * config.train.batch))
        samples = setting.timed(variants, rounds=10, budget=20)
    processes = [(n, 1) for n in counts] + [(1, 2)]
    return [
        rate_row(
            variant,
            samples,
            "jets/s",
            variants[0],
            settings=setting.described(group, model=model, threads=n, processes=count),
        )
        for variant, (n, count) in zip(variants, processes, strict=True)
    ]


@contextmanager
def worker_processes(count: int, config: Config, setting: Setting) -> Iterator[Callable[[], float]]:
    """Processes of one thread. What is given makes a group of steps in all at once, and returns their CPU seconds."""
    context = multiprocessing.get_context("spawn")  # fork is unsafe after torch started threads
    start = (config, setting.data.particles, setting.engine)

    def all_step() -> float:
        try:
            return sum(job.result() for job in [pool.submit(_work) for pool in pools])
        except BrokenProcessPool:
            raise NotAvailable("a worker process died (out of memory?)") from None

    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, context, _start_work, start)) for _ in range(count)]
        yield all_step


_working: list[StepGroup] = []
"""The steps of a worker process."""


def _start_work(config: Config, particles: np.ndarray, engine: str) -> None:
    torch.set_num_threads(1)
    _working.append(StepGroup(config, torch.from_numpy(particles), engine=engine))


def _work() -> float:
    started = time.process_time()
    _working[0].choose_jets()
    _working[0].run()
    return time.process_time() - started


# --- packs ----------------------------------------------------------------------------------------------------------


def packs(setting: Setting) -> list[Row]:
    """Jets a second of all trials of a pack, against the same trials one after another."""
    sizes: tuple[int, ...] = (1, 2, 4) if setting.quick else (1, 2, 4, 8)
    batches: tuple[int, ...] = (16, 64) if setting.quick else (16, 64, 256)
    if setting.device.type == "cuda":
        sizes, batches = (1, GPU_PACK), (16, 256, 1024)
    return [row for batch in batches for row in packs_of(setting, batch, sizes)]


def packs_of(setting: Setting, batch: int, sizes: Sequence[int]) -> list[Row]:
    """Packs of these sizes at one batch, all in the same rounds."""
    config = setting.config("S", batch)
    least = max(1, 256 // batch)  # a single step of a small batch is a few milliseconds
    groups = {size: setting.group(config, size=size) for size in sizes}
    packed = {n: step_variant(f"S batch {batch}, pack of {n}", group, least=least) for n, group in groups.items()}
    apart = {
        n: step_variant(f"{n} one after another", *(setting.group(config) for _ in range(n)), least=least)
        for n in sizes
        if n > 1
    }
    samples = setting.timed([*packed.values(), *apart.values()], rounds=12, budget=15)
    return [
        rate_row(variant, samples, "jets/s", apart.get(n), settings=setting.described(groups[n], model="S"))
        for n, variant in packed.items()
    ]


# --- growth ---------------------------------------------------------------------------------------------------------


def growth(setting: Setting) -> list[Row]:
    """Exponents of the cost: seconds of a step ~ size^exponent, by jets, particles and width.

    CPU seconds of one thread, wall seconds on CUDA; an exponent is fitted to each round.
    """
    short = setting.quick
    base = 64 if short else 256
    sweeps: dict[str, tuple[Sequence[int], Callable[[int], Config]]] = {
        "jets": ((32, 64, 128) if short else (128, 256, 512, 1024), lambda n: setting.config("S", n)),
        "particles": ((10, 30) if short else (8, 15, 22, 30), lambda n: setting.config("S", base, data__particles=n)),
        "width": ((16, 32, 64) if short else (16, 32, 64, 128), lambda n: setting.config("S", base, model__dim=n)),
    }
    return [
        row
        for name, (sizes, config) in sweeps.items()
        for row in sweep(setting, name, {size: setting.group(config(size)) for size in sizes})
    ]


def sweep(setting: Setting, name: str, groups: Mapping[int, StepGroup]) -> list[Row]:
    """The exponent over steps of several sizes, then the time of each."""
    variants = {size: step_variant(f"{name} {size}", group) for size, group in groups.items()}
    samples = setting.timed(list(variants.values()), rounds=10, budget=12)
    milliseconds = {size: [1e3 * sample.busy for sample in samples[v.name]] for size, v in variants.items()}
    slopes = np.polyfit(np.log(list(groups)), np.log(np.array(list(milliseconds.values()))), 1)[0]
    first = next(iter(variants))
    points = [
        value_row(
            variant.name,
            "CPU ms/step" if setting.device.type == "cpu" else "ms/step",
            milliseconds[size],
            samples[variant.name],
            ratio=ratios(milliseconds[size], milliseconds[first]),
            base=variants[first].name,
            settings={"sweep": name, "size": size},
        )
        for size, variant in variants.items()
    ]
    note = f"fitted to {', '.join(map(str, groups))}"
    settings = {"exponent_of": name, "sizes": list(groups)}
    return [value_row(f"exponent of {name}", "1", list(slopes), note=note, settings=settings), *points]
