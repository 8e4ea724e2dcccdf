"""Limits in time for the calls of a store: whatever it is and whatever has become of it, each call ends.

The streams of a backup or a copy go through a ``StoreSet``, which drops a store that hangs. All other calls go through a
``TimeLimitedStore``: the call is made in a thread, and when there is no progress for too long the thread is left behind and the
call fails like one of a store that cannot be reached. A store's own timeouts, where it has some, know more and should come first;
a directory on a mount whose server is gone has none at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar, TypeVar

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.components.values import Entry, Finding
from pgsnap.errors import StoreError
from pgsnap.streams import CHUNK, Chunks, Stalled, Stream, Watchdog
from pgsnap.streams.basics import weight

__all__ = ["Limits", "TimeLimitedStore"]

R = TypeVar("R")
AHEAD = 4 * CHUNK
"""Bytes that are read ahead of whoever reads."""
LISTED = 1_000
"""Entries that are listed ahead."""
EACH_KEY = 1.0
"""Seconds that a deletion may take more for each key: some stores can only delete one by one."""


@attrs.frozen(kw_only=True)
class Limits:
    """How long a store may take and how much is held for it; see ``streams.fan_out``. Seconds and bytes."""

    buffer: int = 8 << 20
    stall: float = 300.0
    finish: float = 600.0
    grace: float = 30.0
    answer: float = 120.0


@attrs.frozen(kw_only=True)
class TimeLimitedStore(Store):
    """Another store, each of whose calls ends in time: with a StoreError that names it, if there is no progress for too long.

    Once a call was left behind, others fail at once for as long as it is blocked. A stream that is read, or a listing, is pulled
    ahead by a thread; about 8 MiB of it are held.
    """

    name: ClassVar[str] = "time_limited"

    store: Store
    limits: Limits
    _bounds: Watchdog = attrs.field(factory=Watchdog, init=False, repr=False, eq=False)

    @classmethod
    def of(cls, store: Store, limits: Limits) -> TimeLimitedStore:
        """Return the store with its calls bounded; one that is bounded already stays as it is."""
        if isinstance(store, TimeLimitedStore):
            return store
        return cls(url=store.url, keep=store.keep, store=store, limits=limits)

    @property
    def label(self) -> str:
        """See ``Store.label``."""
        return self.store.label

    @property
    def max_object(self) -> int | None:
        """See ``Store.max_object``."""
        return self.store.max_object

    @contextlib.contextmanager
    def _named(self, doing: str, options: str) -> Iterator[None]:
        try:
            yield
        except Stalled as error:
            raise StoreError(
                f"{self.label}: cannot {doing}: {str(error).rstrip('.')}; see whether it is mounted and can be reached, "
                f"or raise {options}.",
                self.label,
                transient=True,
            ) from error

    def _call(self, doing: str, work: Callable[[], R], seconds: float, options: str = "'answer_timeout'") -> R:
        with self._named(doing, options):
            return self._bounds.call(work, seconds)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        """See ``Store.write``. A tuple is a small object, all of it there: it is a call like any other."""
        if isinstance(chunks, tuple):
            return self._call(f"write {key}", lambda: self.store.write(key, chunks, expected=expected), self.limits.answer)
        limits = self.limits
        with self._named(f"write {key}", "'stall_timeout' or 'finish_timeout'"):
            return self._bounds.feed(
                chunks,
                lambda stream: self.store.write(key, stream, expected=expected),
                buffer=limits.buffer,
                stall=limits.stall,
                finish=limits.finish,
            )

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        """See ``Store.read``."""
        with self._named(f"read {key}", "'stall_timeout'"):
            yield from self._bounds.items(
                lambda: self.store.read(key, start, length), self.limits.stall, bound=AHEAD, weigh=weight
            )

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ``Store.entries``."""
        with self._named(f"list {prefix or 'it'}", "'answer_timeout'"):
            yield from self._bounds.items(lambda: self.store.entries(prefix), self.limits.answer, bound=LISTED)

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """See ``Store.delete``."""
        seconds = self.limits.answer + EACH_KEY * len(keys)
        return self._call("delete objects", lambda: self.store.delete(keys), seconds)

    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        """See ``Store.sweep``."""
        doing, seconds = f"clean up {prefix or 'it'}", self.limits.finish
        return self._call(doing, lambda: self.store.sweep(prefix, before), seconds, "'finish_timeout'")

    @property
    def lock_period(self) -> timedelta | None:
        """See ``Store.lock_period``."""
        return self.store.lock_period

    def locked_until(self, key: str) -> datetime | None:
        """See ``Store.locked_until``."""
        return self._call(f"read the lock of {key}", lambda: self.store.locked_until(key), self.limits.answer)

    def extend_lock(self, keys: Sequence[str], until: datetime) -> Mapping[str, str]:
        """See ``Store.extend_lock``."""
        seconds = self.limits.answer + EACH_KEY * len(keys)
        return self._call("lock objects", lambda: self.store.extend_lock(keys, until), seconds)

    def preflight(self, run: Run) -> Sequence[Finding]:
        """See ``Component.preflight``. That there is no answer is a finding too."""
        return self._findings(lambda: self.store.preflight(run))

    def examine(self, run: Run) -> Sequence[Finding]:
        """See ``Store.examine``. That there is no answer is a finding too."""
        return self._findings(lambda: self.store.examine(run))

    def _findings(self, work: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
        try:
            return self._bounds.call(lambda: tuple(work()), self.limits.answer)
        except Stalled as error:
            return [Finding("error", self.label, str(error), "See whether it is mounted and can be reached.")]
