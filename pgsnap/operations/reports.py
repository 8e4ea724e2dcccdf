"""What a finished piece of work has to say: frozen, picklable, free of secrets. ``exit_code`` is the command's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import attrs

from pgsnap.components.events import Finished, StoreOutcome
from pgsnap.components.values import format_duration, format_size
from pgsnap.repository.manifest import Manifest
from pgsnap.repository.retention import Decision

__all__ = [
    "BackupReport",
    "CopyReport",
    "MarkReport",
    "PruneReport",
    "RestoreReport",
    "StorePrune",
    "StoreResult",
    "VerifyReport",
    "worst",
]

F = TypeVar("F", bound=Finished)
_SEVERITY = (1, 4, 3, 0)


def worst(codes: Sequence[int]) -> int:
    """Return the exit code that stands for several: 1 before 4 before 3 before 0; any other code wins over all."""
    for code in codes:
        if code not in _SEVERITY:
            return code
    return min(codes, key=_SEVERITY.index, default=0)


@attrs.frozen(kw_only=True)
class StoreResult:
    """What became of one store in a run: ``error`` is empty if the backup is in it.

    ``dropped_out`` says why it failed on the way, where the backup came into it afterwards, by copy.
    """

    label: str
    error: str = ""
    dropped_out: str = ""

    @property
    def ok(self) -> bool:
        """Whether the backup is in it."""
        return not self.error


@attrs.frozen(kw_only=True)
class BackupReport:
    """A backup: where it is, how large, how long it took.

    ``size`` and ``stored_size`` are bytes (plain, and in one store); times are UTC; ``manifest`` is None if nothing was
    committed. ``suspect`` says what the shrink guard objects to; ``caught_up`` is what was copied after the commit to stores that
    lacked something, ``prune`` what became of older backups then.
    """

    pipeline: str
    id: str
    started: datetime
    ended: datetime
    stores: tuple[StoreResult, ...]
    quorum: int
    manifest: Manifest | None = None
    notes: tuple[str, ...] = ()
    notify_errors: tuple[str, ...] = ()
    suspect: tuple[str, ...] = ()
    prune: PruneReport | None = None
    caught_up: CopyReport | None = None

    @property
    def size(self) -> int:
        """Plain bytes of all artifacts."""
        return self.manifest.size if self.manifest else 0

    @property
    def stored_size(self) -> int:
        """Bytes of all artifacts in one store."""
        return self.manifest.stored_size if self.manifest else 0

    @property
    def duration(self) -> timedelta:
        """How long it took."""
        return self.ended - self.started

    @property
    def kept_in(self) -> tuple[str, ...]:
        """Labels of the stores that hold the backup."""
        return tuple(store.label for store in self.stores if store.ok)

    def event(self, kind: type[F], **more: Any) -> F:
        """Return the event of a kind that reports this run; keywords are its fields, ``text`` is the report's unless given."""
        fields: dict[str, Any] = {
            "pipeline": self.pipeline,
            "id": self.id,
            "text": self.text,
            "started": self.started,
            "ended": self.ended,
            "size": self.size,
            "stored_size": self.stored_size,
            "stores": tuple(StoreOutcome(label=store.label, error=store.error) for store in self.stores),
            "quorum": self.quorum,
            "recover": tuple(f"{label}/{self.pipeline}/{self.id}/RECOVER.txt" for label in self.kept_in),
            "notes": self.notes,
        }
        return kind(**(fields | more))

    @property
    def exit_code(self) -> int:
        """0, or 1 if it is in fewer stores than the quorum, 4 if it is suspect, 3 if a store or a notifier failed."""
        if len(self.kept_in) < max(1, self.quorum):
            return 1
        if self.suspect:
            return 4
        return 3 if self.notify_errors or self.catch_up_errors or not all(store.ok for store in self.stores) else 0

    @property
    def catch_up_errors(self) -> tuple[str, ...]:
        """What kept stores from being brought up to date; a store whose failure in the run is told is not told again."""
        told = [store.label for store in self.stores if not store.ok]
        errors = self.caught_up.errors if self.caught_up else ()
        return tuple(error for error in errors if not any(label in error for label in told))

    @property
    def text(self) -> str:
        """One sentence for a person."""
        if not self.kept_in:
            return f"{self.pipeline}: no backup was made."
        failed = [store for store in self.stores if not store.ok]
        text = (
            f"{self.pipeline}: {self.id} is in {', '.join(self.kept_in)}: {format_size(self.size)} became "
            f"{format_size(self.stored_size)} in {format_duration(self.duration.total_seconds())}."
        )
        if len(self.kept_in) < self.quorum:
            text += f" That is {len(self.kept_in)} of the {self.quorum} stores that the quorum asks for."
        if self.suspect:
            text += (
                f" It is SUSPECT: {', '.join(self.suspect)}. Nothing is pruned until you have looked at it: pgsnap ack {self.id}"
            )
        for store in self.stores:
            if store.dropped_out:
                text += f" {store.label} dropped out and got it by copy: {store.dropped_out}"
        if failed:
            text += " Missing: " + " ".join(store.error for store in failed)
        return text


@attrs.frozen(kw_only=True)
class StorePrune:
    """What a prune did in one store.

    ``decisions`` are about its committed backups, oldest first; ``deleted`` are ids, ``size`` their bytes that the store let go;
    ``refused`` the keys that it did not, with its reason; ``orphans`` ids and keys of what unfinished runs had left; ``extended``
    ids of what stays whose locks ended too soon and were extended, ``unlocked`` the keys where that failed, with the reason;
    ``error`` why not all was done.
    """

    label: str
    decisions: tuple[Decision, ...] = ()
    deleted: tuple[str, ...] = ()
    size: int = 0
    refused: Mapping[str, str] = attrs.field(factory=dict)
    orphans: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()
    unlocked: Mapping[str, str] = attrs.field(factory=dict)
    error: str = ""
    busy: bool = False


@attrs.frozen(kw_only=True)
class PruneReport:
    """A prune of one pipeline. ``frozen`` says why nothing may be deleted; in a ``dry_run`` nothing was."""

    pipeline: str
    stores: tuple[StorePrune, ...]
    frozen: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        """0, 75 if somebody else is at it, 4 if it is frozen, 3 if a store failed or refused."""
        if any(store.busy for store in self.stores):
            return 75
        if self.frozen:
            return 4
        return 3 if any(store.error or store.refused or store.unlocked for store in self.stores) else 0

    @property
    def problems(self) -> list[str]:
        """A sentence for each thing that somebody should know."""
        found = [f"{self.pipeline}: nothing is pruned: {reason}" for reason in self.frozen]
        for store in self.stores:
            if store.error:
                found.append(store.error)
            if store.refused:
                key, reason = next(iter(store.refused.items()))
                found.append(
                    f"{store.label}: {len(store.refused)} objects could not be deleted and will be tried again next time; "
                    f"the first is {key}: {reason}"
                )
            if store.unlocked:
                key, reason = next(iter(store.unlocked.items()))
                found.append(
                    f"{store.label}: the locks of {len(store.unlocked)} objects could not be extended, and what stays can be "
                    f"deleted when they end; the first is {key}: {reason}"
                )
        return found


@attrs.frozen(kw_only=True)
class MarkReport:
    """What became of ``ack``, ``hold``, ``release`` or ``delete``: the stores where it was done, and the errors of the others."""

    pipeline: str
    id: str
    labels: tuple[str, ...]
    errors: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or 3 if it was not done everywhere."""
        return 3 if self.errors else 0


@attrs.frozen(kw_only=True)
class RestoreReport:
    """A restore: which backup went where. ``notes`` tell of stores that had to be left for others."""

    pipeline: str
    id: str
    target: str
    started: datetime
    ended: datetime
    notes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class VerifyReport:
    """A verification of one backup: for each store that holds it, what is wrong (nothing: it is whole).

    ``decoded`` says that the plain bytes were checked as well; ``size`` is bytes read; ``repaired`` has, for each store, the keys
    that were replaced by what another store had; ``unread`` are the stores whose copy could not be looked at: that is no damage.
    """

    pipeline: str
    id: str
    problems: Mapping[str, tuple[str, ...]]
    decoded: bool
    size: int
    repaired: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    unread: tuple[str, ...] = ()
    notify_errors: tuple[str, ...] = ()

    @property
    def whole(self) -> list[str]:
        """The stores whose copy is whole."""
        return [label for label, problems in self.problems.items() if not problems]

    @property
    def damaged(self) -> list[str]:
        """The stores whose copy is not whole, as far as it could be looked at."""
        return [label for label, problems in self.problems.items() if problems and label not in self.unread]

    @property
    def ok(self) -> bool:
        """Whether every store's copy is whole (now, if it was repaired)."""
        return not any(self.problems.values())

    @property
    def exit_code(self) -> int:
        """0, or 4 if anything is damaged, or 3 if it could be repaired, or somebody could not be told."""
        if not self.ok:
            return 4
        return 3 if any(self.repaired.values()) or self.notify_errors else 0


@attrs.frozen(kw_only=True)
class CopyReport:
    """A catch-up by copy: ids copied to each store, and the errors of the others; ``busy``: somebody else is at it."""

    pipeline: str
    copied: Mapping[str, tuple[str, ...]]
    errors: tuple[str, ...] = ()
    busy: bool = False

    @property
    def exit_code(self) -> int:
        """0, or 3 if a copy failed, or 75 if a store is used by another copy or prune."""
        if self.busy:
            return 75
        return 3 if self.errors else 0
