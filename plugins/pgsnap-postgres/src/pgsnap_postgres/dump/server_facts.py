"""Reads what the manifest says about a database: which it is, which server, which extensions, how much.

It is read inside the snapshot. Nothing here names a host, a user or a table.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pgsnap import Facts
from pgsnap_postgres.options import DumpOptions

if TYPE_CHECKING:
    from pgsnap_postgres.clients import Clients
    from pgsnap_postgres.connection.connect import Connection
    from pgsnap_postgres.dump.snapshot import Held
    from pgsnap_postgres.dump.tables import Table

__all__ = ["read_facts", "read_identity", "unencrypted_secrets"]


def _row(connection: Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row


def read_identity(connection: Connection) -> dict[str, Any]:
    """Return what tells this database from another; ``system_identifier`` is None where the role may not read it."""
    oid, encoding, collate, ctype, may = _row(
        connection,
        "SELECT d.oid, pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, "
        "pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') "
        "FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
    )
    number = _row(connection, "SELECT system_identifier FROM pg_catalog.pg_control_system()")[0] if may else None
    return {
        "system_identifier": None if number is None else str(number),
        "database_oid": oid,
        "encoding": encoding,
        "collate": collate,
        "ctype": ctype,
    }


def unencrypted_secrets(connection: Connection) -> str:
    """Return ``2 user mappings and 1 subscription`` as far as a dump holds such things, or an empty string."""
    mappings, subscriptions = _row(
        connection,
        "SELECT (SELECT count(*) FROM pg_catalog.pg_user_mappings), (SELECT count(*) FROM pg_catalog.pg_subscription s "
        "JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = pg_catalog.current_database())",
    )
    counts = {"user mapping": mappings, "subscription": subscriptions}
    return " and ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count)


def estimate_rows(connection: Connection, tables: Collection[Table]) -> int | None:
    """Return how many rows the tables had at their last VACUUM or ANALYZE, or None if one of them has seen neither, or if by the
    server's counters they have more than twice as many by now, as after a reload.

    It is what the planner believes (``pg_class.reltuples``, -1: never looked), and costs no reading of the tables. The counters
    alone would not do: they are lost in a crash, and what a session has loaded before its own ANALYZE they may count twice.
    """
    oids = [table.oid for table in tables if table.kind == "r"]
    query = (
        "SELECT CASE WHEN bool_and(reltuples >= 0) "
        "AND sum(greatest(reltuples, pg_catalog.pg_stat_get_live_tuples(oid))) <= 2 * sum(reltuples) "
        "THEN sum(reltuples)::bigint END FROM pg_catalog.pg_class WHERE oid = ANY(%s)"
    )
    row = connection.execute(query.encode(), [oids]).fetchone()
    return None if row is None else row[0]


def read_facts(held: Held, options: DumpOptions, clients: Clients, compression: str) -> Facts:
    """Return the facts that are known before pg_dump starts."""
    connection = held.connection
    version, number, standby = _row(
        connection,
        "SELECT pg_catalog.split_part(pg_catalog.current_setting('server_version'), ' ', 1), "
        "pg_catalog.current_setting('server_version_num')::int, "
        "pg_catalog.pg_is_in_recovery()",
    )
    size, large, foreign = _row(
        connection,
        "SELECT pg_catalog.pg_database_size(pg_catalog.current_database()), "
        "(SELECT count(*) FROM pg_catalog.pg_largeobject_metadata), "
        "(SELECT count(*) FROM pg_catalog.pg_class WHERE relkind = 'f')",
    )
    extensions = connection.execute("SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY extname").fetchall()
    notes = []
    chosen = options.schemas or options.tables
    if chosen or options.exclude_schemas or options.exclude_tables or options.exclude_table_data:
        notes.append("The options of the pipeline leave a part of the database out of this backup.")
    if foreign:
        notes.append(f"The rows of {foreign} foreign tables are on other servers and not in this backup.")
    if large and not options.large_objects:
        notes.append(f"{large} large objects are left out by the options of the pipeline.")
    if not held.run.encrypted and (kinds := unencrypted_secrets(connection)):
        notes.append(f"The dump holds {kinds}, which may carry passwords, and nothing in the pipeline encrypts.")
    if standby:
        notes.append("The backup was taken from a standby; unlogged tables have no rows there.")
    totals = {"tables": sum(table.kind != "S" for table in held.tables), "database_size": size}
    if (rows := estimate_rows(connection, held.tables)) is not None:
        totals["rows"] = rows
    return {
        "format": options.format,
        "compression": compression,
        "identity": read_identity(connection),
        "server": {"version": version, "version_num": number},
        "client": {"version": clients.version, "major": clients.major},
        "extensions": [{"name": name, "version": extension} for name, extension in extensions],
        "totals": totals,
        "large_objects": large if options.large_objects and not chosen else 0,
        "notes": notes,
    }
