"""Bridges to libraries that want files: ones that read, ones that only wrap a writer, and ones that do both at once."""

from __future__ import annotations

import contextlib
import contextvars
import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from pgsnap.errors import StageError
from pgsnap.streams.basics import CHUNK, Chunks, Stream, weight

__all__ = ["ChunkReader", "prefetch", "through_thread", "through_writer"]


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
                    self.into_size -= weight(chunk)
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
            self.out_size += weight(data)
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
                    exchange.out_size -= weight(ready)
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
                    exchange.into_size += weight(chunk)
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
