"""One source, many consumers: the fan-out that feeds every store from one dump, and drops those that fail."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

from pgsnap.errors import PgsnapError, StageError, UpstreamError
from pgsnap.streams.basics import Chunks, Stream, weight

__all__ = ["Outcome", "Stalled", "fan_out"]

R = TypeVar("R")


class Stalled(PgsnapError):
    """A consumer took nothing, or did not finish, within its time; it was dropped."""


@attrs.frozen
class Outcome(Generic[R]):
    """What became of one consumer: its value, or the error that dropped it.

    ``abandoned`` says that its thread was still blocked when time was up; it is a daemon and cannot hold the process.
    """

    value: R | None = None
    error: BaseException | None = None
    abandoned: bool = False


class _Lane:
    """One consumer's queue. All fields are read and written under the shared condition."""

    def __init__(self, changed: threading.Condition) -> None:
        self.changed = changed
        self.queue: deque[bytes] = deque()
        self.held = 0  # weight of what is queued
        self.moved = time.monotonic()  # when the consumer last took a chunk
        self.ended = False  # the source is whole
        self.drained = False  # the consumer has seen the end
        self.done = False  # the consumer has returned
        self.broken: BaseException | None = None  # why it is to stop
        self.error: BaseException | None = None

    @property
    def alive(self) -> bool:
        return not self.done and self.broken is None

    def stream(self) -> Stream:
        while True:
            with self.changed:
                while not (self.broken or self.queue or self.ended):
                    self.changed.wait()
                if self.broken is not None:
                    raise UpstreamError(str(self.broken) or type(self.broken).__name__) from self.broken
                if not self.queue:
                    self.drained = True
                    return
                chunk = self.queue.popleft()
                self.held -= weight(chunk)
                self.moved = time.monotonic()
                self.changed.notify_all()
            yield chunk

    def put(self, chunk: bytes) -> None:
        self.queue.append(chunk)
        self.held += weight(chunk)
        self.changed.notify_all()

    def drop(self, why: BaseException) -> None:
        self.broken = self.broken or why
        self.error = self.error or why
        self.queue.clear()
        self.held = 0
        self.changed.notify_all()


def fan_out(
    chunks: Chunks,
    consumers: Sequence[Callable[[Stream], R]],
    *,
    buffer: int = 8 << 20,
    stall: float = 300.0,
    finish: float = 600.0,
    grace: float = 30.0,
    check: Callable[[], None] | None = None,
) -> list[Outcome[R]]:
    """Feed one stream to several consumers, each in a thread of its own; return their outcomes in order.

    The calling thread pumps. A consumer that fails, or takes nothing for ``stall`` seconds while its buffer is full, is
    dropped and the others go on; a slow source is no stall. When all are dropped, pulling stops.

    Args:
        chunks: The source. It is pulled here and not closed.
        consumers: Each is called with a stream of its own and returns a value once it has read to the end.
        buffer: Bytes held for each consumer (a chunk counts 64 more); one chunk is always taken, however large.
        stall: Seconds a consumer may leave its full buffer untouched.
        finish: Seconds the consumers have to complete after the last chunk.
        grace: Seconds to wait for the thread of a dropped consumer before it is reported as abandoned.
        check: Called by the calling thread, between chunks and about every second while waiting; what it raises ends
            everything.

    Raises:
        What the source or ``check`` raised, once, after every consumer got its own UpstreamError and was given ``grace``.
    """
    changed = threading.Condition()
    lanes = [_Lane(changed) for _ in consumers]
    values: list[R | None] = [None] * len(consumers)

    def consume(number: int) -> None:
        lane, stream = lanes[number], lanes[number].stream()
        error: BaseException | None = None
        try:
            values[number] = consumers[number](stream)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(ValueError):  # a thread of the consumer's own may still be inside
            stream.close()
        with changed:
            if error is None and not lane.drained:
                error = StageError("the consumer returned before the stream had ended.")
            lane.error = lane.error or error
            lane.broken = lane.broken or lane.error  # for a thread that is still inside
            lane.done = True
            lane.queue.clear()
            lane.held = 0
            changed.notify_all()

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(consume, number), daemon=True, name=f"fan-out-{number}")
        for number in range(len(consumers))
    ]

    def offer(chunk: bytes) -> None:
        """Queue a chunk for every lane, each as soon as it has room, and drop those that stall meanwhile."""
        began = time.monotonic()
        waiting = lanes
        while True:
            with changed:
                now, patience, full = time.monotonic(), 1.0, []
                for lane in waiting:
                    if not lane.alive:
                        continue
                    left = max(began, lane.moved) + stall - now
                    if not lane.held or lane.held + weight(chunk) <= buffer:
                        lane.put(chunk)
                    elif left > 0:
                        full.append(lane)
                        patience = min(patience, left)
                    else:
                        lane.drop(Stalled(f"took nothing for {stall:g} s while {lane.held} bytes were waiting."))
                waiting = full
                if not waiting:
                    return
                changed.wait(patience)
            if check is not None:
                check()

    def wait_until_none(state: Callable[[_Lane], bool], seconds: float, checked: bool = True) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with changed:
                left = deadline - time.monotonic()
                if left <= 0 or not any(state(lane) for lane in lanes):
                    return
                changed.wait(min(left, 1.0))
            if checked and check is not None:
                check()

    try:
        for thread in threads:
            thread.start()
        for chunk in chunks:
            if check is not None:
                check()
            if chunk:
                offer(chunk)
            if not any(lane.alive for lane in lanes):
                break
        else:
            with changed:
                for lane in lanes:
                    lane.ended = True
                changed.notify_all()
        wait_until_none(lambda lane: lane.alive, finish)
        with changed:
            for lane in lanes:
                if lane.alive:
                    lane.drop(Stalled(f"did not finish within {finish:g} s after the last byte."))
        wait_until_none(lambda lane: not lane.done, grace)
    except BaseException as failure:
        with changed:
            for thread, lane in zip(threads, lanes, strict=True):
                lane.done = lane.done or thread.ident is None  # it could not be started
                lane.drop(failure)
        wait_until_none(lambda lane: not lane.done, grace, checked=False)
        raise
    finally:
        for thread, lane in zip(threads, lanes, strict=True):
            if lane.done and thread.ident is not None:
                thread.join()
    with changed:
        return [
            Outcome(value if lane.done and lane.error is None else None, lane.error, not lane.done)
            for lane, value in zip(lanes, values, strict=True)
        ]
