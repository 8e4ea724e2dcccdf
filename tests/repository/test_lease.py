"""Leases: never two at once, by real processes; a dead holder blocks for no longer than its time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgsnap import BusyError, FsspecStore, LocalStore, Run, StoreError
from pgsnap.repository.lease import lease
from toys import FaultyStore, MakePipeline

WORKER = """
import os, sys, time
from pgsnap import BusyError, LocalStore, Run
from pgsnap.repository.lease import lease

store, mark = LocalStore(url=sys.argv[1], fsync=False), sys.argv[2]
for _ in range(20):
    try:
        with lease(store, "shop", "prune", Run("shop"), pause=0.02):
            descriptor = os.open(mark, os.O_CREAT | os.O_EXCL)  # fails if somebody else is inside
            time.sleep(0.002)
            os.close(descriptor)
            os.unlink(mark)
            print("in")
    except BusyError as error:
        assert "prune by process" in str(error) or "somebody" in str(error), error
"""


def test_never_two_at_once(tmp_path: Path) -> None:
    """Four processes fight for one lease: no two are ever inside together, and somebody gets in."""
    argv = [sys.executable, "-c", WORKER, str(tmp_path / "store"), str(tmp_path / "inside")]
    workers = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    done = [worker.communicate(timeout=120) for worker in workers]
    assert [""] * 4 == [err for _, err in done]
    assert sum(out.count("in") for out, _ in done) >= 4
    assert [] == list((tmp_path / "store").rglob("*.json"))


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    """Purpose, process, host; and the pipeline."""
    store = LocalStore(url=str(tmp_path), fsync=False)
    with lease(store, "shop", "copy", Run("shop")):
        with pytest.raises(BusyError) as caught, lease(store, "shop", "prune", Run("shop"), pause=0.001):
            pytest.fail("both are inside")
        with lease(store, "other", "prune", Run("other")):
            pass  # of another pipeline
    assert f"copy by process {os.getpid()} on " in str(caught.value)
    assert "holds the lease of 'shop'; wait until it has ended." in str(caught.value)
    with lease(store, "shop", "prune", Run("shop")):
        pass


def test_a_live_lease_is_refreshed(tmp_path: Path) -> None:
    """However long the work takes."""
    store = LocalStore(url=str(tmp_path), fsync=False)
    with lease(store, "shop", "copy", Run("shop"), ttl=0.2) as held:
        path = tmp_path / held.key
        first = path.stat().st_mtime_ns
        end = time.monotonic() + 20
        while path.stat().st_mtime_ns == first and time.monotonic() < end:
            time.sleep(0.01)
        assert first < path.stat().st_mtime_ns


def test_a_store_without_times_goes_by_what_the_lease_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems of fsspec tell no times: then the holder's own clock must do."""
    monkeypatch.setattr("pgsnap.stores.fsspec._modified", lambda info: datetime.fromtimestamp(0, UTC))
    store = FsspecStore(url=f"memory://{tmp_path.name}")
    with lease(store, "shop", "copy", Run("shop")) as held:
        assert held.skew is None
        with pytest.raises(BusyError), lease(store, "shop", "prune", Run("shop"), pause=0.001):
            pytest.fail("both are inside")
        store.write(held.key, (b'{"refreshed": "2020-01-01T00:00:00+00:00"}',))
        with lease(store, "shop", "prune", Run("shop"), pause=0.001):
            pass


def test_a_store_that_lists_too_late_is_refused(tmp_path: Path) -> None:
    """The lease that was just written is not there: the store's listings cannot be trusted."""
    store = FaultyStore(url=str(tmp_path), lose=".json")
    with pytest.raises(StoreError, match="was written and is not listed"), lease(store, "shop", "prune", Run("shop")):
        pytest.fail("it is inside")


def test_a_copy_waits_for_a_prune(make: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 75, and nothing was copied."""

    monkeypatch.setattr("pgsnap.repository.lease.time.sleep", lambda _: None)
    pipeline = make()
    pipeline.backup()
    shutil.rmtree(tmp_path / "b")
    with lease(pipeline.stores[1], "shop", "prune", Run("shop")):
        report = pipeline.copy()
    assert 75 == report.exit_code
    assert "prune by process" in report.errors[0]
    assert 0 == pipeline.copy().exit_code
    assert 2 == len(pipeline.backups().backups[0].stores)
