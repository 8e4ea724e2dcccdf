"""What a restore needs: the parts of a backup, programs that can read it, a server that can take it."""

from __future__ import annotations

import contextlib
import re

from pgsnap import DumpError, Facts, IntegrityError, RestoreError, RestoreRequest, Run, Source, Unsupported
from pgsnap_postgres.archive.check import Toc, read_toc
from pgsnap_postgres.archive.selection import Selection, select
from pgsnap_postgres.clients import VARIABLE, Clients, find_clients, installed
from pgsnap_postgres.connection.url import Target
from pgsnap_postgres.options import DumpOptions
from pgsnap_postgres.restore.target import ServerInfo

__all__ = ["choose", "choose_clients", "main_artifact", "read_text", "refuse_server", "table_of_contents"]

# --- the backup ------------------------------------------------------------------------------------------------------


def main_artifact(source: Source) -> tuple[str, bool]:
    """Return the name of the database's artifact, and whether it is a plain dump."""
    facts, names = source.facts, list(source.artifacts)
    name = facts.get("artifact") or next((n for n in names if n.endswith((".dump", ".sql")) and n not in _SIDE), "")
    if name not in names:
        raise RestoreError(
            f"backup {source.id} has no database dump among its artifacts ({', '.join(names) or 'none'}); choose another backup."
        )
    return str(name), facts.get("format", "plain" if str(name).endswith(".sql") else "custom") == "plain"


_SIDE = frozenset({"database.sql", "globals.sql"})


def read_text(source: Source, name: str) -> bytes:
    """Return a small artifact."""
    with contextlib.closing(source.open(name)) as stream:
        return b"".join(stream)


def table_of_contents(source: Source, name: str) -> Toc:
    """Return an archive's table of contents; reads no more than the beginning."""
    with contextlib.closing(source.open(name)) as stream:
        try:
            return read_toc(stream)
        except DumpError as error:
            raise IntegrityError(f"the artifact {name} of backup {source.id} cannot be restored: {error}") from None


def choose(toc: Toc | None, request: RestoreRequest, run: Run) -> Selection | None:
    """Return what the request selects of the archive, or None if it wants everything; log what comes along and what cannot."""
    if not (request.tables or request.schemas or request.sections):
        if toc is None and not request.owners:
            raise Unsupported(
                "a plain dump sets owners and privileges in its text, which cannot be left out; create the roles, or "
                'restore a backup in custom format (format = "custom").'
            )
        return None
    if toc is None:
        raise Unsupported(
            'a plain dump can only be restored whole; restore it under another name, and back up with format = "custom" to be '
            "able to choose tables, schemas or sections."
        )
    selection = select(toc, request.tables, request.schemas, request.sections)
    if selection.also:
        run.log.info("restored too, because what was chosen needs it: %s", ", ".join(selection.also))
    for sentence in selection.left_out:
        run.log.warning("%s", sentence)
    return selection


# --- the server ------------------------------------------------------------------------------------------------------


def refuse_server(facts: Facts, server: ServerInfo, target: Target) -> None:
    """Raise if this server cannot take this backup."""
    where = target.describe()
    if server.standby:
        raise RestoreError(f"{where} is a standby, which cannot be written to; give the URL of its primary.")
    if server.pooled:
        raise RestoreError(
            f"{where} is reached through a connection pooler, which cannot be restored through; give the URL of the server "
            "itself."
        )
    backup = int(facts.get("server", {}).get("version_num", 0)) // 10000
    if server.major < backup:
        raise RestoreError(
            f"the backup is of PostgreSQL {backup} and the server of {where} is {server.version}, which may not understand "
            f"it; restore into a server of version {backup} or newer."
        )


def choose_clients(dumper: DumpOptions, facts: Facts, toc: Toc | None, server: ServerInfo) -> Clients:
    """Return the programs that read this backup and suit the server best.

    pg_restore reads archives of its own version and older ones; it works with newer servers, and (but for one setting, see
    ``feed``) with older ones.
    """
    needed = int(facts.get("client", {}).get("major", 0)) or (_leading(toc.dump_version) if toc is not None else server.major)
    program = "psql" if toc is None else "pg_restore"
    need = ["psql"] if toc is None else ["pg_restore", "psql"]
    method = "none" if toc is None else toc.compression
    found = [clients for clients in installed(need, dumper.bindir) if clients.major >= needed]
    able = [clients for clients in found if clients.supports_compression(method)]
    if not found:
        find_clients(needed, need=need, bindir=dumper.bindir)  # says what is there and what to install
        raise RestoreError(f"no {program} of version {needed} or newer was found; install it.")
    if not able:
        raise RestoreError(
            f"the backup is compressed with {method}, and no {program} here can read that ({found[0]}); install another "
            f"build of PostgreSQL's client {needed} or newer."
        )

    def rank(clients: Clients) -> tuple[bool, bool, int]:
        return clients.origin != VARIABLE, clients.major < server.major, abs(clients.major - server.major)

    return min(able, key=rank)  # of equals the first found


def _leading(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0
