"""Toys for the tests of the core: a dumper without a database, a store that fails on command, and the type of ``make``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import attrs

from pgsnap import Artifact, Dump, Dumper, DumpError, Entry, Facts, LocalStore, Pipeline, RestoreRequest, Run, Source, StoreError
from pgsnap.streams import Chunks, Stream


class MakePipeline(Protocol):
    """The fixture ``make``: a pipeline of a ``ToyDumper`` with two local stores, ``a`` and ``b``; keywords replace its parts."""

    def __call__(self, **parts: Any) -> Pipeline: ...


class FillPipeline(Protocol):
    """The fixtures ``filled``: such a pipeline, and a backup in it of each of the given days (or hours) ago."""

    def __call__(self, *ago: float, **parts: Any) -> Pipeline: ...


def files_below(folder: Path) -> list[str]:
    """Return the paths of the files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pattern(size: int) -> bytes:
    """Bytes of which no two blocks are alike."""
    words = b"".join(number.to_bytes(4, "big") for number in range(-(-size // 4)))
    return words[:size]


@attrs.frozen(kw_only=True)
class ToyDumper(Dumper):
    """Dumps what it is given; ``fail_at`` makes the artifact's stream fail after so many bytes."""

    name: ClassVar[str] = "toy"
    contents: Mapping[str, bytes] = attrs.field(factory=lambda: {"shop.dump": pattern(3_000_000), "globals.sql": b"roles"})
    fail_at: int | None = None
    compressed: bool = False
    entered: list[str] = attrs.field(factory=list)
    restored: dict[str, bytes] = attrs.field(factory=dict)

    @contextlib.contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        facts: Facts = {"notes": ["a note"]}

        def stream(data: bytes) -> Stream:
            for at in range(0, len(data), 100_000):
                if self.fail_at is not None and at >= self.fail_at:
                    raise DumpError("pg_dump failed with exit status 1: it was shot.")
                yield data[at : at + 100_000]

        self.entered.append("in")
        try:
            yield Dump(
                artifacts=[
                    Artifact(name=name, open=lambda data=data: stream(data), compressed=self.compressed, expected=len(data))
                    for name, data in self.contents.items()
                ],
                facts=facts,
            )
        finally:
            self.entered.append("out")

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        for name in source.artifacts:
            self.restored[name] = b"".join(source.open(name))

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "\n".join(f"@{{{name}}} > out-{name}" for name in artifacts)


@attrs.frozen(kw_only=True)
class FaultyStore(LocalStore):
    """A local store that fails where it is told to.

    ``fail_write`` is the end of a key: writing it fails after ``after`` bytes; ``hang`` makes it block there instead, until the
    event; ``lose`` is the end of a key that it says it stored, and has not; ``short`` one that it reports with a byte missing.
    """

    fsync: bool = False
    fail_write: str = "\0"
    after: int = 0
    hang: threading.Event | None = None
    lose: str = "\0"
    short: str = "\0"
    offline: bool = False

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        def failing() -> Stream:
            size = 0
            for chunk in chunks:
                size += len(chunk)
                if size > self.after:
                    if self.hang is not None:
                        self.hang.wait()
                    raise StoreError(f"{self.label}: the disk is on fire.", self.label)
                yield chunk
            raise StoreError(f"{self.label}: the disk is on fire at the end.", self.label)

        if self.offline:
            raise StoreError(f"{self.label}: it is offline.", self.label)
        size = LocalStore.write(self, key, failing() if key.endswith(self.fail_write) else chunks, expected=expected)
        if key.endswith(self.lose):
            LocalStore.delete(self, [key])
        return size - 1 if key.endswith(self.short) else size

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        if self.offline:
            raise StoreError(f"{self.label}: it is offline.", self.label)
        return LocalStore.entries(self, prefix)
