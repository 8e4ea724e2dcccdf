"""A real SSH server (asyncssh, in a process of its own), and a fault proxy before it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import attrs
import pytest

from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_sftp import Sftp


@attrs.frozen
class Place:
    """The server's port, its folder, the client's key and the server's public key."""

    port: int
    folder: Path
    key_file: str
    host_key: str


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The server; ``/`` is its folder."""
    folder = tmp_path_factory.mktemp("sftp")
    keys = tmp_path_factory.mktemp("keys")
    host, client = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    for name, key in (("host", host), ("client", client)):
        key.write_private_key(str(keys / name))
        key.write_public_key(str(keys / f"{name}.pub"))
    argv = [sys.executable, "-P", str(Path(__file__).with_name("sftp_server.py")), str(folder), str(keys / "host")]
    with open(keys / "log", "wb") as log:
        process = subprocess.Popen([*argv, str(keys / "client.pub")], stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield Place(port, folder, str(keys / "client"), host.export_public_key().decode().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def make(place: Place, port: int, name: str, io_timeout: float = 20.0) -> Sftp:
    url = f"sftp://backup@127.0.0.1:{port}/{name}/pg backups"
    return Sftp(url=url, key_file=place.key_file, host_key=place.host_key, io_timeout=io_timeout)


@pytest.fixture
def folder(server: Place, tmp_path: Path) -> str:
    """The name of an empty folder of the server."""
    name = f"{tmp_path.parent.name}-{tmp_path.name}"
    (server.folder / name).mkdir()
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
