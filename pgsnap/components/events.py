"""What a pipeline tells people: one frozen class for each kind of event, and the words that every message is made of.

    Event                 pipeline, id, time, text, stores, cause, next step, log; title, level, facts to lay a message out
    ├── Started           a backup begins
    ├── Finished          times, sizes, sizes last time, throughput
    │   ├── Succeeded     it is in every store
    │   ├── Partial       it exists, but a store was lost or the quorum missed
    │   ├── Failed        there is no backup
    │   └── Suspect       it exists, and looks as if most of the database were gone
    ├── Verified          its bytes were read again
    ├── Drilled           it was restored and compared
    ├── Pruned            old backups were removed
    ├── Summary           still alive: counts, sizes, trend, last proof
    └── TestMessage             a marked test

``kind`` is what ``on = [...]`` of a notifier names. An event that went badly (its ``level`` is ``error``) reaches also who asked
for ``failed``. Every text is free of secrets by the time a notifier sees it: ``pgsnap.operations.notify`` goes over all of them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import ClassVar, Literal, TypeAlias, get_args

import attrs

from pgsnap.components.values import format_duration, format_size

__all__ = [
    "EVENTS",
    "KINDS",
    "Drilled",
    "Event",
    "Failed",
    "Finished",
    "Grade",
    "Kind",
    "Partial",
    "Pruned",
    "Started",
    "StoreOutcome",
    "StoreSummary",
    "Succeeded",
    "Summary",
    "Suspect",
    "TestMessage",
    "Verified",
    "clip",
    "now",
    "one_line",
]

Kind: TypeAlias = Literal[
    "started", "succeeded", "partial", "failed", "suspect", "verified", "drilled", "pruned", "summary", "test"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Grade: TypeAlias = Literal["info", "ok", "warning", "error"]
MARKS: dict[Grade, str] = {"info": "\N{LARGE BLUE CIRCLE}", "ok": "\N{WHITE HEAVY CHECK MARK}",
                           "warning": "\N{WARNING SIGN}\N{VARIATION SELECTOR-16}", "error": "\N{CROSS MARK}"}  # fmt: skip


def now() -> datetime:
    """Return the time, UTC."""
    return datetime.now(UTC)


def clip(text: str, limit: int) -> str:
    """Return a text of at most ``limit`` characters; what is cut off is counted in a mark at the end."""
    if len(text) <= limit:
        return text
    for taken in range(limit, -1, -1):
        mark = f" … ({len(text) - taken:,} more characters)"
        if taken + len(mark) <= limit:
            return text[:taken] + mark
    return text[:limit]


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters: what may stand in a subject or a header."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\s]+", " ", text).strip()


@attrs.frozen(kw_only=True)
class StoreOutcome:
    """What became of one store: its label, and what went wrong there (empty: nothing)."""

    label: str
    error: str = ""


@attrs.frozen(kw_only=True)
class StoreSummary(StoreOutcome):
    """One store in a summary: how many backups, how many bytes, the newest, and when one was last proved.

    ``expires`` is when the policy lets the first of them go, if backups go on once a day; ``error`` says why the store could not
    be read.
    """

    count: int = 0
    size: int = 0
    newest: datetime | None = None
    proved: datetime | None = None
    expires: datetime | None = None


@attrs.frozen(kw_only=True)
class Event:
    """One thing that people may want to hear of.

    Args:
        pipeline: The pipeline's name.
        id: The backup's id, where it is about one.
        time: When it happened, UTC.
        text: One sentence for a person, perhaps a few; never a secret.
        stores: Stores that it is about, and what became of each.
        cause: Why it went wrong; empty where it did not.
        next_step: What to do now, if anything.
        recover: Where RECOVER.txt lies, for each store that has the backup.
        notes: What else is worth telling.
        log: What the run logged; only where it went wrong.
    """

    kind: ClassVar[Kind]

    pipeline: str
    id: str = ""
    time: datetime = attrs.field(factory=now)
    text: str = ""

    stores: tuple[StoreOutcome, ...] = ()
    cause: str = ""
    next_step: str = ""
    recover: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    log: str = attrs.field(default="", repr=False)

    @property
    def level(self) -> Grade:
        """How bad it is: ``info``, ``ok``, ``warning`` or ``error``."""
        return "info"

    @property
    def mark(self) -> str:
        """The level as a sign that is seen at a glance."""
        return MARKS[self.level]

    @property
    def headline(self) -> str:
        """What happened, in a few words, without the pipeline's name."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The pipeline and what happened, on one line."""
        return one_line(f"{self.pipeline}: {self.headline}")

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Labels and values, to be laid out as a table."""
        return (("backup", self.id),) if self.id else ()


@attrs.frozen(kw_only=True)
class Started(Event):
    """A backup begins."""

    kind: ClassVar[Kind] = "started"

    @property
    def headline(self) -> str:
        """What happened."""
        return "the backup begins"


@attrs.frozen(kw_only=True)
class Finished(Event):
    """A backup run has ended, one way or the other.

    Args:
        started, ended: UTC.
        size, stored_size: Bytes, plain and in one store; 0 where there is no backup.
        last_size, last_stored_size: Those of the backup before; None where that is not known.
        quorum: How many stores were asked for.
    """

    started: datetime
    ended: datetime
    size: int = 0
    stored_size: int = 0
    last_size: int | None = None
    last_stored_size: int | None = None
    quorum: int = 1

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended - self.started).total_seconds()

    @property
    def throughput(self) -> float:
        """Plain bytes a second; 0 where nothing was measured."""
        return self.size / self.seconds if self.seconds > 0 else 0.0

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Size against last time, duration, stores."""
        rows = [("backup", self.id)]
        if self.size:
            rows.append(("size", format_size(self.size) + _against(self.size, self.last_size)))
            rows.append(("stored", format_size(self.stored_size) + _against(self.stored_size, self.last_stored_size)))
        rate = f", {format_size(self.throughput)}/s" if self.throughput else ""
        rows.append(("took", format_duration(self.seconds) + rate))
        if self.stores:
            kept = sum(not store.error for store in self.stores)
            rows.append(("stores", f"{kept} of {len(self.stores)}" + (f", {self.quorum} wanted" if kept < self.quorum else "")))
        return tuple(rows)


def _against(size: int, last: int | None) -> str:
    """Return a size's change since last time, in words."""
    if last is None:
        return ""
    if size == last:
        return " (as last time)"
    change = f"{(size - last) / last:+.1%}" if last else f"+{format_size(size)}"
    return f" ({change}, last {format_size(last)})"


@attrs.frozen(kw_only=True)
class Succeeded(Finished):
    """The backup is in every store."""

    kind: ClassVar[Kind] = "succeeded"

    @property
    def level(self) -> Grade:
        """``ok``."""
        return "ok"

    @property
    def headline(self) -> str:
        """What happened."""
        return "backed up"


@attrs.frozen(kw_only=True)
class Partial(Finished):
    """The backup exists, but a store was lost; below the quorum that is an error."""

    kind: ClassVar[Kind] = "partial"

    @property
    def level(self) -> Grade:
        """``error`` below the quorum, else ``warning``."""
        return "error" if sum(not store.error for store in self.stores) < self.quorum else "warning"

    @property
    def headline(self) -> str:
        """What happened."""
        return "backed up, but not everywhere"


@attrs.frozen(kw_only=True)
class Failed(Finished):
    """There is no backup of this run."""

    kind: ClassVar[Kind] = "failed"

    @property
    def level(self) -> Grade:
        """``error``."""
        return "error"

    @property
    def headline(self) -> str:
        """What happened."""
        return "NO BACKUP was made"


@attrs.frozen(kw_only=True)
class Suspect(Finished):
    """The backup exists, but looks as if something were missing; ``cause`` says what was compared."""

    kind: ClassVar[Kind] = "suspect"

    @property
    def level(self) -> Grade:
        """``error``."""
        return "error"

    @property
    def headline(self) -> str:
        """What happened."""
        return "backed up, but it looks too small"


@attrs.frozen(kw_only=True)
class Verified(Event):
    """The bytes of a backup were read again in every store; ``size`` is bytes read, ``decoded`` that keys were used too."""

    kind: ClassVar[Kind] = "verified"

    size: int = 0
    decoded: bool = False

    @property
    def level(self) -> Grade:
        """``ok``, or ``error`` if anything is not as it was written."""
        return "error" if any(store.error for store in self.stores) else "ok"

    @property
    def headline(self) -> str:
        """What happened."""
        return "every byte is as it was written" if self.level == "ok" else "a backup is DAMAGED"

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """How much was read."""
        return (("backup", self.id), ("read", format_size(self.size) + (", decoded" if self.decoded else "")))


@attrs.frozen(kw_only=True)
class Drilled(Event):
    """A backup was restored and compared; ``cause`` (empty: all agreed) says what did not.

    ``started`` and ``ended`` are UTC; ``checks`` are labels and values, such as how many tables and rows were compared.
    """

    kind: ClassVar[Kind] = "drilled"

    started: datetime
    ended: datetime
    checks: tuple[tuple[str, str], ...] = ()

    @property
    def level(self) -> Grade:
        """``ok`` or ``error``."""
        return "error" if self.cause else "ok"

    @property
    def headline(self) -> str:
        """What happened."""
        return "the restore drill FAILED" if self.cause else "proved restorable"

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Duration and what was compared."""
        took = format_duration((self.ended - self.started).total_seconds())
        return (("backup", self.id), ("took", took), *self.checks)


@attrs.frozen(kw_only=True)
class Pruned(Event):
    """Old backups were removed from one store.

    ``deleted`` are ids; ``kept`` counts what is left; ``refused`` are sentences about what the store would not delete; ``size``
    is bytes set free.
    """

    kind: ClassVar[Kind] = "pruned"

    store: str = ""
    deleted: tuple[str, ...] = ()
    kept: int = 0
    size: int = 0
    refused: tuple[str, ...] = ()

    @property
    def level(self) -> Grade:
        """``info``, or ``warning`` if something was refused."""
        return "warning" if self.refused else "info"

    @property
    def headline(self) -> str:
        """What happened."""
        return "old backups could not all be removed" if self.refused else "old backups were removed"

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Counts and sizes."""
        rows = [("store", self.store), ("removed", f"{len(self.deleted)}, {format_size(self.size)}"), ("kept", str(self.kept))]
        return (*rows, ("refused", " ".join(self.refused))) if self.refused else tuple(rows)


@attrs.frozen(kw_only=True)
class Summary(Event):
    """Still alive: what a pipeline has, store by store, and how its size moves.

    ``since`` is the beginning of the period, ``count`` the backups made in it; ``sizes`` are the bytes of the newest backups,
    oldest first.
    """

    kind: ClassVar[Kind] = "summary"

    since: datetime | None = None
    count: int = 0
    stores: tuple[StoreSummary, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def level(self) -> Grade:
        """``ok``, or ``warning`` if nothing was made or a store could not be read."""
        return "ok" if self.count and not any(store.error for store in self.stores) else "warning"

    @property
    def headline(self) -> str:
        """What happened."""
        return f"still alive, {self.count} backup{'' if self.count == 1 else 's'} made"

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Period, trend, and a line for each store."""
        rows = [("since", f"{self.since:%Y-%m-%d}")] if self.since else []
        if self.sizes:
            rows.append(("newest size", format_size(self.sizes[-1]) + _against(self.sizes[-1], self.sizes[0])))
        for store in self.stores:
            if store.error:
                rows.append((store.label, store.error))
                continue
            words = [f"{store.count} backup{'' if store.count == 1 else 's'}, {format_size(store.size)}"]
            words += [f"newest {store.newest:%Y-%m-%d %H:%M} UTC"] if store.newest else []
            words += [f"last proved {store.proved:%Y-%m-%d %H:%M} UTC" if store.proved else "never proved by a drill"]
            words += [f"the next one goes on {store.expires:%Y-%m-%d}"] if store.expires else []
            rows.append((store.label, "; ".join(words)))
        return tuple(rows)


@attrs.frozen(kw_only=True)
class TestMessage(Event):
    """A test that somebody asked for: nothing has happened."""

    __test__: ClassVar[bool] = False  # pytest takes classes of such names for tests
    kind: ClassVar[Kind] = "test"

    @property
    def headline(self) -> str:
        """What happened."""
        return "TEST, nothing has happened"


EVENTS: dict[Kind, type[Event]] = {
    cls.kind: cls for cls in (Started, Succeeded, Partial, Failed, Suspect, Verified, Drilled, Pruned, Summary, TestMessage)
}
"""The class of each kind."""
