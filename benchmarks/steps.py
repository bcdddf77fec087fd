"""Sections about the training step: engines and precisions, its parts, threads, packs, growth, and the GPU's rows."""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
    time_once,
    value_row,
)
from benchmarks.trainer import ENGINES, MODELS, PARTS, PRECISIONS, Engine, Pack, Precision
from jbot.config import Config, override
from jbot.data.jetdata import JetData

PAPER_PASSES = 700_000 * 80
"""Jets times epochs of the paper's pre-training (arXiv:2601.11719)."""
PAPER_BATCHES = {"S": 1024, "B": 1024}
QUICK_BATCHES = {"S": 128, "B": 64}
GPU_PACK = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What every section is given."""

    device: torch.device
    quick: bool
    data: JetData
    engine: Engine = "plain"
    """Of every section but `step` and `gpu`, which compare engines; in fp32."""
    study: str | None = None
    """Folder of a finished study."""
    advance: Advance | None = None
    batches: Mapping[str, int] | None = None
    """Jets a step by model, in place of the usual ones."""

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

    def pack(self, config: Config, **options: Any) -> Pack:
        """Trials on this setting's jets and device, by its engine unless told otherwise."""
        return Pack(config, self.jets, device=self.device, **{"engine": self.engine, **options})


def step_variant(name: str, pack: Pack, threads: int | None = None, steps: int = 1) -> Variant:
    """Whole steps of a pack, each on other jets; the amount is in jets."""

    def prepare() -> None:
        if threads:
            torch.set_num_threads(threads)
        pack.choose_batch()

    def run() -> None:
        for _ in range(steps):
            pack.step()

    return Variant(name=name, run=run, prepare=prepare, amount=pack.jets_a_step * steps)


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
    packs, other_rows = _packs_by_engine(setting, model)
    variants = {name: step_variant(name, pack) for name, pack in packs.items()}
    probes = _probes(setting)
    found = setting.timed([*variants.values(), *probes.values()], rounds=12, budget=45)
    base = variants[f"{model} plain fp32"]
    rows = []
    for name, pack in packs.items():
        shares = _shares_of_limits(pack, found[name], probes, found)
        settings = _settings(setting, model, pack) | shares
        note = ", ".join(f"{100 * share[0]:.0f}% of {limit.split('_')[0]} limit" for limit, share in shares.items())
        rows.append(rate_row(variants[name], found, "jets/s", base, settings=settings, note=note))
    return [*rows, *other_rows, _flop_row(model, packs[base.name])]


def _packs_by_engine(setting: Setting, model: str) -> tuple[dict[str, Pack], list[Row]]:
    """Packs that have made a step, by name; and rows that say what is missing, and what compilation took."""
    packs: dict[str, Pack] = {}
    rows: list[Row] = []
    for engine, precision in itertools.product(ENGINES, PRECISIONS):
        name = f"{model} {engine} {precision}"
        if engine == "compiled" and setting.quick:
            rows.append(no_row(name, "jets/s", "left out by --quick: compiles for minutes"))
            continue
        try:
            packs[name], seconds = _warm_pack(setting, setting.config(model), engine, precision)
        except NotAvailable as reason:
            rows.append(no_row(name, "jets/s", str(reason), "not available"))
            continue
        if engine == "compiled":
            what = f"{name}, first step with compilation"
            rows.append(value_row(what, "s", [seconds], note="less when an earlier run has compiled it"))
    return packs, rows


def _warm_pack(setting: Setting, config: Config, engine: Engine, precision: Precision) -> tuple[Pack, float]:
    """A pack that has made its first step, and the seconds of that."""
    pack = setting.pack(config, engine=engine, precision=precision)
    started = time.perf_counter()
    try:
        pack.step()
    except (RuntimeError, NotImplementedError) as error:
        if engine == "plain" and precision == "fp32":
            raise
        raise NotAvailable(next(iter(str(error).splitlines()), type(error).__name__)) from error
    return pack, time.perf_counter() - started


def _used(pack: Pack, batches: int = 4) -> float:
    """Share of the tokens whose loss is used, averaged over some batches."""
    shares = []
    for _ in range(batches):
        pack.choose_batch()
        shares.append(pack.used_share())
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
    pack: Pack, samples: list[Sample], probes: Mapping[str, Variant], found: Mapping[str, list[Sample]]
) -> dict[str, tuple[float, float, float]]:
    """Share of the GEMM limit, and of the memory limit where operations are not fused: median and quartiles.

    By `Sample.busy` of step and limit: other load on the machine cancels.
    """

    def share(amount: float, probe: Variant) -> tuple[float, float, float]:
        return ratios(busy_rates(samples, amount), busy_rates(found[probe.name], probe.amount))

    shares = {"GEMM_share": share(step_flop(pack.config, _used(pack)) * pack.jets_a_step / 1e9, probes[pack.precision])}
    if pack.engine == "plain":
        shares["memory_share"] = share(pack.traffic() / 1e9, probes["memory"])
    return shares


def _flop_row(model: str, pack: Pack) -> Row:
    """What a step needs, and what the eager operations move."""
    used, megabytes = _used(pack), pack.traffic() / pack.jets_a_step / 1e6
    full, needed = step_flop(pack.config) / 1e6, step_flop(pack.config, used) / 1e6
    note = (
        f"of {full:.3g} MFLOP a jet and step, when the loss looks at {used:.3f} of the tokens (measured); "
        f"the eager operations move {megabytes:.3g} MB a jet (counted)"
    )
    row = value_row(f"{model} FLOP needed", "MFLOP/jet", [needed], note=note)
    return dataclasses.replace(row, state="derived")


def _settings(setting: Setting, model: str, pack: Pack) -> dict[str, Any]:
    return {
        "model": model,
        "batch": pack.config.train.batch,
        "pack": pack.size,
        "engine": pack.engine,
        "precision": pack.precision,
        "device": setting.device.type,
        "threads": torch.get_num_threads(),
    }


# --- parts ----------------------------------------------------------------------------------------------------------


def parts(setting: Setting) -> list[Row]:
    """Where the time of a step goes."""
    with one_thread(setting.device):
        return [row for model in MODELS for row in _parts_of(setting, model)]


def _parts_of(setting: Setting, model: str) -> list[Row]:
    pack = setting.pack(setting.config(model))
    samples: dict[str, list[Sample]] = {part: [] for part in PARTS}

    def all_parts() -> None:
        pack.choose_batch()
        for part, run in pack.parts.items():
            samples[part].append(time_once(run, setting.device))

    whole = step_variant(f"{model} whole step", pack)
    found = setting.timed([Variant(name="parts", run=all_parts), whole], rounds=15, budget=25)
    rounds = len(found["parts"])
    samples = {part: timed[-rounds:] for part, timed in samples.items()}  # without the warm-up
    total = [
        (sum(timed[i].wall for timed in samples.values()), sum(timed[i].cpu for timed in samples.values()))
        for i in range(rounds)
    ]
    settings = _settings(setting, model, pack)
    rows = [
        _part_row(f"{model} {part}", timed, total, pack.jets_a_step, settings | {"part": part})
        for part, timed in samples.items()
    ]
    check = _part_row(whole.name, found[whole.name], total, pack.jets_a_step, settings | {"part": "whole"})
    return [*rows, dataclasses.replace(check, note="timed apart from its parts: 1 when they add up to it")]


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
        return [row for model in MODELS for row in _threads_of(setting, model)]


def _threads_of(setting: Setting, model: str) -> list[Row]:
    config = setting.config(model)
    counts = sorted({1, 2, machine.cores()})
    with worker_processes(2, config, setting) as workers:
        pack = setting.pack(config)
        variants = [step_variant(f"{model} {machine.thread_count(t)}", pack, threads=t) for t in counts]
        jets = 2 * config.train.batch
        both = Variant(name=f"{model} 2 processes of 1 thread", run=lambda: _all_step(workers), amount=jets)
        found = setting.timed([*variants, both], rounds=10, budget=30)
    settings = _settings(setting, model, pack)
    rows = [
        rate_row(variant, found, "jets/s", variants[0], settings=settings | {"threads": t, "processes": 1})
        for variant, t in zip(variants, counts, strict=True)
    ]
    return [*rows, rate_row(both, found, "jets/s", variants[0], settings=settings | {"threads": 1, "processes": 2})]


@contextmanager
def worker_processes(count: int, config: Config, setting: Setting) -> Iterator[list[Connection]]:
    """Processes of one thread that make a step whenever they are told to, and wait in between."""
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
    """One step of every worker at once; CPU seconds of all."""
    try:
        for worker in workers:
            worker.send("step")
        return sum(float(worker.recv()) for worker in workers)
    except (EOFError, BrokenPipeError):
        raise NotAvailable("a worker process died (out of memory?)") from None


def _work(orders: Connection, config: Config, particles: np.ndarray, engine: Engine) -> None:
    torch.set_num_threads(1)
    pack = Pack(config, torch.from_numpy(particles), engine=engine)
    while True:
        try:
            orders.recv()
        except (EOFError, KeyboardInterrupt):
            return
        started = time.process_time()
        pack.choose_batch()
        pack.step()
        orders.send(time.process_time() - started)


# --- packs ----------------------------------------------------------------------------------------------------------


def packs(setting: Setting) -> list[Row]:
    """Jets a second of all trials of a pack, against one trial at a time."""
    sizes = (1, 2, 4) if setting.quick else (1, 2, 4, 8)
    batches = (16,) if setting.quick else (16, 256)
    with one_thread(setting.device):
        return [row for batch in batches for row in _packs_of(setting, batch, sizes)]


def _packs_of(setting: Setting, batch: int, sizes: Sequence[int]) -> list[Row]:
    config = setting.config("S", batch)
    steps = max(1, 128 // batch)  # a single step of a small batch is a few milliseconds
    made = [setting.pack(config, size=size) for size in sizes]
    variants = [step_variant(f"S batch {batch}, pack of {pack.size}", pack, steps=steps) for pack in made]
    found = setting.timed(variants, rounds=12, budget=25)
    return [
        rate_row(variant, found, "jets/s", variants[0], settings=_settings(setting, "S", pack))
        for variant, pack in zip(variants, made, strict=True)
    ]


# --- growth ---------------------------------------------------------------------------------------------------------


def growth(setting: Setting) -> list[Row]:
    """Exponents of the cost: seconds of a step ~ size^exponent, by jets, particles, width and pack.

    CPU seconds of one thread, wall seconds on CUDA; an exponent is fitted to each round.
    """
    short = setting.quick
    base = 64 if short else 256
    sweeps: dict[str, tuple[Sequence[int], Callable[[int], Pack]]] = {
        "jets": ((32, 64, 128) if short else (128, 256, 512, 1024), lambda n: setting.pack(setting.config("S", n))),
        "particles": (
            (10, 30) if short else (8, 15, 22, 30),
            lambda n: setting.pack(setting.config("S", base, data__particles=n)),
        ),
        "width": (
            (16, 32, 64) if short else (16, 32, 64, 128),
            lambda n: setting.pack(setting.config("S", base, model__dim=n)),
        ),
        "pack": ((1, 2, 4) if short else (1, 2, 4, 8), lambda n: setting.pack(setting.config("S", 64), size=n)),
    }
    with one_thread(setting.device):
        return [row for name, (sizes, make) in sweeps.items() for row in _sweep(setting, name, sizes, make)]


def _sweep(setting: Setting, name: str, sizes: Sequence[int], make: Callable[[int], Pack]) -> list[Row]:
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
    return [*rows, *_packed_against_single(there, packed)]


def _pretraining(setting: Setting, model: str, what: str) -> list[Row]:
    """jets/s at the paper's batch by engine and precision; the duration of all its jet passes is derived from it."""
    packs, rows = _packs_by_engine(setting, model)
    steps = 1 if setting.quick else 10  # several, so that the host runs ahead of the GPU
    variants = {name: step_variant(f"{what}, {name}", pack, steps=steps) for name, pack in packs.items()}
    found = setting.timed(list(variants.values()), rounds=20, budget=30)
    for name, variant in variants.items():
        settings = _settings(setting, model, packs[name])
        rows.append(rate_row(variant, found, "jets/s", variants[f"{model} plain fp32"], settings=settings))
        hours = [PAPER_PASSES / rate / 3600 for rate in rates(found[variant.name], variant.amount)]
        note = f"{PAPER_PASSES / 1e6:.0f}M jet passes / measured jets/s, probes left out"
        duration = value_row(f"{variant.name}: duration", "h", hours, note=note, settings=settings)
        rows.append(dataclasses.replace(duration, state="derived"))
    return rows


def _packed_against_single(
    setting: Setting, what: str, size: int = GPU_PACK, batches: Sequence[int] = (16, 256, 1024)
) -> list[Row]:
    """jets/s of trials stepped together and of the same trials stepped in turn."""
    rows = []
    for batch in batches:
        config = setting.config("S", batch)
        pack = setting.pack(config, size=size)
        singles = [setting.pack(config) for _ in range(size)]
        together = step_variant("packed", pack)
        alone = Variant(name="one after another", run=functools.partial(_step_each, singles), amount=pack.jets_a_step)
        found = setting.timed([together, alone], rounds=20, budget=30)
        row = rate_row(together, found, "jets/s", alone, settings=_settings(setting, "S", pack))
        rows.append(dataclasses.replace(row, what=f"{what}, batch {batch}"))
    return rows


def _step_each(singles: Sequence[Pack]) -> None:
    for single in singles:
        single.step()
