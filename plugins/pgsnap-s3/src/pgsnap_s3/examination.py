"""What ``pgsnap doctor --deep`` asks of a bucket besides what it asks of every store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from pgsnap import Finding
from pgsnap_s3.connection import Connection, Patience
from pgsnap_s3.failures import code_of, wrapped

__all__ = ["examine"]

UNKNOWN = {"NotImplemented", "MethodNotAllowed", "501", "405"}


def examine(connection: Connection, label: str, bucket: str, prefix: str, lock: bool) -> Sequence[Finding]:
    """Return findings about multipart uploads, versioning and, with ``lock``, object lock."""
    return [*_multipart(connection, label, bucket, prefix), _versioning(connection, label, bucket, lock)]


def _multipart(connection: Connection, label: str, bucket: str, prefix: str) -> Iterator[Finding]:
    place: dict[str, Any] = {"Bucket": bucket, "Key": f"{prefix}doctor-{secrets.token_hex(4)}"}
    try:
        upload = Patience()(lambda: connection.call("create_multipart_upload", **place))["UploadId"]
        Patience()(lambda: connection.call("abort_multipart_upload", UploadId=upload, **place))
    except Exception as error:
        remedy = "Allow s3:AbortMultipartUpload: what a failed backup leaves would cost money unseen."
        yield Finding(
            "error", label, f"a multipart upload could not be begun and aborted: {wrapped(error, label, 'write it')}", remedy
        )
        return
    yield Finding("ok", label, "a multipart upload was begun and aborted.")
    try:
        page = connection.call("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        left = len([item for item in page.get("Uploads", ()) if str(item["Key"]).startswith(prefix)])
    except Exception as error:
        if code_of(error) == "NoSuchUpload":  # how some servers say that there are none
            return
        text = f"unfinished multipart uploads cannot be listed: {wrapped(error, label, 'clean it up')}"
        yield Finding("info", label, text, "Let a lifecycle rule of the bucket abort those that are older than a week.")
        return
    if left:
        text = f"{left} multipart uploads are unfinished: of running backups, or of killed ones."
        yield Finding("info", label, text, "'pgsnap prune' aborts those that are old.")


def _versioning(connection: Connection, label: str, bucket: str, lock: bool) -> Finding:
    """Say whether an overwritten or deleted object is kept: a key that may only write can still overwrite."""
    if lock:
        try:
            answer = connection.call("get_object_lock_configuration", Bucket=bucket)
            enabled = answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"
        except Exception as error:
            if code_of(error) in ("AccessDenied", "403"):
                return Finding("info", label, "the key may not ask whether the bucket has object lock.", "Look it up yourself.")
            enabled = False
        if not enabled:
            remedy = "Enable it on the bucket, or unset object_lock."
            return Finding("error", label, "object_lock is set, and the bucket has no object lock.", remedy)
        return Finding("ok", label, "the bucket has object lock.")
    try:
        status = connection.call("get_bucket_versioning", Bucket=bucket).get("Status", "")
    except Exception:
        return Finding(
            "info", label, "it is not known whether the bucket keeps versions.", "A stolen key could overwrite backups."
        )
    if status == "Enabled":
        return Finding("ok", label, "the bucket keeps versions of what is overwritten or deleted.")
    remedy = "A stolen key could overwrite backups: switch versioning on, or use object lock."
    return Finding("warning", label, "the bucket keeps no versions.", remedy)
