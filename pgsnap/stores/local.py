"""The local store: a directory on this machine, written so that a power cut leaves whole objects or none.

An object is written as ``NAME.<random>.partial`` beside its target, fsynced, renamed, and the directory fsynced: the order that
PostgreSQL's own tools and pgBackRest use. A ``.partial`` file is never listed as an object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.components.values import Entry, Finding, format_size
from pgsnap.errors import ConfigError, Denied, NotFound, StoreError
from pgsnap.streams import CHUNK, Chunks, Stream

__all__ = ["LocalStore"]

PARTIAL = ".partial"
_MOUNTS = ("/mnt", "/media", "/srv", "/net", "/run/media", "/Volumes")
"""Where people mount things."""
_FLUSH_EVERY = 32 << 20
"""Bytes after which the kernel is told to begin writing, so that the final fsync has little left to do."""


@attrs.frozen(kw_only=True)
class LocalStore(Store):
    """A directory, given as a path or as ``file:///path``. It is made when the first object is written, with mode 0700."""

    name: ClassVar[str] = "file"
    schemes: ClassVar[tuple[str, ...]] = ("file", "local")

    fsync: bool = True
    """Force every object and its directory to the disk before it counts. Only a test has a reason to switch it off."""

    mount: str | None = attrs.field(default=None)
    """What must be a mount point: the directory, or one above it. While nothing is mounted there every call fails, so that a disk
    that is away is not taken for an empty store and the one below it is not filled."""

    @mount.validator
    def _check_mount(self, _: object, value: str | None) -> None:
        if value is None:
            return
        path = Path(os.path.normpath(value))
        if not path.is_absolute() or path == Path("/") or not self.root.is_relative_to(path):
            raise ConfigError(f"mount is {value!r}, which is not {self.root} or a directory above it; write it like '/mnt/nas'.")

    @property
    def root(self) -> Path:
        """The directory, absolute."""
        if "://" in self.url:
            parts = urlsplit(self.url)
            if parts.netloc not in ("", "localhost"):
                raise ConfigError(f"{self.label} names the host {parts.netloc!r}; write file:///path with three slashes.")
            return Path(unquote(parts.path))
        return Path(os.path.abspath(os.path.expanduser(self.url)))

    def _mounted_root(self) -> Path:
        """Return the directory; raise StoreError if it must be on a mount and nothing is mounted there."""
        if self.mount is not None and not os.path.ismount(self.mount):
            raise StoreError(f"{self.label}: nothing is mounted on {self.mount}; mount it, and run this again.", self.label, True)
        return self.root

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\0" in key:
            raise StoreError(f"{self.label}: the key {key!r} is not a relative path.", self.label)
        return self._mounted_root().joinpath(*parts)

    def _wrapped(self, error: OSError, doing: str) -> StoreError:
        text = f"{self.label}: cannot {doing}: {error.strerror or error}"
        if isinstance(error, FileNotFoundError):
            return NotFound(f"{text}.", self.label)
        if isinstance(error, PermissionError):
            return Denied(f"{text}; check who owns the directory.", self.label)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"{text}; free some space or keep fewer backups there.", self.label)
        if error.errno == errno.ENOTDIR:
            return StoreError(f"{text}; a file stands in its way: give a directory.", self.label)
        return StoreError(
            f"{text}; check the disk.", self.label, transient=error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
        )

    def _make_directories(self, directory: Path) -> None:
        missing = []
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            self._sync_directory(path.parent)

    def _create(self, path: Path) -> int:
        """Open a new file. Its directory may be removed in this moment, by another process that found it empty: then again."""
        for left in reversed(range(20)):
            try:
                self._make_directories(path.parent)
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _sync_directory(self, directory: Path) -> None:
        if not self.fsync:
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        """See ``Store.write``."""
        path = self._path(key)
        partial = path.with_name(f"{path.name[:180]}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            try:
                descriptor = self._create(partial)
            except OSError as error:
                raise self._wrapped(error, f"write {key}") from error
            try:
                size = self._write_all(descriptor, key, chunks)
            finally:
                os.close(descriptor)
            try:
                os.replace(partial, path)
                self._sync_directory(path.parent)
                stored = path.stat().st_size
            except OSError as error:
                raise self._wrapped(error, f"finish {key}") from error
            if stored != size:
                raise StoreError(f"{self.label}: {key} has {stored} bytes after {size} were written; check the disk.", self.label)
            return size
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise

    def _write_all(self, descriptor: int, key: str, chunks: Chunks) -> int:
        size = begun = 0
        start_flush = getattr(os, "posix_fadvise", None) if self.fsync else None
        for chunk in chunks:
            view = memoryview(chunk)
            try:
                while view:
                    written = os.write(descriptor, view)
                    size += written
                    view = view[written:]
                if start_flush is not None and size - begun >= _FLUSH_EVERY:
                    # On Linux this begins to write dirty pages of the range, without waiting for them.
                    start_flush(descriptor, begun, size - begun, os.POSIX_FADV_DONTNEED)
                    begun = size
            except OSError as error:
                raise self._wrapped(error, f"write {key}") from error
        if self.fsync:
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise self._wrapped(error, f"write {key}") from error
        return size

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        """See ``Store.read``."""
        try:
            with open(self._path(key), "rb", buffering=0, opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise StoreError(f"{self.label}: cannot read {key}: it is not a file; somebody has put it there.", self.label)
                size = status.st_size
                end = size if length is None else start + length
                if end > size or start > size:
                    raise StoreError(f"{self.label}: {key} has {size} bytes, but {end} are needed; it was cut short.", self.label)
                file.seek(start)
                left = end - start
                while left:
                    chunk = file.read(min(CHUNK, left))
                    if not chunk:
                        raise StoreError(f"{self.label}: {key} became shorter while it was read.", self.label)
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise self._wrapped(error, f"read {key}") from error

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ``Store.entries``."""
        base = self._path(prefix.rstrip("/")) if prefix else self._mounted_root()
        pending = [(base, prefix)]
        while pending:
            directory, path = pending.pop()
            try:
                with os.scandir(directory) as found:
                    for item in found:
                        if item.is_dir(follow_symlinks=False):
                            pending.append((directory / item.name, f"{path}{item.name}/"))
                        elif not item.name.endswith(PARTIAL):
                            try:
                                status = item.stat()
                            except OSError as error:
                                if isinstance(error, FileNotFoundError) or item.is_symlink():
                                    continue  # deleted since the directory was read, or a link to nowhere
                                raise
                            if stat.S_ISREG(status.st_mode):
                                yield Entry(path + item.name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
            except (FileNotFoundError, NotADirectoryError) as error:
                if isinstance(error, NotADirectoryError):
                    raise StoreError(f"{self.label}: {directory} is a file; give a directory.", self.label) from error
            except OSError as error:
                raise self._wrapped(error, f"list {path or 'it'}") from error

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """See ``Store.delete``. A directory that becomes empty is removed too."""
        refused: dict[str, str] = {}
        touched: set[Path] = set()
        for key in keys:
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
                touched.add(path.parent)
            except NotADirectoryError:
                continue  # what is below a file is absent
            except OSError as error:
                refused[key] = error.strerror or str(error)
        for directory in touched:
            self._remove_empty(directory)
        return refused

    def _remove_empty(self, directory: Path) -> None:
        with contextlib.suppress(OSError):
            while directory != self.root and directory.is_relative_to(self.root):
                directory.rmdir()
                directory = directory.parent

    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        """Remove ``.partial`` files below ``prefix`` that are older than ``before`` (UTC); return their keys."""
        removed = []
        base = self._path(prefix.rstrip("/")) if prefix else self._mounted_root()
        for path in sorted(base.rglob(f"*{PARTIAL}")) if base.is_dir() else []:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    removed.append(path.relative_to(self.root).as_posix())
        return removed

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Look whether the directory, or the nearest one above it, can be written, and how much room there is."""
        try:
            directory = self._mounted_root()
        except ConfigError as error:
            return [Finding("error", self.label, str(error), "Correct the store's url.")]
        except StoreError:
            return [Finding("error", self.label, f"nothing is mounted on {self.mount}.", "Mount it.")]
        if directory.exists() and not directory.is_dir():
            return [Finding("error", self.label, "it is a file.", "Give a directory.")]
        while not directory.exists():
            directory = directory.parent
        if not os.access(directory, os.W_OK | os.X_OK):
            return [Finding("error", self.label, f"{directory} cannot be written by this user.", "Change its owner or its mode.")]
        free = os.statvfs(directory)
        room = free.f_bavail * free.f_frsize
        if room > 1 << 30:
            found = [Finding("ok", self.label, f"{format_size(room)} are free.")]
        else:
            remedy = "Make room if a backup may need more; one that does not fit is dropped whole from this store."
            found = [Finding("warning", self.label, f"Only {format_size(room)} are free.", remedy)]
        return [*found, *self._unmounted(directory)]

    def _unmounted(self, directory: Path) -> Iterator[Finding]:
        """Tell of a directory where mounts are customary that is on the system's own disk."""
        if self.mount is None and any(self.root.is_relative_to(p) for p in _MOUNTS) and _device(directory) == _device(Path("/")):
            text = "it is on the same disk as /, though mounts are customary there."
            remedy = 'If one belongs there, mount it, and give the store mount = "…": without it, a backup would fill this disk.'
            yield Finding("info", self.label, text, remedy)


def _device(path: Path) -> int:
    return path.stat().st_dev


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: of a named pipe that nobody writes to, an open would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)
