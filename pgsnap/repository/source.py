"""A committed backup as something to restore from: verified blocks, decoded stage by stage, checked against the manifest."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.values import Facts, format_size, plain_mapping
from pgsnap.errors import IntegrityError, NotFound, StoreError
from pgsnap.repository.blocks import Note, read_objects
from pgsnap.repository.manifest import ArtifactRecord, Manifest, folder
from pgsnap.repository.stages import Finder, decode
from pgsnap.streams import Chunks, Stream, Tap

__all__ = ["BackupSource"]


@attrs.frozen(kw_only=True)
class BackupSource:
    """Implements ``components.Source`` for a manifest and the stores that hold its objects, in the order of trying."""

    manifest: Manifest
    stores: Sequence[Store]
    find: Finder
    note: Note
    progress: Callable[[str, int, int | None], None] = lambda *_: None

    @property
    def id(self) -> str:
        """The backup's id."""
        return self.manifest.id

    @property
    def artifacts(self) -> Sequence[str]:
        """Names of the artifacts, in the order they were dumped."""
        return [record.name for record in self.manifest.artifacts]

    @property
    def facts(self) -> Facts:
        """A copy of the facts of the dump."""
        return plain_mapping(self.manifest.facts)

    def _record(self, name: str) -> ArtifactRecord:
        try:
            return self.manifest.artifact(name)
        except KeyError:
            has = ", ".join(self.artifacts)
            raise NotFound(f"backup {self.id} has no artifact {name!r}; it has {has}.") from None

    def size(self, name: str) -> int:
        """Return the plain size of an artifact in bytes."""
        return self._record(name).size

    def open(self, name: str) -> Stream:
        """Yield the plain bytes of an artifact; it ends without an error only if size and digest agree with the manifest."""
        record = self._record(name)
        tap = Tap()
        with ExitStack() as stack:
            stored = read_objects(
                self.stores, folder(self.manifest.pipeline, self.id), record.objects, self.manifest.block, self.note
            )
            stack.callback(stored.close)
            plain: Chunks = decode(stored, record.stages, self.find, stack)
            for chunk in plain:
                tap.update(chunk)
                yield chunk
                self.progress(name, tap.size, record.size)
        if (tap.size, tap.sha256) != (record.size, record.sha256):
            raise IntegrityError(
                f"backup {self.id}: {name} decoded to {tap.size} bytes with another digest than the {record.size} bytes that "
                "were dumped; the manifest or a stage is damaged."
            )

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Give a temporary file (mode 0600, below TMPDIR) with the plain bytes of an artifact; it is removed afterwards.

        Raises:
            StoreError: there is not enough room for it.
        """
        record = self._record(name)
        directory = Path(tempfile.mkdtemp(prefix="pgsnap-"))
        try:
            room = shutil.disk_usage(directory).free
            if room < record.size:
                raise StoreError(
                    f"{directory.parent} has {format_size(room)} free and {name} needs {format_size(record.size)}; "
                    "set TMPDIR to a larger place, or restore without --jobs."
                )
            path = directory / name
            with (
                contextlib.closing(self.open(name)) as stream,
                open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file,
            ):
                for chunk in stream:
                    file.write(chunk)
            yield path
        finally:
            shutil.rmtree(directory, ignore_errors=True)
