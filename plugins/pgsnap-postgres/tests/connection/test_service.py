"""service_file: children connect without a word on their command line."""

from __future__ import annotations

import os

import pytest

from pgsnap.streams.process import read_process
from pgsnap_postgres.clients import find_clients
from pgsnap_postgres.connection.service import SERVICE, service_file
from pgsnap_postgres.connection.url import parse_url
from pgsnap_postgres.dump.globals_sql import connection_argument
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase

NAMES = [
    "a'b",
    " leading",
    "trailing ",
    "$(touch x)",
    "a=b",
    "host=evil dbname=x",
    'q"d\\b',
    "ünï",
    "new\nline",
    "postgres://x/y",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_client_reaches_a_database_of_any_name(server18: Server, make_db: MakeDatabase, name: str) -> None:
    target = parse_url(make_db(server18, name))
    clients = find_clients(18, need=["psql", "pg_dump", "pg_dumpall"], bindir=server18.bindir)
    with service_file(target, application_name="pgsnap test") as service:

        def run(*argv: str) -> str:
            return b"".join(read_process(argv, env=service.env, pass_fds=service.pass_fds)).decode()

        asked = "select current_database() || current_setting('application_name')"
        assert f"{name}pgsnap test\n" == run(clients.psql, "-X", "-d", SERVICE, "-Atc", asked)
        assert "PostgreSQL database dump complete" in run(clients.pg_dump, "-d", SERVICE, "--schema-only")
        assert "CREATE ROLE" in run(clients.pg_dumpall, "-d", SERVICE, "-l", connection_argument(name), "--globals-only")


def test_only_this_user_can_read_it_and_it_is_gone_afterwards() -> None:
    with service_file(parse_url("postgres://u:S3cr3t@h/db", {})) as service:
        path = service.env["PGSERVICEFILE"]
        assert 0 == os.stat(path).st_mode & 0o077
        with open(path) as file:
            assert "password=S3cr3t" in file.read()
        assert "S3cr3t" not in repr(service)
    assert not os.path.exists(path)


def test_without_memory_files_it_is_a_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with service_file(parse_url("postgres://u:S3cr3t@h/db", {})) as service:
        path = service.env["PGSERVICEFILE"]
        assert () == service.pass_fds
        assert 0 == os.stat(path).st_mode & 0o077
    assert not os.path.exists(path)


def test_what_no_line_can_hold_goes_by_the_environment() -> None:
    target = parse_url("postgres://u:two%0Alines@h/db", {})
    with service_file(target) as service, open(service.env["PGSERVICEFILE"]) as file:
        assert "two\nlines" == service.env["PGPASSWORD"]
        assert "lines" not in file.read()
