"""The bridges to libraries that want files: when every party of them fails, stalls or walks away."""

from __future__ import annotations

import contextvars
import gzip
import hashlib
import io
import os
import threading
import time
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap.errors import IntegrityError, StageError
from pgsnap.streams import CHUNK, ChunkReader, Stream, drain, prefetch, resize, through_thread, through_writer
from pgsnap.testing import failing

WAIT = 20.0
"""Seconds after which a test that should have gone on gives up."""

pieces = st.lists(st.binary(max_size=40), max_size=20)


# --- ChunkReader -----------------------------------------------------------------------------------------------------


@given(pieces, st.lists(st.integers(-1, 30), max_size=12))
def test_chunk_reader_is_a_raw_file(chunks: list[bytes], sizes: list[int]) -> None:
    """Each read gives 1 to n of the next bytes, nothing only at the end or for a read of 0; a negative size reads all."""
    data = b"".join(chunks)
    model, reader = io.BytesIO(data), ChunkReader(chunks)
    for size in sizes:
        got = reader.read(size)
        assert model.read(len(got)) == got
        if size < 0:
            assert b"" == model.read()
        elif size:
            assert len(got) <= size
            assert got or not model.read(1)
    assert model.read() == reader.readall()
    assert b"" == reader.read(5)


@given(pieces, st.lists(st.integers(0, 30), max_size=12), st.integers(1, 40))
def test_chunk_reader_under_a_buffered_reader_is_bytes_io(chunks: list[bytes], sizes: list[int], buffer: int) -> None:
    """Wrapped in io.BufferedReader (which calls readinto) it reads as io.BytesIO does."""
    model, reader = io.BytesIO(b"".join(chunks)), io.BufferedReader(ChunkReader(chunks), buffer)
    for size in sizes:
        assert model.read(size) == reader.read(size)
    assert model.read() == reader.read()


@given(pieces, st.lists(st.integers(0, 60), max_size=8))
def test_read_exactly(chunks: list[bytes], sizes: list[int]) -> None:
    """read_exactly is short only where the stream ends."""
    model, reader = io.BytesIO(b"".join(chunks)), ChunkReader(chunks)
    for size in sizes:
        assert model.read(size) == reader.read_exactly(size)


def test_chunk_reader_keeps_failing() -> None:
    """A library that reads again after an error must not see an end of file: the same error comes again."""
    error = OSError("cut")
    reader = ChunkReader(failing([b"ab"], error))
    assert b"ab" == reader.read(10)
    for _ in range(3):
        with pytest.raises(OSError, match="cut") as caught:
            reader.read(10)
        assert error is caught.value


def test_chunk_reader_leaves_its_chunks_open() -> None:
    """Closing the file does not close the stream: a stage never closes its input."""
    closed = []

    def source() -> Stream:
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append(True)

    stream = source()
    reader = ChunkReader(stream)
    reader.read(1)
    reader.close()
    assert [] == closed
    assert b"b" == next(stream)
    stream.close()


# --- through_writer --------------------------------------------------------------------------------------------------


def _gzip(file: IO[bytes]) -> Any:
    return gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1)


@given(pieces)
def test_through_writer_round_trip(chunks: list[bytes]) -> None:
    """A writer's whole output comes out, with its trailer."""
    assert b"".join(chunks) == gzip.decompress(b"".join(through_writer(chunks, _gzip)))


def test_through_writer_gives_no_trailer_for_half_a_stream() -> None:
    """If the source fails, what came out cannot be decompressed, and the error is the source's own."""
    error = IntegrityError("half")
    got: list[bytes] = []
    with pytest.raises(IntegrityError) as caught:
        got.extend(through_writer(failing([b"x" * 1000], error), _gzip))
    assert error is caught.value
    with pytest.raises(EOFError):
        gzip.decompress(b"".join(got))


class _BadWriter:
    """A writer that cannot be closed after a failure, as many cannot."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, data: bytes, /) -> object:
        return self.file.write(data)

    def close(self) -> None:
        raise OSError("cannot close")


def test_through_writer_keeps_the_error_of_the_source() -> None:
    """A writer whose close fails as well does not hide what the source raised, nor break close()."""
    error = IntegrityError("half")
    with pytest.raises(IntegrityError) as caught:
        b"".join(through_writer(failing([b"x"], error), _BadWriter))
    assert error is caught.value
    stream = through_writer([b"x", b"y"], _BadWriter)
    next(stream)
    stream.close()


def test_through_writer_raises_the_error_of_the_last_close() -> None:
    """With a whole source, a close that fails is a failure: the trailer is missing."""
    with pytest.raises(OSError, match="cannot close"):
        b"".join(through_writer([b"x"], _BadWriter))


# --- through_thread --------------------------------------------------------------------------------------------------


def copy(reader: IO[bytes], writer: IO[bytes]) -> None:
    while data := reader.read(8192):
        writer.write(data)


@settings(deadline=None, max_examples=60)
@given(pieces, st.integers(1, 50), st.integers(1, 20))
def test_through_thread_is_the_identity(chunks: list[bytes], bound: int, size: int) -> None:
    """A worker that copies changes nothing, whatever the bound and the sizes of its reads."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        while data := reader.read(size):
            writer.write(data)

    assert b"".join(chunks) == b"".join(through_thread(chunks, work, bound=bound))


def test_through_thread_with_an_output_much_larger_than_its_input() -> None:
    """64 MiB out of one byte pass through bounded queues."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        while reader.read(1):
            for _ in range(64):
                writer.write(bytes(CHUNK))

    assert 64 * CHUNK == drain(through_thread([b"x"], work))


def test_through_thread_with_an_output_much_smaller_than_its_input() -> None:
    """64 MiB in, a digest out."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        digest = hashlib.sha256()
        while data := reader.read(CHUNK):
            digest.update(data)
        writer.write(digest.digest())

    expected = hashlib.sha256(bytes(64 * CHUNK)).digest()
    assert expected == b"".join(through_thread((bytes(CHUNK) for _ in range(64)), work))


def test_through_thread_pulls_in_the_consuming_thread() -> None:
    """Only the thread that consumes runs the source: it alone may close it."""
    seen = set()

    def source() -> Stream:
        for _ in range(5):
            seen.add(threading.current_thread())
            yield b"x" * 100

    drain(through_thread(source(), copy, bound=50))
    assert {threading.current_thread()} == seen


def test_through_thread_bounds_what_it_pulls() -> None:
    """A worker that does not read is given no more than the bound and one chunk."""
    pulled = 0
    release = threading.Event()

    def source() -> Stream:
        nonlocal pulled
        for _ in range(100):
            pulled += 1
            yield bytes(10)

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        writer.write(bytes(CHUNK))
        release.wait(WAIT)
        copy(reader, writer)

    stream = through_thread(source(), work, bound=50)
    assert CHUNK == len(next(stream))
    assert pulled <= 2
    release.set()
    assert 1000 == drain(stream)


def test_through_thread_raises_the_error_of_the_source() -> None:
    """Whatever the library makes of a failed read, the source's own exception comes out."""
    error = IntegrityError("damaged")

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        try:
            copy(reader, writer)
        except Exception:
            raise RuntimeError("library: read failed") from None

    with pytest.raises(IntegrityError) as caught:
        b"".join(through_thread(failing([b"a", b"b"], error), work))
    assert error is caught.value


def test_through_thread_does_not_end_when_a_library_takes_a_failed_read_for_the_end() -> None:
    """A library that swallows the error and finishes its file is not believed."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        try:
            copy(reader, writer)
        except Exception:
            writer.write(b"valid trailer")

    with pytest.raises(IntegrityError):
        b"".join(through_thread(failing([b"a"], IntegrityError("damaged")), work))


def test_through_thread_raises_the_error_of_the_worker_after_its_output() -> None:
    """What the worker wrote comes first, then its error."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        writer.write(bytes(CHUNK))
        raise ValueError("bad header")

    got: list[bytes] = []
    with pytest.raises(ValueError, match="bad header"):
        got.extend(through_thread(iter([b"a"] * 10), work))
    assert [CHUNK] == [len(chunk) for chunk in got]


def test_through_thread_hears_of_a_failed_worker_while_the_source_blocks() -> None:
    """A worker that fails while the pump is inside the source is heard with the source's next chunk, not at its end."""
    failed = threading.Event()
    pulled = []

    def source() -> Stream:
        yield b"a"
        failed.wait(WAIT)
        for n in range(100):
            pulled.append(n)
            yield b"b"
            time.sleep(0.001)

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        reader.read(1)
        try:
            raise ValueError("early")
        finally:
            failed.set()

    with pytest.raises(ValueError, match="early"):
        b"".join(through_thread(source(), work))
    assert len(pulled) < 100


@pytest.mark.parametrize("chunks", [[b"0123456789"], [b"0123", b"456789"], [b"01", b"", b"2", b"3456789"]])
@pytest.mark.parametrize("read", [0, 1, 4, 9])
def test_through_thread_refuses_data_after_the_end(chunks: list[bytes], read: int) -> None:
    """A worker that returns before it has read everything has failed, even if the rest lies in the chunk it was given."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        left = read
        while left:
            left -= len(reader.read(left))

    with pytest.raises(StageError, match="after the end"):
        b"".join(through_thread(chunks, work))


def test_through_thread_need_not_see_the_end() -> None:
    """A worker that knows its length and read every byte has read everything; the source is still run to its end."""
    ended = []

    def source() -> Stream:
        yield b"0123"
        yield b""
        ended.append(True)

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        writer.write(reader.read(4))

    assert b"0123" == b"".join(through_thread(source(), work))
    assert [True] == ended


def test_through_thread_reports_a_source_that_fails_after_the_workers_last_read() -> None:
    """No error means whole: a source that fails at its very end fails the stream, although the worker had all it wanted."""
    with pytest.raises(IntegrityError):
        b"".join(through_thread(failing([b"0123"], IntegrityError("digest")), lambda r, w: w.write(r.read(4))))


@pytest.mark.parametrize("state", ["unstarted", "reading", "writing", "ended", "failed"])
def test_through_thread_may_be_closed_in_any_state(state: str) -> None:
    """close() ends the worker wherever it is: before its start, waiting for input, for room, or after the end."""
    stopped = threading.Event()
    entered = threading.Event()

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        entered.set()
        try:
            if state == "failed":
                raise ValueError("no key")
            writer.write(bytes(CHUNK))
            if state == "writing":
                while True:
                    writer.write(bytes(CHUNK))
            copy(reader, writer)
        finally:
            stopped.set()

    stream = through_thread(iter([b"abc"] * 3), work, bound=2)
    if state == "unstarted":
        stream.close()
        assert not entered.is_set()
        return
    if state == "failed":
        with pytest.raises(ValueError, match="no key"):
            b"".join(stream)
    else:
        next(stream)
    if state == "ended":
        drain(stream)
    stream.close()
    assert stopped.is_set()


def test_through_thread_carries_the_context() -> None:
    """The worker sees the caller's context variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("here")
    assert b"here" == b"".join(through_thread([], lambda r, w: w.write(variable.get().encode())))


def test_pyrage_reads_and_writes_through_a_thread() -> None:
    """The library it was made for: round trip, a cut, a flipped byte, trailing data, and the source's own error."""
    pyrage = pytest.importorskip("pyrage")
    key = pyrage.x25519.Identity.generate()
    data = os.urandom(300_000)

    def encrypt(reader: IO[bytes], writer: IO[bytes]) -> None:
        pyrage.encrypt_io(reader, writer, [key.to_public()])

    def decrypt(reader: IO[bytes], writer: IO[bytes]) -> None:
        pyrage.decrypt_io(reader, writer, [key])

    secret = b"".join(through_thread([data[:1000], b"", data[1000:]], encrypt))
    assert data == b"".join(through_thread(resize([secret], 7000), decrypt))
    for bad in (secret[:-1], secret[:-70_000], secret[:150_000] + b"!" + secret[150_001:], secret + b"x"):
        with pytest.raises(Exception, match=r".") as caught:
            b"".join(through_thread(resize([bad], 7000), decrypt))
        assert not isinstance(caught.value, AssertionError)
    error = IntegrityError("block 3 is damaged")
    for work, head in ((encrypt, data), (decrypt, secret[:100_000])):
        with pytest.raises(IntegrityError) as own:
            b"".join(through_thread(failing([head], error), work))
        assert error is own.value


# --- prefetch --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(pieces, st.integers(1, 60))
def test_prefetch_is_the_identity(chunks: list[bytes], bound: int) -> None:
    """prefetch changes nothing but the thread that pulls."""
    assert b"".join(chunks) == b"".join(prefetch(chunks, bound))


def test_prefetch_raises_the_error_of_the_source() -> None:
    """The source's own exception comes out, after what came before it."""
    error = IntegrityError("cut")
    got: list[bytes] = []
    with pytest.raises(IntegrityError) as caught:
        got.extend(prefetch(failing([bytes(CHUNK)] * 3, error)))
    assert error is caught.value
    assert 3 * CHUNK == sum(len(chunk) for chunk in got)


def test_prefetch_closes_its_source_where_it_pulls() -> None:
    """The thread that pulled the generator closes it when the consumer stops."""
    threads = []

    def source() -> Stream:
        threads.append(threading.current_thread())
        try:
            while True:
                yield bytes(CHUNK)
        finally:
            threads.append(threading.current_thread())

    stream = prefetch(source())
    next(stream)
    stream.close()
    assert threads[0] is threads[1]
    assert threading.current_thread() is not threads[0]


def test_prefetch_stops_after_the_pull_under_way() -> None:
    """A consumer that stops waits for one pull of a source of small chunks, not for a whole MiB of them."""
    pulls = 0
    first, go, closing = threading.Event(), threading.Event(), threading.Event()

    def source() -> Stream:
        nonlocal pulls
        yield bytes(CHUNK)
        first.set()
        go.wait(WAIT)
        while True:
            pulls += 1
            if pulls > 1:
                closing.wait(0.01)
            yield b"x"

    stream = prefetch(source())
    next(stream)
    first.wait(WAIT)
    timer = threading.Timer(0.2, go.set)
    timer.start()
    stream.close()
    timer.join()
    assert pulls <= 2
