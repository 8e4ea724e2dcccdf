"""Writing and reading one object.

Written is in a resumable upload: parts go one after the other to a session. One that breaks off is sent again; Google ignores
what it has kept of it already. Nothing is visible before the last part. A session that is given up is deleted; one that a killed
process leaves disappears after a week. What the server says it stored, size and MD5, is compared with what was sent.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import attrs

from pgsnap import StoreError
from pgsnap.streams import CHUNK, Chunks, Stream, read_ranges, resize
from pgsnap_gcs.connection import Connection, Failed, RetryPolicy

__all__ = ["Download", "Upload"]

RANGE = 8 * CHUNK
"""The bytes that one request of a reader asks for."""


@attrs.frozen(kw_only=True)
class Upload:
    """One object to be written; ``key`` is what messages call it, ``name`` its name in the bucket."""

    connection: Connection
    label: str
    bucket: str
    key: str
    name: str
    params: Mapping[str, str]
    metadata: Mapping[str, str]
    part_size: int

    def send(self, chunks: Chunks) -> int:
        """Write the object; return its bytes. Holds three parts."""
        pieces = resize(chunks, self.part_size)
        policy = RetryPolicy()
        session = ""
        digest = hashlib.md5(usedforsecurity=False)
        sent = 0
        answer: dict[str, Any] | None = None
        try:
            piece = next(pieces, b"")
            session = policy(self._begin)
            while True:
                following = next(pieces, None) if len(piece) == self.part_size else None
                digest.update(piece)
                answer = self._part(session, piece, sent, following is None, policy)
                sent += len(piece)
                if following is None:
                    break
                piece = following
        finally:
            pieces.close()
            if session and answer is None:
                with contextlib.suppress(Exception):  # what led here is told
                    RetryPolicy(3)(lambda: self.connection.call("DELETE", session))
        self._check(answer, sent, base64.b64encode(digest.digest()).decode())
        return sent

    def _begin(self) -> str:
        answer = self.connection.call(
            "POST",
            self.connection.bucket(self.bucket, upload=True),
            params={"uploadType": "resumable", "name": self.name, **self.params},
            headers={"Content-Type": "application/json"},
            data=json.dumps({"name": self.name, **self.metadata}).encode(),
        )
        return self.connection.here(answer.headers["Location"])

    def _part(self, session: str, data: bytes, offset: int, last: bool, policy: RetryPolicy) -> dict[str, Any] | None:
        """Send one part, again and whole if need be; return what the server says of the object after the last one."""
        end = offset + len(data)
        span = f"bytes {offset}-{end - 1}/{end if last else '*'}" if data else f"bytes */{end}"
        doubt = False

        def attempt() -> dict[str, Any] | None:
            nonlocal doubt
            try:
                answer = self.connection.call("PUT", session, headers={"Content-Range": span}, data=data)
            except Failed as error:
                if error.status not in (404, 410) or not (last and doubt):
                    raise
                # An earlier attempt may have ended the upload, and its answer got lost.
                return self.connection.call("GET", self.connection.object(self.bucket, self.name)).json
            finally:
                doubt = True
            if answer.status != 308:
                return answer.json
            kept = re.fullmatch(r"(?:bytes[= ])?0-(\d+)", answer.headers.get("Range", ""))
            if last or kept is None or int(kept[1]) + 1 != end:
                raise ConnectionError("the server kept less than was sent")
            return None

        return policy(attempt)

    def _check(self, answer: Mapping[str, Any] | None, size: int, md5: str) -> None:
        """Compare what the server says it has stored with what was sent; take it back if it differs."""
        answer = answer or {}
        same = int(answer.get("size", -1)) == size and answer.get("md5Hash", md5) == md5
        if same:
            return
        with contextlib.suppress(Exception):
            RetryPolicy(2)(lambda: self.connection.call("DELETE", self.connection.object(self.bucket, self.name)))
        raise StoreError(
            f"{self.label}: {self.key} has {answer.get('size', 'an unknown number of')} bytes, MD5 {answer.get('md5Hash')}, "
            f"after {size} with MD5 {md5} were written.",
            self.label,
        )


@attrs.frozen(kw_only=True)
class Download:
    """One object to be read: ranges, several under way, each resumed where it was cut off, all of one generation."""

    connection: Connection
    label: str
    bucket: str
    key: str
    name: str
    ranges_in_flight: int

    def receive(self, start: int, length: int | None) -> Stream:
        """Yield the bytes asked for. Holds ``ranges_in_flight`` + 1 ranges of 8 MiB."""
        policy = RetryPolicy()
        metadata = policy(lambda: self.connection.call("GET", self.connection.object(self.bucket, self.name))).json
        total, generation = int(metadata["size"]), str(metadata.get("generation", ""))
        end = total if length is None else start + length
        if end > total or start > total:
            raise StoreError(f"{self.label}: {self.key} has {total} bytes, but {end} are needed; it was cut short.", self.label)

        params = {"alt": "media", **({"generation": generation} if generation else {})}
        url = self.connection.object(self.bucket, self.name)

        def fetch(begin: int, until: int, into: bytearray) -> None:
            before = len(into)
            self.connection.call("GET", url, params=params, headers={"Range": f"bytes={begin}-{until - 1}"}, into=into)
            if len(into) - before > until - begin:
                raise StoreError(f"{self.label}: cannot read {self.key}: the server gave more than was asked for.", self.label)

        yield from read_ranges(fetch, start, end, size=RANGE, limit=self.ranges_in_flight, policy=policy)
