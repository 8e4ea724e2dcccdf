"""globals.sql: complete or known not to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg import sql

from pgsnap import DumpError, Run
from pgsnap.streams.process import Child
from pgsnap_postgres import PgDump
from pgsnap_postgres.archive.plaintext import check_plain
from pgsnap_postgres.dump.globals_sql import connection_argument, missing_roles
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase, database_name
from waiting import wait_for

TEXT = 'CREATE ROLE app;\nALTER ROLE app WITH LOGIN;\nCREATE ROLE "The ""Boss""";\n-- CREATE ROLE ghost;\n'


def test_roles_that_the_dump_names_and_the_globals_lack_are_found() -> None:
    assert ["ghost", "other"] == missing_roles(TEXT, ["app", 'The "Boss"', "ghost", "other", "pg_monitor", ""])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("shop", "shop"), ("two words", "two words"), ("a=b", "dbname='a=b'"), ("o'x=\\", "dbname='o\\'x=\\\\'")],
)
def test_a_name_that_looks_like_a_connection_string_is_wrapped(name: str, expected: str) -> None:
    assert expected == connection_argument(name)


class Refusing(Run):
    """Starts something that fails wherever pg_dumpall is asked for, as a hosted server without rights on its roles does."""

    instead: ClassVar[Sequence[str]] = (
        "sh", "-c", "echo 'pg_dumpall: error: query failed: ERROR:  permission denied for table pg_roles' >&2; exit 1",
    )  # fmt: skip

    def spawn(self, argv: Sequence[str], **given: Any) -> Child:
        if Path(argv[0]).name == "pg_dumpall":
            argv = self.instead
        return super().spawn(argv, **given)


def test_globals_that_cannot_be_read_are_noted_or_an_error(server18: Server, make_db: MakeDatabase) -> None:
    """``auto`` goes on with a text that says so, ``yes`` does not."""
    url = make_db(server18)
    with PgDump(url=url).dump(Refusing()) as dump:
        texts = [b"".join(artifact.open()) for artifact in dump.artifacts]
    assert b"-- The globals are not here" in texts[2]
    assert {"passwords": False, "complete": False} == dump.facts["globals"]
    assert "The roles may not be read and are not in this backup." in dump.facts["notes"]
    assert 0 == dump.facts["totals"]["roles"]
    with PgDump(url=url, globals="yes").dump(Refusing()) as dump, pytest.raises(DumpError, match="permission denied"):
        b"".join(dump.artifacts[2].open())


class Listening(Run):
    """Keeps what was started."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Child] = []

    def spawn(self, argv: Sequence[str], **given: Any) -> Child:
        self.started.append(super().spawn(argv, **given))
        return self.started[-1]

    @property
    def pg_dumpall(self) -> Child:
        """The one pg_dumpall of the run."""
        [child] = [child for child in self.started if Path(child.argv[0]).name == "pg_dumpall"]
        return child


class Failing(Refusing):
    """Fails for a reason that is no lack of rights."""

    instead: ClassVar[Sequence[str]] = (
        "sh", "-c", "echo 'pg_dumpall: error: query failed: ERROR:  canceling statement due to statement timeout' >&2; exit 1",
    )  # fmt: skip


def test_any_other_failure_ends_the_backup(server18: Server, make_db: MakeDatabase) -> None:
    """A backup that lost its roles to a timeout or a broken connection would look good for a year."""
    with PgDump(url=make_db(server18)).dump(Failing()) as dump, pytest.raises(DumpError, match="statement timeout"):
        b"".join(dump.artifacts[2].open())


@pytest.mark.parametrize("where", ["role", "database", "url"])
def test_a_timeout_does_not_lose_the_roles(server18: Server, make_db: MakeDatabase, where: str) -> None:
    """pg_dumpall does not switch timeouts off by itself, as pg_dump does."""
    url = make_db(server18)
    name = database_name(url)
    hurried = server18.database_url(name, user="hurried", password="h")
    with psycopg.connect(url, autocommit=True) as setup:
        setup.execute("DROP ROLE IF EXISTS hurried")
        setup.execute("CREATE ROLE hurried LOGIN SUPERUSER PASSWORD 'h'")
        try:
            if where == "role":
                setup.execute(
                    "ALTER ROLE hurried SET statement_timeout = '900ms'; ALTER ROLE hurried SET idle_session_timeout = '9s'"
                )
            elif where == "database":
                setup.execute(sql.SQL("ALTER DATABASE {} SET statement_timeout = '900ms'").format(sql.Identifier(name)))
            else:
                hurried += "?options=-c%20statement_timeout%3D900%20-c%20work_mem%3D1MB"
            run = Listening()
            with PgDump(url=hurried).dump(run) as dump:
                texts = [b"".join(artifact.open()) for artifact in dump.artifacts]
        finally:
            setup.execute("DROP ROLE hurried")
    connection = run.pg_dumpall.argv[2]
    assert "-c statement_timeout=0" in connection
    assert (where == "url") == ("work_mem=1MB" in connection)
    assert b"CREATE ROLE hurried;" in texts[2]
    assert dump.facts["totals"]["roles"] >= 2


def test_pg_dumpall_has_left_before_the_dump_is_read(server18: Server, make_db: MakeDatabase) -> None:
    """It does not sit in its session behind a full pipe while the main dump flows for hours."""
    url = make_db(server18)
    with psycopg.connect(url, autocommit=True) as looker:
        for number in range(300):  # more than a pipe holds
            looker.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(f"pgsnap_many_{number}")))
            looker.execute(
                sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(f"pgsnap_many_{number}"), sql.Literal("x" * 9000))
            )
        try:
            run = Listening()
            with PgDump(url=url).dump(run) as dump:
                wait_for(lambda: run.pg_dumpall.process.poll() is not None, "pg_dumpall to end though nobody reads")
                texts = [b"".join(artifact.open()) for artifact in dump.artifacts]
            assert len(texts[2]) > 2_000_000
        finally:
            for number in range(300):
                looker.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(f"pgsnap_many_{number}")))


class CutShort(Refusing):
    """Succeeds, and says half of it."""

    instead: ClassVar[Sequence[str]] = ("printf", "--\\n-- PostgreSQL database cluster dump\\n--\\n\\nCREATE ROLE app;\\n")


def test_globals_that_are_cut_short_are_an_error(server18: Server, make_db: MakeDatabase) -> None:
    """A lack of rights is the server's to decide; half a text with exit status 0 is damage, and ends the backup."""
    with (
        PgDump(url=make_db(server18)).dump(CutShort()) as dump,
        pytest.raises(DumpError, match="not whole"),
    ):
        b"".join(dump.artifacts[2].open())


def test_the_text_is_checked_to_be_whole(server18: Server, make_db: MakeDatabase) -> None:
    with PgDump(url=make_db(server18)).dump(Run()) as dump:
        text = b"".join(dump.artifacts[2].open())
    assert text == b"".join(check_plain([text]))
    with pytest.raises(DumpError):
        b"".join(check_plain([text[:-30]]))
