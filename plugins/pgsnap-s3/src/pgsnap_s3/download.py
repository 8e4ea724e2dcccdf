"""Reading an object: ranges, several of them under way, each resumed at the byte where it was cut off.

The first range tells the object's size and ETag; every later answer must be of the same ETag, or the object was replaced
meanwhile. An answer that ends early is asked for again from where it ended, for as long as it gets on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from pgsnap import StoreError
from pgsnap.streams import CHUNK, Stream, in_flight
from pgsnap_s3.connection import Connection, Patience
from pgsnap_s3.failures import is_transient, status_of

__all__ = ["Download"]

RANGE = 4 * CHUNK
"""The bytes that one request asks for."""
STEP = 256 << 10
"""Bytes that an attempt must have brought for its failure not to count."""


@attrs.frozen(kw_only=True)
class Download:
    """One object to be read."""

    connection: Connection
    label: str
    key: str
    place: Mapping[str, Any]
    ranges_in_flight: int

    def receive(self, start: int, length: int | None) -> Stream:
        """Yield the bytes asked for. Holds ``ranges_in_flight`` + 1 ranges of 4 MiB."""
        patience = Patience()
        first, total, etag = self._first(start, RANGE if length is None else min(length, RANGE), patience)
        end = total if length is None else start + length
        if end > total or start > total:
            raise StoreError(f"{self.label}: {self.key} has {total} bytes, but {end} are needed; it was cut short.", self.label)
        yield from _chunks(first[: end - start])
        at = start + len(first)
        del first

        def fetch(range_: tuple[int, int]) -> bytearray:
            return self._range(*range_, total, etag, patience)

        ranges = ((begin, min(begin + RANGE, end)) for begin in range(at, end, RANGE))
        with contextlib.closing(in_flight(fetch, ranges, self.ranges_in_flight)) as pieces:
            try:
                for piece in pieces:
                    yield from _chunks(piece)
            finally:
                patience.cancel()

    def _first(self, start: int, length: int, patience: Patience) -> tuple[bytes, int, str]:
        """Return the first range, the object's size and its ETag. Of no bytes one is asked for, to learn the size."""
        into = bytearray()
        told: dict[str, Any] = {}

        def get() -> None:
            asked = f"bytes={start + len(into)}-{start + max(length, 1) - 1}"
            answer = self.connection.fetch(into, max(length, 1) - len(into), Range=asked, **self.place)
            told.update(self._told(answer, start))

        def enough() -> bool:
            return "size" in told and len(into) >= min(length, told["size"] - start)

        try:
            self._insist(get, enough, into, patience)
        except Exception as error:
            if status_of(error) != 416:
                raise
            told = {"size": int(patience(lambda: self.connection.call("head_object", **self.place))["ContentLength"]), "etag": ""}
        return bytes(into[:length]), told["size"], told["etag"]

    def _told(self, answer: Mapping[str, Any], start: int) -> dict[str, Any]:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", str(answer.get("ContentRange", "")))
        if match is None:
            if start:
                raise StoreError(f"{self.label}: cannot read {self.key}: the server does not know ranges.", self.label)
            return {"size": int(answer["ContentLength"]), "etag": str(answer.get("ETag", ""))}
        return {"size": int(match[3]), "etag": str(answer.get("ETag", ""))}

    def _range(self, begin: int, end: int, total: int, etag: str, patience: Patience) -> bytearray:
        into = bytearray()

        def get() -> None:
            asked = f"bytes={begin + len(into)}-{end - 1}"
            answer = self.connection.fetch(into, end - begin - len(into), Range=asked, **self.place)
            told = self._told(answer, begin + len(into))
            if told["size"] != total or (etag and told["etag"] and told["etag"] != etag):
                raise StoreError(f"{self.label}: {self.key} was replaced while it was read.", self.label)

        self._insist(get, lambda: len(into) == end - begin, into, patience)
        return into

    def _insist(self, get: Callable[[], None], enough: Callable[[], bool], into: bytearray, patience: Patience) -> None:
        """Ask until there is enough: again and again as long as something comes, and a few times where nothing does."""

        def attempt() -> None:
            get()
            if not enough():
                raise ConnectionError("the answer ended early")

        while not enough():
            before = len(into)
            try:
                patience(attempt)
            except Exception as error:
                if not is_transient(error) or len(into) - before < STEP:
                    raise


def _chunks(data: bytes | bytearray) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), CHUNK):
        yield bytes(view[start : start + CHUNK])
