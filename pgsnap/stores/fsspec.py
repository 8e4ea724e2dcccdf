"""The general store: any file system that fsspec knows, by the scheme of its URL.

fsspec's file objects publish what they have when a ``with`` block is left by an exception, so none is used that way here.
Where the file system's writer can commit and discard (object stores), an object appears only by its commit. Everywhere else
it is written beside its target as ``.partial`` and moved.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.redact import Redactor, secrets_in
from pgsnap.components.run import Run
from pgsnap.components.values import Entry, Finding
from pgsnap.errors import ConfigError, Denied, NotFound, PgsnapError, StoreError
from pgsnap.streams import CHUNK, Chunks, Stream
from pgsnap.streams.retry import RetryPolicy

__all__ = ["FsspecStore"]

T = TypeVar("T")

PARTIAL = ".partial"
RANGE = 4 * CHUNK
"""Bytes that one request of a reader asks for."""


@attrs.frozen(kw_only=True)
class FsspecStore(Store):
    """Any URL that fsspec can open: ``s3://bucket/path``, ``az://…``, ``webdav://…``, ``memory://…``."""

    name: ClassVar[str] = "fsspec"

    options: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    """Handed to fsspec's file system as they are; what they mean is in that file system's documentation."""

    def _open(self) -> tuple[Any, str]:
        """Return the file system and the root path in it. fsspec keeps one file system for the same URL and options."""
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.url, **self.options)
        except ImportError as error:
            raise ConfigError(f"{self.label} needs a package that is not installed: {error}") from None
        except ValueError as error:
            if str(error).startswith("Protocol not known"):
                raise ConfigError(f"{self.label} is not a URL that fsspec knows: {error}") from None
            raise ConfigError(f"{self.label} cannot be opened: {self._brief(error)}; correct the URL or 'options'.") from None
        except PgsnapError:
            raise
        except Exception as error:
            raise self._wrapped(error, "connect") from None
        return system, str(path).rstrip("/")

    def _path(self, system: Any, root: str, key: str) -> str:
        """Return where a key lies. Some file systems read more into a path, such as a query after ``?``, and take another."""
        path = f"{root}/{key}"
        if str(system._strip_protocol(path)).strip("/") != path.strip("/"):
            raise StoreError(f"{self.label}: this file system would not take the key {key!r} literally.", self.label)
        return path

    def _brief(self, error: Exception) -> str:
        """Return the first line of what a library says, which may go on with a whole answer of the server, without a secret."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Redactor(secrets_in(self))(lines[0] if lines else type(error).__name__)[:300].rstrip(".")

    def _wrapped(self, error: Exception, doing: str) -> StoreError:
        if isinstance(error, StoreError):
            return error
        if isinstance(error, FileNotFoundError):
            return NotFound(f"{self.label}: cannot {doing}: it is not there.", self.label)
        text = f"{self.label}: cannot {doing}: {type(error).__name__}: {self._brief(error)}"
        if isinstance(error, PermissionError) or _status(error) in (401, 403):
            return Denied(f"{text}; check the credentials and what they allow.", self.label)
        text += "; check the URL, the credentials and the network."
        return StoreError(text, self.label, transient=_may_pass(error))

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        """See ``Store.write``."""
        system, root = self._open()
        path = self._path(system, root, key)
        partial = f"{path}.{secrets.token_hex(4)}{PARTIAL}"
        try:
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            file, commits = _open_writer(system, path, partial)
        except Exception as error:
            raise self._wrapped(error, f"write {key}") from error
        whole = False
        try:
            size = 0
            for chunk in chunks:
                try:
                    file.write(chunk)
                except Exception as error:
                    raise self._wrapped(error, f"write {key}") from error
                size += len(chunk)
            try:
                file.close()
                if commits:
                    file.commit()
                else:
                    _move(system, partial, path)
                whole = True
                system.invalidate_cache(path.rpartition("/")[0])
                stored = system.info(path)["size"]
            except Exception as error:
                raise self._wrapped(error, f"finish {key}") from error
        finally:
            if not whole:
                with contextlib.suppress(Exception):
                    _give_up(system, file, partial, commits)
        if stored != size:
            raise StoreError(f"{self.label}: {key} has {stored} bytes after {size} were written.", self.label)
        return size

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        """See ``Store.read``. It reads ranges of 4 MiB, each tried again by itself when the connection fails."""
        system, root = self._open()
        path = self._path(system, root, key)
        try:
            system.invalidate_cache(path.rpartition("/")[0])
            info = RetryPolicy(_may_pass)(lambda: system.info(path))
            if info.get("type") == "directory":  # its size is 0: it would be read as an empty object
                raise NotFound(f"{self.label}: cannot read {key}: it is a folder, not an object.", self.label)
            size = int(info["size"])
            end = size if length is None else start + length
            if end > size or start > size:
                raise StoreError(f"{self.label}: {key} has {size} bytes, but {end} are needed; it was cut short.", self.label)
            for at in range(start, end, RANGE):
                until = min(at + RANGE, end)
                piece = bytes(RetryPolicy(_may_pass)(functools.partial(system.cat_file, path, start=at, end=until)))
                if len(piece) != until - at:
                    raise StoreError(f"{self.label}: {key} became shorter while it was read.", self.label)
                yield piece
        except PgsnapError:
            raise
        except Exception as error:
            raise self._wrapped(error, f"read {key}") from error

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ``Store.entries``."""
        system, root = self._open()
        base = f"{root}/{prefix}".rstrip("/")
        try:
            system.invalidate_cache()
            for info in _files(system, base):
                path = str(info["name"])
                if not path.endswith(PARTIAL):
                    yield Entry(_relative(path, root), int(info["size"]), _modified(info))
        except Exception as error:
            raise self._wrapped(error, f"list {prefix or 'it'}") from error

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """See ``Store.delete``. Each key goes to ``rm_file``: fsspec's ``rm`` expands globs and so deletes neighbours."""
        system, root = self._open()
        refused: dict[str, str] = {}
        for key in keys:
            try:
                path = self._path(system, root, key)
                system.invalidate_cache(path.rpartition("/")[0])
                if system.info(path)["type"] == "directory":  # WebDAV deletes a folder with all that is in it
                    refused[key] = "it is a folder, not an object"
                    continue
                system.rm_file(path)
            except FileNotFoundError:
                continue
            except Exception as error:
                refused[key] = f"{type(error).__name__}: {self._brief(error)}"
        return refused

    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        """Remove ``.partial`` files below ``prefix`` that are older than ``before`` (UTC); return their keys."""
        system, root = self._open()
        removed = []
        try:
            system.invalidate_cache()
            for info in _files(system, f"{root}/{prefix}".rstrip("/")):
                if str(info["name"]).endswith(PARTIAL) and _modified(info) < before:
                    with contextlib.suppress(FileNotFoundError):
                        system.rm_file(info["name"])
                    removed.append(_relative(str(info["name"]), root))
        except Exception as error:
            raise self._wrapped(error, f"clean up {prefix or 'it'}") from error
        return removed

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Look whether the store can be listed, and its bucket or container is there: one that is missing lists as empty."""
        try:
            if next(self.entries(f"{run.pipeline}/"), None) is None:
                system, root = self._open()
                first = root.strip("/").partition("/")[0]
                system.info(first if not root.startswith("/") else f"/{first}")
        except FileNotFoundError:
            remedy = "If it is a bucket or a container, create it; a folder is made by the first backup."
            return [Finding("warning", self.label, f"{first} is not there yet.", remedy)]
        except (StoreError, ConfigError) as error:
            return [Finding("error", self.label, str(error), "Check the URL, the credentials and the network.")]
        except Exception as error:
            text = str(self._wrapped(error, "look at it"))
            return [Finding("error", self.label, text, "Check the URL, the credentials and the network.")]
        return [Finding("ok", self.label, "it can be listed.")]


def _open_writer(system: Any, path: str, partial: str) -> tuple[Any, bool]:
    """Open for writing; True: at the target itself, with a writer that publishes by a commit and can discard.

    So say buffered writers that override ``discard``, those of object stores. It is asked of a writer at the partial path, since
    opening may already create or truncate the file.
    """
    from fsspec.spec import AbstractBufferedFile

    probe = system.open(partial, "wb", autocommit=False)
    if isinstance(probe, AbstractBufferedFile) and type(probe).discard is not AbstractBufferedFile.discard:
        probe.discard()
        probe.closed = True  # so that its finalizer does not upload what was discarded
        return system.open(path, "wb", autocommit=False), True
    with contextlib.suppress(Exception):
        probe.close()
    return system.open(partial, "wb"), False


def _move(system: Any, source: str, target: str) -> None:
    """Rename where the file system can, and replace what is there. fsspec's default would expand globs in the name, and so does
    WebDAV's own, so such a name is copied here."""
    from fsspec import AbstractFileSystem

    def move() -> None:
        if type(system).mv is not AbstractFileSystem.mv and not glob.has_magic(source):
            system.mv(source, target)
            return
        system.cp_file(source, target)
        system.rm_file(source)

    try:
        move()
    except Exception:
        if not (system.exists(target) and system.exists(source)):
            raise
        system.rm_file(target)  # WebDAV does not replace
        move()


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that led to an error, if there is one; libraries wrap each other's errors."""
    seen: BaseException | None = error
    for _ in range(5):
        if seen is None:
            break
        for holder in (seen, getattr(seen, "response", None)):
            for name in ("status_code", "status"):
                if isinstance(found := getattr(holder, name, None), int):
                    return found
        seen = seen.__cause__ or seen.__context__
    return None


def _may_pass(error: BaseException) -> bool:
    lasting = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, (OSError, TimeoutError)) and not isinstance(error, lasting)


def _give_up(system: Any, file: Any, partial: str, commits: bool) -> None:
    if commits:
        file.discard()
        file.closed = True
        return
    try:
        file.close()
    finally:
        system.rm_file(partial)


def _files(system: Any, base: str) -> Iterator[Mapping[str, Any]]:
    """Yield what fsspec knows of each file below a path. Its own ``walk`` passes over every folder that it fails to list, so that
    a store that cannot be reached looks like an empty one; here only a folder that is not there is passed over."""
    pending = [base]
    while pending:
        folder = pending.pop()
        try:
            listing = system.ls(folder, detail=True)
        except FileNotFoundError:
            continue
        for info in listing:
            path = str(info["name"]).rstrip("/")
            if path.strip("/") == folder.strip("/"):
                continue  # the folder itself, or a file of that name
            if info["type"] == "directory":
                pending.append(path)
            else:
                yield info


def _relative(path: str, root: str) -> str:
    """Return the key of a path; file systems differ in leading slashes."""
    return path.strip("/").removeprefix(root.strip("/")).lstrip("/")


def _modified(info: Mapping[str, Any]) -> datetime:
    for field in ("LastModified", "last_modified", "mtime", "modified", "updated", "created"):
        value = info.get(field)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                parsed = datetime.fromisoformat(value)
                return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return datetime.fromtimestamp(0, UTC)
