"""One SSH connection, made when it is first needed and made again when it breaks; asyncssh runs on fsspec's loop.

Each operation of the store has a connection of its own, so that nothing is shared between threads and nothing is left open. Every
request is bounded by ``io_timeout``; what can be repeated (a piece at its offset, a listing) is repeated with jitter over a new
connection while the network is to blame.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import attrs

from pgsnap import ConfigError, Denied, NotFound, PgsnapError, Secret, StoreError

__all__ = ["Connection", "wrapped"]

R = TypeVar("R")

ATTEMPTS = 5
JITTER = 0.3
"""Seconds that the first wait lasts at most; each later one at most twice the one before, and 15."""


@attrs.frozen
class Info:
    """What a listing tells of one name. Bytes, and seconds since 1970."""

    is_folder: bool
    size: int
    modified: float


@attrs.define(kw_only=True)
class Connection:
    """Where to connect, and the connection."""

    host: str
    port: int | None
    user: str | None
    key_file: str | None
    passphrase: Secret | None = attrs.field(repr=False)
    password: Secret | None = attrs.field(repr=False)
    host_key: str | None
    known_hosts: str | None
    io_timeout: float
    _ssh: Any = None
    _sftp: Any = None
    _file: Any = None
    _reopen: tuple[str, str] | None = None  # path and mode, after a reconnection

    # --- plumbing -------------------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[], Awaitable[R]], again: bool = True) -> R:
        """Do ``work`` on a live connection within ``io_timeout``; on a new one, a few times, while the network is to blame."""
        import tenacity
        from fsspec.asyn import get_loop, sync

        async def attempt() -> R:
            try:
                async with asyncio.timeout(self.io_timeout):
                    await self._alive()
                    return await work()
            except BaseException as error:
                if is_transient(error):
                    await self._drop()
                raise

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS if again else 1),
            wait=tenacity.wait_random_exponential(multiplier=JITTER, max=15),
            retry=tenacity.retry_if_exception(is_transient),
            reraise=True,
        )
        result: R = retrying(lambda: sync(get_loop(), attempt))
        return result

    async def _alive(self) -> None:
        if self._sftp is not None:
            return
        import asyncssh

        options: dict[str, Any] = {}
        if self.port is not None:
            options["port"] = self.port
        if self.user:
            options["username"] = self.user
        if self.key_file:
            options["client_keys"] = [os.path.expanduser(self.key_file)]
            options["passphrase"] = self.passphrase.reveal() if self.passphrase else None
        if self.password:
            options["password"] = self.password.reveal()
        if self.host_key:
            options["known_hosts"] = asyncssh.import_known_hosts(f"{_pattern(self.host, self.port)} {self.host_key}\n")
        elif self.known_hosts:
            options["known_hosts"] = os.path.expanduser(self.known_hosts)
        self._ssh = await asyncssh.connect(
            self.host,
            connect_timeout=self.io_timeout,
            login_timeout=self.io_timeout,
            keepalive_interval=max(1.0, self.io_timeout / 4),
            keepalive_count_max=4,
            **options,
        )
        self._sftp = await self._ssh.start_sftp_client()
        if self._reopen is not None:
            self._file = await self._sftp.open(_literal(self._reopen[0]), self._reopen[1])

    async def _drop(self) -> None:
        ssh, self._ssh, self._sftp, self._file = self._ssh, None, None, None
        if ssh is not None:
            ssh.abort()
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await ssh.wait_closed()

    def close(self) -> None:
        """Close what is open."""
        from fsspec.asyn import get_loop, sync

        async def close() -> None:
            if self._ssh is not None:
                self._ssh.close()
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(2.0):
                        await self._ssh.wait_closed()
            await self._drop()

        sync(get_loop(), close)

    # --- writing --------------------------------------------------------------------------------------------------------

    def open(self, partial: str, folder: str) -> None:
        """Make the folder and a new file in it."""

        async def work() -> None:
            await self._sftp.makedirs(_literal(folder), exist_ok=True, attrs=_mode(0o700))
            self._file = await self._sftp.open(_literal(partial), "wb", attrs=_mode(0o600))

        self._run(work)
        self._reopen = (partial, "r+b")

    def write(self, data: bytes, offset: int) -> None:
        """Write one piece, in many requests at once; after a reconnection the whole piece again."""

        async def work() -> None:
            await self._file.write(data, offset)

        self._run(work)

    def finish(self, partial: str, path: str, size: int) -> int:
        """Sync, close, look at the size and, if it is right, rename over the target; return the size."""
        import asyncssh

        async def finish() -> int:
            with contextlib.suppress(asyncssh.SFTPOpUnsupported):
                await self._file.fsync()
            await self._file.close()
            stored = (await self._sftp.stat(_literal(partial))).size
            return int(stored)

        stored = self._run(finish)
        self._reopen = None
        if stored != size:
            return stored

        async def rename() -> int:
            try:
                await self._sftp.posix_rename(_literal(partial), _literal(path))
            except asyncssh.SFTPOpUnsupported:
                with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                    await self._sftp.remove(_literal(path))
                await self._sftp.rename(_literal(partial), _literal(path))
            except asyncssh.SFTPNoSuchFile:
                if (await self._sftp.stat(_literal(path))).size != size:
                    raise
                # an earlier attempt may have done it, and its answer got lost
            return int((await self._sftp.stat(_literal(path))).size)

        return self._run(rename)

    def give_up(self, partial: str) -> None:
        """Remove an unfinished file."""
        self._reopen = None

        async def work() -> None:
            await self._sftp.remove(_literal(partial))

        self._run(work, again=False)

    # --- reading --------------------------------------------------------------------------------------------------------

    def open_to_read(self, path: str) -> int:
        """Open a file and return its size.

        Raises:
            NotFound: it is a folder.
        """

        async def work() -> int:
            info = await self._sftp.stat(_literal(path))
            if info.permissions is not None and stat.S_ISDIR(info.permissions):
                raise FileNotFoundError("it is a folder")
            self._file = await self._sftp.open(_literal(path), "rb")
            return int(info.size)

        size = self._run(work)
        self._reopen = (path, "rb")
        return size

    def read(self, offset: int, size: int) -> bytes:
        """Read one piece, in many requests at once."""

        async def work() -> bytes:
            return bytes(await self._file.read(size, offset))

        return self._run(work)

    def list(self, folder: str) -> Iterator[tuple[str, Info]]:
        """Yield the names in a folder; none if it is not there. Symbolic links are passed over."""
        import asyncssh

        async def work() -> list[tuple[str, Info]]:
            found = []
            try:
                async for item in self._sftp.scandir(_literal(folder)):
                    mode = item.attrs.permissions or 0
                    name = os.fsdecode(item.filename)
                    if name in (".", "..") or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                        continue
                    found.append((name, Info(stat.S_ISDIR(mode), int(item.attrs.size), float(item.attrs.mtime))))
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNotADirectory, asyncssh.SFTPFailure):
                with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                    info = await self._sftp.stat(_literal(folder))
                    if not stat.S_ISDIR(info.permissions or 0):
                        raise NotADirectoryError("Not a directory") from None
                    raise
                return []
            return found

        yield from self._run(work)

    def look(self, folder: str) -> None:
        """Connect, and raise if the folder is something else than one."""
        next(self.list(folder), None)

    # --- deleting -------------------------------------------------------------------------------------------------------

    def remove(self, path: str) -> None:
        """Remove a file."""

        async def work() -> None:
            await self._sftp.remove(_literal(path))

        self._run(work)

    def remove_empty(self, folders: set[str], root: str) -> None:
        """Remove these folders, and those above them up to ``root``, as far as they are empty."""
        import asyncssh

        async def work() -> None:
            for folder in folders:
                with contextlib.suppress(asyncssh.SFTPError):
                    while folder != root and folder.startswith(f"{root}/"):
                        await self._sftp.rmdir(_literal(folder))
                        folder = folder.rpartition("/")[0]

        if folders:
            self._run(work)


def _literal(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")  # no wildcard and no "~" means anything in bytes


def _mode(mode: int) -> Any:
    import asyncssh

    return asyncssh.SFTPAttrs(permissions=mode)


def _pattern(host: str, port: int | None) -> str:
    return host if port in (None, 22) else f"[{host}]:{port}"


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later, over a new connection."""
    if isinstance(error, PgsnapError):
        return isinstance(error, StoreError) and error.transient
    import asyncssh

    lasting = (asyncssh.HostKeyNotVerifiable, asyncssh.PermissionDenied, asyncssh.KeyExchangeFailed)
    if isinstance(error, (*lasting, FileNotFoundError, NotADirectoryError, PermissionError)):
        return False
    if isinstance(error, asyncssh.SFTPError):
        return isinstance(error, (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection))
    return isinstance(error, (OSError, asyncssh.DisconnectError, asyncssh.ChannelOpenError))


def wrapped(error: Exception, label: str, doing: str) -> PgsnapError:
    """Return the error as pgsnap tells it."""
    if isinstance(error, PgsnapError):
        return error
    import asyncssh

    begin = f"{label}: cannot {doing}"
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        text = "the server's host key is not the one in known_hosts, or is not there; compare its fingerprint, then add it"
        return Denied(f"{begin}: {text} (ssh-keyscan prints it), or give host_key.", label)
    if isinstance(error, asyncssh.PermissionDenied):
        return Denied(f"{begin}: the server does not accept the user, key or password; check user, key_file and password.", label)
    if isinstance(error, (asyncssh.KeyImportError, asyncssh.KeyEncryptionError)):
        return ConfigError(f"{begin}: key_file cannot be read as a private key; check it and its passphrase.")
    if isinstance(error, (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)):
        return Denied(f"{begin}: the server's file system does not allow that; check who owns the directory.", label)
    if isinstance(error, (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, FileNotFoundError)):
        return NotFound(f"{begin}: it is not there.", label)
    if isinstance(error, (asyncssh.SFTPNotADirectory, asyncssh.SFTPFileAlreadyExists)) or "Not a directory" in str(error):
        kind = NotFound if doing.startswith(("delete", "read")) else StoreError
        return kind(f"{begin}: the path is, or goes through, a file; give a directory.", label)
    if isinstance(error, (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)) or "No space left" in str(error):
        return StoreError(f"{begin}: there is no room left; free some space or keep fewer backups there.", label)
    transient = is_transient(error)
    again = " It was tried several times; try again later." if transient else ""
    reason = getattr(error, "reason", "") or str(error) or "no answer in time"
    return StoreError(f"{begin}: {type(error).__name__}: {str(reason)[:200].rstrip('.')}.{again}", label, transient)
