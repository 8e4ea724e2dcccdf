"""Object lock: until when an object is locked, and locking it for longer.

A lock is of one version of an object. Whoever deletes the object by its name, as pgsnap does, only hides it; the version stays
until its lock has ended, and a lifecycle rule of the bucket removes it then.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pgsnap_s3.connection import Connection
from pgsnap_s3.failures import RetryPolicy, code_of

__all__ = ["UNLOCKED", "lock", "retention"]

UNLOCKED = {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"}
"""How servers say that an object, or a bucket, has no lock."""


def retention(connection: Connection, place: Mapping[str, Any]) -> tuple[str, datetime] | None:
    """Return an object's mode (``GOVERNANCE`` or ``COMPLIANCE``) and when its lock ends, or None: it has none."""
    try:
        answer = RetryPolicy()(lambda: connection.call("get_object_retention", **place))
    except Exception as error:
        if code_of(error) in UNLOCKED:
            return None
        raise
    found = answer.get("Retention", {})
    return (str(found["Mode"]), found["RetainUntilDate"]) if found.get("Mode") else None


def lock(connection: Connection, place: Mapping[str, Any], mode: str, until: datetime) -> None:
    """Lock an object until then, in its own mode if it has one; one that is locked for as long already is left alone.

    It is looked at first, although servers must refuse what shortens a lock: a mode must not change either. For a key that may
    lock and not look, the server's refusal must do.
    """
    try:
        found = retention(connection, place)
    except Exception as error:
        if code_of(error) != "AccessDenied":
            raise
        found = None
    if found is not None:
        mode = found[0]
        if found[1] >= until:
            return
    wanted = {"Mode": mode, "RetainUntilDate": until}
    RetryPolicy()(lambda: connection.call("put_object_retention", Retention=wanted, **place))
