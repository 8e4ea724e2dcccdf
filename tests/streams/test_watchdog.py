"""Work that may never come back: its items in order, its patience, and that what hangs is left behind."""

from __future__ import annotations

import contextvars
import gc
import threading
import time
from collections.abc import Iterator

import pytest

from pgsnap.streams import CHUNK, Stalled, Stream, Watchdog, drain, watchdog

LONG = 60.0
"""Seconds that no test comes near, unless something waits for ever."""


def test_items_come_in_order_and_the_error_after_them() -> None:
    """Nothing is lost before a failure, and the failure is the source's own."""

    def source() -> Iterator[int]:
        yield from range(1000)
        raise KeyError("boom")

    seen: list[int] = []
    with pytest.raises(KeyError, match="boom"):
        seen.extend(Watchdog().items(source, LONG, bound=7))
    assert list(range(1000)) == seen


def test_a_slow_consumer_is_no_stall() -> None:
    """Only while the consumer waits does time count."""
    items = Watchdog().items(lambda: iter(range(10)), 0.2, bound=1)
    seen = []
    for item in items:
        time.sleep(0.3 if item == 3 else 0)
        seen.append(item)
    assert list(range(10)) == seen


def test_slow_progress_is_progress() -> None:
    """A source that takes longer than the limit in all, and gives something in time each time."""

    def source() -> Iterator[int]:
        for number in range(6):
            time.sleep(0.2)
            yield number

    assert list(range(6)) == list(Watchdog().items(source, 1.0, bound=100))


def test_what_is_pulled_ahead_is_bounded() -> None:
    """The source waits for its consumer when so much is queued."""
    pulled = []

    def source() -> Iterator[int]:
        for number in range(100):
            pulled.append(number)
            yield number

    items = Watchdog().items(source, LONG, bound=3)
    assert 0 == next(items)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert len(pulled) <= 3 + 3 + 1  # what the consumer took, what is queued, and the one that waits
        time.sleep(0.01)
    items.close()


def test_a_consumer_that_stops_closes_the_source_where_it_is_pulled() -> None:
    """A generator can only be closed by the thread that runs it; it is, before the consumer goes on."""
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    items = Watchdog().items(source, LONG)
    assert 0 == next(items)
    items.close()
    assert ["watchdog"] == closed
    del items
    gc.collect()
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


@pytest.mark.parametrize("way", ["read", "write"])
def test_what_nobody_wants_any_more_is_not_blocked(gate: threading.Event, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A reader that was closed early waits for its requests, a writer whose source failed aborts an upload: others go on."""
    monkeypatch.setattr(watchdog, "GRACE", 0.01)
    mine, ending = Watchdog(), threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            ending.set()
            gate.wait()

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise KeyError("boom")

    def consumer(stream: Stream) -> int:
        try:
            return drain(stream)
        finally:
            ending.set()
            gate.wait()

    if way == "read":
        items = mine.items(source, LONG)
        assert 0 == next(items)
        items.close()
    else:
        with pytest.raises(KeyError, match="boom"):
            mine.feed(broken(), consumer, buffer=CHUNK, stall=LONG, finish=LONG)
    assert ending.wait(LONG)
    assert "answer" == mine.call(lambda: "answer", LONG)


def test_what_nobody_wants_any_more_and_does_not_end_is_blocked(gate: threading.Event) -> None:
    """Once it had its time: a close that hangs is a store that hangs."""
    watched = Watchdog()

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            gate.wait()

    items = watched.items(source, 0.05)
    assert 0 == next(items)
    items.close()
    time.sleep(0.06)
    with pytest.raises(Stalled, match="an earlier call"):
        watched.check()


def test_a_call_returns_raises_and_sees_the_context() -> None:
    """It is the same as a call here, but for the thread."""
    name = contextvars.ContextVar("name", default="")
    name.set("mine")
    assert "mine" == Watchdog().call(name.get, LONG)
    with pytest.raises(ZeroDivisionError):
        Watchdog().call(lambda: 1 / 0, LONG)


@pytest.mark.parametrize("kind", ["takes nothing", "does not finish"])
def test_a_consumer_that_hangs_is_left(gate: threading.Event, kind: str) -> None:
    """In the middle of a stream, or after its end."""
    watched = Watchdog()

    def consumer(stream: Stream) -> int:
        size = 0 if kind == "takes nothing" else drain(stream)
        gate.wait()
        return size

    chunks = [bytes(CHUNK)] * 8 if kind == "takes nothing" else [b"x"]
    with pytest.raises(Stalled, match=r"took nothing for|did not finish within"):
        watched.feed(chunks, consumer, buffer=2 * CHUNK, stall=0.2, finish=0.2)
    with pytest.raises(Stalled, match="an earlier call"):
        watched.check()


def test_a_source_that_fails_is_not_the_consumers_fault() -> None:
    """Its own error comes out, as from a write without watchdog."""

    def source() -> Iterator[bytes]:
        yield b"x"
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        Watchdog().feed(source(), drain, buffer=CHUNK, stall=LONG, finish=LONG)
