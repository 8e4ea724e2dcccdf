"""Changes of tables that race with the beginning of a dump: what is dumped is one moment, and nothing hangs.

Each change writes to ``log`` in its own transaction. So whatever moment the dump shows, either it has the log's line and the
change, or neither. A snapshot without locks shows the line missing and the table empty.
"""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import psycopg
import pytest

from pgsnap import DumpError, Run
from pgsnap.streams.process import Child, read_process
from pgsnap_postgres import PgDump
from pgsnap_postgres.clients import find_clients
from pgsnap_postgres.dump import snapshot
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase

TRIES = 50  # for each of the two servers
ROWS = 50
CHANGES = {
    "truncate": "TRUNCATE shop; INSERT INTO log VALUES (1)",
    "alter": "ALTER TABLE shop ADD COLUMN more int DEFAULT 7; INSERT INTO log VALUES (1)",
    "rewrite": "ALTER TABLE shop ALTER COLUMN i TYPE bigint; INSERT INTO log VALUES (1)",
    "rename": "ALTER TABLE shop RENAME TO renamed; INSERT INTO log VALUES (1)",
    "drop": "DROP TABLE shop; INSERT INTO log VALUES (1)",
}


@pytest.fixture
def url(server: Server, make_db: MakeDatabase) -> str:
    url = make_db(server)
    with psycopg.connect(url, autocommit=True) as setup:
        for number in range(20):  # something to do between the first lock and the last
            setup.execute(f"CREATE TABLE other{number} (i int PRIMARY KEY)")
    return url


def reset(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    connection.execute("DROP TABLE IF EXISTS shop, renamed, log; CREATE TABLE log (i int)")
    connection.execute(f"CREATE TABLE shop AS SELECT i FROM generate_series(1, {ROWS}) i")


def text_of(server: Server, dumper: PgDump, run: Run | None = None) -> str:
    """Return a dump as SQL text."""
    with dumper.dump(run or Run("race")) as dump:
        data = b"".join(dump.artifacts[0].open())
    if dumper.format == "custom":
        clients = find_clients(server.major, need=["pg_restore"], bindir=server.bindir)
        data = subprocess.run([clients.pg_restore, "-f", "-"], input=data, capture_output=True, check=True).stdout
    return data.decode()


def rows_of(text: str, table: str) -> list[str] | None:
    """Return the rows of a table in SQL text, or None if it is not there."""
    match = re.search(rf"^COPY public\.{table} \([^)]*\) FROM stdin;\n(.*?)^\\\.$", text, re.MULTILINE | re.DOTALL)
    return None if match is None else match[1].splitlines()


def check_one_moment(change: str, text: str) -> bool:
    """Assert that the dump shows the time before the change or after it; return whether it is after."""
    after = rows_of(text, "log") == ["1"]
    rows = rows_of(text, "shop")
    more = "more integer" in text
    big = "i bigint" in text
    state = (rows is not None and len(rows), more, big, len(rows_of(text, "renamed") or ()))
    before = (ROWS, False, False, 0)
    changed = {
        "truncate": (0, False, False, 0),
        "alter": (ROWS, True, False, 0),
        "rewrite": (ROWS, False, True, 0),
        "rename": (False, False, False, ROWS),
        "drop": (False, False, False, 0),
    }
    assert (changed[change] if after else before) == state
    return after


def test_a_change_that_races_with_the_beginning_is_wholly_in_the_dump_or_not_at_all(server: Server, url: str) -> None:
    """TRUNCATE, ALTER, RENAME and DROP at moments spread over the beginning of a dump, 100 tries over both servers."""
    moments = random.Random(2)
    seen = {True: 0, False: 0}
    with psycopg.connect(url, autocommit=True) as setup, psycopg.connect(url, autocommit=True) as racer:
        for number in range(TRIES):
            change = list(CHANGES)[number % len(CHANGES)]
            format: Literal["custom", "plain"] = "plain" if number % 3 == 2 else "custom"
            reset(setup)
            failures: list[BaseException] = []

            def race(
                delay: float = moments.uniform(0, 0.15), change: str = change, failures: list[BaseException] = failures
            ) -> None:
                time.sleep(delay)
                try:
                    racer.execute(f"BEGIN; {CHANGES[change]}; COMMIT")
                except BaseException as error:
                    failures.append(error)

            thread = threading.Thread(target=race)
            thread.start()
            dumper = PgDump(url=url, format=format, globals="no", lock_timeout=20, compress="none")
            text = text_of(server, dumper)
            thread.join()
            assert [] == failures
            seen[check_one_moment(change, text)] += 1
    assert all(seen.values()), f"the tries did not reach both sides of the race: {seen}"


class MeddlingRun(Run):
    """Lets something happen just before each child is started: after the holder has its locks and before pg_dump has any."""

    def __init__(self, meddle: Callable[[int], None]) -> None:
        super().__init__("meddled")
        self._meddle = meddle
        self.started = 0

    def spawn(self, argv: Sequence[str], **given: Any) -> Child:
        self.started += 1
        self._meddle(self.started)
        return super().spawn(argv, **given)


def waiting(connection: psycopg.Connection[tuple[object, ...]], count: int) -> None:
    """Return when so many sessions of this database wait for a lock."""
    query = (
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE NOT granted AND datname = current_database()"
    )
    deadline = time.monotonic() + 20
    while connection.execute(query).fetchone() != (count,):
        assert time.monotonic() < deadline, "nobody waited"
        time.sleep(0.01)


@pytest.mark.parametrize("format", ["custom", "plain"])
def test_a_session_that_queues_between_holder_and_pg_dump_is_let_through(
    server: Server, url: str, format: Literal["custom", "plain"]
) -> None:
    """It waits for the holder, pg_dump would wait for it: the dump gives way within seconds and begins again."""
    threads: list[threading.Thread] = []
    with psycopg.connect(url, autocommit=True) as setup, psycopg.connect(url, autocommit=True) as racer:
        reset(setup)

        def meddle(started: int) -> None:
            if started == 1:
                thread = threading.Thread(target=racer.execute, args=(f"BEGIN; {CHANGES['truncate']}; COMMIT",))
                thread.start()
                threads.append(thread)
                waiting(setup, 1)

        began = time.monotonic()
        run = MeddlingRun(meddle)
        text = text_of(server, PgDump(url=url, format=format, globals="no", lock_timeout=30), run)
        threads[0].join()
        assert check_one_moment("truncate", text) is True
        assert time.monotonic() - began < 20
        assert run.started >= 2


def test_without_locks_the_same_change_would_be_seen(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a snapshot that is exported without locks gives an empty table with exit status 0, and the check says so."""

    def begin_only(held: snapshot.Held, tables: object, timeout: float) -> None:
        held.connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    monkeypatch.setattr(snapshot, "_lock", begin_only)
    with psycopg.connect(url, autocommit=True) as setup:
        reset(setup)

        def meddle(started: int) -> None:
            setup.execute(f"BEGIN; {CHANGES['truncate']}; COMMIT")

        text = text_of(server, PgDump(url=url, globals="no"), MeddlingRun(meddle))
    with pytest.raises(AssertionError):
        check_one_moment("truncate", text)


def test_a_session_that_waits_behind_the_whole_dump_is_noticed(
    server: Server, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, warned about once, and written down in the facts."""
    monkeypatch.setattr(snapshot, "LOOK_EVERY", 0.1)
    threads: list[threading.Thread] = []
    with psycopg.connect(url, autocommit=True) as setup, psycopg.connect(url, autocommit=True) as racer:
        reset(setup)
        with PgDump(url=url, globals="no").dump(Run("watched")) as dump:
            threads.append(threading.Thread(target=racer.execute, args=("DROP TABLE shop",)))
            threads[0].start()
            waiting(setup, 1)
            deadline = time.monotonic() + 20
            while "1 sessions wait" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.05)
            for artifact in dump.artifacts:
                for _ in artifact.open():
                    pass
        threads[0].join()
    assert 1 == caplog.text.count("1 sessions wait behind the dump's locks")
    assert "Up to 1 sessions waited behind the dump's locks." in dump.facts["notes"]


def test_a_lock_that_is_not_to_be_had_ends_with_the_name_of_its_holder(server: Server, url: str) -> None:
    """Three bounded attempts, then one sentence with the pid, the user and the application, and without the query."""
    with psycopg.connect(url, application_name="nightly report") as blocker, psycopg.connect(url, autocommit=True) as setup:
        reset(setup)
        blocker.execute("LOCK TABLE shop IN ACCESS EXCLUSIVE MODE")
        pid = blocker.info.backend_pid
        words = rf"could not be locked within 0.4 s: pid {pid} \(user postgres, application 'nightly report'\) holds it; wait"
        with pytest.raises(DumpError, match=words), PgDump(url=url, lock_timeout=0.4).dump(Run("blocked")):
            pass
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgsnap%'"
        deadline = time.monotonic() + 10
        while setup.execute(query).fetchone() != (0,) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (0,) == setup.execute(query).fetchone()


def test_a_lock_that_is_freed_in_time_is_only_a_wait(server: Server, url: str) -> None:
    with psycopg.connect(url) as blocker, psycopg.connect(url, autocommit=True) as setup:
        reset(setup)
        blocker.execute("BEGIN; TRUNCATE shop; INSERT INTO log VALUES (1)")

        def let_go() -> None:
            waiting(setup, 1)
            blocker.execute("COMMIT")

        thread = threading.Thread(target=let_go)
        thread.start()
        text = text_of(server, PgDump(url=url, globals="no", lock_timeout=20))
        thread.join()
        assert check_one_moment("truncate", text) is True


def test_read_process_is_what_the_tests_above_rely_on() -> None:
    """The dump's children come by ``run.spawn``: otherwise ``MeddlingRun`` would meddle with nothing."""
    started: list[int] = []
    assert b"x" == b"".join(read_process(["printf", "x"], start=MeddlingRun(started.append).spawn))
    assert [1] == started


def test_a_deadlock_with_a_session_that_locks_in_the_other_order_is_only_a_retry(server: Server, url: str) -> None:
    """The holder has locked one table and waits for the other; the session has that one, and then wants the first."""
    with psycopg.connect(url) as blocker, psycopg.connect(url, autocommit=True) as setup:
        reset(setup)
        blocker.execute("SET deadlock_timeout = '30s'")  # so that it is the holder that is chosen
        blocker.execute("TRUNCATE shop; INSERT INTO log VALUES (1)")

        def meet() -> None:
            waiting(setup, 1)
            blocker.execute("LOCK TABLE other0 IN ACCESS EXCLUSIVE MODE")
            blocker.execute("COMMIT")

        thread = threading.Thread(target=meet)
        thread.start()
        text = text_of(server, PgDump(url=url, globals="no", lock_timeout=20))
        thread.join()
        assert check_one_moment("truncate", text) is True
