"""Fills an empty database in place, in one transaction: for a role that may not create databases.

This is how a hosted database is often to be had: one database, one role, and no CREATEDB. A new database and
a renaming are out of the question, so pgsnap commits only once, at the end: pg_restore and psql see the last
chunk, and ``COMMIT``, only after the whole backup was read and checked. What cannot be done in one
transaction is refused before anything is touched.
"""

from __future__ import annotations

import contextlib
import time

import attrs

from pgsnap import PgsnapError, Run, Unsupported
from pgsnap.streams import drain
from pgsnap_postgres.connection.url import Target
from pgsnap_postgres.restore.properties import Properties, apply_properties
from pgsnap_postgres.restore.run_restore import RestoreInput, fill
from pgsnap_postgres.restore.target import Existing, ServerInfo, cancelled_by, enter, sessions

__all__ = ["InPlace", "restore_in_place"]

LINGER = 15.0
"""Seconds that the server has to notice that a killed client is gone, and to roll back."""


@attrs.frozen(kw_only=True)
class InPlace:
    """What a restore into an existing, empty database needs to know; ``reason`` is why no new one can be made."""

    run: Run
    server: ServerInfo
    target: Target
    content: RestoreInput
    properties: Properties
    existing: Existing
    reason: str


def restore_in_place(place: InPlace) -> None:
    """Restore in one transaction; if it raises, the database is as empty as before.

    Raises:
        RestoreError: it failed.
        Unsupported: it cannot be done in one transaction.
    """
    content, run = place.content, place.run
    _refuse(place)
    if content.jobs > 1:
        run.log.warning("%s, so everything goes in one transaction and jobs = %d is not used", place.reason, content.jobs)
    if content.listing is not None:  # a selection is committed before the rest is read: so read it all once before
        run.log.info("checking the whole backup before a part of it is restored")
        with contextlib.closing(content.source.open(content.artifact)) as stream:
            drain(stream)
    try:
        fill(content, place.target, place.server.major, run, atomic=True)
    except BaseException:
        _wait_for_rollback(place)
        raise
    _finish(place)


def _refuse(place: InPlace) -> None:
    content, name = place.content, place.target.dbname
    remedy = f"use a role with CREATEDB that owns {name!r}, or a superuser."
    if content.toc is None and content.large_objects:
        raise Unsupported(
            f"{place.reason}, and a plain dump with large objects commits in the middle, so that it cannot be restored into "
            f"{name!r} in one transaction; {remedy}"
        )
    needed, limit = content.objects + content.large_objects, place.server.lock_slots // 2
    if needed > limit:
        raise Unsupported(
            f"{place.reason}, and one transaction for {needed} objects needs more locks than the server has "
            f"(max_locks_per_transaction x max_connections / 2 = {limit}); raise max_locks_per_transaction, or {remedy}"
        )


def _wait_for_rollback(place: InPlace) -> None:
    """Give the server time to end the session of a client that was killed: until then its locks are held."""
    import psycopg

    until = time.monotonic() + LINGER
    name = f"pgsnap restore {place.content.source.id}"
    with contextlib.suppress(psycopg.Error, PgsnapError), contextlib.closing(enter(place.target, "pgsnap")) as connection:
        while any(application == name for application, _ in sessions(connection, place.target.dbname)):
            if time.monotonic() > until:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND datname = %s",
                    [name, place.target.dbname],
                )
                return
            time.sleep(0.1)


def _finish(place: InPlace) -> None:
    """Apply the database's own properties as far as we may, and gather statistics. The data are there: nothing "
    "here fails."""
    import psycopg

    refused: list[str] = []
    try:
        with contextlib.closing(enter(place.target, "pgsnap restore")) as connection, cancelled_by(place.run, connection):
            if place.existing.owned:
                with connection.transaction():
                    refused = apply_properties(
                        connection, place.properties, place.target.dbname, owners=place.content.owners, keep_owner=True
                    )
            elif place.properties.statements:
                refused = [
                    f"{place.target.dbname!r} belongs to {place.existing.owner!r}: its settings, privileges and comment "
                    "stay as they are"
                ]
            connection.execute("ANALYZE")
    except (psycopg.Error, PgsnapError) as error:
        said = " ".join(str(error).split())
        place.run.log.warning("the backup is restored, but ANALYZE or the database's settings failed: %s", said)
    for sentence in refused:
        place.run.log.warning("%s", sentence)
