"""feed: what is cut out of scripts and messages. How processes are fed is tested by test_restore."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsnap import RestoreError
from pgsnap_postgres.restore.run_restore import explain, without_timeout_setting

HEAD = b"SET lock_timeout = 0;\nSET transaction_timeout = 0;\nSET client_encoding = 'UTF8';\n"
REST = b"COPY t FROM stdin;\n" + b"SET transaction_timeout = 0;\n" * 3000 + b"\\.\n"


@given(st.lists(st.integers(1, 100), max_size=40))
def test_the_setting_that_old_servers_lack_is_dropped_once(cuts: list[int]) -> None:
    """However the script is cut into chunks; rows of data that look like it stay."""
    script = HEAD + REST
    chunks, at = [], 0
    for cut in cuts:
        chunks.append(script[at : at + cut])
        at += cut
    chunks.append(script[at:])
    expected = HEAD.replace(b"SET transaction_timeout = 0;\n", b"") + REST
    assert expected == b"".join(without_timeout_setting(chunks))


def test_a_script_without_the_setting_is_unchanged() -> None:
    """A row of data far behind the head is not taken for it."""
    script = b"x" * 70_000 + b"\nSET transaction_timeout = 0;\n"
    assert script == b"".join(without_timeout_setting([script[:100], script[100:]]))
    assert b"" == b"".join(without_timeout_setting([]))


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ('ERROR:  role "app" does not exist', "create that role or restore with the globals"),
        ("psql:<stdin>:5: error: invalid command \\restrict", "this psql is older than the dump's"),
        ("ERROR:  must be owner of table t", "restore as a role that may do this, or leave owners and privileges out"),
        ('ERROR:  must be able to SET ROLE "app"', "leave owners and privileges out"),
        ("ERROR:  out of shared memory", "raise max_locks_per_transaction on the server"),
        ('ERROR:  could not extend file "base/5/1": No space left on device', "make room on the target's server"),
        ("pg_restore: error: unsupported version (1.16) in file header", "install the client of the backup's version"),
        ('ERROR:  extension "postgis" is not available', "install that extension on the target's server"),
    ],
)
def test_a_failure_says_the_next_step(said: str, hint: str) -> None:
    error = explain(RestoreError(f"pg_restore failed with exit status 1: {said}", ["pg_restore"], 1, said))
    assert hint in str(error)
    assert (("pg_restore",), 1, said) == (error.argv, error.status, error.stderr)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE USER MAPPING FOR app SERVER s OPTIONS (\n    password 'S3cr3t',\n    \"user\" 'x'\n);",
        "CREATE SUBSCRIPTION s CONNECTION 'host=x password=S3cr3t' PUBLICATION p;",
    ],
)
def test_a_statement_with_a_password_is_not_repeated(statement: str) -> None:
    said = f"pg_restore: error: could not execute query: ERROR:  no\nCommand was: {statement}\n\npg_restore: warning: more"
    error = explain(RestoreError(f"pg_restore failed: {said}", ["pg_restore"], 1, said))
    for text in (str(error), error.stderr):
        assert "S3cr3t" not in text
        assert "Command was: (left out: it may hold a password)\npg_restore: warning: more" in text


def test_another_statement_is_shown() -> None:
    said = "pg_restore: error: ERROR:  no\nCommand was: CREATE INDEX i ON t (n);"
    assert said in str(explain(RestoreError(said)))
