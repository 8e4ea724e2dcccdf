"""Google Cloud Storage as a store for pgsnap.

An object is sent in a resumable upload, whose parts are repeated by themselves and which publishes nothing before its end. It is
read in ranges, several under way. gcsfs is underneath, for the credentials and the session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit

import attrs

from pgsnap import ConfigError, Entry, Finding, PgsnapError, Run, Secret, Store, hookimpl
from pgsnap.streams import Chunks, Stream, TrackedChunks, in_flight

if TYPE_CHECKING:
    from pgsnap_gcs.connection import Connection

__all__ = ["Gcs", "pgsnap_stores"]

PART_SIZE = 16 << 20
STEP = 256 << 10
"""Google takes parts of a multiple of this."""


def _check_part_size(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < STEP or value % STEP:
        raise ConfigError(f"gcs's part_size is {value} bytes; give a multiple of 256KiB, such as 16MiB.")


def _check_in_flight(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 1 <= value <= 64:
        raise ConfigError(f"gcs's ranges_in_flight is {value}; give 1 to 64.")


def _check_timeout(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value > 0:
        raise ConfigError(f"gcs's io_timeout is {value:g}; give a number of seconds above 0.")


@attrs.frozen(kw_only=True)
class Gcs(Store):
    """A bucket of Google Cloud Storage and a folder in it: ``gs://bucket/folder``.

    Without ``credentials`` it finds them as Google's own tools do: ``GOOGLE_APPLICATION_CREDENTIALS`` (a path, or the JSON itself
    where a host has no files), gcloud's login, the machine's account. Where ``STORAGE_EMULATOR_HOST`` is set, it is used as
    Google's own libraries use it: as the ``endpoint``, without credentials unless they are given as an option.

    Args:
        credentials: The path of a service account's file, or its JSON itself.
        anonymous: Use no credentials, for an emulator.
        endpoint: The URL of an emulator or a private endpoint.
        part_size: Bytes of one part of an upload; three are held.
        ranges_in_flight: Ranges of a read under way at once.
        io_timeout: Seconds that one request may go without progress.
        storage_class: Such as ``NEARLINE``; by default the bucket's.
        kms_key: The name of a key of Cloud KMS that encrypts the objects: ``projects/…/cryptoKeys/…``; by default the bucket's.
    """

    name: ClassVar[str] = "gcs"
    schemes: ClassVar[tuple[str, ...]] = ("gs", "gcs")

    credentials: Secret | None = None
    anonymous: bool = False
    endpoint: str | None = None
    part_size: int = attrs.field(default=PART_SIZE, validator=_check_part_size, metadata={"unit": "bytes"})
    ranges_in_flight: int = attrs.field(default=4, validator=_check_in_flight)
    io_timeout: float = attrs.field(default=60.0, validator=_check_timeout, metadata={"unit": "seconds"})
    storage_class: str | None = None
    kms_key: str | None = None

    def __attrs_post_init__(self) -> None:
        parts = urlsplit(self.url)
        if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"{self.label}: the url of a bucket is gs://bucket or gs://bucket/folder.")
        if self.anonymous and self.credentials:
            raise ConfigError(f"{self.label}: give credentials or anonymous, not both.")

    @property
    def max_object(self) -> int:
        """The largest object in bytes: 5 TiB."""
        return 5 << 40

    @property
    def _bucket(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def _root(self) -> str:
        folder = unquote(urlsplit(self.url).path).strip("/")
        return f"{folder}/" if folder else ""

    def _connect(self) -> Connection:
        from pgsnap_gcs.connection import Connection, Settings, emulator

        found = None if self.endpoint else emulator()
        return Connection(
            Settings(
                endpoint=self.endpoint or found,
                credentials=self.credentials,
                anonymous=self.anonymous or (found is not None and self.credentials is None),  # as Google's libraries do
                io_timeout=self.io_timeout,
            )
        )

    def _wrapped(self, error: Exception, doing: str) -> PgsnapError:
        from pgsnap_gcs.connection import wrapped

        return wrapped(error, self.label, doing)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        """See ``Store.write``. Holds three parts."""
        from pgsnap_gcs.transfer import Upload

        source = TrackedChunks(chunks)
        try:
            upload = Upload(
                connection=self._connect(),
                label=self.label,
                bucket=self._bucket,
                key=key,
                name=f"{self._root}{key}",
                params={"kmsKeyName": self.kms_key} if self.kms_key else {},
                metadata={"storageClass": self.storage_class} if self.storage_class else {},
                part_size=self.part_size,
            )
            return upload.send(source)
        except Exception as error:
            if error is source.error:
                raise
            raise self._wrapped(error, f"write {key}") from error

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        """See ``Store.read``. Holds some ranges of 8 MiB."""
        from pgsnap_gcs.transfer import Download

        try:
            download = Download(
                connection=self._connect(),
                label=self.label,
                bucket=self._bucket,
                key=key,
                name=f"{self._root}{key}",
                ranges_in_flight=self.ranges_in_flight,
            )
            yield from download.receive(start, length)
        except Exception as error:
            raise self._wrapped(error, f"read {key}") from error

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ``Store.entries``. One request for each 1,000 objects."""
        from pgsnap_gcs.connection import RetryPolicy

        try:
            connection, policy = self._connect(), RetryPolicy()
            params = {"prefix": f"{self._root}{prefix}", "maxResults": "1000", "fields": "nextPageToken,items(name,size,updated)"}
            while True:
                page = policy(lambda: connection.call("GET", connection.bucket(self._bucket), params=params)).json
                for item in page.get("items", ()):
                    name = str(item["name"]).removeprefix(self._root)
                    if not name.endswith("/"):
                        modified = datetime.fromisoformat(str(item["updated"]).replace("Z", "+00:00")).astimezone(UTC)
                        yield Entry(name, int(item["size"]), modified)
                if not page.get("nextPageToken"):
                    return
                params["pageToken"] = str(page["nextPageToken"])
        except Exception as error:
            raise self._wrapped(error, f"list {prefix or 'it'}") from error

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        """See ``Store.delete``. Eight requests at once."""
        from pgsnap_gcs.connection import Failed, RetryPolicy

        try:
            connection = self._connect()
        except Exception as error:
            raise self._wrapped(error, "delete objects") from error

        def delete(key: str) -> str:
            url = connection.object(self._bucket, f"{self._root}{key}")
            try:
                RetryPolicy()(lambda: connection.call("DELETE", url))
            except Failed as error:
                return "" if error.status == 404 else str(self._wrapped(error, f"delete {key}"))
            except Exception as error:
                raise self._wrapped(error, f"delete {key}") from error
            return ""

        results = in_flight(delete, keys, 8)
        return {key: reason for key, reason in zip(keys, results, strict=True) if reason}

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Ask for the first page of the pipeline's list. An account that may only write is told apart from a wrong one."""
        from pgsnap_gcs.connection import EMULATOR, Failed, emulator

        findings = []
        if not self.endpoint and (found := emulator()):
            text = f"{EMULATOR} is set: its objects go to {found}, and not to Google."
            findings.append(Finding("warning", self.label, text, f"If that is not meant, unset {EMULATOR}."))
        try:
            connection = self._connect()
            params = {"prefix": f"{self._root}{run.pipeline}/", "maxResults": "1"}
            connection.call("GET", connection.bucket(self._bucket), params=params)
        except Exception as error:
            if isinstance(error, Failed) and error.status == 403:
                remedy = "If that is meant, list, copy, verify and prune need a second account."
                return [*findings, Finding("info", self.label, "the account may not list; it can at most write.", remedy)]
            text = str(self._wrapped(error, "list it"))
            return [*findings, Finding("error", self.label, text, "Check the URL, the credentials and the network.")]
        return [*findings, Finding("ok", self.label, "it can be listed.")]


@hookimpl
def pgsnap_stores() -> Sequence[type[Store]]:
    """Offer the store to pgsnap."""
    return [Gcs]
