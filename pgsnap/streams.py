"""Streams: how bytes flow through pgsnap, and the only place (with ``process``) where threads are.

``Chunks`` (any iterable of bytes) is what a stage consumes, ``Stream`` (a generator of bytes) is what it returns.

The contract:

1. Chunks are ``bytes``, never a view of a buffer that will be used again. Empty chunks mean nothing; sizes carry no meaning
   (about 1 MiB is customary).
2. A stream ends normally only when it is complete. Every failure is raised out of ``next()``: "no error" means "whole".
3. Memory is bounded by a few chunks per stage. A decoder yields bounded pieces, however much a few bytes expand to.
4. Whoever consumes may stop: it calls ``close()``. A stage acquires only inside its generator's body, frees in ``finally``, and
   never closes its input. A generator cannot be closed while another thread runs it: the thread that pumps closes.
5. A component is frozen and may be used for many streams at once; the state of one stream lives in its generator's frame.
6. ``decode`` raises on truncated, altered or trailing data; ``facts`` are complete only after the stream has ended.

Why generators and not file objects: ``with open(path, "wb")`` of a remote file system publishes a truncated object when its
body raises, and writers of gzip and zstd left by an exception write a valid trailer. A generator that is not exhausted has
published nothing. Only ``Store.write`` opens anything for writing.

Theory of operation: the thread that calls ``fan_out`` (or any other sink) pulls chunks through all stages. The bridges below
adapt libraries that want files: ``ChunkReader`` (reads), ``through_writer`` (writes), ``through_thread`` (both at once).
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import IO, Any, Generic, Protocol, TypeAlias, TypeVar

import attrs

from pgsnap.errors import PgsnapError, StageError, UpstreamError

__all__ = [
    "BLOCK",
    "CHUNK",
    "ChunkReader",
    "Chunks",
    "Outcome",
    "Stalled",
    "Stream",
    "Tap",
    "drain",
    "fan_out",
    "in_flight",
    "prefetch",
    "read_chunks",
    "resize",
    "take",
    "through_thread",
    "through_writer",
]

Chunks: TypeAlias = Iterable[bytes]
Stream: TypeAlias = Generator[bytes]
R = TypeVar("R")
T = TypeVar("T")

CHUNK = 1 << 20
"""The customary size of a chunk, in bytes."""
BLOCK = 16 << 20
"""The bytes that one digest of a stored object covers: what a reader holds before it releases any of it."""


class Stalled(PgsnapError):
    """A consumer took nothing, or did not finish, within its time; it was dropped."""


def _weight(chunk: bytes) -> int:
    """What a queued chunk counts against a bound: its bytes and about what an object costs, so that tiny ones add up."""
    return len(chunk) + 64


# --- small tools -----------------------------------------------------------------------------------------------------


def drain(chunks: Chunks) -> int:
    """Consume a stream to its end and return the number of bytes that it had."""
    return sum(len(chunk) for chunk in chunks)


def read_chunks(file: IO[bytes], size: int = CHUNK) -> Stream:
    """Yield what ``file.read(size)`` gives until it gives nothing. The file stays open: its owner closes it."""
    while chunk := file.read(size):
        yield chunk


def resize(chunks: Chunks, size: int) -> Stream:
    """Yield the same bytes in chunks of exactly ``size`` bytes, the last one shorter. Holds less than two of them."""
    held = bytearray()  # not a list: of two-byte chunks it would hold millions
    for chunk in chunks:
        start = 0
        while len(chunk) - start >= size - len(held):
            end = start + size - len(held)
            if held:
                held += memoryview(chunk)[start:end]
                whole, held = bytes(held), bytearray()
            else:
                whole = chunk[start:end]
            start = end
            yield whole
        held += memoryview(chunk)[start:]
    if held:
        yield bytes(held)


def take(source: Iterator[bytes], limit: int | None, rest: list[bytes]) -> Stream:
    """Yield at most ``limit`` bytes of ``source``; what was pulled beyond them is left in ``rest`` for the next call.

    ``rest`` is emptied first. Afterwards it is empty if and only if the source has ended within this call.
    """
    left = limit
    while True:
        chunk = rest.pop() if rest else next(source, None)
        if chunk is None:
            return
        if left is not None and len(chunk) > left:
            rest.append(chunk[left:])
            if left:
                yield chunk[:left]
            return
        if left is not None:
            left -= len(chunk)
        if chunk:
            yield chunk


class Tap:
    """Counts and digests what flows by: ``size`` in bytes, ``sha256``, and a sha256 for each ``block`` bytes.

    With ``block=None`` no block digests are kept. The values are complete when the stream that ``through`` returned has ended.
    """

    def __init__(self, block: int | None = None) -> None:
        self.size = 0
        self._block = block
        self._whole = hashlib.sha256()
        self._part = hashlib.sha256()
        self._filled = 0
        self._done: list[str] = []

    def through(self, chunks: Chunks) -> Stream:
        """Yield the chunks unchanged, recording each before it is passed on."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk

    def update(self, chunk: bytes) -> None:
        """Record one chunk."""
        self.size += len(chunk)
        self._whole.update(chunk)
        if self._block is None:
            return
        view = memoryview(chunk)
        while view:
            piece = view[: self._block - self._filled]
            self._part.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == self._block:
                self._done.append(self._part.hexdigest())
                self._part, self._filled = hashlib.sha256(), 0

    @property
    def sha256(self) -> str:
        """Hex sha256 of everything so far."""
        return self._whole.hexdigest()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Hex sha256 of each block so far; the last may be short. Of nothing there are none."""
        return (*self._done, self._part.hexdigest()) if self._filled else tuple(self._done)


# --- bridges to libraries that want files ----------------------------------------------------------------------------


class ChunkReader(io.RawIOBase):
    """A readable file over chunks, for libraries that read. Holds one chunk; closing it does not close the chunks.

    Once the chunks have failed, every further read raises the same error: a generator that has raised only ends from then
    on, and a library that tries again would take that for the end of the file.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._at = 0
        self._error: BaseException | None = None

    @property
    def unread(self) -> int:
        """Bytes that were pulled and not read."""
        return len(self._chunk) - self._at

    def readable(self) -> bool:
        return True

    def _fill(self) -> bool:
        while self._at >= len(self._chunk):
            if self._error is not None:
                raise self._error
            try:
                chunk = next(self._chunks, None)
            except BaseException as error:
                self._error = error
                raise
            if chunk is None:
                self._chunk, self._at = b"", 0
                return False
            self._chunk, self._at = chunk, 0
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self.readall()
        if size == 0 or not self._fill():
            return b""
        piece = self._chunk[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def read_exactly(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer only where the stream ends."""
        pieces = []
        while size and (piece := self.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


class _Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...
    def close(self) -> object: ...


class _Collector(io.RawIOBase):
    """The file that a writer of ``through_writer`` writes into: memory, emptied after every chunk."""

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.pieces.append(bytes(data))
        return len(data)


def through_writer(chunks: Chunks, wrap: Callable[[IO[bytes]], _Writer]) -> Stream:
    """Run a stream through a library that only wraps a file for writing, such as a threaded gzip writer.

    ``wrap(file)`` returns the library's writer. Its trailer is taken only if the chunks ended without an error; else the
    writer is closed for its resources' sake and what it wrote is thrown away.
    """
    sink = _Collector()
    writer = wrap(sink)  # type: ignore[arg-type]
    whole = False
    try:
        for chunk in chunks:
            writer.write(chunk)
            while sink.pieces:
                yield sink.pieces.popleft()
        whole = True
    finally:
        if whole:
            writer.close()
        else:
            with contextlib.suppress(Exception):  # it must not hide why the stream was left
                writer.close()
            sink.pieces.clear()
    while sink.pieces:
        yield sink.pieces.popleft()


class _Gone(Exception):
    """Raised inside a worker's file when nobody wants its work any more."""


class _Exchange:
    """What the pump and the worker of ``through_thread`` share: two bounded queues under one condition."""

    def __init__(self, bound: int) -> None:
        self.changed = threading.Condition()
        self.bound = bound
        self.into: deque[bytes] = deque()
        self.into_size = 0
        self.out: deque[bytes] = deque()
        self.out_size = 0
        self.ended = False  # the source is whole and all of it was handed over
        self.unread = False  # the worker returned in the middle of a chunk
        self.gone = False
        self.done = False
        self.error: BaseException | None = None

    def next_input(self) -> bytes | None:
        with self.changed:
            while True:
                if self.gone:
                    raise _Gone("the stream was given up")
                if self.into:
                    chunk = self.into.popleft()
                    self.into_size -= _weight(chunk)
                    self.changed.notify_all()
                    return chunk
                if self.ended:
                    return None
                self.changed.wait()

    def put_output(self, data: bytes) -> None:
        with self.changed:
            while self.out_size >= self.bound and not self.gone:
                self.changed.wait()
            if self.gone:
                raise _Gone("the stream was given up")
            self.out.append(data)
            self.out_size += _weight(data)
            self.changed.notify_all()


class _WorkerOutput(io.RawIOBase):
    """The file a worker writes to: gathers about 1 MiB, so that the lock is taken rarely."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self._exchange.gone:
            raise _Gone("the stream was given up")
        if type(data) is bytes and len(data) >= CHUNK and not self._held:
            self._exchange.put_output(data)
            return len(data)
        self._held += data
        if len(self._held) >= CHUNK:
            self.hand_over()
        return len(data)

    def hand_over(self) -> None:
        if self._held:
            data, self._held = bytes(self._held), bytearray()
            self._exchange.put_output(data)


def through_thread(chunks: Chunks, work: Callable[[IO[bytes], IO[bytes]], object], *, bound: int = 4 * CHUNK) -> Stream:
    """Run a stream through a library that takes a reader and a writer, such as ``pyrage.encrypt_io``.

    ``work(reader, writer)`` runs in a thread of its own. The reader is fed from memory, without a system call or a lock per
    read: such libraries read 8 KiB at a time and give Python's lock away on each. The chunks are pulled by the thread that
    consumes this stream. About ``bound`` bytes are held on either side.

    Raises:
        The source's own exception, whatever the library made of it; else what ``work`` raised; StageError if ``work``
        returned before it had read everything.
    """
    exchange = _Exchange(bound)

    def inputs() -> Iterator[bytes]:
        while (chunk := exchange.next_input()) is not None:
            yield chunk

    def run() -> None:
        reader, output = ChunkReader(inputs()), _WorkerOutput(exchange)
        error: BaseException | None = None
        try:
            work(reader, output)  # type: ignore[arg-type]
            output.hand_over()
        except BaseException as caught:
            error = caught
        with exchange.changed:
            exchange.error, exchange.done, exchange.unread = error, True, reader.unread > 0
            exchange.changed.notify_all()

    source = iter(chunks)
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="stage", daemon=True)
    try:
        thread.start()
        while True:
            with exchange.changed:
                while not (exchange.out or exchange.done or (not exchange.ended and exchange.into_size < exchange.bound)):
                    exchange.changed.wait()
                ready = exchange.out.popleft() if exchange.out else None
                if ready is not None:
                    exchange.out_size -= _weight(ready)
                    exchange.changed.notify_all()
                finished = exchange.done
            if ready is not None:
                yield ready
                continue
            if finished:
                break
            chunk = next(source, None)
            with exchange.changed:
                if chunk is None:
                    exchange.ended = True
                elif chunk:
                    exchange.into.append(chunk)
                    exchange.into_size += _weight(chunk)
                exchange.changed.notify_all()
        if exchange.error is not None:
            raise exchange.error
        if exchange.unread or exchange.into or (not exchange.ended and any(source)):
            raise StageError("there is data after the end of the stream; it is damaged or was put together wrongly.")
    finally:
        with exchange.changed:
            exchange.gone = True
            exchange.changed.notify_all()
        if thread.ident is not None:
            thread.join()


# --- parallel work ---------------------------------------------------------------------------------------------------


def prefetch(chunks: Chunks, bound: int = 4 * CHUNK) -> Stream:
    """Pull a stream in a thread of its own, up to ``bound`` bytes ahead of its consumer.

    The thread that pulls also closes: a generator given here is closed by it when the consumer stops. A consumer that stops
    waits for the pull under way.
    """
    source = iter(chunks)

    def pull(_: IO[bytes], out: IO[bytes]) -> None:
        try:
            for chunk in source:
                out.write(chunk)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    yield from through_thread((), pull, bound=bound)


def in_flight(work: Callable[[T], R], items: Iterable[T], limit: int) -> Generator[R]:
    """Yield ``work(item)`` for each item, in order, with at most ``limit`` of them under way, each in a thread of its own.

    The items are pulled by the consuming thread, at most ``limit`` of them ahead. The first failure is raised in its place,
    after all others under way have ended; no further item is started. The threads are daemons, as a pool's are not: one that
    is blocked for ever cannot keep the process of an abandoned consumer from ending.
    """
    waiting: deque[tuple[threading.Thread, Future[R]]] = deque()

    def start(item: T) -> None:
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="in-flight", daemon=True)
        waiting.append((thread, future))
        try:
            thread.start()
        except BaseException:
            waiting.pop()
            raise

    try:
        for item in items:
            if any(future.done() and future.exception() for _, future in waiting):
                break
            start(item)
            if len(waiting) >= limit:
                yield waiting[0][1].result()
                waiting.popleft()[0].join()
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()[0].join()
    finally:
        for thread, _ in waiting:
            thread.join()


# --- one source, many consumers --------------------------------------------------------------------------------------


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
                self.held -= _weight(chunk)
                self.moved = time.monotonic()
                self.changed.notify_all()
            yield chunk

    def put(self, chunk: bytes) -> None:
        self.queue.append(chunk)
        self.held += _weight(chunk)
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
                    if not lane.held or lane.held + _weight(chunk) <= buffer:
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
