"""How this store talks to its server: one client for each set of credentials, one request at a time, each bounded and repeatable.

s3fs opens the session, finds the credentials and runs the event loop; the requests are made on its client directly, because
s3fs repeats them by rules of its own and its file objects send one part after the other.

A request is given up when it makes no progress for ``io_timeout`` seconds, not when it is slow: a part goes out in pieces of
128 KiB, and each that the system takes counts.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from pgsnap import ConfigError, Secret
from pgsnap.streams import CHUNK, RequestBody, wait_while_progressing

__all__ = ["Connection", "Settings"]


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

    def call(self, method: str, body: bytes | None = None, stretch: float = 1.0, **arguments: Any) -> dict[str, Any]:
        """Make one request and return the answer. ``stretch`` times ``io_timeout`` without progress end it."""
        from fsspec.asyn import sync

        answer: dict[str, Any] = sync(self._system.loop, self._call, method, body, stretch, arguments)
        return answer

    async def _call(self, method: str, data: bytes | None, stretch: float, arguments: dict[str, Any]) -> dict[str, Any]:
        body = None if data is None else RequestBody(data)
        if body is not None:
            arguments["Body"] = body
        limit = self._settings.io_timeout * stretch
        request = getattr(self._client, method)(**arguments)
        answer: dict[str, Any] = await wait_while_progressing(request, lambda: body.moved if body else 0.0, limit)
        return answer

    def fetch(self, into: bytearray, length: int, check: Callable[[Mapping[str, Any]], object], **arguments: Any) -> None:
        """Get an object (``arguments`` as for ``get_object``) and append at most ``length`` bytes of it to ``into`` as they come.

        ``check`` is given the head of the answer before anything is appended, and may raise. What has arrived before a failure
        stays in ``into``.
        """
        from fsspec.asyn import sync

        sync(self._system.loop, self._fetch, into, length, check, arguments)

    async def _fetch(
        self, into: bytearray, length: int, check: Callable[[Mapping[str, Any]], object], arguments: dict[str, Any]
    ) -> None:
        answer = await self._call("get_object", None, 1.0, arguments)
        stream = answer.pop("Body")
        limit = self._settings.io_timeout
        try:
            check(answer)
            async with asyncio.timeout(limit) as timeout:
                while length and (piece := await stream.read(min(length, CHUNK))):  # what has come, up to that
                    into += piece
                    length -= len(piece)
                    timeout.reschedule(asyncio.get_running_loop().time() + limit)
        finally:
            stream.close()


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
