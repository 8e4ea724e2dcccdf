"""P6: no secret in argv, logs, exceptions, reprs, manifests, RECOVER.txt. Canaries are looked for wherever one could be."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

import pgsnap
from desk import Desk

PASSWORD = "p6-c4nary-71/Pa ss@wörd'%\"$(x)"
FORMS = {PASSWORD, quote(PASSWORD, safe=""), "p6-c4nary-71"}


@pytest.fixture
def guarded(server17: Any, make_shop: Any) -> Any:
    """A superuser whose password is the canary, on a shop; the URL as people write it."""
    url = make_shop(server17, "canary shop")
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS canary")
        connection.execute(sql.SQL("CREATE ROLE canary SUPERUSER LOGIN PASSWORD {}").format(PASSWORD))
    parts = urlsplit(url)
    yield urlunsplit(parts._replace(netloc=f"canary:{quote(PASSWORD, safe='')}@{parts.hostname}:{parts.port}"))
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP ROLE canary")


def leaks(text: str) -> set[str]:
    """Return the forms of the canary that a text holds."""
    return {form for form in FORMS if form in text}


def watched(desk: Desk, *arguments: str, **env: str) -> tuple[int, str]:
    """Run the command and read every process's command line all the while; return the exit code and all that was seen."""
    process = desk.start("-v", *arguments, **env)
    seen: set[str] = set()
    end = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < end:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except OSError:
                continue
    out, err = process.communicate(timeout=10)
    assert any("pgsnap" in line for line in seen)
    return process.returncode, "\n".join([out, err, *seen])


AGE = '[[pipeline.shop.transform]]\nuse = "age"\nrecipients = ["{0}"]\n'


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_backup_and_a_restore_show_no_secret(desk: Desk, guarded: str, log_format: str) -> None:
    """Neither the database's password nor the private key, in any output, command line or stored file."""
    public = desk.run("keygen", "-o", "key.txt").stdout.strip()
    lines = (desk.folder / "key.txt").read_text().splitlines()
    private = next(line for line in lines if line.startswith("AGE-SECRET-KEY"))
    FORMS.add(private)
    desk.configure(transforms=AGE.format(public))
    lines = ["--log-format", log_format]
    env = {"DATABASE_URL": guarded, "PGSNAP_AGE_IDENTITY": private, "TARGET": guarded.replace("canary%20shop", "canary_copy")}
    assert env["TARGET"] != guarded
    for arguments in (
        ["doctor"],
        ["backup", "--json"],
        ["list", "--json"],
        ["show", "--json"],
        ["verify", "--decode", "--json"],
        ["restore", "--to-env", "TARGET"],
        ["restore", "--to-env", "TARGET"],  # the second time the target is not empty
    ):
        code, seen = watched(desk, *lines, *arguments, **env)
        assert set() == leaks(seen), arguments
        assert code in (0, 1)
    for path in desk.files("one"):
        assert set() == leaks(path.read_bytes().decode("latin-1")), path
    with psycopg.connect(guarded, autocommit=True) as connection:
        connection.execute("DROP DATABASE canary_copy WITH (FORCE)")


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("p6-c4nary-71", "p6-c4nary-71X"),  # a wrong password
        lambda url: url.replace(":" + str(urlsplit(url).port), ":1"),  # an unreachable host
        lambda url: url.replace("canary%20shop", "nowhere"),  # a wrong database
        lambda url: url.replace("postgresql://", "postgresql+asyncpg://"),
        lambda url: " " + url,
        lambda url: url.replace("%2F", "/"),  # libpq takes what follows for a host and shows the rest
        lambda url: url + "?sslmode=nonsense",
        lambda url: url + "?nosuch=option",
        lambda url: url.replace("postgresql://", "mysql://"),
        lambda url: url.replace("127.0.0.1", "[::"),
        lambda url: url.replace("127.0.0.1:", "127.0.0.1:port"),
    ],
)
def test_no_error_shows_the_url(desk: Desk, guarded: str, change: Any) -> None:
    """However the URL is wrong, the sentence about it does not repeat it; nor does the traceback of ``-v``."""
    desk.configure()
    changed = change(guarded)
    assert changed != guarded
    code, seen = watched(desk, "backup", DATABASE_URL=changed)
    assert set() == leaks(seen)
    assert code in (0, 1, 2)
    assert desk.committed("one") == [] or code == 0


def test_reprs_and_pickles_of_errors_hide_it(guarded: str, tmp_path: Path) -> None:
    """A pipeline's repr, and an error that crossed to another process, show no secret; the pipeline itself still works there."""
    from pgsnap_postgres import PgDump

    pipeline = pgsnap.Pipeline(name="shop", dump=PgDump(url=pgsnap.Secret(guarded)), stores=[str(tmp_path / "one")])
    assert set() == leaks(repr(pipeline))
    wrong = pgsnap.Pipeline(
        name="shop",
        dump=PgDump(url=pgsnap.Secret(guarded.replace("p6-c4nary-71", "p6-c4nary-71X"))),
        stores=[str(tmp_path / "one")],
    )
    with pytest.raises(pgsnap.PgsnapError) as caught:
        wrong.backup()
    again = pickle.loads(pickle.dumps(caught.value))
    assert set() == leaks(str(again) + repr(again) + repr(again.report))
    assert 0 == pickle.loads(pickle.dumps(pipeline)).backup().exit_code


def test_a_password_in_to_is_refused(desk: Desk, guarded: str) -> None:
    """It would be in argv for all to read; the way out is named, and the refusal does not repeat it."""
    desk.configure()
    done = desk.run("restore", "--to", guarded)
    assert 2 == done.returncode
    assert "--to-env" in done.stderr
    assert set() == leaks(done.stderr + done.stdout)
