"""Writes the shell lines for RECOVER.txt: how to restore with PostgreSQL's own programs, when nothing of pgsnap is there.

They are for POSIX sh and for a person under pressure: to be read, and pasted one block after the other. There is no name of the
source in them but those of the artifacts (a database may be called ``$(…)``), no host and no user: libpq's own variables say
where to. sh does not notice when the first program of a pipe fails, so what is piped goes to ``pg_restore``, which commits only
an archive that it could read to the end; SQL text, which has no such end, goes to a file first and is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pgsnap import Facts

__all__ = ["recipe"]

LOCKS = 3200
"""Half of what a server holds by default: max_locks_per_transaction (64) times max_connections (100)."""

_HEAD = """\
# You need psql{programs} of PostgreSQL {major} or newer, and a server of version {server} or newer that has nothing in it
# yet, or at least no database of the name below. Say where it is, as a superuser if you can:
#   export PGHOST=… PGPORT=5432 PGUSER=postgres
DB=restored
export PGOPTIONS='-c default_transaction_read_only=off'
"""
_GLOBALS = """
# Roles and tablespaces. Errors such as  role "postgres" already exists  are expected here. A role that exists gets the
# attributes and the password of the backup, but for the one that you log in as: you could not log in any more.
# Roles whose passwords are not in the backup need new ones:  ALTER ROLE … PASSWORD '…'
ME=${{PGUSER:-$(id -un)}}
@{{{name}}} |
  LC_ALL=C awk -v me="$ME" 'index($0, "ALTER ROLE " me " WITH ") != 1 && index($0, "ALTER ROLE \\"" me "\\" WITH ") != 1' |
  psql -X -q -d postgres
"""
_DATABASE = """
# The database, with its encoding, locale, owner, settings and privileges. If the server lacks the locale:
#   createdb -T template0 -E UTF8 "$DB"
# and then this line again, without  -v ON_ERROR_STOP=1
@{{{name}}} | psql -X -q -v ON_ERROR_STOP=1 -v DB="$DB" -d postgres
"""
_CREATE = """
createdb -T template0 "$DB"
"""
_CUSTOM = """
# Its contents, all or nothing. If this fails, nothing was restored: read the message, and run it again.
@{{{name}}} | pg_restore -e -1 -d "$DB"
"""
_LARGE = """
# Its contents. They are too many objects for one transaction under a server's default settings, so -1 (all or nothing) is
# left out: if this fails, dropdb "$DB" and begin again where the database is made.
@{{{name}}} | pg_restore -e -d "$DB"
"""
_PLAIN = """
# Its contents: first to a file that only you can read (it takes as much room as the database's data, as text) …
( umask 077; @{{{name}}} > "$DB.sql" )
# … which is whole if this prints 1, and then into the database. If psql fails, dropdb "$DB" and begin again where it is made.
tail -n 12 "$DB.sql" | grep -c '^-- PostgreSQL database dump complete$'
tail -n 12 "$DB.sql" | grep -q '^-- PostgreSQL database dump complete$' &&
  psql -X -q -v ON_ERROR_STOP=1 -d "$DB" -f "$DB.sql" > /dev/null
rm "$DB.sql"
"""
_TAIL = """
# Statistics are not in the backup; queries are slow without.
psql -X -q -d "$DB" -c ANALYZE
"""


def recipe(artifacts: Sequence[str], facts: Facts) -> str:
    """Return the lines. ``@{name}`` stands for the command that prints the plain bytes of artifact ``name``.

    What the backup does not have (``globals.sql``, ``database.sql``) has no lines.
    """
    main = facts.get("artifact") or next(name for name in artifacts if name not in ("database.sql", "globals.sql"))
    plain = facts.get("format", "plain" if main.endswith(".sql") else "custom") == "plain"
    server = int(facts.get("server", {}).get("version_num", 0)) // 10000
    lines = [
        _HEAD.format(
            programs="" if plain else " and pg_restore",
            major=facts.get("client", {}).get("major") or server or "the backup's version",
            server=server or "the same",
        )
    ]
    extensions = [item["name"] for item in facts.get("extensions", ()) if item["name"] != "plpgsql"]
    extensions = [name for name in extensions if re.fullmatch(r"[A-Za-z0-9_-]+", name)]
    if extensions:
        lines.append(f"# The server must have these extensions installed: {', '.join(extensions)}\n")
    if "globals.sql" in artifacts:
        lines.append(_GLOBALS.format(name="globals.sql"))
    lines.append(_DATABASE.format(name="database.sql") if "database.sql" in artifacts else _CREATE)
    many = int(facts.get("objects", 0)) + int(facts.get("large_objects", 0) or 0) > LOCKS
    lines.append((_PLAIN if plain else _LARGE if many else _CUSTOM).format(name=main))
    lines.append(_TAIL)
    return "".join(lines)
