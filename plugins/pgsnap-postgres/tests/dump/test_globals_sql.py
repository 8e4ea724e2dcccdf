"""globals.sql: complete or known not to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pgsnap import DumpError, Run
from pgsnap.streams.process import Child
from pgsnap_postgres import PgDump
from pgsnap_postgres.archive.plaintext import check_plain
from pgsnap_postgres.dump.globals_sql import connection_argument, missing_roles
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase

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

    instead: ClassVar[Sequence[str]] = ("ls", "/no/such/folder")

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
    assert "The roles could not be read and are not in this backup." in dump.facts["notes"]
    with PgDump(url=url, globals="yes").dump(Refusing()) as dump, pytest.raises(DumpError, match="/no/such/folder"):
        b"".join(dump.artifacts[2].open())


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
