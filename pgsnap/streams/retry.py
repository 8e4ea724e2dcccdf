"""What stores behind a network share: requests that are repeated, reads that are resumed, waiting for progress and not for speed.

For authors of stores. A request that can be replayed (one part, one range, one small object) is repeated with jitter while the
network or the server is to blame; nothing else ever is. It is given up when it makes no progress for a time, not when it is slow.
An object is read in ranges, several under way, each resumed at the byte where it was cut off.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from typing import Any, TypeVar

from pgsnap.streams.basics import CHUNK, Chunks, Stream
from pgsnap.streams.parallel import in_flight

__all__ = [
    "RequestBody",
    "RetryPolicy",
    "TrackedChunks",
    "chunks_of",
    "fetch_until_complete",
    "read_ranges",
    "wait_while_progressing",
]

R = TypeVar("R")

ATTEMPTS = 6
JITTER = 0.3
"""Seconds that the first wait lasts at most; each later one at most twice the one before, and 15."""
PIECE = 128 << 10
"""Bytes of a body that go out at a time, each of which is progress."""
STEP = 256 << 10
"""Bytes that an attempt must have brought for its failure not to count."""


class RetryPolicy:
    """Repeats single requests until they succeed, fail for good, or ``cancel`` is called.

    Args:
        is_transient: Whether the same request may succeed later: the network or the server is to blame, not what was asked.
        attempts: How often a request is sent at most.
    """

    def __init__(self, is_transient: Callable[[BaseException], bool], attempts: int | None = None) -> None:
        self.is_transient = is_transient
        self.repeated = False
        """Whether any request was sent more than once, or may have to be."""
        self._attempts = attempts or ATTEMPTS
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Nobody wants the results any more: start no further attempt, and no further request."""
        self._cancelled.set()

    def __call__(self, request: Callable[[], R]) -> R:
        """Return what ``request`` returns; raise what its last attempt raised, or CancelledError before the first."""
        import tenacity

        if self._cancelled.is_set():
            raise CancelledError("nobody wants the result any more")

        def attempt() -> R:
            try:
                return request()
            except BaseException as error:
                self.repeated = self.repeated or self.is_transient(error)
                raise

        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_when_event_set(self._cancelled),
            wait=tenacity.wait_random_exponential(multiplier=JITTER, max=15),
            sleep=tenacity.sleep_using_event(self._cancelled),
            retry=tenacity.retry_if_exception(self.is_transient),
            reraise=True,
        )(attempt)


class TrackedChunks:
    """The chunks that a store is to write, and what they raised: that is not the store's to wrap or to repeat."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:  # noqa: UP028  # "yield from" would close what is not ours
                yield chunk
        except BaseException as error:
            self.error = error
            raise


class RequestBody:
    """The bytes of one request, sent in small pieces without a copy and without a thread; it knows when it last moved.

    What signs a request reads and rewinds it as a file, what sends it iterates over it.
    """

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self._at = 0
        self.moved = time.monotonic()

    def __len__(self) -> int:
        return len(self._view)

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        piece = bytes(self._view[self._at : end])
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, len(self._view))[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._view), PIECE):
            self.moved = time.monotonic()
            yield self._view[start : start + PIECE]
        self.moved = time.monotonic()


async def wait_while_progressing(request: Coroutine[Any, Any, R], moved: Callable[[], float], limit: float) -> R:
    """Wait for a request for as long as it gets on.

    Args:
        moved: When it last did, on the clock of ``time.monotonic``; before anything has, any earlier time.
        limit: Seconds without progress after which it is cancelled.

    Raises:
        TimeoutError: there was none for that long.
        What the request raised.
    """
    import asyncio

    began = time.monotonic()
    task = asyncio.ensure_future(request)
    try:
        while not (await asyncio.wait({task}, timeout=min(1.0, limit / 4)))[0]:
            if time.monotonic() - max(began, moved()) > limit:
                raise TimeoutError(f"no progress for {limit:g} s")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)


def fetch_until_complete(get: Callable[[], object], enough: Callable[[], bool], into: bytearray, policy: RetryPolicy) -> None:
    """Call ``get``, which appends to ``into``, until there is enough: again and again while something comes, else a few times."""

    def attempt() -> None:
        get()
        if not enough():
            raise ConnectionError("the answer ended early")

    while not enough():
        before = len(into)
        try:
            policy(attempt)
        except Exception as error:
            if not policy.is_transient(error) or len(into) - before < STEP:
                raise


def read_ranges(
    fetch: Callable[[int, int, bytearray], object], start: int, end: int, *, size: int, limit: int, policy: RetryPolicy
) -> Stream:
    """Yield the bytes of an object from ``start`` to ``end``. Holds ``limit`` + 1 ranges of ``size`` bytes.

    Args:
        fetch: Called with where to begin, where to end, and what to append the bytes to as they come; in a thread for each
            range, and again for the rest where it fails or ends early: what has come stays. It must not append more.
        size: Bytes of one range.
        limit: Ranges under way at once.
    """

    def get(begin: int) -> bytearray:
        into = bytearray()
        until = min(begin + size, end)
        fetch_until_complete(lambda: fetch(begin + len(into), until, into), lambda: len(into) >= until - begin, into, policy)
        return into

    with closing(in_flight(get, range(start, end, size), limit)) as pieces:
        try:
            for piece in pieces:
                yield from chunks_of(piece)
        finally:
            policy.cancel()


def chunks_of(data: bytes | bytearray) -> Iterator[bytes]:
    """Yield bytes in chunks of 1 MiB."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK):
        yield bytes(view[start : start + CHUNK])
