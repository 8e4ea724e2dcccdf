"""Prune: what goes, in which order, what stays whatever happens; stores that refuse, hang behind, or are killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from pgsnap import ConfigError, DumpError, LocalStore, NotFound, Pipeline, RetentionPolicy, Store, StoreError
from pgsnap.components.values import Entry
from pgsnap.repository.manifest import Manifest, StageRecord
from pgsnap.streams import Chunks, Stream
from toys import FaultyStore, FillPipeline, MakePipeline, ToyDumper

NOW = datetime.now(UTC).replace(microsecond=0)
LONG_AGO = (NOW - timedelta(days=30)).timestamp()


@pytest.fixture
def filled(make: MakePipeline) -> FillPipeline:
    """Make a pipeline whose stores hold a backup of each of the given days ago, all alike."""

    def fill(*days: float, **parts: Any) -> Pipeline:
        pipeline = make(**{"dump": ToyDumper(contents={"shop.dump": b"x" * 1000})} | parts)
        for ago in days:
            attrs.evolve(pipeline, auto_prune=False).backup(now=NOW - timedelta(days=ago))
        return pipeline

    return fill


def days_left(pipeline: Pipeline) -> list[int]:
    return [round((NOW - backup.time) / timedelta(days=1)) for backup in pipeline.backups().backups][::-1]


def age(folder: Path) -> None:
    """Make everything in a folder a month old."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (LONG_AGO, LONG_AGO))


# --- what goes -----------------------------------------------------------------------------------------------------------


def test_each_store_keeps_by_its_own_policy(filled: FillPipeline, tmp_path: Path) -> None:
    """The store's own keep, or else the pipeline's; one that has none keeps everything."""
    stores = [LocalStore(url=str(tmp_path / "a"), keep=RetentionPolicy(last=4)), LocalStore(url=str(tmp_path / "b"))]
    pipeline = filled(*range(9, 0, -1), stores=stores, keep=RetentionPolicy(last=6))
    report = pipeline.prune()
    assert (0, [5, 3]) == (report.exit_code, [len(store.deleted) for store in report.stores])
    found = pipeline.backups()
    assert [4, 6] == [sum(s.committed for s in found.scans[number].values()) for number in (0, 1)]
    assert days_left(pipeline) == [1, 2, 3, 4, 5, 6]
    everything = attrs.evolve(pipeline, keep=None, stores=[LocalStore(url=str(tmp_path / "b"))])
    assert () == everything.prune().stores[0].deleted


def test_a_dry_run_says_what_and_why_and_changes_nothing(filled: FillPipeline, tmp_path: Path) -> None:
    """Each backup, kept or not, by which rule."""
    pipeline = filled(*range(5, 0, -1), keep=RetentionPolicy(last=2, min_good=1))
    before = sorted(tmp_path.rglob("*"))
    report = pipeline.prune(dry_run=True)
    assert before == sorted(tmp_path.rglob("*"))
    assert [False, False, False, True, True] == [d.keep for d in report.stores[0].decisions]
    assert ("last 1 of 2",) == report.stores[0].decisions[-1].reasons
    assert () == report.stores[0].deleted


def test_a_good_backup_is_followed_by_a_prune(filled: FillPipeline) -> None:
    """And the report says what went."""
    pipeline = filled(*range(6, 0, -1), keep=RetentionPolicy(last=3))
    report = pipeline.backup()
    assert [0, 1, 2] == days_left(pipeline)
    assert [4, 4] == [len(store.deleted) for store in report.prune.stores]


def test_a_failed_backup_is_not_followed_by_a_prune(filled: FillPipeline) -> None:
    """Not even of what the policy would not keep."""
    pipeline = filled(*range(6, 0, -1), keep=RetentionPolicy(last=3))
    with pytest.raises(DumpError, match="it was shot"):
        attrs.evolve(pipeline, dump=ToyDumper(fail_at=0)).backup()
    assert 6 == len(days_left(pipeline))


def test_a_store_that_missed_the_backup_is_not_pruned(filled: FillPipeline, tmp_path: Path) -> None:
    """Only stores that hold the new one are; the others keep what they have."""
    pipeline = filled(*range(6, 0, -1), keep=RetentionPolicy(last=3))
    broken = FaultyStore(url=str(tmp_path / "b"), fail_write="shop.dump")
    report = attrs.evolve(pipeline, stores=[pipeline.stores[0], broken]).backup()
    assert 3 == report.exit_code
    assert [str(tmp_path / "a")] == [store.label for store in report.prune.stores]
    scans = pipeline.backups().scans
    assert [3, 6] == [len(scans[number]) for number in (0, 1)]


def test_auto_prune_can_be_switched_off(filled: FillPipeline) -> None:
    """For a key that may not delete."""
    pipeline = filled(3, 2, 1, keep=RetentionPolicy(last=1, min_good=1), auto_prune=False)
    assert pipeline.backup().prune is None
    assert 4 == len(days_left(pipeline))


def test_a_prune_that_fails_does_not_fail_the_backup(filled: FillPipeline, tmp_path: Path) -> None:
    """It becomes a note of the report."""
    pipeline = filled(3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "delete", refusing(LocalStore.delete, "manifest.json", "object lock"))
        report = pipeline.backup()
    assert 0 == report.exit_code
    assert any("could not be deleted and will be tried again" in note and "object lock" in note for note in report.notes)


def test_neighbours_are_never_touched(filled: FillPipeline, tmp_path: Path) -> None:
    """app2, app-prod and strangers beside them keep every byte when app is pruned; a* is no name, and no pattern."""
    names = ["app", "app2", "app-prod", "App", "ap", "a"]
    pipelines = {name: filled(*range(5, 0, -1), name=name) for name in names}
    for stranger in ("a*", "app*", "äpp", "app\u0301", "[a]pp"):
        path = tmp_path / "a" / stranger / "20200101T000000Z-0000" / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        age(path.parent)
    (tmp_path / "a" / "app" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "app" / "20200101T000000Z-0000.txt").write_text("mine")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    gone = attrs.evolve(pipelines["app"], keep=RetentionPolicy(last=1, min_good=1)).prune()
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    deleted = {id for store in gone.stores for id in store.deleted}
    assert 4 == len(deleted)
    assert {path for path in before if path.parent.parent.name == "app" and path.parent.name in deleted} == before - after
    with pytest.raises(ConfigError):
        filled(name="a*")


# --- what stays ----------------------------------------------------------------------------------------------------------


def test_held_backups_stay_until_released(filled: FillPipeline) -> None:
    """By a mark in the stores, so every machine sees it."""
    pipeline = filled(*range(5, 0, -1), keep=RetentionPolicy(last=1, min_good=1))
    oldest = pipeline.backups().backups[0].id
    assert 2 == len(pipeline.hold(oldest[:12]).labels)
    pipeline.prune()
    assert [1, 5] == days_left(pipeline)
    with pytest.raises(ConfigError, match=f"{oldest} is held and was not deleted; release it first: pgsnap release {oldest}"):
        pipeline.delete(oldest)
    pipeline.release(oldest)
    pipeline.prune()
    assert [1] == days_left(pipeline)


@pytest.mark.parametrize("name", ["drill-20200101T000000Z-failed.json", "verify-20200101T000000Z-failed.json"])
def test_a_failed_proof_freezes_until_it_is_acknowledged(filled: FillPipeline, tmp_path: Path, name: str) -> None:
    """A drill that failed may mean that all of them are bad."""
    pipeline = filled(*range(5, 0, -1), keep=RetentionPolicy(last=1, min_good=1))
    newest = pipeline.backups().backups[-1].id
    (tmp_path / "a" / "shop" / newest / name).write_text("{}")
    frozen = pipeline.prune()
    assert 4 == frozen.exit_code
    assert newest in frozen.frozen[0]
    assert 5 == len(days_left(pipeline))
    passed = tmp_path / "a" / "shop" / newest / name.replace("failed", "ok").replace("2020", "2021")
    passed.write_text("{}")  # a later proof that it is good
    assert () == pipeline.prune(dry_run=True).frozen
    passed.unlink()
    pipeline.acknowledge(newest)
    assert 0 == pipeline.prune().exit_code
    # Acknowledged is not good: the newest good one stays beside it.
    assert {1, 2} <= set(days_left(pipeline))


def test_what_is_dated_in_the_future_is_no_reference(filled: FillPipeline) -> None:
    """A wrong clock made one backup in 2035: the others are kept as if it were not there."""
    pipeline = filled(40, 20, 10, 5, 0, -3000, keep=RetentionPolicy(within=15 * 86400.0, min_good=1))
    pipeline.prune()
    assert [-3000, 0, 5, 10] == days_left(pipeline)


def test_unfinished_backups_stay_for_a_week(filled: FillPipeline, tmp_path: Path) -> None:
    """Data without a manifest goes when nothing was written for seven days; a run that lives refreshes running.json."""
    pipeline = filled(1)
    base = tmp_path / "a" / "shop"
    for number, name in enumerate(["young", "old", "alive"]):
        folder = base / f"20260101T00000{number}Z-0000"
        folder.mkdir()
        (folder / "shop.dump").write_text(name)
        (folder / "running.json").write_text("{}")
        if name != "young":
            age(folder)
    os.utime(base / "20260101T000002Z-0000" / "running.json")
    (base / "20260101T000000Z-0000" / "shop.dump.abc.partial").write_text("fresh")
    stale = base / "20260101T000001Z-0000" / "x.partial"
    stale.write_text("stale")
    os.utime(stale, (LONG_AGO, LONG_AGO))
    report = pipeline.prune()
    assert ("20260101T000001Z-0000", "shop/20260101T000001Z-0000/x.partial") == report.stores[0].orphans
    assert {"20260101T000000Z-0000", "20260101T000002Z-0000", pipeline.backups().backups[0].id} == {
        p.name for p in base.iterdir()
    }


# --- stores that do not do as they are told ------------------------------------------------------------------------------


def refusing(method: Any, suffix: str, reason: str) -> Any:
    def delete(self: Store, keys: Sequence[str]) -> dict[str, str]:
        refused = {key: reason for key in keys if key.endswith(suffix)}
        return {**method(self, [key for key in keys if key not in refused]), **refused}

    return delete


def test_a_refused_manifest_keeps_the_backup_whole(filled: FillPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Object lock: nothing of it is deleted, it is reported, and the next prune tries again."""
    pipeline = filled(3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete", refusing(LocalStore.delete, "manifest.json", "object lock"))
        report = pipeline.prune()
    assert 3 == report.exit_code
    assert 2 == len(report.stores[0].refused)
    assert "2 objects could not be deleted and will be tried again next time" in report.problems[0]
    assert [1, 2, 3] == days_left(pipeline)
    for backup in pipeline.backups().backups:
        assert pipeline.verify(backup.id).ok
        assert not any("pruned.json" in stored.entries for stored in backup.stores.values())
    assert 0 == pipeline.prune().exit_code
    assert [1] == days_left(pipeline)


def test_refused_data_is_invisible_and_tried_again(filled: FillPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest went, a data object did not: the backup does not exist, and the next prune removes what is left at once."""
    pipeline = filled(3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete", refusing(LocalStore.delete, "shop.dump", "busy"))
        assert 3 == pipeline.prune().exit_code
    assert [1] == days_left(pipeline)
    assert 3 == len(list((tmp_path / "a" / "shop").iterdir()))
    assert 0 == pipeline.prune().exit_code
    assert 1 == len(list((tmp_path / "a" / "shop").iterdir()))


def test_a_store_that_nobody_can_reach(filled: FillPipeline, tmp_path: Path) -> None:
    """It is named and left alone, the others are pruned; if no store can be reached that is the error."""
    pipeline = filled(3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    gone = FaultyStore(url=str(tmp_path / "b"), offline=True)
    report = attrs.evolve(pipeline, stores=[pipeline.stores[0], gone]).prune()
    assert 3 == report.exit_code
    assert [f"{tmp_path / 'b'}: it is offline."] == report.problems
    assert 2 == len(report.stores[0].deleted)
    with pytest.raises(StoreError, match="it is offline"):
        attrs.evolve(pipeline, stores=[gone]).prune()


def test_clocks_too_far_apart(filled: FillPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is old cannot be told, so nothing is deleted."""
    pipeline = filled(3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    entries = LocalStore.entries

    def late(self: LocalStore, prefix: str = "") -> Iterator[Entry]:
        for entry in entries(self, prefix):
            yield attrs.evolve(entry, modified=entry.modified + timedelta(hours=3))

    monkeypatch.setattr(LocalStore, "entries", late)
    report = pipeline.prune()
    assert 3 == report.exit_code
    assert "its clock is 3 h 0 m ahead of this machine's" in report.problems[0]
    assert [1, 2, 3] == days_left(pipeline)


def test_an_unknown_and_an_ambiguous_id(filled: FillPipeline) -> None:
    """A sentence each, and nothing is changed."""
    pipeline = filled(2, 2, 1)
    first = pipeline.backups().backups[0].id
    for do in (pipeline.acknowledge, pipeline.hold, pipeline.release, pipeline.delete):
        with pytest.raises(NotFound, match="has no backup '19990101T000000Z-0000'"):
            do("19990101T000000Z-0000")
        with pytest.raises(ConfigError, match="is the beginning of 2 backups"):
            do(first[:16])
    assert 3 == len(days_left(pipeline))


def test_delete_leaves_the_floor(filled: FillPipeline) -> None:
    """One by name, but none of the newest three good ones; a suspect one is no good one."""
    pipeline = filled(5, 4, 3, 2)
    ids = [backup.id for backup in pipeline.backups().backups]
    with pytest.raises(ConfigError, match=r"is one of the newest 3 good backups in .* and was not deleted"):
        pipeline.delete(ids[1])
    assert 2 == len(pipeline.delete(ids[0]).labels)
    assert [2, 3, 4] == days_left(pipeline)


# --- many ----------------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Memory(Store):
    """A store in memory that lists a thousand objects at a time and counts what is asked of it."""

    name: ClassVar[str] = "counting"
    objects: dict[str, tuple[bytes, datetime]] = attrs.field(factory=dict, eq=False)
    calls: list[tuple[str, int]] = attrs.field(factory=list, eq=False)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        data = b"".join(chunks)
        self.objects[key] = (data, datetime.now(UTC))
        return len(data)

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        yield self.objects[key][0][start : None if length is None else start + length]

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        for start in range(0, max(1, len(keys)), 1000):
            page = keys[start : start + 1000]
            self.calls.append(("list", len(page)))
            for key in page:
                yield Entry(key, len(self.objects[key][0]), self.objects[key][1])

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        self.calls.append(("delete", len(keys)))
        for key in keys:
            self.objects.pop(key, None)
        return {}


def test_ten_thousand_backups_in_fifty_pipelines(make: MakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    """One listing before and one under the lease for each pipeline, paged; deletes in batches of at most a thousand."""
    store = Memory(url="memory://bucket")
    old = NOW - timedelta(days=20)
    for number in range(50):
        name = f"db{number}"
        for hour in range(200):
            started = NOW - timedelta(hours=5 * hour + 1)
            made = Manifest(
                id=f"{started:%Y%m%dT%H%M%SZ}-{number:04x}",
                pipeline=name,
                started=started,
                ended=started,
                pgsnap="0",
                dumper=StageRecord(name="toy", version="1"),
                artifacts=(),
                files=(),
            )
            for file in ("globals.sql.age", "shop.dump.age", "RECOVER.txt", "manifest.json"):
                store.objects[f"{name}/{made.id}/{file}"] = (made.to_bytes() if file == "manifest.json" else b"", old)
    pipeline = make(stores=[store], keep=RetentionPolicy(daily=7, weekly=4, monthly=12))
    begun, deleted = clock.perf_counter(), 0
    for number in range(50):
        report = attrs.evolve(pipeline, name=f"db{number}").prune()
        assert 0 == report.exit_code
        deleted += len(report.stores[0].deleted)
    seconds = clock.perf_counter() - begun
    left = sum(key.endswith("manifest.json") for key in store.objects)
    pages = [size for what, size in store.calls if what == "list"]
    batches = [size for what, size in store.calls if what == "delete"]
    with capsys.disabled():
        print(
            f"\n{deleted} of 10000 backups in 50 pipelines pruned in {seconds:.1f} s: {len(pages)} pages, {len(batches)} deletes"
        )
    assert 10_000 == deleted + left
    assert 9_000 < deleted
    assert {key.rpartition("/")[2] for key in store.objects} == {
        "globals.sql.age",
        "shop.dump.age",
        "RECOVER.txt",
        "manifest.json",
    }
    assert max(pages) <= 1000
    assert max(batches) <= 1000
    assert len(pages) <= 50 * 4
    assert len(batches) <= 50 * 9


# --- killed --------------------------------------------------------------------------------------------------------------

PRUNER = """
import os, pathlib, signal, sys
from pgsnap import RetentionPolicy, LocalStore, Pipeline
from toys import ToyDumper

left = [int(sys.argv[2])]

def killing(method):
    def call(self, *args, **more):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args, **more)
    return call

pathlib.Path.unlink = killing(pathlib.Path.unlink)
LocalStore.write = killing(LocalStore.write)
store = LocalStore(url=sys.argv[1], fsync=False)
report = Pipeline(name="shop", dump=ToyDumper(), stores=[store], keep=RetentionPolicy(last=1, min_good=1)).prune()
sys.exit(report.exit_code)
"""


def test_killed_at_any_point(filled: FillPipeline, tmp_path: Path) -> None:
    """SIGKILL before each single change of the store: what is committed is whole at every moment, and the next run finishes."""
    (tmp_path / "pruner.py").write_text(PRUNER)
    template = tmp_path / "template"
    store = LocalStore(url=str(template), fsync=False)
    pipeline = filled(3, 2, 1, stores=[store], keep=RetentionPolicy(last=1, min_good=1))
    newest = pipeline.backups().backups[-1].id
    kills = 0
    for number in range(1, 100):
        folder = tmp_path / f"store{number}"
        shutil.copytree(template, folder)
        mine = attrs.evolve(pipeline, stores=[LocalStore(url=str(folder), fsync=False)])
        done = subprocess.run(
            [sys.executable, str(tmp_path / "pruner.py"), str(folder), str(number)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "shared")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = mine.backups()
        assert newest == found.backups[-1].id
        for backup in found.backups:
            assert mine.verify(backup.id).ok
        if done.returncode == 0:
            break
        assert -signal.SIGKILL == done.returncode, done.stderr
        kills += 1
        for lease in (folder / "shop" / "leases").glob("*.json"):  # that of the dead one, when its time is over
            os.utime(lease, (clock.time() - 600, clock.time() - 600))
        assert 0 == mine.prune().exit_code
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {newest} == {path.parent.name for path in files}
    else:
        pytest.fail("it never ended")
    assert kills >= 10


def test_a_prune_waits_for_nobody_who_is_dead(filled: FillPipeline, tmp_path: Path) -> None:
    """A live lease of somebody else: exit code 75, with who and where; one that was not refreshed counts for nothing."""
    pipeline = filled(
        3, 2, 1, keep=RetentionPolicy(last=1, min_good=1), stores=[LocalStore(url=str(tmp_path / "a"), fsync=False)]
    )
    path = tmp_path / "a" / "shop" / "leases" / "other.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"purpose": "copy", "host": "db1", "pid": 7, "refreshed": "2026-11-22T08:00:00+00:00"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgsnap.repository.lease.time.sleep", lambda _: None)
        report = pipeline.prune()
    assert 75 == report.exit_code
    assert "copy by process 7 on db1, alive at 2026-11-22T08:00:00+00:00, holds the lease of 'shop'" in report.problems[0]
    assert [1, 2, 3] == days_left(pipeline)
    os.utime(path, (clock.time() - 600, clock.time() - 600))
    assert 0 == pipeline.prune().exit_code
    assert [1] == days_left(pipeline)
    assert not path.exists()
