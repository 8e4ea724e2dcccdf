"""Catch-up: a store that missed something has it at the end of the next run, and nothing that goes wrong there fails the run."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

from pgsnap import ConfigError, Denied, LocalStore, RetentionPolicy, StoreError
from pgsnap.components.values import Entry
from pgsnap.operations import catch_up
from pgsnap.streams import Chunks
from toys import FaultyStore, MakePipeline, ToyDumper


@attrs.frozen(kw_only=True)
class Once(LocalStore):
    """A store that fails the first write of keys with this end, and never again."""

    fsync: bool = False
    fail_write: str = "shop.dump"
    failed: list[str] = attrs.field(factory=list)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        if key.endswith(self.fail_write) and not self.failed:
            self.failed.append(key)
            raise StoreError(f"{self.label}: it was away for a moment.", self.label)
        return LocalStore.write(self, key, chunks, expected=expected)


@pytest.mark.parametrize("key", ["running.json", "shop.dump", "globals.sql", "manifest.json"])
def test_a_store_that_dropped_out_gets_the_backup_in_the_same_run(make: MakePipeline, tmp_path: Path, key: str) -> None:
    """It is whole there, the run has reached its quorum, and the report says that it dropped out and why."""
    pipeline = make(stores=[str(tmp_path / "a"), Once(url=str(tmp_path / "b"), fail_write=key)], quorum=2)
    report = pipeline.backup()
    assert (0, 2) == (report.exit_code, len(report.kept_in))
    assert "it was away for a moment" in report.stores[1].dropped_out
    assert "dropped out and got it by copy" in report.text
    assert {str(tmp_path / "b"): (report.id,)} == report.caught_up.copied  # type: ignore[union-attr]
    assert {str(tmp_path / name): () for name in "ab"} == pipeline.verify(decode=True).problems
    proofs, trees = [], []
    for folder in (tmp_path / "a", tmp_path / "b"):
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        proofs.append([path for path in files if path.name.startswith("verify-")])  # named for the second in which it passed
        trees.append({path: content for path, content in files.items() if path not in proofs[-1]})
    assert [1, 1] == list(map(len, proofs))
    assert trees[0] == trees[1]


def test_a_store_gets_what_it_missed_in_earlier_runs(make: MakePipeline, tmp_path: Path) -> None:
    """A store that was away for two runs has three backups after the third."""
    away = FaultyStore(url=str(tmp_path / "b"), offline=True)
    pipeline = make(stores=[str(tmp_path / "a"), away])
    ids = [pipeline.backup(now=datetime(2026, 11, day, tzinfo=UTC)).id for day in (20, 21)]
    report = attrs.evolve(pipeline, stores=[str(tmp_path / "a"), attrs.evolve(away, offline=False)]).backup()
    assert 0 == report.exit_code
    assert {str(tmp_path / "b"): tuple(reversed(ids))} == report.caught_up.copied  # type: ignore[union-attr]
    assert [*ids, report.id] == sorted(path.name for path in (tmp_path / "b" / "shop").iterdir())


def test_a_new_store_gets_the_newest(make: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is bounded; ``copy`` brings the rest."""
    monkeypatch.setattr(catch_up, "NEWEST", 3)
    first = make(stores=[str(tmp_path / "a")])
    ids = [first.backup(now=datetime(2026, 11, day, tzinfo=UTC)).id for day in range(1, 5)]
    pipeline = make()
    report = pipeline.backup()
    assert {str(tmp_path / "b"): (ids[3], ids[2])} == report.caught_up.copied  # type: ignore[union-attr]
    assert {str(tmp_path / "a"): (), str(tmp_path / "b"): (ids[1], ids[0])} == pipeline.copy().copied


def test_a_store_that_is_still_away_is_told_once(make: MakePipeline, tmp_path: Path) -> None:
    """The run's own failure says it; the catch-up does not repeat it."""
    report = make(stores=[str(tmp_path / "a"), FaultyStore(url=str(tmp_path / "b"), offline=True)]).backup()
    assert (3, ()) == (report.exit_code, report.catch_up_errors)
    assert 1 == report.text.count("it is offline")


def test_a_copy_that_fails_grades_the_run(make: MakePipeline, tmp_path: Path) -> None:
    """The new backup is everywhere, but an older one cannot be copied because it is damaged: exit code 3, and it is said."""
    old = make(stores=[str(tmp_path / "a")]).backup()
    (tmp_path / "a" / "shop" / old.id / "shop.dump").write_bytes(b"short")
    report = make().backup()
    assert (3, 2) == (report.exit_code, len(report.kept_in))
    assert f"{old.id} to {tmp_path / 'b'}" in report.catch_up_errors[0]
    assert [report.id] == [path.name for path in (tmp_path / "b" / "shop").iterdir()]


def test_a_store_that_lies_gets_no_manifest_by_copy(make: MakePipeline, tmp_path: Path) -> None:
    """What was copied is looked up before the manifest is written, as in a backup."""
    make(stores=[str(tmp_path / "a")]).backup()
    pipeline = make(stores=[str(tmp_path / "a"), FaultyStore(url=str(tmp_path / "b"), lose="shop.dump")])
    copied = pipeline.copy()
    assert "was copied, and the store does not list it" in copied.errors[0]
    assert [] == list((tmp_path / "b").rglob("manifest.json"))


def test_a_write_only_store_is_left_out_silently(make: MakePipeline, tmp_path: Path) -> None:
    """Its key may not list, so nobody knows what it lacks."""

    @attrs.frozen(kw_only=True)
    class WriteOnly(LocalStore):
        def entries(self, prefix: str = "") -> Iterator[Entry]:
            raise Denied(f"{self.label}: cannot list it.", self.label)

    report = make(stores=[str(tmp_path / "a"), WriteOnly(url=str(tmp_path / "b"))]).backup()
    assert (0, (), {}) == (report.exit_code, report.catch_up_errors, report.caught_up.copied)  # type: ignore[union-attr]


def test_it_is_bounded_in_time(make: MakePipeline, tmp_path: Path) -> None:
    """A store that hangs in the copy costs no more than the time given; the run has succeeded and says what is left to do."""
    make(stores=[str(tmp_path / "a")]).backup()
    release = threading.Event()
    stuck = FaultyStore(url=str(tmp_path / "b"), fail_write="globals.sql", hang=release)
    pipeline = make(stores=[str(tmp_path / "a"), stuck], stall_timeout=0.5, finish_timeout=0.5, catch_up_timeout=2.0)
    began = time.monotonic()
    try:
        report = pipeline.backup()
    finally:
        release.set()
    assert time.monotonic() - began < 30
    assert (3, (str(tmp_path / "a"),)) == (report.exit_code, report.kept_in)


def test_it_can_be_switched_off(make: MakePipeline, tmp_path: Path) -> None:
    """With 0 nothing is listed or copied."""
    report = make(stores=[str(tmp_path / "a"), Once(url=str(tmp_path / "b"))], catch_up_timeout=0.0).backup()
    assert (3, None) == (report.exit_code, report.caught_up)
    with pytest.raises(ConfigError, match="catch_up_timeout is -1"):
        make(catch_up_timeout=-1.0)


def test_a_fault_in_it_does_not_fail_the_run(make: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an error that nobody foresaw: the backup was committed before."""
    monkeypatch.setattr("pgsnap.operations.catch_up.copy_missing", lambda *_: 1 / 0)
    report = make(stores=[str(tmp_path / "a"), Once(url=str(tmp_path / "b"))]).backup()
    assert (3, (str(tmp_path / "a"),)) == (report.exit_code, report.kept_in)


def test_what_the_stores_policy_would_not_keep_is_not_copied(make: MakePipeline, tmp_path: Path) -> None:
    """Else each run would copy to a store with a shorter policy what the prune after it deletes."""
    now = datetime.now(UTC)
    stores = [LocalStore(url=str(tmp_path / "a")), LocalStore(url=str(tmp_path / "b"), keep=RetentionPolicy(last=2, min_good=1))]
    pipeline = make(stores=stores, dump=ToyDumper(contents={"shop.dump": b"x" * 1000}))
    for days in range(6, 0, -1):
        report = pipeline.backup(now=now - timedelta(days=days))
        assert not any(report.caught_up.copied.values())
    assert [6, 2] == [len(scan) for scan in pipeline.backups().scans.values()]
    shutil.rmtree(tmp_path / "b")
    report = pipeline.backup(now=now)
    assert [1] == [len(ids) for ids in report.caught_up.copied.values()]
    assert [7, 2] == [len(scan) for scan in pipeline.backups().scans.values()]
