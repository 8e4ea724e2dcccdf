"""Catch-up after a commit: what the stores lack of the newest backups is copied to them, also to one that just dropped out.

It follows the commit and precedes the prune. It never changes what the backup is, only where else it is; it ends when its time is
over, and the next run (or ``pgsnap copy``, which copies everything) goes on from there.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pgsnap.components.run import Progress, Run
from pgsnap.errors import Aborted, Denied
from pgsnap.operations.copy import copy_missing
from pgsnap.operations.reports import CopyReport
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.catalog import Backup, Catalog, scan
from pgsnap.repository.store_set import StoreSet
from pgsnap.stores.timeouts import Limits

__all__ = ["catch_up"]

NEWEST = 10
"""How many of the newest backups are looked at."""
LISTING = Limits(stall=30, finish=60, grace=5)


def catch_up(pipeline: PipelineSpec, id: str, *, seconds: float, progress: Progress) -> CopyReport:
    """Copy to each store what it is owed, the newest first, within ``seconds``.

    A store that may not be listed, because its key only writes, cannot be caught up; it is left out without a word. One that
    does not answer is an error of the report.

    Args:
        id: The backup that was just committed.
    """
    pipeline = pipeline.time_limited
    run = Run(pipeline.name, id, timeout=seconds, progress=progress)
    copied: dict[str, tuple[str, ...]] = {}
    errors: list[str] = []
    try:
        with run.watched():
            found = StoreSet(pipeline.stores, run, LISTING).each(lambda store: scan(store, pipeline.name))
            catalog = Catalog.of(pipeline.name, pipeline.stores, found)
            errors += [str(error) for error in catalog.failures.values() if not isinstance(error, Denied)]
            for number in catalog.scans:
                owed = missing_backups(pipeline, catalog, number)
                if owed:
                    report = copy_missing(pipeline, catalog, {number: owed}, run)
                    copied |= {label: ids for label, ids in report.copied.items() if ids}
                    errors += report.errors
    except Aborted as error:
        errors.append(f"the catch-up was stopped: {error} 'pgsnap copy {pipeline.name}' does the rest.")
    return CopyReport(pipeline=pipeline.name, copied=copied, errors=tuple(errors))


def missing_backups(pipeline: PipelineSpec, catalog: Catalog, number: int) -> list[Backup]:
    """Return what a store lacks of the newest backups and what its policy would keep, the newest first.

    What decides for a prune of the store decides here too, over what the store has and lacks.
    """
    keep = pipeline.policy(pipeline.stores[number])
    wanted = set(catalog.wanted(number, keep, pipeline.timezone, datetime.now(UTC)))
    newest = list(reversed(catalog.backups))[:NEWEST]
    return [backup for backup in newest if number not in backup.stores and backup.id in wanted]
