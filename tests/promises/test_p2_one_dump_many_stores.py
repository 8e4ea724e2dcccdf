"""P2: one stream feeds every store; a store that fails drops out, stops nobody, and catches up by copy, not by a second dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from desk import Desk


def counting_pg_dump(folder: Path, real: Path) -> tuple[str, Path]:
    """Make a folder of client programs whose pg_dump writes a line for each dump that it takes."""
    folder.mkdir()
    for program in real.iterdir():
        if program.name != "pg_dump":
            (folder / program.name).symlink_to(program)
    log = folder / "dumps.log"
    (folder / "pg_dump").write_text(
        f'#!/bin/sh\ncase "$*" in *--snapshot*) echo dump >> "{log}";; esac\nexec "{real / "pg_dump"}" "$@"\n'
    )
    (folder / "pg_dump").chmod(0o755)
    return str(folder), log


def test_three_stores_get_the_same_bytes_of_one_dump(desk: Desk, big_url: str, server17: Any, tmp_path: Path) -> None:
    """One pg_dump ran; the folders are the same, byte for byte."""
    programs, log = counting_pg_dump(tmp_path / "bin", Path(server17.bindir))
    desk.configure(stores=("one", "two", "three"), dump=f'bindir = "{programs}"')
    done = desk.run("backup", DATABASE_URL=big_url)
    assert 0 == done.returncode, done.stderr
    assert "dump\n" == log.read_text()
    first = {path.name: path.read_bytes() for path in desk.files("one")}
    for store in ("two", "three"):
        assert first == {path.name: path.read_bytes() for path in desk.files(store)}


def test_a_failing_store_drops_out_and_catches_up_by_copy(desk: Desk, big_url: str, server17: Any, tmp_path: Path) -> None:
    """Exit code 3 and the store named; then ``copy`` brings it up to date from the good one, with no dump and no database."""
    programs, log = counting_pg_dump(tmp_path / "bin", Path(server17.bindir))
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    desk.configure(stores=("one", str(blocked / "two")), dump=f'bindir = "{programs}"')
    done = desk.run("backup", DATABASE_URL=big_url)
    assert 3 == done.returncode, done.stderr
    assert f"a store has dropped out: {blocked}/two: " in done.stderr
    assert 1 == len(desk.committed("one"))
    listed = desk.run("list")
    assert 3 == listed.returncode
    assert str(blocked) in listed.stderr
    blocked.unlink()
    assert "missing" in desk.run("list").stdout
    copied = desk.run("copy")
    assert 0 == copied.returncode, copied.stderr
    assert f"{blocked}/two: 1 backup copied." in copied.stderr
    assert 0 == desk.run("verify").returncode
    assert "dump\n" == log.read_text()
    assert "nothing was missing" in desk.run("copy").stderr


def test_the_quorum_decides_whether_a_run_has_failed(desk: Desk, big_url: str, tmp_path: Path) -> None:
    """With a quorum of two, one store is not enough: exit code 1, and it says where the backup is kept."""
    (tmp_path / "blocked").write_text("")
    desk.configure(stores=("one", "blocked/two"), more="quorum = 2")
    done = desk.run("backup", DATABASE_URL=big_url)
    assert 1 == done.returncode, done.stderr
    assert f"kept in: {desk.folder}/one" in done.stderr
    assert 1 == len(desk.committed("one"))


def digest(url: str) -> tuple[int, str]:
    """Return how many rows the big table has, and a digest of them."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*), md5(string_agg(text, '' ORDER BY id)) FROM rows").fetchone()
    assert row is not None
    assert row[0] == 1_000_000
    return row


@pytest.mark.parametrize("hurt", ["first", "second"])
def test_a_restore_takes_the_good_copy(desk: Desk, big_url: str, server17: Any, make_db: Any, hurt: str) -> None:
    """Whichever store is damaged, the restore is whole, and says what it found."""
    desk.configure()
    assert 0 == desk.run("backup", DATABASE_URL=big_url).returncode
    [dump] = [path for path in desk.files("one" if hurt == "first" else "two") if path.name == "big.dump"]
    data = bytearray(dump.read_bytes())
    data[len(data) // 2] ^= 1
    dump.write_bytes(data)
    target = make_db(server17)
    done = desk.run("restore", "--to-env", "TARGET", TARGET=target)
    assert 0 == done.returncode, done.stderr
    assert ("is damaged" in done.stderr) == (hurt == "first")
    assert digest(big_url) == digest(target)
    assert 4 == desk.run("verify").returncode
