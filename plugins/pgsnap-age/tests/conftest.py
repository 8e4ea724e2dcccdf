"""Key pairs for the tests of the age plugin, made once."""

from __future__ import annotations

from pathlib import Path

import asyncssh
import attrs
import pytest

from pgsnap_age import Age


@attrs.frozen
class KeyPair:
    """A public key, and the file of its private key."""

    public: str
    file: Path


@pytest.fixture(autouse=True)
def no_identity_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own key must not decide a test."""
    monkeypatch.delenv("PGSNAP_AGE_IDENTITY", raising=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="session")
def alice(folder: Path) -> KeyPair:
    return KeyPair(Age.keygen(folder / "alice.txt"), folder / "alice.txt")


@pytest.fixture(scope="session")
def bob(folder: Path) -> KeyPair:
    return KeyPair(Age.keygen(folder / "bob.txt"), folder / "bob.txt")


def ssh_key(folder: Path, kind: str, passphrase: str = "") -> KeyPair:
    file = folder / f"id_{kind}{passphrase}"
    if not file.exists():
        key = asyncssh.generate_private_key(f"ssh-{kind}", comment="someone@somewhere")
        key.write_private_key(str(file), passphrase=passphrase or None)
        key.write_public_key(str(file.with_suffix(".pub")))
        file.chmod(0o600)
    return KeyPair(file.with_suffix(".pub").read_text().strip(), file)


@pytest.fixture(scope="session", params=["ed25519", "rsa"])
def ssh(request: pytest.FixtureRequest, folder: Path) -> KeyPair:
    return ssh_key(folder, request.param)


@pytest.fixture(scope="session")
def ed25519(folder: Path) -> KeyPair:
    return ssh_key(folder, "ed25519")


@pytest.fixture(scope="session")
def locked_ssh(folder: Path) -> KeyPair:
    return ssh_key(folder, "ed25519", "a-passphrase")
