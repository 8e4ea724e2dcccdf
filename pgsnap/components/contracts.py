"""The four kinds of component: the contracts between pgsnap and its plugins.

A component is one class with ``@attrs.frozen(kw_only=True)``: ``name`` and the like are class variables, its fields are its
options (TOML key = field name), its methods the behaviour. It is frozen, reusable, picklable, and safe to use from several
threads at once: what belongs to one stream lives in that stream's generator, what belongs to one dump in its context manager.
It holds no connection. A field that must not be seen has the type ``Secret``.

A component imports its heavy libraries where it uses them, not at the top of its module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import attrs

from pgsnap.components.events import KINDS, Event, Kind
from pgsnap.components.run import Run
from pgsnap.components.values import Entry, Facts, Finding, RetentionPolicy, Secret, check_name, without_userinfo
from pgsnap.errors import ConfigError, Unsupported
from pgsnap.streams import Chunks, Stream

__all__ = [
    "Artifact",
    "Component",
    "Dump",
    "Dumper",
    "Notifier",
    "RestoreRequest",
    "Source",
    "Store",
    "Transform",
    "check_on",
]


@attrs.frozen(kw_only=True)
class Component(ABC):
    """What all four kinds have in common: a name, options, and a check before the run."""

    name: ClassVar[str]
    """What ``use = "…"`` names it by in a TOML file; it is also recorded in manifests."""

    version: ClassVar[str] = "1"
    """Version of what this component writes, recorded in manifests so that a later one can still read it."""

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Return what would fail if the run started now, with remedies. May connect; must not change anything."""
        return ()


RESERVED = {"manifest.json", "running.json", "suspect.json", "ack.json", "held.json", "RECOVER.txt"}
"""Names that files of our own have in a backup's folder. An artifact called manifest.json would be a commit."""

# --- dump ------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Artifact:
    """A named stream of a dump.

    ``open()`` gives the stream, once, when it is consumed; ``expected`` is a guess of its size in bytes; ``compressed`` says
    that its bytes are compressed already, so that a transform that compresses steps aside.
    """

    name: str = attrs.field()
    open: Callable[[], Stream]
    expected: int | None = None
    compressed: bool = False

    @name.validator
    def _check_name(self, _: object, value: str) -> None:
        check_name(value, "the artifact's name")
        if value in RESERVED or value.endswith(".partial"):
            raise ConfigError(f"the artifact's name {value!r} is one that pgsnap gives to files of its own; choose another.")


@attrs.frozen(kw_only=True)
class Dump:
    """What a dumper hands out: artifacts of ONE database snapshot, and facts about it.

    The artifacts are consumed in order, while the dumper's context lasts; several may be consumed at once. ``facts`` is read
    after the last artifact has ended, so a dumper may go on adding to it until then. It goes into the manifest: no secret, no
    host, no user, no table name.

    Facts that the core understands, all optional: ``identity`` (a mapping that tells one database from another), ``totals``
    (numbers such as ``tables`` and ``rows``), ``notes`` (a list of sentences that the report shows).
    """

    artifacts: Sequence[Artifact]
    facts: Facts = attrs.field(factory=dict)


class Source(Protocol):
    """What a dumper restores from. Every stream it gives is verified block by block and decoded."""

    @property
    def artifacts(self) -> Sequence[str]:
        """Names of the artifacts, in the order they were dumped."""
        ...

    @property
    def facts(self) -> Facts:
        """The facts of the dump."""
        ...

    @property
    def id(self) -> str:
        """The backup's id."""
        ...

    def open(self, name: str) -> Stream:
        """Return the plain bytes of an artifact; may be called again, and from several threads.

        A stream closed early costs only what was read. It ends without an error only if sizes and digests agree.
        """
        ...

    def size(self, name: str) -> int:
        """Return the plain size of an artifact in bytes."""
        ...

    def local(self, name: str) -> AbstractContextManager[Path]:
        """Give a temporary file (mode 0600) with the plain bytes of an artifact, for what must seek; it is removed afterwards."""
        ...


@attrs.frozen(kw_only=True)
class RestoreRequest:
    """What to restore, and where.

    Args:
        target: The URL of the database to restore into.
        tables: Only these tables, with what they need; ``schema.table`` or ``table``. Empty: everything.
        schemas: Only these schemas. Empty: everything.
        sections: Of ``pre-data``, ``data``, ``post-data``; empty: all.
        jobs: Parallel connections; more than 1 needs a temporary local copy of the artifact.
        globals: Restore roles and tablespaces as well.
        owners: False: everything belongs to the restoring user and no privileges are set.
        force: The target may have data in it already: it is replaced, not mixed.
    """

    target: Secret
    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    jobs: int = 1
    globals: bool = True
    owners: bool = True
    force: bool = False


@attrs.frozen(kw_only=True)
class Dumper(Component):
    """Takes a consistent dump of a database, and puts it back."""

    @abstractmethod
    def dump(self, run: Run) -> AbstractContextManager[Dump]:
        """Enter to get the dump; the snapshot behind it is held until the context is left. Write it as a ``@contextmanager``.

        An artifact's stream ends without an error only if the artifact is whole, by its own structure and not by an exit
        status alone.

        Raises:
            DumpError: when entering, or out of an artifact's stream.
        """

    @abstractmethod
    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        """Restore from verified, decoded streams. If it raises, the target is as it was before.

        Raises:
            RestoreError: the target refused, or is not empty.
            Unsupported: this dumper does not offer what was requested.
        """

    @abstractmethod
    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        """Return the shell lines that restore decoded artifacts without pgsnap, for RECOVER.txt.

        In them ``@{name}`` stands for the shell command that prints the plain bytes of artifact ``name``.
        """

    def describe(self, request: RestoreRequest) -> str:
        """Return where a restore would go, resolved (host, port, database), without a secret."""
        return without_userinfo(request.target.reveal())


# --- transform -------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Transform(Component):
    """Turns a stream into another and back: compresses, encrypts, or passes it through and records something of it."""

    suffix: ClassVar[str] = ""
    """What it adds to a file name, such as ``.zst``."""
    compresses: ClassVar[bool] = False
    """It steps aside for an artifact that is compressed already."""
    encrypts: ClassVar[bool] = False
    """What follows it cannot be read without a key."""

    @abstractmethod
    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Return the encoded stream; ``facts`` (empty when called) is complete when the stream has ended."""

    @abstractmethod
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Return the plain stream; depends on ``facts`` and keys only, not on options that shaped the encoding.

        Raises:
            IntegrityError: the data is truncated, altered or trailed by something.
            StageError: a key is missing, or is not the right one.
        """

    def command(self, facts: Facts) -> str | None:
        """Return the shell filter that decodes, such as ``zstd -dc``, or None if the bytes are unchanged."""
        return None

    def needs(self, facts: Facts) -> str:
        """Return what a person must have to run ``command``, such as a program and a key, for RECOVER.txt; empty: nothing."""
        return ""

    def sidecars(self, filename: str, facts: Facts) -> Mapping[str, bytes]:
        """Return small files to lie beside the stored one: name to content; ``filename`` is the final stored name.

        Asked only of transforms after which nothing changes the bytes any more, and if the artifact is one object.
        """
        return {}

    @classmethod
    def keygen(cls, path: Path) -> str:
        """Make a new key pair: write the private key to ``path`` (mode 0600, never over a file), return the public one.

        Raises:
            Unsupported: this transform has no keys.
        """
        raise Unsupported(f"the transform {cls.name!r} has no keys to make.")


# --- store -----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Store(Component):
    """Keeps objects under keys. Keys are relative to ``url``, use ``/``, and are taken literally (``*``, ``?``, ``[`` too).

    ``write`` accepts as many concurrent calls as the run opens.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    """URL schemes that choose this class when no ``use`` is given."""

    url: str = attrs.field(repr=without_userinfo)
    keep: RetentionPolicy | None = None

    @property
    def label(self) -> str:
        """The URL without credentials: how every message names this store."""
        return without_userinfo(self.url)

    @property
    def max_object(self) -> int | None:
        """The largest object in bytes, or None: no limit. The core cuts an artifact at the least of the run's stores."""
        return None

    @abstractmethod
    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        """Store an object whole or not at all, replacing one of the same key; return the bytes stored.

        Returning means that the store has confirmed the size. If ``chunks`` raises, nothing is published and the error passes
        through unchanged. ``expected`` is a guess of the size in bytes.

        Raises:
            StoreError, Denied: with the label, and whether trying again may help.
        """

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        """Yield the bytes of an object from ``start``, ``length`` of them or to its end.

        Raises:
            NotFound: there is no such object.
            StoreError: reading failed, or the object ends before ``start`` plus ``length``.
        """

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield all objects below ``prefix`` (empty, or ending in ``/``), at any depth, in any order, paged and uncached.

        A prefix that does not exist has no entries. Unfinished writes are not among them.
        """

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Delete objects; return the refused keys with the reason. An absent key counts as deleted."""

    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        """Remove what unfinished writes below ``prefix`` have left and that is older than ``before`` (UTC); return their keys."""
        return ()

    @staticmethod
    def is_passing(key: str) -> bool:
        """Whether an object is of use for minutes only (a lease, a sign of life, a mark of a prune): nothing need lock it."""
        return key.rpartition("/")[2] in ("running.json", "pruned.json") or key.rpartition("/")[0].endswith("/leases")

    @property
    def lock_period(self) -> timedelta | None:
        """For how long this store locks what it writes against deletion by anybody, or None: it does not.

        A store with locks also implements ``locked_until`` and ``extend_lock``: a prune extends the locks of what it keeps.
        """
        return None

    def locked_until(self, key: str) -> datetime | None:
        """Return when an object's lock ends (UTC), or None: it has none, or this store does not lock.

        Raises:
            NotFound: there is no such object.
            StoreError, Denied: it cannot be told.
        """
        return None

    def extend_lock(self, keys: Sequence[str], until: datetime) -> Mapping[str, str]:
        """Lock objects until then (UTC) at least, never for less than they are; return the refused keys with the reason."""
        return {}

    def examine(self, run: Run) -> Sequence[Finding]:
        """Return what this kind of store knows of itself, for ``pgsnap doctor --deep`` to say besides what it finds out."""
        return ()


# --- notify ----------------------------------------------------------------------------------------------------------


def check_on(instance: object, attribute: attrs.Attribute[tuple[Kind, ...]], value: tuple[Kind, ...]) -> None:
    """Refuse what is no kind of event; for notifiers that give ``on`` another default."""
    for kind in value:
        if kind not in KINDS:
            close = get_close_matches(str(kind), KINDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(KINDS)}."
            raise ConfigError(f"on = {kind!r} is no event; {hint}")


ON: tuple[Kind, ...] = ("succeeded", "partial", "failed", "suspect", "drilled", "summary")


@attrs.frozen(kw_only=True)
class Notifier(Component):
    """Tells people about events. It never changes the outcome of a backup; its own failure grades the run (exit code 3)."""

    on: tuple[Kind, ...] = attrs.field(default=ON, validator=check_on)

    def wants(self, event: Event) -> bool:
        """Return whether an event is to be delivered: its kind is in ``on``; it went badly and ``failed`` is; or it is a test."""
        return event.kind in self.on or event.kind == "test" or (event.level == "error" and "failed" in self.on)

    @abstractmethod
    def notify(self, event: Event, *, timeout: float) -> None:
        """Deliver one event within ``timeout`` seconds; ``pgsnap.deliver`` repeats what may be repeated in that time.

        Raises:
            NotifyError: it could not be delivered.
        """


ComponentKind = Literal["dump", "transform", "store", "notify"]
KIND_CLASSES: dict[ComponentKind, type[Component]] = {
    "dump": Dumper,
    "transform": Transform,
    "store": Store,
    "notify": Notifier,
}
