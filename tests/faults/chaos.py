"""A study in which something breaks every few seconds, at random but by a seed; then the promise is checked.

    make chaos ARGS="--minutes 10 --seed 3"
    python tests/faults/chaos.py --minutes 2 --only worker,driver --pace 3

A Ray cluster of two nodes with one CPU each and an MLflow server, on this machine. Rounds of one study each are run
until the minutes are over; a driver that ends early is started again by the same command. Exit code 0, or 1 when the
promise is broken (the folder is kept then).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(folder) for folder in list(Path(__file__).parents)[:3]]
from promise import ROOT, Before, Undisturbed, load_study  # noqa: E402 - found by the line above
from test_faults_long import free_port, nodes, server  # noqa: E402

from jbot.store.record import load_record  # noqa: E402

STUDY = ["--seeds", "3", "--set", "train.epochs=300", "--set", "probe.every=150"]
"""Trials of some seconds: checkpoints are there to be damaged."""
EARLY_ENDS = {0, 1, 2, -signal.SIGKILL, 128 + signal.SIGTERM}
"""Exit codes of a driver to which these things happen: whole, trials given up, no node in order, killed, stopped."""
MOST_DRIVERS = 100
"""In a round."""


class Chaos:
    """What runs, and what breaks it. Each event tells whether it found something to break."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.rng = options, folder, random.Random(options.seed)
        self.console = Console(stderr=True)
        self.before = Before(folder)
        self.port, self.stack = free_port(), contextlib.ExitStack()
        self.cluster, self.second = self.stack.enter_context(nodes(self.before))
        self.server = contextlib.ExitStack()
        self.start_server()
        self.driver: subprocess.Popen[str] | None = None
        self.events: Counter[str] = Counter()
        self.drivers = 0

    def start_server(self) -> None:
        self.uri, self.tracking = self.server.enter_context(server(self.before, self.folder, self.port))

    def worker(self) -> bool:
        """kill -9 of a Ray worker that trains."""
        if found := self.before.trainers():
            self.rng.choice(found).kill()
        return bool(found)

    def kill_driver(self) -> bool:
        """kill -9 of the driver."""
        assert self.driver
        self.driver.kill()
        return True

    def stop_driver(self) -> bool:
        """SIGTERM to the driver, with as long a grace as it takes."""
        assert self.driver
        self.driver.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.driver.wait(120)
        return True

    def node(self) -> bool:
        """kill -9 of all of a node; another one joins."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(num_cpus=1)
        return True

    def mlflow(self) -> bool:
        """kill -9 of the MLflow server, which is then started again."""
        self.server.close()
        self.start_server()
        return True

    def checkpoint(self) -> bool:
        """One bit of a checkpoint changes, or its end is cut off."""
        files = [path for path in self.out.glob("trials/*/checkpoint/state*") if not path.name.startswith(".")]
        try:
            path = self.rng.choice(sorted(files))
            content, at = path.read_bytes(), self.rng.random()
            place = int(at * len(content))
            cut = content[:place] if self.rng.random() < 0.5 else None
            path.write_bytes(cut or content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        except (IndexError, FileNotFoundError):  # none, or a newer one has replaced it
            return False
        return True

    def second_driver(self) -> bool:
        """The same command once more while it runs: refused, or it takes over from one that has just ended."""
        if not (self.out / "faults_smoke/driver.json").exists():
            return False
        code, said = self.before.inline(*STUDY)
        assert code in (0, 2), said
        return code == 2

    @property
    def out(self) -> Path:
        return Path(self.before.storage.uri)

    def round(self, number: int, until: float) -> Counter[str]:
        """One study from its first trial to its last, whatever happens; what has happened."""
        self.before.storage = type(self.before.storage)(self.folder / f"round-{number}")
        self.before.finished, happened, code, begun = {}, Counter(), None, self.drivers
        while code != 0:
            self.driver, self.drivers = self.start(), self.drivers + 1
            due = time.monotonic() + self.pause() + 5
            while self.driver.poll() is None:
                self.remember()
                if due < time.monotonic() < until:
                    name = self.rng.choice(self.options.only)
                    if EVENTS[name](self):
                        happened[name] += 1
                        self.console.print(f"round {number}: {name}; {len(self.before.stamps())} records")
                    due = time.monotonic() + self.pause()
                time.sleep(0.05)
            said, code = self.driver.communicate()[0], self.driver.returncode
            self.remember()
            assert self.drivers - begun < MOST_DRIVERS, f"no end after {MOST_DRIVERS} drivers: {said}"
            assert code in EARLY_ENDS, f"the driver ended with {code}: {said}"
        return happened

    def start(self) -> subprocess.Popen[str]:
        return self.before.start("--address", self.cluster.address, "--tracking-uri", self.uri, *STUDY)

    def pause(self) -> float:
        return self.rng.expovariate(1 / self.options.pace)

    def remember(self) -> None:
        """A record that was seen once must stay the same file."""
        for trial, stamp in self.before.stamps().items():
            known = self.before.finished.setdefault(trial, stamp)
            assert known == stamp, f"finished trial {trial} was run twice"

    def check(self, undisturbed: Undisturbed) -> tuple[int, int]:
        """The promise for a round; trials and attempts. The view is made whole as the driver says it can be."""
        mirror = [sys.executable, "-m", "cluster.mirror", self.out / "faults_smoke", "--tracking-uri", self.uri]
        subprocess.run(mirror, env=self.before.environment(), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        self.before.check(undisturbed, tracking_uri=self.uri, left=False)  # the cluster runs on
        study = load_study(f"{self.out}/faults_smoke")
        records = [load_record(self.before.storage, trial.trial_id) for trial in study.trials]
        return len(records), sum(record.attempts for record in records if record)

    def close(self) -> None:
        if self.driver and self.driver.poll() is None:
            self.driver.kill()
        self.server.close()
        self.stack.close()
        for process in self.before.processes("ray::"):  # of a node that was killed just now
            with contextlib.suppress(psutil.Error):
                process.wait(60)


EVENTS: dict[str, Callable[[Chaos], bool]] = {
    "worker": Chaos.worker,
    "driver": Chaos.kill_driver,
    "stop": Chaos.stop_driver,
    "node": Chaos.node,
    "mlflow": Chaos.mlflow,
    "checkpoint": Chaos.checkpoint,
    "second": Chaos.second_driver,
}


def options() -> argparse.Namespace:
    """Command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=10.0, help="no event later than that (default: 10)")
    made.add_argument("--seed", type=int, default=0, help="of the schedule (default: 0)")
    made.add_argument("--pace", type=float, default=5.0, help="seconds between events, on average (default: 5)")
    made.add_argument("--only", default=",".join(EVENTS), help=f"events, of {','.join(EVENTS)} (default: all)")
    found = made.parse_args()
    found.only = found.only.split(",")
    if unknown := set(found.only) - set(EVENTS):
        made.error(f"--only wants {', '.join(EVENTS)}, got {', '.join(sorted(unknown))}")
    return found


def main() -> int:
    """Rounds until the minutes are over, and a table; 1 when the promise is broken."""
    chosen, folder = options(), Path(tempfile.mkdtemp(prefix="jbc"))
    table = Table("round", "trials", "attempts", "drivers", *EVENTS, "promise", title=f"seed {chosen.seed}")
    broken = None
    chaos = Chaos(chosen, folder)
    try:
        undisturbed = Undisturbed(folder / "undisturbed", *STUDY)
        number, until = 0, time.monotonic() + 60 * chosen.minutes
        while number == 0 or time.monotonic() < until:
            number, begun = number + 1, chaos.drivers
            happened = chaos.round(number, until)
            trials, attempts = chaos.check(undisturbed)
            events = [str(happened[name]) for name in EVENTS]
            table.add_row(str(number), str(trials), str(attempts), str(chaos.drivers - begun), *events, "kept")
            chaos.console.print(f"round {number}: kept, {trials} trials in {attempts} attempts")
            shutil.rmtree(chaos.out)
            clear_experiment(chaos.uri)
    except AssertionError as error:
        broken = str(error)
    finally:
        chaos.close()
    if broken is None:
        try:
            chaos.before.check_left()
        except AssertionError as error:
            broken = str(error)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if broken:
        print(f"the promise is broken: {broken}\nsee {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def clear_experiment(uri: str) -> None:
    """The next round has an experiment of its own."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("faults_smoke")
    client.rename_experiment(experiment.experiment_id, f"faults {time.monotonic_ns()}")


if __name__ == "__main__":
    sys.exit(main())
