"""Takes ``globals.sql``: roles and tablespaces, which belong to the server and are in no database's dump.

pg_dumpall reads passwords from ``pg_authid``, which a plain role may not see; without them it reads ``pg_roles``, which everyone
may. Passwords are taken only if something in the pipeline encrypts. Globals are not part of the snapshot: they are taken
while the dump holds its locks, and every owner that the dump refers to is looked for among them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection

import attrs

from pgsnap import DumpError, Run
from pgsnap.streams import Child, read_child
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


def connection_argument(dbname: str) -> str:
    """Return a database's name as ``-l`` takes it: what looks like a connection string is wrapped in one."""
    if "=" not in dbname and "://" not in dbname:
        return dbname
    quoted = dbname.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{quoted}'"


def missing_roles(text: str, roles: Collection[str]) -> list[str]:
    """Return the roles that a text of pg_dumpall does not create, sorted."""
    created = re.findall(r'^CREATE ROLE ("(?:[^"]|"")+"|[^";]+);', text, re.MULTILINE)
    names = {name[1:-1].replace('""', '"') if name.startswith('"') else name for name in created}
    return sorted(role for role in set(roles) - names if role and not role.startswith("pg_"))


def may_read_passwords(sessions: Sessions) -> bool:
    """Return whether this role can read the passwords (hashes) of roles."""
    return bool(sessions.rows("SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0][0])


@attrs.frozen
class Begun:
    """A pg_dumpall that was started: it works while the dump flows, and waits in its pipe to be read."""

    child: Child
    passwords: bool
    note: str


def begin_globals(clients: Clients, service: Service, sessions: Sessions, dbname: str, run: Run) -> Begun:
    """Start pg_dumpall; give what it returns to ``take_globals``, or release its child."""
    passwords = run.encrypted and may_read_passwords(sessions)
    note = ""
    if not passwords:
        why = "the role may not read them" if run.encrypted else "nothing in the pipeline encrypts"
        note = f"The roles are kept without their passwords, because {why}."
    argv = [clients.pg_dumpall, "-d", SERVICE, "-l", connection_argument(dbname), "--globals-only", "--no-password"]
    if not passwords:
        argv.append("--no-role-passwords")
    child = run.spawn(argv, stdout=subprocess.PIPE, env=service.env, pass_fds=service.pass_fds)
    return Begun(child, passwords, note)


def take_globals(begun: Begun, run: Run, *, needed: bool, owners: Collection[str]) -> Globals:
    """Return what pg_dumpall said; it is held in memory, as roles are few.

    Args:
        needed: Raise if it fails; otherwise the text says why it is empty.
        owners: The roles that the dump refers to.

    Raises:
        DumpError: pg_dumpall failed and the globals are needed; or it succeeded, and what it said is not whole.
    """
    notes = [begun.note] if begun.note else []
    source = read_child(begun.child, error=DumpError)
    try:
        text = b"".join(check_plain(source))
    except DumpError as error:
        run.check()
        if needed or error.status is None:  # it succeeded, and what came is not whole: that is no lack of rights
            raise
        run.log.warning("the roles could not be read and are not in this backup: %s", error)
        text = b"-- The globals are not here: they could not be read when this backup was taken, and its log says why.\n"
        return Globals(text, False, False, ("The roles could not be read and are not in this backup.",))
    finally:
        source.close()
    missing = missing_roles(text.decode("utf-8", "replace"), owners)
    if missing:
        notes.append(f"The dump names {len(missing)} roles that globals.sql does not create: {', '.join(missing[:5])}.")
        run.log.warning("%s", notes[-1])
    return Globals(text, begun.passwords, not missing, tuple(notes))
