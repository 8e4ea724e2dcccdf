"""Two real SSH servers for all tests of this folder, one of asyncssh's and OpenSSH's own sshd where it is installed, and a fault
proxy before each. ``test_openssh.py`` starts more of the latter, each with a configuration of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import attrs
import psutil
import pytest

from pgsnap.streams import retry as remote
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_sftp import Sftp
from programs import missing

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
ROOT = os.geteuid() == 0
USER = "nobody" if ROOT else pwd.getpwuid(os.getuid()).pw_name
"""Who logs in to sshd. For root that is somebody else, whom permissions bind."""


@attrs.frozen
class Place:
    """A server: its port, a folder of its machine and the path of that there, the client's key and the server's public key."""

    kind: str
    port: int
    folder: Path
    path: str
    user: str
    key_file: str
    host_key: str


@attrs.frozen
class Keys:
    """Files with keys of a server and of its client, each with ``.pub`` beside it."""

    folder: Path
    host: asyncssh.SSHKey
    client: asyncssh.SSHKey

    @classmethod
    def make(cls, folder: Path) -> Keys:
        keys = cls(folder, asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519"))
        for name, key in (("host", keys.host), ("client", keys.client)):
            key.write_private_key(str(folder / name))
            key.write_public_key(str(folder / f"{name}.pub"))
            (folder / name).chmod(0o600)
        return keys

    @property
    def host_key(self) -> str:
        return self.host.export_public_key().decode().strip()


@attrs.define
class Sshd:
    """A running sshd."""

    process: psutil.Popen
    port: int
    log: Path

    def sessions(self) -> list[psutil.Process]:
        """Return the processes that serve its connections."""
        found: list[psutil.Process] = self.process.children(recursive=True)
        return found

    def stop(self) -> None:
        """Kill it, and with it what serves its connections."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [self.process, *self.sessions()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def wait_for(self, words: str) -> None:
        """Wait until these words are in its log."""
        deadline = time.monotonic() + 30
        while words not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"no {words!r} in sshd's log"
            time.sleep(0.01)


@contextlib.contextmanager
def run_sshd(folder: Path, keys: Keys, *lines: str, before: str = "") -> Iterator[Sshd]:
    """Run sshd on loopback, with ``lines`` added to its configuration, until the block is left.

    Args:
        folder: For its files.
        before: Shell commands to run first, in a mount namespace of their own: what is mounted there nobody else sees, and it
            goes with the process. Only for root; skips where the machine does not allow it.
    """
    if SSHD is None:
        missing("OpenSSH's server")
    if ROOT:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the distribution's unit makes it; sshd does not start without
    authorized = folder / "authorized_keys"
    if not authorized.exists():
        shutil.copy(keys.folder / "client.pub", authorized)
    authorized.chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    own = [line.split()[0] for line in lines]
    ordinary = [
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {keys.folder / 'host'}",
        f"PidFile {folder / 'pid'}",
        f"AuthorizedKeysFile {authorized}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "Subsystem sftp internal-sftp",
        "LogLevel VERBOSE",
    ]
    config, log = folder / "sshd_config", folder / "sshd.log"
    text = "\n".join([line for line in ordinary if line.split()[0] not in own] + list(lines)) + "\n"
    config.write_text(text)
    told = subprocess.run([SSHD, "-T", "-f", config], capture_output=True, text=True)
    if "persourcepenalties" in told.stdout:  # from 9.8 on: a broken handshake locks the address out for a while
        config.write_text("PerSourcePenalties no\n" + text)
    argv = [SSHD, "-D", "-f", str(config), "-E", str(log)]
    if before:
        if not ROOT or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            missing("what a jail takes, root and leave to make a mount namespace,")
        argv = ["unshare", "-m", "--propagation", "private", "sh", "-ec", f'{before}\nexec "$@"', "sh", *argv]
    log.touch()
    with open(folder / "sshd.out", "wb") as out:
        process = psutil.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    sshd = Sshd(process, port, log)
    try:
        sshd.wait_for("Server listening on")
        yield sshd
    finally:
        sshd.stop()


@contextlib.contextmanager
def run_asyncssh(folder: Path, keys: Keys) -> Iterator[int]:
    """Run asyncssh's server, to which ``folder`` is ``/``; yield its port."""
    argv = [sys.executable, "-P", str(Path(__file__).with_name("sftp_server.py")), str(folder), str(keys.folder / "host")]
    with open(keys.folder / "log", "wb") as log:
        process = subprocess.Popen([*argv, str(keys.folder / "client.pub")], stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def shared() -> Iterator[Callable[[], Path]]:
    """Make folders that every user can reach and that of sshd owns: pytest's own are closed to all but root."""
    with tempfile.TemporaryDirectory(prefix="pgsnap-sftp-") as name:
        Path(name).chmod(0o755)

        def make() -> Path:
            folder = Path(tempfile.mkdtemp(dir=name))
            folder.chmod(0o755)
            if ROOT:
                shutil.chown(folder, USER)
            return folder

        yield make


@pytest.fixture(scope="session", params=["asyncssh", pytest.param("openssh", marks=pytest.mark.needs_openssh)])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared: Callable[[], Path]
) -> Iterator[Place]:
    """One server after the other."""
    keys = Keys.make(tmp_path_factory.mktemp("keys"))
    key_file = str(keys.folder / "client")
    folder = shared()
    if request.param == "asyncssh":
        with run_asyncssh(folder, keys) as port:
            yield Place(request.param, port, folder, "", "backup", key_file, keys.host_key)
    else:
        with run_sshd(shared(), keys) as sshd:
            yield Place(request.param, sshd.port, folder, str(folder), USER, key_file, keys.host_key)


@pytest.fixture(scope="session")
def user() -> str:
    """Who logs in to sshd."""
    return USER


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """New keys of a server and of its client."""
    return Keys.make(tmp_path)


@pytest.fixture
def launch(keys: Keys, shared: Callable[[], Path]) -> Iterator[Callable[..., Sshd]]:
    """Start an sshd with lines of one's own in its configuration; it ends with the test."""
    with contextlib.ExitStack() as stack:

        def launch(*lines: str, before: str = "", authorized: str = "") -> Sshd:
            folder = shared()
            if authorized:
                (folder / "authorized_keys").write_text(authorized)
            return stack.enter_context(run_sshd(folder, keys, *lines, before=before))

        yield launch


def make(place: Place, port: int, name: str, io_timeout: float = 20.0) -> Sftp:
    url = f"sftp://{place.user}@127.0.0.1:{port}{place.path}/{name}/pg backups"
    return Sftp(url=url, key_file=place.key_file, host_key=place.host_key, io_timeout=io_timeout)


@pytest.fixture
def folder(server: Place, tmp_path: Path) -> str:
    """The name of an empty folder of the server."""
    name = f"{tmp_path.parent.name}-{tmp_path.name}"
    (server.folder / name).mkdir()
    if server.kind == "openssh" and ROOT:
        shutil.chown(server.folder / name, server.user)
    return name


@pytest.fixture
def sftp(server: Place, folder: str) -> Sftp:
    """A store in an empty folder."""
    return make(server, server.port, folder)


@pytest.fixture(scope="session")
def proxy(server: Place) -> Iterator[FaultProxy]:
    """The proxy before the server, which passes bytes on; set its rules in each test."""
    with FaultProxy(("127.0.0.1", server.port), raw=True) as proxy:
        yield proxy


@pytest.fixture
def spoiled(server: Place, proxy: FaultProxy, folder: str) -> Iterator[Sftp]:
    """The same kind of store, behind the proxy, with a short ``io_timeout``."""
    proxy.rules(delay=0.0)
    yield make(server, proxy.port, folder, io_timeout=2.0)
    proxy.rules(delay=0.0)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setattr(remote, "JITTER", 0.05)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No request outlives its operation: asyncio would write a traceback of it to the person's terminal."""
    yield
    gc.collect()
    assert [] == [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"]
