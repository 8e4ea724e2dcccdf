"""How this store talks to Google: gcsfs finds the credentials and opens the session, the requests are made here.

gcsfs repeats requests by rules of its own and its writer keeps only what it thinks was sent, so neither is used. Each request is
bounded by ``io_timeout`` without progress, and repeated with jitter while the network or the server is to blame.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import attrs

from pgsnap import ConfigError, Denied, NotFound, PgsnapError, Secret, StoreError
from pgsnap.streams import RequestBody, wait_while_progressing
from pgsnap.streams import RetryPolicy as AnyRetryPolicy

__all__ = ["EMULATOR", "Connection", "Failed", "RetryPolicy", "Settings", "emulator", "is_transient", "wrapped"]

PIECE = 128 << 10
EMULATOR = "STORAGE_EMULATOR_HOST"
"""The variable by which Google's own libraries are sent to an emulator."""


class Failed(Exception):
    """An answer that is an error: its status and what the server says."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}".strip(": "))
        self.status = status
        self.reason = reason


@attrs.frozen(kw_only=True)
class Settings:
    """What a client is made from. It is hashable: equal settings share a client."""

    endpoint: str | None
    credentials: Secret | None
    anonymous: bool
    io_timeout: float


def emulator() -> str | None:
    """Return the URL of the emulator that the environment names, by Google's rules: a host without a scheme is one of HTTP."""
    given = os.environ.get(EMULATOR, "")
    if given in ("", "default"):
        return None
    return given if given.startswith(("http://", "https://")) else f"http://{given}"


@attrs.frozen
class Answer:
    """Status, headers and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON; empty if it has none."""
        document: dict[str, Any] = json.loads(self.body) if self.body.strip() else {}
        return document


class Connection:
    """A client, usable from several threads."""

    def __init__(self, settings: Settings) -> None:
        from fsspec.asyn import sync

        self._settings = settings
        given = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
        self._system = _system(settings, os.getpid(), given)
        sync(self._system.loop, self._system._set_session)
        self._base = (settings.endpoint or "https://storage.googleapis.com").rstrip("/")

    def bucket(self, bucket: str, *, upload: bool = False) -> str:
        """Return the URL of the objects of a bucket."""
        return f"{self._base}/{'upload/' if upload else ''}storage/v1/b/{quote(bucket, safe='')}/o"

    def object(self, bucket: str, key: str) -> str:
        """Return the URL of one object."""
        return f"{self.bucket(bucket)}/{quote(key, safe='')}"

    def here(self, url: str) -> str:
        """Return the URL of an upload session; with an ``endpoint`` of one's own, at that endpoint."""
        if self._settings.endpoint is None:
            return url
        own = urlsplit(self._base)
        return urlunsplit((own.scheme, own.netloc, *urlsplit(url)[2:]))

    def call(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        into: bytearray | None = None,
    ) -> Answer:
        """Make one request. With ``into`` the body is appended to it as it comes, and stays there if it breaks off.

        Raises:
            Failed: the answer is an error.
        """
        from fsspec.asyn import sync

        answer: Answer = sync(self._system.loop, self._call, method, url, dict(params or {}), dict(headers or {}), data, into)
        return answer

    async def _call(
        self, method: str, url: str, params: dict[str, str], headers: dict[str, str], data: bytes | None, into: bytearray | None
    ) -> Answer:
        body = RequestBody(data) if data else None
        if data is not None:
            headers["Content-Length"] = str(len(data))
        moved = [0.0]
        request = self._exchange(method, url, params, headers, body, into, moved)
        return await wait_while_progressing(
            request, lambda: max(moved[0], body.moved if body else 0.0), self._settings.io_timeout
        )

    async def _exchange(
        self,
        method: str,
        url: str,
        params: dict[str, str],
        headers: dict[str, str],
        body: RequestBody | None,
        into: bytearray | None,
        moved: list[float],
    ) -> Answer:
        import yarl

        signed = self._system._get_headers(headers)  # with a token, renewed if it is about to expire
        address = yarl.URL(url, encoded=True).update_query(params)
        async with self._system.session.request(
            method, address, headers=signed, data=body if body is not None else b"", allow_redirects=False
        ) as response:
            moved[0] = time.monotonic()
            received = into if into is not None and response.status < 300 else bytearray()
            async for piece in response.content.iter_chunked(PIECE):
                received += piece
                moved[0] = time.monotonic()
            if response.status >= 400 and response.status != 499:  # 499: an upload was cancelled, as asked
                raise _failed(response.status, bytes(received))
            return Answer(response.status, response.headers, b"" if received is into else bytes(received))


def _failed(status: int, body: bytes) -> Failed:
    try:
        error = json.loads(body)["error"]
        errors = error.get("errors") or [{}]
        return Failed(status, str(errors[0].get("reason", "")), str(error.get("message", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Failed(status, "", body[:200].decode("utf-8", "replace").strip())


@functools.lru_cache(maxsize=16)
def _system(settings: Settings, pid: int, given: str) -> Any:
    """Return gcsfs's file system for these settings. ``given`` is GOOGLE_APPLICATION_CREDENTIALS, so that a change is seen."""
    # The "extended" file system asks for the bucket's type by gRPC, which takes a minute where there is none; it is not used,
    # and with this it is not even imported.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import google.auth
    from gcsfs.core import GCSFileSystem

    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
    token: Any = "anon"
    if not settings.anonymous:
        text = (settings.credentials.reveal() if settings.credentials else given).strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # as an env file may keep them
            text = text[1:-1]
        try:
            load: Any = google.auth  # untyped
            if text.lstrip().startswith("{"):
                token, _ = load.load_credentials_from_dict(json.loads(text), scopes=scopes)
            elif text:
                token, _ = load.load_credentials_from_file(os.path.expanduser(text), scopes=scopes)
            else:
                token, _ = google.auth.default(scopes=scopes)
        except (google.auth.exceptions.GoogleAuthError, ValueError, OSError) as error:
            if text:
                raise ConfigError(
                    "the Google credentials cannot be used: give the path of a service account's file, or the JSON itself, "
                    f"as 'credentials' or in GOOGLE_APPLICATION_CREDENTIALS ({type(error).__name__})."
                ) from None
            raise ConfigError(
                "there are no Google credentials; set GOOGLE_APPLICATION_CREDENTIALS to the path of a service account's file."
            ) from None
    return GCSFileSystem(
        project="unused",
        access="read_write",
        token=token,
        endpoint_url=settings.endpoint,
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, PgsnapError):
        return isinstance(error, StoreError) and error.transient
    if isinstance(error, Failed):
        return error.status in (408, 429, 500, 502, 503, 504)
    if isinstance(error, OSError):
        return True
    import aiohttp
    import google.auth.exceptions

    return isinstance(error, (aiohttp.ClientError, google.auth.exceptions.TransportError))


class RetryPolicy(AnyRetryPolicy):
    """Repeats requests to Google."""

    def __init__(self, attempts: int | None = None) -> None:
        super().__init__(is_transient, attempts)


PERMISSIONS = {
    "write": "storage.objects.create (and storage.objects.delete, to replace one)",
    "read": "storage.objects.get",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
}


def wrapped(error: Exception, label: str, doing: str) -> PgsnapError:
    """Return the error as pgsnap tells it; ``doing`` begins with a verb of ``PERMISSIONS``."""
    if isinstance(error, PgsnapError):
        return error
    begin = f"{label}: cannot {doing}"
    again = " It was tried several times; try again later." if is_transient(error) else ""
    if isinstance(error, Failed):
        if error.status == 401:
            return Denied(f"{begin}: the credentials are not valid (any more); get new ones.", label)
        if error.status == 403:
            verb = doing.split()[0]
            if error.reason == "retentionPolicyNotMet":
                return Denied(f"{begin}: the bucket's retention policy forbids it still.", label)
            return Denied(f"{begin}: the account is not allowed to do that; grant {PERMISSIONS.get(verb, 'it')}.", label)
        if error.status == 404:
            if doing.split()[0] == "read":
                return NotFound(f"{begin}: it is not there.", label)
            return StoreError(f"{begin}: the bucket does not exist; create it, or correct the url.", label)
        return StoreError(f"{begin}: the server answers {str(error)[:200]}.{again}", label, is_transient(error))
    name = type(error).__name__
    if name == "RefreshError":
        return Denied(f"{begin}: Google does not accept the credentials; get new ones.", label)
    return StoreError(f"{begin}: {name}: {str(error)[:200].rstrip('.')}.{again}", label, is_transient(error))
