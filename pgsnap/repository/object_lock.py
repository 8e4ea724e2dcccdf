"""Extending the locks of what a prune keeps, in stores that lock: when a backup is written, nobody knows that it stays for years.

For each backup that stays, its manifest alone is looked at. Its lock is the first of the backup's to end, give or take the time
that the backup took: data are locked just before it, what is added later is locked later, and an extension gives all the same
time, the manifest last. If less than half of the store's ``lock_period`` is left, all objects of the backup are locked for a
whole one again. So an object is touched twice in a period, and not every night.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.errors import StoreError
from pgsnap.repository.catalog import StoredBackup
from pgsnap.repository.manifest import MANIFEST, folder
from pgsnap.streams import in_flight

__all__ = ["extend_locks"]

AT_ONCE = 8
"""Manifests that are looked at, at a time."""


def extend_locks(
    store: Store, pipeline: str, backups: Sequence[StoredBackup], run: Run, now: datetime, *, dry_run: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Extend the locks of committed backups that end too soon; return the ids, and what was refused (keys, with the reason).

    A ``dry_run`` only looks. Nothing is raised for what the store answers: a prune goes on, and tells it. One that cannot be
    reached is asked no more.
    """
    period = store.lock_period
    if period is None:
        return [], {}
    extended: list[str] = []
    refused: dict[str, str] = {}
    silent = ""  # what a store said that cannot be reached: each further question would be repeated in vain, for a while

    def failed(key: str, error: StoreError) -> None:
        nonlocal silent
        refused[key] = str(error)
        silent = silent or (str(error) if error.transient else "")

    def left(stored: StoredBackup) -> tuple[StoredBackup, bool]:
        run.check()
        key = f"{folder(pipeline, stored.id)}{MANIFEST}"
        if silent:
            refused[key] = silent
            return stored, False
        try:
            end = store.locked_until(key)
        except StoreError as error:
            failed(key, error)
            return stored, False
        return stored, end is None or end - now < period / 2

    due = [stored for stored, soon in in_flight(left, backups, AT_ONCE) if soon]
    for stored in due:
        run.check()
        prefix = folder(pipeline, stored.id)
        try:
            if silent:
                refused[f"{prefix}{MANIFEST}"] = silent
            elif dry_run or not (problems := _extend(store, prefix, stored, now + period)):
                extended.append(stored.id)
            else:
                refused.update(problems)
        except StoreError as error:
            failed(f"{prefix}{MANIFEST}", error)
    if extended and not dry_run:
        run.log.info("%s: the locks of %d backups were extended to %s", store.label, len(extended), f"{now + period:%Y-%m-%d}")
    return extended, refused


def _extend(store: Store, prefix: str, stored: StoredBackup, until: datetime) -> Mapping[str, str]:
    """Lock the manifest only if all else is locked: the next prune looks at nothing but the manifest."""
    refused = store.extend_lock([f"{prefix}{name}" for name in sorted(stored.entries) if name != MANIFEST], until)
    return refused or store.extend_lock([f"{prefix}{MANIFEST}"], until)
