"""What stores over a network share: repeating, resuming, and waiting for as long as something moves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap.streams import drain
from pgsnap.streams import retry as remote
from pgsnap.streams.retry import RequestBody, RetryPolicy, TrackedChunks, read_ranges, wait_while_progressing
from pgsnap.testing import text


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "JITTER", 0.001)


def is_transient(error: BaseException) -> bool:
    return isinstance(error, OSError)


# --- RetryPolicy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [0, 1, 5])
def test_what_may_pass_is_repeated(failures: int) -> None:
    """Up to six times in all; ``repeated`` tells whether an answer may have got lost."""
    left = [ConnectionError("cut")] * failures

    def request() -> str:
        if left:
            raise left.pop()
        return "answer"

    policy = RetryPolicy(is_transient)
    assert "answer" == policy(request)
    assert (failures > 0) is policy.repeated


def test_the_last_failure_is_raised() -> None:
    """After as many attempts as were given, as it was."""
    errors = [ConnectionError(str(n)) for n in range(9)]
    sent: list[int] = []

    def request() -> None:
        sent.append(len(sent))
        raise errors[sent[-1]]

    with pytest.raises(ConnectionError) as caught:
        RetryPolicy(is_transient, 3)(request)
    assert (errors[2], 3) == (caught.value, len(sent))


def test_what_lasts_is_not_repeated() -> None:
    """A request that was refused is sent once."""
    sent: list[int] = []

    def request() -> None:
        sent.append(1)
        raise ValueError("no")

    policy = RetryPolicy(is_transient)
    with pytest.raises(ValueError, match="no"):
        policy(request)
    assert ([1], False) == (sent, policy.repeated)


def test_nobody_waits_for_what_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waits for its next attempt ends when it is cancelled by another thread."""
    monkeypatch.setattr(remote, "JITTER", 3600.0)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    policy, failed = RetryPolicy(is_transient), threading.Event()

    def request() -> None:
        failed.set()
        raise ConnectionError("cut")

    def cancel() -> None:
        failed.wait()
        policy.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="cut"):
        policy(request)
    thread.join()
    assert time.monotonic() - began < 10


def test_nobody_asks_for_what_nobody_wants() -> None:
    """After a cancellation no request is begun, and a range of which something comes is not asked for again and again."""
    policy = RetryPolicy(is_transient)
    sent: list[int] = []
    policy.cancel()
    with pytest.raises(CancelledError):
        policy(lambda: sent.append(1))
    assert [] == sent
    policy, into = RetryPolicy(is_transient), bytearray()

    def get() -> None:
        policy.cancel()
        into.extend(bytes(remote.STEP))
        raise ConnectionError("cut")

    with pytest.raises(CancelledError):
        remote.fetch_until_complete(get, lambda: len(into) >= 100 * remote.STEP, into, policy)
    assert remote.STEP == len(into)


# --- TrackedChunks ----------------------------------------------------------------------------------------------------------


def test_a_source_tells_its_own_error_apart() -> None:
    """What the chunks raised passes, and is known for what it is; they are not closed."""
    error = ConnectionError("the dump's own")
    closed: list[bool] = []

    def chunks() -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
            raise error
        finally:
            closed.append(True)

    source = TrackedChunks(chunks())
    with pytest.raises(ConnectionError):
        drain(source)
    assert source.error is error
    given_up = chunks()
    iterator = iter(TrackedChunks(given_up))
    assert b"one" == next(iterator)
    closed.clear()
    iterator.close()  # type: ignore[attr-defined]
    assert [] == closed
    assert b"two" == next(given_up)


# --- RequestBody and wait_while_progressing ------------------------------------------------------------------------------


@given(st.binary(max_size=400_000), st.integers(0, 400_000))
@settings(max_examples=30, deadline=None)
def test_a_body_is_read_to_be_signed_and_then_sent(data: bytes, size: int) -> None:
    """As a file it is what it is when it is iterated over, and it can be rewound."""

    async def sent(body: RequestBody) -> bytes:
        return b"".join([bytes(piece) async for piece in body])

    body = RequestBody(data)
    assert data == body.read(size) + body.read()
    assert len(data) == body.tell() == len(body)
    assert 0 == body.seek(0)
    assert data[:size] == body.read(size)
    assert data == asyncio.run(sent(body))


def test_what_gets_on_is_waited_for_and_what_does_not_is_given_up() -> None:
    """The limit counts from the last progress: a slow request ends well, and one that hangs is cancelled."""
    moved, ended = [0.0], []

    async def slow() -> str:
        for _ in range(20):
            await asyncio.sleep(0.05)
            moved[0] = time.monotonic()
        return "done"

    async def hanging() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    assert "done" == asyncio.run(wait_while_progressing(slow(), lambda: moved[0], 0.5))
    with pytest.raises(TimeoutError, match=r"no progress for 0.2 s"):
        asyncio.run(wait_while_progressing(hanging(), lambda: 0.0, 0.2))
    assert [True] == ended


# --- read_ranges -----------------------------------------------------------------------------------------------------


@given(
    size=st.integers(0, 3000),
    range_=st.integers(1, 1000),
    limit=st.integers(1, 5),
    pieces=st.lists(st.integers(1, 700), min_size=1, max_size=20),
    start=st.integers(0, 3000),
)
@settings(max_examples=60, deadline=None)
def test_ranges_are_resumed_and_joined_in_order(size: int, range_: int, limit: int, pieces: list[int], start: int) -> None:
    """Whatever an answer brings before it breaks off: each byte is asked for again only if it did not come."""
    data, start = text(size), min(start, size)
    lock, turn, got = threading.Lock(), [0], [0]

    def fetch(begin: int, until: int, into: bytearray) -> None:
        with lock:
            turn[0] += 1
            piece = min(until - begin, pieces[turn[0] % len(pieces)])
            got[0] += piece
        into += data[begin : begin + piece]
        if piece < until - begin and turn[0] % 2:
            raise ConnectionError("cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "JITTER", 0.0)
        patch.setattr(remote, "STEP", 1)  # whatever brings something does not count as a failure
        stream = read_ranges(fetch, start, size, size=range_, limit=limit, policy=RetryPolicy(is_transient))
        assert data[start:] == b"".join(stream)
    assert size - start == got[0]


@pytest.mark.parametrize("failing", [True, False])
def test_a_range_of_which_nothing_comes_fails(failing: bool) -> None:
    """An answer that is empty, or cut before its first byte, is asked for a few times and no more."""
    asked: list[int] = []

    def fetch(begin: int, until: int, into: bytearray) -> None:
        asked.append(begin)
        if failing:
            raise ConnectionResetError("cut")

    with pytest.raises(ConnectionError):
        drain(read_ranges(fetch, 0, 100, size=100, limit=2, policy=RetryPolicy(is_transient)))
    assert [0] * remote.ATTEMPTS == asked


def test_a_read_that_is_left_stops_its_repetitions() -> None:
    """Closing the stream waits for what is under way, and nothing is asked for again."""
    asked: list[int] = []
    broken = threading.Event()

    def fetch(begin: int, until: int, into: bytearray) -> None:
        asked.append(begin)
        if begin:
            broken.set()
            raise ConnectionError("cut")
        into += bytes(until - begin)

    policy = RetryPolicy(is_transient, 1000)
    stream = read_ranges(fetch, 0, 20, size=10, limit=2, policy=policy)
    assert bytes(10) == next(stream)
    broken.wait()
    policy.cancel()
    stream.close()
    count = len(asked)
    assert 1 <= asked.count(10) < 1000
    assert count == len(asked)


def test_memory_is_that_of_the_ranges_under_way() -> None:
    """No range is begun before there is room for it."""
    begun: list[int] = []

    def fetch(begin: int, until: int, into: bytearray) -> None:
        begun.append(begin)
        into += bytes(until - begin)

    stream = read_ranges(fetch, 0, 100, size=1, limit=3, policy=RetryPolicy(is_transient))
    assert b"\0" == next(stream)
    assert max(begun) < 4
    assert 99 == drain(stream)
