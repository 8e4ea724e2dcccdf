"""An author's view of the API: components of all four kinds, as ``mypy --strict`` must accept them; read, not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import IO, ClassVar, assert_type

import attrs

import pgsnap
from pgsnap import (
    Artifact,
    Dump,
    Dumper,
    DumpError,
    Entry,
    Facts,
    Finding,
    Notifier,
    RestoreError,
    RestoreRequest,
    Run,
    Secret,
    Source,
    Store,
    Transform,
    hookimpl,
)
from pgsnap.components import Event
from pgsnap.streams import Chunks, Outcome, Stream, fan_out, in_flight, prefetch, read_chunks, resize, through_thread
from pgsnap.streams.process import Child, feed_process, read_process, through_process


@attrs.frozen(kw_only=True)
class SqliteDump(Dumper):
    """A dumper is a context manager's worth of artifacts."""

    name: ClassVar[str] = "sqlite"
    path: str
    key: Secret | None = None

    @contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        def open_stream() -> Stream:
            yield from read_process(["sqlite3", self.path, ".dump"], start=run.spawn, error=DumpError)

        assert_type(run.encrypted, bool)
        with run.on_abort(lambda: run.log.info("stopping")):
            yield Dump(artifacts=[Artifact(name="main.dump", open=open_stream, expected=None)], facts={"totals": {"rows": 1}})

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        assert_type(request.target, Secret)
        for name in source.artifacts:
            feed_process(source.open(name), ["sqlite3", request.target.reveal()], start=run.spawn, error=RestoreError)

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "\n".join(f"@{{{name}}} | sqlite3 copy.db" for name in artifacts)


@attrs.frozen(kw_only=True)
class Gpg(Transform):
    """A transform may be a child process, a library with files, or plain Python."""

    name: ClassVar[str] = "gpg"
    suffix: ClassVar[str] = ".gpg"
    encrypts: ClassVar[bool] = True
    recipient: str

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        facts["recipient"] = self.recipient
        return through_process(chunks, ["gpg", "-e", "-r", self.recipient])

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        def work(reader: IO[bytes], writer: IO[bytes]) -> None:
            writer.write(reader.read())

        yield from through_thread(prefetch(resize(chunks, 1 << 20)), work)

    def command(self, facts: Facts) -> str | None:
        return "gpg -d"

    def sidecars(self, filename: str, facts: Facts) -> Mapping[str, bytes]:
        return {f"{filename}.who": str(facts["recipient"]).encode()}


@attrs.frozen(kw_only=True)
class Memory(Store):
    """A store keeps objects."""

    name: ClassVar[str] = "mem"
    schemes: ClassVar[tuple[str, ...]] = ("mem",)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        return sum(in_flight(len, resize(chunks, 8 << 20), 4))

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        with open(key, "rb") as file:
            yield from read_chunks(file)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        yield Entry("a", 1, datetime.now())

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(keys, "refused")

    def preflight(self, run: Run) -> Sequence[Finding]:
        return [Finding("warning", self.label, "it forgets everything.", "Use another.")]


@attrs.frozen(kw_only=True)
class Print(Notifier):
    """A notifier delivers events."""

    name: ClassVar[str] = "print"
    prefix: str = ""

    def notify(self, event: Event, *, timeout: float) -> None:
        print(self.prefix, event.kind, event.time.isoformat(), event.text)


@hookimpl
def pgsnap_dumpers() -> Sequence[type[Dumper]]:
    return [SqliteDump]


@hookimpl
def pgsnap_transforms() -> Sequence[type[Transform]]:
    return [Gpg]


@hookimpl
def pgsnap_stores() -> Sequence[type[Store]]:
    return [Memory]


@hookimpl
def pgsnap_notifiers() -> Sequence[type[Notifier]]:
    return [Print]


def streams_keep_their_types(chunks: Chunks, run: Run) -> None:
    """What the tools give is what they promise."""
    assert_type(fan_out(chunks, [len_of, len_of], check=run.check), list[Outcome[int]])
    assert_type(list(in_flight(str, [1, 2], 2)), list[str])
    assert_type(run.spawn(["true"]), Child)
    assert_type(next(prefetch(chunks)), bytes)


def len_of(stream: Stream) -> int:
    return sum(map(len, stream))


def mistakes() -> None:
    """Each is an error to mypy: an ignore that is not needed would be one as well."""
    Gpg("me")  # type: ignore[call-arg]
    Gpg(recipient=b"me")  # type: ignore[arg-type]
    Gpg(recipient="me", recipients=["me"])  # type: ignore[call-arg]
    Gpg(recipient="me").recipient = "you"  # type: ignore[misc]
    Finding("fatal", "x", "y")  # type: ignore[arg-type]
    Print(on=("sometimes",))  # type: ignore[arg-type]
    Secret(1)  # type: ignore[arg-type]
    pgsnap.Nonsense  # type: ignore[attr-defined] # noqa: B018
    Transform()  # type: ignore[abstract]
