"""A close look at one store: everything that a run asks of it is done once, in a folder of its own, and cleaned up.

Unlike a preflight it writes. What a key is not allowed to do is told apart from what does not work: a key that may only write is
a good key for a database host. The folder's name is no backup's, so nothing that is found there is ever taken for one.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.components.values import Finding, format_duration
from pgsnap.errors import Denied, PgsnapError, StoreError
from pgsnap.streams import CHUNK, Chunks, in_flight

__all__ = ["examine"]

SMALL = b"pgsnap doctor was here; this can be deleted.\n"
LARGE = 24 * CHUNK
"""More than one part of any store of ours."""
MANY = 1_001
"""One object more than any service lists on one page."""
SKEW = timedelta(minutes=5)


class _Stop(Exception):
    """What the source of a write that must not appear raises."""


def examine(store: Store, run: Run) -> Iterator[Finding]:
    """Yield findings: write, read, list, clock, a large and an aborted write, many objects, delete; then the store's own.

    It writes some 24 MiB and, where they can be deleted again, 1,001 small objects. An ``error`` means that a backup, or what is
    done with one, would fail. It does not raise for what the store answers.
    """
    folder = f"{run.pipeline}/doctor-{secrets.token_hex(4)}/"
    look = _Look(store, folder, run)
    small = look.small()
    yield small
    if small.level == "error":
        return
    may_list = True
    for finding in look.read_and_list():
        may_list = may_list and "may not list" not in finding.text
        yield finding
    yield look.large()
    if may_list:
        yield look.aborted()
    deleted = look.delete()
    yield deleted
    if deleted.level == "ok" and may_list:
        yield look.many()
    yield from store.examine(run)


class _Look:
    def __init__(self, store: Store, folder: str, run: Run) -> None:
        self.store = store
        self.folder = folder
        self.run = run

    def found(self, level: str, text: str, remedy: str = "") -> Finding:
        return Finding(level, self.store.label, text, remedy)  # type: ignore[arg-type]

    def failed(self, what: str, error: PgsnapError) -> Finding:
        return self.found("error", f"{what} failed: {error}", "Correct what it says; a backup to this store would fail too.")

    def small(self) -> Finding:
        began = time.monotonic()
        try:
            self.store.write(f"{self.folder}small", (SMALL,))
        except PgsnapError as error:
            return self.failed("writing a small object", error)
        return self.found("ok", f"a small object was written in {format_duration(time.monotonic() - began)}.")

    def read_and_list(self) -> Iterator[Finding]:
        try:
            stream = self.store.read(f"{self.folder}small")
            with contextlib.closing(stream):
                data = b"".join(stream)
            if data != SMALL:
                yield self.found("error", "what was read is not what was written.", "Do not use this store.")
            else:
                yield self.found("ok", "it was read back.")
        except Denied as error:
            yield self.found("info", f"the key may not read: {error}", "Restore, verify and copy from here need another key.")
        except PgsnapError as error:
            yield self.failed("reading it back", error)
        try:
            entries = list(self.store.entries(self.folder))
        except Denied as error:
            yield self.found("info", f"the key may not list: {error}", "List, copy, verify and prune need another key.")
            return
        except PgsnapError as error:
            yield self.failed("listing", error)
            return
        if [(entry.key, entry.size) for entry in entries] != [(f"{self.folder}small", len(SMALL))]:
            text = f"it lists {len(entries)} objects where one was written."
            yield self.found("error", text, "The catalogue would be wrong; ask the provider about consistent listings.")
            return
        skew = abs(datetime.now(UTC) - entries[0].modified)
        if skew > SKEW:
            text = f"its clock differs from this host's by {format_duration(skew.total_seconds())}."
            yield self.found("warning", text, "Set the clocks by NTP: retention and leases count in them.")
        else:
            yield self.found("ok", "it is listed, and the clocks agree.")

    def large(self) -> Finding:
        began = time.monotonic()
        try:
            size = self.store.write(f"{self.folder}large", _zeros(LARGE), expected=LARGE)
        except PgsnapError as error:
            return self.failed(f"writing {LARGE >> 20} MiB", error)
        seconds = time.monotonic() - began
        return self.found("ok", f"{size >> 20} MiB were written, {size / 1e6 / max(seconds, 1e-3):.0f} MB a second.")

    def aborted(self) -> Finding:
        """Begin an object and break it off: it must not appear."""

        def source() -> Iterator[bytes]:
            yield from _zeros(LARGE)
            raise _Stop

        with contextlib.suppress(_Stop, PgsnapError):
            self.store.write(f"{self.folder}aborted", source())
        try:
            seen = [entry.key for entry in self.store.entries(self.folder) if entry.key.endswith("/aborted")]
        except PgsnapError as error:
            return self.failed("listing", error)
        if seen:
            return self.found("error", "a write that was broken off left an object.", "Do not use this store.")
        return self.found("ok", "a write that was broken off left nothing to see.")

    def delete(self) -> Finding:
        keys = [f"{self.folder}{name}" for name in ("small", "large")]
        try:
            refused = self.store.delete(keys)
        except PgsnapError as error:
            if isinstance(error, StoreError) and error.transient:
                return self.failed("deleting", error)
            refused = {keys[0]: str(error)}
        if refused:
            text = f"the key may not delete ({next(iter(refused.values()))}); {self.folder} stays."
            remedy = "Good against a stolen key; prune with another one, or by rules of the provider."
            return self.found("info", text, remedy)
        return self.found("ok", "objects can be deleted.")

    def many(self) -> Finding:
        keys = [f"{self.folder}many/{number:04d}" for number in range(MANY)]
        try:
            for _ in in_flight(lambda key: self.store.write(key, (b"x",)), keys, 8):
                self.run.check()
            listed = {entry.key for entry in self.store.entries(f"{self.folder}many/")}
            refused = self.store.delete(keys)
            left = [entry.key for entry in self.store.entries(self.folder)]
        except PgsnapError as error:
            with contextlib.suppress(StoreError):
                self.store.delete(keys)
            return self.failed(f"listing {MANY} objects", error)
        if listed != set(keys):
            return self.found(
                "error", f"of {MANY} objects it lists {len(listed)}.", "Old backups would be overlooked; do not use it."
            )
        if refused or left:
            return self.found("warning", f"{len(left)} of {MANY} objects are still listed after they were deleted.")
        return self.found("ok", f"{MANY} objects were listed, page by page, and deleted.")


def _zeros(size: int) -> Chunks:
    chunk = bytes(CHUNK)
    return (chunk for _ in range(size // CHUNK))
