"""How this store talks to its server: one client for each set of credentials, one request at a time, each bounded and repeatable.

s3fs opens the session, finds the credentials and runs the event loop; the requests are made on its client directly, because
s3fs repeats them by rules of its own and its file objects send one part after the other.

A request is given up when it makes no progress for ``io_timeout`` seconds, not when it is slow: a part goes out in pieces of
128 KiB, and each that the system takes counts. What can be repeated (one request) is repeated with jitter while the network or
the server is to blame; ``Patience`` is told when nobody wants the result any more.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import attrs

from pgsnap import ConfigError, Secret
from pgsnap.streams import CHUNK
from pgsnap_s3.failures import is_transient

__all__ = ["Connection", "Patience", "Settings"]

R = TypeVar("R")

ATTEMPTS = 6
JITTER = 0.3
"""Seconds that the first wait lasts at most; each later one at most twice the one before, and 15."""
PIECE = 128 << 10


@attrs.frozen(kw_only=True)
class Settings:
    """What a client is made from. It is hashable: equal settings share a client."""

    endpoint: str | None
    region: str | None
    path_style: bool
    access_key: Secret | None
    secret_key: Secret | None
    session_token: Secret | None
    profile: str | None
    io_timeout: float


class Patience:
    """Repeats single requests until they succeed, fail for good, or ``cancel`` is called."""

    def __init__(self, attempts: int | None = None) -> None:
        self._attempts = attempts or ATTEMPTS
        self._cancelled = threading.Event()
        self.repeated = False
        """Whether any request was sent more than once."""

    def cancel(self) -> None:
        """Nobody wants the results any more: start no further attempt."""
        self._cancelled.set()

    def __call__(self, request: Callable[[], R]) -> R:
        """Return what ``request`` returns; raise what its last attempt raised."""
        import tenacity

        def attempt() -> R:
            try:
                return request()
            except BaseException as error:
                self.repeated = self.repeated or is_transient(error)
                raise

        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_when_event_set(self._cancelled),
            wait=tenacity.wait_random_exponential(multiplier=JITTER, max=15),
            sleep=tenacity.sleep_using_event(self._cancelled),
            retry=tenacity.retry_if_exception(is_transient),
            reraise=True,
        )(attempt)


class _Body:
    """The bytes of one request, sent in small pieces without a copy and without a thread; it knows when it last moved.

    botocore reads and rewinds it to sign it, aiohttp iterates over it to send it.
    """

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self._at = 0
        self.moved = time.monotonic()

    def __len__(self) -> int:
        return len(self._view)

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        piece = bytes(self._view[self._at : end])
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, len(self._view))[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for start in range(0, len(self._view), PIECE):
            self.moved = time.monotonic()
            yield self._view[start : start + PIECE]
        self.moved = time.monotonic()


class Connection:
    """A client of one server, usable from several threads."""

    def __init__(self, settings: Settings) -> None:
        from fsspec.asyn import sync

        self._settings = settings
        self._system = _system(settings, os.getpid(), tuple(sorted(i for i in os.environ.items() if i[0].startswith("AWS_"))))
        try:
            self._client = sync(self._system.loop, self._system.set_session)
        except Exception as error:
            if type(error).__name__ == "ProfileNotFound":
                raise ConfigError(f"the AWS profile {settings.profile!r} is not in ~/.aws; correct 'profile'.") from None
            raise

    def call(self, method: str, body: bytes | None = None, patience: float = 1.0, **arguments: Any) -> dict[str, Any]:
        """Make one request and return the answer. ``patience`` times ``io_timeout`` without progress end it."""
        from fsspec.asyn import sync

        answer: dict[str, Any] = sync(self._system.loop, self._call, method, body, patience, arguments)
        return answer

    async def _call(self, method: str, data: bytes | None, patience: float, arguments: dict[str, Any]) -> dict[str, Any]:
        body = None if data is None else _Body(data)
        if body is not None:
            arguments["Body"] = body
        began = time.monotonic()
        limit = self._settings.io_timeout * patience
        task = asyncio.ensure_future(getattr(self._client, method)(**arguments))
        try:
            while not (await asyncio.wait({task}, timeout=min(1.0, limit / 4)))[0]:
                if time.monotonic() - (began if body is None else body.moved) > limit:
                    raise TimeoutError(f"no progress for {limit:g} s")
            answer: dict[str, Any] = task.result()
            return answer
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=1.0)

    def fetch(self, into: bytearray, length: int, **arguments: Any) -> dict[str, Any]:
        """Get an object (``arguments`` as for ``get_object``) and append at most ``length`` bytes of it to ``into`` as they come.

        What has arrived before a failure stays in ``into``.
        """
        from fsspec.asyn import sync

        answer: dict[str, Any] = sync(self._system.loop, self._fetch, into, length, arguments)
        return answer

    async def _fetch(self, into: bytearray, length: int, arguments: dict[str, Any]) -> dict[str, Any]:
        answer = await self._call("get_object", None, 1.0, arguments)
        stream = answer.pop("Body")
        limit = self._settings.io_timeout
        try:
            async with asyncio.timeout(limit) as timeout:
                while length and (piece := await stream.read(min(length, CHUNK))):  # what has come, up to that
                    into += piece
                    length -= len(piece)
                    timeout.reschedule(asyncio.get_running_loop().time() + limit)
        finally:
            stream.close()
        return answer


@functools.lru_cache(maxsize=16)
def _system(settings: Settings, pid: int, environment: tuple[tuple[str, str], ...]) -> Any:
    """Return s3fs's file system for these settings; its own cache would make one for every thread, and keep them all."""
    import s3fs

    def plain(secret: Secret | None) -> str | None:
        return secret.reveal() if secret else None

    return s3fs.S3FileSystem(
        key=plain(settings.access_key),
        secret=plain(settings.secret_key),
        token=plain(settings.session_token),
        endpoint_url=settings.endpoint,
        client_kwargs={"region_name": settings.region} if settings.region else {},
        config_kwargs={
            "connect_timeout": min(20.0, settings.io_timeout),
            "read_timeout": settings.io_timeout,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 64,
            # Every part carries its MD5, which all of them check. Trailing checksums are unknown to many look-alikes.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path"} if settings.path_style else {},
        },
        skip_instance_cache=True,
        use_listings_cache=False,
        **({"profile": settings.profile} if settings.profile else {}),
    )
