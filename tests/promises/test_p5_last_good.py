"""P5: the last good backups are never deleted by us, with real servers and processes: one run at a time, a prune beside a run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from desk import Desk
from waiting import wait_for

POLICY = "keep = { last = 1, min_good = 1 }"


@pytest.fixture
def waiting(desk: Desk, fake_pg_dump: Any, tmp_path: Path) -> Path:
    """Configure a dump that writes some of it, and waits for the file returned before it writes the rest."""
    gate = tmp_path / "gate"
    wait = f"touch '{gate}.begun'; while [ ! -e '{gate}' ]; do sleep 0.05; done"
    programs = fake_pg_dump(f'"$REAL" "$@" | {{ head -c 100000; {wait}; cat; }}')
    desk.configure(dump=f'compress = "none"\nbindir = "{programs}"', more=POLICY)
    return gate


def test_two_backups_at_once(desk: Desk, big_url: str, waiting: Path) -> None:
    """Exactly one runs; the other ends with code 75 and names it, and leaves nothing behind."""
    first = desk.start("backup", DATABASE_URL=big_url)
    wait_for(Path(f"{waiting}.begun").exists, "the first dump to begin")
    second = desk.run("backup", DATABASE_URL=big_url)
    assert 75 == second.returncode, second.stderr
    assert "another run of the pipeline 'shop' holds this database's lock: " in second.stderr
    assert "pgsnap" in second.stderr
    waiting.touch()
    _, err = first.communicate(timeout=60)
    assert 0 == first.returncode, err
    assert [1, 1] == [len(desk.committed(store)) for store in ("one", "two")]
    assert {path.parent for path in desk.files("one")} == set(desk.committed("one"))


def test_many_backups_at_once(desk: Desk, big_url: str) -> None:
    """Started in the same moment: at least one makes a backup, the others are busy, and none does anything else."""
    desk.configure(more=POLICY)
    runs = [desk.start("backup", DATABASE_URL=big_url) for _ in range(3)]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes in ([0, 75, 75], [0, 0, 75], [0, 0, 0]), errors
    assert 0 == desk.run("verify", "--all").returncode


def test_a_prune_beside_a_running_backup(desk: Desk, big_url: str, waiting: Path) -> None:
    """However old the objects of the run look: its sign of life protects them, and it ends well."""
    first = desk.start("backup", DATABASE_URL=big_url)
    wait_for(Path(f"{waiting}.begun").exists, "the dump to begin")
    alive = [path for path in desk.files() if path.name == "running.json"]
    assert 1 == len(alive)
    month_ago = time.time() - 30 * 86400
    finished = alive[0].with_name("earlier.artifact")
    finished.write_text("written a month ago")
    os.utime(finished, (month_ago, month_ago))
    for _ in range(3):
        assert 0 == desk.run("prune").returncode
    assert finished.exists()
    waiting.touch()
    _, err = first.communicate(timeout=60)
    assert 0 == first.returncode, err
    finished.unlink()
    done = desk.run("verify")
    assert 0 == done.returncode, done.stderr


def test_an_emptied_database_does_not_push_the_good_ones_out(desk: Desk, make_db: Any, server17: Any) -> None:
    """Four runs on a truncated database under ``last = 1``: the backup with the rows is still there."""
    desk.configure(more=POLICY, stores=("one",), dump='compress = "none"')
    url = make_db(server17)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE big AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i")
    assert 0 == desk.run("backup", DATABASE_URL=url).returncode
    (good,) = desk.committed()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE big")
    for _ in range(4):
        done = desk.run("backup", DATABASE_URL=url)
        assert 4 == done.returncode, done.stderr
        assert "SUSPECT" in done.stderr
        assert 4 == desk.run("prune").returncode
    assert good in desk.committed()
    assert 5 == len(desk.committed())
    assert 4 == desk.run("status").returncode
    suspects = [folder.name for folder in desk.committed() if (folder / "suspect.json").exists()]
    for id in suspects:
        assert 0 == desk.run("ack", id).returncode
    done = desk.run("backup", DATABASE_URL=url)
    assert 0 == done.returncode, done.stderr
    assert 1 == len(desk.committed()), done.stderr


def test_another_database_under_the_same_name_is_suspect(desk: Desk, make_db: Any, server17: Any) -> None:
    """A URL that leads to the wrong server or database is noticed by the identity, whatever the size."""
    desk.configure(stores=("one",))
    assert 0 == desk.run("backup", DATABASE_URL=make_db(server17)).returncode
    done = desk.run("backup", DATABASE_URL=make_db(server17))
    assert 4 == done.returncode
    assert "it is of another database than" in done.stderr
    assert "database oid" in done.stderr


def test_a_prune_by_another_key(desk: Desk, big_url: str) -> None:
    """With auto_prune off the backup deletes nothing; the command does, elsewhere."""
    desk.configure(more=POLICY + "\nauto_prune = false", stores=("one",))
    for _ in range(2):
        assert 0 == desk.run("backup", DATABASE_URL=big_url).returncode
    assert 2 == len(desk.committed())
    assert 0 == desk.run("prune").returncode
    assert 1 == len(desk.committed())
