"""Tells a direct connection from one through a pooler, and a pooler that keeps sessions from one that does not.

Through a pooler, the process id that libpq was told at connect is not the one that ``pg_backend_pid()`` gives. In transaction
mode a session has no server process of its own: one that waits outside a transaction has lent its process to the next who
asks. A dump needs sessions: locks, an exported snapshot and settings that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from pgsnap import DumpError
from pgsnap_postgres.connection.url import Target

if TYPE_CHECKING:
    from pgsnap_postgres.connection.connect import Connection

__all__ = ["Pooling", "detect_pooling", "judge", "refuse_transaction_pooler"]

Pooling: TypeAlias = Literal["none", "session", "transaction"]


def judge(told: int, first: int, other: int, again: int) -> Pooling:
    """Decide from process ids.

    Args:
        told: What libpq was told when the first connection was opened.
        first: What ``pg_backend_pid()`` said in it, outside a transaction.
        other: What it said in a second connection, inside a transaction.
        again: What it said in the first one while that transaction was open.
    """
    if other == first or again != first:
        return "transaction"
    return "none" if told == first else "session"


def detect_pooling(one: Connection, two: Connection) -> Pooling:
    """Look at two connections to the same server, both outside a transaction and in autocommit mode."""
    import psycopg

    told, first = one.info.backend_pid, _pid(one)
    if told == first and two.info.backend_pid == _pid(two):
        return "none"
    try:
        two.execute("BEGIN")
        other, again = _pid(two), _pid(one)
        two.execute("ROLLBACK")
    except psycopg.DatabaseError:  # "transaction blocks not allowed in statement pooling mode"
        return "transaction"
    return judge(told, first, other, again)


def _pid(connection: Connection) -> int:
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def refuse_transaction_pooler(pooling: Pooling, target: Target) -> None:
    """Raise DumpError for a pooler in transaction or statement mode."""
    if pooling == "transaction":
        raise DumpError(
            f"{target.describe()} is a pooler in transaction mode, in which locks and a snapshot cannot be held; give the URL of "
            "the server itself, or of a pool in session mode."
        )
