"""The process that owns a throwaway server: it makes the server's folder, starts it, and takes both away again.

``server.py`` runs this file with ``python -I -S`` as a child. One line of JSON on stdin says what to start; one line of JSON on
stdout says how that went. Then it waits. When stdin ends, because the parent has closed it or because the parent is dead,
however it died, the server is stopped and the folder removed. So the folder never exists without somebody who will remove it.

Only the standard library, and nothing of pgsnap, is imported here.

Where the parent is root the server runs as another user. This process then stays root and never writes into a folder of that
user, who could have put a link there: the log and the password file lie in the outer folder, which is root's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

PORT_TRIES = 20
STOP_SECONDS = 10.0
NOT_BOUND = "could not create any TCP/IP sockets"


class Stop(Exception):
    """The parent has gone, or says that it is enough."""


class Failed(Exception):
    """The server could not be started; the text says why."""


class Keeper:
    """One server: ``home`` is its folder, ``running`` the child under way, which is ended by ``clear``."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.running: subprocess.Popen[bytes] | None = None
        self.home = Path(tempfile.mkdtemp(prefix="pgsnap-", dir=order["base"]))
        self.data = self.home / "data"
        self.sockets = self.home / "s"
        self.log = self.home / "log"

    def prepare(self) -> None:
        """Make the folders: the outer one ours, the inner ones the server's."""
        self.home.chmod(0o711 if self.order["uid"] is not None else 0o700)
        for folder in (self.data, self.sockets):
            folder.mkdir(mode=0o700)
            self._give(folder)
        secret = self.home / "password"
        descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(self.order["password"] + "\n")
        self._give(secret)
        try:
            status = self._wait(
                self._start(
                    [
                        self.order["initdb"],
                        f"--pgdata={self.data}",
                        f"--username={self.order['superuser']}",
                        f"--pwfile={secret}",
                        "--auth-local=trust",
                        "--auth-host=scram-sha-256",
                        "--encoding=UTF8",
                        "--locale=C",
                        "--no-sync",
                    ]
                )
            )
        finally:
            secret.unlink()
        if status != 0:
            raise Failed(f"initdb failed with exit status {status}: {self.tail()}")

    def start(self) -> int:
        """Start the server and return its port; a port that somebody else took meanwhile is replaced by another."""
        before = 0
        for _ in range(PORT_TRIES):
            port = self._free_port() if self.order["listen"] else 5432
            settings = {
                **self.order["settings"],
                "port": port,
                "listen_addresses": self.order["listen"] or "",
                "unix_socket_directories": self.sockets,
            }
            options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            before = self.log.stat().st_size
            server = self._start([self.order["postgres"], "-D", str(self.data), *options])
            if self._wait(server, until_ready=True) is None:
                return port
            if NOT_BOUND not in self.tail(before):
                break
        raise Failed(f"postgres ended while it started: {self.tail(before)}")

    def tail(self, start: int = 0) -> str:
        """Return the end of the server's log."""
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(start, self.log.stat().st_size - 4096))
            return file.read().decode("utf-8", "replace").strip()
        return ""

    def clear(self) -> None:
        """End what runs and remove the folder."""
        if self.running is not None and self.running.poll() is None:
            for number in (signal.SIGQUIT, signal.SIGKILL):  # SIGQUIT: at once, no checkpoint, but shared memory is freed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.running.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.running.wait(STOP_SECONDS)
                    break
        self._free_memory()
        remove(self.home)

    def _free_memory(self) -> None:
        """Remove the System V segment (56 bytes) of a server that was killed: its pid file, which names it, is still there."""
        lines = self._pid_file()
        if len(lines) >= 7 and len(words := lines[6].split()) == 2:
            argv = ["ipcrm", "--shmem-id", words[1].decode("ascii", "replace")]
            with contextlib.suppress(OSError):  # as the server's user, who can remove nobody else's
                subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, **self._user())

    def _give(self, path: Path) -> None:
        if self.order["uid"] is not None:
            os.chown(path, self.order["uid"], self.order["gid"])

    def _user(self) -> dict[str, Any]:
        if self.order["uid"] is None:
            return {}
        return {"user": self.order["uid"], "group": self.order["gid"], "extra_groups": []}

    def _start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            self.running = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env={**self.order["env"], "HOME": str(self.sockets)},
                umask=0o077,
                process_group=0,
                **self._user(),
            )
        return self.running

    def _wait(self, child: subprocess.Popen[bytes], until_ready: bool = False) -> int | None:
        """Return the exit status of a child, or None when it is the server and is ready."""
        deadline = time.monotonic() + self.order["timeout"]
        while (status := child.poll()) is None:
            if until_ready and self._ready(child.pid):
                return None
            if time.monotonic() > deadline:
                raise Failed(f"it took longer than {self.order['timeout']:g} s: {self.tail()}")
            if select.select([0], [], [], 0.01)[0]:
                raise Stop
        return status

    def _ready(self, pid: int) -> bool:
        """Look at the eighth line of postmaster.pid, as pg_ctl does."""
        lines = self._pid_file()
        return len(lines) >= 8 and lines[0].strip() == str(pid).encode() and lines[7].strip() == b"ready"

    def _pid_file(self) -> list[bytes]:
        """Return the lines of postmaster.pid, or none. The server's user could put a link or a pipe in its place."""
        try:
            descriptor = os.open(self.data / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        with open(descriptor, "rb") as file:
            return file.read(4096).splitlines()

    def _free_port(self) -> int:
        family = socket.AF_INET6 if ":" in self.order["listen"] else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((self.order["listen"], 0))
            return int(probe.getsockname()[1])


def remove(home: Path) -> None:
    """Remove a folder, again if something that was still ending has put a file there."""
    deadline = time.monotonic() + STOP_SECONDS
    while home.exists():
        shutil.rmtree(home, ignore_errors=time.monotonic() < deadline)
        if home.exists():
            time.sleep(0.05)


def end_orphan(home: Path, pid: int) -> None:
    """End a server whose keeper was killed, and remove its folder. For the parent, which is alive.

    Whether it has ended is seen by its pid file: it may have become a zombie of a process that never collects it.
    """

    def running() -> bool:
        try:
            return (home / "data" / "postmaster.pid").read_text().partition("\n")[0] == str(pid)
        except OSError:
            return False

    deadline = time.monotonic() + STOP_SECONDS
    while running():
        late = time.monotonic() > deadline
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if late else signal.SIGQUIT)
        if late:
            break
        time.sleep(0.05)
    remove(home)


def _stop(number: int, frame: object) -> NoReturn:
    raise Stop


def _order() -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            raise Stop
        data += piece
    order: dict[str, Any] = json.loads(data)
    return order


def _report(**answer: object) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def main() -> None:
    """Keep one server until stdin ends."""
    os.umask(0o077)
    stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in stopping:
        signal.signal(number, _stop)
    keeper: Keeper | None = None
    try:
        keeper = Keeper(_order())
        keeper.prepare()
        port = keeper.start()
        assert keeper.running is not None
        _report(home=str(keeper.home), port=port, pid=keeper.running.pid)
        select.select([0], [], [])
    except Stop:
        pass
    except (Failed, OSError) as error:
        with contextlib.suppress(OSError):
            _report(failed=str(error))
    finally:
        for number in stopping:
            signal.signal(number, signal.SIG_IGN)
        if keeper is not None:
            keeper.clear()


if __name__ == "__main__":
    main()
