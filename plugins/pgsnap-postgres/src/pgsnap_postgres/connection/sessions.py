"""Looks at the server's sessions while a dump runs: who blocks it, who waits behind it, what it leaves.

It has a connection of its own, since the holder's must not run anything before it has its locks. Everything here is visible to a
plain role: ``pg_locks``, ``pg_blocking_pids`` and the names in ``pg_stat_activity``, never the text of a query.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from typing import Any

from pgsnap_postgres.connection.connect import connect
from pgsnap_postgres.connection.url import Target

__all__ = ["Sessions", "reaching", "watch_sessions"]


def reaching(waits: dict[int, set[int]], goals: Collection[int]) -> set[int]:
    """Return those who wait, directly or through others, for one of ``goals``; ``waits`` maps a pid to whom it waits for."""
    found: set[int] = set()
    while more := {pid for pid, on in waits.items() if pid not in found and on & (found | set(goals))}:
        found |= more
    return found


class Sessions:
    """A connection to look at other sessions with; opened anew when it was lost. Safe to use from several threads."""

    def __init__(self, target: Target, application_name: str, role: str | None = None) -> None:
        self._target, self._name, self._role = target, application_name, role
        self._lock = threading.Lock()
        self.connection = connect(target, application_name=application_name, role=role)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a query of this module; once more on a new connection if the old one is gone.

        Raises:
            psycopg.Error, DumpError: the server is not to be had.
        """
        import psycopg

        with self._lock:
            try:
                return self._fetch(query, parameters)
            except psycopg.OperationalError:
                if not self.connection.closed:
                    raise
                self.connection = connect(self._target, application_name=self._name, role=self._role)
                return self._fetch(query, parameters)

    def _fetch(self, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), parameters or None).fetchall()

    def waits(self) -> dict[int, set[int]]:
        """Return who waits for a lock, and for whom."""
        found = self.rows(
            "SELECT pid, pg_catalog.pg_blocking_pids(pid) FROM (SELECT DISTINCT pid FROM pg_catalog.pg_locks WHERE NOT granted) w"
        )
        return {pid: set(on) for pid, on in found if pid is not None}

    def pids(self, application_name: str) -> set[int]:
        """Return the server processes whose sessions have this name."""
        return {
            pid
            for (pid,) in self.rows("SELECT pid FROM pg_catalog.pg_stat_activity WHERE application_name = %s", application_name)
        }

    def describe(self, pids: Collection[int]) -> str:
        """Return ``pid 123 (app, application 'psql')`` for each, without anything of what it runs."""
        found = self.rows(
            "SELECT pid, usename, application_name FROM pg_catalog.pg_stat_activity WHERE pid = ANY (%s) ORDER BY pid", list(pids)
        )
        shown = [f"pid {pid} (user {user}, application {name!r})" for pid, user, name in found]
        if 0 in pids:
            shown.append("a prepared transaction (see pg_prepared_xacts)")
        return " and ".join(shown)

    def blockers(self, pid: int) -> str:
        """Describe who holds what ``pid`` waits for; empty if it waits for nobody."""
        found = self.rows("SELECT pg_catalog.pg_blocking_pids(%s)", pid)
        return self.describe(found[0][0]) if found and found[0][0] else ""

    def terminate(self, application_name: str) -> int:
        """End the sessions of this name (our own role may do that); return how many there were."""
        return len(
            self.rows(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
                "WHERE application_name = %s AND pid <> pg_catalog.pg_backend_pid()",
                application_name,
            )
        )


@contextlib.contextmanager
def watch_sessions(target: Target, application_name: str, role: str | None = None) -> Iterator[Sessions]:
    """Give a ``Sessions`` and close it afterwards."""
    sessions = Sessions(target, application_name, role)
    try:
        yield sessions
    finally:
        sessions.close()
