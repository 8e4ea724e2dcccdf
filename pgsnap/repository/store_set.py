"""The stores of one run: written to together, dropped one by one, never able to stop each other.

Everything that goes to the stores goes through here and is bounded in time: a store that hangs is dropped and its thread left
behind. A stream is bounded by ``fan_out``; a small file or a listing, of which less can be expected, by ``TimeLimitedStore``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.errors import PgsnapError, StoreError
from pgsnap.repository.manifest import MANIFEST, ObjectRecord
from pgsnap.stores.timeouts import Limits, TimeLimitedStore
from pgsnap.streams import BLOCK, Chunks, Outcome, Stalled, Stream, Tap, drain, fan_out

__all__ = ["StoreSet"]

R = TypeVar("R")


QUIET = Limits(stall=30, finish=30, grace=5)
"""For what follows the end of a run."""


class StoreSet:
    """The stores of one run, by position.

    ``failures`` holds why each lost one was dropped, ``touched`` those to which anything was written or begun to be, ``wrote``
    those that took any of it.
    """

    def __init__(self, stores: Sequence[Store], run: Run, limits: Limits) -> None:
        self.stores = tuple(TimeLimitedStore.of(store, limits) for store in stores)
        self.failures: dict[int, PgsnapError] = {}
        self.touched: set[int] = set()
        self.wrote: set[int] = set()
        self._run = run
        self._limits = limits
        self._writing: set[tuple[int, str]] = set()

    @property
    def alive(self) -> list[int]:
        """Positions of the stores that have not failed."""
        return [number for number in range(len(self.stores)) if number not in self.failures]

    @property
    def max_object(self) -> int | None:
        """The largest object, in bytes, that every store takes; None: no limit."""
        return min((s.max_object for s in self.stores if s.max_object is not None), default=None)

    def drop(self, number: int, error: BaseException) -> None:
        """Count a store as failed from now on. The first reason stays."""
        if number in self.failures:
            return
        self.failures[number] = self._named(number, error)
        self._run.log.warning("a store has dropped out: %s", self.failures[number])

    def require(self) -> None:
        """Raise StoreError if no store is left."""
        if self.stores and not self.alive:
            raise StoreError("no store is left. " + " ".join(str(error) for error in self.failures.values()))

    def write(self, key: str, chunks: Chunks, *, name: str, expected: int | None = None, block: int = BLOCK) -> ObjectRecord:
        """Write one object to every store that is left, at once; drop those that fail. A tuple is a small file, all of it there.

        Args:
            key: The full key.
            name: The key relative to the backup's folder, for the record.

        Raises:
            StoreError: none is left.
            Whatever the source of the chunks raised.
        """
        tap = Tap(block)
        numbers = self.alive
        small = isinstance(chunks, tuple)
        self.touched.update(numbers)

        def consumer(number: int) -> Callable[[Stream], int]:
            store = self.stores[number]

            def consume(stream: Stream) -> int:
                counted = self._counted(stream, store.label, expected)
                self._writing.add((number, key))
                try:
                    if small:
                        return store.write(key, tuple(counted), expected=expected)
                    return store.store.write(key, counted, expected=expected)  # by its own bounds it would pass two queues
                finally:
                    self._writing.discard((number, key))

            return consume

        outcomes = self._fan_out(tap.through(chunks), [consumer(number) for number in numbers])
        for number, outcome in zip(numbers, outcomes, strict=True):
            if outcome.error is not None:
                self.drop(number, outcome.error)
            elif outcome.value != tap.size:
                self.drop(number, StoreError(f"it says it stored {outcome.value} of {tap.size} bytes of {key}."))
            else:
                self.wrote.add(number)
        self.require()
        return ObjectRecord(key=name, size=tap.size, sha256=tap.sha256, blocks=tap.blocks)

    def remove(self, keys: Sequence[str], numbers: Sequence[int]) -> dict[int, str]:
        """Delete keys of one backup from stores, even after an abort: the manifest first, and if that stays, all of it.

        Where a write of the manifest hangs nothing is deleted: it may still arrive, and must find its objects.

        Returns:
            Why something is left, by the position of the store.
        """
        first = [key for key in keys if key.endswith(f"/{MANIFEST}")]
        rest = [key for key in keys if key not in first]
        late = "its manifest is still being written, so all is left for it."
        left = {number: late for number in numbers if any((number, key) in self._writing for key in first)}

        def delete(store: Store) -> Mapping[str, str]:
            refused = store.delete(first) if first else {}
            return refused or store.delete(rest)

        quiet = StoreSet(self.stores, Run(self._run.pipeline), QUIET)
        for number, result in quiet.each(delete, [number for number in numbers if number not in left]).items():
            if isinstance(result, PgsnapError):
                left[number] = str(result)
            elif result:
                left[number] = " ".join(sorted(set(result.values())))
        return left

    def each(self, work: Callable[[Store], R], numbers: Sequence[int] | None = None) -> dict[int, R | PgsnapError]:
        """Do ``work`` at once in all stores left (or those given), in bounded time; return what came of it by position, in order.
        An error names its store."""
        chosen = self.alive if numbers is None else list(numbers)

        def consumer(number: int) -> Callable[[Stream], R]:
            def consume(stream: Stream) -> R:
                drain(stream)
                return work(self.stores[number])

            return consume

        outcomes = self._fan_out((), [consumer(number) for number in chosen])
        results: dict[int, R | PgsnapError] = {}
        for number, outcome in zip(chosen, outcomes, strict=True):
            error = outcome.error
            if error is None:
                results[number] = outcome.value  # type: ignore[assignment]
            else:
                results[number] = error if isinstance(error, StoreError) else self._named(number, error)
        return results

    def _named(self, number: int, error: BaseException) -> PgsnapError:
        """Return an error that names the store: the given one, if it does."""
        label = self.stores[number].label
        if not isinstance(error, PgsnapError):
            return StoreError(f"{label}: {type(error).__name__}: {error}", label)
        return error if label in str(error) else StoreError(f"{label}: {error}", label, transient=isinstance(error, Stalled))

    def _fan_out(self, chunks: Chunks, consumers: Sequence[Callable[[Stream], R]]) -> list[Outcome[R]]:
        limits = self._limits
        return fan_out(
            chunks,
            consumers,
            buffer=limits.buffer,
            stall=limits.stall,
            finish=limits.finish,
            grace=limits.grace,
            check=self._run.check,
        )

    def _counted(self, chunks: Chunks, label: str, expected: int | None) -> Stream:
        done = 0
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            self._run.progress(label, done, expected)
