"""The store against two real SSH servers: the conformance suite, and what is special to SFTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncssh
import attrs
import pytest

from pgsnap import ConfigError, Denied, NotFound, Run, Secret, StoreError
from pgsnap.streams import drain
from pgsnap.testing import StoreConformance, StoreExamination
from pgsnap_sftp import Sftp


class TestSftp(StoreConformance):
    """All rules of a store."""

    @pytest.fixture
    def store(self, sftp: Sftp) -> Sftp:
        return sftp


class TestDoctor(StoreExamination):
    """What doctor says of it."""

    @pytest.fixture
    def store(self, sftp: Sftp) -> Sftp:
        return sftp


# --- who is there ----------------------------------------------------------------------------------------------------


def test_a_host_key_that_is_not_known(sftp: Sftp, tmp_path: Path) -> None:
    """Another key than the one given, or none in known_hosts, is refused before anything is sent."""
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    (tmp_path / "empty").write_text("")
    for store, problem in (
        (attrs.evolve(sftp, host_key=other), "is not the one in host_key; it shows .* SHA256:"),
        (attrs.evolve(sftp, host_key=None, known_hosts=str(tmp_path / "empty")), f"{tmp_path}/empty has no host key for .127"),
    ):
        with pytest.raises(Denied, match=problem):
            store.write("a", [b"x"])
        assert ["error"] == [finding.level for finding in store.preflight(Run("shop"))]


def test_known_hosts(sftp: Sftp, server: Any, tmp_path: Path) -> None:
    """A file as ssh-keyscan prints it."""
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
    assert 1 == attrs.evolve(sftp, host_key=None, known_hosts=str(known)).write("a", [b"x"])


def test_wrong_credentials(sftp: Sftp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another key or password, a key file that is none: a sentence each, without a secret."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    path = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path))
    for store in (attrs.evolve(sftp, key_file=str(path)), attrs.evolve(sftp, key_file=str(path), password=Secret("canary"))):
        with pytest.raises(Denied, match="the server does not accept the user, key or password") as caught:
            store.write("a", [b"x"])
        assert "canary" not in str(caught.value)
    path.write_text("no key")
    with pytest.raises(ConfigError, match="key_file cannot be read as a private key"):
        attrs.evolve(sftp, key_file=str(path)).write("a", [b"x"])
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path), passphrase="canary-right")
    with pytest.raises(ConfigError, match="check it and its passphrase") as refused:
        attrs.evolve(sftp, key_file=str(path), passphrase=Secret("canary-wrong")).write("a", [b"x"])
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("server", ["asyncssh"], indirect=True)
def test_a_password(sftp: Sftp, tmp_path: Path) -> None:
    """Where a server takes one."""
    path = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path))
    store = attrs.evolve(sftp, key_file=str(path), password=Secret("canary-of-the-password"))
    assert 1 == store.write("a", [b"x"])


def test_no_server(sftp: Sftp) -> None:
    """A refused connection may pass."""
    with pytest.raises(StoreError, match="cannot write a: ConnectionRefusedError") as caught:
        attrs.evolve(sftp, url="sftp://backup@127.0.0.1:1/x").write("a", [b"x"])
    assert caught.value.transient


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_path_that_is_a_file(sftp: Sftp, server: Any, folder: str) -> None:
    """It cannot be written below, and listing it says so."""
    (server.folder / folder / "file").write_text("x")
    store = attrs.evolve(sftp, url=sftp.url.rpartition("/")[0] + "/file")
    for work in (lambda: store.write("a", [b"x"]), lambda: list(store.entries())):
        with pytest.raises(StoreError) as caught:
            work()
        assert not isinstance(caught.value, NotFound)
        assert store.label in str(caught.value)


def test_files_are_private(sftp: Sftp, server: Any, folder: str) -> None:
    """Mode 0600, directories 0700, as in the local store."""
    sftp.write("shop/a", [b"x"])
    path = server.folder / folder / "pg backups" / "shop" / "a"
    assert 0o600 == path.stat().st_mode & 0o777
    assert 0o700 == path.parent.stat().st_mode & 0o777


def test_a_directory_that_becomes_empty_goes(sftp: Sftp, server: Any, folder: str) -> None:
    """So that a pruned backup leaves no folder; the store's own stays."""
    sftp.write("shop/1/a", [b"x"])
    assert {} == sftp.delete(["shop/1/a"])
    assert [] == list((server.folder / folder / "pg backups").iterdir())


def test_a_key_that_climbs_is_refused(sftp: Sftp) -> None:
    """Nothing outside the directory is reached."""
    for key in ("../a", "a/../../b", "/a", "a//b"):
        with pytest.raises(StoreError, match="is not a relative path"):
            sftp.write(key, [b"x"])
        with pytest.raises(StoreError, match="is not a relative path"):
            drain(sftp.read(key))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "sftp://user:hidden@host/path"}, "a password does not belong in the url"),
        ({"url": "sftp://host"}, "the url is sftp://user@host:port/path"),
        ({"url": "sftp://host:x/path"}, "the port in the url is no number"),
        ({"host_key": "a", "known_hosts": "b"}, "give host_key or known_hosts, not both"),
        ({"passphrase": Secret("hidden")}, "passphrase belongs to key_file"),
        ({"io_timeout": 0.0}, "io_timeout is 0"),
    ],
)
def test_bad_options(options: dict[str, Any], problem: str) -> None:
    """Each is told in a sentence, without a secret."""
    with pytest.raises(ConfigError, match=problem) as caught:
        Sftp(**{"url": "sftp://host/path", **options})
    assert "hidden" not in str(caught.value)


def test_below_the_home() -> None:
    """``/~/`` is relative to where the user lands."""
    assert "backups" == Sftp(url="sftp://host/~/backups")._root
    assert "/srv/backups" == Sftp(url="sftp://host/srv/backups/")._root
