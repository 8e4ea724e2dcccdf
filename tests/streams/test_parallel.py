"""Work in flight: in order, within its limit, and ended before its error is raised."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap.errors import StoreError, UpstreamError
from pgsnap.streams import in_flight

WAIT = 20.0
"""Seconds after which a test that should have gone on gives up."""


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
        got.extend(in_flight(work, range(100), 3))
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
