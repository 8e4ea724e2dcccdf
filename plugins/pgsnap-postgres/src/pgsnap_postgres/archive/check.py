"""Check pg_dump's custom format as it flows by: is it whole?

pg_dump's exit status 0 does not prove a whole archive, and ``pg_restore -l`` succeeds on one that was cut. The format itself
does prove it: every entry of the table of contents (TOC) whose offset flag is not "no data" has exactly one data block, and the
file ends where a block ends. So a stream that was cut anywhere either ends inside a block or lacks one.

Theory of operation: the head (header and TOC) is gathered and parsed entry by entry (``toc.py``, which also describes numbers
and strings); then the blocks are skipped by arithmetic, chunk after chunk, without copying a byte. Memory grows with the
entries, not with the data. Inside an archive that pg_dump compressed a piece of a block is 4 to 128 KiB and the check is
nearly free; with ``-Z0`` each row is a piece::

    block   1, id, pieces                    a table:       a piece is an int and so many bytes; an int of 0 ends them
            3, id, (oid, pieces) … 0         large objects
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum, auto

from pgsnap import DumpError
from pgsnap.streams import Chunks, Stream

from .toc import NO_DATA, HeadParser, Section, Toc, TocEntry, damaged, unpack_int

__all__ = ["NO_DATA", "Section", "Toc", "TocEntry", "check_archive", "read_toc"]


def check_archive(chunks: Chunks, on_toc: Callable[[Toc], object] | None = None) -> Stream:
    """Pass an archive through unchanged; end without an error only if it is whole.

    ``on_toc`` is called once, in the consuming thread, before the chunk that completes the table of contents is passed on. The
    chunks that come in go out as they are. Holds what the table of contents takes, and one chunk.

    Raises:
        DumpError: the archive is cut, damaged, followed by something, or of a version that this one cannot check. A cut
            shows when the stream ends: whoever consumes must not act on the last chunk before that.
    """
    check = _Check(on_toc)
    for chunk in chunks:
        if chunk:
            check.feed(chunk)
            yield chunk
    check.finish()


def read_toc(chunks: Chunks) -> Toc:
    """Return the table of contents; pulls no more chunks than hold it, and closes nothing.

    Raises:
        DumpError: as ``check_archive``, or the stream ends before the table of contents does.
    """
    found: list[Toc] = []
    check = _Check(found.append)
    for chunk in chunks:
        if chunk:
            check.feed(chunk, head_only=True)
            if found:
                return found[0]
    check.finish()
    raise AssertionError("a head that is not complete is refused by finish()")  # pragma: no cover


class _Next(Enum):
    """What stands at the position that was reached."""

    BLOCK = auto()  # type and id, 6 bytes, or the end
    OID = auto()  # of a large object, 5 bytes; 0 ends the block
    PIECE = auto()  # its length, 5 bytes; 0 ends the table or the large object


class _Check:
    """The state of one stream's check."""

    def __init__(self, on_toc: Callable[[Toc], object] | None) -> None:
        self._on_toc = on_toc
        self._head: HeadParser | None = HeadParser()
        self._missing: dict[int, TocEntry] = {}  # entries whose block has not come yet
        self._next = _Next.BLOCK
        self._block: TocEntry | None = None  # the block we are in
        self._large_objects = False
        self._skip = 0  # bytes of the next chunks that belong to the piece we are in
        self._rest = b""  # the beginning of a number that the last chunk cut
        self._size = 0  # bytes before the current chunk

    def feed(self, chunk: bytes, head_only: bool = False) -> None:
        head = self._head
        if head is None:
            self._data(chunk)
        elif (toc := head.feed(chunk)) is not None:
            self._head = None
            self._missing = {entry.dump_id: entry for entry in toc.entries if entry.has_data}
            if self._on_toc is not None:
                self._on_toc(toc)
            if head_only:
                return
            rest = bytes(memoryview(head.data)[head.at :])
            self._size = head.at
            self._data(rest)
            self._size += len(rest)
            return
        self._size += len(chunk)

    def _data(self, chunk: bytes) -> None:
        """Follow the blocks through one chunk."""
        size = len(chunk)
        at = self._skip
        if at >= size and not self._rest:
            self._skip = at - size
            return
        if self._rest:  # complete the number first; nothing is skipped while one is incomplete
            held = len(self._rest)
            width = 6 if self._next is _Next.BLOCK else 5
            number = self._rest + chunk[: width - held]
            if len(number) < width:
                self._rest = number
                return
            self._rest = b""
            at = self._walk(number, 0, self._size - held) - held
        if at < size:
            at = self._walk(chunk, at, self._size)
        if at < size:
            self._rest = chunk[at:]
            at = size
        self._skip = at - size

    def _walk(self, data: bytes, at: int, base: int) -> int:
        """Go from number to number; return where the next one begins, which is beyond the data or too near to its end."""
        size = len(data)
        unpack = unpack_int
        while True:
            if self._next is _Next.PIECE:
                try:
                    while True:  # each turn is a row of a table in a -Z0 archive: the loop that costs
                        sign, length = unpack(data, at)
                        if sign or not length:
                            break
                        at += length + 5
                except struct.error:  # less than five bytes are left, or at is beyond the end
                    return at
                if sign:
                    damaged(base + at, f"a piece of {self._place()} has the length -{length}")
                at += 5
                self._next = _Next.OID if self._large_objects else _Next.BLOCK
            elif self._next is _Next.OID:
                if at + 5 > size:
                    return at
                sign, oid = unpack(data, at)  # oids of 2^31 and more are written as negative numbers
                if sign > 1:
                    damaged(base + at, f"the sign of an oid is {sign}, not 0 or 1")
                self._next = _Next.PIECE if oid else _Next.BLOCK
                at += 5
            else:
                if at + 6 > size:
                    return at
                sign, dump_id = unpack(data, at + 1)
                self._enter(data[at], -dump_id if sign else dump_id, base + at)
                at += 6

    def _enter(self, kind: int, dump_id: int, offset: int) -> None:
        if kind not in (1, 3):
            damaged(offset, "something follows that is no block of data: the archive ended before it, or is damaged")
        entry = self._missing.pop(dump_id, None)
        if entry is None:
            damaged(offset, f"a block for entry {dump_id} follows, which has no data or whose data came already")
        self._large_objects = kind == 3
        if self._large_objects != (entry.desc == "BLOBS"):
            damaged(offset, f"the block of {entry.title} has the type {kind}")
        self._block = entry
        self._next = _Next.OID if self._large_objects else _Next.PIECE

    def _place(self) -> str:
        return self._block.title if self._block is not None else "the data"

    def finish(self) -> None:
        """Raise unless this is where a whole archive ends."""
        again = "the backup must be taken again; the log of the database server says what ended pg_dump."
        if self._head is not None:
            raise DumpError(f"the dump is not whole: it ends after {self._size} bytes, inside {self._head.part}; {again}")
        if self._skip or self._rest or self._next is not _Next.BLOCK:
            raise DumpError(f"the dump is not whole: it ends after {self._size} bytes, inside {self._place()}; {again}")
        if self._missing:
            first = next(iter(self._missing.values())).title
            raise DumpError(
                f"the dump is not whole: it ends after {self._size} bytes without the data of {len(self._missing)} entries, "
                f"the first {first}; {again}"
            )
