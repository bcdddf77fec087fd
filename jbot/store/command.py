"""Finished trials as one file, restored anywhere, and the storages of several groups brought together.

    jbot store pack results/masking_ablation --out masking.tar.xz    # or a whole storage: results
    jbot store unpack masking.tar.xz --storage elsewhere             # the same study command trains nothing there
    jbot store merge theirs masking.tar.xz --storage results         # adds what others ran with other seeds or arms

Nothing is ever overwritten. Exit code: 0 done, 1 merged, but trials or files differ, which are named, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from jbot.cli import Parser, docstring, program
from jbot.messages import one_line
from jbot.store.archive import SUFFIX, Source, extract, find_studies, pack, unpack
from jbot.store.merge import Merged, merge
from jbot.store.record import not_reused
from jbot.store.storage import RecordError, Storage

DIFFERING = 1


def parser() -> argparse.ArgumentParser:
    """The three sub-commands."""
    made = Parser(
        prog="python -m jbot.store.command",
        description=docstring(__file__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tree: Any = made.add_subparsers(metavar="COMMAND", title="commands", dest="command", required=True)
    packing = tree.add_parser("pack", help="write trials that have ended as one file")
    packing.add_argument("folders", nargs="+", metavar="FOLDER", help="studies of one storage, or a storage: all of it")
    packing.add_argument("--out", type=Path, required=True, help=f"file to write, *{SUFFIX}")
    packing.add_argument(
        "--records-only",
        action="store_true",
        help="records and curves without weights and pictures: some 3 kB a trial. They count as finished all the same",
    )
    unpacking = tree.add_parser("unpack", help="restore such a file")
    unpacking.add_argument("archive", type=Path, metavar=f"FILE{SUFFIX}")
    merging = tree.add_parser("merge", help="add the trials of other storages, studies or such files")
    merging.add_argument(
        "sources", nargs="+", metavar="SOURCE", help=f"a storage, a study's folder, or a file *{SUFFIX}"
    )
    for one in (unpacking, merging):
        one.add_argument("--storage", default="results", help="folder or s3:// gs:// URI of records (default: results)")
    return made


@program
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.command == "pack":
        return pack_folders(options.folders, options.out, options.records_only)
    target = Storage(options.storage)
    if options.command == "unpack":
        records = unpack(options.archive, target)
        print("\n".join([f"{target.uri}: {len(records)} trials of {options.archive}", *not_reused(records)]))
        return 0
    differ = [show(source, merge_from(source, target), target) for source in options.sources]
    return DIFFERING if any(differ) else 0


def pack_folders(folders: list[str], out: Path, records_only: bool) -> int:
    """Pack studies of one storage, and say how large that is."""
    if not out.name.endswith(SUFFIX):
        raise RecordError(f"--out must end with {SUFFIX}, got {out.name}")
    found = [find_studies(folder) for folder in folders]
    storage = found[0].storage
    if other := next((one.storage for one in found if one.storage.address != storage.address), None):
        raise RecordError(f"studies of one storage are packed, got {storage.uri} and {other.uri}: merge them first")
    studies = dict.fromkeys(study for one in found for study in one.studies)
    trials, size = pack(Source(storage, list(studies)), out, records_only=records_only), out.stat().st_size
    print(f"{out}: {trials} trials of {', '.join(studies)}; {size / 1e6:.2f} MB, {size / trials / 1e3:.1f} kB a trial")
    return 0


def merge_from(source: str, target: Storage) -> Merged:
    """Merge an archive, a storage or a study's folder."""
    if not Path(source).is_file():
        return merge(find_studies(source), target)
    with tempfile.TemporaryDirectory(prefix="jbot-") as folder:
        extract(Path(source), Storage(folder))
        return merge(find_studies(folder), target)


def show(source: str, merged: Merged, target: Storage) -> bool:
    """Print what a merge did; returns whether something differs."""
    print(f"{target.uri}: {len(merged.added)} trials of {one_line(source)} added, {merged.same} were there already")
    for plan in merged.plans:
        seeds = ", ".join(map(str, plan.seeds))
        print(f"{plan.study}: now {len(plan.arms)} arms at seeds {seeds}; the earlier plan has a folder of its own")
    for line in not_reused(merged.added):
        print(line)
    for conflict in merged.conflicts:
        print(f"conflict, left as it is: {one_line(conflict)}", file=sys.stderr)
    return bool(merged.conflicts)


if __name__ == "__main__":
    sys.exit(main())
