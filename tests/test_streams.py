"""Streams: each tool against a naive model, each bridge when every party of it fails, stalls or walks away."""

from __future__ import annotations

import contextvars
import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap.errors import IntegrityError, StageError, StoreError, UpstreamError
from pgsnap.streams import (
    CHUNK,
    ChunkReader,
    Chunks,
    Outcome,
    Stalled,
    Stream,
    Tap,
    drain,
    fan_out,
    in_flight,
    prefetch,
    read_chunks,
    resize,
    take,
    through_thread,
    through_writer,
)

T = TypeVar("T")

WAIT = 20.0
"""Seconds after which a test that should have gone on gives up."""

pieces = st.lists(st.binary(max_size=40), max_size=20)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + WAIT
    while left := [t for t in threading.enumerate() if t not in before]:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        left[0].join(0.1)


def collect(stream: Stream) -> bytes:
    return b"".join(stream)


def into(got: list[T], stream: Iterable[T]) -> None:
    """Keep what came before an error."""
    for item in stream:
        got.append(item)


def together(*consumers: Callable[[Stream], T]) -> list[Callable[[Stream], T]]:
    return list(consumers)


def cut(chunks: list[bytes], error: BaseException) -> Stream:
    """Yield the chunks, then fail."""
    yield from chunks
    raise error


# --- small tools -----------------------------------------------------------------------------------------------------


@given(pieces)
def test_drain_counts_bytes(chunks: list[bytes]) -> None:
    """drain gives the number of bytes, however they are cut."""
    assert len(b"".join(chunks)) == drain(chunks)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_read_chunks_is_the_file(data: bytes, size: int) -> None:
    """read_chunks gives the file's bytes and leaves the file open."""
    file = io.BytesIO(data)
    assert data == collect(read_chunks(file, size))
    assert not file.closed


@given(pieces, st.integers(1, 60))
def test_resize_cuts_evenly(chunks: list[bytes], size: int) -> None:
    """Every chunk of resize has the size, only the last one may be shorter, and none is empty or of another type."""
    data = b"".join(chunks)
    assert [data[at : at + size] for at in range(0, len(data), size)] == list(resize(chunks, size))
    assert all(type(chunk) is bytes for chunk in resize(chunks, size))


def test_resize_holds_no_small_objects() -> None:
    """Eight MiB that come in pieces of two bytes cost memory as bytes, not as four million objects."""
    program = """
        import resource
        from pgsnap.streams import resize
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in resize((bytes((n & 255, 7)) for n in range(2 << 20)), 4 << 20):
            pass
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    grown = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True)
    assert int(grown.stdout) < 24  # MiB


@given(pieces, st.lists(st.integers(0, 70), max_size=8))
def test_take_cuts_one_stream_into_objects(chunks: list[bytes], limits: list[int]) -> None:
    """Successive takes give consecutive slices; ``rest`` is empty after one if and only if the source has ended in it."""
    data = b"".join(chunks)
    source, rest, at = iter(chunks), list[bytes](), 0
    for limit in limits:
        got = collect(take(source, limit, rest))
        assert data[at : at + limit] == got
        at += len(got)
        assert (at == len(data)) == (not rest)
        if not rest:
            break
    assert data[at:] == collect(take(source, None, rest))
    assert [] == rest


def test_take_raises_what_comes_after_the_last_byte() -> None:
    """An error right after the limit belongs to this take: its object must not be stored as whole."""
    with pytest.raises(IntegrityError):
        collect(take(cut([b"12345"], IntegrityError("bad")), 5, []))


@given(pieces, st.integers(1, 30))
def test_tap_agrees_with_hashlib(chunks: list[bytes], block: int) -> None:
    """A tap passes bytes unchanged and gives the digest of the whole, and of all bytes up to the end of each block."""
    data = b"".join(chunks)
    tap = Tap(block)
    assert data == collect(tap.through(chunks))
    assert len(data) == tap.size
    assert hashlib.sha256(data).hexdigest() == tap.sha256
    expected = tuple(hashlib.sha256(data[: at + block]).hexdigest() for at in range(0, len(data), block))
    assert expected == tap.blocks


def test_tap_without_blocks() -> None:
    """With block=None there are no block digests, and the rest is the same."""
    tap = Tap()
    assert b"abc" == collect(tap.through([b"a", b"bc"]))
    assert (3, (), hashlib.sha256(b"abc").hexdigest()) == (tap.size, tap.blocks, tap.sha256)


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
    reader = ChunkReader(cut([b"ab"], error))
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
    assert b"".join(chunks) == gzip.decompress(collect(through_writer(chunks, _gzip)))


def test_through_writer_gives_no_trailer_for_half_a_stream() -> None:
    """If the source fails, what came out cannot be decompressed, and the error is the source's own."""
    error = IntegrityError("half")
    got: list[bytes] = []
    with pytest.raises(IntegrityError) as caught:
        into(got, through_writer(cut([b"x" * 1000], error), _gzip))
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
        collect(through_writer(cut([b"x"], error), _BadWriter))
    assert error is caught.value
    stream = through_writer([b"x", b"y"], _BadWriter)
    next(stream)
    stream.close()


def test_through_writer_raises_the_error_of_the_last_close() -> None:
    """With a whole source, a close that fails is a failure: the trailer is missing."""
    with pytest.raises(OSError, match="cannot close"):
        collect(through_writer([b"x"], _BadWriter))


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

    assert b"".join(chunks) == collect(through_thread(chunks, work, bound=bound))


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
    assert expected == collect(through_thread((bytes(CHUNK) for _ in range(64)), work))


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
        collect(through_thread(cut([b"a", b"b"], error), work))
    assert error is caught.value


def test_through_thread_does_not_end_when_a_library_takes_a_failed_read_for_the_end() -> None:
    """A library that swallows the error and finishes its file is not believed."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        try:
            copy(reader, writer)
        except Exception:
            writer.write(b"valid trailer")

    with pytest.raises(IntegrityError):
        collect(through_thread(cut([b"a"], IntegrityError("damaged")), work))


def test_through_thread_raises_the_error_of_the_worker_after_its_output() -> None:
    """What the worker wrote comes first, then its error."""

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        writer.write(bytes(CHUNK))
        raise ValueError("bad header")

    got: list[bytes] = []
    with pytest.raises(ValueError, match="bad header"):
        into(got, through_thread(iter([b"a"] * 10), work))
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
        collect(through_thread(source(), work))
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
        collect(through_thread(chunks, work))


def test_through_thread_need_not_see_the_end() -> None:
    """A worker that knows its length and read every byte has read everything; the source is still run to its end."""
    ended = []

    def source() -> Stream:
        yield b"0123"
        yield b""
        ended.append(True)

    def work(reader: IO[bytes], writer: IO[bytes]) -> None:
        writer.write(reader.read(4))

    assert b"0123" == collect(through_thread(source(), work))
    assert [True] == ended


def test_through_thread_reports_a_source_that_fails_after_the_workers_last_read() -> None:
    """No error means whole: a source that fails at its very end fails the stream, although the worker had all it wanted."""
    with pytest.raises(IntegrityError):
        collect(through_thread(cut([b"0123"], IntegrityError("digest")), lambda r, w: w.write(r.read(4))))


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
            collect(stream)
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
    assert b"here" == collect(through_thread([], lambda r, w: w.write(variable.get().encode())))


def test_pyrage_reads_and_writes_through_a_thread() -> None:
    """The library it was made for: round trip, a cut, a flipped byte, trailing data, and the source's own error."""
    pyrage = pytest.importorskip("pyrage")
    key = pyrage.x25519.Identity.generate()
    data = os.urandom(300_000)

    def encrypt(reader: IO[bytes], writer: IO[bytes]) -> None:
        pyrage.encrypt_io(reader, writer, [key.to_public()])

    def decrypt(reader: IO[bytes], writer: IO[bytes]) -> None:
        pyrage.decrypt_io(reader, writer, [key])

    secret = collect(through_thread([data[:1000], b"", data[1000:]], encrypt))
    assert data == collect(through_thread(resize([secret], 7000), decrypt))
    for bad in (secret[:-1], secret[:-70_000], secret[:150_000] + b"!" + secret[150_001:], secret + b"x"):
        with pytest.raises(Exception, match=r".") as caught:
            collect(through_thread(resize([bad], 7000), decrypt))
        assert not isinstance(caught.value, AssertionError)
    error = IntegrityError("block 3 is damaged")
    for work, head in ((encrypt, data), (decrypt, secret[:100_000])):
        with pytest.raises(IntegrityError) as own:
            collect(through_thread(cut([head], error), work))
        assert error is own.value


# --- prefetch --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(pieces, st.integers(1, 60))
def test_prefetch_is_the_identity(chunks: list[bytes], bound: int) -> None:
    """prefetch changes nothing but the thread that pulls."""
    assert b"".join(chunks) == collect(prefetch(chunks, bound))


def test_prefetch_raises_the_error_of_the_source() -> None:
    """The source's own exception comes out, after what came before it."""
    error = IntegrityError("cut")
    got: list[bytes] = []
    with pytest.raises(IntegrityError) as caught:
        into(got, prefetch(cut([bytes(CHUNK)] * 3, error)))
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


# --- in_flight -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_in_flight_is_map(items: list[int], limit: int) -> None:
    """Results come in the order of the items."""
    assert [n + 1 for n in items] == list(in_flight(lambda n: n + 1, items, limit))


def test_in_flight_keeps_its_limit() -> None:
    """No more than the limit run, and no more than the limit are pulled, at once."""
    lock = threading.Lock()
    running = most = pulled = ended = ahead = 0

    def items() -> Iterator[int]:
        nonlocal pulled, ahead
        for n in range(30):
            pulled += 1
            ahead = max(ahead, pulled - ended)
            yield n

    def work(n: int) -> int:
        nonlocal running, most, ended
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
            ended += 1
        return n

    assert list(range(30)) == list(in_flight(work, items(), 3))
    assert most == 3
    assert ahead <= 4


def test_in_flight_raises_the_first_failure_in_its_place() -> None:
    """The results before it come out, the others under way have ended, and nothing more was started."""
    started, ended = [], []
    hold = threading.Event()

    def work(n: int) -> int:
        started.append(n)
        if n == 1:
            hold.set()
            raise StoreError(f"part {n}")
        hold.wait(WAIT)
        ended.append(n)
        return n

    got: list[int] = []
    with pytest.raises(StoreError, match="part 1"):
        into(got, in_flight(work, range(100), 3))
    assert [0] == got
    assert sorted(started) == sorted([*ended, 1])
    assert max(started) <= 3


def test_in_flight_starts_nothing_after_a_failure_that_is_not_yet_its_turn() -> None:
    """While the first is slow and the second has failed, a third is not begun when the first ends."""
    failed = threading.Event()
    started = []

    def work(n: int) -> int:
        started.append(n)
        if n == 1:
            try:
                raise StoreError("second")
            finally:
                failed.set()
        failed.wait(WAIT)
        time.sleep(0.05)
        return n

    with pytest.raises(StoreError, match="second"):
        list(in_flight(work, range(50), 2))
    assert [0, 1] == sorted(started)


def test_in_flight_waits_when_it_is_closed() -> None:
    """A consumer that stops gets control back when the work under way has ended."""
    ended = []
    release = threading.Event()

    def work(n: int) -> int:
        if n:
            release.wait(WAIT)
        ended.append(n)
        return n

    stream = in_flight(work, range(100), 3)
    assert 0 == next(stream)
    release.set()
    stream.close()
    assert len(ended) <= 4
    assert {0, 1, 2} <= set(ended)


def test_in_flight_raises_the_error_of_the_items() -> None:
    """A source that fails is raised, after what is under way has ended."""
    ended: list[int] = []

    def items() -> Iterator[int]:
        yield 1
        raise UpstreamError("source")

    with pytest.raises(UpstreamError):
        list(in_flight(ended.append, items(), 4))
    assert [1] == ended


def test_a_blocked_part_does_not_hold_the_process() -> None:
    """An abandoned consumer whose part never returns cannot keep the interpreter from ending."""
    program = """
        import threading
        from pgsnap.streams import fan_out, in_flight

        def hang(chunk):
            threading.Event().wait()

        outcomes = fan_out([b"x"], [lambda s: list(in_flight(hang, s, 2))], finish=0.1, grace=0.1)
        assert outcomes[0].abandoned, outcomes
        print("reported")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, timeout=WAIT)
    assert b"reported\n" == done.stdout


# --- fan_out ---------------------------------------------------------------------------------------------------------


def failing_after(size: int, error: BaseException) -> Callable[[Stream], int]:
    def consumer(stream: Stream) -> int:
        got = 0
        for chunk in stream:
            got += len(chunk)
            if got >= size:
                raise error
        return got

    return consumer


class Blocked:
    """A consumer that takes ``takes`` chunks and then blocks until it is released."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.release = threading.Event()

    def __call__(self, stream: Stream) -> int:
        got = 0
        for n, chunk in enumerate(stream, 1):
            got += len(chunk)
            if n == self.takes:
                self.release.wait(WAIT)
        if not self.takes:
            self.release.wait(WAIT)
        return got


@pytest.fixture
def blocked() -> Iterator[Callable[[int], Blocked]]:
    made: list[Blocked] = []

    def make(takes: int) -> Blocked:
        made.append(Blocked(takes))
        return made[-1]

    yield make
    for one in made:
        one.release.set()


@settings(deadline=None, max_examples=60)
@given(pieces, st.integers(0, 4), st.integers(1, 100))
def test_fan_out_gives_everyone_everything(chunks: list[bytes], count: int, buffer: int) -> None:
    """Every consumer gets the same bytes, whatever the buffer."""
    data = b"".join(chunks)
    assert [Outcome(data)] * count == fan_out(chunks, [collect] * count, buffer=buffer)


def test_fan_out_bounds_its_memory(blocked: Callable[[int], Blocked]) -> None:
    """Pulling waits for the slowest: no more is pulled than what it took, its buffer, and the chunk in hand."""
    slow = blocked(1)
    pulled = 0
    seen: list[int] = []

    def source() -> Stream:
        nonlocal pulled
        for _ in range(100):
            pulled += 1
            yield bytes(1000)

    def release() -> None:
        seen.append(pulled)
        slow.release.set()

    timer = threading.Timer(0.3, release)
    timer.start()
    outcomes = fan_out(source(), together(slow, drain), buffer=4000)
    timer.join()
    assert [Outcome(100_000)] * 2 == outcomes
    assert [1 + 3 + 1] == seen


def test_fan_out_takes_a_chunk_larger_than_its_buffer() -> None:
    """One chunk is always taken, however large."""
    assert 5000 == fan_out([bytes(5000)], [drain], buffer=10)[0].value


def test_fan_out_bounds_tiny_chunks(blocked: Callable[[int], Blocked]) -> None:
    """A million tiny chunks are not held because their bytes are few: each costs what an object costs."""
    slow = blocked(1)
    pulled = 0

    def source() -> Stream:
        nonlocal pulled
        for _ in range(200_000):
            pulled += 1
            yield b"xy"

    outcome = fan_out(source(), [slow], buffer=64_000, stall=0.2, grace=0)[0]
    assert isinstance(outcome.error, Stalled)
    assert pulled < 2000


def test_fan_out_drops_one_that_fails_and_feeds_the_others() -> None:
    """The error of a consumer is its own; the others get everything."""
    error = StoreError("no space left")
    bad, good = fan_out((bytes(100) for _ in range(1000)), [failing_after(300, error), drain], buffer=500)
    assert error is bad.error
    assert bad.value is None
    assert not bad.abandoned
    assert Outcome(100_000) == good


def test_fan_out_stops_pulling_when_all_are_dropped() -> None:
    """Nobody left: the source is not pulled to its end, and every error is there."""
    pulled = 0

    def source() -> Stream:
        nonlocal pulled
        while True:
            pulled += 1
            yield bytes(100)

    outcomes = fan_out(source(), [failing_after(300, StoreError("a")), failing_after(500, StoreError("b"))], buffer=500)
    assert ["a", "b"] == [str(o.error) for o in outcomes]
    assert pulled < 1000


def test_fan_out_calls_one_that_returns_early_failed() -> None:
    """A consumer that returns before the end has not stored the whole."""
    early, whole = fan_out([b"a", b"b"], [lambda s: next(s), collect])
    assert isinstance(early.error, StageError)
    assert early.value is None
    assert Outcome(b"ab") == whole


def test_fan_out_calls_one_that_never_looked_for_the_end_failed() -> None:
    """Having all bytes is not enough: only the end says that they are whole."""

    def two(stream: Stream) -> bytes:
        return next(stream) + next(stream)

    assert isinstance(fan_out([b"a", b"b"], [two])[0].error, StageError)


def test_fan_out_drops_a_stalled_one(blocked: Callable[[int], Blocked]) -> None:
    """A consumer that leaves its full buffer untouched is dropped and abandoned; the other gets everything."""
    began = time.monotonic()
    stuck, good = fan_out((bytes(100) for _ in range(1000)), together(blocked(1), drain), buffer=500, stall=0.3, grace=0.3)
    assert isinstance(stuck.error, Stalled)
    assert stuck.abandoned
    assert Outcome(100_000) == good
    assert time.monotonic() - began < 5


def test_fan_out_measures_stalls_at_the_same_time(blocked: Callable[[int], Blocked]) -> None:
    """Five that stall together are dropped together, not one after the other."""
    began = time.monotonic()
    outcomes = fan_out((bytes(100) for _ in range(100)), [blocked(1) for _ in range(5)], buffer=300, stall=0.5, grace=0)
    assert [Stalled] * 5 == [type(o.error) for o in outcomes]
    assert time.monotonic() - began < 1.5


def test_fan_out_feeds_the_others_while_one_stalls(blocked: Callable[[int], Blocked]) -> None:
    """The chunk in hand goes to everyone who has room at once; who waits behind a stalled one is not stalled itself."""
    got = threading.Event()

    def patient(stream: Stream) -> int:
        size = 0
        for chunk in stream:
            size += len(chunk)
            if size == 500:  # one taken and three buffered by the stuck one, one in the pump's hand
                got.set()
        return size

    stuck = blocked(1)
    seen: list[bool] = []

    def check() -> None:
        if got.is_set() and not stuck.release.is_set():
            seen.append(True)
            stuck.release.set()

    outcomes = fan_out((bytes(100) for _ in range(50)), together(stuck, patient, drain), buffer=500, stall=WAIT, check=check)
    assert [Outcome(5000)] * 3 == outcomes
    assert [True] == seen


def test_a_slow_consumer_behind_a_stalled_one_is_not_dropped(blocked: Callable[[int], Blocked]) -> None:
    """The time that the pump spent with a stalled one does not count against one that is slow but moves."""

    def slow(stream: Stream) -> int:
        size = 0
        for chunk in stream:
            size += len(chunk)
            time.sleep(0.15)
        return size

    stuck, moving = fan_out((bytes(100) for _ in range(10)), together(blocked(1), slow), buffer=200, stall=0.4, grace=0)
    assert isinstance(stuck.error, Stalled)
    assert Outcome(1000) == moving


def test_a_slow_source_is_no_stall() -> None:
    """Consumers that wait for the source are not blamed, however long it takes."""

    def source() -> Stream:
        for _ in range(3):
            time.sleep(0.25)
            yield bytes(1000)

    assert [Outcome(3000)] * 2 == fan_out(source(), [drain, drain], buffer=10, stall=0.05)


def test_a_source_slower_than_the_stall_blames_nobody_whose_buffer_is_full(
    blocked: Callable[[int], Blocked],
) -> None:
    """A buffer that was full while the source slept gets its whole time from when the next chunk is there."""
    one = blocked(1)

    def source() -> Stream:
        yield bytes(100)
        yield bytes(100)
        time.sleep(0.5)
        threading.Timer(0.15, one.release.set).start()
        yield bytes(100)

    assert [Outcome(300)] == fan_out(source(), [one], buffer=100, stall=0.4)


def test_fan_out_drops_who_does_not_finish(blocked: Callable[[int], Blocked]) -> None:
    """After the last byte a consumer has ``finish`` seconds, and its thread ``grace`` once."""
    began = time.monotonic()
    hung, good = fan_out([b"x"], together(blocked(1), drain), finish=0.3, grace=0.5)
    took = time.monotonic() - began
    assert isinstance(hung.error, Stalled)
    assert "did not finish" in str(hung.error)
    assert hung.abandoned
    assert Outcome(1) == good
    assert 0.8 <= took < 1.3


def test_fan_out_waits_for_the_grace_of_a_dropped_one_once(blocked: Callable[[int], Blocked]) -> None:
    """One that was dropped long before the end does not cost the run its grace twice."""
    began = time.monotonic()
    outcomes = fan_out((bytes(10) for _ in range(20)), together(blocked(1), drain), buffer=20, stall=0.1, grace=0.6)
    assert [True, False] == [o.abandoned for o in outcomes]
    assert time.monotonic() - began < 1.2


def test_one_that_ends_within_its_grace_is_joined() -> None:
    """A dropped consumer that cleans up within the grace is not abandoned; what it returns then does not count."""

    def late(stream: Stream) -> int:
        size = drain(stream)
        time.sleep(0.4)
        return size

    outcome = fan_out([b"x"], [late], finish=0.1, grace=WAIT)[0]
    assert isinstance(outcome.error, Stalled)
    assert (None, False) == (outcome.value, outcome.abandoned)


def test_fan_out_raises_the_error_of_the_source_once() -> None:
    """Each consumer gets an UpstreamError of its own, not an OSError; the original is raised."""
    error = OSError("connection reset")
    seen: list[BaseException] = []

    def consumer(stream: Stream) -> int:
        try:
            return drain(stream)
        except BaseException as caught:
            seen.append(caught)
            raise

    with pytest.raises(OSError, match="connection reset") as caught:
        fan_out(cut([b"a"] * 5, error), [consumer, consumer])
    assert error is caught.value
    assert [UpstreamError, UpstreamError] == [type(e) for e in seen]
    assert seen[0] is not seen[1]
    assert [error, error] == [e.__cause__ for e in seen]
    assert all(str(e) for e in seen)


def test_a_consumer_that_swallows_the_upstream_error_has_failed() -> None:
    """A store that takes a failure for the end is not believed, in no position."""

    def swallow(stream: Stream) -> str:
        try:
            drain(stream)
        except UpstreamError:
            return "whole" if next(stream, None) is None else ""
        return "whole"

    with pytest.raises(KeyError):
        fan_out(cut([b"a"], KeyError("x")), [swallow])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_fan_out_lets_an_interrupt_of_the_pump_through(error: type[BaseException]) -> None:
    """What is no Exception ends the consumers in the same way, and its text is never empty for them."""
    seen: list[str] = []

    def consumer(stream: Stream) -> int:
        try:
            return drain(stream)
        except UpstreamError as caught:
            seen.append(str(caught))
            raise

    with pytest.raises(error):
        fan_out(cut([b"a"], error()), [consumer, consumer])
    assert [error.__name__] * 2 == seen


def test_a_signal_ends_the_pump_while_it_waits(blocked: Callable[[int], Blocked]) -> None:
    """SIGINT while a buffer is full: raised once, in the main thread, and every consumer has ended."""
    stuck = blocked(1)

    def interrupt() -> None:
        stuck.release.wait(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        stuck.release.wait(0.2)
        stuck.release.set()

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        fan_out((bytes(100) for _ in range(100)), together(stuck, drain), buffer=200, stall=WAIT)
    sender.join()


@pytest.mark.parametrize("phase", ["between chunks", "full", "finishing"])
def test_fan_out_ends_when_check_raises(phase: str, blocked: Callable[[int], Blocked]) -> None:
    """An abort is noticed between chunks, while a buffer is full and while the consumers finish."""
    began = time.monotonic()
    seen: list[BaseException] = []
    stuck = blocked(1)

    def consumer(stream: Stream) -> int:
        try:
            return drain(stream)
        except UpstreamError as caught:
            seen.append(caught)
            raise

    def check() -> None:
        if time.monotonic() - began > 0.3:
            stuck.release.set()
            raise TimeoutError("aborted")

    def source() -> Stream:
        if phase == "finishing":
            yield b"a"
            return
        while True:
            yield bytes(100)
            if phase == "between chunks":
                time.sleep(0.01)

    consumers = together(consumer) if phase == "between chunks" else together(stuck, consumer)
    with pytest.raises(TimeoutError):
        fan_out(source(), consumers, buffer=200, check=check)
    assert time.monotonic() - began < 3
    if phase != "finishing":
        assert 1 == len(seen)


def test_check_is_called_without_the_lock() -> None:
    """A check that waits for a consumer cannot lock everything up."""
    asked, moved = threading.Event(), threading.Event()
    answers: list[bool] = []
    calls = 0

    def consumer(stream: Stream) -> int:
        asked.wait(WAIT)
        size = 0
        for chunk in stream:
            size += len(chunk)
            moved.set()
        return size

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # the second chunk is waiting for room
            asked.set()
            answers.append(moved.wait(2))

    assert [Outcome(2)] == fan_out([b"a", b"b"], [consumer], buffer=1, check=check)
    assert [True] == answers


def test_a_consumer_that_leaves_its_stream_running_in_a_thread_still_ends() -> None:
    """A consumer that fails while a thread of its own is inside the stream is done, not stalled."""
    inside = threading.Event()
    go = threading.Event()

    def consumer(stream: Stream) -> int:
        def reader() -> None:
            inside.set()
            with pytest.raises(UpstreamError, match="gave up"):
                drain(stream)

        threading.Thread(target=reader, daemon=True).start()
        inside.wait(WAIT)
        time.sleep(0.1)
        go.set()
        raise StoreError("gave up")

    def source() -> Stream:
        go.wait(WAIT)
        time.sleep(0.2)
        yield b"x"

    began = time.monotonic()
    outcome = fan_out(source(), [consumer], finish=5, grace=5)[0]
    assert "gave up" == str(outcome.error)
    assert time.monotonic() - began < 3


def test_fan_out_that_cannot_start_its_threads_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without threads left is an error at once; the consumers already started get it as their own."""
    start = threading.Thread.start
    started: list[threading.Thread] = []
    seen: list[UpstreamError] = []

    def limited(self: threading.Thread) -> None:
        if self.name.startswith("fan-out"):
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
            started.append(self)
        start(self)

    def consumer(stream: Stream) -> int:
        try:
            return drain(stream)
        except UpstreamError as caught:
            seen.append(caught)
            raise

    monkeypatch.setattr(threading.Thread, "start", limited)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="new thread"):
        fan_out([b"x"], [consumer] * 4, grace=5)
    assert 2 == len(seen)
    assert time.monotonic() - began < 3


def test_fan_out_does_not_close_its_source() -> None:
    """It pulls and nothing else: whoever made the source closes it."""
    closed = []

    def source() -> Stream:
        try:
            while True:
                yield b"x"
        finally:
            closed.append(True)

    stream = source()
    fan_out(stream, [failing_after(3, StoreError("x"))])
    assert [] == closed
    stream.close()
    assert [True] == closed


def test_fan_out_carries_the_context() -> None:
    """Each consumer runs in a copy of the caller's context."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(1)

    def consumer(stream: Stream) -> int:
        drain(stream)
        seen = variable.get()
        variable.set(seen + 1)
        return seen

    assert [1, 1] == [o.value for o in fan_out([b"x"], [consumer, consumer])]
    assert 1 == variable.get()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=30),
    st.lists(st.one_of(st.none(), st.integers(1, 400)), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(0, 30)),
    st.integers(1, 60),
)
def test_fan_out_against_a_model(
    chunks: list[bytes], fail_at: list[int | None], source_fails_at: int | None, buffer: int
) -> None:
    """Any mixture of failing consumers and a failing source: whoever did not fail has everything, or the source is raised."""
    data = b"".join(chunks)
    source: Chunks = chunks
    if source_fails_at is not None and source_fails_at < len(chunks):
        source = cut(chunks[:source_fails_at], ZeroDivisionError())

    def consumer(limit: int | None) -> Callable[[Stream], bytes]:
        def consume(stream: Stream) -> bytes:
            got = b""
            for chunk in stream:
                got += chunk
                if limit is not None and len(got) >= limit:
                    raise StoreError("full")
            return got

        return consume

    failing = [limit is not None and limit <= len(data) for limit in fail_at]
    try:
        outcomes = fan_out(source, [consumer(limit) for limit in fail_at], buffer=buffer)
    except ZeroDivisionError:
        assert source is not chunks
        return
    if source is not chunks:
        assert all(failing)
    for outcome, failed in zip(outcomes, failing, strict=True):
        if failed:
            assert isinstance(outcome.error, StoreError)
        else:
            assert Outcome(data) == outcome
