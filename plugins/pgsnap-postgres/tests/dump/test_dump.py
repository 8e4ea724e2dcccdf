"""PgDump.dump on real servers: whole or an error, and nothing left behind on either side."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from pgsnap import Aborted, BusyError, ConfigError, Dump, DumpError, PgsnapError, Run, Secret
from pgsnap.streams.process import Child
from pgsnap_postgres import PgDump
from pgsnap_postgres.dump import snapshot
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import SHOP_AUDITOR, SHOP_OWNER, SHOP_OWNER_PASSWORD, SHOP_READER, MakeDatabase, database_name

CANARY = "S3cr3t-Cänary/of the?role"


def read_all(dump: Dump) -> dict[str, bytes]:
    """Consume the artifacts in order."""
    return {artifact.name: b"".join(artifact.open()) for artifact in dump.artifacts}


@pytest.fixture
def big(server: Server, make_db: MakeDatabase) -> str:
    """A database of which pg_dump has more to say than fits into pipes."""
    url = make_db(server)
    with psycopg.connect(url) as setup:
        setup.execute("CREATE TABLE big AS SELECT i, md5(i::text) || md5((-i)::text) AS x FROM generate_series(1, 120000) i")
    return url


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test ends with the threads that it began with."""
    before = set(threading.enumerate())
    yield
    assert set() == set(threading.enumerate()) - before


def check_nothing_is_left(url: str, run: ListeningRun | None = None) -> None:
    """No session of ours stays on the server, and no child here."""
    query = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'pgsnap%'"
    deadline = time.monotonic() + 10
    with psycopg.connect(url, autocommit=True) as looker:
        while (left := looker.execute(query).fetchall()) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert [] == left
    for child in run.children if run else ():
        assert child.process.returncode is not None


class ListeningRun(Run):
    """Keeps the children that it starts."""

    def __init__(self, pipeline: str = "test", *, encrypted: bool = False) -> None:
        super().__init__(pipeline, "20261122T080000Z-4f3a", encrypted=encrypted)
        self.children: list[Child] = []

    def spawn(self, argv: Sequence[str], **given: Any) -> Child:
        child = super().spawn(argv, **given)
        self.children.append(child)
        return child

    @property
    def pg_dump(self) -> Child:
        """The last pg_dump that was started."""
        return [child for child in self.children if child.argv[0].endswith("pg_dump")][-1]


# --- what a dump is --------------------------------------------------------------------------------------------------


def test_a_dump_is_three_artifacts_and_facts(server: Server, shop_db: str) -> None:
    run = ListeningRun()
    with PgDump(url=shop_db).dump(run) as dump:
        names = [artifact.name for artifact in dump.artifacts]
        compressed = [artifact.compressed for artifact in dump.artifacts]
        data = read_all(dump)
    assert names == list(data)
    assert names[0] == dump.facts["artifact"]
    assert re.fullmatch(r"Shop_[A-Za-z0-9._-]+\.dump", names[0])
    assert ["database.sql", "globals.sql"] == names[1:]
    assert data[names[0]].startswith(b"PGDMP")
    assert b"ENCODING" in data["database.sql"]
    assert b"CREATE ROLE" in data["globals.sql"]
    zstd = server.major == 17  # the wheel of 18 is built without
    assert [zstd, False, False] == compressed
    facts = dump.facts
    assert ("custom", "zstd:1" if zstd else "none") == (facts["format"], facts["compression"])
    assert server.major == facts["server"]["version_num"] // 10000 == facts["client"]["major"]
    assert re.fullmatch(r"\d{15,20}", facts["identity"]["system_identifier"])
    assert "UTF8" == facts["identity"]["encoding"]
    assert {SHOP_OWNER, SHOP_AUDITOR} <= set(facts["roles"])
    assert {"passwords": False, "complete": True} == facts["globals"]
    assert facts["totals"]["tables"] > 3
    assert facts["large_objects"] > 0
    assert "plpgsql" in [extension["name"] for extension in facts["extensions"]]
    shown = repr(facts)
    assert not any(word in shown for word in ("127.0.0.1", database_name(shop_db), run.pipeline + "@"))
    check_nothing_is_left(shop_db, run)


def test_plain_format_is_text_that_the_pipeline_compresses(server: Server, shop_db: str) -> None:
    with PgDump(url=shop_db, format="plain").dump(ListeningRun()) as dump:
        assert not dump.artifacts[0].compressed
        data = read_all(dump)
    assert dump.facts["artifact"].endswith(".sql")
    assert b"PostgreSQL database dump complete" in data[dump.facts["artifact"]]
    assert b"ENCODING" in data["database.sql"]
    assert dump.facts["objects"] > 10


def test_artifacts_may_be_left_unread(server: Server, shop_db: str) -> None:
    run = ListeningRun()
    with PgDump(url=shop_db).dump(run):
        pass
    check_nothing_is_left(shop_db, run)
    with PgDump(url=shop_db).dump(run) as dump:  # out of order: the definitions come from a dump of their own
        assert b"ENCODING" in b"".join(dump.artifacts[1].open())
    check_nothing_is_left(shop_db, run)


def test_all_that_is_read_comes_from_the_moment_of_the_snapshot(server: Server, big: str) -> None:
    with PgDump(url=big, format="plain", globals="no").dump(ListeningRun()) as dump, psycopg.connect(big) as other:
        other.execute("DELETE FROM big")
        other.execute("COMMIT")
        text = b"".join(dump.artifacts[0].open())
    assert 120000 == len(re.findall(rb"^\d+\t[0-9a-f]{64}$", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["a'b", "$(touch x)", " two  blanks ", "dätä", "a=b", 'q"d', "postgres://x/y"])
def test_databases_of_any_name_are_dumped(server18: Server, make_db: MakeDatabase, name: str) -> None:
    with PgDump(url=make_db(server18, name)).dump(ListeningRun()) as dump:
        data = read_all(dump)
    assert data[dump.facts["artifact"]].startswith(b"PGDMP")
    assert b"CREATE ROLE" in data["globals.sql"]


def test_passwords_of_roles_are_kept_only_if_something_encrypts(server: Server, shop_db: str) -> None:
    with PgDump(url=shop_db).dump(ListeningRun(encrypted=True)) as dump:
        assert b"SCRAM-SHA-256$" in read_all(dump)["globals.sql"]
    assert {"passwords": True, "complete": True} == dump.facts["globals"]
    with PgDump(url=shop_db).dump(ListeningRun()) as dump:
        assert b"SCRAM-SHA-256$" not in read_all(dump)["globals.sql"]
    assert any("nothing in the pipeline encrypts" in note for note in dump.facts["notes"])


def test_a_plain_owner_backs_up_its_database_and_the_roles_without_passwords(server: Server, shop_db: str) -> None:
    """No superuser is needed; the facts say what is missing."""
    url = server.database_url(database_name(shop_db), user=SHOP_OWNER, password=SHOP_OWNER_PASSWORD)
    with PgDump(url=url).dump(ListeningRun(encrypted=True)) as dump:
        data = read_all(dump)
    assert data[dump.facts["artifact"]].startswith(b"PGDMP")
    assert SHOP_READER.encode() in data["globals.sql"]
    assert {"passwords": False, "complete": True} == dump.facts["globals"]
    assert any("may not read them" in note for note in dump.facts["notes"])


def test_globals_can_be_left_out(server18: Server, make_db: MakeDatabase) -> None:
    with PgDump(url=make_db(server18), globals="no").dump(ListeningRun()) as dump:
        assert ["database.sql"] == [artifact.name for artifact in dump.artifacts[1:]]


def test_options_choose_what_is_dumped(server: Server, shop_db: str) -> None:
    """All of them together, on both majors; what was left out is noted without naming it."""
    with psycopg.connect(shop_db) as setup:
        setup.execute("CREATE SCHEMA chosen; CREATE TABLE chosen.whole AS SELECT 'whole row'::text AS x")
        setup.execute("CREATE TABLE chosen.empty AS SELECT 'left row'::text AS x; CREATE TABLE chosen.gone AS SELECT 1 AS i")
    dumper = PgDump(
        url=shop_db,
        format="plain",
        schemas=("chosen",),
        exclude_tables=("chosen.gone",),
        exclude_table_data=("chosen.empty",),
        large_objects=False,
        globals="yes",
    )
    with dumper.dump(ListeningRun()) as dump:
        text = read_all(dump)[dump.facts["artifact"]]
    assert b"whole row" in text
    assert b"CREATE TABLE chosen.empty" in text
    assert b"left row" not in text
    assert b"chosen.gone" not in text
    assert b"Sales & Co" not in text.replace(database_name(shop_db).encode(), b"")
    assert (2, 0) == (dump.facts["totals"]["tables"], dump.facts["large_objects"])
    assert any("leave a part of the database out" in note for note in dump.facts["notes"])


def test_role_is_set_before_the_dump(server: Server, shop_db: str) -> None:
    """The owner may read everything; the role that it is asked to be may not."""
    with PgDump(url=shop_db, role=SHOP_OWNER).dump(ListeningRun()) as dump:
        assert read_all(dump)
    with pytest.raises(DumpError, match="no permission to read"), PgDump(url=shop_db, role=SHOP_READER).dump(ListeningRun()):
        pass


def test_a_pattern_that_matches_nothing_is_an_error(server: Server, shop_db: str) -> None:
    with (
        pytest.raises(DumpError, match="no matching tables were found"),
        PgDump(url=shop_db, tables=("nonexist",)).dump(ListeningRun()),
    ):
        pass


# --- what must not end it --------------------------------------------------------------------------------------------


def test_no_timeout_of_the_role_ends_a_dump(server: Server, make_db: MakeDatabase) -> None:
    """Every timeout of the server set to one second for the role, and a consumer that takes longer than that."""
    url = make_db(server)
    with psycopg.connect(url, autocommit=True) as setup:
        setup.execute("DROP ROLE IF EXISTS hurried")
        setup.execute("CREATE ROLE hurried LOGIN SUPERUSER PASSWORD 'h'")
        try:
            for name in ("statement", "lock", "idle_in_transaction_session", "idle_session", "transaction"):
                setup.execute(f"ALTER ROLE hurried SET {name}_timeout = '1s'")
            setup.execute("CREATE TABLE big AS SELECT i, md5(i::text) || md5((-i)::text) AS x FROM generate_series(1, 120000) i")
            hurried = server.database_url(database_name(url), user="hurried", password="h")
            with PgDump(url=hurried, format="plain").dump(ListeningRun()) as dump:
                stream = dump.artifacts[0].open()
                first = next(stream)
                time.sleep(2.5)  # longer than each of them
                text = first + b"".join(stream)
                assert b"".join(dump.artifacts[1].open())
                assert b"".join(dump.artifacts[2].open())
            assert b"\n120000\t" in text
        finally:
            setup.execute("DROP OWNED BY hurried; DROP ROLE hurried")


def test_a_lost_holder_is_noted_and_the_dump_goes_on(
    server: Server, big: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """pg_dump has imported the snapshot and has locks of its own."""
    monkeypatch.setattr(snapshot, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(snapshot, "ALIVE_EVERY", 0.1)
    with PgDump(url=big, globals="no").dump(ListeningRun()) as dump, psycopg.connect(big, autocommit=True) as other:
        stream = dump.artifacts[0].open()
        first = next(stream)
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsnap 2026%' "
            "AND state = 'idle in transaction'"
        )
        deadline = time.monotonic() + 20
        while "snapshot was lost" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (first + b"".join(stream)).startswith(b"PGDMP")
    assert any("The connection that held the snapshot was lost" in note for note in dump.facts["notes"])


# --- what must end it ------------------------------------------------------------------------------------------------


def test_pg_dump_killed_in_the_middle_is_an_error_and_leaves_nothing(server: Server, big: str) -> None:
    run = ListeningRun()
    with PgDump(url=big, compress="none").dump(run) as dump:
        stream = dump.artifacts[0].open()
        assert next(stream)
        os.kill(run.pg_dump.process.pid, signal.SIGKILL)
        with pytest.raises(DumpError, match="pg_dump was ended by SIGKILL"):
            b"".join(stream)
    check_nothing_is_left(big, run)


def test_a_session_of_pg_dump_ended_by_the_server_is_an_error(server: Server, big: str) -> None:
    run = ListeningRun()
    with PgDump(url=big, compress="none").dump(run) as dump, psycopg.connect(big, autocommit=True) as other:
        stream = dump.artifacts[0].open()
        next(stream)
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsnap-dump%'")
        with pytest.raises(DumpError, match="pg_dump failed with exit status 1"):
            b"".join(stream)
    check_nothing_is_left(big, run)


def test_a_stream_closed_in_the_middle_leaves_nothing(server: Server, big: str) -> None:
    run = ListeningRun()
    with PgDump(url=big, compress="none").dump(run) as dump:
        stream = dump.artifacts[0].open()
        next(stream)
        stream.close()
        assert run.pg_dump.process.returncode is not None
    check_nothing_is_left(big, run)


def test_an_abort_ends_the_stream_and_leaves_nothing(server: Server, big: str) -> None:
    run = ListeningRun()
    with PgDump(url=big, compress="none").dump(run) as dump:
        stream = dump.artifacts[0].open()
        next(stream)
        run.abort("the test said so.")
        with pytest.raises(PgsnapError):
            b"".join(stream)
    check_nothing_is_left(big, run)


def test_an_abort_ends_a_wait_for_a_lock(server: Server, big: str) -> None:
    run = ListeningRun()
    with psycopg.connect(big) as blocker, psycopg.connect(big, autocommit=True) as looker:
        blocker.execute("LOCK TABLE big IN ACCESS EXCLUSIVE MODE")

        def abort_when_waiting() -> None:
            deadline = time.monotonic() + 20
            while not looker.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall() and time.monotonic() < deadline:
                time.sleep(0.02)
            run.abort("the test said so.")

        thread = threading.Thread(target=abort_when_waiting)
        thread.start()
        began = time.monotonic()
        with pytest.raises(Aborted, match="the test said so"), PgDump(url=big, lock_timeout=60).dump(run):
            pass
        thread.join()
        assert time.monotonic() - began < 30
        blocker.rollback()
    check_nothing_is_left(big, run)


def test_a_pg_dump_killed_while_it_waits_leaves_no_session_that_blocks_others(server: Server, big: str) -> None:
    """After SIGKILL its server process would stay queued for the lock, and everybody behind it."""
    with psycopg.connect(big, autocommit=True) as other, psycopg.connect(big, autocommit=True) as racer:
        threads: list[threading.Thread] = []

        class Killing(ListeningRun):
            def spawn(self, argv: Sequence[str], **given: Any) -> Child:
                threads.append(threading.Thread(target=racer.execute, args=("TRUNCATE big",)))
                threads[-1].start()
                self.wait_for(1)
                child = super().spawn(argv, **given)
                self.wait_for(2)
                child.process.kill()
                return child

            def wait_for(self, count: int) -> None:
                query = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
                deadline = time.monotonic() + 20
                while other.execute(query).fetchone() != (count,) and time.monotonic() < deadline:
                    time.sleep(0.01)

        run = Killing()
        with pytest.raises(DumpError, match="SIGKILL"), PgDump(url=big).dump(run):
            pass
        threads[0].join(20)
        assert not threads[0].is_alive()
    check_nothing_is_left(big, run)


def test_the_next_run_never_finds_the_one_before_busy(server: Server, shop_db: str) -> None:
    """When the context is left the lock is let go by the server, and not only asked to be by a connection that closes."""
    with psycopg.connect(shop_db, autocommit=True) as looking:
        for _ in range(10):
            with PgDump(url=shop_db).dump(ListeningRun()) as dump:
                read_all(dump)
            held = looking.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database IS NOT NULL").fetchall()
            assert [] == held


def test_two_runs_of_one_pipeline_exclude_each_other(server: Server, big: str) -> None:
    """The second names the first, by its host and backup id; another pipeline may go at the same time."""
    with PgDump(url=big).dump(ListeningRun("shop")):
        words = r"pipeline 'shop' holds.*pgsnap 20261122T080000Z-4f3a .* shop@.*; wait"
        with pytest.raises(BusyError, match=words), PgDump(url=big).dump(ListeningRun("shop")):
            pass
        with PgDump(url=big).dump(ListeningRun("other")) as dump:
            assert read_all(dump)
    with PgDump(url=big).dump(ListeningRun("shop")):
        pass


# --- bad input, and secrets ------------------------------------------------------------------------------------------


@pytest.fixture
def canary_role(server: Server) -> Iterator[str]:
    with psycopg.connect(server.url, autocommit=True) as setup:
        setup.execute(f"CREATE ROLE canary LOGIN SUPERUSER PASSWORD '{CANARY}'")
        yield "canary"
        setup.execute("DROP OWNED BY canary; DROP ROLE canary")


def shown_by(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error)) + repr(error)


def test_what_cannot_be_reached_is_one_sentence_with_the_next_step(
    server: Server, make_db: MakeDatabase, canary_role: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        dead = taken.getsockname()[1]
        secret = quote(CANARY, safe="")
        here = f"127.0.0.1:{server.port}"
        for url, words in {
            f"postgresql://canary:{secret}x@{here}/postgres": "password authentication failed.*; correct the user",
            f"postgresql://nobody_such:{secret}@{here}/postgres": "authentication failed|does not exist",
            f"postgresql://canary:{secret}@{here}/no_such_db": 'database "no_such_db" does not exist; correct the database',
            f"postgresql://canary:{secret}@127.0.0.1:{dead}/x": "refused.*; check the host and the port",
            f"postgresql://canary:{secret}@no-such-host.invalid/x": "; correct the host in the URL",
            f"postgresql://canary:{secret}@{here}/postgres?target_session_attrs=nonsense": "target_session_attrs.*; check",
        }.items():
            dumper = PgDump(url=Secret(url))
            with pytest.raises(DumpError, match=words) as caught, dumper.dump(ListeningRun()):
                pass
            findings = dumper.preflight(ListeningRun())
            assert "error" == findings[-1].level
            for shown in (shown_by(caught.value), repr(findings), repr(dumper)):
                assert "Cänary" not in shown
                assert "S3cr3t" not in shown
            assert str(caught.value).startswith("cannot connect to ")
            assert "\n" not in str(caught.value)


def test_a_role_that_does_not_exist_is_a_sentence(server: Server) -> None:
    with pytest.raises(DumpError, match='role "no_such" does not exist'), PgDump(url=server.url, role="no_such").dump(Run()):
        pass


def test_clients_older_than_the_server_are_refused(server18: Server, server17: Server) -> None:
    with pytest.raises(ConfigError, match="17"), PgDump(url=server18.url, bindir=server17.bindir).dump(Run()):
        pass


def test_the_password_is_on_no_command_line_and_in_no_log(
    server: Server, big: str, canary_role: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    url = server.database_url(database_name(big), user=canary_role, password=CANARY)
    run = ListeningRun(encrypted=True)
    with PgDump(url=url, compress="none").dump(run) as dump:
        seen = 0
        for artifact in dump.artifacts:
            for _ in artifact.open():
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        line = path.read_bytes()
                    except OSError:
                        continue
                    seen += b"service=pgsnap" in line
                    assert b"S3cr3t" not in line
    assert seen
    assert all("S3cr3t" not in value for child in run.children for value in child.argv)
    assert "S3cr3t" not in caplog.text + repr(dump.facts) + repr(dump)


def test_preflight_finds_nothing_wrong_with_a_good_database(server: Server, shop_db: str) -> None:
    findings = PgDump(url=shop_db).preflight(Run(encrypted=True))
    assert {"ok", "info"} >= {finding.level for finding in findings}
    assert {"database", "pg_dump", "tables"} <= {finding.subject for finding in findings}


def rows_after(url: str, *statements: str) -> object:
    """Execute statements in a session; when it has ended, and the server has counted what it did, return the rows of a dump."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
    with PgDump(url=url).dump(Run()) as dump:
        return dump.facts["totals"].get("rows")


def test_rows_are_the_servers_estimate_or_unknown(server: Server, make_db: MakeDatabase) -> None:
    """Known once every table was analyzed; a table that nobody has looked at makes the sum unknown, not smaller."""
    url = make_db(server)
    tables = [f"CREATE TABLE {name} WITH (autovacuum_enabled = false) AS SELECT generate_series(1, 500)" for name in "abc"]
    assert rows_after(url, *tables) is None
    assert rows_after(url, "ANALYZE a", "ANALYZE b") is None
    assert 1500 == rows_after(url, "ANALYZE c")
    assert 1500 == rows_after(url, "DELETE FROM a")
    assert 1000 == rows_after(url, "ANALYZE a")


def test_rows_are_unknown_where_many_came_since_the_server_looked(server: Server, make_db: MakeDatabase) -> None:
    """A table that was emptied, looked at and filled again has rows, and the guard must not be told that it has none."""
    url = make_db(server)
    fill = "INSERT INTO a SELECT generate_series(1, 1000)"
    assert 1000 == rows_after(url, "CREATE TABLE a (i int) WITH (autovacuum_enabled = false)", fill, "ANALYZE a")
    assert 0 == rows_after(url, "DELETE FROM a", "VACUUM ANALYZE a")
    assert rows_after(url, fill) is None
    assert 1000 == rows_after(url, "ANALYZE a")
    assert 1000 == rows_after(url, "INSERT INTO a SELECT generate_series(1, 100)")
    assert 0 == rows_after(url, "DELETE FROM a", "ANALYZE a")
