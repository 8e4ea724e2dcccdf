"""Amazon S3, and the many services that speak like it, as a store for pgsnap.

An object is sent in parts of one size, several of them under way, each with its own digest and its own repetitions; it is
published by one last request or aborted. It is read in ranges, several under way, each resumed where it was cut off. s3fs is
underneath, for the session, the credentials and the event loop.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

import attrs

from pgsnap import ConfigError, Entry, Finding, PgsnapError, Run, Secret, Store, StoreError, hookimpl
from pgsnap.streams import Chunks, Stream, TrackedChunks, in_flight
from pgsnap_s3.providers import PROVIDERS, Provider

if TYPE_CHECKING:
    from pgsnap_s3.connection import Connection

__all__ = ["S3", "pgsnap_stores"]

PART_SIZE = 16 << 20
LEAST_PART = 5 << 20
BULK = 1_000


def _check_provider(instance: object, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and value not in PROVIDERS:
        raise ConfigError(f"s3's provider is {value!r}; choose from {', '.join(PROVIDERS)}.")


def _check_part_size(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not LEAST_PART <= value <= 5 << 30:
        raise ConfigError(f"s3's part_size is {value} bytes; S3 takes parts of 5MiB to 5GiB.")


def _check_in_flight(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 1 <= value <= 64:
        raise ConfigError(f"s3's parts_in_flight is {value}; give 1 to 64.")


def _check_timeout(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value > 0:
        raise ConfigError(f"s3's io_timeout is {value:g}; give a number of seconds above 0.")


def _check_days(instance: object, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"s3's object_lock_days is {value}; give 1 or more.")


@attrs.frozen(kw_only=True)
class S3(Store):
    """A bucket of Amazon S3 or of a service that speaks like it, and a folder in it: ``s3://bucket/folder``.

    Without keys of its own it finds credentials as every AWS tool does: variables, ``~/.aws``, the machine's role.

    Args:
        provider: Whose service it is: sets endpoint rules and limits. By default aws, or with an ``endpoint`` other.
        endpoint: The URL of the service, such as ``https://s3.example.org``.
        region: The region to sign for.
        access_key: With ``secret_key``: the credentials.
        secret_key: Belongs to ``access_key``.
        session_token: Belongs to temporary credentials.
        profile: A profile of ``~/.aws`` instead.
        path_style: The bucket stands in the path and not in the host name; by default as the provider wants it.
        part_size: Bytes of every part but an object's last.
        parts_in_flight: Parts, and ranges of a read, under way at once; three more parts are held in memory.
        io_timeout: Seconds that one request may go without progress.
        storage_class: Such as ``STANDARD_IA``; by default the bucket's.
        encryption: Encryption by the server, ``AES256`` or ``aws:kms``; by default the bucket's.
        kms_key: The key's id, with ``aws:kms``.
        object_lock: Lock every object: ``governance`` or ``compliance``. The bucket must have object lock enabled.
        object_lock_days: For how many days.
    """

    name: ClassVar[str] = "s3"
    schemes: ClassVar[tuple[str, ...]] = ("s3", "s3a")

    provider: str | None = attrs.field(default=None, validator=_check_provider)
    endpoint: str | None = None
    region: str | None = None
    access_key: Secret | None = None
    secret_key: Secret | None = None
    session_token: Secret | None = None
    profile: str | None = None
    path_style: bool | None = None
    part_size: int = attrs.field(default=PART_SIZE, validator=_check_part_size, metadata={"unit": "bytes"})
    parts_in_flight: int = attrs.field(default=4, validator=_check_in_flight)
    io_timeout: float = attrs.field(default=60.0, validator=_check_timeout, metadata={"unit": "seconds"})
    storage_class: str | None = None
    encryption: Literal["AES256", "aws:kms"] | None = None
    kms_key: str | None = None
    object_lock: Literal["governance", "compliance"] | None = None
    object_lock_days: int | None = attrs.field(default=None, validator=_check_days)

    def __attrs_post_init__(self) -> None:
        parts = urlsplit(self.url)
        if "@" in parts.netloc:
            raise ConfigError(f"{self.label}: keys do not belong in the url; give access_key and secret_key, or the environment.")
        if not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"{self.label}: the url of a bucket is s3://bucket or s3://bucket/folder.")
        if (self.access_key is None) != (self.secret_key is None):
            raise ConfigError(f"{self.label}: give access_key and secret_key, both or neither.")
        if self.profile and self.access_key:
            raise ConfigError(f"{self.label}: give a profile or access_key, not both.")
        if self.kms_key and self.encryption != "aws:kms":
            raise ConfigError(f"{self.label}: kms_key is used with encryption = 'aws:kms' only; set that too.")
        if (self.object_lock is None) != (self.object_lock_days is None):
            raise ConfigError(f"{self.label}: give object_lock and object_lock_days, both or neither.")
        if self.provider in ("r2", "minio", "ceph", "other") and not self.endpoint:
            raise ConfigError(f"{self.label}: the provider {self.provider} needs an endpoint; give the service's URL.")
        if "{region}" in self._preset.endpoint and not (self.endpoint or self.region or self._preset.region):
            raise ConfigError(f"{self.label}: the provider {self.provider} needs a region.")
        if self.endpoint is not None and not re.match(r"https?://[^/@]+(/|$)", self.endpoint):
            raise ConfigError(f"{self.label}: endpoint wants a URL such as https://s3.example.org, without a user.")

    @property
    def _preset(self) -> Provider:
        return PROVIDERS[self.provider or ("other" if self.endpoint else "aws")]

    @property
    def max_object(self) -> int:
        """The largest object in bytes: as many parts as the provider takes, or its own limit."""
        return min(self._preset.max_object, self._preset.max_parts * self.part_size)

    @property
    def _bucket(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def _root(self) -> str:
        folder = unquote(urlsplit(self.url).path).strip("/")
        return f"{folder}/" if folder else ""

    def _place(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": f"{self._root}{key}"}

    def _connect(self) -> Connection:
        from pgsnap_s3.connection import Connection, Settings

        preset = self._preset
        region = self.region or preset.region
        return Connection(
            Settings(
                endpoint=self.endpoint or preset.endpoint.format(region=region) or None,
                region=region,
                path_style=preset.path_style if self.path_style is None else self.path_style,
                access_key=self.access_key,
                secret_key=self.secret_key,
                session_token=self.session_token,
                profile=self.profile,
                io_timeout=self.io_timeout,
            )
        )

    def _wrapped(self, error: Exception, doing: str) -> PgsnapError:
        from pgsnap_s3.failures import wrapped

        return wrapped(error, self.label, doing, temporary=self._is_temporary, locking=self.object_lock is not None)

    @property
    def _is_temporary(self) -> bool:
        return bool(self.session_token) or (self.access_key is None and bool(os.environ.get("AWS_SESSION_TOKEN")))

    @property
    def _options(self) -> dict[str, Any]:
        given = {"StorageClass": self.storage_class, "ServerSideEncryption": self.encryption, "SSEKMSKeyId": self.kms_key}
        return {name: value for name, value in given.items() if value is not None}

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        """See ``Store.write``. Holds about ``parts_in_flight`` + 3 parts."""
        from pgsnap_s3.upload import Upload

        source = TrackedChunks(chunks)
        locking = self.object_lock is not None and not self.is_passing(key)
        began = datetime.now(UTC).replace(microsecond=0)
        try:
            upload = Upload(
                connection=self._connect(),
                label=self.label,
                key=key,
                place=self._place(key),
                options={**self._options, "ObjectLockMode": str(self.object_lock).upper()} if locking else self._options,
                lock_days=self.object_lock_days if locking else None,
                part_size=self.part_size,
                parts_in_flight=self.parts_in_flight,
                max_parts=self._preset.max_parts,
                md5_etags=self._preset.md5_etags and self.encryption != "aws:kms",
            )
            size = upload.send(source)
        except Exception as error:
            if error is source.error:
                raise
            raise self._wrapped(error, f"write {key}") from error
        if locking and self.lock_period and size > self.part_size:
            self._lock_parts(key, began + self.lock_period)
        return size

    def _lock_parts(self, key: str, until: datetime) -> None:
        """Lock an object that was sent in parts: Ceph forgets what was asked for when it was begun (16.2), and says nothing."""
        if refused := self.extend_lock([key], until):
            with contextlib.suppress(PgsnapError):
                self.delete([key])
            raise StoreError(f"{self.label}: {key} was stored and could not be locked: {refused[key]}", self.label)

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        """See ``Store.read``. Holds some ranges of 4 MiB."""
        from pgsnap_s3.download import Download

        try:
            download = Download(
                connection=self._connect(),
                label=self.label,
                key=key,
                place=self._place(key),
                ranges_in_flight=self.parts_in_flight,
            )
            yield from download.receive(start, length)
        except Exception as error:
            raise self._wrapped(error, f"read {key}") from error

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ``Store.entries``. One request for each 1,000 objects."""
        try:
            for page in self._pages("list_objects_v2", "ContinuationToken", "NextContinuationToken", prefix):
                for item in page.get("Contents", ()):
                    key = str(item["Key"]).removeprefix(self._root)
                    if not key.endswith("/"):  # what consoles make to show an empty folder
                        yield Entry(key, int(item["Size"]), item["LastModified"])
        except Exception as error:
            raise self._wrapped(error, f"list {prefix or 'it'}") from error

    def _pages(self, method: str, marker: str, following: str, prefix: str) -> Iterator[dict[str, Any]]:
        from pgsnap_s3.failures import RetryPolicy

        connection, policy = self._connect(), RetryPolicy()
        arguments: dict[str, Any] = {"Bucket": self._bucket, "Prefix": f"{self._root}{prefix}"}
        while True:
            page = policy(lambda: connection.call(method, **arguments))
            yield page
            if not page.get("IsTruncated"):
                return
            if not page.get(following) or arguments.get(marker) == page[following]:
                text = f"{self.label}: the server says that its list goes on, and not where; it cannot be used."
                raise StoreError(text, self.label)
            arguments[marker] = page[following]
            if marker == "KeyMarker":
                arguments["UploadIdMarker"] = page.get("NextUploadIdMarker", "")

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """See ``Store.delete``. Up to 1,000 objects by one request, where the provider takes that."""
        from pgsnap_s3.failures import code_of, status_of

        refused: dict[str, str] = {}
        try:
            connection = self._connect()
            for start in range(0, len(keys), BULK):
                some = keys[start : start + BULK]
                if self._preset.bulk_delete and len(some) > 1:
                    try:
                        refused.update(self._delete_in_bulk(connection, some))
                        continue
                    except Exception as error:
                        if code_of(error) == "AccessDenied":  # of all of them at once, as Ceph does
                            refused.update(dict.fromkeys(some, str(self._wrapped(error, "delete them"))))
                            continue
                        unknown = {"MalformedXML", "MissingContentMD5", "InvalidRequest", "NotImplemented", "MethodNotAllowed"}
                        if code_of(error) not in unknown and status_of(error) != 501:
                            raise
                refused.update(self._delete_one_by_one(connection, some))
        except Exception as error:
            raise self._wrapped(error, "delete objects") from error
        return refused

    def _delete_in_bulk(self, connection: Connection, keys: Sequence[str]) -> dict[str, str]:
        from pgsnap_s3.failures import RetryPolicy

        objects = [{"Key": f"{self._root}{key}"} for key in keys]
        answer = RetryPolicy()(
            lambda: connection.call("delete_objects", Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
        )
        return {
            str(item["Key"]).removeprefix(self._root): f"{item.get('Code', '')}: {item.get('Message', '')}".strip(": ")
            for item in answer.get("Errors", ())
            if item.get("Code") != "NoSuchKey"
        }

    def _delete_one_by_one(self, connection: Connection, keys: Sequence[str]) -> dict[str, str]:
        from pgsnap_s3.failures import RetryPolicy, code_of

        def delete(key: str) -> str:
            try:
                RetryPolicy()(lambda: connection.call("delete_object", **self._place(key)))
            except Exception as error:
                if code_of(error) in ("NoSuchKey", "404"):
                    return ""
                if not code_of(error):  # no answer at all: the other keys would fare alike
                    raise
                return str(self._wrapped(error, f"delete {key}"))
            return ""

        results = in_flight(delete, keys, 8)
        return {key: reason for key, reason in zip(keys, results, strict=True) if reason}

    @property
    def lock_period(self) -> timedelta | None:
        """``object_lock_days``."""
        return None if self.object_lock_days is None else timedelta(days=self.object_lock_days)

    def locked_until(self, key: str) -> datetime | None:
        """See ``Store.locked_until``. One request; none and None without ``object_lock``."""
        from pgsnap_s3.locks import retention

        if self.object_lock is None:
            return None
        try:
            found = retention(self._connect(), self._place(key))
        except Exception as error:
            raise self._wrapped(error, f"lock {key}") from error
        return found[1] if found else None

    def extend_lock(self, keys: Sequence[str], until: datetime) -> Mapping[str, str]:
        """See ``Store.extend_lock``. Two requests for each object; governance stays governance, and compliance compliance."""
        from pgsnap_s3.failures import code_of
        from pgsnap_s3.locks import lock

        if self.object_lock is None:
            return {}
        connection, mode = self._connect(), self.object_lock.upper()

        def extend(key: str) -> str:
            try:
                lock(connection, self._place(key), mode, until)
            except Exception as error:
                wrapped = self._wrapped(error, f"lock {key}")
                if not code_of(error):  # no answer at all: the other keys would fare alike
                    raise wrapped from error
                return str(wrapped)
            return ""

        results = in_flight(extend, keys, 8)
        return {key: reason for key, reason in zip(keys, results, strict=True) if reason}

    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        """Abort multipart uploads below ``prefix`` that were begun before ``before``; return their keys."""
        from pgsnap_s3.failures import RetryPolicy, code_of

        removed = []
        try:
            connection = self._connect()
            for page in self._pages("list_multipart_uploads", "KeyMarker", "NextKeyMarker", prefix):
                for item in page.get("Uploads", ()):
                    key = str(item["Key"])
                    # Servers differ in whether they heed the prefix here.
                    if not key.startswith(f"{self._root}{prefix}") or item["Initiated"] >= before:
                        continue
                    place = {"Bucket": self._bucket, "Key": key, "UploadId": item["UploadId"]}
                    try:
                        RetryPolicy()(functools.partial(connection.call, "abort_multipart_upload", **place))
                    except Exception as error:
                        if code_of(error) != "NoSuchUpload":
                            raise
                    removed.append(key.removeprefix(self._root))
        except Exception as error:
            if code_of(error) == "NoSuchUpload":  # how some servers say that there are none
                return removed
            raise self._wrapped(error, f"clean up {prefix or 'it'}") from error
        return removed

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Ask for the first page of the pipeline's list, and for the bucket's object lock if one is configured.

        A key that may only write is told apart from a wrong one.
        """
        from pgsnap_s3.examination import examine_lock
        from pgsnap_s3.failures import code_of

        prefix = f"{self._root}{run.pipeline}/"
        connection = self._connect()
        locks = examine_lock(connection, self.label, self._bucket) if self.object_lock else []
        wrong = [finding for finding in locks if finding.level == "error"]
        try:
            connection.call("list_objects_v2", Bucket=self._bucket, Prefix=prefix, MaxKeys=1)
        except Exception as error:
            text = str(self._wrapped(error, "list it"))
            if code_of(error) == "AccessDenied":
                remedy = "If that is meant, list, copy, verify and prune need a second key; 'pgsnap doctor --deep' tries it out."
                return [Finding("info", self.label, "the key may not list; it can at most write.", remedy), *wrong]
            return [Finding("error", self.label, text, "Check the URL, the credentials and the network.")]
        return wrong or [Finding("ok", self.label, "it can be listed.")]

    def examine(self, run: Run) -> Sequence[Finding]:
        """Begin and abort a multipart upload, look for those left behind, at encryption, versions and the lock."""
        from pgsnap_s3.examination import examine

        prefix = f"{self._root}{run.pipeline}/"
        return examine(self._connect(), self.label, self._bucket, prefix, self._options, self.object_lock is not None)


@hookimpl
def pgsnap_stores() -> Sequence[type[Store]]:
    """Offer the store to pgsnap."""
    return [S3]
