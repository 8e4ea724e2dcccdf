"""A database that takes a moment to dump, and a look at what a run left behind."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest


@pytest.fixture(scope="session")
def big_url(server17: Any) -> Iterator[str]:
    """A database of some 150 MB that takes a moment to dump, made once."""
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS big")
        connection.execute("CREATE DATABASE big")
    url = server17.database_url("big")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE rows AS SELECT i AS id, md5(i::text) || md5((i * 7)::text) AS text, gen_random_uuid() AS uuid "
            "FROM generate_series(1, 1000000) i"
        )
        connection.execute("CREATE TABLE small AS SELECT 1 AS one")
    yield url
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE big WITH (FORCE)")


@pytest.fixture
def fake_pg_dump(server17: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder of client programs in which pg_dump is a shell script; ``$REAL`` in it is the real one."""

    def make(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for program in Path(server17.bindir).iterdir():
            if program.name != "pg_dump":
                (folder / program.name).symlink_to(program)
        path = folder / "pg_dump"
        questions = 'case "$*" in *--version*|*--help*) exec "$REAL" "$@";; esac'
        path.write_text(f"#!/bin/sh\nREAL={shlex.quote(server17.bindir)}/pg_dump\n{questions}\n{script}\n")
        path.chmod(0o755)
        return folder

    return make


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
