"""globals_apply: what is missing is created, what is there stays, what is refused is said."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgsnap import RestoreError
from pgsnap_postgres.connection.connect import connect
from pgsnap_postgres.connection.url import parse_url
from pgsnap_postgres.restore.globals_apply import apply_globals, read_globals, undo
from pgsnap_postgres.server import Server, throwaway_server

VERIFIER = (
    "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$"
    + "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=:YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI="
)
SCRIPT = r"""
\restrict abc
SET default_transaction_read_only = off;
CREATE ROLE "App ""x"" ü;";
ALTER ROLE "App ""x"" ü;" WITH NOSUPERUSER INHERIT NOCREATEROLE CREATEDB LOGIN
 NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 5
 PASSWORD 'VERIFIER' VALID UNTIL '2031-01-01 00:00:00+00';
COMMENT ON ROLE "App ""x"" ü;" IS E'it''s; x\\y';
CREATE ROLE boss;
ALTER ROLE boss WITH SUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION BYPASSRLS;
CREATE ROLE grp;
ALTER ROLE grp WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;
CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER INHERIT CREATEROLE CREATEDB NOLOGIN REPLICATION BYPASSRLS PASSWORD 'changed';
ALTER ROLE boss SET work_mem TO '7MB';
GRANT grp TO "App ""x"" ü;" WITH ADMIN OPTION, INHERIT TRUE GRANTED BY somebody;
GRANT pg_monitor TO postgres;
CREATE TABLESPACE far OWNER boss LOCATION '/there-is-no-such-folder/far';
\unrestrict abc
""".replace("VERIFIER", VERIFIER).encode()
APP = 'App "x" ü;'


@pytest.fixture(params=[17, 18], scope="module")
def started(request: pytest.FixtureRequest) -> Iterator[Server]:
    with throwaway_server(major=request.param) as server:
        yield server


@pytest.fixture
def empty(started: Server) -> Iterator[Server]:
    """A server with no role but postgres."""
    yield started
    with psycopg.connect(started.socket_url, autocommit=True) as connection:
        for (role,) in connection.execute("SELECT rolname FROM pg_roles WHERE oid >= 16384").fetchall():
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def roles(server: Server) -> list[Any]:
    with psycopg.connect(server.socket_url) as connection:
        return connection.execute(
            "SELECT rolname, rolsuper, rolcreatedb, rolcanlogin, rolbypassrls, rolconnlimit, rolpassword, rolvaliduntil IS NULL, "
            "shobj_description(oid, 'pg_authid') FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY rolname"
        ).fetchall()


def test_missing_roles_are_created_as_they_were(empty: Server) -> None:
    """Twice gives the same; the role that exists keeps its login and its password."""
    before = roles(empty)
    with connect(parse_url(empty.socket_url), application_name="test") as connection:
        applied = apply_globals(connection, read_globals(SCRIPT))
        assert ((APP, "boss", "grp"), ("postgres",)) == (applied.created, applied.left_alone)
        assert 1 == len(applied.refused)
        assert applied.refused[0].startswith("tablespace 'far': directory")
        after = roles(empty)
        assert before[0] in after
        assert (APP, False, True, True, False, 5, VERIFIER, False, r"it's; x\y") in after
        assert ("boss", True, False, True, True, -1, None, True, None) in after
        member = "SELECT admin_option FROM pg_auth_members WHERE member = %s::regrole"
        assert [(True,)] == connection.execute(member, [f'"{APP}"'.replace('"x"', '""x""')]).fetchall()
        assert [] == connection.execute(member, ["postgres"]).fetchall()
        again = apply_globals(connection, read_globals(SCRIPT))
        assert ((), (APP, "boss", "grp", "postgres")) == (again.created, again.left_alone)
        assert after == roles(empty)
        assert [] == undo(connection, applied)
        assert before == roles(empty)


def test_a_role_with_createrole_brings_what_it_may(empty: Server) -> None:
    """SUPERUSER and BYPASSRLS are refused and said; the rest of the role comes, and the creator is a member."""
    with psycopg.connect(empty.socket_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE maker LOGIN CREATEROLE CREATEDB")
    url = empty.database_url("postgres", user="maker", socket=True)
    with connect(parse_url(url), application_name="test") as connection:
        applied = apply_globals(connection, read_globals(SCRIPT))
        assert (APP, "boss", "grp") == applied.created
        said = "\n".join(applied.refused)
        assert "role 'boss', SUPERUSER: permission denied" in said
        assert "role 'boss', BYPASSRLS: permission denied" in said
        assert "S3cr3t" not in said
        assert "SCRAM" not in said
        assert ("boss", False, False, True, False, -1, None, True, None) in roles(empty)
        assert (APP, False, True, True, False, 5) == next(row for row in roles(empty) if row[0] == APP)[:6]
        may = connection.execute(
            "SELECT bool_and(pg_has_role(oid, 'SET')) FROM pg_roles WHERE rolname = ANY (%s)", [[APP, "grp"]]
        )
        assert (True,) == may.fetchone()
        assert [] == undo(connection, applied)


def test_what_is_in_use_stays_and_is_said(empty: Server) -> None:
    with connect(parse_url(empty.socket_url), application_name="test") as connection:
        applied = apply_globals(connection, read_globals(b"CREATE ROLE used; CREATE ROLE free;"))
        connection.execute("CREATE TABLE of_used (); ALTER TABLE of_used OWNER TO used")
        left = undo(connection, applied)
        assert ["role 'used' stays: role \"used\" cannot be dropped because some objects depend on it"] == left
        assert ["postgres", "used"] == [row[0] for row in roles(empty)]


def test_a_tablespace_comes_where_its_folder_is(empty: Server) -> None:
    folder = empty.socket_directory / "space"
    script = f"CREATE TABLESPACE near OWNER postgres LOCATION '{folder}'; ALTER TABLESPACE near SET (random_page_cost=2);"
    with connect(parse_url(empty.socket_url), application_name="test") as connection:
        _make_folder(empty, folder)
        applied = apply_globals(connection, read_globals(script.encode()))
        assert (("near",), ()) == (applied.tablespaces, applied.refused)
        options = connection.execute("SELECT spcoptions FROM pg_tablespace WHERE spcname = 'near'").fetchone()
        assert (["random_page_cost=2"],) == options
        assert [] == undo(connection, applied)


def _make_folder(server: Server, folder: Path) -> None:
    """Have the server's own user make it."""
    with psycopg.connect(server.socket_url) as connection:
        connection.execute(sql.SQL("COPY (SELECT 1) TO PROGRAM {}").format(f"mkdir {shlex.quote(str(folder))}"))


def test_what_pg_dumpall_writes_is_understood(empty: Server) -> None:
    """Of the server's own version: nothing is of an unknown kind."""
    with psycopg.connect(empty.socket_url, autocommit=True) as connection:
        connection.execute(
            "CREATE ROLE a; CREATE ROLE b IN ROLE a; GRANT SET ON PARAMETER work_mem TO a; ALTER ROLE a SET role = 'b'"
        )
    said = subprocess.run([f"{empty.bindir}/pg_dumpall", "-g", "-d", empty.socket_url], check=True, stdout=subprocess.PIPE).stdout
    found = read_globals(said)
    assert (("a", "b", "postgres"), 0) == (found.roles, found.unknown)
    assert frozenset({"postgres"}) - {"postgres"} == found.login_without_password
    with connect(parse_url(empty.socket_url), application_name="test") as connection:
        before = roles(empty)
        connection.execute("DROP OWNED BY a; DROP ROLE a; DROP ROLE b")
        assert () == apply_globals(connection, found).refused
        assert before == roles(empty)


def test_an_unreadable_script_is_an_error_without_its_text() -> None:
    for script in (b"CREATE ROLE x; ALTER ROLE x WITH PASSWORD 'S3cr3t", b"CREATE ROLE x\xff 'S3cr3t'"):
        with pytest.raises(RestoreError, match=r"globals\.sql cannot be read: .*; restore without it") as caught:
            read_globals(script)
        assert "S3cr3t" not in str(caught.value)
