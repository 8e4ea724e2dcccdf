"""Holds the snapshot that everything of one backup is read in.

A snapshot alone loses data: a table truncated after the export is dumped with no rows, and pg_dump exits with 0. So all
tables are locked (``ACCESS SHARE``, as pg_dump does itself) BEFORE the snapshot is taken, in one transaction in which nothing
runs before the locks. The list of tables comes from another connection; it is read again inside the snapshot, and if a table
came, went or was renamed in between, everything is given up and begun anew. The locks and the snapshot last until the context
is left.

Lock waits are bounded, and the error names who was waited for. A session that wants a strong lock queues behind the holder,
and pg_dump, which needs the same locks, would queue behind that session: a circle that PostgreSQL cannot see, because the
holder itself waits for nothing. ``in_circle`` tells when it has come to that; then the holder gives way and begins again
(``dump``).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from pgsnap import BusyError, DumpError, Run
from pgsnap.streams import watch
from pgsnap_postgres.connection.connect import Names, connect, scrubbed
from pgsnap_postgres.connection.pooling import detect_pooling, refuse_transaction_pooler
from pgsnap_postgres.connection.sessions import Sessions, reaching
from pgsnap_postgres.connection.url import Target
from pgsnap_postgres.dump.tables import Table, check_large_objects, check_readable, list_tables
from pgsnap_postgres.options import DumpOptions

if TYPE_CHECKING:
    from pgsnap_postgres.connection.connect import Connection

__all__ = ["Changed", "Held", "LockTimeout", "advisory_key", "hold"]

ALIVE_EVERY = 30.0
LOOK_EVERY = 5.0
LOCKS_AT_ONCE = 200

_SETTINGS = """
SET LOCAL search_path = ''; SET LOCAL row_security = off; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres';
SET LOCAL TimeZone = 'UTC'; SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 3;
"""


class Changed(DumpError):
    """A table came, went or was renamed while the locks were taken; beginning again will help."""


class LockTimeout(DumpError):
    """A lock was not to be had in time; the message names who holds it. Beginning again may help."""


@attrs.define(eq=False)
class Held:
    """A snapshot that is being held.

    ``pid`` is the server process that holds the locks; ``snapshot`` is what pg_dump takes for ``--snapshot``; ``tables`` are
    those that are locked, and the sequences; ``queued`` is the largest number of sessions
    seen waiting behind the dump; ``lost`` says why the holder is gone, or is empty.
    """

    connection: Connection
    sessions: Sessions
    names: Names
    run: Run
    pid: int
    snapshot: str = ""
    tables: tuple[Table, ...] = ()
    queued: int = 0
    lost: str = ""
    _spoken: float = attrs.field(factory=time.monotonic)

    def tick(self) -> None:
        """Keep the holder alive and look who waits behind the dump. Never raises: a dump does not fail because of a look."""
        import psycopg

        if not self.lost and time.monotonic() - self._spoken >= ALIVE_EVERY:
            self._spoken = time.monotonic()
            try:
                self.connection.execute("SELECT 1")
            except psycopg.Error as error:
                self.lost = str(error)
                self.run.log.warning(
                    "the connection that holds the dump's snapshot was lost; pg_dump goes on with its own locks."
                )
        try:
            behind = len(self.behind())
        except (psycopg.Error, DumpError) as error:
            self.run.log.debug("could not look who waits behind the dump: %s", error)
            return
        if behind > self.queued:
            self.run.log.warning(
                "%d sessions wait behind the dump's locks; a change of a table that it reads goes on when it has ended.", behind
            )
            self.queued = behind

    def behind(self) -> set[int]:
        """Return the sessions that wait, directly or through others, for the holder or its pg_dump processes."""
        waits = self.sessions.waits()
        if not waits:
            return set()
        ours = self.sessions.pids(self.names.holder) | self.sessions.pids(self.names.dump)
        return reaching(waits, ours) - ours

    def in_circle(self) -> str:
        """Describe whom our pg_dump waits for while they wait for the holder, or return an empty string."""
        waits = self.sessions.waits()
        ours = self.sessions.pids(self.names.dump) if waits else set()
        holders = self.sessions.pids(self.names.holder) if waits else set()
        between = {pid for mine in ours for pid in waits.get(mine, ())} & reaching(waits, holders)
        return self.sessions.describe(between - ours) if between else ""


@contextlib.contextmanager
def hold(options: DumpOptions, target: Target, sessions: Sessions, names: Names, run: Run) -> Iterator[Held]:
    """Lock the tables, export a snapshot and keep both until the context is left.

    Raises:
        Changed, LockTimeout: Beginning again may help.
        BusyError: another run of this pipeline holds the lock.
        DumpError: it is a pooler in transaction mode, or the role may not read a table.
    """
    import psycopg

    with contextlib.closing(connect(target, application_name=names.holder, role=options.role)) as connection:
        refuse_transaction_pooler(detect_pooling(connection, sessions.connection), target)
        try:
            held = Held(connection, sessions, names, run, _one(connection, "SELECT pg_catalog.pg_backend_pid()"))
            with run.on_abort(lambda: connection.cancel_safe(timeout=5.0)):
                listed = list_tables(sessions.connection, options)
                role = str(sessions.rows("SELECT current_user")[0][0])
                check_readable(listed, role)
                check_large_objects(sessions.connection, options, role)
                _lock(held, [table for table in listed if table.kind != "S"], options.lock_timeout)
                held.snapshot = _one(connection, "SELECT pg_catalog.pg_export_snapshot()")
                held.tables = list_tables(connection, options)
                if {t for t in held.tables if t.kind != "S"} != {t for t in listed if t.kind != "S"}:
                    raise Changed("the tables changed while they were being locked; run the backup again.")
                check_readable(held.tables, role)
                _take_turn(held)
                connection.execute(_SETTINGS.encode())
        except psycopg.Error as error:
            run.check()
            raise DumpError(f"{target.describe()} refused to hold a snapshot: {scrubbed(str(error), target)}.") from None
        with watch(held.tick, LOOK_EVERY, name="holder"):
            yield held
        # Of a connection that is only closed the server lets go a moment later, and the next run would be told that it is busy.
        with contextlib.suppress(psycopg.Error):
            connection.execute("ROLLBACK")


def _one(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _lock(held: Held, tables: list[Table], timeout: float) -> None:
    """Begin the transaction and lock; nothing that takes a snapshot may run before this, or between."""
    import psycopg
    from psycopg import sql

    blockers: list[str] = []

    def look() -> None:
        with contextlib.suppress(psycopg.Error, DumpError):
            if found := held.sessions.blockers(held.pid):
                blockers.append(found)

    deadline = time.monotonic() + timeout
    connection = held.connection
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        with watch(look, min(1.0, timeout / 4), name="blockers"):
            for start in range(0, len(tables), LOCKS_AT_ONCE):
                left = max(1, int(1000 * (deadline - time.monotonic())))
                connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(left)))
                names = [sql.Identifier(table.schema, table.name) for table in tables[start : start + LOCKS_AT_ONCE]]
                connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(sql.SQL(", ONLY ").join(names)))
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        held.run.check()
        who = f"{blockers[-1]} holds it" if blockers else "it was not seen who holds it"
        raise LockTimeout(
            f"a table could not be locked within {timeout:g} s: {who}; wait until that has ended, or raise lock_timeout."
        ) from None
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.WrongObjectType):
        raise Changed("a table went away while the tables were being locked; run the backup again.") from None
    except psycopg.errors.DeadlockDetected:
        raise Changed("a session that changes several tables met the dump in the other order; run the backup again.") from None
    except psycopg.errors.OutOfMemory:
        raise DumpError(
            f"the server has too few locks for {len(tables)} tables; raise max_locks_per_transaction and restart the server."
        ) from None
    connection.execute("SET LOCAL statement_timeout = 0")


def advisory_key(pipeline: str) -> tuple[int, int]:
    """Return the two numbers of the advisory lock that lets one run of a pipeline go at a time."""
    digest = hashlib.sha256(pipeline.encode("utf-8", "surrogateescape")).digest()
    return 0x70677370, int.from_bytes(digest[:4], "big", signed=True)  # "pgsp"


def _take_turn(held: Held) -> None:
    one, two = advisory_key(held.run.pipeline)
    row = held.connection.execute("SELECT pg_catalog.pg_try_advisory_xact_lock(%s::int, %s::int)", (one, two)).fetchone()
    if row is not None and row[0]:
        return
    pids = held.sessions.rows(
        "SELECT l.pid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database "
        "WHERE l.locktype = 'advisory' AND d.datname = pg_catalog.current_database() "
        "AND l.classid = %s AND l.objid = %s AND l.objsubid = 2 AND l.granted",
        one,
        two & 0xFFFFFFFF,
    )
    who = held.sessions.describe([pid for (pid,) in pids]) or "a session that has just ended"
    raise BusyError(
        f"another run of the pipeline {held.run.pipeline!r} holds this database's lock: {who}; wait until it has ended."
    )
