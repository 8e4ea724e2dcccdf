"""What ``pgsnap doctor --deep`` asks of a bucket besides what it asks of every store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pgsnap import Finding
from pgsnap_s3.connection import Connection
from pgsnap_s3.failures import RetryPolicy, code_of, wrapped
from pgsnap_s3.locks import UNLOCKED

__all__ = ["examine", "examine_lock"]

UNKNOWN = {"NotImplemented", "MethodNotAllowed", "InvalidRequest", "501", "405"}


def examine(
    connection: Connection, label: str, bucket: str, prefix: str, asked: Mapping[str, Any], lock: bool
) -> Sequence[Finding]:
    """Return findings about multipart uploads, encryption, versions and, with ``lock``, object lock.

    ``asked`` is what goes with the creation of an object: storage class and encryption.
    """
    found = [*_multipart(connection, label, bucket, prefix, asked)]
    kept = examine_lock(connection, label, bucket) if lock else _versioning(connection, label, bucket)
    found += kept
    if all(finding.level == "ok" for finding in kept):
        found += _lifecycle(connection, label, bucket)
    return found


def _multipart(connection: Connection, label: str, bucket: str, prefix: str, asked: Mapping[str, Any]) -> Iterator[Finding]:
    place: dict[str, Any] = {"Bucket": bucket, "Key": f"{prefix}doctor-{secrets.token_hex(4)}"}
    try:
        begun = RetryPolicy()(lambda: connection.call("create_multipart_upload", **place, **asked))
        RetryPolicy()(lambda: connection.call("abort_multipart_upload", UploadId=begun["UploadId"], **place))
    except Exception as error:
        remedy = "Allow s3:AbortMultipartUpload: what a failed backup leaves would cost money unseen."
        yield Finding(
            "error", label, f"a multipart upload could not be begun and aborted: {wrapped(error, label, 'write it')}", remedy
        )
        return
    yield Finding("ok", label, "a multipart upload was begun and aborted.")
    encryption = asked.get("ServerSideEncryption")
    if encryption and begun.get("ServerSideEncryption") != encryption:
        text = f"encryption = {encryption!r} is set, and the server does not say that it encrypts."
        yield Finding("warning", label, text, "Let a transform encrypt, such as age, or ask the provider.")
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


def examine_lock(connection: Connection, label: str, bucket: str) -> Sequence[Finding]:
    """Say whether the bucket has object lock, where one is configured."""
    try:
        answer = connection.call("get_object_lock_configuration", Bucket=bucket)
        enabled = answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"
    except Exception as error:
        if code_of(error) in ("AccessDenied", "403"):
            text = "the key may not ask whether the bucket has object lock."
            return [Finding("info", label, text, "Allow s3:GetBucketObjectLockConfiguration, or look it up yourself.")]
        if code_of(error) not in UNLOCKED | UNKNOWN:
            return [Finding("error", label, str(wrapped(error, label, "look at its object lock")))]
        enabled = False
    if not enabled:
        remedy = "Enable it on the bucket, or unset object_lock."
        return [Finding("error", label, "object_lock is set, and the bucket has no object lock.", remedy)]
    return [Finding("ok", label, "the bucket has object lock.")]


def _versioning(connection: Connection, label: str, bucket: str) -> Sequence[Finding]:
    """Say whether an overwritten or deleted object is kept: a key that may only write can still overwrite."""
    try:
        status = connection.call("get_bucket_versioning", Bucket=bucket).get("Status", "")
    except Exception:
        text = "it is not known whether the bucket keeps versions."
        return [Finding("info", label, text, "A stolen key could overwrite backups.")]
    if status == "Enabled":
        return [Finding("ok", label, "the bucket keeps versions of what is overwritten or deleted.")]
    remedy = "A stolen key could overwrite backups: switch versioning on, or use object lock."
    return [Finding("warning", label, "the bucket keeps no versions.", remedy)]


def _lifecycle(connection: Connection, label: str, bucket: str) -> Sequence[Finding]:
    """Say whether old versions ever go: prune only hides what it deletes in such a bucket."""
    try:
        rules = connection.call("get_bucket_lifecycle_configuration", Bucket=bucket).get("Rules", ())
    except Exception as error:
        if code_of(error) not in ("NoSuchLifecycleConfiguration", "404"):
            text = "it is not known whether a lifecycle rule removes old versions."
            return [Finding("info", label, text, "Without one, what prune deletes is kept and paid for.")]
        rules = ()
    if any(rule.get("Status") == "Enabled" and "NoncurrentVersionExpiration" in rule for rule in rules):
        return [Finding("ok", label, "a lifecycle rule removes old versions.")]
    text = "no lifecycle rule removes old versions: what prune deletes is kept and paid for."
    return [Finding("warning", label, text, "Add a rule with NoncurrentVersionExpiration, which waits for locks to end.")]
