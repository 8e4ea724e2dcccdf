"""Work that may never come back, such as a system call on a dead mount: done in a thread, which is left behind in time."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

from pgsnap.streams.basics import Chunks, Stream
from pgsnap.streams.fan_out import Stalled, fan_out

__all__ = ["Watchdog"]

R = TypeVar("R")
T = TypeVar("T")

GRACE = 5.0
"""Seconds that a thread whose work is wanted no more is waited for, so that what it holds is free when its consumer goes on."""


class _Hands(Generic[T]):
    """What a worker hands to its consumer: a bounded queue. All but ``moved`` is read and written under the condition."""

    def __init__(self, bound: int, weigh: Callable[[T], int]) -> None:
        self.changed = threading.Condition()
        self.queue: deque[T] = deque()
        self.held = 0  # weight of what is queued
        self.bound = bound
        self.weigh = weigh
        self.moved = time.monotonic()  # when the worker last had something, or had room again
        self.gone = False  # the consumer wants nothing more
        self.done = False  # the worker has ended
        self.error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Queue an item, when there is room; return whether more is wanted."""
        with self.changed:
            self.moved = time.monotonic()
            while self.held >= self.bound and not self.gone:
                self.changed.wait()
                self.moved = time.monotonic()
            self.queue.append(item)
            self.held += self.weigh(item)
            self.changed.notify_all()
            return not self.gone

    def take(self, seconds: float) -> tuple[T, ...]:
        """Return what is queued, at least one item; nothing at the end. Raise Stalled if nothing moves for so long."""
        with self.changed:
            began = time.monotonic()
            while not (self.queue or self.done):
                left = max(began, self.moved) + seconds - time.monotonic()
                if left <= 0:
                    raise Stalled(f"it gave no answer for {seconds:g} s.")
                self.changed.wait(left)
            items = tuple(self.queue)
            self.queue.clear()
            self.held = 0
            self.changed.notify_all()
            if not items and self.error is not None:
                raise self.error
            return items


class Watchdog:
    """Does work of one kind in daemon threads, each in a copy of the context, and leaves behind what makes no progress.

    While one that was left behind is still blocked nothing new is begun: it would block as well, and wait its whole time again.
    What only nobody wants any more is not blocked: a reader that was closed early may have to see some requests end. It has the
    time for that that it had for progress.
    """

    def __init__(self) -> None:
        self._left: list[tuple[threading.Thread, float]] = []  # with when it is overdue

    def check(self) -> None:
        """Raise Stalled while something that was left behind is still blocked."""
        now = time.monotonic()
        if any(thread.is_alive() and overdue <= now for thread, overdue in self._left):
            raise Stalled("an earlier call has still not come back.")

    def _leave(self, thread: threading.Thread, seconds: float) -> None:
        """Leave a thread behind, if it still runs: it is blocked if it has not ended within ``seconds``."""
        if thread.is_alive():
            self._left.append((thread, time.monotonic() + seconds))

    def call(self, work: Callable[[], R], seconds: float) -> R:
        """Return ``work()``; raise Stalled if it has not returned within ``seconds``."""
        with contextlib.closing(self.items(lambda: (work() for _ in range(1)), seconds)) as results:
            return next(results)

    def items(
        self, source: Callable[[], Iterable[T]], seconds: float, *, bound: int = 1, weigh: Callable[[T], int] = lambda _: 1
    ) -> Generator[T]:
        """Yield what ``source()`` yields; it is called, pulled and closed by a thread, ahead of the consumer.

        Args:
            seconds: How long nothing may come while the consumer waits. A slow consumer is no stall.
            bound: What may be queued, by ``weigh``, before the thread waits; as much again is held by the consumer.

        Raises:
            Stalled: nothing came for so long; the thread is left behind.
            What the source raised, after the items that came before it.
        """
        self.check()
        hands: _Hands[T] = _Hands(bound, weigh)

        def pull() -> None:
            error: BaseException | None = None
            try:
                found = source()
                try:
                    for item in found:
                        if not hands.put(item):
                            break
                finally:
                    close = getattr(found, "close", None)
                    if close is not None:
                        close()
            except BaseException as caught:
                error = caught
            with hands.changed:
                hands.error, hands.done = error, True
                hands.changed.notify_all()

        thread = threading.Thread(target=contextvars.copy_context().run, args=(pull,), name="watchdog", daemon=True)
        thread.start()
        left = seconds
        try:
            while items := hands.take(seconds):
                yield from items
        except Stalled:
            left = 0.0
            raise
        finally:
            with hands.changed:
                hands.gone = True
                hands.changed.notify_all()
            thread.join(min(GRACE, left))
            self._leave(thread, left)

    def feed(self, chunks: Chunks, consumer: Callable[[Stream], R], *, buffer: int, stall: float, finish: float) -> R:
        """Return what ``consumer`` makes of a stream that the calling thread pumps; see ``fan_out``.

        Raises:
            Stalled: it took nothing for ``stall`` seconds, or did not return within ``finish`` after the last chunk.
            What the source or the consumer raised.
        """
        self.check()
        threads: list[threading.Thread] = []

        def consume(stream: Stream) -> R:
            threads.append(threading.current_thread())
            return consumer(stream)

        left = finish  # if the source fails, the consumer may have something to undo
        try:
            (outcome,) = fan_out(chunks, [consume], buffer=buffer, stall=stall, finish=finish, grace=min(GRACE, stall))
            left = 0.0
        finally:
            for thread in threads:
                self._leave(thread, left)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[return-value]
