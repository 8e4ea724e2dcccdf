"""list_tables: what is locked is what pg_dump locks, whatever the patterns; what cannot be read is named before the dump."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from pgsnap import DumpError, Run
from pgsnap.streams.process import read_process
from pgsnap_postgres import PgDump
from pgsnap_postgres.archive.check import Toc, check_archive
from pgsnap_postgres.clients import find_clients
from pgsnap_postgres.connection.connect import connect
from pgsnap_postgres.connection.service import service_file
from pgsnap_postgres.connection.url import parse_url
from pgsnap_postgres.dump.dump import pg_dump_argv
from pgsnap_postgres.dump.tables import list_tables, pattern_regex
from pgsnap_postgres.options import Compression
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("Orders", ("^(orders)$",)),
        ('"Orders"', ("^(Orders)$",)),
        ("shop.ord*", ("^(shop)$", "^(ord.*)$")),
        ("a?", ("^(a.)$",)),
        ('"a.b*"."c""d"', (r"^(a\.b\*)$", '^(c"d)$')),
        ("a$b", (r"^(a\$b)$",)),
        ("(a|b)", ("^((a|b))$",)),
        ("x[]", (r"^(x\[])$",)),
    ],
)
def test_patterns_are_read_as_psql_reads_them(pattern: str, expected: tuple[str, ...]) -> None:
    assert expected == pattern_regex(pattern)


SCHEMA = """
CREATE SCHEMA "Sales & Co"; CREATE SCHEMA shop; CREATE SCHEMA hidden;
CREATE TABLE orders (i serial); CREATE TABLE "Orders" (i int); CREATE TABLE "a.b*" (i int); CREATE TABLE "q""d" (i int);
CREATE TABLE shop.orders (i int); CREATE TABLE shop.items (i int) PARTITION BY RANGE (i);
CREATE TABLE shop.items_1 PARTITION OF shop.items FOR VALUES FROM (0) TO (9);
CREATE TABLE "Sales & Co"."Order $(x)" (i int); CREATE TABLE hidden.child () INHERITS (orders);
CREATE UNLOGGED TABLE shop.u (i int);
CREATE VIEW shop.v AS SELECT 1; CREATE MATERIALIZED VIEW shop.m AS SELECT 1; CREATE TEMP TABLE temporary (i int);
CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE shop.f (i int) SERVER s;
"""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schemas": ("shop",)},
        {"schemas": ('"Sales & Co"', "s*")},
        {"exclude_schemas": ("shop", "h?dden")},
        {"tables": ("orders",)},
        {"tables": ('"Orders"', '"a.b*"', '"q""d"')},
        {"tables": ("shop.*",)},
        {"tables": ("*.orders", '"Sales & Co"."Order $(x)"'), "exclude_tables": ("shop.orders",)},
        {"exclude_tables": ("*",)},
        {"exclude_tables": ("shop.i*", "*.o*")},
        {"exclude_table_data": ("orders",)},
    ],
    ids=str,
)
def test_the_tables_listed_are_those_that_pg_dump_dumps(server: Server, make_db: MakeDatabase, options: dict[str, Any]) -> None:
    url = make_db(server)
    with psycopg.connect(url, autocommit=True) as setup:
        setup.execute(SCHEMA)
        dumper = PgDump(url=url, **options)
        target = parse_url(url)
        with connect(target, application_name="test") as connection:
            listed = {(t.schema, t.name) for t in list_tables(connection, dumper) if t.kind != "S"}
        clients = find_clients(server.major, need=["pg_dump"], bindir=server.bindir)
        argv = [a for a in pg_dump_argv(dumper, clients, Compression("none"), "x") if not a.startswith("--snapshot")]
        tocs: list[Toc] = []
        with service_file(target) as service:
            source = read_process([*argv, "--schema-only"], env=service.env, pass_fds=service.pass_fds)
            for _ in check_archive(source, tocs.append):
                pass
    dumped = {(e.namespace, e.tag) for e in tocs[0].entries if e.desc == "TABLE"}
    assert listed == dumped


ROLE = "reads_nothing"


def test_a_table_that_may_not_be_read_is_named_before_the_dump(server: Server, make_db: MakeDatabase) -> None:
    """A plain role is the normal case; what it lacks is one sentence, for a table, its schema, a sequence, and row security."""
    url = make_db(server)
    plain = url_of(url, server)
    with psycopg.connect(url, autocommit=True) as setup:
        setup.execute(f"DROP ROLE IF EXISTS {ROLE}")
        setup.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'reads'")
        try:
            setup.execute("CREATE TABLE fine (i int); CREATE TABLE secret (i int); CREATE TABLE more (i int)")
            setup.execute(f"GRANT SELECT ON fine TO {ROLE}")
            _refused(
                plain, rf"'{ROLE}' has no permission to read the table public.secret \(and 1 more\): it lacks SELECT on it; GRANT"
            )
            setup.execute("DROP TABLE more; CREATE SCHEMA closed; ALTER TABLE secret SET SCHEMA closed")
            setup.execute(f"GRANT SELECT ON closed.secret TO {ROLE}")
            _refused(plain, "table closed.secret: it lacks USAGE on its schema")
            setup.execute("DROP TABLE closed.secret; CREATE SEQUENCE numbers")
            _refused(plain, "sequence public.numbers: it lacks SELECT on it")
            setup.execute("DROP SEQUENCE numbers; ALTER TABLE fine ENABLE ROW LEVEL SECURITY")
            _refused(plain, f"row security hides rows of the table public.fine from the role '{ROLE}'; give it BYPASSRLS")
            findings = PgDump(url=plain).preflight(Run())
            assert any(f.level == "error" and "public.fine" in f.text and "BYPASSRLS" in f.remedy for f in findings)
            setup.execute("ALTER TABLE fine DISABLE ROW LEVEL SECURITY; SELECT lo_create(4711)")
            _refused(plain, "no permission to read 1 large objects, such as 4711; GRANT SELECT ON LARGE OBJECT")
            assert any("4711" in finding.text for finding in PgDump(url=plain).preflight(Run()))
            setup.execute(f"GRANT SELECT ON LARGE OBJECT 4711 TO {ROLE}")
            with PgDump(url=plain).dump(Run()) as dump:
                assert [b"PGDMP"] == [chunk[:5] for chunk in [b"".join(dump.artifacts[0].open())]]
        finally:
            setup.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


def url_of(url: str, server: Server) -> str:
    """The same database as the plain role."""
    return re.sub(r"//[^@]*@", f"//{ROLE}:reads@", url)


def _refused(url: str, words: str) -> None:
    with pytest.raises(DumpError, match=words), PgDump(url=url).dump(Run()):
        pass
