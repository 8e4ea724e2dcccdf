"""restore: each way into a database works, and each failure leaves the server as it was."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
from psycopg import sql

from pgsnap import (
    Aborted,
    ConfigError,
    Facts,
    IntegrityError,
    PgsnapError,
    RestoreError,
    RestoreRequest,
    Run,
    Secret,
    Unsupported,
)
from pgsnap.streams import Stream
from pgsnap_postgres import PgDump
from pgsnap_postgres.archive.check import read_toc
from pgsnap_postgres.archive.database_sql import database_sql
from pgsnap_postgres.restore.contents import look_inside
from pgsnap_postgres.restore.restore_new import fit_identifier
from pgsnap_postgres.server import Server, throwaway_server
from pgsnap_postgres.testing import SHOP_OWNER, MakeDatabase, database_name
from programs import missing

ID = "20261122T080000Z-4f3a"
SHOP = "shop.dump"


# --- a backup, and the state of a server -----------------------------------------------------------------------------


@attrs.frozen
class Files:
    """A Source over artifacts in memory; ``fault`` wraps the stream of the database's artifact when it is fed."""

    contents: Mapping[str, bytes]
    facts: Facts
    text: list[str] = attrs.field(factory=list)
    data: list[str] = attrs.field(factory=list)
    id: str = ID
    chunk: int = 10_000
    fault: Callable[[Stream], Stream] | None = None

    @property
    def artifacts(self) -> list[str]:
        return list(self.contents)

    def _chunks(self, name: str) -> Stream:
        data = self.contents[name]
        for start in range(0, len(data), self.chunk):
            yield data[start : start + self.chunk]

    def open(self, name: str) -> Stream:
        stream = self._chunks(name)
        return self.fault(stream) if self.fault is not None and name == self.facts["artifact"] else stream

    def size(self, name: str) -> int:
        return len(self.contents[name])

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = Path(os.environ.get("TMPDIR", "/tmp"), f"pgsnap-test-{os.getpid()}.dump")
        path.write_bytes(b"".join(self.open(name)))
        try:
            yield path
        finally:
            path.unlink()

    def failing(self, fault: Callable[[Stream], Stream]) -> Files:
        return attrs.evolve(self, fault=fault)


def back_up(server: Server, url: str, reader: Server, format: str = "custom") -> Files:
    """Take a backup with the server's own pg_dump; ``text`` and ``data`` are what the pg_dump of ``reader`` says."""
    database = database_name(url)
    target = server.database_url(database, socket=True)

    def run(program: str, *arguments: str) -> bytes:
        return subprocess.run([f"{server.bindir}/{program}", *arguments], check=True, stdout=subprocess.PIPE).stdout

    archive = run("pg_dump", "-Fc", "-d", target)
    toc = read_toc([archive])
    main = SHOP if format == "custom" else "shop.sql"
    contents = {
        main: archive if format == "custom" else run("pg_dump", "-d", target),
        "database.sql": database_sql(toc).encode(),
        "globals.sql": run("pg_dumpall", "-g", "-d", server.socket_url),
    }
    with psycopg.connect(target) as connection:
        large = len(connection.execute("SELECT FROM pg_largeobject_metadata").fetchall())
        extensions = connection.execute("SELECT extname, extversion FROM pg_extension").fetchall()
        number = connection.info.server_version
    facts = {
        "format": format,
        "artifact": main,
        "server": {"version_num": number},
        "client": {"major": server.major},
        "extensions": [{"name": name, "version": version} for name, version in extensions],
        "large_objects": large,
        "objects": len(toc.entries),
        "roles": sorted({entry.owner for entry in toc.entries if entry.owner}),
    }
    return Files(contents, facts, text_of(server, database, reader), text_of(server, database, reader, "-aOx"))


def text_of(server: Server, database: str, reader: Server, *options: str) -> list[str]:
    """Return what the pg_dump of ``reader`` says of a database, in sorted lines."""
    argv = [f"{reader.bindir}/pg_dump", "-d", server.database_url(database, socket=True), *options]
    said = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout.decode()
    skipped = ["\\restrict", "\\unrestrict", "-- Dumped"]
    skipped += ["--", "BEGIN;", "COMMIT;"] * bool(options)  # large objects are grouped by owner
    return sorted(line for line in said.splitlines() if line and not line.startswith(tuple(skipped)))


class Backups:
    """Makes backups of sample databases of server 17, each once for all tests of the module."""

    def __init__(self) -> None:
        self.made: dict[str, Files] = {}

    def get(self, kind: str, make: Callable[[], str], server: Server, reader: Server) -> Files:
        if kind not in self.made:
            self.made[kind] = back_up(server, make(), reader, kind.split()[0])
        return self.made[kind]


@pytest.fixture(scope="module")
def backups() -> Backups:
    return Backups()


@pytest.fixture
def shop(server17: Server, server18: Server, make_shop: MakeDatabase, backups: Backups) -> Files:
    """A backup of the sample shop in custom format."""
    return backups.get("custom shop", lambda: make_shop(server17), server17, server18)


@pytest.fixture
def plain_shop(server17: Server, server18: Server, make_shop: MakeDatabase, backups: Backups) -> Files:
    """A backup of the sample shop in plain format."""
    return backups.get("plain shop", lambda: make_shop(server17), server17, server18)


@pytest.fixture
def small(server17: Server, server18: Server, make_db: MakeDatabase, backups: Backups) -> Files:
    """A backup of a database without large objects, extensions and other roles than postgres."""
    return backups.get("custom small", lambda: _small(server17, make_db), server17, server18)


@pytest.fixture
def small_plain(server17: Server, server18: Server, make_db: MakeDatabase, backups: Backups) -> Files:
    """The same in plain format."""
    return backups.get("plain small", lambda: _small(server17, make_db), server17, server18)


def _small(server: Server, make_db: MakeDatabase) -> str:
    url = make_db(server)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, t text); CREATE TABLE b (id int PRIMARY KEY REFERENCES a)")
        connection.execute("INSERT INTO a SELECT n, md5(n::text) FROM generate_series(1, 3000) n")
        connection.execute("INSERT INTO b SELECT n FROM generate_series(1, 3000) n")
    return url


def _names(server: Server) -> list[str]:
    with psycopg.connect(server.socket_url) as connection:
        return [row[0] for row in connection.execute("SELECT datname FROM pg_database ORDER BY 1")]


@pytest.fixture(autouse=True)
def clean(server17: Server, server18: Server) -> Iterator[None]:
    """Drop the databases that a test has left on the shared servers."""
    before = {server.port: set(_names(server)) for server in (server17, server18)}
    yield
    for server in (server17, server18):
        with psycopg.connect(server.socket_url, autocommit=True) as connection:
            for name in set(_names(server)) - before[server.port]:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def second18() -> Iterator[Server]:
    with throwaway_server(major=18) as started:
        yield started


@pytest.fixture
def bare(second18: Server) -> Iterator[Server]:
    """A server 18 with no role and no database but postgres."""
    yield second18
    with psycopg.connect(second18.socket_url, autocommit=True) as connection:
        for name in set(_names(second18)) - {"postgres", "template0", "template1"}:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        for (role,) in connection.execute("SELECT rolname FROM pg_roles WHERE oid >= 16384").fetchall():
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def state(server: Server) -> dict[str, Any]:
    """Return all that a restore could change outside of a database."""
    queries = {
        "databases": "SELECT oid, datname, datdba::regrole::text, encoding, datcollate, datacl::text, datconnlimit, "
        "shobj_description(oid, 'pg_database') FROM pg_database ORDER BY 1",
        "roles": "SELECT rolname, rolsuper, rolcanlogin, rolcreatedb, rolpassword FROM pg_authid ORDER BY 1",
        "members": "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members ORDER BY 1, 2",
        "settings": "SELECT setdatabase, setrole, setconfig FROM pg_db_role_setting ORDER BY 1, 2",
        "tablespaces": "SELECT spcname FROM pg_tablespace ORDER BY 1",
        "sessions": "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'pgsnap%'",
    }
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        until = time.monotonic() + 5  # a session that was closed is listed for a moment
        while connection.execute(queries["sessions"].encode()).fetchall() and time.monotonic() < until:
            time.sleep(0.01)
        return {name: connection.execute(text.encode()).fetchall() for name, text in queries.items()}


def query(server: Server, database: str, text: str) -> list[Any]:
    with psycopg.connect(server.database_url(database, socket=True)) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


def is_empty(server: Server, database: str) -> bool:
    with psycopg.connect(server.database_url(database, socket=True)) as connection:
        return look_inside(connection).empty


def restore(source: Files, url: str, run: Run | None = None, **options: Any) -> None:
    PgDump().restore(source, RestoreRequest(target=Secret(url), **options), run or Run("shop", ID))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what was logged so far."""
    caplog.set_level(logging.INFO, "pgsnap.components.run")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


# --- into a new database ---------------------------------------------------------------------------------------------


def test_a_custom_archive_comes_back_as_it_was(shop: Files, server17: Server, server18: Server) -> None:
    """Objects, rows, owners, privileges, large objects, settings and comment: pg_dump sees no difference."""
    restore(shop, server17.database_url("copy"))
    back = back_up(server17, server17.database_url("copy"), server18)
    assert shop.text == back.text
    assert shop.contents["database.sql"] == back.contents["database.sql"]
    assert [] == query(server17, "copy", "SELECT FROM pg_class WHERE relname = 'customers' AND reltuples <> 1500")


def test_a_plain_dump_comes_back_as_it_was(plain_shop: Files, server17: Server, server18: Server) -> None:
    """Large objects and the COMMIT that comes with them, too."""
    restore(plain_shop, server17.database_url("copy"))
    back = back_up(server17, server17.database_url("copy"), server18)
    assert plain_shop.text == back.text
    assert plain_shop.contents["database.sql"] == back.contents["database.sql"]


def test_a_backup_goes_into_a_newer_server_with_its_roles(shop: Files, bare: Server, lines: Callable[[], str]) -> None:
    """17 to 18: missing roles are created as they were, the one that is there is left alone."""
    restore(shop, bare.database_url("copy"))
    assert shop.data == text_of(bare, "copy", bare, "-aOx")
    assert [(SHOP_OWNER,)] == query(bare, "copy", "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'copy'")
    assert "created roles: Audit $(x), Reader's röle, shop_owner" in lines()
    assert "roles that exist are left as they are: postgres" in lines()
    with psycopg.connect(bare.database_url("copy", socket=True, user=SHOP_OWNER)) as connection:
        assert (1500,) == connection.execute("SELECT count(*) FROM customers").fetchone()
        assert ("1h",) == connection.execute("SHOW lock_timeout").fetchone()


def test_a_plain_dump_goes_into_a_newer_server(small_plain: Files, server18: Server) -> None:
    restore(small_plain, server18.database_url("copy"))
    assert small_plain.data == text_of(server18, "copy", server18, "-aOx")


def test_several_jobs_restore_from_a_local_copy(shop: Files, server17: Server, server18: Server) -> None:
    restore(shop, server17.database_url("copy"), jobs=2)
    assert shop.text == text_of(server17, "copy", server18)


@pytest.mark.parametrize(
    "name", ["with space", 'quo"te', "it's", "$(touch x)", "ünï", "a=b", "-rf", "%s", "x" * 63, "UPPER", ':"DB"']
)
def test_any_name_of_a_database_works(small: Files, server17: Server, name: str) -> None:
    restore(small, server17.database_url(name))
    assert [(3000,)] == query(server17, name, "SELECT count(*) FROM b")


def test_a_temporary_name_fits_and_differs() -> None:
    """63 bytes, cut between characters; names that differ only behind the cut stay different."""
    suffix = f"_pgsnap_{ID}"
    assert f"shop{suffix}" == fit_identifier("shop", suffix)
    long = [fit_identifier("ü" * 31 + end, suffix) for end in "ab"]
    assert all(len(name.encode()) <= 63 and name.endswith(suffix) for name in long)
    assert long[0] != long[1]


def test_without_owners_all_belongs_to_who_restores(shop: Files, bare: Server) -> None:
    """No role of the backup is needed, but for those that policies name; the settings still come."""
    restore(shop, bare.database_url("copy"), owners=False, globals=False)
    owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class UNION SELECT datdba::regrole::text FROM pg_database"
    assert [("postgres",)] == query(bare, "copy", owners)
    assert [("5MB",)] == query(bare, "copy", "SHOW work_mem")
    assert shop.data == text_of(bare, "copy", bare, "-aOx")


def test_a_selection_brings_what_it_needs(shop: Files, server17: Server, lines: Callable[[], str]) -> None:
    restore(shop, server17.database_url("copy"), tables=("order_lines",))
    assert [(2500,)] == query(server17, "copy", "SELECT count(*) FROM order_lines")
    assert [] == query(server17, "copy", "SELECT FROM pg_class WHERE relname = 'customers'")
    assert "left out" in lines()


def test_a_schema_and_a_section_can_be_chosen(shop: Files, server17: Server) -> None:
    restore(shop, server17.database_url("copy"), schemas=("audit",), sections=("pre-data",))
    assert [(0,)] == query(server17, "copy", "SELECT count(*) FROM audit.changes")
    assert [] == query(server17, "copy", "SELECT FROM pg_class WHERE relname IN ('customers', 'changes_pkey')")


def test_a_selection_with_jobs(shop: Files, server17: Server) -> None:
    restore(shop, server17.database_url("copy"), tables=("customers",), jobs=2)
    assert [(1500,)] == query(server17, "copy", "SELECT count(*) FROM customers")


def test_what_the_dumper_takes_is_restored(
    server17: Server, server18: Server, make_shop: MakeDatabase, lines: Callable[[], str]
) -> None:
    """PgDump.dump and PgDump.restore agree on names and facts, compressed archive and all."""
    url = make_shop(server17)
    run = Run("shop", ID)
    with PgDump(url=Secret(url)).dump(run) as dump:
        contents = {artifact.name: b"".join(artifact.open()) for artifact in dump.artifacts}
    restore(Files(contents, dump.facts), server17.database_url("copy"))
    assert text_of(server17, database_name(url), server18) == text_of(server17, "copy", server18)
    restore(Files(contents, dump.facts), server18.database_url("copy"))
    assert text_of(server17, database_name(url), server18, "-aOx") == text_of(server18, "copy", server18, "-aOx")


# --- what is in the way ----------------------------------------------------------------------------------------------


def test_an_empty_database_is_replaced(shop: Files, server17: Server, make_db: MakeDatabase) -> None:
    """The new one has the backup's owner and privileges; nothing of the old one is left."""
    url = make_db(server17)
    names = _names(server17)
    restore(shop, url)
    assert names == _names(server17)
    assert [(SHOP_OWNER,)] == query(
        server17, "postgres", f"SELECT datdba::regrole::text FROM pg_database WHERE datname = '{database_name(url)}'"
    )


def test_without_owners_an_empty_database_keeps_its_own(shop: Files, server17: Server, make_db: MakeDatabase) -> None:
    """It was closed to the public and had another owner: so is what takes its place."""
    url = make_db(server17, "given")
    query(
        server17,
        "postgres",
        "ALTER DATABASE given OWNER TO shop_owner; REVOKE ALL ON DATABASE given FROM PUBLIC; "
        "GRANT CONNECT ON DATABASE given TO pg_monitor",
    )
    acl = "SELECT datdba::regrole::text, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a) FROM pg_database "
    before = query(server17, "postgres", acl + "WHERE datname = 'given'")
    restore(shop, url, owners=False)
    assert before == query(server17, "postgres", acl + "WHERE datname = 'given'")
    assert [(1500,)] == query(server17, "given", "SELECT count(*) FROM customers")


def test_an_empty_database_with_extensions_is_kept(
    small: Files, server17: Server, make_db: MakeDatabase, lines: Callable[[], str]
) -> None:
    url = make_db(server17, "given")
    query(server17, "given", "CREATE EXTENSION hstore")
    restore(small, url)
    assert 1 == sum(name.startswith("given_pgsnap_replaced_") for name in _names(server17))
    assert "the database that was called 'given' is kept as 'given_pgsnap_replaced_" in lines()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("CREATE TABLE t (); CREATE TABLE u (); CREATE VIEW v AS SELECT", "2 tables, 1 view"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "1 function"),
        ("CREATE SCHEMA s", "1 schema"),
        ("CREATE TYPE e AS ENUM ('a')", "1 type"),
        ("SELECT lo_create(1)", "1 large object"),
    ],
)
def test_a_database_that_is_not_empty_is_refused(
    small: Files, server17: Server, make_db: MakeDatabase, made: str, said: str
) -> None:
    url = make_db(server17)
    query(server17, database_name(url), f"{made}")
    before, text = state(server17), text_of(server17, database_name(url), server17)
    with pytest.raises(RestoreError, match=rf"is not empty: it has {said}; restore under another name, or with force"):
        restore(small, url)
    assert (before, text) == (state(server17), text_of(server17, database_name(url), server17))


def test_force_keeps_what_was_there(small: Files, server17: Server, make_db: MakeDatabase, lines: Callable[[], str]) -> None:
    url = make_db(server17, "given")
    query(server17, "given", "CREATE TABLE precious AS SELECT 42 AS n")
    restore(small, url, force=True)
    kept = next(name for name in _names(server17) if name.startswith("given_pgsnap_replaced_"))
    assert [(42,)] == query(server17, kept, "SELECT n FROM precious")
    assert [(3000,)] == query(server17, "given", "SELECT count(*) FROM a")
    assert kept in lines()


def test_sessions_in_the_way_are_named(
    small: Files, server17: Server, make_db: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found before the restore, not after it."""
    monkeypatch.setattr("pgsnap_postgres.restore.restore_new.SHORT_PATIENCE", 0.3)
    url = make_db(server17)
    before = state(server17)
    named = r"in use by postgres with the shop from 127.0.0.1 \(pid \d+\); stop"
    with psycopg.connect(url, application_name="the shop"), pytest.raises(RestoreError, match=named):
        restore(small, url)
    assert before == state(server17)


def test_sessions_that_come_later_hinder_the_renaming_only(
    small: Files, server17: Server, make_db: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgsnap_postgres.restore.restore_new.PATIENCE", 0.1)
    url = make_db(server17)
    before = state(server17)
    with contextlib.ExitStack() as stack:

        def enter(stream: Stream) -> Stream:
            for number, chunk in enumerate(stream):
                if number == 2:
                    stack.enter_context(psycopg.connect(url, application_name="late"))
                yield chunk

        with pytest.raises(RestoreError, match="cannot be renamed because it is in use by postgres with late"):
            restore(small.failing(enter), url)
    assert before == state(server17)
    assert is_empty(server17, database_name(url))


# --- failures leave the target as it was -----------------------------------------------------------------------------


class Broken(IntegrityError):
    """What a source raises when a block does not have its digest."""


def fail_at(number: int) -> Callable[[Stream], Stream]:
    """Fail before the chunk of this number is given; -1: after the last one, instead of ending."""

    def fault(stream: Stream) -> Stream:
        for count, chunk in enumerate(stream):
            if count == number:
                raise Broken("block 7 is damaged")
            yield chunk
        if number == -1:
            raise Broken("the end is damaged")

    return fault


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("number", [1, 2, 3, 5, -1])
@pytest.mark.parametrize("kind", ["small", "small_plain"])
def test_a_source_that_fails_leaves_nothing(
    request: pytest.FixtureRequest, server17: Server, make_db: MakeDatabase, kind: str, number: int, exists: bool
) -> None:
    """At any offset, the end too, its own error comes out, and neither database nor role nor session is left."""
    source: Files = attrs.evolve(request.getfixturevalue(kind), chunk=4000)
    url = make_db(server17) if exists else server17.database_url("new")
    before = state(server17)
    with pytest.raises(Broken):
        restore(source.failing(fail_at(number)), url)
    assert before == state(server17)
    assert not exists or is_empty(server17, database_name(url))


def test_roles_that_were_created_go_when_the_restore_fails(shop: Files, bare: Server) -> None:
    before = state(bare)
    with pytest.raises(Broken):
        restore(shop.failing(fail_at(-1)), bare.database_url("new"))
    assert before == state(bare)


def test_a_killed_pg_restore_leaves_nothing(small: Files, server17: Server) -> None:
    run = Run("shop", ID)

    def kill(stream: Stream) -> Stream:
        for count, chunk in enumerate(stream):
            if count == 4:
                os.kill(run._children[-1].process.pid, signal.SIGKILL)
            yield chunk

    before = state(server17)
    with pytest.raises(RestoreError, match="pg_restore was ended by SIGKILL"):
        restore(attrs.evolve(small, chunk=2000).failing(kill), server17.database_url("new"), run)
    assert before == state(server17)


def test_an_abort_leaves_nothing(small: Files, server17: Server) -> None:
    run = Run("shop", ID)

    def abort(stream: Stream) -> Stream:
        for count, chunk in enumerate(stream):
            if count == 2:
                run.abort("told to stop")
            yield chunk

    before = state(server17)
    with pytest.raises(Aborted, match="told to stop"), run.watched():
        restore(attrs.evolve(small, chunk=2000).failing(abort), server17.database_url("new"), run)
    assert before == state(server17)


def terminating(server: Server, name: str) -> Callable[[Stream], Stream]:
    """End the sessions of this name in mid-stream, as a failing server or network does."""

    def fault(stream: Stream) -> Stream:
        for count, chunk in enumerate(stream):
            if count == 8:
                found = f"FROM pg_stat_activity WHERE application_name = '{name}'"
                until = time.monotonic() + 10
                while not query(server, "postgres", f"SELECT {found}") and time.monotonic() < until:
                    time.sleep(0.01)  # pg_restore connects when it has read the table of contents
                assert [(True,)] == query(server, "postgres", f"SELECT pg_terminate_backend(pid, 5000) {found}")
            yield chunk

    return fault


def test_a_lost_connection_to_the_side_does_no_harm(small: Files, server17: Server) -> None:
    """The one from which databases are renamed is idle for hours: it is opened again."""
    source = attrs.evolve(small, chunk=2000).failing(terminating(server17, f"pgsnap {ID}"))
    restore(source, server17.database_url("new"))
    assert [(3000,)] == query(server17, "new", "SELECT count(*) FROM a")


def test_a_lost_connection_of_pg_restore_leaves_nothing(small: Files, server17: Server) -> None:
    before = state(server17)
    source = attrs.evolve(small, chunk=2000).failing(terminating(server17, f"pgsnap restore {ID}"))
    with pytest.raises(RestoreError, match="pg_restore failed with exit status 1"):
        restore(source, server17.database_url("new"))
    assert before == state(server17)


@pytest.mark.parametrize("format", ["custom", "plain"])
def test_one_statement_that_fails_leaves_nothing(server17: Server, server18: Server, make_db: MakeDatabase, format: str) -> None:
    """A check that looks at the database's name holds in the source and not in the copy."""
    url = make_db(server17, "original")
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE FUNCTION here() RETURNS bool LANGUAGE sql AS $$SELECT current_database() = 'original'$$; "
            "CREATE TABLE first AS SELECT 1 AS n; CREATE TABLE t (n int CHECK (here())); INSERT INTO t VALUES (1)"
        )
    source = back_up(server17, url, server18, format)
    before = state(server17)
    with pytest.raises(RestoreError, match=r"violates check constraint"):
        restore(source, server17.database_url("new"))
    assert before == state(server17)


def test_a_killed_restore_is_cleaned_up_by_the_next(
    small: Files, server17: Server, tmp_path: Path, lines: Callable[[], str]
) -> None:
    """SIGKILL of the whole process in mid-stream: its database is named after the backup, found, and replaced."""
    (tmp_path / "backup").write_bytes(pickle.dumps((dict(small.contents), small.facts, server17.database_url("new"))))
    script = tmp_path / "restore.py"
    script.write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "backup")], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert -signal.SIGKILL == done.returncode
    assert f"new_pgsnap_{ID}" in _names(server17)
    restore(attrs.evolve(small, id="20261123T080000Z-0000"), server17.database_url("new"), force=True)
    assert f"the database 'new_pgsnap_{ID}' is what a restore that was killed has left" in lines()
    restore(small, server17.database_url("new"), force=True)
    assert f"dropping 'new_pgsnap_{ID}'" in lines()
    assert f"new_pgsnap_{ID}" not in _names(server17)


KILLED = """
import contextlib, os, pickle, signal, sys
from pgsnap import RestoreRequest, Run, Secret
from pgsnap_postgres import PgDump

contents, facts, url = pickle.load(open(sys.argv[1], "rb"))

class Source:
    id = "20261122T080000Z-4f3a"
    artifacts = list(contents)
    opened = 0
    def __init__(self): self.facts = facts
    def size(self, name): return len(contents[name])
    def open(self, name):
        data = contents[name]
        if name == facts["artifact"]:
            Source.opened += 1
        for start in range(0, len(data), 2000):
            if name == facts["artifact"] and Source.opened == 2 and start >= 10000:
                os.kill(os.getpid(), signal.SIGKILL)
            yield data[start:start + 2000]

PgDump().restore(Source(), RestoreRequest(target=Secret(url)), Run("shop", Source.id))
"""


def test_two_restores_of_a_backup_to_one_name_exclude_each_other(small: Files, server17: Server) -> None:
    found: list[str] = []

    def again(stream: Stream) -> Stream:
        for number, chunk in enumerate(stream):
            if number == 1 and not found:
                found.append("")
                with pytest.raises(RestoreError, match=r"another restore of backup .* is running") as caught:
                    restore(small, server17.database_url("new"))
                found.append(str(caught.value))
            yield chunk

    restore(small.failing(again), server17.database_url("new"))
    assert 2 == len(found)
    assert [(3000,)] == query(server17, "new", "SELECT count(*) FROM a")


def test_a_leftover_that_somebody_uses_is_left_alone(small: Files, server17: Server, make_db: MakeDatabase) -> None:
    url = make_db(server17, f"new_pgsnap_{ID}")
    before = state(server17)
    said = rf"'new_pgsnap_{ID}', which .* has left, is in use by postgres with curious"
    with psycopg.connect(url, application_name="curious"), pytest.raises(RestoreError, match=said):
        restore(small, server17.database_url("new"))
    assert before == state(server17)


def test_the_database_postgres_can_be_the_target(small: Files, bare: Server) -> None:
    """Many have nothing else; it is renamed and dropped from template1."""
    restore(small, bare.database_url("postgres"))
    assert [(3000,)] == query(bare, "postgres", "SELECT count(*) FROM a")
    assert ["postgres", "template0", "template1"] == _names(bare)
    with pytest.raises(RestoreError, match="not empty: it has 2 tables"):
        restore(small, bare.database_url("postgres"))
    query(bare, "postgres", "DROP TABLE a, b")


# --- an empty database and no right to make one ----------------------------------------------------------------------


@pytest.fixture
def hosted(server17: Server, make_db: MakeDatabase) -> Iterator[str]:
    """The URL of an empty database for its owner, who may not create databases or roles."""
    url = make_db(server17, "hosted")
    query(server17, "postgres", "CREATE ROLE tenant LOGIN PASSWORD 'S3cr3t/Canary'; ALTER DATABASE hosted OWNER TO tenant")
    yield server17.database_url(database_name(url), user="tenant", password="S3cr3t/Canary")
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datdba = 'tenant'::regrole").fetchall():
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute("DROP ROLE tenant")


def test_a_tenant_fills_the_database_it_has(
    shop: Files, server17: Server, server18: Server, hosted: str, lines: Callable[[], str]
) -> None:
    restore(shop, hosted, owners=False)
    assert shop.data == text_of(server17, "hosted", server18, "-aOx")
    assert [("tenant",)] == query(
        server17, "hosted", "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE oid > 16384 AND relkind = 'r'"
    )
    assert "jobs" not in lines()


def test_a_tenant_fills_its_database_from_a_plain_dump(small_plain: Files, server17: Server, hosted: str) -> None:
    """pg_dump's plain text gives everything to its owner, so the tenant must be a member of that role."""
    with pytest.raises(RestoreError, match=r'must be able to SET ROLE "postgres"; restore as a role that may do this'):
        restore(small_plain, hosted)
    assert is_empty(server17, "hosted")
    query(server17, "postgres", "GRANT postgres TO tenant")
    restore(small_plain, hosted)
    assert [(3000,)] == query(server17, "hosted", "SELECT count(*) FROM a")


def test_a_tenant_restores_a_selection_after_a_full_check(shop: Files, server17: Server, hosted: str) -> None:
    """The table stands early in the archive: what is damaged is its end, which pg_restore would never have read."""
    before = state(server17)
    with pytest.raises(Broken):
        restore(shop.failing(fail_at(-1)), hosted, owners=False, tables=("customers",))
    assert is_empty(server17, "hosted")
    assert before == state(server17)
    restore(shop, hosted, owners=False, tables=("customers",), jobs=3)
    assert [(1500,)] == query(server17, "hosted", "SELECT count(*) FROM customers")


@pytest.mark.parametrize("number", [1, 3, 5, -1])
@pytest.mark.parametrize("kind", ["small", "small_plain"])
def test_a_tenant_s_database_stays_empty_when_the_source_fails(
    request: pytest.FixtureRequest, server17: Server, hosted: str, kind: str, number: int
) -> None:
    source: Files = attrs.evolve(request.getfixturevalue(kind), chunk=4000)
    if kind == "small_plain":
        query(server17, "postgres", "GRANT postgres TO tenant")
    before = state(server17)
    with pytest.raises(Broken):
        restore(source.failing(fail_at(number)), hosted, owners=kind == "small_plain")
    assert is_empty(server17, "hosted")
    assert before == state(server17)


def test_what_cannot_be_one_transaction_is_refused(shop: Files, plain_shop: Files, server17: Server, hosted: str) -> None:
    before = state(server17)
    query(server17, "postgres", f'GRANT {SHOP_OWNER}, "Audit $(x)" TO tenant; SELECT')
    with pytest.raises(Unsupported, match="a plain dump with large objects commits in the middle"):
        restore(plain_shop, hosted)
    query(server17, "postgres", f'REVOKE {SHOP_OWNER}, "Audit $(x)" FROM tenant; SELECT')
    many = attrs.evolve(shop, facts={**shop.facts, "large_objects": 100_000})
    with pytest.raises(Unsupported, match=r"needs more locks .* = 3200\); raise max_locks_per_transaction, or use"):
        restore(many, hosted, owners=False)
    assert is_empty(server17, "hosted")
    assert before == state(server17)


def test_a_tenant_without_a_database_is_told_what_to_ask_for(small: Files, server17: Server, hosted: str) -> None:
    url = hosted.replace("/hosted", "/other")
    with pytest.raises(RestoreError, match="no database 'other', and the role 'tenant' may not create one; give it CREATEDB"):
        restore(small, url)


def test_a_tenant_cannot_replace_what_is_not_empty(small: Files, server17: Server, hosted: str) -> None:
    query(server17, "hosted", "CREATE TABLE precious ()")
    before = state(server17)
    with pytest.raises(RestoreError, match=r"cannot be replaced: the role 'tenant' may not create databases; restore under"):
        restore(small, hosted, owners=False, force=True)
    assert before == state(server17)


def test_a_database_of_somebody_else_is_filled_in_place_at_most(small: Files, server17: Server, hosted: str) -> None:
    """With CREATEDB, but not its owner: it cannot be renamed, so it is filled if that is allowed, and stays as it is if not."""
    query(server17, "postgres", "ALTER ROLE tenant CREATEDB; ALTER DATABASE hosted OWNER TO postgres")
    before = state(server17)
    with pytest.raises(RestoreError, match=r"permission denied for schema public"):
        restore(small, hosted, owners=False)
    assert before == state(server17)
    query(server17, "hosted", "GRANT CREATE ON SCHEMA public TO tenant")
    restore(small, hosted, owners=False)
    assert [(3000,)] == query(server17, "hosted", "SELECT count(*) FROM a")
    query(server17, "postgres", "ALTER DATABASE hosted OWNER TO tenant")


def test_a_role_with_createdb_makes_its_own(
    shop: Files, server17: Server, server18: Server, hosted: str, lines: Callable[[], str]
) -> None:
    query(server17, "postgres", "ALTER ROLE tenant CREATEDB")
    with pytest.raises(RestoreError, match=r"the role 'tenant' cannot give objects to Audit \$\(x\), shop_owner"):
        restore(shop, hosted.replace("/hosted", "/mine"))
    restore(shop, hosted.replace("/hosted", "/mine"), owners=False)
    assert shop.data == text_of(server17, "mine", server18, "-aOx")
    assert [("tenant",)] == query(server17, "mine", "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'mine'")


def test_a_role_without_createrole_is_told_which_roles_are_missing(shop: Files, bare: Server) -> None:
    query(bare, "postgres", "CREATE ROLE tenant LOGIN CREATEDB")
    url = bare.database_url("mine", user="tenant", socket=True)
    before = state(bare)
    with pytest.raises(
        RestoreError, match=r"lacks: Audit \$\(x\), Reader's röle, shop_owner \(the role 'tenant' may not create roles\)"
    ):
        restore(shop, url)
    assert before == state(bare)
    restore(shop, url, owners=False)
    assert shop.data == text_of(bare, "mine", bare, "-aOx")


def test_a_role_with_createrole_brings_the_roles(shop: Files, bare: Server) -> None:
    """No superuser: it becomes a member of the roles that it makes, and so can give them what is theirs."""
    query(bare, "postgres", "CREATE ROLE tenant LOGIN CREATEDB CREATEROLE")
    restore(shop, bare.database_url("mine", user="tenant", socket=True))
    assert [(SHOP_OWNER,)] == query(
        bare, "mine", "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname = 'customers'"
    )
    assert [(SHOP_OWNER,)] == query(bare, "mine", "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'mine'")


# --- what is refused before anything is touched ----------------------------------------------------------------------


def test_a_wrong_password_is_not_shown(small: Files, server17: Server, hosted: str) -> None:
    with pytest.raises(RestoreError, match=r"cannot connect to postgres at 127.0.0.1") as caught:
        restore(small, hosted.replace("Canary", "Wr0ng"))
    assert "S3cr3t" not in str(caught.value)


def test_an_unreachable_server_is_named(small: Files) -> None:
    with pytest.raises(RestoreError, match=r"cannot connect to .* at 127.0.0.1:1 as app"):
        restore(small, "postgresql://app@127.0.0.1:1/shop")


def test_an_older_server_is_refused(small: Files, server17: Server) -> None:
    newer = attrs.evolve(small, facts={**small.facts, "server": {"version_num": 180001}})
    before = state(server17)
    with pytest.raises(
        RestoreError, match=r"the backup is of PostgreSQL 18 and the server of .* is 17.*; restore into a server of version 18"
    ):
        restore(newer, server17.database_url("new"))
    assert before == state(server17)


def test_missing_extensions_are_named(shop: Files, server17: Server) -> None:
    contents = {
        **shop.contents,
        SHOP: shop.contents[SHOP].replace(b"\x06\x00\x00\x00citext\x00\x09", b"\x06\x00\x00\x00citexx\x00\x09"),
    }
    before = state(server17)
    with pytest.raises(RestoreError, match=r"lacks extensions that the backup needs: citexx; install them there"):
        restore(attrs.evolve(shop, contents=contents), server17.database_url("new"))
    assert before == state(server17)


def test_a_locale_that_the_server_lacks_is_named(small: Files, server17: Server, make_db: MakeDatabase) -> None:
    """An empty database that somebody has made lends its own."""
    strange = small.contents["database.sql"].replace(b"LOCALE = 'C'", b"LOCALE = 'xx_YY.utf8'")
    source = attrs.evolve(small, contents={**small.contents, "database.sql": strange})
    before = state(server17)
    with pytest.raises(
        RestoreError, match=r"cannot create a database with ENCODING = 'UTF8' .*'xx_YY.utf8'.*create an empty database 'new'"
    ):
        restore(source, server17.database_url("new"))
    assert before == state(server17)
    restore(source, make_db(server17, "given"))
    assert [(3000,)] == query(server17, "given", "SELECT count(*) FROM a")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tables": ("nonexistent",)}, RestoreError, "the backup has no table 'nonexistent'"),
        ({"sections": ("data",)}, Unsupported, "cannot be restored without 'pre-data'"),
        ({"jobs": 0}, ConfigError, "jobs = 0 is too few"),
    ],
)
def test_what_makes_no_sense_is_refused(
    small: Files, server17: Server, options: dict[str, Any], error: type[PgsnapError], said: str
) -> None:
    before = state(server17)
    with pytest.raises(error, match=said):
        restore(small, server17.database_url("new"), **options)
    assert before == state(server17)


@pytest.mark.parametrize("options", [{"tables": ("a",)}, {"sections": ("pre-data",)}, {"owners": False}])
def test_a_plain_dump_is_restored_whole_or_not_at_all(small_plain: Files, server17: Server, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="a plain dump"):
        restore(small_plain, server17.database_url("new"), **options)


def test_a_template_is_no_target(small: Files, server17: Server) -> None:
    with pytest.raises(ConfigError, match="'template1' is a template"):
        restore(small, server17.database_url("template1"))


def test_a_backup_without_a_dump_is_refused(small: Files, server17: Server) -> None:
    source = attrs.evolve(small, contents={"globals.sql": b""}, facts={})
    with pytest.raises(RestoreError, match=r"has no database dump among its artifacts \(globals.sql\)"):
        restore(source, server17.database_url("new"))


def test_what_is_no_archive_is_refused(small: Files, server17: Server) -> None:
    source = attrs.evolve(small, contents={**small.contents, SHOP: b"-- not an archive"})
    with pytest.raises(IntegrityError, match=f"{SHOP} of backup {ID} cannot be restored"):
        restore(source, server17.database_url("new"))


# --- servers older than the client -----------------------------------------------------------------------------------


@pytest.fixture
def old_server() -> Iterator[Server]:
    """A server older than 17: one of those that the session ``majors`` has fetched, or 15 where the system has it."""
    folder = os.environ.get("PGSNAP_TEST_BINDIRS", "").partition(os.pathsep)[0]
    with contextlib.ExitStack() as stack:
        try:
            old = stack.enter_context(throwaway_server(bindir=Path(folder)) if folder else throwaway_server(major=15))
        except ConfigError:
            missing("a server older than PostgreSQL 17")
        yield old


@pytest.mark.needs_old_server
@pytest.mark.parametrize("format", ["custom", "plain"])
def test_a_backup_by_a_newer_client_goes_back_into_an_old_server(
    server17: Server, server18: Server, old_server: Server, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """pg_restore 17 sets transaction_timeout, which servers before 17 refuse; everything else they understand."""
    old = old_server
    url = old.database_url("postgres")
    query(old, "postgres", "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n")
    query(old, "postgres", "SELECT lo_from_bytea(7, 'abc')" if format == "custom" else "CREATE ROLE x")
    taken = back_up(attrs.evolve(old, bindir=server17.bindir), url, server18, format)
    facts = {**taken.facts, "client": {"major": 17}}
    monkeypatch.setenv("PGSNAP_PG_BIN", server17.bindir)
    restore(attrs.evolve(taken, facts=facts), old.database_url("copy"))
    assert taken.data == text_of(old, "copy", server18, "-aOx")
    tables = ("t",) if format == "custom" else ()
    restore(attrs.evolve(taken, facts=facts), old.database_url("some"), tables=tables)
    assert [(5000,)] == query(old, "some", "SELECT count(*) FROM t")
    before = state(old)
    with pytest.raises(Broken):
        restore(attrs.evolve(taken, facts=facts).failing(fail_at(-1)), old.database_url("new"))
    assert before == state(old)
