"""Real servers and sample databases for tests, as fixtures of pytest. A conftest.py takes them by

    pytest_plugins = ["pgsnap_postgres.testing"]

They need the extra ``testing``: two majors of PostgreSQL from wheels, no root and nothing installed on the system.

``server17``, ``server18``: one server of that major for the whole session. ``server``: each test runs once with each of them.
``make_db(server)``: the URL of a new, empty database, dropped after the test. ``make_shop(server)``: the same, filled with the
sample of ``testing_shop.sql``. ``shop_db``: such a shop on ``server``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from itertools import count
from typing import Protocol
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from psycopg import sql

from pgsnap_postgres.server import Server, throwaway_server

__all__ = [
    "SHOP_AUDITOR",
    "SHOP_OWNER",
    "SHOP_OWNER_PASSWORD",
    "SHOP_READER",
    "MakeDatabase",
    "database_name",
    "make_db",
    "make_shop",
    "server",
    "server17",
    "server18",
    "shop_db",
]

MAJORS = (17, 18)
SHOP_OWNER = "shop_owner"
"""A role that may log in, owns the shop and all in it, and is no superuser; it is a member of SHOP_AUDITOR."""
SHOP_OWNER_PASSWORD = "p@ss/wörd 'of' the owner"
SHOP_READER = "Reader's röle"
"""A role that cannot log in and has some privileges."""
SHOP_AUDITOR = "Audit $(x)"
"""A role that cannot log in and owns the schema ``audit``."""

_numbers = count(1)


class MakeDatabase(Protocol):
    """Makes a database on a server and returns the superuser's URL of it. The name is made up if none is given."""

    def __call__(self, server: Server, name: str | None = None) -> str: ...


def database_name(url: str) -> str:
    """Return the name of the database that a URL leads to."""
    return unquote(urlsplit(url).path[1:])


@pytest.fixture(scope="session")
def server17() -> Iterator[Server]:
    """A throwaway server of PostgreSQL 17, shared by all tests of the session."""
    with throwaway_server(major=17) as started:
        yield started


@pytest.fixture(scope="session")
def server18() -> Iterator[Server]:
    """A throwaway server of PostgreSQL 18, shared by all tests of the session; its pg_dump knows only gzip."""
    with throwaway_server(major=18) as started:
        yield started


@pytest.fixture(params=MAJORS, ids=lambda major: f"pg{major}", scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the servers in turn."""
    started: Server = request.getfixturevalue(f"server{request.param}")
    return started


@pytest.fixture
def make_db() -> Iterator[MakeDatabase]:
    """Make empty databases; they are dropped, with all their connections, after the test."""
    made: list[tuple[Server, str]] = []

    def make(server: Server, name: str | None = None) -> str:
        name = name or f"db{next(_numbers)}"
        with psycopg.connect(server.socket_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        made.append((server, name))
        return server.database_url(name)

    yield make
    for server, name in made:
        with psycopg.connect(server.socket_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def make_shop(make_db: MakeDatabase) -> MakeDatabase:
    """Make sample databases; the roles that they need are made once and stay on the server."""

    def make(server: Server, name: str | None = None) -> str:
        name = name or f'Shop {next(_numbers)} "ü" $(x)'
        url = make_db(server, name)
        with psycopg.connect(server.socket_url, autocommit=True) as connection:
            _make_roles(connection)
            for statement in SHOP_DATABASE:
                connection.execute(statement.format(db=sql.Identifier(name), comment=f"the shop's {name}"))
        with psycopg.connect(server.database_url(name, socket=True)) as connection:
            connection.execute((files("pgsnap_postgres") / "testing_shop.sql").read_bytes())
        return url

    return make


@pytest.fixture
def shop_db(server: Server, make_shop: MakeDatabase) -> str:
    """The superuser's URL of a new sample database on ``server``."""
    return make_shop(server)


SHOP_DATABASE = (
    sql.SQL("ALTER DATABASE {db} OWNER TO shop_owner"),
    sql.SQL("ALTER DATABASE {db} SET work_mem = '5MB'"),
    sql.SQL('ALTER DATABASE {db} SET search_path = public, "Sales & Co"'),
    sql.SQL("ALTER ROLE shop_owner IN DATABASE {db} SET statement_timeout = '15min'"),
    sql.SQL("COMMENT ON DATABASE {db} IS {comment}"),
    sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {db} FROM PUBLIC"),
    sql.SQL('GRANT CONNECT ON DATABASE {db} TO "Reader\'s röle"'),
)


def _make_roles(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [SHOP_OWNER]).fetchone() is None:
        owner, reader, auditor = map(sql.Identifier, (SHOP_OWNER, SHOP_READER, SHOP_AUDITOR))
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(auditor))
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(reader))
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(owner, SHOP_OWNER_PASSWORD, auditor))
        connection.execute(sql.SQL("ALTER ROLE {} SET lock_timeout = '1h'").format(owner))
        connection.execute(sql.SQL("COMMENT ON ROLE {} IS 'owns the shops'").format(owner))
