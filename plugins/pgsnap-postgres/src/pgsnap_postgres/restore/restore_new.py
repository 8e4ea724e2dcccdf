"""Restores into a new database, which takes the final name only when everything in it is there.

The new database is called ``<name>_pgsnap_<backup id>``, and closed to the public. pg_restore may fail, be
killed, or the backup turn out damaged at its last byte: the new database is dropped, and nothing else was
touched. At the end one transaction renames the database that had the name, if there was one, and the new one,
and gives it its properties. An empty database that was in the way is dropped afterwards; one with something
in it (``force``) is kept under another name, for ever.

A restore that was killed outright leaves its new database. The next restore of the same backup to the same
name removes it; those of other backups are reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from pgsnap import RestoreError, Run
from pgsnap_postgres.archive.statements import quote
from pgsnap_postgres.connection.url import Target
from pgsnap_postgres.restore.contents import look_inside, missing_relations
from pgsnap_postgres.restore.properties import Properties, apply_properties, create_like
from pgsnap_postgres.restore.run_restore import RestoreInput, fill
from pgsnap_postgres.restore.target import Admin, Existing, ServerInfo, cancelled_by, enter, existing_database, sessions

if TYPE_CHECKING:
    from pgsnap_postgres.connection.connect import Connection

__all__ = ["NewDatabase", "fit_identifier", "leftovers", "restore_new"]

MAX_NAME = 63
"""Bytes of a name (NAMEDATALEN - 1)."""
SHORT_PATIENCE = 5.0
"""Seconds that a session in the old database has to end before the restore begins."""
PATIENCE = 30.0
"""Seconds that the final renaming waits for sessions in the old database to end."""


def fit_identifier(name: str, suffix: str) -> str:
    """Return ``name + suffix``, in at most 63 bytes; a name that must be cut gets a digest, so that two do not meet."""
    whole = name + suffix
    if len(whole.encode()) <= MAX_NAME:
        return whole
    digest = "~" + hashlib.sha256(name.encode()).hexdigest()[:6]
    room = MAX_NAME - len(suffix.encode()) - len(digest)
    return name.encode()[:room].decode("utf-8", "ignore") + digest + suffix


@attrs.frozen(kw_only=True)
class NewDatabase:
    """What a restore into a new database needs to know."""

    run: Run
    admin: Admin
    server: ServerInfo
    target: Target
    content: RestoreInput
    properties: Properties
    existing: Existing | None
    replace: bool
    """The existing database has something in it, and is to be kept under another name."""

    @property
    def name(self) -> str:
        return self.target.dbname

    @property
    def temporary(self) -> str:
        """The name of the new database until it is whole."""
        return fit_identifier(self.name, f"_pgsnap_{self.content.source.id}")


def leftovers(connection: Connection, name: str) -> list[str]:
    """Return the databases that restores to ``name`` have left when they were killed, or that are being restored "
    "right now."""
    head = fit_identifier(name, "_pgsnap_" + "0" * 21)[:-21]
    pattern = re.escape(head) + r"\d{8}T\d{6}Z-[0-9a-f]{4}"
    rows = connection.execute("SELECT datname FROM pg_database ORDER BY 1")
    return [row[0] for row in rows if re.fullmatch(pattern, row[0])]


def restore_new(swap: NewDatabase) -> None:
    """Restore, check, rename; drop the new database if any of it fails.

    Raises:
        RestoreError: it failed; the target is as it was.
    """
    with _alone(swap):
        _clear_leftovers(swap)
        _refuse_sessions(swap)
        swap.run.check()
        whole = False
        try:
            _create(swap)
            swap.admin.connection.execute(f"REVOKE ALL ON DATABASE {quote(swap.temporary)} FROM PUBLIC".encode())
            _give_to_owner(swap)
            fill(swap.content, swap.target.with_dbname(swap.temporary), swap.server.major, swap.run, atomic=False)
            _check_and_analyze(swap)
            replaced = _swap(swap)
            whole = True
        finally:
            if not whole:
                _drop(swap)
    if replaced is not None:
        _dispose(swap, replaced)


@contextlib.contextmanager
def _alone(swap: NewDatabase) -> Iterator[None]:
    """Exclude another restore of the same backup to the same name; the server frees the lock when we die."""
    import psycopg

    key = int.from_bytes(hashlib.sha256(swap.temporary.encode()).digest()[:8], "big", signed=True)
    connection = swap.admin.connection
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone()
    if row is None or not row[0]:
        raise RestoreError(
            f"another restore of backup {swap.content.source.id} into {swap.name!r} is running; wait until it has ended."
        )
    try:
        yield
    finally:
        with contextlib.suppress(psycopg.Error):  # a connection that was lost has given the lock back
            connection.execute("SELECT pg_advisory_unlock(%s)", [key])


def _clear_leftovers(swap: NewDatabase) -> None:
    connection = swap.admin.connection
    for left in leftovers(connection, swap.name):
        if left != swap.temporary:
            swap.run.log.warning(
                "the database %r is what a restore that was killed has left, or one that is running; if none is, drop it "
                "with: DROP DATABASE %s",
                left,
                quote(left),
            )
            continue
        name = f"pgsnap restore {swap.content.source.id}"
        strangers = [text for application, text in sessions(connection, left) if application != name]
        if strangers:
            raise RestoreError(
                f"the database {left!r}, which an earlier restore of this backup has left, is in use by "
                f"{_listed(strangers)}; end these sessions and try again."
            )
        swap.run.log.info("dropping %r, which an earlier restore of this backup has left", left)
        _drop(swap)


def _refuse_sessions(swap: NewDatabase) -> None:
    """Raise if the database that must be renamed at the end is in use now: better before hours of work than after."""
    if swap.existing is None:
        return
    until = time.monotonic() + SHORT_PATIENCE
    while users := sessions(swap.admin.connection, swap.name):
        if time.monotonic() > until:
            raise RestoreError(_in_use(swap.name, users))
        _pause(swap.run)


def _pause(run: Run) -> None:
    run.check()
    time.sleep(0.25)


def _in_use(name: str, users: list[tuple[str, str]]) -> str:
    who = _listed([text for _, text in users]) if users else "sessions that this role cannot see"
    return (
        f"the database {name!r} cannot be renamed because it is in use by {who}; stop what is connected to it, or restore "
        "under another name."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _create(swap: NewDatabase) -> None:
    """Create the new database, with the backup's encoding and locale, else those of the empty database it replaces."""
    import psycopg

    connection = swap.admin.connection
    with cancelled_by(swap.run, connection):
        try:
            connection.execute(swap.properties.create_for(swap.temporary, swap.server).encode())
        except psycopg.errors.QueryCanceled:
            raise
        except psycopg.Error as error:
            if isinstance(error, psycopg.OperationalError) or swap.existing is None or swap.replace:
                raise RestoreError(_not_created(swap, error)) from None
            swap.run.log.warning(
                "the server cannot create a database with %s (%s); the new one gets what the empty database %r has",
                swap.properties.wanted,
                error.diag.message_primary,
                swap.name,
            )
            try:
                connection.execute(create_like(connection, swap.temporary, swap.name).encode())
            except psycopg.Error as second:
                raise RestoreError(_not_created(swap, second)) from None


def _give_to_owner(swap: NewDatabase) -> None:
    """Let the new database have its owner early: who is no superuser can give the owner objects in ``public`` only then.

    Only where we keep its rights, so that we can still rename and drop it.
    """
    owner = swap.properties.owner
    if swap.server.superuser or not swap.content.owners or not owner:
        return
    row = swap.admin.connection.execute(
        "SELECT pg_has_role(current_user, oid, 'USAGE') FROM pg_roles WHERE rolname = %s", [owner]
    ).fetchone()
    if row is not None and row[0] and swap.server.roles.get(owner, True):
        swap.admin.connection.execute(f"ALTER DATABASE {quote(swap.temporary)} OWNER TO {quote(owner)}".encode())


def _not_created(swap: NewDatabase, error: Exception) -> str:
    said = " ".join(str(error).split())
    remedy = f"create an empty database {swap.name!r} with a locale that the server has, and restore into that"
    if "permission denied" in said or "disk" in said or "space" in said:
        remedy = "remedy that and try again"
    return f"the server cannot create a database with {swap.properties.wanted}: {said}; {remedy}."


def _check_and_analyze(swap: NewDatabase) -> None:
    """Look whether every table has come, and gather statistics: they are not in the backup, and plans are bad "
    "without."""
    import psycopg

    swap.run.check()
    target = swap.target.with_dbname(swap.temporary)
    with contextlib.closing(enter(target, f"pgsnap restore {swap.content.source.id}")) as connection:
        missing = missing_relations(connection, set(swap.content.tables))
        if missing:
            raise RestoreError(
                f"{swap.content.clients.pg_restore} succeeded, but {len(missing)} tables are missing, the first "
                f"{'.'.join(missing[0])}; restore the backup with another version of it."
            )
        started = time.monotonic()
        with cancelled_by(swap.run, connection):
            try:
                connection.execute("ANALYZE")
            except psycopg.Error as error:
                swap.run.check()
                swap.run.log.warning("ANALYZE failed (%s); run it yourself, queries may be slow until then", error)
        swap.run.log.info("gathered statistics in %.1f s", time.monotonic() - started)


def _swap(swap: NewDatabase) -> str | None:
    """Give the new database its name, in one transaction; return the name that the old one has now, if there was "
    "one."""
    import psycopg

    replaced = None
    if swap.existing is not None:
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        replaced = fit_identifier(swap.name, f"_pgsnap_replaced_{stamp}")
    until = time.monotonic() + PATIENCE
    while True:
        swap.run.check()
        connection = swap.admin.connection
        try:
            with connection.transaction():
                if replaced is not None:
                    connection.execute(f"ALTER DATABASE {quote(swap.name)} RENAME TO {quote(replaced)}".encode())
                connection.execute(f"ALTER DATABASE {quote(swap.temporary)} RENAME TO {quote(swap.name)}".encode())
                refused = apply_properties(connection, swap.properties, swap.name, owners=swap.content.owners, like=replaced)
            break
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > until:
                users = sessions(connection, swap.name) or sessions(connection, swap.temporary)
                raise RestoreError(_in_use(swap.name, users)) from None
        except psycopg.errors.DuplicateDatabase:
            raise RestoreError(
                f"the database {swap.name!r} has come into being while the backup was being restored; restore under another name."
            ) from None
        except psycopg.Error as error:
            if connection.broken and existing_database(swap.admin.connection, swap.temporary) is None:
                refused = []  # the connection was lost after the server had committed
                break
            said = " ".join(str(error).split())
            raise RestoreError(f"the new database could not be renamed to {swap.name!r}: {said}; see the server's log.") from None
        _pause(swap.run)
    for sentence in refused:
        swap.run.log.warning("%s", sentence)
    return replaced


def _dispose(swap: NewDatabase, replaced: str) -> None:
    """Drop the database that was replaced, if it was empty and still is; else say where it is."""
    import psycopg

    if not swap.replace and swap.existing is not None and swap.existing.connectable:
        try:
            with contextlib.closing(enter(swap.target.with_dbname(replaced), "pgsnap restore")) as connection:
                inside = look_inside(connection)
            if inside.empty and not inside.extensions:
                swap.admin.connection.execute(f"DROP DATABASE {quote(replaced)}".encode())
                return
        except (psycopg.Error, RestoreError) as error:
            swap.run.log.warning("the empty database that was replaced could not be dropped: %s", error)
    swap.run.log.warning(
        "the database that was called %r is kept as %r; when you need it no more: DROP DATABASE %s",
        swap.name,
        replaced,
        quote(replaced),
    )


def _drop(swap: NewDatabase) -> None:
    """Drop the new database and end what still works in it; never raises, since an error is on its way already."""
    import psycopg

    force = " WITH (FORCE)" if swap.server.version_num >= 130000 else ""
    try:
        connection = swap.admin.connection
        connection.execute(f"DROP DATABASE IF EXISTS {quote(swap.temporary)}{force}".encode())
        if existing_database(connection, swap.temporary) is None:
            return
    except (psycopg.Error, RestoreError) as error:
        swap.run.log.error("could not drop the unfinished database: %s", " ".join(str(error).split()))
    swap.run.log.error(
        "the unfinished database %r is left on the server; drop it with: DROP DATABASE %s", swap.temporary, quote(swap.temporary)
    )
