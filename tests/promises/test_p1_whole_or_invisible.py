"""P1: a backup exists if and only if its manifest does. Kill anything at any byte: what was not committed never shows up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from desk import Desk
from waiting import wait_for

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))


def partial_size(folder: Path) -> int:
    """Bytes that an unfinished dump has so far; running.json is written the same way, before pg_dump starts."""
    sizes = []
    for path in folder.rglob("*.dump.*.partial"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes, default=0)


def nothing_is_left(desk: Desk, url: str, sessions_of: Any) -> None:
    """No committed backup, no file, and in a moment no session on the server."""
    assert [] == desk.committed("one") + desk.committed("two")
    assert [] == desk.files("one") + desk.files("two")
    wait_for(lambda: not sessions_of(url), "the sessions on the server to end")


@pytest.mark.parametrize("reached", [1, 2_000_000, 9_000_000])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_pg_dump_is_killed(
    desk: Desk, big_url: str, children_of: Any, sessions_of: Any, number: signal.Signals, reached: int
) -> None:
    """The run fails, names the signal, leaves nothing, and the other processes are gone."""
    desk.configure(dump='compress = "none"')
    process = desk.start("backup", DATABASE_URL=big_url)
    wait_for(lambda: partial_size(desk.folder) >= reached, "the dump to flow")
    [victim] = [pid for pid, line in children_of(process.pid) if "--snapshot" in line]
    os.kill(victim, number)
    _, err = process.communicate(timeout=60)
    assert 1 == process.returncode, err
    assert ("pg_dump: terminated by user" if number == signal.SIGTERM else f"pg_dump was ended by {number.name}") in err
    nothing_is_left(desk, big_url, sessions_of)


@pytest.mark.parametrize("reached", [1, 4_000_000])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_pgsnap_is_told_to_stop(
    desk: Desk, big_url: str, children_of: Any, sessions_of: Any, number: signal.Signals, reached: int
) -> None:
    """It cleans up, says which signal it was, exits with 1, and leaves no child."""
    desk.configure(dump='compress = "none"')
    process = desk.start("backup", DATABASE_URL=big_url)
    wait_for(lambda: partial_size(desk.folder) >= reached, "the dump to flow")
    children = children_of(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert 1 == process.returncode, err
    assert f"stopped by {number.name}" in err
    assert "Traceback" not in err
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid, _ in children), "the children to end")
    nothing_is_left(desk, big_url, sessions_of)


@pytest.mark.parametrize("reached", [1, 3_000_000, 9_000_000])
def test_pgsnap_is_killed_outright(desk: Desk, big_url: str, children_of: Any, sessions_of: Any, reached: int) -> None:
    """Nothing is committed; its children end by themselves; the next run works and the rest is not listed as a backup."""
    desk.configure(dump='compress = "none"')
    process = desk.start("backup", DATABASE_URL=big_url)
    wait_for(lambda: partial_size(desk.folder) >= reached, "the dump to flow")
    children = children_of(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert [] == desk.committed("one") + desk.committed("two")
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid, _ in children), "the children to end")
    wait_for(lambda: not sessions_of(big_url), "the sessions on the server to end")
    listed = desk.run("list", "--json", DATABASE_URL=big_url)
    assert (0, "[]\n") == (listed.returncode, listed.stdout)
    again = desk.run("backup", DATABASE_URL=big_url)
    assert 0 == again.returncode, again.stderr
    assert 1 == len(desk.committed("one")) == len(desk.committed("two"))


@pytest.mark.parametrize("kept", [0, 3, 100, 1_000, 10_000, 1_000_000, 5_000_000])
@pytest.mark.parametrize("form", ["custom", "plain"])
def test_a_dump_that_ends_early_with_status_0(desk: Desk, big_url: str, fake_pg_dump: Any, form: str, kept: int) -> None:
    """An exit status of 0 is not believed: the dump's own structure is checked."""
    programs = fake_pg_dump(f'"$REAL" "$@" | head -c {kept}\nexit 0')
    desk.configure(dump=f'format = "{form}"\ncompress = "none"\nbindir = "{programs}"')
    done = desk.run("backup", DATABASE_URL=big_url)
    assert 1 == done.returncode, done.stderr
    assert "not whole" in done.stderr, done.stderr
    assert [] == desk.files("one") + desk.files("two")


def test_a_dump_that_fails_after_its_last_byte(desk: Desk, big_url: str, fake_pg_dump: Any) -> None:
    """All bytes came, and then it failed: there is no backup, and the message is pg_dump's."""
    programs = fake_pg_dump('"$REAL" "$@"\necho "pg_dump: error: the end" >&2\nexit 3')
    desk.configure(dump=f'bindir = "{programs}"')
    done = desk.run("backup", DATABASE_URL=big_url)
    assert 1 == done.returncode
    assert "pg_dump failed with exit status 3: pg_dump: error: the end" in done.stderr
    assert [] == desk.files("one") + desk.files("two")


@pytest.mark.parametrize("megabytes", [1, 3])
def test_a_full_disk(desk: Desk, big_url: str, megabytes: int) -> None:
    """Under a limit on the size of files (as a full disk gives) no store gets a backup, each is named, nothing is left."""
    desk.configure(dump='compress = "none"')
    limited = subprocess.run(
        ["bash", "-c", f'trap "" XFSZ; ulimit -f {megabytes * 1024}; exec "$0" backup', PROGRAM],
        cwd=desk.folder,
        env={**desk.env, "DATABASE_URL": big_url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 1 == limited.returncode, limited.stderr
    assert "File too large" in limited.stderr
    assert str(desk.folder / "one") in limited.stderr
    assert [] == desk.files("one") + desk.files("two")


def test_a_really_full_disk(desk: Desk, big_url: str, tmp_path: Path) -> None:
    """One of two stores is on a file system of 8 MiB: it drops out by name, the other has its backup, the exit code is 3."""
    small = tmp_path / "small"
    small.mkdir()
    desk.configure(dump='compress = "none"', stores=("one", str(small / "store")))
    flags = [] if os.geteuid() == 0 else ["-r"]
    script = f'mount -t tmpfs -o size=8m tmpfs {small} || exit 99; "$0" backup; code=$?; find {small} -type f; exit $code'
    done = subprocess.run(
        ["unshare", *flags, "-m", "bash", "-c", script, PROGRAM],
        cwd=desk.folder,
        env={**desk.env, "DATABASE_URL": big_url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip("this machine gives no mount namespace; the limit on file sizes covers the same path")
    assert 3 == done.returncode, done.stderr
    assert "No space left on device" in done.stderr
    assert str(small) in done.stderr
    assert "" == done.stdout
    assert 1 == len(desk.committed("one"))
