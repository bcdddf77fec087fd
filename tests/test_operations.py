"""docs/operations.md: each command in its blocks does what the page says."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from simulated import make_plan, simulate

PAGE = ROOT / "docs/operations.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
DATABASES = ("DATABASE", "EMPTY")
"""Variables of the block about PostgreSQL."""


def shell(block: str, folder: Path, **more: str) -> None:
    """A block as it is typed, in a folder."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path} | more
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def runs(database: Path) -> int:
    with sqlite3.connect(database) as opened:
        return opened.execute("select count(*) from runs").fetchone()[0]


@pytest.mark.slow
def test_backup_restore_and_upgrade_as_the_page_has_them(tmp_path):
    plan = make_plan({"base": {}, "more": {"mask.ratio_high": 0.8}}, seeds=2, study="masking_ablation")
    simulate(tmp_path / "results", plan, lambda config, seed, rng: rng.uniform(0.4, 0.6))
    plain = [block for block in BLOCKS if not any(name in block for name in DATABASES)]
    assert len(plain) == 5
    for block in plain:
        shell(block, tmp_path)
    kept, back = ({path.relative_to(folder) for path in folder.rglob("*.json")} for folder in
                  (tmp_path / "results", tmp_path / "elsewhere/results"))  # fmt: skip
    assert kept - back == {Path("masking_ablation/mlflow.json")}  # written by the view, after the copy
    assert back <= kept
    assert runs(tmp_path / "again.db") == runs(tmp_path / "mlflow-backup.db") == 7  # the study, 2 arms, 4 trials


def test_a_database_of_postgresql_is_upgraded_and_comes_back(tmp_path):
    for module in ("mlflow", "psycopg2"):
        pytest.importorskip(module)
    tools = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "pg_dump", "pg_restore", "psql", "runuser")}
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    where = f"{found[-1] if found else ''}:{os.environ['PATH']}"
    tools = {name: shutil.which(name, path=where) for name in tools}
    if missing := [name for name, path in tools.items() if not path]:
        pytest.skip(f"PostgreSQL is not installed: no {', '.join(missing)}")
    as_user = f"{tools['runuser']} -u postgres -- " if os.geteuid() == 0 else ""
    data = Path(subprocess.check_output([*as_user.split(), "mktemp", "-d", "/tmp/jbot-pg-XXXXXX"], text=True).strip())
    address = f"postgresql:///{{}}?host={data}&user=postgres"
    start = f"{as_user}{tools['initdb']} -D {data}/db -U postgres -A trust --no-sync >/dev/null\n"
    start += f"""{as_user}{tools["pg_ctl"]} -D {data}/db -w -l {data}/log -o "-k {data} -c listen_addresses=''" start"""
    try:
        shell(f"cd /tmp\n{start} >/dev/null", tmp_path)
        shell(f"""psql -q "{address.format("postgres")}" -c 'create database full_one' -c 'create database empty_one'
        """, tmp_path)  # fmt: skip
        both = {name: address.format(base) for name, base in zip(DATABASES, ("full_one", "empty_one"), strict=True)}
        (upgrade,), (backup,) = ([b for b in BLOCKS if word in b] for word in ("{DATABASE/", "pg_dump"))
        shell(upgrade, tmp_path, **both)  # of none at all: as of the oldest
        add = "insert into experiments (name, lifecycle_stage) values ('kept', 'active')"
        shell(f'psql -q "$DATABASE" -c "{add}"', tmp_path, **both)
        shell(backup, tmp_path, **both)
        asked = ["psql", "-Atq", both["EMPTY"], "-c", "select name from experiments where name = 'kept'"]
        assert subprocess.check_output(asked, text=True) == "kept\n"
    finally:
        shell(f"cd /tmp\n{as_user}{tools['pg_ctl']} -D {data}/db -m immediate stop >/dev/null || true", tmp_path)
        shutil.rmtree(data, ignore_errors=True)
