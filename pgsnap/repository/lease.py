"""One at a time in a store: a lease that needs no conditional writes, since stores differ in what exclusive creation means.

    put <pipeline>/leases/<random>.json -> list -> go on only if no other live one is seen, else delete one's own and try again

Whoever lists after the other has written sees it. So both may yield, and wait a random moment; never do both go on. A lease is
refreshed while it is used and dead after ``TTL`` seconds without, by the store's own clock: the one that has just been written
says what time it is there. A holder that was killed blocks for no longer. Prune and copy stay safe without it (a backup is
deleted manifest first and written manifest last); it saves them from doing each other's work.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.components.values import Entry
from pgsnap.errors import BusyError, StoreError
from pgsnap.streams.process import watch

__all__ = ["TTL", "Lease", "lease"]

TTL = 120.0
"""Seconds after which a lease that was not refreshed is dead."""
TRIES = 4
"""How often a lease is tried for before its holder is reported."""
_MAX = 4096


@attrs.frozen
class Lease:
    """A lease that is held: its key, and how far the store's clock is ahead of ours (None: the store tells no times)."""

    key: str
    skew: timedelta | None


@contextlib.contextmanager
def lease(store: Store, pipeline: str, purpose: str, run: Run, *, ttl: float = TTL, pause: float = 1.0) -> Iterator[Lease]:
    """Hold the store's lease of a pipeline while the context lasts.

    Args:
        purpose: What for, to be told to others who want it: ``prune`` or ``copy``.
        ttl: Seconds without a refresh after which it is dead.
        pause: Seconds that are waited at most before the first new try; then twice as many, and so on.

    Raises:
        BusyError: somebody else holds it; the message says who.
        StoreError: the store cannot be written or listed.
    """
    key = f"{pipeline}/leases/{secrets.token_hex(8)}.json"
    try:
        skew = _acquire(store, pipeline, key, purpose, run, ttl, pause)
        with watch(lambda: _refresh(store, key, purpose, run), ttl / 4, name="lease"):
            yield Lease(key, skew)
    finally:
        with contextlib.suppress(StoreError):  # left behind, it dies of itself
            store.delete([key])


def _acquire(store: Store, pipeline: str, key: str, purpose: str, run: Run, ttl: float, pause: float) -> timedelta | None:
    other = None
    for number in range(TRIES):
        run.check()
        before = datetime.now(UTC)
        store.write(key, (_text(purpose, run),))
        found = list(store.entries(f"{pipeline}/leases/"))
        mine = next((entry for entry in found if entry.key == key), None)
        if mine is None:
            raise StoreError(f"{store.label}: the lease {key} was written and is not listed; listings there come too late.")
        others = [entry for entry in found if entry.key != key]
        other = next((entry for entry in others if _lives(store, entry, mine, ttl)), None)
        if other is None:
            store.delete([entry.key for entry in others])  # dead ones
            return mine.modified - before if _told(mine) else None
        store.delete([key])
        if number + 1 < TRIES:
            time.sleep(random.uniform(0.1, 1) * pause * 2**number)
    assert other is not None
    raise BusyError(
        f"{store.label}: {_holder(store, other)} holds the lease of {pipeline!r}; wait until it has ended. "
        f"Should it be dead, its lease ends by itself {ttl:g} s after its last refresh."
    )


def _told(entry: Entry) -> bool:
    """Return whether the store knows when an object was written; a store that does not says 1970."""
    return entry.modified.timestamp() > 0


def _lives(store: Store, other: Entry, mine: Entry, ttl: float) -> bool:
    if _told(mine):
        return mine.modified - other.modified < timedelta(seconds=ttl)
    try:
        refreshed = datetime.fromisoformat(str(_content(store, other).get("refreshed")))
        return datetime.now(UTC) - refreshed < timedelta(seconds=ttl)
    except (ValueError, TypeError):
        return True


def _refresh(store: Store, key: str, purpose: str, run: Run) -> None:
    try:
        store.write(key, (_text(purpose, run),))
    except StoreError as error:
        run.log.warning("the lease could not be refreshed: %s", error)


def _text(purpose: str, run: Run) -> bytes:
    document = {
        "purpose": purpose,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "run": run.id,
        "refreshed": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(document).encode() + b"\n"


def _content(store: Store, entry: Entry) -> dict[str, object]:
    try:
        document = json.loads(b"".join(store.read(entry.key, 0, min(entry.size, _MAX))))
    except (StoreError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _holder(store: Store, entry: Entry) -> str:
    content = _content(store, entry)
    if not content:
        return "somebody"
    return (
        f"{content.get('purpose')} by process {content.get('pid')} on {content.get('host')}, alive at {content.get('refreshed')},"
    )
