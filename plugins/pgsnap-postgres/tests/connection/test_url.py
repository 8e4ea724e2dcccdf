"""parse_url: what applications have in DATABASE_URL is read, and no error ever shows a part of it."""

from __future__ import annotations

import pickle
import traceback
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap import ConfigError, Secret
from pgsnap_postgres.connection.url import parse_url

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


@settings(deadline=None)
@given(user=TEXT, password=TEXT, dbname=TEXT)
def test_encoded_parts_come_back_whole(user: str, password: str, dbname: str) -> None:
    """Whatever a user, a password or a database is called, its percent-encoded form is understood."""
    user_, password_, dbname_ = (quote(part, safe="") for part in (user, password, dbname))
    target = parse_url(Secret(f"postgresql://{user_}:{password_}@db.example.com:6543/{dbname_}"), {})
    assert (user, password, dbname) == (target.user, target.password.reveal(), target.dbname)
    assert ("db.example.com", "6543") == (target.host, target.port)
    assert {"host", "port", "user", "password", "dbname"} <= set(target.conninfo())


CANARY = "S3cr3tCanary"


@settings(deadline=None)
@given(
    before=st.text("ab:/@?#[]%& '\"\t=+,\\", max_size=6),
    within=st.text(":/@?#[]%& '\"=+,;\\\n\x00é", max_size=4),
    tail=st.text("ab:/@?#[]%&=,0 '", max_size=12),
    scheme=st.sampled_from(
        ["postgresql://", "postgres://", "postgresql+asyncpg://", "mysql://", "", " postgres://", "'postgres://"]
    ),
)
def test_no_error_and_no_description_shows_the_password(before: str, within: str, tail: str, scheme: str) -> None:
    """However a URL is damaged, neither the error nor anything that is shown of a target holds either half of the password."""
    left, right = "LeftCanary", "RightCanary"
    url = f"{scheme}{before}app:{left}{within}{right}@h/{tail}"
    try:
        target = parse_url(url, {})
    except ConfigError as error:
        shown = [*traceback.format_exception(error)[1:], repr(error), repr(error.problems)]
    else:
        whole = left + within + right in target.password.reveal()
        shown = [repr(target), target.describe(), str(target), *target.notes] if whole else []
    assert [] == [text for text in shown if (left in text or right in text) and "File " not in text]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{CANARY}/x@h/db",
        f"postgresql://u:{CANARY}?x@h/db",
        f"postgresql://u:{CANARY}#x@h/db",
        f"postgresql://u:123?{CANARY}=x@h/db",
        f"postgresql://u:{CANARY}",
        f"postgresql://u:{CANARY}@h:port/db",
        f"postgresql://u:{CANARY}@h:99999/db",
        f"postgresql://u:{CANARY}%zz@h/db",
        f"postgresql://u:{CANARY}%00@h/db",
        f"postgresql://u:{CANARY}%ff@h/db",
        f"postgresql://u:{CANARY} @h/db",
        f"postgresql://u:{CANARY}@h/db?service=x",
        f"postgresql://u:{CANARY}@h/db?sslmod=require",
        f"postgresql://u:{CANARY}@h/db/other",
        f"mysql://u:{CANARY}@h/db",
        f"host=h password={CANARY}",
        f"{CANARY}://u@h/db",
        f"postgresql+{CANARY}!://u@h/db",
        CANARY,
        "",
        "   ",
    ],
)
def test_what_cannot_be_read_is_refused_with_the_next_step(url: str) -> None:
    """Each is one sentence that says what to write, without the password."""
    with pytest.raises(ConfigError, match=r"write|correct|did you mean|not allow") as caught:
        parse_url(url, {})
    assert CANARY not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_drivers_and_foreign_parameters_are_dropped_with_a_note() -> None:
    target = parse_url("postgresql+asyncpg://u:p@h/db?pgbouncer=true&schema=x&sslmode=require&connection_limit=5", {})
    assert {"sslmode": "require"} == dict(target.params)
    assert 2 == len(target.notes)
    assert "connection_limit, pgbouncer, schema" in target.notes[1]


def test_quotes_and_blanks_around_are_dropped() -> None:
    for url in ('"postgres://u@h/db"', "'postgres://u@h/db'", " postgres://u@h/db\n"):
        target = parse_url(url, {})
        assert ("h", "db", 1) == (target.host, target.dbname, len(target.notes))


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("sslmode=verify-full&ssl=true", "verify-full"),
        ("ssl=true&sslmode=verify-full", "verify-full"),
        ("sslmode=verify-full&ssl=false", "verify-full"),
        ("ssl=0&sslmode=verify-ca", "verify-ca"),
        ("ssl=no-verify&sslmode=prefer", "require"),
        ("sslmode=verify-full&sslmode=disable", "verify-full"),
        ("sslmode=disable&ssl=1", "require"),
    ],
)
def test_of_two_modes_of_tls_the_stricter_one_counts(query: str, mode: str) -> None:
    """Whatever their order: a certificate that somebody wants verified is verified, and a note says so."""
    target = parse_url(f"postgresql://u@h/db?{query}", {})
    assert mode == target.params["sslmode"]
    assert any(f"the strictest, {mode}, is used" in note for note in target.notes)


@pytest.mark.parametrize(
    ("query", "variable", "mode"),
    [
        ("ssl=true", "verify-full", "verify-full"),
        ("ssl=false", "require", "require"),
        ("ssl=verify-full", "require", "verify-full"),
        ("sslmode=require", "verify-full", "require"),
        ("", "verify-full", "verify-full"),
    ],
)
def test_another_librarys_ssl_does_not_undo_the_variable(query: str, variable: str, mode: str) -> None:
    """``sslmode`` in the URL goes before PGSSLMODE, as with libpq; ``ssl``, which libpq does not know, does not lower it."""
    target = parse_url(f"postgresql://u@h/db?{query}", {"PGSSLMODE": variable})
    assert {"sslmode": mode} == dict(target.params)


@pytest.mark.parametrize("query", ["sslmode=verify_full", "ssl=yes", "sslmode=", "ssl=%2Fetc%2Fcert.pem"])
def test_a_mode_of_tls_that_does_not_exist(query: str) -> None:
    """It is refused with those that do."""
    with pytest.raises(ConfigError, match=r"choose from disable, allow, prefer, require, verify-ca, verify-full\."):
        parse_url(f"postgresql://u@h/db?{query}", {})


def test_ssl_of_other_drivers_is_sslmode() -> None:
    assert {"sslmode": "require"} == dict(parse_url("postgres://u@h/db?ssl=true", {}).params)
    assert {"sslmode": "verify-full"} == dict(parse_url("postgres://u@h/db?ssl=verify-full", {}).params)


def test_several_hosts_and_ipv6() -> None:
    target = parse_url("postgres://u@a:1,[2001:db8::1]:2,c/db", {})
    assert ("a,2001:db8::1,c", "1,2,5432") == (target.host, target.port)


def test_an_at_sign_in_the_password_is_taken_as_meant() -> None:
    target = parse_url("postgres://u:p@ss@h/db", {})
    assert ("p@ss", "h") == (target.password.reveal(), target.host)


def test_what_the_url_leaves_out_comes_from_the_environment_and_is_noted() -> None:
    environ = {"PGHOST": "/run/pg", "PGPORT": "6000", "PGUSER": "me", "PGPASSWORD": "secret", "PGSSLMODE": "disable"}
    target = parse_url("postgresql:///copy", environ)
    assert ("/run/pg", "6000", "copy", "me") == (target.host, target.port, target.dbname, target.user)
    assert "secret" == target.conninfo()["password"]
    assert "disable" == target.conninfo()["sslmode"]
    assert any("PGHOST" in note for note in target.notes)
    assert "copy at /run/pg port 6000 as me" == target.describe()
    assert "h" == parse_url("postgresql://h/copy", environ).host


def test_a_target_pickles_and_can_name_another_database() -> None:
    target = parse_url("postgres://u:p@h/db", {})
    assert target == pickle.loads(pickle.dumps(target))
    assert ("other", "h", "p") == (
        target.with_dbname("other").dbname,
        target.with_dbname("other").host,
        target.with_dbname("other").password.reveal(),
    )
