"""SFTP as a store for pgsnap: any machine with an SSH server.

An object is written beside its target as ``.partial``, in pieces of 4 MiB that asyncssh sends as many requests at once, each
repeated over a new connection if the old one breaks; then it is synced, looked up and renamed. The server's host key is always
checked.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit

import attrs

from pgsnap import ConfigError, Entry, Finding, NotFound, PgsnapError, Run, Secret, Store, StoreError, hookimpl
from pgsnap.streams import CHUNK, Chunks, Stream, resize

if TYPE_CHECKING:
    from pgsnap_sftp.connection import Connection

__all__ = ["Sftp", "pgsnap_stores"]

PARTIAL = ".partial"
PIECE = 4 * CHUNK


def _check_timeout(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value > 0:
        raise ConfigError(f"sftp's io_timeout is {value:g}; give a number of seconds above 0.")


@attrs.frozen(kw_only=True)
class Sftp(Store):
    """A directory on a machine with an SSH server: ``sftp://user@host:port/path``, or ``sftp://host/~/path`` below the home.

    Keys are found as ``ssh`` finds them: the agent, ``~/.ssh/id_…``, ``~/.ssh/config``. The host key must be in
    ``~/.ssh/known_hosts``, or be given.

    Args:
        user: By default that of the URL, or the local one.
        key_file: The path of a private key.
        passphrase: Of the private key.
        password: Instead of a key.
        host_key: The server's public key, such as ``ssh-ed25519 AAAA…``, instead of ``known_hosts``.
        known_hosts: The path of another file than ``~/.ssh/known_hosts``.
        io_timeout: Seconds that one piece of 4 MiB, or one request, may take.
    """

    name: ClassVar[str] = "sftp"
    schemes: ClassVar[tuple[str, ...]] = ("sftp", "ssh")

    user: str | None = None
    key_file: str | None = None
    passphrase: Secret | None = None
    password: Secret | None = None
    host_key: str | None = None
    known_hosts: str | None = None
    io_timeout: float = attrs.field(default=60.0, validator=_check_timeout, metadata={"unit": "seconds"})

    def __attrs_post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise ConfigError(f"{self.label}: the port in the url is no number.") from None
        if not parts.hostname or port == 0 or parts.query or parts.fragment or not parts.path.strip("/"):
            raise ConfigError(f"{self.label}: the url is sftp://user@host:port/path, or sftp://host/~/path below the home.")
        if parts.password is not None:
            raise ConfigError(f"{self.label}: a password does not belong in the url; give it as 'password', or use a key.")
        if self.host_key and self.known_hosts:
            raise ConfigError(f"{self.label}: give host_key or known_hosts, not both.")
        if self.passphrase and not self.key_file:
            raise ConfigError(f"{self.label}: passphrase belongs to key_file; give that too.")

    @property
    def _root(self) -> str:
        path = unquote(urlsplit(self.url).path).rstrip("/")
        return path.removeprefix("/~/") if path.startswith("/~/") else path

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\0" in key:
            raise StoreError(f"{self.label}: the key {key!r} is not a relative path.", self.label)
        return f"{self._root}/{key}"

    def _connection(self) -> Connection:
        from pgsnap_sftp.connection import Connection

        parts = urlsplit(self.url)
        return Connection(
            host=str(parts.hostname),
            port=parts.port,
            user=self.user or (unquote(parts.username) if parts.username else None),
            key_file=self.key_file,
            passphrase=self.passphrase,
            password=self.password,
            host_key=self.host_key,
            known_hosts=self.known_hosts,
            io_timeout=self.io_timeout,
        )

    def _wrapped(self, error: Exception, doing: str) -> PgsnapError:
        from pgsnap_sftp.connection import wrapped

        return wrapped(error, self.label, doing)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        """See ``Store.write``. Holds three pieces of 4 MiB."""
        path = self._path(key)
        folder, _, name = path.rpartition("/")
        partial = f"{folder}/{name[:180]}.{secrets.token_hex(4)}{PARTIAL}"
        doing = f"write {key}"
        connection = self._connection()
        size = 0
        whole = False
        pieces = resize(chunks, PIECE)
        try:
            try:
                connection.open(partial, folder)
            except Exception as error:
                raise self._wrapped(error, doing) from error
            while True:
                piece = next(pieces, None)  # what the source raises passes through
                if piece is None:
                    break
                try:
                    connection.write(piece, size)
                except Exception as error:
                    raise self._wrapped(error, doing) from error
                size += len(piece)
            try:
                stored = connection.finish(partial, path, size)
            except Exception as error:
                raise self._wrapped(error, doing) from error
            if stored != size:
                raise StoreError(f"{self.label}: {key} has {stored} bytes after {size} were written.", self.label)
            whole = True
        finally:
            pieces.close()
            if not whole:
                with contextlib.suppress(Exception):  # what led here is told; a sweep finds the file later
                    connection.give_up(partial)
            connection.close()
        return size

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        """See ``Store.read``. Pieces of 4 MiB; one that breaks off is read again over a new connection."""
        path = self._path(key)
        connection = self._connection()
        try:
            size = connection.open_to_read(path)
            end = size if length is None else start + length
            if end > size or start > size:
                raise StoreError(f"{self.label}: {key} has {size} bytes, but {end} are needed; it was cut short.", self.label)
            for at in range(start, end, PIECE):
                want = min(PIECE, end - at)
                data = connection.read(at, want)
                if len(data) != want:
                    raise StoreError(f"{self.label}: {key} became shorter while it was read.", self.label)
                for begin in range(0, want, CHUNK):
                    yield data[begin : begin + CHUNK]
        except Exception as error:
            raise self._wrapped(error, f"read {key}") from error
        finally:
            connection.close()

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ``Store.entries``. One listing for each directory."""
        return (entry for entry in self._files(prefix, "list") if not entry.key.endswith(PARTIAL))

    def _files(self, prefix: str, doing: str) -> Iterator[Entry]:
        connection = self._connection()
        folders = [self._path(prefix.rstrip("/")) if prefix else self._root]
        try:
            while folders:
                folder = folders.pop()
                for name, info in connection.list(folder):
                    path = f"{folder}/{name}"
                    if info.is_folder:
                        folders.append(path)
                    else:
                        yield Entry(path[len(self._root) + 1 :], info.size, datetime.fromtimestamp(info.modified, UTC))
        except Exception as error:
            raise self._wrapped(error, f"{doing} {prefix or 'it'}") from error
        finally:
            connection.close()

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """See ``Store.delete``. A directory that becomes empty is removed too."""
        refused: dict[str, str] = {}
        if not keys:
            return refused
        connection = self._connection()
        try:
            for key in keys:
                try:
                    connection.remove(self._path(key))
                except Exception as error:
                    failed = self._wrapped(error, f"delete {key}")
                    if isinstance(failed, NotFound):
                        continue
                    if isinstance(failed, StoreError) and failed.transient:
                        raise failed from error
                    refused[key] = str(failed)
            connection.remove_empty({self._path(key).rpartition("/")[0] for key in keys if key not in refused}, self._root)
        finally:
            connection.close()
        return refused

    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        """Remove ``.partial`` files below ``prefix`` that are older than ``before`` (UTC); return their keys."""
        stale = [e.key for e in self._files(prefix, "clean up") if e.key.endswith(PARTIAL) and e.modified < before]
        refused = self.delete(stale)
        return [key for key in stale if key not in refused]

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Connect and look whether the directory, or what is above it, is there."""
        connection = self._connection()
        try:
            connection.look(self._root)
        except Exception as error:
            return [
                Finding("error", self.label, str(self._wrapped(error, "connect")), "Correct the store's options, or the server.")
            ]
        finally:
            connection.close()
        return [Finding("ok", self.label, "it can be reached, and its host key is known.")]


@hookimpl
def pgsnap_stores() -> Sequence[type[Store]]:
    """Offer the store to pgsnap."""
    return [Sftp]
