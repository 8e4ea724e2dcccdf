"""Streams to test with: readable bytes, a source that fails, a source that tells what was done to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest

from pgsnap.streams import Chunks, Stream

__all__ = ["Boom", "Watched", "cut", "failing", "must_raise", "no_thread_left", "text"]

E = TypeVar("E", bound=BaseException)


class Boom(Exception):
    """What a failing source raises. It is no OSError and no PgsnapError, so that nobody takes it for their own."""


def text(size: int, seed: int = 0) -> bytes:
    """Return ``size`` bytes that compress about as a dump does, the same for the same arguments."""
    rows: list[bytes] = []
    left, number = size, seed
    while left > 0:
        row = b"%d\tuser%d@example.org\t%s\t2026-11-22 08:%02d:00+00\n" % (
            number,
            number * 7919 % 100_003,
            (b"%x" % (number * 2654435761 % 2**64)) * 3,
            number % 60,
        )
        rows.append(row)
        left -= len(row)
        number += 1
    return b"".join(rows)[:size]


def cut(data: bytes, size: int) -> list[bytes]:
    """Cut bytes into chunks of ``size``."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def failing(chunks: Iterable[bytes], error: BaseException) -> Stream:
    """Yield the chunks, then raise ``error``."""
    yield from chunks
    raise error


class Watched(Iterator[bytes]):
    """Chunks that know how many were ``pulled``, and whether somebody ``closed`` them (a stage must not)."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = iter(chunks)
        self.pulled = 0
        self.closed = False

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.pulled += 1
        return chunk

    def close(self) -> None:
        """Record that it was closed."""
        self.closed = True


@contextlib.contextmanager
def must_raise(error: type[E], otherwise: str) -> Iterator[list[E]]:
    """Fail with the sentence ``otherwise`` unless ``error`` is raised; what was raised is put into the list that it gives."""
    caught: list[E] = []
    try:
        yield caught
    except error as raised:
        caught.append(raised)
    else:
        pytest.fail(otherwise)


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """Fail if a thread that was not there before is there after."""
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert left == [], f"threads were left behind: {left}"
