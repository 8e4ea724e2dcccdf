"""The two types of a stream, and the small tools that count, cut and digest one."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator
from typing import IO, TypeAlias

__all__ = ["BLOCK", "CHUNK", "Chunks", "Stream", "Tap", "drain", "read_chunks", "resize", "take", "weight"]

Chunks: TypeAlias = Iterable[bytes]
Stream: TypeAlias = Generator[bytes]

CHUNK = 1 << 20
"""The customary size of a chunk, in bytes."""
BLOCK = 16 << 20
"""The bytes that one digest of a stored object covers: what a reader holds before it releases any of it."""


def weight(chunk: bytes) -> int:
    """What a queued chunk counts against a bound: its bytes and about what an object costs, so that tiny ones add up."""
    return len(chunk) + 64


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
    """Counts and digests what flows by: ``size`` in bytes, ``sha256``, and the running sha256 at the end of each block.

    With ``block=None`` no block digests are kept. The values are complete when the stream that ``through`` returned has ended,
    which ``ended`` tells: it is not set by a stream that was left or has failed.
    """

    def __init__(self, block: int | None = None) -> None:
        self.size = 0
        self.ended = False
        self._block = block
        self._digest = hashlib.sha256()
        self._ends: list[str] = []

    def through(self, chunks: Chunks) -> Stream:
        """Yield the chunks unchanged, recording each before it is passed on."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk
        self.ended = True

    def update(self, chunk: bytes) -> None:
        """Record one chunk."""
        if self._block is None:
            self.size += len(chunk)
            self._digest.update(chunk)
            return
        view = memoryview(chunk)
        while view:
            piece = view[: self._block - self.size % self._block]
            self._digest.update(piece)
            self.size += len(piece)
            view = view[len(piece) :]
            if self.size % self._block == 0:
                self._ends.append(self.sha256)

    @property
    def sha256(self) -> str:
        """Hex sha256 of everything so far."""
        return self._digest.hexdigest()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Hex sha256 of everything up to the end of each block; the last block may be short. Of nothing there are none."""
        short = self._block is not None and self.size % self._block
        return (*self._ends, self.sha256) if short else tuple(self._ends)
