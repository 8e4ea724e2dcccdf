"""database.sql: what belongs to a database itself arrives on a database of another name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import psycopg
import pytest
from psycopg import sql

from pgsnap import DumpError
from pgsnap_postgres.archive.check import Toc, TocEntry, read_toc
from pgsnap_postgres.archive.database_sql import PLACEHOLDER, database_sql, owners
from pgsnap_postgres.server import Server

ARCHIVES = Path(__file__).with_name("archives")
NAMES = ["plain", "a \"b' c\\x $(x)", "DATABASE", "Größe 名"]
COPY = 'the "other" one\'s \\ name'
OWNER, READER = 'Röle "o"', "database"


@pytest.fixture
def roles(server: Server) -> Iterator[None]:
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        for role in (OWNER, READER):
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        yield
        for name in (*NAMES, COPY):
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        for role in (OWNER, READER):
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def dump_toc(server: Server, name: str) -> Toc:
    command = [f"{server.bindir}/pg_dump", "-Fc", "-d", server.database_url(name, socket=True)]
    return read_toc([subprocess.run(command, capture_output=True, check=True).stdout])


def run_psql(server: Server, name: str, script: str) -> None:
    command = [f"{server.bindir}/psql", "-qX", "-v", "ON_ERROR_STOP=1", "-v", f"DB={name}", "-d", server.socket_url]
    done = subprocess.run(command, input=script.encode(), capture_output=True, check=False)
    assert (b"", 0) == (done.stderr, done.returncode)


def describe(server: Server, name: str) -> dict[str, object]:
    """All that is known of a database and belongs to none of its objects."""
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, datconnlimit, "
            "shobj_description(oid, 'pg_database'), ARRAY(SELECT a::text FROM unnest(datacl) a ORDER BY 1), "
            "ARRAY(SELECT (coalesce(rolname, '-') || ': ' || s) FROM pg_db_role_setting LEFT JOIN pg_roles r ON r.oid = setrole, "
            "unnest(setconfig) s WHERE setdatabase = d.oid ORDER BY 1) FROM pg_database d WHERE datname = %s",
            [name],
        ).fetchone()
    assert row is not None
    keys = ("owner", "encoding", "collate", "ctype", "provider", "limit", "comment", "privileges", "settings")
    return dict(zip(keys, row, strict=True))


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("name", NAMES)
def test_everything_arrives_on_a_database_of_another_name(server: Server, name: str) -> None:
    database, owner, reader = sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(READER)
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        for statement in (
            "CREATE DATABASE {d} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'" if name.isascii() else "CREATE DATABASE {d}",
            "ALTER DATABASE {d} OWNER TO {o}",
            "COMMENT ON DATABASE {d} IS {text}",
            "REVOKE ALL ON DATABASE {d} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {d} TO {r}",
            "GRANT CREATE ON DATABASE {d} TO {r} WITH GRANT OPTION",
            "REVOKE TEMPORARY ON DATABASE {d} FROM {o}",
            'ALTER DATABASE {d} SET search_path TO {r}, "$user"',
            "ALTER DATABASE {d} SET application_name TO {text}",
            "ALTER ROLE {r} IN DATABASE {d} SET statement_timeout TO '5s'",
            "ALTER DATABASE {d} CONNECTION LIMIT 17",
        ):
            text = sql.Literal("it's ö, ON DATABASE plain IS 'x'\n\\ :\"DB\" DATABASE")
            connection.execute(sql.SQL(statement).format(d=database, o=owner, r=reader, text=text))
    toc = dump_toc(server, name)
    run_psql(server, COPY, database_sql(toc))
    assert name == toc.dbname
    assert {OWNER, READER} <= set(owners(toc))
    wanted, found = describe(server, name), describe(server, COPY)
    assert wanted == found
    assert OWNER == found["owner"]
    assert not any(str(privilege).startswith("=") for privilege in found["privileges"])  # type: ignore[attr-defined]
    assert 3 == len(found["settings"])  # type: ignore[arg-type]


@pytest.mark.usefixtures("roles")
def test_a_database_that_nobody_changed_needs_only_its_creation_and_owner(server: Server) -> None:
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain")
    script = database_sql(dump_toc(server, "plain"))
    statements = [line for line in script.splitlines() if line and not line.startswith(("--", "SET "))]
    assert 2 == len(statements)
    assert statements[0].startswith(f"CREATE DATABASE {PLACEHOLDER} WITH TEMPLATE = template0 ENCODING = ")
    assert f'ALTER DATABASE {PLACEHOLDER} OWNER TO "{server.superuser}";' == statements[1]


@pytest.mark.parametrize("path", sorted(ARCHIVES.glob("*.dump")), ids=lambda path: path.stem)
def test_archives_of_every_client_say_it_and_the_name_is_gone(path: Path) -> None:
    script = database_sql(read_toc([path.read_bytes()]))
    assert f"CREATE DATABASE {PLACEHOLDER} WITH TEMPLATE = template0 ENCODING = 'UTF8'" in script
    assert f'ALTER DATABASE {PLACEHOLDER} OWNER TO "postgres";' in script
    assert "DATABASE sample" not in script
    assert "DATABASE template1" not in script


def sample(defn: str = "") -> Toc:
    """The table of contents of a real archive, with a comment on its database."""
    toc = read_toc([(ARCHIVES / "17-none.dump").read_bytes()])
    database = next(entry for entry in toc.entries if entry.desc == "DATABASE")
    comment = attrs.evolve(
        database, dump_id=99_999, desc="COMMENT", tag="DATABASE sample", dependencies=(database.dump_id,), defn=defn
    )
    return attrs.evolve(toc, entries=(*toc.entries, comment))


def test_backslashes_keep_their_meaning_where_standard_conforming_strings_was_off() -> None:
    toc = sample(defn="COMMENT ON DATABASE sample IS 'a\\\\b';\n")
    assert "IS 'a\\\\b';" in database_sql(toc)

    def off(entry: TocEntry) -> TocEntry:
        return attrs.evolve(entry, defn="SET standard_conforming_strings = 'off';\n") if entry.desc == "STDSTRINGS" else entry

    assert "IS E'a\\\\b';" in database_sql(attrs.evolve(toc, entries=tuple(map(off, toc.entries))))


def test_the_script_is_always_utf_8() -> None:
    script = database_sql(sample(defn="COMMENT ON DATABASE sample IS 'Gr\udcf6\udcdfe';\n"))
    assert "'Gr\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}e'" in script
    assert script == script.encode().decode()


def test_an_archive_that_says_nothing_of_its_database_is_refused() -> None:
    toc = sample()
    toc = attrs.evolve(toc, entries=tuple(entry for entry in toc.entries if entry.desc != "DATABASE"))
    with pytest.raises(DumpError, match=r"says nothing of its database .*take the dump with pg_dump's custom format"):
        database_sql(toc)


# --- roles -----------------------------------------------------------------------------------------------------------


def test_every_role_that_an_archive_mentions_is_found(server: Server) -> None:
    names = [
        "table owner",
        "member",
        'Gran"tee',
        "two",
        "with policy",
        "policy, too",
        "default grantor",
        "defaults",
        "setting",
        "mapped",
    ]
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE plain")
        try:
            with psycopg.connect(server.database_url("plain", socket=True), autocommit=True) as other:
                ids = dict(zip("omgtpqdesu", map(sql.Identifier, names), strict=True))
                for role in ids.values():
                    other.execute(sql.SQL("CREATE ROLE {}").format(role))
                for statement in (
                    'CREATE TABLE t ("to" text, ts timestamp)',
                    "ALTER TABLE t OWNER TO {o}",
                    "GRANT SELECT, UPDATE ON t TO {g} WITH GRANT OPTION",
                    "GRANT SELECT (ts) ON t TO PUBLIC",
                    "SET ROLE {g}",
                    "GRANT SELECT ON t TO {m}",
                    "RESET ROLE",
                    "CREATE FUNCTION f(a integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
                    "GRANT EXECUTE ON FUNCTION f TO {t}",
                    "CREATE POLICY p ON t FOR SELECT TO {p}, {q} USING (\"to\" = 'TO nobody' AND ts - ts < INTERVAL '1' DAY)",
                    "ALTER DEFAULT PRIVILEGES FOR ROLE {d} GRANT SELECT ON TABLES TO {e}",
                    "ALTER ROLE {s} IN DATABASE plain SET work_mem TO '1MB'",
                    "CREATE FOREIGN DATA WRAPPER w",
                    "CREATE SERVER s FOREIGN DATA WRAPPER w",
                    "CREATE USER MAPPING FOR {u} SERVER s OPTIONS (password 'TO hidden')",
                    "CREATE USER MAPPING FOR PUBLIC SERVER s",
                ):
                    other.execute(sql.SQL(statement).format(**ids))
            toc = dump_toc(server, "plain")
        finally:
            connection.execute("DROP DATABASE plain WITH (FORCE)")
            for name in names:
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))
    assert sorted([*names, server.superuser]) == sorted(set(owners(toc)) - {"pg_database_owner"})
    assert list(owners(toc)) == sorted(owners(toc))
