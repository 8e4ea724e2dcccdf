"""Toys for the tests of the core, and the real command for the others.

The toys are a dumper without a database, and stores that fail on command. The ``desk`` is a folder with a configuration, where
``pgsnap`` runs in a process of its own. The tests of files mirror the modules; those of ``promises/`` and ``end_to_end/`` use
real servers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import attrs
import pytest

from pgsnap import Artifact, Dump, Dumper, DumpError, LocalStore, Pipeline, RestoreRequest, Run, Source, StoreError
from pgsnap.components.values import Entry, Facts
from pgsnap.streams import Chunks, Stream

# A shell that starts the tests by & or nohup has them ignore these, and so would every process that a test means to stop.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


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


@pytest.fixture
def toy() -> type[ToyDumper]:
    """The class of a dumper that needs no database."""
    return ToyDumper


@pytest.fixture
def faulty() -> type[FaultyStore]:
    """The class of a store that fails on command."""
    return FaultyStore


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a test's stores and consumers hang at; opened at its end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Pipeline]:
    """Make a pipeline of a toy dumper with two local stores, ``a`` and ``b``; keywords replace its parts."""

    def make_pipeline(**parts: object) -> Pipeline:
        stores = [LocalStore(url=str(tmp_path / name), fsync=False) for name in ("a", "b")]
        return Pipeline(**({"name": "shop", "dump": ToyDumper(), "stores": stores} | parts))  # type: ignore[arg-type]

    return make_pipeline


# --- the command ---------------------------------------------------------------------------------------------------------

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))


@attrs.define
class Desk:
    """A folder with a configuration, and the command."""

    folder: Path
    env: dict[str, str]

    def configure(
        self, *, transforms: str = "", stores: tuple[str, ...] = ("one", "two"), dump: str = "", more: str = ""
    ) -> None:
        """Write ./pgsnap.toml: pg_dump of DATABASE_URL through ``transforms`` into ``stores``."""
        text = f'[pipeline.shop]\n{more}\n[pipeline.shop.dump]\nuse = "pg_dump"\nurl = {{ env = "DATABASE_URL" }}\n'
        text += f"{dump}\n{transforms}\n"
        for store in stores:
            text += f'[[pipeline.shop.store]]\nurl = "{store if store.startswith("/") else self.folder / store}"\n'
        (self.folder / "pgsnap.toml").write_text(text)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def files(self, store: str = "one") -> list[Path]:
        """Return the files in a store."""
        return sorted(path for path in (self.folder / store).rglob("*") if path.is_file())

    def committed(self, store: str = "one") -> list[Path]:
        """Return the folders of the backups that exist in a store."""
        return sorted(path.parent for path in (self.folder / store).rglob("manifest.json"))


def clean_environment() -> dict[str, str]:
    """The environment of this process without anything that could configure pgsnap or libpq."""
    ours = ("PG", "AWS_", "SMTP_", "GCS_", "GOOGLE_", "STORAGE_EMULATOR_", "DATABASE_URL")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours) or name == "PGSNAP_PG_BIN"}


@pytest.fixture(scope="session")
def make_desk() -> Callable[[Path], Desk]:
    """Make a desk of a folder; tests give DATABASE_URL themselves."""
    return lambda folder: Desk(folder, clean_environment() | {"HOME": str(folder)})


@pytest.fixture
def desk(tmp_path: Path, make_desk: Callable[[Path], Desk]) -> Desk:
    """A folder of its own, without a database."""
    return make_desk(tmp_path)
