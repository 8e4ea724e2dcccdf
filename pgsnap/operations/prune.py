"""Prune: delete what no rule keeps, and what unfinished runs have left; never what may be the last good backup.

For each store, under its lease: list -> decide (``retention``) -> delete in batches, the manifest of a backup first. From that
moment it does not exist; what is left of it when a prune is killed is known by ``pruned.json``, which is written before, and
removed by the next prune. Nothing at all is deleted while something speaks against the newest backups (``frozen``), in a store
that cannot be listed or is used by another prune or copy, or whose clock and ours are too far apart.

Where a store locks its objects, the locks of what stays are extended (``locks``), also while nothing is deleted.

Other data without a manifest are orphans when nothing of them was written for seven days. A run that lives refreshes its
``running.json`` every ten minutes, however long it takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.run import Progress, Run
from pgsnap.components.values import format_duration
from pgsnap.errors import BusyError, PgsnapError, StoreError
from pgsnap.operations.reports import PruneReport, StorePrune
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.catalog import Catalog, StoredBackup, scan
from pgsnap.repository.lease import lease
from pgsnap.repository.manifest import MANIFEST, PRUNED, folder
from pgsnap.repository.object_lock import extend_locks
from pgsnap.repository.retention import SKEW, decide

__all__ = ["ORPHAN_AGE", "delete_backups", "prune"]

T = TypeVar("T")
ORPHAN_AGE = timedelta(days=7)
"""How long nothing must have been written to an unfinished backup before it is nobody's."""
BACKUPS = 100
"""Backups whose manifests are deleted before their data."""
KEYS = 1000
"""Keys in one call of ``Store.delete``: what S3 takes in one request."""


def prune(
    pipeline: PipelineSpec,
    *,
    dry_run: bool = False,
    stores: Collection[int] | None = None,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> PruneReport:
    """Delete what the policies of the stores do not keep, and orphans.

    Args:
        dry_run: Only decide. Takes no lease and changes nothing.
        stores: Only in the stores at these positions; None: in all.
        now: The clock; by default now.

    Returns:
        The report, also where stores failed or refused; nothing is raised for them.

    Raises:
        StoreError: no store can be listed.
    """
    now = now or datetime.now(UTC)
    pipeline = pipeline.time_limited
    run = Run(pipeline.name, timeout=pipeline.timeout)
    if progress is not None:
        run.progress = progress
    numbers = range(len(pipeline.stores)) if stores is None else sorted(stores)
    results: list[StorePrune] = []
    with run.watched():
        catalog = Catalog.read(pipeline.name, pipeline.stores, numbers)
        frozen = _frozen(pipeline, catalog)
        for number in numbers:
            if number in catalog.failures:
                results.append(StorePrune(label=pipeline.stores[number].label, error=str(catalog.failures[number])))
            elif dry_run or (frozen and pipeline.stores[number].lock_period is None):
                results.append(_locked(pipeline, catalog, number, now, run, _look(pipeline, catalog, number, now), dry_run=True))
            else:
                results.append(_prune_store(pipeline, catalog, number, now, run, frozen=bool(frozen)))
    return PruneReport(pipeline=pipeline.name, stores=tuple(results), frozen=frozen, dry_run=dry_run)


def _frozen(pipeline: PipelineSpec, catalog: Catalog) -> tuple[str, ...]:
    newest_anomaly = catalog.newest_anomaly(pipeline.guard)
    return (*catalog.unacknowledged, *((newest_anomaly,) if newest_anomaly else ()))


def _look(pipeline: PipelineSpec, catalog: Catalog, number: int, now: datetime) -> StorePrune:
    store = pipeline.stores[number]
    decisions = decide(pipeline.policy(store), pipeline.timezone, catalog.candidates(number), now)
    orphans = [stored.id for stored in catalog.scans[number].values() if _is_orphan(stored, now)]
    return StorePrune(label=store.label, decisions=tuple(decisions), orphans=tuple(orphans))


def _locked(
    pipeline: PipelineSpec, catalog: Catalog, number: int, now: datetime, run: Run, done: StorePrune, *, dry_run: bool = False
) -> StorePrune:
    """Extend the locks of what was decided to stay, and add that to what was done."""
    scanned = catalog.scans[number]
    staying = [scanned[decision.id] for decision in done.decisions if decision.keep]
    extended, unlocked = extend_locks(pipeline.stores[number], pipeline.name, staying, run, now, dry_run=dry_run)
    return attrs.evolve(done, extended=tuple(extended), unlocked=unlocked)


def _prune_store(pipeline: PipelineSpec, catalog: Catalog, number: int, now: datetime, run: Run, *, frozen: bool) -> StorePrune:
    store = pipeline.stores[number]
    done = StorePrune(label=store.label)
    try:
        with lease(store, pipeline.name, "prune", run) as held:
            if held.skew is not None and abs(held.skew) > SKEW:
                raise StoreError(_clocks(store, held.skew), store.label)
            fresh = {**catalog.scans, number: scan(store, pipeline.name)}
            catalog = Catalog(pipeline=catalog.pipeline, stores=catalog.stores, scans=fresh, failures=catalog.failures)
            if (unacknowledged := catalog.unacknowledged) and not frozen:  # it came while we were waiting
                raise StoreError(f"{store.label}: nothing is pruned: {' '.join(unacknowledged)}", store.label)
            done = _look(pipeline, catalog, number, now)
            if frozen:
                return _locked(pipeline, catalog, number, now, run, done)
            scanned = fresh[number]
            going = [scanned[decision.id] for decision in done.decisions if not decision.keep]
            deleted, refused = delete_backups(store, pipeline.name, going, run)
            swept = store.sweep(f"{pipeline.name}/", now - ORPHAN_AGE)  # first, so that folders can become empty
            orphans, more = _delete_orphans(store, pipeline.name, [scanned[id] for id in done.orphans], run)
            locked = _locked(pipeline, catalog, number, now, run, done)
    except BusyError as error:
        return StorePrune(label=store.label, error=str(error), busy=True)
    except PgsnapError as error:
        run.check()
        text = str(error) if store.label in str(error) else f"{store.label}: {error}"
        return StorePrune(label=store.label, decisions=done.decisions, error=text)
    return attrs.evolve(
        locked,
        deleted=tuple(deleted),
        refused={**refused, **more},
        orphans=(*orphans, *swept),
        size=sum(_size_without(scanned[id], folder(pipeline.name, id), refused) for id in deleted),
    )


def _size_without(stored: StoredBackup, prefix: str, refused: Collection[str]) -> int:
    return sum(entry.size for name, entry in stored.entries.items() if f"{prefix}{name}" not in refused)


def _clocks(store: Store, skew: timedelta) -> str:
    direction = "ahead of" if skew > timedelta() else "behind"
    return (
        f"{store.label}: its clock is {format_duration(abs(skew).total_seconds())} {direction} this machine's, and what is old "
        "cannot be told; set the clock. Nothing was deleted there."
    )


def delete_backups(store: Store, pipeline: str, backups: Sequence[StoredBackup], run: Run) -> tuple[list[str], dict[str, str]]:
    """Delete backups from a store, each one's manifest before its data; return the ids that are gone, and what was refused.

    A backup whose manifest is refused stays whole.
    """
    gone: list[str] = []
    refused: dict[str, str] = {}
    for batch in _batches(backups, BACKUPS):
        run.check()
        marked = {f"{folder(pipeline, stored.id)}{PRUNED}" for stored in batch if _mark(store, pipeline, stored, run)}
        kept = store.delete([f"{folder(pipeline, stored.id)}{MANIFEST}" for stored in batch])
        refused.update(kept)
        going = [stored for stored in batch if f"{folder(pipeline, stored.id)}{MANIFEST}" not in kept]
        staying = marked - {f"{folder(pipeline, stored.id)}{PRUNED}" for stored in going}
        if staying:
            store.delete(sorted(staying))
        refused.update(_delete_data(store, pipeline, going, run))
        for stored in going:
            run.log.info("%s: %s was deleted", store.label, stored.id)
            gone.append(stored.id)
    return gone, refused


def _mark(store: Store, pipeline: str, stored: StoredBackup, run: Run) -> bool:
    """Write down that a backup is being deleted. A store that does not allow it only makes the next prune wait longer."""
    try:
        store.write(f"{folder(pipeline, stored.id)}{PRUNED}", (b"{}\n",))
    except StoreError as error:
        run.log.debug("%s could not be marked: %s", stored.id, error)
        return False
    return True


def _delete_data(store: Store, pipeline: str, backups: Sequence[StoredBackup], run: Run) -> dict[str, str]:
    """Delete all but the manifest; the mark last, and only of those that are gone entirely."""
    refused: dict[str, str] = {}
    keys = [f"{folder(pipeline, s.id)}{name}" for s in backups for name in s.entries if name not in (MANIFEST, PRUNED)]
    for part in _batches(keys, KEYS):
        run.check()
        refused.update(store.delete(part))
    left = {key.split("/")[1] for key in refused}
    refused.update(store.delete([f"{folder(pipeline, s.id)}{PRUNED}" for s in backups if s.id not in left]))
    return refused


def _is_orphan(stored: StoredBackup, now: datetime) -> bool:
    """Whether nobody will finish it. A store that tells no times (1970) has no orphans."""
    if stored.committed:
        return False
    times = [entry.modified for entry in stored.entries.values()]
    if any(time.timestamp() <= 0 for time in times):
        return False
    return stored.pruned or max(times) < now - ORPHAN_AGE


def _delete_orphans(store: Store, pipeline: str, orphans: Sequence[StoredBackup], run: Run) -> tuple[list[str], dict[str, str]]:
    refused = _delete_data(store, pipeline, orphans, run) if orphans else {}
    left = {key.split("/")[1] for key in refused}
    gone = [stored.id for stored in orphans if stored.id not in left]
    for id in gone:
        run.log.info("%s: what was left of %s was removed", store.label, id)
    return gone, refused


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
