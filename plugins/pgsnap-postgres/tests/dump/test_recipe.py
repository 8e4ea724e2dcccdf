"""recipe: its lines alone, run by sh, bring a database back."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgsnap import Facts
from pgsnap_postgres import PgDump
from pgsnap_postgres.archive.check import read_toc
from pgsnap_postgres.archive.database_sql import database_sql
from pgsnap_postgres.server import Server, throwaway_server
from pgsnap_postgres.testing import MakeDatabase, database_name

FACTS: Facts = {
    "format": "custom",
    "artifact": "shop.dump",
    "server": {"version_num": 170010},
    "client": {"major": 17},
    "extensions": [{"name": "plpgsql"}, {"name": "citext"}, {"name": "$(touch x)\n"}],
    "objects": 100,
}
CUSTOM = ["shop.dump", "database.sql", "globals.sql"]


@pytest.fixture(scope="module")
def empty_server() -> Iterator[Server]:
    with throwaway_server(major=17) as started:
        yield started


def run_program(server: Server, program: str, *arguments: str) -> bytes:
    return subprocess.run([f"{server.bindir}/{program}", *arguments], check=True, stdout=subprocess.PIPE).stdout


def follow(text: str, folder: Path, server: Server) -> subprocess.CompletedProcess[str]:
    """Run the lines by sh, where nothing is known but where the server is."""
    script = re.sub(r"@\{([^}]*)\}", lambda match: f"cat {match[1]}", text)
    assert "@{" not in script
    environment = {
        "PATH": f"{server.bindir}:/usr/bin:/bin",
        "PGHOST": str(server.socket_directory),
        "PGPORT": str(server.port),
        "PGUSER": server.superuser,
        "LC_ALL": "C",
    }
    return subprocess.run(["sh", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


def lines_of(server: Server, database: str) -> list[str]:
    said = run_program(server, "pg_dump", "-d", server.database_url(database, socket=True)).decode()
    return [line for line in said.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def password(server: Server) -> str:
    with psycopg.connect(server.socket_url) as connection:
        query = "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = CURRENT_USER"
        (found,) = connection.execute(query).fetchone() or ("",)
        return str(found)


@pytest.mark.parametrize("format", ["custom", "plain", "many"])
def test_sh_alone_restores_it(
    server17: Server, make_shop: MakeDatabase, empty_server: Server, tmp_path: Path, format: str
) -> None:
    """Into a server that has nothing: roles, settings, comment and contents are what they were; who does it can still log in."""
    database = database_name(make_shop(server17))
    source = server17.database_url(database, socket=True)
    archive = run_program(server17, "pg_dump", "-Fc", "-d", source)
    main = "shop.sql" if format == "plain" else "shop.dump"
    (tmp_path / main).write_bytes(run_program(server17, "pg_dump", "-d", source) if format == "plain" else archive)
    (tmp_path / "database.sql").write_text(database_sql(read_toc([archive])))
    (tmp_path / "globals.sql").write_bytes(run_program(server17, "pg_dumpall", "-g", "-d", server17.socket_url))
    facts = {**FACTS, "artifact": main, "format": "plain" if format == "plain" else "custom"}
    facts["objects"] = 5000 if format == "many" else 100
    passwords = password(server17), password(empty_server)
    done = follow(PgDump().recipe([main, "database.sql", "globals.sql"], facts), tmp_path, empty_server)
    errors = [line for line in done.stderr.splitlines() if "ERROR" in line and "already exists" not in line]
    assert ([], 0) == (errors, done.returncode), done.stderr
    assert passwords[0] != passwords[1] == password(empty_server)
    assert lines_of(server17, database) == lines_of(empty_server, "restored")
    with psycopg.connect(empty_server.database_url("restored", socket=True)) as connection:
        assert ("5MB",) == connection.execute("SHOW work_mem").fetchone()
        comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'restored'"
        assert (f"the shop's {database}",) == connection.execute(comment.encode()).fetchone()
    assert sorted([main, "database.sql", "globals.sql"]) == sorted(os.listdir(tmp_path))
    with psycopg.connect(empty_server.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE restored")


def test_a_cut_archive_restores_nothing(server17: Server, make_db: MakeDatabase, empty_server: Server, tmp_path: Path) -> None:
    """sh does not see that the decoder failed; pg_restore -e -1 does, because the archive ends too early."""
    url = make_db(server17)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n")
    archive = run_program(server17, "pg_dump", "-Fc", "-d", url)
    (tmp_path / "shop.dump").write_bytes(archive[: len(archive) // 2])
    follow(PgDump().recipe(["shop.dump"], FACTS), tmp_path, empty_server)
    with psycopg.connect(empty_server.database_url("restored", socket=True)) as connection:
        assert [] == connection.execute("SELECT FROM pg_class WHERE relname = 't'").fetchall()
    with psycopg.connect(empty_server.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE restored")


def test_a_cut_plain_dump_is_not_given_to_psql(empty_server: Server, tmp_path: Path) -> None:
    (tmp_path / "shop.sql").write_text("CREATE TABLE half ();\n")
    follow(PgDump().recipe(["shop.sql"], {}), tmp_path, empty_server)
    with psycopg.connect(empty_server.database_url("restored", socket=True)) as connection:
        assert [] == connection.execute("SELECT FROM pg_class WHERE relname = 'half'").fetchall()
    with psycopg.connect(empty_server.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE restored")


def test_names_that_a_shell_would_run_are_left_out() -> None:
    text = PgDump().recipe(CUSTOM, FACTS)
    assert "extensions installed: citext\n" in text
    assert "touch" not in text


@pytest.mark.parametrize("user", ["postgres", "my-admin", None], ids=["plain", "quoted", "unset"])
def test_who_restores_keeps_the_password(tmp_path: Path, user: str | None) -> None:
    """The line that would change it is left out, of that role alone; without PGUSER it is the system's user."""
    system = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    me = user or system
    quoted = f'"{me}"' if "-" in me else me
    others = [f"ALTER ROLE {name} WITH LOGIN PASSWORD 'x';" for name in ("postgres2", '"my-admin2"', "shop")]
    text = "\n".join([f"CREATE ROLE {quoted};", f"ALTER ROLE {quoted} WITH SUPERUSER PASSWORD 'x';", *others, "-- \xff", ""])
    (tmp_path / "globals.sql").write_bytes(text.encode("latin-1"))
    line = PgDump().recipe(CUSTOM, FACTS).partition("ME=")[2].partition("psql")[0]
    script = "ME=" + line.replace("@{globals.sql}", "cat globals.sql") + "cat"
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"} | ({"PGUSER": user} if user else {})
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert "\n".join([f"CREATE ROLE {quoted};", *others, "-- \xff", ""]) == done.stdout.decode("latin-1")


def test_it_says_which_versions_are_needed() -> None:
    text = PgDump().recipe(CUSTOM, {**FACTS, "client": {"major": 18}})
    assert "psql and pg_restore of PostgreSQL 18 or newer, and a server of version 17 or newer" in text


def test_what_the_backup_lacks_has_no_line() -> None:
    text = PgDump().recipe(["shop.dump"], FACTS)
    assert 'createdb -T template0 "$DB"' in text
    assert "globals.sql" not in text
    assert "database.sql" not in text


def test_one_transaction_is_used_only_where_the_locks_suffice() -> None:
    assert '@{shop.dump} | pg_restore -e -1 -d "$DB"\n' in PgDump().recipe(CUSTOM, FACTS)
    assert '@{shop.dump} | pg_restore -e -d "$DB"\n' in PgDump().recipe(CUSTOM, {**FACTS, "large_objects": 4000})
