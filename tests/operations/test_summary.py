"""Looking back: the backup before, and the summary, whatever state the stores are in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

from pgsnap import LocalStore, RetentionPolicy
from pgsnap.components.events import Finished, Summary
from pgsnap.operations.summary import LastBackup, is_due, last_backup, summarize
from remember import Remember
from toys import FaultyStore, MakePipeline, ToyDumper

NEVER = "30000101T000000Z-0000"


def at(day: int, hour: int = 8) -> datetime:
    return datetime(2026, 11, day, hour, tzinfo=UTC)


def test_the_backup_before_is_found(make: MakePipeline) -> None:
    """The newest committed one before an id, with its sizes; none where there is none."""
    pipeline = make()
    assert None is last_backup(pipeline, NEVER)
    first = pipeline.backup(now=at(20))
    second = pipeline.backup(now=at(21))
    assert LastBackup(id=second.id, size=second.size, stored_size=second.stored_size) == last_backup(pipeline, NEVER)
    found = last_backup(pipeline, second.id)
    assert found is not None
    assert first.id == found.id
    assert None is last_backup(pipeline, first.id)


def test_a_sick_store_or_manifest_spoils_nothing(make: MakePipeline, tmp_path: Path) -> None:
    """Another store is asked; a manifest that cannot be read leaves the sizes out."""
    stores = [FaultyStore(url=str(tmp_path / "b"), offline=True), LocalStore(url=str(tmp_path / "a"), fsync=False)]
    pipeline = make(stores=stores)
    report = pipeline.backup(now=at(20))
    found = last_backup(pipeline, NEVER)
    assert found is not None
    assert report.size == found.size
    (tmp_path / "a" / "shop" / report.id / "manifest.json").write_text("{")
    assert LastBackup(id=report.id) == last_backup(pipeline, NEVER)


def test_sizes_are_told_against_last_time(make: MakePipeline) -> None:
    """The second message knows the first backup's size."""
    remember = Remember(on=("succeeded",))
    make(notifiers=[remember], dump=ToyDumper(contents={"shop.dump": b"x" * 1000})).backup(now=at(20))
    make(notifiers=[remember], dump=ToyDumper(contents={"shop.dump": b"x" * 1500})).backup(now=at(21))
    first, second = remember.events
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert None is first.last_size
    assert (1500, 1000) == (second.size, second.last_size)
    assert ("size", "1.5 kB (+50.0%, last 1.0 kB)") in second.facts


@pytest.mark.parametrize(
    ("every", "zone", "before", "when", "due"),
    [
        ("never", "UTC", at(1), at(22), False),
        ("daily", "UTC", at(21, 23), at(22, 0), True),
        ("daily", "UTC", at(22, 0), at(22, 23), False),
        ("daily", "Asia/Seoul", at(21, 14), at(21, 15), True),  # 23:00 and 00:00 in Seoul
        ("weekly", "UTC", at(22), at(23), True),  # Sunday, Monday
        ("weekly", "UTC", at(16), at(22), False),
        ("weekly", "UTC", datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), False),  # one ISO week
        ("monthly", "UTC", datetime(2026, 10, 31, tzinfo=UTC), at(1), True),
        ("monthly", "UTC", at(1), at(30), False),
    ],
)
def test_when_a_summary_is_due(make: MakePipeline, every: str, zone: str, before: datetime, when: datetime, due: bool) -> None:
    """At the first run of a period, in the pipeline's zone; the backups themselves are the memory."""
    pipeline = make(summary=every, timezone=zone)
    last = LastBackup(id=f"{before:%Y%m%dT%H%M%SZ}-0000")
    assert due == is_due(pipeline, last, when)
    assert not is_due(pipeline, None, when)


def test_the_summary_counts_and_compares(make: MakePipeline, tmp_path: Path) -> None:
    """What was made in the period, what each store has, the trend, and the last proof."""
    pipeline = make()
    ids = [pipeline.backup(now=at(day)).id for day in (1, 20, 21, 22)]
    (tmp_path / "a" / "shop" / ids[1] / "drill-20261121T090000Z-ok.json").write_text("{}")
    (tmp_path / "a" / "shop" / ids[1] / "drill-20261122T090000Z-failed.json").write_text("{}")
    (tmp_path / "b" / "shop" / ids[0] / "manifest.json").unlink()
    found = summarize(pipeline, when=at(22, 9))
    assert (3, at(22, 9) - timedelta(days=7), "ok") == (found.count, found.since, found.level)
    assert [4, 3] == [store.count for store in found.stores]
    assert [at(22), at(22)] == [store.newest for store in found.stores]
    assert [at(21, 9), None] == [store.proved for store in found.stores]
    assert 4 == len(found.sizes)
    assert f"shop: 3 backups made since 2026-11-15; the newest is {ids[-1]}." == found.text
    facts = dict(found.facts)
    assert "last proved 2026-11-21 09:00 UTC" in facts[pipeline.stores[0].label]
    assert "never proved by a drill" in facts[pipeline.stores[1].label]


def test_a_summary_of_nothing_and_of_a_store_that_is_away(make: MakePipeline, tmp_path: Path) -> None:
    """It says so, as a warning."""
    pipeline = make(stores=[FaultyStore(url=str(tmp_path / "b"), offline=True), str(tmp_path / "a")])
    found = summarize(pipeline)
    assert ("warning", "shop: there is no backup at all.") == (found.level, found.text)
    assert "it is offline" in found.stores[0].error
    assert "it is offline" in dict(found.facts)[pipeline.stores[0].label]


def test_the_first_run_of_a_week_sends_it(make: MakePipeline) -> None:
    """Once, after the run's own message."""
    remember = Remember(on=("succeeded", "summary"))
    pipeline = make(notifiers=[remember], summary="weekly")
    for day in (21, 22, 23, 24):  # Saturday to Tuesday
        pipeline.backup(now=at(day))
    assert ["succeeded", "succeeded", "succeeded", "summary", "succeeded"] == [event.kind for event in remember.events]
    assert isinstance(remember.events[3], Summary)


def test_the_summary_says_when_the_next_backup_goes(make: MakePipeline) -> None:
    """By the policy of each store, if one backup a day follows; a policy that keeps everything lets none go."""
    pipeline = make(keep=RetentionPolicy(daily=7))
    for day in (16, 17, 18, 19, 20):
        pipeline.backup(now=at(day))
    found = summarize(pipeline, when=at(20, 1))
    assert [at(23, 1), at(23, 1)] == [store.expires for store in found.stores]  # the eighth day since the 16th
    assert "the next one goes on 2026-11-23" in dict(found.facts)[pipeline.stores[0].label]
    assert [None, None] == [store.expires for store in summarize(attrs.evolve(pipeline, keep=None), when=at(20, 1)).stores]
