"""One SSH connection, made when it is first needed and made again when it breaks; asyncssh runs on fsspec's loop.

Each operation of the store has a connection of its own, so that nothing is shared between threads and nothing is left open. Every
request is bounded by ``io_timeout``; what can be repeated (a piece at its offset, a listing) is repeated with jitter over a new
connection while the network is to blame.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shlex
import stat
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import attrs

from pgsnap import ConfigError, Denied, NotFound, PgsnapError, Secret, StoreError
from pgsnap.streams import RetryPolicy

__all__ = ["Connection", "wrapped"]

R = TypeVar("R")

ANY_KEY = "+ssh-ed25519,ecdsa-sha2-nistp*,rsa-sha2-*"
"""Kinds of host keys to ask for after those that are known. Asked for these alone, a server that has got a key of another kind
just hangs up, as a broken network does."""
ROOM = 1 << 20
"""Bytes; a file system with less than that is full: a request may be that large."""


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != "socket.send() raised exception." or record.threadName != "fsspecIO"


# asyncssh sends on, packet by packet, until it is told that the connection is gone, and asyncio writes each to the terminal. What
# broke is told by the operation, once. Loops other than the one of fsspec's thread, on which ours runs, are not silenced.
logging.getLogger("asyncio").addFilter(_is_news)


@attrs.frozen
class Info:
    """What a listing tells of one name. Bytes, and seconds since 1970."""

    is_folder: bool
    size: int
    modified: float


class Untrusted(Exception):
    """The server's host key is not a known one; the text says what to correct."""


@attrs.frozen(kw_only=True)
class Trust:
    """The host keys that a connection trusts: those of files, or the option host_key where there are none."""

    files: Sequence[str]
    keys: Any
    """As asyncssh takes them."""

    def complaint(self, connection: Connection, offered: str, reason: str) -> str:
        """Return the sentence for a server that showed another key: what is wrong, where, and what to do."""
        shown = f"; it shows {offered}" if offered else ""
        changed = "If it was changed on purpose"
        if not self.files:
            return f"the server's host key is not the one in host_key{shown}. {changed}, correct that option."
        where = " or ".join(self.files)
        if "revoked" in reason:
            return f"the server's host key is marked as revoked in {where}."
        name = _pattern(connection.host, connection.port)
        known, authorities = self.keys.match(connection.host, "", connection.port if name != connection.host else None)[:2]
        if known or authorities:
            remove = f"ssh-keygen -f {shlex.quote(self.files[0])} -R {shlex.quote(name)}"
            wrong = f"the server's host key is not the one that {where} has for {name}{shown}"
            return f"{wrong}. {changed}, remove the old one ('{remove}') and add the new one."
        port = "" if name == connection.host else f"-p {connection.port} "
        add = f"compare its fingerprint with the server's own, then add what 'ssh-keyscan {port}{connection.host}' prints"
        return f"{where} has no host key for {name}{shown}; {add}, or give host_key."


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

        result: R = RetryPolicy(is_transient, None if again else 1)(lambda: sync(get_loop(), attempt))
        return result

    async def _alive(self) -> None:
        if self._sftp is not None:
            return
        import asyncssh

        settings, trust = self._settings()
        offered: list[str] = []

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
                offered.append(f"{key.get_algorithm()} {key.get_fingerprint()}")  # asked of a key that is not a known one
                return False

        try:
            self._ssh, _ = await asyncssh.create_connection(
                Client, self.host, options=settings, known_hosts=trust.keys, server_host_key_algs=ANY_KEY
            )
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
            if isinstance(error, asyncssh.KeyExchangeFailed) and "host key" not in str(error):
                raise
            raise Untrusted(trust.complaint(self, offered[0] if offered else "", str(error))) from error
        self._sftp = await self._ssh.start_sftp_client()
        if self._reopen is not None:
            self._file = await self._sftp.open(_literal(self._reopen[0]), self._reopen[1], block_size=0)

    def _settings(self) -> tuple[Any, Trust]:
        """Return asyncssh's options for the connection, and which host keys it trusts.

        Raises:
            ConfigError: a file that is named cannot be read, or the checking of host keys is switched off.
        """
        import asyncssh

        options: dict[str, Any] = {}
        if self.port is not None:
            options["port"] = self.port
        if self.user:
            options["username"] = self.user
        if self.key_file:
            options["client_keys"] = [_readable(os.path.expanduser(self.key_file), "key_file")]
            options["passphrase"] = self.passphrase.reveal() if self.passphrase else None
        if self.password:
            options["password"] = self.password.reveal()
        if self.host_key:
            try:
                keys = [asyncssh.import_public_key(self.host_key)]
            except asyncssh.KeyImportError:
                shape = "give it as ssh-keyscan prints it, without the name: 'ssh-ed25519 AAAA…'"
                raise ConfigError(f"host_key is not a public key; {shape}.") from None
        settings = asyncssh.SSHClientConnectionOptions(
            host=self.host,
            config=(),  # the default is to read none
            connect_timeout=self.io_timeout,
            login_timeout=self.io_timeout,
            keepalive_interval=max(1.0, self.io_timeout / 4),
            keepalive_count_max=4,
            **options,
        )
        if self.host_key:
            return settings, Trust(files=(), keys=(keys, [], []))
        if settings.known_hosts is None:  # asyncssh's reading of it: trust whoever answers
            wrong = "the ssh configuration says 'UserKnownHostsFile none', and so no host key could be checked"
            raise ConfigError(f"{wrong}; give host_key or known_hosts.")
        if self.known_hosts:
            files = [_readable(os.path.expanduser(self.known_hosts), "known_hosts")]
        else:
            named: Any = settings.known_hosts or ["~/.ssh/known_hosts"]
            files = [os.path.expanduser(name) for name in named]
        trust = Trust(files=tuple(files), keys=asyncssh.SSHKnownHosts())
        for name in files:
            with contextlib.suppress(FileNotFoundError), open(name, encoding="utf-8", errors="surrogateescape") as file:
                try:
                    trust.keys.load(file.read())
                except ValueError as error:
                    raise ConfigError(f"{name}: {error}; correct that line.") from None
        return settings, trust

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
            self._file = await self._sftp.open(_literal(partial), "wb", attrs=_mode(0o600), block_size=0)

        self._run(work)
        self._reopen = (partial, "r+b")

    def write(self, data: bytes, offset: int) -> None:
        """Write one piece, in many requests at once; after a reconnection the whole piece again."""

        async def work() -> None:
            size = self._sftp.limits.max_write_len
            await _at_once([self._file.write(data[at : at + size], offset + at) for at in range(0, len(data), size)])

        try:
            self._run(work)
        except Exception as error:
            if self._is_full(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    def _is_full(self, error: Exception) -> bool:
        """Ask for the room that is left where the server said no more than "Failure", as OpenSSH does when a disk is full."""
        import asyncssh

        async def room() -> int:
            found = await self._file.statvfs()
            return int(found.bavail * found.frsize)

        if isinstance(error, asyncssh.SFTPFailure):
            with contextlib.suppress(Exception):  # not every server can tell; then the first error is what there is
                return self._run(room, again=False) < ROOM
        return False

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
            self._file = await self._sftp.open(_literal(path), "rb", block_size=0)
            return int(info.size)

        size = self._run(work)
        self._reopen = (path, "rb")
        return size

    def read(self, offset: int, size: int) -> bytes:
        """Read one piece, in many requests at once."""

        async def block(at: int, end: int) -> bytes:
            found = b""
            while at < end and (data := bytes(await self._file.read(end - at, at))):  # a server may give less than was asked for
                found += data
                at += len(data)
            return found

        async def work() -> bytes:
            step, end = self._sftp.limits.max_read_len, offset + size
            return b"".join(await _at_once([block(at, min(at + step, end)) for at in range(offset, end, step)]))

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


async def _at_once(requests: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
    """Make these requests together; when one fails, or the time is up, none is left behind.

    asyncssh does as much with a piece of any size (not with ``block_size=0``), but leaves its requests running then: each ends
    later with an error that nobody takes, and asyncio writes a traceback of it to the terminal.
    """
    tasks = [asyncio.ensure_future(request) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _readable(path: str, option: str) -> str:
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror}.") from None


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

    lasting = (asyncssh.PermissionDenied, asyncssh.KeyExchangeFailed)
    if isinstance(error, (*lasting, FileNotFoundError, NotADirectoryError, PermissionError)):
        return False
    if isinstance(error, asyncssh.SFTPError):
        return isinstance(error, (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection))
    if isinstance(error, asyncssh.ChannelOpenError):
        return error.code != asyncssh.OPEN_REQUEST_SESSION_FAILED  # there is no SFTP
    return isinstance(error, (OSError, asyncssh.DisconnectError))


def wrapped(error: Exception, label: str, doing: str) -> PgsnapError:
    """Return the error as pgsnap tells it."""
    begin = f"{label}: cannot {doing}"
    if isinstance(error, ConfigError):
        return ConfigError(f"{begin}: {error}")
    if isinstance(error, PgsnapError):
        return error
    import asyncssh

    if isinstance(error, Untrusted):
        return Denied(f"{begin}: {error}", label)
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
    if isinstance(error, asyncssh.ChannelOpenError) and error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
        text = "the server lets the user in, but offers no SFTP; it is 'Subsystem sftp internal-sftp' in its sshd_config"
        return StoreError(f"{begin}: {text}.", label)
    if isinstance(error, asyncssh.SFTPBadMessage):
        text = "what answers is not SFTP; a shell's start-up file may print something, or the account have no leave for SFTP"
        return StoreError(f"{begin}: {text}.", label)
    if type(error) is asyncssh.SFTPFailure:
        text = "the server says 'Failure' and no more"
        return StoreError(f"{begin}: {text}; a quota or a limit of its own may be reached, or its disk be faulty.", label)
    transient = is_transient(error)
    again = " It was tried several times; try again later." if transient else ""
    reason = getattr(error, "reason", "") or str(error) or "no answer in time"
    return StoreError(f"{begin}: {type(error).__name__}: {str(reason)[:200].rstrip('.')}.{again}", label, transient)
