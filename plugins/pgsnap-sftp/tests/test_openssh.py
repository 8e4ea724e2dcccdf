"""OpenSSH's own sshd, in the configurations that one meets: jails, restricted keys, quotas, and limits of its own.

``test_sftp.py`` runs whole against an ordinary one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import asyncssh
import attrs
import psutil
import pytest

from pgsnap import (
    Artifact,
    ConfigError,
    Denied,
    Dump,
    Dumper,
    Facts,
    LocalStore,
    NotFound,
    Pipeline,
    RestoreRequest,
    Run,
    Secret,
    Source,
    StoreError,
)
from pgsnap.streams import Stream, drain
from pgsnap.streams import retry as remote
from pgsnap.testing import StoreConformance, StoreExamination, text
from pgsnap_sftp import Sftp
from programs import missing

pytestmark = pytest.mark.needs_openssh

MIB = 1 << 20
SIZE = 9 * MIB + 5
DATA = text(SIZE)
JAIL = "mount -t tmpfs -o mode=755 tmpfs /mnt; cd /mnt; mkdir backups daemon; chown nobody backups; chown daemon daemon"
"""Shell lines: /mnt as a jail of sshd's, to which each step of the path must belong to root."""

Launch = Callable[..., Any]
Reach = Callable[..., Sftp]


@pytest.fixture
def reach(keys: Any, user: str) -> Reach:
    """Make a store on an sshd."""

    def reach(sshd: Any, path: Path | str, **options: Any) -> Sftp:
        who = options.pop("who", user)
        url = f"sftp://{who}@127.0.0.1:{sshd.port}{path}"
        given = {"key_file": str(keys.folder / "client"), "host_key": keys.host_key, "io_timeout": 20.0, **options}
        return Sftp(url=url, **given)

    return reach


def pieces(size: int = SIZE) -> Iterator[bytes]:
    for start in range(0, size, MIB):
        yield DATA[start % SIZE : start % SIZE + min(MIB, size - start)]


def there_and_back(store: Sftp) -> None:
    """Write, list, read and delete an object of three pieces, and replace one."""
    assert 3 == store.write("shop/1/object", [b"old"])
    assert SIZE == store.write("shop/1/object", pieces())
    assert [("shop/1/object", SIZE)] == [(entry.key, entry.size) for entry in store.entries()]
    assert DATA == b"".join(store.read("shop/1/object"))
    assert {} == store.delete(["shop/1/object"])
    assert [] == list(store.entries())


# --- what it speaks --------------------------------------------------------------------------------------------------


def test_it_uses_what_openssh_offers(launch: Launch, reach: Reach, shared: Any, tmp_path: Path) -> None:
    """The file is synced before it is renamed, the rename replaces, and a request is as large as the server takes it."""
    places = [f"/usr/{lib}/sftp-server" for lib in ("lib/openssh", "libexec/openssh", "lib/ssh")]
    program = next(filter(os.path.exists, places), None)
    if program is None:
        missing("OpenSSH's sftp-server")
    log = tmp_path / "log"
    script = tmp_path / "sftp"
    script.write_text(f"#!/bin/sh\nexec {program} -e -l DEBUG3 2>>'{log}'\n")
    script.chmod(0o755)
    sshd = launch(f"Subsystem sftp {script}", "PermitRootLogin prohibit-password")  # it runs in the user's shell; nobody has none
    there_and_back(reach(sshd, shared() / "store", who=pwd.getpwuid(os.getuid()).pw_name))
    told = log.read_text()
    assert told.rindex("fsync ") < told.rindex("posix-rename old ")
    written = [int(size) for size in re.findall(r"sent status|write .* len (\d+)", told) if size]
    assert max(written) > 200_000


def test_without_the_extensions(launch: Launch, reach: Reach, shared: Any) -> None:
    """An appliance may have none of them: small requests, no sync, and a rename that does not replace."""
    sshd = launch("Subsystem sftp internal-sftp -P fsync,posix-rename,limits,statvfs,fstatvfs")
    there_and_back(reach(sshd, shared() / "store"))


def test_new_keys_in_mid_stream(launch: Launch, reach: Reach, shared: Any) -> None:
    """A server that negotiates new keys after each MiB is no broken one."""
    there_and_back(reach(launch("RekeyLimit 1M"), shared() / "store"))


# --- who may do what -------------------------------------------------------------------------------------------------


class TestRestrictedKey(StoreExamination):
    """A key that is good for SFTP and nothing else."""

    @pytest.fixture
    def store(self, launch: Launch, reach: Reach, keys: Any, shared: Any) -> Sftp:
        sshd = launch(authorized=f'restrict,command="internal-sftp" {(keys.folder / "client.pub").read_text()}')
        return reach(sshd, shared() / "store")


class TestJail(StoreConformance):
    """A storage box: the user is locked in a directory that is not his, with one in it that is, where he begins."""

    @pytest.fixture
    def store(self, launch: Launch, reach: Reach) -> Sftp:
        sshd = launch("ChrootDirectory /mnt", "ForceCommand internal-sftp -d /backups", before=JAIL)
        return reach(sshd, "/~/pg backups")


def test_a_jail_that_is_not_the_users(launch: Launch, reach: Reach) -> None:
    """At the top of the jail nothing can be made; the sentence says that it is the permissions."""
    sshd = launch("ChrootDirectory /mnt", "ForceCommand internal-sftp", before=JAIL)
    store = reach(sshd, "/shop")
    with pytest.raises(Denied, match="the server's file system does not allow that; check who owns the directory"):
        store.write("a", [b"x"])
    there_and_back(reach(sshd, "/backups/shop"))


def test_two_users(launch: Launch, reach: Reach) -> None:
    """What one stores the other can neither read nor list, nor delete or replace."""
    sshd = launch("ChrootDirectory /mnt", "ForceCommand internal-sftp", before=JAIL)
    mine, other = reach(sshd, "/backups/store"), reach(sshd, "/backups/store", who="daemon")
    mine.write("shop/a", [b"mine"])
    for work in (lambda: drain(other.read("shop/a")), lambda: list(other.entries()), lambda: other.write("shop/a", [b"x"])):
        with pytest.raises(Denied, match="does not allow that"):
            work()
    assert ["shop/a"] == list(other.delete(["shop/a"]))
    assert b"mine" == b"".join(mine.read("shop/a"))
    there_and_back(reach(sshd, "/daemon/store", who="daemon"))


def test_a_server_that_may_only_be_read(launch: Launch, reach: Reach, shared: Any) -> None:
    """What is there can be restored; writing is refused at once, and deleting for each key."""
    folder = shared()
    reach(launch(), folder / "store").write("a", [b"x"])
    store = reach(launch("Subsystem sftp internal-sftp -R"), folder / "store")
    assert b"x" == b"".join(store.read("a"))
    with pytest.raises(Denied, match="does not allow that"):
        store.write("b", [b"x"])
    assert ["a"] == list(store.delete(["a"]))
    assert ["a"] == [entry.key for entry in store.entries()]


def test_an_account_without_sftp(launch: Launch, reach: Reach, shared: Any) -> None:
    """Two ways of it: no subsystem, and a shell that prints something and ends. Neither is tried again for long."""
    with pytest.raises(StoreError, match="offers no SFTP; it is 'Subsystem sftp internal-sftp' in its sshd_config") as caught:
        reach(launch("Subsystem none internal-sftp"), shared()).write("a", [b"x"])
    assert not caught.value.transient
    with pytest.raises(StoreError, match="what answers is not SFTP; a shell's start-up file may print something") as caught:
        reach(launch("ForceCommand echo This account is not available."), shared()).write("a", [b"x"])
    assert not caught.value.transient


def test_a_password(launch: Launch, reach: Reach, shared: Any, tmp_path: Path) -> None:
    """As a cheap storage box has it; a wrong one is refused, and neither is told."""
    shadow = tmp_path / "shadow"
    digest = "$6$pgsnaptest$" + _crypted("canary-right")
    shadow.write_text(f"nobody:{digest}:19000:0:99999:7:::\n")
    sshd = launch("PasswordAuthentication yes", "PubkeyAuthentication no", before=f"mount --bind {shadow} /etc/shadow")
    path = shared() / "store"
    there_and_back(reach(sshd, path, key_file=None, password=Secret("canary-right")))
    with pytest.raises(Denied, match="does not accept the user, key or password") as caught:
        reach(sshd, path, key_file=None, password=Secret("canary-wrong")).write("a", [b"x"])
    assert "canary" not in str(caught.value)
    assert "canary" not in sshd.log.read_text()


def _crypted(password: str) -> str:
    argv = ["openssl", "passwd", "-6", "-salt", "pgsnaptest", password]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip().rpartition("$")[2]


# --- known hosts -----------------------------------------------------------------------------------------------------


def test_a_hashed_file_of_known_hosts(launch: Launch, reach: Reach, keys: Any, shared: Any, tmp_path: Path) -> None:
    """As Debian's ssh writes it: the names in it are hashed."""
    sshd = launch()
    known = tmp_path / "known_hosts"
    known.write_text(f"other.example.org {keys.host_key}\n[127.0.0.1]:{sshd.port} {keys.host_key}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", known], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    there_and_back(reach(sshd, shared() / "store", host_key=None, known_hosts=str(known)))


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_host_key_that_changed(
    launch: Launch, reach: Reach, keys: Any, shared: Any, tmp_path: Path, kind: str, hashed: bool
) -> None:
    """The sentence names the file, the host and the line that removes the old key; that line and ssh-keyscan's set it right."""
    sshd = launch()
    known = tmp_path / "known hosts"
    other = asyncssh.generate_private_key(kind).export_public_key().decode().strip()
    known.write_text(f"[127.0.0.1]:{sshd.port} {other}\n")
    if hashed:
        subprocess.run(["ssh-keygen", "-H", "-f", known], check=True, capture_output=True)
    store = reach(sshd, shared() / "store", host_key=None, known_hosts=str(known))
    with pytest.raises(Denied) as caught:
        store.write("a", [b"x"])
    told = str(caught.value)
    begin = f"{store.label}: cannot write a: the server's host key is not the one that {known} has for [127.0.0.1]:{sshd.port}"
    assert told.startswith(begin)
    assert "If it was changed on purpose, remove the old one" in told
    shows = f"it shows ssh-ed25519 {keys.host.convert_to_public().get_fingerprint()}"
    assert shows in told
    line = re.search(r"\('(ssh-keygen .*)'\)", told)
    assert line is not None
    subprocess.run(["sh", "-c", line[1]], check=True, capture_output=True)
    with pytest.raises(Denied, match=re.escape(f"{known} has no host key for [127.0.0.1]:{sshd.port}")) as caught:
        store.write("a", [b"x"])
    scan = re.search(r"'(ssh-keyscan [^']*)'", str(caught.value))
    assert scan is not None
    with open(known, "a") as file:
        subprocess.run(scan[1].split(), check=True, stdout=file, stderr=subprocess.DEVNULL)
    assert 1 == store.write("a", [b"x"])


def test_the_key_of_another_kind_is_known(launch: Launch, reach: Reach, keys: Any, shared: Any, tmp_path: Path) -> None:
    """A server with several keys is asked for the one that is known."""
    second = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    second.write_private_key(str(tmp_path / "second"))
    (tmp_path / "second").chmod(0o600)
    sshd = launch(f"HostKey {keys.folder / 'host'}", f"HostKey {tmp_path / 'second'}")
    for key in (keys.host_key, second.export_public_key().decode().strip()):
        there_and_back(reach(sshd, shared() / "store", host_key=key))
        known = tmp_path / "known_hosts"
        known.write_text(f"# a comment\n\n[127.0.0.1]:{sshd.port} {key}\n")
        there_and_back(reach(sshd, shared() / "store", host_key=None, known_hosts=str(known)))


def test_a_revoked_host_key(launch: Launch, reach: Reach, keys: Any, shared: Any, tmp_path: Path) -> None:
    """``@revoked`` in the file counts."""
    sshd = launch()
    known = tmp_path / "known_hosts"
    known.write_text(f"@revoked * {keys.host_key}\n[127.0.0.1]:{sshd.port} {keys.host_key}\n")
    with pytest.raises(Denied, match=f"is marked as revoked in {known}"):
        reach(sshd, shared(), host_key=None, known_hosts=str(known)).write("a", [b"x"])


def test_the_persons_own_configuration(
    launch: Launch, reach: Reach, keys: Any, user: str, shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``~/.ssh/config`` gives the host, port, user and key of a name, and its own files of known hosts; ``host_key`` holds for a
    name as well. What it cannot do is switch the checking off."""
    sshd = launch()
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    config, known = tmp_path / ".ssh" / "config", tmp_path / "my_known_hosts"
    name = f"Host nas\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {user}\n  IdentityFile {keys.folder / 'client'}\n"
    config.write_text(f"{name}  UserKnownHostsFile {tmp_path}/missing {known}\n")
    store = Sftp(url=f"sftp://nas{shared()}/store")
    with pytest.raises(Denied, match=re.escape(f"{tmp_path}/missing or {known} has no host key for nas")):
        store.write("a", [b"x"])
    known.write_text(f"[127.0.0.1]:{sshd.port} {keys.host_key}\n")
    there_and_back(store)
    there_and_back(attrs.evolve(store, host_key=keys.host_key))
    config.write_text(f"{name}  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    with pytest.raises(ConfigError, match="'UserKnownHostsFile none', and so no host key could be checked"):
        store.write("a", [b"x"])
    there_and_back(attrs.evolve(store, host_key=keys.host_key))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"host_key": None, "known_hosts": "/missing/known"}, "known_hosts /missing/known cannot be read: No such file"),
        ({"key_file": "/missing/key"}, "key_file /missing/key cannot be read: No such file"),
        ({"host_key": "AAAAC3NzaC1lZDI1"}, "host_key is not a public key; give it as ssh-keyscan prints it"),
    ],
)
def test_a_file_that_is_missing_is_no_missing_object(
    launch: Launch, reach: Reach, shared: Any, options: dict[str, Any], problem: str
) -> None:
    """One of the client's own files: every operation says so. Taken for a missing object, a deletion would count as done."""
    sshd, folder = launch(), shared()
    reach(sshd, folder).write("a", [b"x"])
    store = reach(sshd, folder, **options)
    works: list[Callable[[], object]] = [
        lambda: store.write("b", [b"x"]),
        lambda: drain(store.read("a")),
        lambda: list(store.entries()),
        lambda: store.sweep("", datetime.now(UTC)),
    ]
    for work in works:
        with pytest.raises(ConfigError, match=problem):
            work()
    assert problem in store.delete(["a"])["a"]
    assert ["error"] == [finding.level for finding in store.preflight(Run("shop"))]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_full_disk(launch: Launch, reach: Reach) -> None:
    """sshd says 'Failure' and nothing else; the sentence says that there is no room, and nothing of the object is left."""
    small = "mount -t tmpfs -o size=8m,mode=777 tmpfs /mnt"
    store = reach(launch(before=small), "/mnt/store")
    store.write("before", pieces(MIB))
    with pytest.raises(StoreError, match="cannot write shop/a: there is no room left; free some space") as caught:
        store.write("shop/a", pieces())
    assert not caught.value.transient
    now = datetime.now(UTC)
    assert [] == list(store.sweep("", now + timedelta(hours=1)))
    assert 4 * MIB == store.write("after", pieces(4 * MIB))
    assert {"before": MIB, "after": 4 * MIB} == {entry.key: entry.size for entry in store.entries()}


def test_a_limit_that_is_no_full_disk(launch: Launch, reach: Reach, shared: Any) -> None:
    """A quota of the server's own, here the size of a file: the sentence says what it may be, and nothing is left."""
    limited = "ulimit -f 4096; trap '' XFSZ"  # 512 bytes each; without the trap the server would be killed
    store = reach(launch(before=limited), shared() / "store")
    with pytest.raises(StoreError, match="the server says 'Failure' and no more; a quota") as caught:
        store.write("shop/a", pieces())
    assert not caught.value.transient
    assert [] == list(store.sweep("", datetime.now(UTC) + timedelta(hours=1)))


@attrs.frozen(kw_only=True)
class Two(Dumper):
    """Dumps two artifacts, which are stored at once."""

    name: ClassVar[str] = "two"
    restored: dict[str, bytes] = attrs.field(factory=dict)

    @contextlib.contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        def stream() -> Stream:
            yield from pieces()

        yield Dump(artifacts=[Artifact(name=name, open=stream) for name in ("shop.dump", "globals.sql")])

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        for name in source.artifacts:
            self.restored[name] = b"".join(source.open(name))

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "@{shop.dump}"


def test_a_whole_run_on_one_session_a_connection(launch: Launch, reach: Reach, shared: Any, tmp_path: Path) -> None:
    """Backup, verify, restore and prune need no more than ``MaxSessions 1``, and nothing of them is left running."""
    sshd = launch("MaxSessions 1")
    dump = Two()
    pipeline = Pipeline(name="shop", dump=dump, stores=[LocalStore(url=str(tmp_path), fsync=False), reach(sshd, shared())])
    report = pipeline.backup()
    assert (0, 2) == (report.exit_code, len(report.kept_in)), report.text
    assert pipeline.verify().ok
    shutil.rmtree(tmp_path / "shop")
    pipeline.restore(report.id, to="toy://")
    assert {"shop.dump": DATA, "globals.sql": DATA} == dump.restored
    _, left = psutil.wait_procs(sshd.sessions(), timeout=10)
    assert [] == left


def test_too_many_at_once(launch: Launch, reach: Reach, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``MaxStartups`` turns a connection away, it is tried again, until there is room."""
    monkeypatch.setattr(remote, "ATTEMPTS", 100)
    monkeypatch.setattr(remote, "JITTER", 0.1)
    sshd = launch("MaxStartups 1:100:1")
    store = reach(sshd, shared() / "store")
    written: list[int] = []
    with socket.create_connection(("127.0.0.1", sshd.port)) as greedy:
        assert greedy.recv(4).startswith(b"SSH")
        thread = threading.Thread(target=lambda: written.append(store.write("a", pieces())))
        thread.start()
        sshd.wait_for("MaxStartups")
    thread.join(30)
    assert [SIZE] == written


def test_a_session_that_is_killed_once(launch: Launch, reach: Reach, shared: Any) -> None:
    """In mid-write: it goes on over a new connection, and the object is whole."""
    sshd = launch()
    store = reach(sshd, shared() / "store")

    def source() -> Iterator[bytes]:
        for number, piece in enumerate(pieces()):
            if number == 6:
                for process in sshd.sessions():
                    process.kill()
            yield piece

    assert SIZE == store.write("a", source())
    assert DATA == b"".join(store.read("a"))
    assert ["a"] == [entry.key for entry in store.entries()]


def test_a_server_that_is_gone(launch: Launch, reach: Reach, shared: Any) -> None:
    """In mid-write, for good: one sentence, in bounded time; when it is back there is no object, and a sweep finds the rest."""
    sshd, folder = launch(), shared()
    store = reach(sshd, folder)

    def source() -> Iterator[bytes]:
        for number, piece in enumerate(pieces()):
            if number == 6:
                sshd.stop()
            yield piece

    with pytest.raises(StoreError, match="cannot write shop/a: ConnectionRefusedError") as caught:
        store.write("shop/a", source())
    assert caught.value.transient
    again = reach(launch(), folder)
    assert [] == list(again.entries())
    with pytest.raises(NotFound):
        drain(again.read("shop/a"))
    (swept,) = again.sweep("", datetime.now(UTC) + timedelta(hours=1))
    assert swept.startswith("shop/a.")
