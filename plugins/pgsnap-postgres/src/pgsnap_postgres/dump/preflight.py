"""Looks, without changing anything, for what would make a dump fail or leave something out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgsnap import DumpError, Finding, PgsnapError, Run
from pgsnap_postgres.connection.connect import Names, connect, in_a_sentence
from pgsnap_postgres.connection.pooling import detect_pooling
from pgsnap_postgres.connection.sessions import Sessions, watch_sessions
from pgsnap_postgres.connection.url import Target, parse_url
from pgsnap_postgres.dump.dump import choose_clients, choose_compression
from pgsnap_postgres.dump.globals_sql import may_read_passwords
from pgsnap_postgres.dump.server_facts import unencrypted_secrets
from pgsnap_postgres.dump.tables import check_large_objects, list_tables
from pgsnap_postgres.options import DumpOptions

__all__ = ["preflight"]


def preflight(options: DumpOptions, run: Run) -> Sequence[Finding]:
    """Return the findings of ``DumpOptions.preflight``; what stops the look itself is a finding too."""
    if options.url is None:
        return [Finding("error", "database", "The dumper pg_dump has no url.", "Give the database's URL to back it up.")]
    try:
        target = parse_url(options.url)
    except PgsnapError as error:
        return [Finding("error", "database", _sentence(error))]
    found = [Finding("info", "database", note) for note in target.notes]
    try:
        with watch_sessions(target, Names.of(run).holder, options.role) as sessions, in_a_sentence(target, "to be looked at"):
            for finding in _looks(options, target, sessions, run):
                found.append(finding)  # one by one: what was found before an error is kept
    except PgsnapError as error:
        found.append(Finding("error", "database", _sentence(error)))
    return found


def _sentence(error: PgsnapError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]


def _looks(options: DumpOptions, target: Target, sessions: Sessions, run: Run) -> Iterator[Finding]:
    shown = str(sessions.rows("SELECT pg_catalog.current_setting('server_version')")[0][0])
    yield Finding("ok", "database", f"Connected to {target.describe()}, PostgreSQL {shown}.")
    yield from _clients(options, sessions.connection.info.server_version // 10000)
    yield from _pooler(target, sessions, run, options)
    yield from _tables(options, sessions)
    yield from _globals(options, sessions, run)
    if not run.encrypted and (kinds := unencrypted_secrets(sessions.connection)):
        text = f"The dump will hold {kinds}, which may carry passwords, and nothing in the pipeline encrypts."
        yield Finding("warning", "passwords", text, "Add an age transform.")


def _clients(options: DumpOptions, major: int) -> list[Finding]:
    try:
        clients = choose_clients(options, major)
    except PgsnapError as error:
        return [Finding("error", "pg_dump", _sentence(error))]
    found = [Finding("ok", "pg_dump", f"Found {clients}.")]
    if options.format == "custom" and str(choose_compression(options, clients)) == "none" != options.compress:
        text = f"This pg_dump cannot compress with {options.compress}; a transform of the pipeline does it."
        remedy = "Install a newer pg_dump, or add a zstd transform to the pipeline."
        found.append(Finding("info", "compress", text, remedy))
    return found


def _pooler(target: Target, sessions: Sessions, run: Run, options: DumpOptions) -> list[Finding]:
    with connect(target, application_name=Names.of(run).holder, role=options.role) as second:
        pooling = detect_pooling(second, sessions.connection)
    if pooling == "transaction":
        remedy = "Give the URL of the server itself, or of a pool in session mode."
        return [
            Finding("error", "pooler", f"{target.describe()} is a pooler in transaction mode; it cannot hold a snapshot.", remedy)
        ]
    if pooling == "session":
        return [Finding("info", "pooler", "The connection goes through a pooler in session mode, which works.")]
    return []


def _tables(options: DumpOptions, sessions: Sessions) -> list[Finding]:
    found = []
    role = sessions.rows("SELECT current_user")[0][0]
    tables = list_tables(sessions.connection, options)
    for table in [table for table in tables if table.lacks][:20]:
        remedy = f"GRANT it to {role}, or name the table in exclude_tables."
        if "row security" in table.lacks:
            remedy = f"ALTER ROLE {role} BYPASSRLS, dump as the owner, or name the table in exclude_table_data."
        found.append(Finding("error", "tables", f"The table {table.title}: the role {role} lacks {table.lacks}.", remedy))
    try:
        check_large_objects(sessions.connection, options, role)
    except DumpError as error:
        found.append(Finding("error", "large objects", _sentence(error)))
    count = sum(table.kind != "S" for table in tables)
    limit = int(
        sessions.rows(
            "SELECT current_setting('max_locks_per_transaction')::bigint "
            "* (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)"
        )[0][0]
    )
    if 4 * count > 3 * limit:  # a lock of the holder and pg_dump's on the same table share a place
        remedy = "Raise max_locks_per_transaction and restart the server."
        found.append(Finding("warning", "locks", f"The server has room for {limit} locks, and there are {count} tables.", remedy))
    elif not found:
        found.append(Finding("ok", "tables", f"The role {role} may read every table ({count})."))
    unlogged, foreign = sessions.rows(
        "SELECT count(*) FILTER (WHERE relpersistence = 'u' AND relkind = 'r'), count(*) FILTER (WHERE relkind = 'f') "
        "FROM pg_catalog.pg_class"
    )[0]
    if unlogged:
        text = f"{unlogged} unlogged tables are in the backup; a standby, or a server after a crash, has no rows in them."
        found.append(Finding("info", "tables", text))
    if foreign:
        found.append(Finding("info", "tables", f"The rows of {foreign} foreign tables are on other servers and not in a backup."))
    return found


def _globals(options: DumpOptions, sessions: Sessions, run: Run) -> list[Finding]:
    if options.globals == "no":
        return [Finding("info", "globals", "Roles and tablespaces are left out by the option globals.")]
    if not run.encrypted:
        text = "The passwords of roles are left out, because nothing in the pipeline encrypts."
        return [Finding("info", "globals", text, "Add an age transform to keep them.")]
    if not may_read_passwords(sessions):
        text = "The passwords of roles are left out, because this role may not read them."
        return [Finding("info", "globals", text, "Only a superuser may; set them anew after a restore.")]
    return []
