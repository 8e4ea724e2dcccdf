"""Connections carry a name of their run, and what is said about them holds no password."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap import DumpError, RestoreError, Run
from pgsnap_postgres.connection.connect import Names, connect, in_a_sentence, scrubbed
from pgsnap_postgres.connection.url import parse_url
from pgsnap_postgres.server import Server


@settings(deadline=None)
@given(pipeline=st.text(max_size=80), id=st.text(max_size=80))
def test_names_fit_into_the_server_and_tell_runs_apart(pipeline: str, id: str) -> None:
    """PostgreSQL cuts an application_name after 63 bytes and replaces what is not ASCII."""
    first, second = Names.of(Run(pipeline, id[:21])), Names.of(Run(pipeline, id[:21]))
    for name in (first.holder, first.dump):
        assert name.isascii()
        assert len(name) <= 63
    assert 4 == len({first.holder, first.dump, second.holder, second.dump})


@settings(deadline=None)
@given(password=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4, max_size=30))
def test_a_password_that_a_library_repeats_is_masked(password: str) -> None:
    target = parse_url(f"postgres://u:{quote(password, safe='')}@h/db", {})
    for said in (password, quote(password, safe="")):
        flat = " ".join(said.split())
        assert not flat or flat not in scrubbed(f"<<{said}>>", target).replace("***", "")


def test_a_session_has_its_name_and_no_timeouts(server: Server) -> None:
    target = parse_url(f"{server.url}?options=-c%20statement_timeout%3D1000%20-c%20idle_session_timeout%3D1000")
    with connect(target, application_name="pgsnap test") as connection:
        names = ("application_name", "statement_timeout", "idle_session_timeout", "transaction_timeout", "client_encoding")
        values = [connection.execute(f"SHOW {name}").fetchone() for name in names]
    assert [("pgsnap test",), ("0",), ("0",), ("0",), ("UTF8",)] == values


def test_an_error_is_of_the_kind_that_was_asked_for(server: Server) -> None:
    target = parse_url(server.url)
    with pytest.raises(RestoreError, match=r"cannot connect to nodb at .*; correct the database's name"):
        connect(target.with_dbname("nodb"), application_name="test", error=RestoreError)
    words = r"^postgres at .* refused to divide: division by zero\.$"
    with (
        connect(target, application_name="test") as connection,
        pytest.raises(DumpError, match=words),
        in_a_sentence(target, "to divide"),
    ):
        connection.execute("SELECT 1/0")
