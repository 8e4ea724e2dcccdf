"""One source for many consumers: one that fails, stalls or walks away is dropped, and the others get everything."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap.errors import StageError, StoreError, UpstreamError
from pgsnap.streams import Chunks, Outcome, Stalled, Stream, drain, fan_out
from pgsnap.testing import failing

T = TypeVar("T")

WAIT = 20.0
"""Seconds after which a test that should have gone on gives up."""

pieces = st.lists(st.binary(max_size=40), max_size=20)


def together(*consumers: Callable[[Stream], T]) -> list[Callable[[Stream], T]]:
    return list(consumers)


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
    assert [Outcome(data)] * count == fan_out(chunks, [b"".join] * count, buffer=buffer)


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
    early, whole = fan_out([b"a", b"b"], [lambda s: next(s), b"".join])
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
        fan_out(failing([b"a"] * 5, error), [consumer, consumer])
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
        fan_out(failing([b"a"], KeyError("x")), [swallow])


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
        fan_out(failing([b"a"], error()), [consumer, consumer])
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
        source = failing(chunks[:source_fails_at], ZeroDivisionError())

    def consumer(limit: int | None) -> Callable[[Stream], bytes]:
        def consume(stream: Stream) -> bytes:
            got = b""
            for chunk in stream:
                got += chunk
                if limit is not None and len(got) >= limit:
                    raise StoreError("full")
            return got

        return consume

    fails = [limit is not None and limit <= len(data) for limit in fail_at]
    try:
        outcomes = fan_out(source, [consumer(limit) for limit in fail_at], buffer=buffer)
    except ZeroDivisionError:
        assert source is not chunks
        return
    if source is not chunks:
        assert all(fails)
    for outcome, failed in zip(outcomes, fails, strict=True):
        if failed:
            assert isinstance(outcome.error, StoreError)
        else:
            assert Outcome(data) == outcome
