"""Backups and restores with servers and clients of other majors, compared row by row: the demo's own work."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgsnap import Pipeline
from pgsnap_postgres import PgDump
from pgsnap_postgres.server import Server, throwaway_server
from pgsnap_zstd import Zstd

pytestmark = pytest.mark.needs_old_server

DEMO = Path(__file__).parent.parent.parent / "examples" / "demo"


@pytest.fixture(scope="module")
def describe() -> Callable[..., dict[str, tuple[int, str]]]:
    """The demo's description of a database by hashes."""
    spec = importlib.util.spec_from_file_location("demo_compare", DEMO / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., dict[str, tuple[int, str]]] = module.describe
    return found


def make_shop(server: Server) -> str:
    """Make the demo's database and return its URL."""
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE shop TEMPLATE template0")
    url = server.database_url("shop", socket=True)
    with psycopg.connect(url) as connection:
        connection.execute((DEMO / "shop.sql").read_bytes())
    return url


def test_demo(bindir: Path, tmp_path: Path) -> None:
    """The whole demo, by the command, with nothing but this major's programs preferred."""
    environment = {**os.environ, "PGSNAP_PG_BIN": str(bindir)}
    for name in ("DATABASE_URL", "PYTHONSAFEPATH"):  # without the latter the example finds the module beside it
        environment.pop(name, None)
    argv = [sys.executable, str(DEMO / "demo.py"), "--output", str(tmp_path / "out")]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads(next((tmp_path / "out" / "store-a" / "shop").glob("*/manifest.json")).read_text())
    major = subprocess.run([bindir / "pg_dump", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    assert manifest["dumper"]["facts"]["client"]["version"].startswith(major.split(".")[0])


@pytest.mark.parametrize("format", ["custom", "plain"])
def test_restore_into_the_same_major(bindir: Path, tmp_path: Path, format: Any, describe: Callable[..., Any]) -> None:
    """Both formats come back equal, roles included, in a second server of the same major."""
    with throwaway_server(bindir=bindir) as first, throwaway_server(bindir=bindir) as second:
        source, target = make_shop(first), second.database_url("copy", socket=True)
        dump = PgDump(url=source, format=format, bindir=str(bindir))
        shop = Pipeline(name="shop", dump=dump, transforms=[Zstd()], stores=[tmp_path])
        before = describe(source)
        shop.backup()
        shop.restore(to=target)
        assert before == describe(target)


@pytest.mark.parametrize("format", ["custom", "plain"])
def test_restore_into_a_newer_major(bindir: Path, tmp_path: Path, format: Any, describe: Callable[..., Any]) -> None:
    """An upgrade: what was dumped by this major is restored into the newest that is here, every row and sequence equal."""
    with throwaway_server(bindir=bindir) as first, throwaway_server(major=18) as second:
        source, target = make_shop(first), second.database_url("copy", socket=True)
        shop = Pipeline(name="shop", dump=PgDump(url=source, format=format), transforms=[Zstd()], stores=[tmp_path])
        before = describe(source)
        shop.backup()
        shop.restore(to=target)
        after = describe(target)
        same = [what for what in before if "." in what or what in ("sequences", "large objects", "indexes", "comments")]
        assert {what: before[what] for what in same} == {what: after[what] for what in same}
