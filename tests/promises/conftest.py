"""A real shop database, the real command in a process of its own, and a look at what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))


@attrs.define
class Desk:
    """A folder with a configuration, and the command."""

    folder: Path
    env: dict[str, str]

    def configure(self, *, transforms: str = "", stores: tuple[str, ...] = ("one", "two"), dump: str = "", more: str = "") -> None:
        """Write ./pgsnap.toml: pg_dump of DATABASE_URL through ``transforms`` into ``stores``."""
        text = f'[pipeline.shop]\n{more}\n[pipeline.shop.dump]\nuse = "pg_dump"\nurl = {{ env = "DATABASE_URL" }}\n{dump}\n{transforms}\n'
        for store in stores:
            text += f'[[pipeline.shop.store]]\nurl = "{store if store.startswith("/") else self.folder / store}"\n'
        (self.folder / "pgsnap.toml").write_text(text)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def files(self, store: str = "one") -> list[Path]:
        """Return the files in a store."""
        return sorted(path for path in (self.folder / store).rglob("*") if path.is_file())

    def committed(self, store: str = "one") -> list[Path]:
        """Return the folders of the backups that exist in a store."""
        return sorted(path.parent for path in (self.folder / store).rglob("manifest.json"))


def clean_environment() -> dict[str, str]:
    """The environment of this process without anything that could configure pgsnap or libpq."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "AWS_", "SMTP_", "GCS_")) and name != "DATABASE_URL" or name == "PGSNAP_PG_BIN"
    }


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder without a database; tests give DATABASE_URL themselves."""
    return Desk(tmp_path, clean_environment() | {"HOME": str(tmp_path)})


@pytest.fixture(scope="session")
def big_url(server17: Any) -> Iterator[str]:
    """A database of some 60 MB that takes a moment to dump, made once."""
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS big")
        connection.execute("CREATE DATABASE big")
    url = server17.database_url("big")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE rows AS SELECT i AS id, md5(i::text) || md5((i * 7)::text) AS text, gen_random_uuid() AS uuid "
            "FROM generate_series(1, 400000) i"
        )
        connection.execute("CREATE TABLE small AS SELECT 1 AS one")
    yield url
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE big WITH (FORCE)")


@pytest.fixture
def children_of() -> Callable[[int], list[tuple[int, str]]]:
    """List the living processes that descend from a process: pid and command line."""

    def look(parent: int) -> list[tuple[int, str]]:
        import psutil

        try:
            found = psutil.Process(parent).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        lines = []
        for child in found:
            try:
                lines.append((child.pid, " ".join(child.cmdline())))
            except psutil.Error:
                continue
        return lines

    return look


@pytest.fixture
def sessions_of() -> Callable[[str], list[Mapping[str, Any]]]:
    """List the sessions of pgsnap on a server: what a killed run may leave behind for a moment."""

    def look(url: str) -> list[Mapping[str, Any]]:
        with psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(
                "SELECT pid, application_name, state FROM pg_stat_activity "
                "WHERE application_name LIKE 'pgsnap%' OR application_name LIKE 'pg_dump%'"
            ).fetchall()

    return look
