"""What went wrong, in a sentence: the answers of S3 servers and the errors of the network, told apart by what helps.

No text of a server is repeated for the well-known codes, and no header or key ever.
"""

from __future__ import annotations

import re

from pgsnap import ConfigError, Denied, NotFound, PgsnapError, StoreError
from pgsnap.streams import RetryPolicy as AnyRetryPolicy

__all__ = ["RetryPolicy", "code_of", "is_transient", "status_of", "wrapped"]

TRANSIENT = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
DENIED = {
    "AccessDenied": "the key is not allowed to do that; allow {permission} on this bucket, or use another key.",
    "AccountProblem": "the provider has a problem with the account; ask it.",
    "AllAccessDisabled": "the provider has disabled all access to the bucket; ask it.",
    "ExpiredToken": "the session token has expired; get a new one.",
    "ExpiredTokenException": "the session token has expired; get a new one.",
    "InvalidAccessKeyId": "the server does not know the access key; check access_key, or AWS_ACCESS_KEY_ID.",
    "InvalidToken": "the session token is not valid; get a new one, or unset AWS_SESSION_TOKEN.",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check secret_key, or AWS_SECRET_ACCESS_KEY.",
    "TokenRefreshRequired": "the session token has expired; get a new one.",
    "UnauthorizedAccess": "the server wants credentials; give access_key and secret_key.",
}
LASTING = {
    "NoSuchBucket": "the bucket does not exist; create it, or correct the url.",
    "InvalidBucketName": "this is no name for a bucket; correct the url.",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set region.",
    "IllegalLocationConstraintException": "the bucket is in another region; set region.",
    "PermanentRedirect": "the bucket is in another region or at another endpoint; set region or endpoint.",
    "RequestTimeTooSkewed": "the clock of this host differs too much from the store's; set it by NTP.",
    "EntityTooLarge": "the server takes no object or part that large; lower part_size, or choose the provider's preset.",
    "EntityTooSmall": "the server wants larger parts; raise part_size.",
    "QuotaExceeded": "the quota is used up; raise it, or keep fewer backups there.",
    "InsufficientStorage": "there is no room left; make some, or keep fewer backups there.",
    "XMinioStorageFull": "there is no room left; make some, or keep fewer backups there.",
    "KMS.NotFoundException": "the server does not know the kms_key; correct it.",
    "KMS.DisabledException": "the kms_key is disabled; enable it, or name another.",
    "InvalidStorageClass": "the server does not know this storage_class; correct it.",
    "InvalidObjectState": "the object is in an archive class and must be restored by the provider before it can be read.",
    "ObjectLockConfigurationNotFoundError": (
        "the server takes no lock for it; enable object lock on the bucket, or unset object_lock."
    ),
    "MethodNotAllowed": "the server does not allow that here; is the url that of a bucket?",
}
PERMISSIONS = {
    "write": "s3:PutObject (and s3:AbortMultipartUpload)",
    "finish": "s3:PutObject",
    "read": "s3:GetObject",
    "list": "s3:ListBucket",
    "delete": "s3:DeleteObject",
    "lock": "s3:PutObjectRetention and s3:GetObjectRetention",
    "clean": "s3:ListBucketMultipartUploads and s3:AbortMultipartUpload",
}


def code_of(error: BaseException) -> str:
    """Return the server's code, such as ``NoSuchKey``; a HEAD has only a status (``404``); empty: it was no answer."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", "")) or str(status_of(error))


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an answer that is an error, or 0."""
    response = getattr(error, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the network or the server is to blame, not what was asked."""
    if isinstance(error, PgsnapError):
        return isinstance(error, StoreError) and error.transient
    code, status = code_of(error), status_of(error)
    if code:
        return code in TRANSIENT or (status >= 500 and status != 501) or status in (408, 429)
    if isinstance(error, (TimeoutError, OSError)):
        return True
    import aiohttp
    from botocore import exceptions, parsers

    lasting = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.ParamValidationError,
        exceptions.SSLError,
    )
    passing = (exceptions.HTTPClientError, exceptions.ConnectionError, parsers.ResponseParserError, aiohttp.ClientError)
    return isinstance(error, passing) and not isinstance(error, lasting)


class RetryPolicy(AnyRetryPolicy):
    """Repeats requests to S3."""

    def __init__(self, attempts: int | None = None) -> None:
        super().__init__(is_transient, attempts)


def wrapped(error: Exception, label: str, doing: str, *, temporary: bool = False, locking: bool = False) -> PgsnapError:
    """Return the error as pgsnap tells it.

    Args:
        doing: What could not be done; it begins with a verb of ``PERMISSIONS``.
        temporary: The credentials have a session token. Some servers say only that access is denied when it has expired.
        locking: The request asked for a lock. Some servers say only that it is invalid where the bucket has no object lock.
    """
    if isinstance(error, PgsnapError):
        return error
    code, status = code_of(error), status_of(error)
    begin = f"{label}: cannot {doing}"
    response = getattr(error, "response", None)
    message = str(response.get("Error", {}).get("Message") or "")[:200] if isinstance(response, dict) else ""
    if code == "InvalidAccessKeyId" and "kms" in message.lower():  # Ceph has no other word for a key that is not there
        code = "KMS.NotFoundException"
    if code == "InvalidRequest" and locking:
        code = "ObjectLockConfigurationNotFoundError"
    if code in LASTING:
        return StoreError(f"{begin}: {LASTING[code]}", label)
    if code in DENIED or status in (401, 403):
        verb = doing.split()[0]
        permission = PERMISSIONS.get(verb, "it") + (" and s3:PutObjectRetention" if locking and verb == "write" else "")
        text = DENIED.get(code, DENIED["AccessDenied"]).format(permission=permission)
        if temporary and code not in DENIED.keys() - {"AccessDenied"}:
            text = f"the session token may have expired; get a new one. If it is valid, {text}"
        return Denied(f"{begin}: {text}", label)
    if code in ("NoSuchKey", "404", "NotFound"):
        return NotFound(f"{begin}: it is not there.", label)
    transient = is_transient(error)
    again = " It was tried several times; try again later." if transient else ""
    if code:
        return StoreError(
            f"{begin}: the server answers {status} {code}{': ' + message if message else ''}.{again}", label, transient
        )
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return Denied(
            f"{begin}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or access_key and secret_key.",
            label,
        )
    if name == "ParamValidationError":
        return ConfigError(f"{begin}: the url or an option is not what S3 allows: {' '.join(str(error).split())[:200]}")
    reason = re.sub(r"\?[^\s\"']*", "", str(error) or str(error.__cause__ or ""))[:300].rstrip(".")
    return StoreError(f"{begin}: {name}: {reason}.{again}", label, transient)
