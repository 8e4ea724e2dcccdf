"""Keys of age as text: which public keys can be encrypted to, and which private keys a file holds.

A private key never stands in a message, nor does a value that might be one.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from pgsnap import ConfigError, StageError

__all__ = ["Identities", "generate", "load_identities", "parse_recipients", "read_recipients_file", "shorten"]

IDENTITY_VARIABLE = "PGSNAP_AGE_IDENTITY"
WHERE = f"give the file of a private key by --identity, {IDENTITY_VARIABLE} or identity_file"
_SECRET = "AGE-SECRET-KEY-"
_OPENSSH = "-----BEGIN OPENSSH PRIVATE KEY-----"


def shorten(recipient: str) -> str:
    """Return a public key as messages show it: X25519 keys whole, SSH keys by their type and end."""
    kind, _, blob = recipient.partition(" ")
    return f"{kind} …{blob[-16:]}" if blob else recipient


def _as_shown(text: str) -> str:
    """Return the beginning of what somebody gave as a public key, unless it may be a private one."""
    if not text.startswith(("age1", "ssh-")):
        return "(not shown)"
    return repr(text if len(text) <= 16 else text[:16] + "…")


def parse_recipients(texts: Iterable[str], where: str) -> dict[str, Any]:
    """Return the keys to encrypt to: each public key, without its comment, and pyrage's object for it.

    Args:
        texts: ``age1…`` or a line of an SSH public key file.
        where: What they came from, such as ``recipients``, for the message.

    Raises:
        ConfigError: one of them is no such key; it is named by its position.
    """
    import pyrage

    found: dict[str, Any] = {}
    for position, text in enumerate(texts):
        plain = " ".join(text.split()[:2])
        if plain.upper().startswith(_SECRET) or plain.startswith("-----BEGIN"):
            raise ConfigError(
                f"{where}[{position}] of age is a private key (not shown); put its public key there, which 'age-keygen -y' "
                "prints, and keep the private one off this machine."
            )
        try:
            parse = pyrage.ssh if plain.startswith("ssh-") else pyrage.x25519
            found[plain] = parse.Recipient.from_str(plain)
        except pyrage.RecipientError as error:
            raise ConfigError(
                f"{where}[{position}] of age, {_as_shown(plain)}, is not a public key that can be encrypted to ({error}); give "
                "age1… as age-keygen prints it, or a line ssh-ed25519 … or ssh-rsa …"
            ) from None
    return found


def read_recipients_file(path: str) -> list[str]:
    """Return the lines of a file of public keys; empty ones and those that begin with ``#`` are left out.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        lines = _read(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"recipients_file of age, {path}, cannot be read: {reason}; correct the path or its mode.") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


@attrs.frozen
class Identities:
    """Private keys: pyrage's objects, their public keys as far as they are known, and where they came from."""

    keys: Sequence[Any] = attrs.field(repr=False)
    public: frozenset[str]
    source: str


def load_identities(path: str | None) -> Identities:
    """Return the private keys of ``path`` and of the variable PGSNAP_AGE_IDENTITY (a path, or the key itself).

    ``path`` may be missing if the variable is set.

    Raises:
        StageError: there is none, or one cannot be read.
    """
    found: list[Identities] = []
    given = os.environ.get(IDENTITY_VARIABLE, "").strip()
    if "SECRET-KEY-" in given.upper() or "-----BEGIN" in given:
        found.append(_parse_identities(given, IDENTITY_VARIABLE))
    elif given:
        # What is neither a file nor looks like a path may be a spoiled key: it is not shown.
        shown = given.startswith(("/", "~", ".")) or os.path.exists(given)
        source = f"the file {given} ({IDENTITY_VARIABLE})" if shown else f"the file that {IDENTITY_VARIABLE} names"
        found.append(_read_identities(given, source))
    if path is not None and (not given or os.path.exists(os.path.expanduser(path))):
        found.append(_read_identities(path, f"the file {path} (identity_file)"))
    return Identities(
        [key for one in found for key in one.keys],
        frozenset(key for one in found for key in one.public),
        " and ".join(one.source for one in found),
    )


def _read(path: str) -> str:
    return Path(os.path.expanduser(path)).read_text(encoding="utf-8")


def _read_identities(path: str, source: str) -> Identities:
    try:
        text = _read(path)
    except UnicodeDecodeError:
        raise StageError(f"{source} holds no private key of age or SSH, it is not text; {WHERE}.") from None
    except OSError as error:
        raise StageError(f"{source} cannot be read: {error.strerror}; {WHERE}.") from error
    return _parse_identities(text, source)


def _parse_identities(text: str, source: str) -> Identities:
    import pyrage

    if text.lstrip().startswith("-----BEGIN AGE") or text.startswith("age-encryption.org/"):
        raise StageError(f"{source} is itself encrypted; write a plain copy with 'age -d' and name that.")
    if text.lstrip().startswith("-----BEGIN"):
        try:
            key = pyrage.ssh.Identity.from_buffer(text.strip().encode() + b"\n")
        except pyrage.IdentityError as error:
            raise StageError(
                f"{source} holds an SSH private key that cannot be used ({error}); one with a passphrase needs a copy without: "
                "ssh-keygen -p -N '' -f COPY."
            ) from None
        return Identities([key], frozenset(_public_of_openssh(text)), source)
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            keys.append(pyrage.x25519.Identity.from_str(line.strip()))
        except pyrage.IdentityError:
            raise StageError(f"line {number} of {source} is not a private key of age (not shown); {WHERE}.") from None
    if not keys:
        raise StageError(f"{source} holds no private key; {WHERE}.")
    return Identities(keys, frozenset(str(key.to_public()) for key in keys), source)


def _public_of_openssh(text: str) -> Iterable[str]:
    """Yield the public key that an OpenSSH private key file holds in the clear (PROTOCOL.key of OpenSSH), if it is one."""
    if not text.lstrip().startswith(_OPENSSH):
        return
    try:
        data = base64.b64decode("".join(text.split("-----")[2].split()))
        at = len(b"openssh-key-v1\0")
        for _ in range(3):  # cipher, key derivation, its options
            at += 4 + int.from_bytes(data[at : at + 4], "big")
        at += 4  # the number of keys
        blob = data[at + 4 : at + 4 + int.from_bytes(data[at : at + 4], "big")]
        kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii")
    except (IndexError, binascii.Error, UnicodeDecodeError):
        return
    yield f"{kind} {base64.b64encode(blob).decode()}"


def generate(path: Path) -> str:
    """Write a new X25519 private key to ``path`` as age-keygen does, mode 0600, never over a file; return the public key.

    Raises:
        ConfigError: the file exists, or cannot be written.
    """
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    public = str(identity.to_public())
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; a key is never written over a file: name another.") from None
    except OSError as error:
        raise ConfigError(f"the key cannot be written to {path}: {error.strerror}; name another file.") from error
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"# created: {now}\n# public key: {public}\n{identity}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"the key cannot be written to {path}: {error.strerror}; name another file.") from error
    return public
