"""Reading an object: ranges, several of them under way, each resumed at the byte where it was cut off.

The first range tells the object's size and ETag; every later answer must be of the same ETag, or the object was replaced
meanwhile. An answer that ends early is asked for again from where it ended, for as long as it gets on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs

from pgsnap import StoreError
from pgsnap.streams import CHUNK, Stream, chunks_of, fetch_until_complete, read_ranges
from pgsnap_s3.connection import Connection
from pgsnap_s3.failures import RetryPolicy, status_of

__all__ = ["Download"]

RANGE = 4 * CHUNK
"""The bytes that one request asks for."""


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
        policy = RetryPolicy()
        first, total, etag = self._first(start, RANGE if length is None else min(length, RANGE), policy)
        end = total if length is None else start + length
        if end > total or start > total:
            raise StoreError(f"{self.label}: {self.key} has {total} bytes, but {end} are needed; it was cut short.", self.label)
        yield from chunks_of(first[: end - start])
        at = start + len(first)
        del first

        def fetch(begin: int, until: int, into: bytearray) -> None:
            def check(answer: Mapping[str, Any]) -> None:
                self._same(self._told(answer, begin), {"size": total, "etag": etag})

            self.connection.fetch(into, until - begin, check, Range=f"bytes={begin}-{until - 1}", **self.place)

        yield from read_ranges(fetch, at, end, size=RANGE, limit=self.ranges_in_flight, policy=policy)

    def _first(self, start: int, length: int, policy: RetryPolicy) -> tuple[bytes, int, str]:
        """Return the first range, the object's size and its ETag. Of no bytes one is asked for, to learn the size."""
        into = bytearray()
        told: dict[str, Any] = {}

        def get() -> None:
            begin = start + len(into)

            def check(answer: Mapping[str, Any]) -> None:
                found = self._told(answer, begin)
                if into:  # of an answer that was cut off
                    self._same(found, told)
                told.update(found)

            asked = f"bytes={begin}-{start + max(length, 1) - 1}"
            self.connection.fetch(into, max(length, 1) - len(into), check, Range=asked, **self.place)

        def enough() -> bool:
            return "size" in told and len(into) >= min(length, told["size"] - start)

        try:
            fetch_until_complete(get, enough, into, policy)
        except Exception as error:
            if status_of(error) != 416:
                raise
            told = {"size": int(policy(lambda: self.connection.call("head_object", **self.place))["ContentLength"]), "etag": ""}
        return bytes(into[:length]), told["size"], told["etag"]

    def _told(self, answer: Mapping[str, Any], start: int) -> dict[str, Any]:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", str(answer.get("ContentRange", "")))
        if match is None:
            if start:
                raise StoreError(f"{self.label}: cannot read {self.key}: the server does not know ranges.", self.label)
            return {"size": int(answer["ContentLength"]), "etag": str(answer.get("ETag", ""))}
        return {"size": int(match[3]), "etag": str(answer.get("ETag", ""))}

    def _same(self, found: Mapping[str, Any], first: Mapping[str, Any]) -> None:
        """Raise if an answer is of another object than the first one; a server may give no ETag."""
        other = found["etag"] and first["etag"] and found["etag"] != first["etag"]
        if found["size"] != first["size"] or other:
            raise StoreError(f"{self.label}: {self.key} was replaced while it was read.", self.label)
