"""Locks that a prune extends: of what stays, in time, seldom; a store that refuses stops nothing, and is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from pgsnap import Denied, LocalStore, NotFound, Pipeline, RetentionPolicy, StoreError
from pgsnap.repository import object_lock as locks
from pgsnap.streams import Chunks
from pgsnap.testing import StoreConformance
from toys import MakePipeline, ToyDumper

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
PERIOD = 30 * DAY


@attrs.frozen(kw_only=True)
class LockingStore(LocalStore):
    """A local store that locks what it writes for 30 days, from the time in ``clock``, and counts what it is asked.

    ``refuse`` is the end of keys that it does not lock; ``mute`` makes it refuse to tell of locks; ``gone`` names the calls that
    it gives no answer to.
    """

    name: ClassVar[str] = "locking"

    fsync: bool = False
    clock: list[datetime] = attrs.field(factory=lambda: [datetime.now(UTC)])
    ends: dict[str, datetime] = attrs.field(factory=dict)
    asked: list[str] = attrs.field(factory=list)
    extended: list[str] = attrs.field(factory=list)
    refuse: str = "\0"
    mute: bool = False
    gone: tuple[str, ...] = ()

    @property
    def lock_period(self) -> timedelta:
        return PERIOD

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        size = LocalStore.write(self, key, chunks, expected=expected)
        self.ends[key] = self.clock[0] + PERIOD
        return size

    def locked_until(self, key: str) -> datetime | None:
        self.asked.append(key)
        if "look" in self.gone:
            raise StoreError(f"{self.label}: it cannot be reached.", self.label, transient=True)
        if self.mute:
            raise Denied(f"{self.label}: cannot lock {key}: it does not tell.", self.label)
        if key not in self.ends:
            raise NotFound(f"{self.label}: cannot lock {key}: it is not there.", self.label)
        return self.ends[key]

    def extend_lock(self, keys: Sequence[str], until: datetime) -> Mapping[str, str]:
        if "lock" in self.gone:
            self.asked.extend(keys)
            raise StoreError(f"{self.label}: it cannot be reached.", self.label, transient=True)
        refused = {key: "it is not there" for key in keys if key not in self.ends}
        refused |= {key: "no" for key in keys if key.endswith(self.refuse)}
        for key in set(keys) - refused.keys():
            self.extended.append(key)
            self.ends[key] = max(until, self.ends[key])
        return refused


class TestLockingStore(StoreConformance):
    """The toy keeps the rules of a store that locks."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LockingStore:
        return LockingStore(url=str(tmp_path))

    test_listings_are_not_cached = None  # its locks are in memory, and not in a pickled copy of it
    test_a_pickled_copy_reads = None


@pytest.fixture
def filled(make: MakePipeline, tmp_path: Path) -> Callable[..., tuple[Pipeline, LockingStore]]:
    """Make a pipeline with one store, which holds backups of the given days ago, each locked from its own day on."""

    def fill(*days: int, **parts: Any) -> tuple[Pipeline, LockingStore]:
        store = LockingStore(url=str(tmp_path / "locked"))
        options = {"dump": ToyDumper(contents={"shop.dump": b"x" * 1000}), "stores": [store], "auto_prune": False}
        pipeline = make(**options | parts)
        for ago in days:
            store.clock[0] = NOW - ago * DAY
            pipeline.backup(now=NOW - ago * DAY)
        store.clock[0] = NOW
        return pipeline, store

    return fill


def ends(store: LockingStore, id: str) -> set[int]:
    """Return in how many days the locks of a backup's objects end."""
    return {round((store.ends[entry.key] - NOW) / DAY) for entry in store.entries(f"shop/{id}/")}


def ids(pipeline: Pipeline) -> list[str]:
    return [backup.id for backup in pipeline.backups().backups]


def test_what_stays_is_locked_for_longer(filled: Any) -> None:
    """Those with less than half of the period left get a whole one; what goes is not touched."""
    pipeline, store = filled(25, 20, 16, 14, 1, keep=RetentionPolicy(last=4, min_good=1))
    oldest, *kept = ids(pipeline)
    report = pipeline.prune(now=NOW)
    assert (0, (oldest,), tuple(kept[:2])) == (report.exit_code, report.stores[0].deleted, report.stores[0].extended)
    assert [{30}, {30}, {16}, {29}] == [ends(store, id) for id in kept]
    assert not any(oldest in key for key in store.extended)


def test_one_question_for_each_backup_and_no_more(filled: Any) -> None:
    """A nightly prune looks at manifests alone, and touches an object twice in a period."""
    pipeline, store = filled(20, 10, 1, keep=None)
    pipeline.prune(now=NOW)
    touched = len(store.extended)
    store.asked.clear()
    pipeline.prune(now=NOW + 4 * DAY)
    assert {f"shop/{id}/manifest.json" for id in ids(pipeline)} == set(store.asked)
    assert 3 == len(store.asked)
    assert touched == len(store.extended)


def test_a_backup_that_stays_for_a_year_is_never_unlocked(filled: Any) -> None:
    """Night after night: its locks never end, and each object is extended about twice in thirty days."""
    pipeline, store = filled(0, keep=RetentionPolicy(yearly=1, min_good=1))
    (id,) = ids(pipeline)
    for day in range(365):
        pipeline.prune(now=NOW + day * DAY)
        assert min(ends(store, id)) > day + 1
    assert 365 // 16 == store.extended.count(f"shop/{id}/manifest.json")


def test_later_notes_are_locked_with_it(filled: Any) -> None:
    """What is written to a backup afterwards, such as a hold, is extended together with it."""
    pipeline, store = filled(20, keep=None)
    (id,) = ids(pipeline)
    pipeline.hold(id)
    pipeline.prune(now=NOW)
    assert f"shop/{id}/held.json" in store.extended
    assert f"shop/{id}/manifest.json" == store.extended[-1]


def test_a_dry_run_tells_and_extends_nothing(filled: Any) -> None:
    """It says which backups would be extended."""
    pipeline, store = filled(20, 1, keep=None)
    report = pipeline.prune(now=NOW, dry_run=True)
    assert (tuple(ids(pipeline)[:1]), []) == (report.stores[0].extended, store.extended)


def test_while_nothing_is_deleted_locks_go_on(filled: Any) -> None:
    """A suspect backup freezes deletions for as long as nobody looks; what is good must not lose its locks meanwhile."""
    pipeline, store = filled(20, 19, 18, keep=RetentionPolicy(last=1, min_good=1))
    collapsed = attrs.evolve(pipeline, dump=ToyDumper(contents={"shop.dump": b"x"})).backup()
    assert 4 == collapsed.exit_code
    report = pipeline.prune(now=NOW)
    newest = ids(pipeline)[-2]
    assert (4, (), (newest,)) == (report.exit_code, report.stores[0].deleted, report.stores[0].extended)
    assert {30} == ends(store, newest)


@pytest.mark.parametrize(
    ("spoil", "untouched"), [({"refuse": "shop.dump"}, "manifest.json"), ({"mute": True}, "shop.dump")], ids=["lock", "look"]
)
def test_a_refusal_is_told_and_stops_nothing(filled: Any, spoil: dict[str, Any], untouched: str) -> None:
    """The prune deletes what is due, the exit code is 3, and a manifest whose data could not be locked is not locked either."""
    pipeline, store = filled(25, 20, keep=RetentionPolicy(last=1, min_good=1))
    going, staying = ids(pipeline)
    report = attrs.evolve(pipeline, stores=[attrs.evolve(store, **spoil)]).prune(now=NOW)
    result = report.stores[0]
    assert (3, (going,), ()) == (report.exit_code, result.deleted, result.extended)
    assert [staying] == [key.split("/")[1] for key in result.unlocked]
    (problem,) = report.problems
    assert "the locks of 1 objects could not be extended" in problem
    assert not any(key.endswith(untouched) for key in store.extended)
    again = pipeline.prune(now=NOW)
    assert (0, (staying,)) == (again.exit_code, again.stores[0].extended)


@pytest.mark.parametrize("call", ["look", "lock"])
def test_a_store_that_cannot_be_reached_is_not_asked_again_and_again(filled: Any, call: str) -> None:
    """Each question is repeated for a while before it fails: of thousands of backups a prune would not end for hours."""
    pipeline, store = filled(*range(29, 15, -1), keep=None, catch_up_timeout=0)
    gone = attrs.evolve(store, gone=(call,))
    gone.asked.clear()
    report = attrs.evolve(pipeline, stores=[gone]).prune(now=NOW)
    asked = {key.split("/")[1] for key in gone.asked if call == "look" or not key.endswith("manifest.json")}
    assert len(asked) <= (locks.AT_ONCE if call == "look" else 1)
    assert {f"shop/{id}/manifest.json" for id in ids(pipeline)} == report.stores[0].unlocked.keys()
    (problem,) = report.problems
    assert "the locks of 14 objects could not be extended" in problem
    assert "it cannot be reached" in problem


def test_the_command_says_it() -> None:
    """A store that locks nothing is not spoken of."""
    from pgsnap.cli.retention import _summary
    from pgsnap.operations.reports import PruneReport, StorePrune

    store = StorePrune(label="a", extended=("1", "2"))
    for dry, said in ((True, "would be"), (False, "were")):
        report = PruneReport(pipeline="shop", stores=(store,), dry_run=dry)
        assert _summary(report, store).endswith(f", the locks of 2 {said} extended")
        assert "locks" not in _summary(report, StorePrune(label="a"))
