"""Writing an object whole or not at all: one request if it is small, else parts of one size, several of them under way.

A multipart upload publishes nothing until it is completed, and completing it is one request with one answer. Any failure before
leads to its abort, after the last part under way has ended, since a part that arrives later would stay behind. Each part carries
its MD5, so that a server refuses what the network has changed, and the answers are compared with what was sent: an ETag that is
the digest of the object, or of its parts, proves it; where a server's ETags are something else, the object is looked up.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from pgsnap import StoreError
from pgsnap.streams import Chunks, in_flight, resize
from pgsnap_s3.connection import Connection
from pgsnap_s3.failures import RetryPolicy, code_of, status_of

__all__ = ["Upload"]

COMPLETION = 5.0
"""How many times ``io_timeout`` a completion may take: servers put large objects together in it."""


@attrs.frozen(kw_only=True)
class Upload:
    """One object to be written.

    Args:
        key: What messages call it.
        place: Its ``Bucket`` and ``Key``.
        options: What goes with the creation of the object: storage class, encryption, lock.
        lock_days: The days for which it is locked; None: not.
        md5_etags: Whether this server's ETags are MD5 digests.
    """

    connection: Connection
    label: str
    key: str
    place: Mapping[str, Any]
    options: Mapping[str, Any]
    lock_days: int | None
    part_size: int
    parts_in_flight: int
    max_parts: int
    md5_etags: bool

    def send(self, chunks: Chunks) -> int:
        """Write the object; return its bytes. Holds ``parts_in_flight`` + 3 parts.

        What ``chunks`` raises passes through; everything else that is raised is the client's error or a StoreError.
        """
        pieces = resize(chunks, self.part_size)
        try:
            ahead = [next(pieces, b"")]
            if len(ahead[0]) == self.part_size:
                ahead += list(_first(pieces))
            if len(ahead) == 1:
                return self._send_small(ahead[0])
            return self._send_parts(_rest(ahead, pieces))
        finally:
            pieces.close()

    # --- one request ----------------------------------------------------------------------------------------------------

    def _send_small(self, data: bytes) -> int:
        digest = _md5(data)

        def put() -> bool:
            answer = self.connection.call(
                "put_object", data, ContentMD5=_base64(digest), **self.place, **self.options, **self._lock()
            )
            return self._compare(answer, digest.hex(), "")

        policy = RetryPolicy()
        if not policy(put):
            self._confirm(len(data), policy)
        return len(data)

    # --- parts ----------------------------------------------------------------------------------------------------------

    def _send_parts(self, pieces: Iterator[bytes]) -> int:
        began = datetime.now(UTC)
        policy = RetryPolicy()
        upload: Future[str] = Future()
        done = None
        try:
            done = self._complete(upload, pieces, policy)
        except BaseException:
            policy.cancel()
            raise
        finally:
            ours = upload.result() if upload.done() and upload.exception() is None else None
            if ours is not None and done is None:
                self._abort(ours)
            if policy.repeated:  # an answer that got lost may have left an upload that nobody knows of
                self._abort_lost(began, ours)
        return done

    def _create(self, upload: Future[str], policy: RetryPolicy) -> None:
        """Begin the upload: the first piece of work, so that the first parts are digested meanwhile."""
        try:
            answer = policy(lambda: self.connection.call("create_multipart_upload", **self.place, **self.options, **self._lock()))
            upload.set_result(str(answer["UploadId"]))
        except BaseException as error:
            upload.set_exception(error)
            raise

    def _complete(self, upload: Future[str], pieces: Iterator[bytes], policy: RetryPolicy) -> int:
        digests: list[bytes] = []
        size = 0

        def numbered() -> Iterator[tuple[int, bytes]]:
            nonlocal size
            yield 0, b""  # the creation
            number = 0
            while True:
                try:
                    piece = next(pieces, None)
                except BaseException:
                    policy.cancel()  # parts under way are of no use any more
                    raise
                if piece is None:
                    return
                number += 1
                if number > self.max_parts:
                    raise StoreError(
                        f"{self.label}: cannot write {self.key}: it has more than {self.max_parts} parts of "
                        f"{self.part_size} bytes; raise part_size.",
                        self.label,
                    )
                size += len(piece)
                yield number, piece
                del piece

        def send(item: tuple[int, bytes]) -> tuple[dict[str, Any], bytes] | None:
            number, data = item
            if not number:
                self._create(upload, policy)
                return None
            digest = _md5(data)
            place = {**self.place, "PartNumber": number, "UploadId": upload.result()}

            def put() -> dict[str, Any]:
                answer = self.connection.call("upload_part", data, ContentMD5=_base64(digest), **place)
                self._compare(answer, digest.hex(), f" (part {number})")
                return {"PartNumber": number, "ETag": answer["ETag"]}

            return policy(put), digest

        parts: list[dict[str, Any]] = []
        with contextlib.closing(in_flight(send, numbered(), self.parts_in_flight)) as sent:
            try:
                for result in sent:
                    if result is not None:
                        parts.append(result[0])
                        digests.append(result[1])
            except BaseException:
                policy.cancel()
                raise
        expected = f"{_md5(b''.join(digests)).hex()}-{len(digests)}"
        ours = {**self.place, "UploadId": upload.result()}

        def complete() -> bool:
            try:
                answer = self.connection.call(
                    "complete_multipart_upload", stretch=COMPLETION, MultipartUpload={"Parts": parts}, **ours
                )
            except Exception as error:
                if code_of(error) != "NoSuchUpload" or not policy.repeated:
                    raise
                head = self._head()  # an earlier attempt may have done it, and its answer got lost
                if head is None or head.get("ContentLength") != size or self._agrees(head.get("ETag", ""), expected) is False:
                    raise
                return True
            return self._compare(answer, expected, "", lasting=True)

        if not policy(complete):
            self._confirm(size, policy)
        return size

    def _abort(self, upload: str) -> None:
        def abort() -> None:
            try:
                self.connection.call("abort_multipart_upload", UploadId=upload, **self.place)
            except Exception as error:
                if code_of(error) != "NoSuchUpload":
                    raise

        with contextlib.suppress(Exception):  # what led here is told; prune's sweep finds the upload later
            RetryPolicy(4)(abort)

    def _abort_lost(self, began: datetime, ours: str | None) -> None:
        """Abort uploads of this key that were begun since ``began``: keys are written once, so they are ours."""
        with contextlib.suppress(Exception):
            answer = RetryPolicy(2)(
                lambda: self.connection.call(
                    "list_multipart_uploads", Bucket=self.place["Bucket"], Prefix=self.place["Key"], MaxUploads=100
                )
            )
            for item in answer.get("Uploads", ()):
                recent = item["Initiated"] > began - timedelta(minutes=1)
                if item["Key"] == self.place["Key"] and item["UploadId"] != ours and recent:
                    self._abort(item["UploadId"])

    # --- checks ---------------------------------------------------------------------------------------------------------

    def _lock(self) -> dict[str, Any]:
        days = self.lock_days
        return {} if days is None else {"ObjectLockRetainUntilDate": datetime.now(UTC) + timedelta(days=days)}

    def _compare(self, answer: Mapping[str, Any], expected: str, what: str, lasting: bool = False) -> bool:
        """Raise if the ETag is not that of what was sent; return whether it is, or says nothing."""
        encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer
        agrees = None if encrypted else self._agrees(str(answer.get("ETag", "")), expected)
        if agrees is not False:
            return agrees is True
        if lasting:
            self._remove()
        raise StoreError(
            f"{self.label}: cannot write {self.key}{what}: the server's ETag is not that of what was sent; "
            "the bytes were changed on the way.",
            self.label,
            transient=not lasting,
        )

    def _agrees(self, etag: str, expected: str) -> bool | None:
        """Whether an ETag is the digest that is expected; None if this server's ETags say nothing.

        Some servers name an object of several parts in a HEAD by another rule than in the answer to its completion.
        """
        etag = etag.strip('"').lower()
        comparable = re.fullmatch(r"[0-9a-f]{32}(-[0-9]+)?", etag) and ("-" in etag) == ("-" in expected)
        return etag == expected if self.md5_etags and comparable else None

    def _head(self) -> dict[str, Any] | None:
        """Return what the server says of the object, or None if this key must not ask."""
        try:
            return self.connection.call("head_object", **self.place)
        except Exception as error:
            if status_of(error) in (401, 403):
                return None
            raise

    def _confirm(self, size: int, policy: RetryPolicy) -> None:
        """Look the object up where no ETag has proved it; with a key that may only write, the answer to the write must do."""
        head = policy(self._head)
        if head is None:
            return
        if head["ContentLength"] != size:
            self._remove()
            text = f"{self.label}: {self.key} has {head['ContentLength']} bytes after {size} were written."
            raise StoreError(text, self.label)

    def _remove(self) -> None:
        """Take back what is not what was sent, as far as this key may."""
        with contextlib.suppress(Exception):
            RetryPolicy(2)(lambda: self.connection.call("delete_object", **self.place))


def _first(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        return


def _rest(ahead: list[bytes], pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what was pulled ahead without holding on to it, then the rest."""
    while ahead:
        yield ahead.pop(0)
    yield from pieces


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    import base64

    return base64.b64encode(digest).decode()
