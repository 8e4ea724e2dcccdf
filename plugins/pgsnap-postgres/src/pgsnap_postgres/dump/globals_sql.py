"""Takes ``globals.sql``: roles and tablespaces, which belong to the server and are in no database's dump.

pg_dumpall reads passwords from ``pg_authid``, which a plain role may not see; without them it reads ``pg_roles``, which everyone
may. Passwords are taken only if something in the pipeline encrypts. Globals are not part of the snapshot: they are taken
while the dump holds its locks, and every owner that the dump refers to is looked for among them.

Unlike pg_dump, pg_dumpall sets no timeout to 0. So its options do that where the role, the database or the URL set one, and it
writes to memory, not into a pipe: it never sits idle in its session while the main dump flows. Only the server's word that it
may not read something leaves the roles out; whatever else goes wrong fails the backup.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection
from typing import IO

import attrs

from pgsnap import DumpError, ProcessError, Run
from pgsnap.streams import Child
from pgsnap_postgres.archive.plaintext import check_plain
from pgsnap_postgres.clients import Clients
from pgsnap_postgres.connection.service import SERVICE, Service
from pgsnap_postgres.connection.sessions import Sessions

__all__ = ["Begun", "Globals", "begin_globals", "connection_argument", "missing_roles", "take_globals"]


@attrs.frozen
class Globals:
    """The text of ``globals.sql``, and what is to be known about it."""

    text: bytes
    passwords: bool
    complete: bool
    notes: tuple[str, ...] = ()

    @property
    def roles(self) -> int:
        """How many roles it creates."""
        return len(_ROLE.findall(self.text.decode("utf-8", "replace")))


_ROLE = re.compile(r'^CREATE ROLE ("(?:[^"]|"")+"|[^";]+);', re.MULTILINE)
_TIMEOUTS = ["statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout"]


def connection_argument(dbname: str) -> str:
    """Return a database's name as ``-l`` takes it: what looks like a connection string is wrapped in one."""
    if "=" not in dbname and "://" not in dbname:
        return dbname
    quoted = dbname.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{quoted}'"


def missing_roles(text: str, roles: Collection[str]) -> list[str]:
    """Return the roles that a text of pg_dumpall does not create, sorted."""
    created = _ROLE.findall(text)
    names = {name[1:-1].replace('""', '"') if name.startswith('"') else name for name in created}
    return sorted(role for role in set(roles) - names if role and not role.startswith("pg_"))


def may_read_passwords(sessions: Sessions) -> bool:
    """Return whether this role can read the passwords (hashes) of roles."""
    return bool(sessions.rows("SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0][0])


def connection(sessions: Sessions, options: str) -> str:
    """Return what pg_dumpall is given as ``-d``: with those timeouts switched off that its session would begin with.

    Only those, since poolers refuse options. What the role, the database and the URL make of a setting is its ``reset_val``.
    """
    found = sessions.rows("SELECT name FROM pg_catalog.pg_settings WHERE name = ANY (%s) AND reset_val <> '0'", _TIMEOUTS)
    if not found:
        return SERVICE
    text = " ".join([options, *(f"-c {name}=0" for (name,) in sorted(found))]).strip()
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"{SERVICE} options='{quoted}'"


def may_not_read(sessions: Sessions, error: ProcessError) -> bool:
    """Return whether pg_dumpall failed for want of rights (SQLSTATE 42501), whatever language the server speaks."""
    if "permission denied" in error.stderr.lower():
        return True
    catalogs = ["pg_roles", "pg_auth_members", "pg_tablespace", "pg_db_role_setting", "pg_shdescription", "pg_shseclabel"]
    query = "SELECT bool_and(pg_catalog.has_table_privilege('pg_catalog.' || name, 'SELECT')) FROM unnest(%s::text[]) AS name"
    return not sessions.rows(query, catalogs)[0][0]


@attrs.frozen
class Begun:
    """A pg_dumpall that was started: it works while the dump flows, and writes to ``output``, which is in memory where there is
    a way (elsewhere a file without a name)."""

    child: Child
    output: IO[bytes]
    passwords: bool
    note: str

    def release(self) -> None:
        """End it if it has not ended, and let go of what it wrote."""
        self.child.release()
        self.output.close()


def _memory() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("pgsnap-globals", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def begin_globals(clients: Clients, service: Service, sessions: Sessions, dbname: str, options: str, run: Run) -> Begun:
    """Start pg_dumpall; give what it returns to ``take_globals``, or release it. ``options`` are those of the URL."""
    passwords = run.encrypted and may_read_passwords(sessions)
    note = ""
    if not passwords:
        why = "the role may not read them" if run.encrypted else "nothing in the pipeline encrypts"
        note = f"The roles are kept without their passwords, because {why}."
    where = connection(sessions, options)
    argv = [clients.pg_dumpall, "-d", where, "-l", connection_argument(dbname), "--globals-only", "--no-password"]
    if not passwords:
        argv.append("--no-role-passwords")
    output = _memory()
    try:
        child = run.spawn(argv, stdout=output, env=service.env, pass_fds=service.pass_fds)
    except BaseException:
        output.close()
        raise
    return Begun(child, output, passwords, note)


def take_globals(begun: Begun, sessions: Sessions, run: Run, *, needed: bool, owners: Collection[str]) -> Globals:
    """Return what pg_dumpall said; it is held in memory, as roles are few.

    Args:
        needed: Raise also if the role may not read them; otherwise the text says why it is empty.
        owners: The roles that the dump refers to.

    Raises:
        DumpError: pg_dumpall failed; or it succeeded, and what it said is not whole.
    """
    notes = [begun.note] if begun.note else []
    try:
        if begun.child.process.wait():
            run.check()
            error = begun.child.failure(DumpError)
            if needed or not may_not_read(sessions, error):
                raise error
            run.log.warning("the roles may not be read and are not in this backup: %s", error)
            text = b"-- The globals are not here: they could not be read when this backup was taken, and its log says why.\n"
            return Globals(text, False, False, ("The roles may not be read and are not in this backup.",))
        begun.output.seek(0)
        text = b"".join(check_plain([begun.output.read()]))
    finally:
        begun.release()
    missing = missing_roles(text.decode("utf-8", "replace"), owners)
    if missing:
        notes.append(f"The dump names {len(missing)} roles that globals.sql does not create: {', '.join(missing[:5])}.")
        run.log.warning("%s", notes[-1])
    return Globals(text, begun.passwords, not missing, tuple(notes))
