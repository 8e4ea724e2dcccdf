"""The sample shop holds what the tests rely on, and the plain role that owns it can dump it whole."""

from __future__ import annotations

from pathlib import Path

import psycopg

from pgsnap.streams import drain
from pgsnap.streams.process import read_process
from pgsnap_postgres.clients import find_clients
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import SHOP_OWNER, SHOP_OWNER_PASSWORD, MakeDatabase, database_name

COUNTS = """
    SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM "Sales & Co"."Products"), (SELECT count(*) FROM ONLY log),
        (SELECT count(*) FROM t t WHERE t.t IS NULL), (SELECT count(*) FROM pg_largeobject_metadata),
        (SELECT last_value FROM "Invoice No"), (SELECT count(*) > 10 FROM turnover),
        (SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension)
"""
COUNTED = (2500, 200, 2, 1, 3, 1707, True, "citext hstore pg_trgm plpgsql")


def test_shop_has_rows_and_objects_of_all_kinds(shop_db: str) -> None:
    """Some thousand rows, large objects, extensions, a partitioned table, a materialized view that is filled."""
    with psycopg.connect(shop_db) as connection:
        assert COUNTED == connection.execute(COUNTS).fetchone()
        kinds = connection.execute(
            "SELECT string_agg(DISTINCT relkind::text, '' ORDER BY relkind::text) FROM pg_class WHERE relowner = %s::regrole",
            [SHOP_OWNER],
        ).fetchone()
        assert ("IScimprtv",) == kinds


def test_owner_who_is_no_superuser_can_dump_and_restore_the_shop(
    server: Server, shop_db: str, make_db: MakeDatabase, tmp_path: Path
) -> None:
    """The shop is a fair sample of a hosted database: its owner's own rights are enough for all of it."""
    owner = {"PGUSER": SHOP_OWNER, "PGPASSWORD": SHOP_OWNER_PASSWORD, "PGHOST": "127.0.0.1", "PGPORT": str(server.port)}
    clients = find_clients(server.major, need=("pg_dump", "pg_restore"), bindir=server.bindir)
    archive, copy = tmp_path / "shop.dump", make_db(server)
    with psycopg.connect(copy) as connection:
        connection.execute(f"ALTER DATABASE {database_name(copy)} OWNER TO {SHOP_OWNER}")
    environment = {**owner, "PGDATABASE": database_name(shop_db)}
    drain(read_process([clients.pg_dump, "-Fc", f"--file={archive}"], env=environment))
    drain(read_process([clients.pg_restore, "-e", f"--dbname={database_name(copy)}", str(archive)], env=owner))
    with psycopg.connect(copy) as connection:
        connection.execute("SET search_path = public")
        assert COUNTED == connection.execute(COUNTS).fetchone()


def test_databases_are_empty_and_dropped_after_the_test(server17: Server, make_db: MakeDatabase) -> None:
    """A name of any kind is made; two databases never share one."""
    first, second, odd = make_db(server17), make_db(server17), make_db(server17, 'a"b/c d%')
    assert database_name(first) != database_name(second)
    assert 'a"b/c d%' == database_name(odd)
    with psycopg.connect(odd) as connection:
        assert ('a"b/c d%', 0) == connection.execute(
            "SELECT current_database(), count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone()
