"""Sessions: who waits for whom, told without superuser rights and after a lost connection."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from pgsnap_postgres.connection.sessions import reaching, watch_sessions
from pgsnap_postgres.connection.url import parse_url
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase, database_name


@pytest.mark.parametrize(
    ("waits", "goals", "expected"),
    [
        ({}, {1}, set()),
        ({2: {1}, 3: {2}, 4: {9}}, {1}, {2, 3}),
        ({1: {2}, 2: {1}}, {1}, {1, 2}),
        ({5: {4, 1}}, {1, 7}, {5}),
    ],
)
def test_waiting_is_followed_through_others(waits: dict[int, set[int]], goals: set[int], expected: set[int]) -> None:
    assert expected == reaching(waits, goals)


def test_a_plain_role_sees_who_waits_and_who_blocks_but_no_query(server: Server, make_db: MakeDatabase) -> None:
    url = make_db(server)
    with psycopg.connect(url, autocommit=True) as setup:
        setup.execute("DROP ROLE IF EXISTS looker")
        setup.execute("CREATE ROLE looker LOGIN PASSWORD 'l'; CREATE TABLE t (i int)")
        target = parse_url(server.database_url(database_name(url), user="looker", password="l"))
        with (
            psycopg.connect(url, application_name="batch job") as blocker,
            psycopg.connect(url, autocommit=True) as waiter,
            watch_sessions(target, "pgsnap looker") as sessions,
        ):
            blocker.execute("LOCK TABLE t")
            thread = threading.Thread(target=waiter.execute, args=("SELECT * FROM t",))
            thread.start()
            pid, blocking = waiter.info.backend_pid, blocker.info.backend_pid
            deadline = time.monotonic() + 20
            while pid not in sessions.waits() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert {pid: {blocking}} == sessions.waits()
            assert f"pid {blocking} (user postgres, application 'batch job')" == sessions.blockers(pid)
            assert "" == sessions.blockers(blocking)
            blocker.rollback()
            thread.join()
        setup.execute("DROP ROLE looker")


def test_a_prepared_transaction_is_named_as_what_it_is(server: Server) -> None:
    """It has no session: the server gives 0 for its pid."""
    with watch_sessions(parse_url(server.url), "pgsnap looker") as sessions:
        assert "a prepared transaction (see pg_prepared_xacts)" == sessions.describe([0])


def test_a_lost_connection_is_opened_anew(server: Server) -> None:
    with watch_sessions(parse_url(server.url), "pgsnap looker") as sessions:
        with psycopg.connect(server.url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [sessions.connection.info.backend_pid])
        assert 1 == len(sessions.pids("pgsnap looker"))


def test_only_sessions_of_the_name_are_ended(server: Server) -> None:
    with (
        psycopg.connect(server.url, application_name="pgsnap-dump x") as victim,
        psycopg.connect(server.url, application_name="pgsnap-dump y") as bystander,
        watch_sessions(parse_url(server.url), "pgsnap looker") as sessions,
    ):
        assert 1 == sessions.terminate("pgsnap-dump x")
        assert 0 == sessions.terminate("pgsnap looker")
        with pytest.raises(psycopg.OperationalError):
            victim.execute("SELECT 1")
        assert (1,) == bystander.execute("SELECT 1").fetchone()
