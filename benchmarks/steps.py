"""Sections about the training step: engines and precisions, its parts, threads, packs, growth, and the GPU's rows."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.counts import step_flop
from benchmarks.timing import (
    Advance,
    Clock,
    NotAvailable,
    Row,
    Sample,
    Variant,
    busy_rates,
    interleave,
    no_row,
    rate_row,
    rates,
    ratios,
    seconds_of,
    value_row,
)
from benchmarks.trainer import MAX_STEPS, MODELS, PARTS, StepGroup
from jbot.config import Config, override
from jbot.data.jets import JetData
from jbot.trainer.engines.select import find_engine

PAPER_PASSES = 700_000 * 80
"""Jets times epochs of the paper's pre-training (arXiv:2601.11719)."""
PAPER_BATCHES = {"S": 1024, "B": 1024}
QUICK_BATCHES = {"S": 128, "B": 64}
GPU_PACK = 16
COMPARED = (("plain", "fp32"), ("compiled", "fp32"), ("fused", "fp32"), ("plain", "bf16"), ("compiled", "bf16"))
"""Engines and precisions; there is no C++ kernel in bf16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What every section is given."""

    device: torch.device
    quick: bool
    data: JetData
    engine: str = "auto"
    """Engine of every section but `step` and `gpu`, which compare engines; in fp32."""
    advance: Advance | None = None
    batches: Mapping[str, int] | None = None
    """Jets a step by model, in place of the usual ones."""
    max_steps: int = MAX_STEPS
    """Made at once."""

    @property
    def jets(self) -> Tensor:
        """(jet, particle, 4) on the CPU."""
        return torch.from_numpy(self.data.particles)

    def config(self, model: str, batch: int | None = None, **changes: Any) -> Config:
        """A model at its batch: the paper's 1024, or a smaller one for a quick run."""
        usual = self.batches or (QUICK_BATCHES if self.quick else PAPER_BATCHES)
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return override(MODELS[model], {"train.batch": batch or usual[model], **changes})

    def timed(self, variants: Sequence[Variant], rounds: int, budget: float) -> dict[str, list[Sample]]:
        """Interleaved, fewer rounds of it in a quick run."""
        if self.quick:
            rounds, budget = min(rounds, 5), budget / 10
        return interleave(variants, rounds=rounds, budget=budget, device=self.device, advance=self.advance)

    def group(self, config: Config, **options: Any) -> StepGroup:
        """Steps on this setting's jets and device, by its engine unless told otherwise."""
        options = {"engine": self.engine, "max_steps": self.max_steps, **options}
        return StepGroup(config, self.jets, device=self.device, **options)

    @property
    def engine_name(self) -> str:
        """The engine, and what `auto` stands for here."""
        if self.engine != "auto":
            return self.engine
        return f"auto ({find_engine('auto', MODELS['S'], self.device).name})"


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


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One torch thread on a CPU, as many as before afterwards."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- step: engines, precisions, limits ------------------------------------------------------------------------------


def step(setting: Setting) -> list[Row]:
    """jets/s of S and B by engine and precision, and the share of the machine's limits that they reach."""
    with one_thread(setting.device):
        return [row for model in MODELS for row in _step_of(setting, model)]


def _step_of(setting: Setting, model: str) -> list[Row]:
    groups, other_rows = _by_engine(setting, model)
    variants = {name: step_variant(name, group) for name, group in groups.items()}
    probes = _probes(setting)
    found = setting.timed([*variants.values(), *probes.values()], rounds=12, budget=30)
    base = variants[f"{model} plain fp32"]
    moved = {name: group.traffic() for name, group in groups.items()}
    rows = []
    for name, group in groups.items():
        shares = _shares_of_limits(group, moved[name], found[name], probes, found)
        settings = _settings(setting, model, group) | shares
        note = ", ".join(f"{100 * share[0]:.0f}% of {limit.split('_')[0]} limit" for limit, share in shares.items())
        rows.append(rate_row(variants[name], found, "jets/s", base, settings=settings, note=note))
    return [*rows, *other_rows]


def _by_engine(setting: Setting, model: str) -> tuple[dict[str, StepGroup], list[Row]]:
    """Steps that have been made once, by name; and rows that say what is missing, and what compilation took."""
    groups: dict[str, StepGroup] = {}
    rows: list[Row] = []
    for engine, precision in COMPARED:
        name = f"{model} {engine} {precision}"
        if engine == "compiled" and setting.quick:
            rows.append(no_row(name, "jets/s", "left out by --quick: compiles for minutes"))
            continue
        try:
            groups[name], seconds = _warm(setting, setting.config(model, train__precision=precision), engine)
        except NotAvailable as reason:
            rows.append(no_row(name, "jets/s", str(reason), "not available"))
            continue
        if engine == "compiled":
            what = f"{name}, first steps, with compilation"
            rows.append(value_row(what, "s", [seconds], note="less when an earlier run has compiled it"))
    return groups, rows


def _warm(setting: Setting, config: Config, engine: str) -> tuple[StepGroup, float]:
    """Steps that have been made once, and the seconds of that and of finding the engine."""
    started = time.perf_counter()
    group = setting.group(config, engine=engine)
    try:
        group.run()
    except (RuntimeError, NotImplementedError) as error:
        if engine == "plain" and config.train.precision == "fp32":
            raise
        raise NotAvailable(next(iter(str(error).splitlines()), type(error).__name__)) from error
    group.check_engine()
    return group, time.perf_counter() - started


def _used(group: StepGroup, draws: int = 4) -> float:
    """Share of the tokens whose loss is used, averaged over some draws of jets."""
    shares = []
    for _ in range(draws):
        group.choose_jets()
        shares.append(group.used_share())
    return float(np.mean(shares))


def _probes(setting: Setting) -> dict[str, Variant]:
    """The limits, to be measured in the same rounds as the steps."""
    sides = machine.tiles(setting.device, setting.quick)
    probes = {
        label: machine.fastest([machine.gemm(side, dtype, setting.device) for side in sides], setting.device)
        for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    mib = machine.TRIAD_MIB_QUICK if setting.quick else machine.TRIAD_MIB
    return probes | {"memory": machine.triad(setting.device, mib)}


def _shares_of_limits(
    group: StepGroup,
    moved: float | None,
    samples: list[Sample],
    probes: Mapping[str, Variant],
    found: Mapping[str, list[Sample]],
) -> dict[str, tuple[float, float, float]]:
    """Share of the GEMM limit, and of the memory limit where the bytes moved are known: median and quartiles.

    By `Sample.busy` of step and limit: other load on the machine cancels.
    """

    def share(amount: float, probe: Variant) -> tuple[float, float, float]:
        return ratios(busy_rates(samples, amount), busy_rates(found[probe.name], probe.amount))

    flop = step_flop(group.config, _used(group)) * group.jets_a_step
    shares = {"GEMM_share": share(flop / 1e9, probes[group.config.train.precision])}
    if moved is not None:
        shares["memory_share"] = share(moved / 1e9, probes["memory"])
    return shares


def _settings(setting: Setting, model: str, group: StepGroup) -> dict[str, Any]:
    return {
        "model": model,
        "batch": group.config.train.batch,
        "pack": group.size,
        "steps_at_once": group.steps,
        "engine": group.engine.name,
        "precision": group.config.train.precision,
        "device": setting.device.type,
        "threads": torch.get_num_threads(),
    }


# --- parts ----------------------------------------------------------------------------------------------------------


def parts(setting: Setting) -> list[Row]:
    """Where the time of a step goes."""
    with one_thread(setting.device):
        return [row for model in MODELS for row in _parts_of(setting, model)]


def _parts_of(setting: Setting, model: str) -> list[Row]:
    group = setting.group(setting.config(model))
    clocks: list[Clock] = []

    def in_parts() -> None:
        clocks.append(Clock(setting.device))
        group.run_parts(clocks[-1])

    whole = step_variant(f"{model} whole step", group)
    split = dataclasses.replace(whole, name="parts", run=in_parts)
    found = setting.timed([split, whole], rounds=15, budget=15)
    clocks = clocks[-len(found["parts"]) :]  # without the warm-up
    samples = {part: [clock.parts[part].each(group.steps) for clock in clocks] for part in PARTS}
    total = [
        (sum(timed[i].wall for timed in samples.values()), sum(timed[i].cpu for timed in samples.values()))
        for i in range(len(clocks))
    ]
    settings = _settings(setting, model, group)
    rows = [
        _part_row(f"{model} {part}", timed, total, group.jets_a_step, settings | {"part": part})
        for part, timed in samples.items()
    ]
    check = _part_row(whole.name, found[whole.name], total, group.jets_a_step, settings | {"part": "whole"})
    note = "timed apart from its parts: 1 when they add up to it"
    if setting.device.type == "cuda":
        note = "timed apart from its parts, in one CUDA graph where it can be recorded; the parts are launched singly"
    return [*rows, dataclasses.replace(check, note=note)]


def _part_row(
    name: str, samples: list[Sample], total: list[tuple[float, float]], jets: int, settings: dict[str, Any]
) -> Row:
    """A part's time a jet, and its share of the sum of all parts, (wall, CPU) seconds in `total`."""
    return value_row(
        name,
        "us/jet",
        [1e6 * sample.wall / jets for sample in samples],
        **seconds_of(samples),
        ratio=ratios([sample.wall for sample in samples], [wall for wall, _ in total]),
        cpu_ratio=ratios([sample.cpu for sample in samples], [cpu for _, cpu in total]),
        base="sum of parts",
        settings=settings,
    )


# --- threads --------------------------------------------------------------------------------------------------------


def threads(setting: Setting) -> list[Row]:
    """One and two threads, and two processes of one thread each."""
    if setting.device.type != "cpu":
        return [no_row("threads", "jets/s", "a question of CPUs: run with --device cpu")]
    if machine.cores() < 2:
        return [no_row("2 threads", "jets/s", "this process may use one core")]
    with one_thread(setting.device):
        models = ["S"] if setting.quick else MODELS  # a worker takes seconds to start
        return [row for model in models for row in _threads_of(setting, model)]


def _threads_of(setting: Setting, model: str) -> list[Row]:
    config = setting.config(model)
    counts = sorted({1, 2, machine.cores()})
    with worker_processes(2, config, setting) as workers:
        group = setting.group(config)
        variants = [step_variant(f"{model} {machine.thread_count(t)}", group, threads=t) for t in counts]
        both = dataclasses.replace(
            variants[0],
            name=f"{model} 2 processes of 1 thread",
            run=lambda: _all_step(workers),
            amount=2 * config.train.batch,
        )
        found = setting.timed([*variants, both], rounds=10, budget=20)
    settings = _settings(setting, model, group)
    rows = [
        rate_row(variant, found, "jets/s", variants[0], settings=settings | {"threads": t, "processes": 1})
        for variant, t in zip(variants, counts, strict=True)
    ]
    return [*rows, rate_row(both, found, "jets/s", variants[0], settings=settings | {"threads": 1, "processes": 2})]


@contextmanager
def worker_processes(count: int, config: Config, setting: Setting) -> Iterator[list[Connection]]:
    """Processes of one thread that make a group of steps whenever they are told to, and wait in between."""
    context = multiprocessing.get_context("spawn")  # fork is unsafe after torch started threads
    ends = [context.Pipe() for _ in range(count)]
    made = [
        context.Process(target=_work, args=(theirs, config, setting.data.particles, setting.engine), daemon=True)
        for _, theirs in ends
    ]
    for process in made:
        process.start()
    for _, theirs in ends:
        theirs.close()  # the worker's alone now: when it dies, ours says so
    ours = [end for end, _ in ends]
    try:
        yield ours
    finally:
        for end in ours:
            end.close()
        for process in made:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()


def _all_step(workers: list[Connection]) -> float:
    """A group of every worker at once; CPU seconds of all."""
    try:
        for worker in workers:
            worker.send("step")
        return sum(float(worker.recv()) for worker in workers)
    except (EOFError, BrokenPipeError):
        raise NotAvailable("a worker process died (out of memory?)") from None


def _work(orders: Connection, config: Config, particles: np.ndarray, engine: str) -> None:
    torch.set_num_threads(1)
    group = StepGroup(config, torch.from_numpy(particles), engine=engine)
    while True:
        try:
            orders.recv()
        except (EOFError, KeyboardInterrupt):
            return
        started = time.process_time()
        group.choose_jets()
        group.run()
        orders.send(time.process_time() - started)


# --- packs ----------------------------------------------------------------------------------------------------------


def packs(setting: Setting) -> list[Row]:
    """Jets a second of all trials of a pack, against the same trials one after another."""
    sizes = (1, 2, 4) if setting.quick else (1, 2, 4, 8)
    batches = (16, 64) if setting.quick else (16, 64, 256)
    with one_thread(setting.device):
        return [row for batch in batches for row in _packs_of(setting, batch, sizes)]


def _packs_of(setting: Setting, batch: int, sizes: Sequence[int]) -> list[Row]:
    config = setting.config("S", batch)
    least = max(1, 256 // batch)  # a single step of a small batch is a few milliseconds
    packed: dict[int, tuple[StepGroup, Variant]] = {}
    apart: dict[int, Variant] = {}
    for size in sizes:
        group = setting.group(config, size=size)
        packed[size] = group, step_variant(f"S batch {batch}, pack of {size}", group, least=least)
        if size > 1:
            singles = [setting.group(config) for _ in range(size)]
            apart[size] = step_variant(f"{size} one after another", *singles, least=least)
    variants = [variant for _, variant in packed.values()] + list(apart.values())
    found = setting.timed(variants, rounds=12, budget=15)
    return [
        rate_row(variant, found, "jets/s", apart.get(size), settings=_settings(setting, "S", group))
        for size, (group, variant) in packed.items()
    ]


# --- growth ---------------------------------------------------------------------------------------------------------


def growth(setting: Setting) -> list[Row]:
    """Exponents of the cost: seconds of a step ~ size^exponent, by jets, particles and width.

    CPU seconds of one thread, wall seconds on CUDA; an exponent is fitted to each round.
    """
    short = setting.quick
    base = 64 if short else 256
    sweeps: dict[str, tuple[Sequence[int], Callable[[int], StepGroup]]] = {
        "jets": ((32, 64, 128) if short else (128, 256, 512, 1024), lambda n: setting.group(setting.config("S", n))),
        "particles": (
            (10, 30) if short else (8, 15, 22, 30),
            lambda n: setting.group(setting.config("S", base, data__particles=n)),
        ),
        "width": (
            (16, 32, 64) if short else (16, 32, 64, 128),
            lambda n: setting.group(setting.config("S", base, model__dim=n)),
        ),
    }
    with one_thread(setting.device):
        return [row for name, (sizes, make) in sweeps.items() for row in _sweep(setting, name, sizes, make)]


def _sweep(setting: Setting, name: str, sizes: Sequence[int], make: Callable[[int], StepGroup]) -> list[Row]:
    variants = [step_variant(f"{name} {size}", make(size)) for size in sizes]
    found = setting.timed(variants, rounds=10, budget=12)
    seconds = np.array([[sample.busy for sample in found[variant.name]] for variant in variants])  # (size, round)
    slopes = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    row = value_row(f"exponent of {name}", "1", list(slopes), note=f"fitted to {_listed(sizes)}")
    values = [[1e3 * s for s in line] for line in seconds]
    points = [
        value_row(
            variant.name,
            "CPU ms/step" if setting.device.type == "cpu" else "ms/step",
            line,
            ratio=ratios(line, values[0]),
            base=variants[0].name,
            settings={"sweep": name, "size": size},
            **seconds_of(found[variant.name]),
        )
        for variant, size, line in zip(variants, sizes, values, strict=True)
    ]
    settings = {"exponent_of": name, "sizes": list(sizes)}
    return [dataclasses.replace(row, settings=settings), *points]


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)


# --- GPU ------------------------------------------------------------------------------------------------------------


def gpu(setting: Setting) -> list[Row]:
    """What only a GPU can answer: the paper's pre-training, and 16 packed trials against the same 16 one after another.

    Measured wherever there is a CUDA device, whatever device the other sections are asked to use.
    """
    trainings = {model: f"the paper's pre-training of {model}" for model in MODELS}
    packed = f"{GPU_PACK} packed S trials against the same {GPU_PACK} one after another"
    if not torch.cuda.is_available():
        reason = f"no CUDA device (torch {torch.__version__})"
        return [no_row(what, "jets/s", reason) for what in (*trainings.values(), packed)]
    there = dataclasses.replace(setting, device=torch.device("cuda"), batches=PAPER_BATCHES)
    rows = [row for model, what in trainings.items() for row in _pretraining(there, model, what)]
    return [*rows, *(row for batch in (16, 256, 1024) for row in _packs_of(there, batch, (GPU_PACK,)))]


def _pretraining(setting: Setting, model: str, what: str) -> list[Row]:
    """jets/s at the paper's batch by engine and precision; the duration of all its jet passes is derived from it."""
    groups, rows = _by_engine(setting, model)
    variants = {name: step_variant(f"{what}, {name}", group) for name, group in groups.items()}
    found = setting.timed(list(variants.values()), rounds=20, budget=30)
    for name, variant in variants.items():
        settings = _settings(setting, model, groups[name])
        rows.append(rate_row(variant, found, "jets/s", variants[f"{model} plain fp32"], settings=settings))
        hours = [PAPER_PASSES / rate / 3600 for rate in rates(found[variant.name], variant.amount)]
        note = f"{PAPER_PASSES / 1e6:.0f}M jet passes / measured jets/s, probes left out"
        duration = value_row(f"{variant.name}: duration", "h", hours, note=note, settings=settings)
        rows.append(dataclasses.replace(duration, state="derived"))
    return rows
