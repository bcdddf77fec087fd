"""The command that generates jets on this machine, or finds them in the cache.

    python -m jbot.data.generate --jets 3000 [--pt 1000] [--seed 1] [--classes q g] [--workers N] [--out FILE]

`python -m cluster.generate` does the same on all nodes of a Ray cluster.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jbot.cli import Parser, bad_input, docstring, program
from jbot.data.chunks import Executor, generate_file
from jbot.data.jets import CLASSES, DataError
from jbot.data.pythia import Settings


@program
def main(arguments: list[str] | None = None) -> int:
    """Generate jets, or take them from the cache, and say where they are. Exit codes: 0, 2 (bad request), 130."""
    return run(parser("python -m jbot.data.generate", docstring(__file__)).parse_args(arguments))


def run(options: argparse.Namespace, executor: Executor | None = None) -> int:
    """Do what the command line asks for; `executor` as in `generate_file`."""
    try:
        path = generate_file(
            dict.fromkeys(options.classes, options.jets),
            Settings(jet_pt=options.pt, radius=options.radius, seed=options.seed),
            workers=options.workers,
            cache=options.cache,
            out=options.out,
            executor=executor,
        )
    except DataError as error:
        return bad_input(error)
    except KeyboardInterrupt:
        print("stopped; finished chunks are kept, the same command continues", file=sys.stderr)
        return 130
    print(path)
    return 0


def parser(program: str, about: str) -> Parser:
    """The options of a generating command; `about` opens with the line that describes it."""
    made = Parser(prog=program, description=about.splitlines()[0])
    made.add_argument("--jets", type=int, required=True, help="jets of each class")
    made.add_argument("--pt", type=float, default=1000.0, help="jet pT in GeV (default 1000)")
    made.add_argument("--radius", type=float, help="anti-kT radius (default 0.4 * 1000 / pT)")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--classes", nargs="+", default=list(CLASSES), choices=CLASSES)
    made.add_argument("--workers", type=int, help="chunks made at once (default: one per core)")
    made.add_argument("--out", type=Path, help="also write the file here (default: only the cache)")
    made.add_argument("--cache", type=Path, help="cache folder (default $JBOT_CACHE or ~/.cache/jbot)")
    return made


if __name__ == "__main__":
    sys.exit(main())
