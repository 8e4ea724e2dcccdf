"""A real S3 server with users, policies, versions, object lock and encryption: Ceph's radosgw, which ``nox -s ceph`` asks for."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from pgsnap import Secret
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_s3 import S3

collect_ignore_glob = [] if os.environ.get("PGSNAP_TEST_CEPH") else ["test_*.py"]
"""Without Ceph's programs there is nothing to test here, and nothing is reported as skipped."""

MIB = 1 << 20
START_SECONDS = 90.0


@attrs.frozen
class User:
    """Somebody who has a key of the server."""

    name: str
    access_key: str
    secret_key: str = attrs.field(repr=False)

    @property
    def arn(self) -> str:
        """How a policy names them."""
        return f"arn:aws:iam:::user/{self.name}"

    @property
    def options(self) -> dict[str, Secret]:
        """The options of a store."""
        return {"access_key": Secret(self.access_key), "secret_key": Secret(self.secret_key)}


@attrs.frozen
class Ceph:
    """A running server. ``owner`` owns every bucket of the tests; ``guest`` may do what a bucket's policy says."""

    folder: Path
    port: int
    sts_port: int

    @property
    def url(self) -> str:
        """Where S3 is spoken."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def sts_url(self) -> str:
        """Where temporary credentials are given out and taken as well."""
        return f"http://127.0.0.1:{self.sts_port}"

    @property
    def owner(self) -> User:
        return User("owner", "OWNERKEY", "canary-of-the-owner")

    @property
    def guest(self) -> User:
        return User("guest", "GUESTKEY", "canary-of-the-guest")

    def admin(self, *words: str) -> None:
        """Run radosgw-admin."""
        argv = ["radosgw-admin", "-c", str(self.folder / "ceph.conf"), "-n", "client.admin", "--admin-socket=", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def store(self, bucket: str, **options: Any) -> S3:
        """Return a store in a folder of a bucket, with the owner's key unless another is given."""
        given = {"url": f"s3://{bucket}/pg backups", "endpoint": self.url, "part_size": 5 * MIB}
        return S3(**{**given, **self.owner.options, **options})


@contextlib.contextmanager
def running() -> Iterator[Ceph]:
    """Start Ceph, with its two users, and end it with this process, however that ends: its keeper reads from a pipe."""
    folder = Path(tempfile.mkdtemp(prefix="ceph."))  # short: sockets lie in it
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    argv = ["/bin/sh", str(Path(__file__).with_name("radosgw.sh")), str(folder), *map(str, ports)]
    with tempfile.TemporaryFile() as log:
        keeper = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            for port in ports:
                _wait(port, keeper, log)
            ceph = Ceph(folder, *ports[1:])
            for user in (ceph.owner, ceph.guest):
                keys = ("--access-key", user.access_key, "--secret-key", user.secret_key)
                ceph.admin("user", "create", "--uid", user.name, "--display-name", user.name, *keys)
            yield ceph
        finally:
            assert keeper.stdin is not None
            keeper.stdin.close()
            try:
                keeper.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(keeper.pid, signal.SIGKILL)
                keeper.wait()


def _wait(port: int, keeper: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if keeper.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            pytest.fail(f"Ceph did not start: {log.read()[-3000:].decode(errors='replace')}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """The server, for all tests."""
    with running() as ceph:
        yield ceph


@pytest.fixture(scope="session")
def make_bucket(ceph: Ceph) -> Callable[..., str]:
    """Make an empty bucket of the owner and return its name; keywords go to the request that makes it."""
    numbers = itertools.count(1)

    def make(**options: Any) -> str:
        name = f"bucket-{next(numbers)}"
        ceph.store(name)._connect().call("create_bucket", Bucket=name, **options)
        return name

    return make


@pytest.fixture
def bucket(make_bucket: Callable[..., str]) -> str:
    """An empty bucket."""
    return make_bucket()


@pytest.fixture
def s3(ceph: Ceph, bucket: str) -> S3:
    """A store in an empty bucket, with the owner's key."""
    return ceph.store(bucket)


@pytest.fixture
def allow(ceph: Ceph) -> Callable[..., S3]:
    """Let the guest do only this in a bucket of the owner, and return the guest's store.

    What the guest writes belongs to the guest: the owner of the bucket may read it because the policy says so. And the guest
    could read it, and delete it, unless ``deny`` forbids that.
    """

    def let(bucket: str, *actions: str, deny: Sequence[str] = (), **options: Any) -> S3:
        rules = (("Allow", ceph.guest, actions), ("Deny", ceph.guest, deny), ("Allow", ceph.owner, ("*",)))
        statements = [
            {
                "Effect": effect,
                "Principal": {"AWS": [user.arn]},
                "Action": [f"s3:{action}" for action in these],
                "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
            }
            for effect, user, these in rules
            if these
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        ceph.store(bucket)._connect().call("put_bucket_policy", Bucket=bucket, Policy=policy)
        return ceph.store(bucket, **ceph.guest.options, **options)

    return let


@pytest.fixture(scope="session")
def proxy(ceph: Ceph) -> Iterator[FaultProxy]:
    """The fault proxy before the server; set its rules in each test."""
    with FaultProxy(("127.0.0.1", ceph.port)) as proxy:
        yield proxy


@pytest.fixture
def spoiled(ceph: Ceph, proxy: FaultProxy, bucket: str) -> Iterator[S3]:
    """The store in the same bucket, behind the proxy, with a short ``io_timeout``."""
    proxy.rules(delay=0.0)
    yield ceph.store(bucket, endpoint=proxy.url, io_timeout=3.0)
    proxy.rules(delay=0.0)
