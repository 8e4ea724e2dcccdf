"""Looking back: what the backup before was like, and the "still alive" summary of a pipeline.

Everything is read from the stores, and nothing of it may hold a run up: each look is bounded in time, and what cannot be seen is
left out.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.events import StoreSummary, Summary, now
from pgsnap.components.run import Run
from pgsnap.components.values import backup_time
from pgsnap.errors import PgsnapError
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.catalog import Catalog, StoredBackup, load_manifest, scan
from pgsnap.repository.retention import next_expiry
from pgsnap.repository.store_set import StoreSet
from pgsnap.stores.timeouts import Limits

__all__ = ["LastBackup", "is_due", "last_backup", "summarize"]

PATIENCE = Limits(stall=20, finish=20, grace=1)
"""What a look at the stores may take."""
TREND = 8
"""How many of the newest backups a trend is drawn from."""
_PROOF = re.compile(r"drill-(\d{8}T\d{6}Z)-ok\.json")


@attrs.frozen(kw_only=True)
class LastBackup:
    """A committed backup that another one is compared with; sizes in bytes, None where no manifest could be read."""

    id: str
    size: int | None = None
    stored_size: int | None = None


def _looks(pipeline: PipelineSpec) -> StoreSet:
    return StoreSet(pipeline.stores, Run(pipeline.name), PATIENCE)


def last_backup(pipeline: PipelineSpec, before: str) -> LastBackup | None:
    """Return the newest backup with an id before the given one, in whatever store has it; None if there is none to be seen."""

    def look(store: Store) -> LastBackup | None:
        ids = [id for id, stored in scan(store, pipeline.name).items() if stored.committed and id < before]
        if not ids:
            return None
        try:
            manifest = load_manifest([store], pipeline.name, ids[-1])
        except PgsnapError:
            return LastBackup(id=ids[-1])
        return LastBackup(id=ids[-1], size=manifest.size, stored_size=manifest.stored_size)

    found = [each for each in _looks(pipeline).each(look).values() if isinstance(each, LastBackup)]
    return max(found, key=lambda each: (each.id, each.size is not None), default=None)


def is_due(pipeline: PipelineSpec, last: LastBackup | None, when: datetime) -> bool:
    """Return whether a run at ``when`` is the first of its day, week or month, as ``pipeline.summary`` has it.

    Nothing is kept for that but the backups themselves: the one before lies in an earlier period, in the pipeline's time zone.
    """
    if pipeline.summary == "never" or last is None:
        return False
    zone = ZoneInfo(pipeline.timezone)
    periods = {"daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m"}
    before, after = (moment.astimezone(zone).strftime(periods[pipeline.summary]) for moment in (backup_time(last.id), when))
    return before != after


def summarize(pipeline: PipelineSpec, *, when: datetime | None = None) -> Summary:
    """Return the summary of the last day, week or month (a week where the pipeline asks for none)."""
    when = when or now()
    since = when - timedelta(days={"daily": 1, "monthly": 31}.get(pipeline.summary, 7))
    scans = _looks(pipeline).each(lambda store: scan(store, pipeline.name))
    catalog = Catalog.of(pipeline.name, pipeline.stores, scans)
    stores = []
    sizes: dict[str, int] = {}
    for number, store in enumerate(pipeline.stores):
        found = scans[number]
        if isinstance(found, PgsnapError):
            stores.append(StoreSummary(label=store.label, error=str(found)))
            continue
        committed = [stored for stored in found.values() if stored.committed]
        sizes |= {stored.id: max(stored.size, sizes.get(stored.id, 0)) for stored in committed}
        stores.append(
            StoreSummary(
                label=store.label,
                count=len(committed),
                size=sum(stored.size for stored in committed),
                newest=backup_time(committed[-1].id) if committed else None,
                proved=max((proof for stored in committed for proof in _proofs(stored)), default=None),
                expires=next_expiry(pipeline.policy(store), pipeline.timezone, catalog.candidates(number), when),
            )
        )
    count = sum(since < backup_time(id) <= when for id in sizes)
    newest = max(sizes, default="")
    made = f"{count} backup{'' if count == 1 else 's'} made since {since:%Y-%m-%d}"
    what = f"{made}; the newest is {newest}." if newest else "there is no backup at all."
    return Summary(
        pipeline=pipeline.name,
        time=when,
        text=f"{pipeline.name}: {what}",
        since=since,
        count=count,
        stores=tuple(stores),
        sizes=tuple(sizes[id] for id in sorted(sizes)[-TREND:]),
    )


def _proofs(stored: StoredBackup) -> list[datetime]:
    """Return when a backup was proved, by the names of the small files that drills leave beside it."""
    times = []
    for key in stored.entries:
        if match := _PROOF.fullmatch(key):
            try:
                times.append(datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC))
            except ValueError:
                continue
    return times
