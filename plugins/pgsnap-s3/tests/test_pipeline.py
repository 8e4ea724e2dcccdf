"""A whole run into a local store and a bucket: what a slow or broken bucket does to the other store, and how it catches up."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from pgsnap import Artifact, Dump, Dumper, Facts, LocalStore, Pipeline, RestoreRequest, Run, Source
from pgsnap.streams import Stream
from pgsnap.streams import retry as remote
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_s3 import S3

MIB = 1 << 20
BLOCK = os.urandom(MIB)


@attrs.frozen(kw_only=True)
class Bytes(Dumper):
    """Dumps 40 MiB; ``ended`` has the time when the last of it was taken."""

    name: ClassVar[str] = "bytes"
    ended: list[float] = attrs.field(factory=list)

    @contextlib.contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        def stream() -> Stream:
            for _ in range(40):
                yield BLOCK
            self.ended.append(time.monotonic())

        yield Dump(artifacts=[Artifact(name="shop.dump", open=stream)])

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        raise NotImplementedError

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "@{shop.dump}"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "JITTER", 0.05)


def make(folder: Path, store: S3, **options: Any) -> Pipeline:
    local = LocalStore(url=str(folder / "local"), fsync=False)
    return Pipeline(**{"name": "shop", "dump": Bytes(), "stores": [local, store], "stall_timeout": 2.0, **options})


def test_a_stalled_bucket_drops_out_and_is_caught_up(s3: S3, spoiled: S3, proxy: FaultProxy, tmp_path: Path) -> None:
    """The local store waits for the stall timeout and no longer; the bucket gets the backup by copy as soon as it answers."""
    pipeline = make(tmp_path, attrs.evolve(spoiled, io_timeout=4.0))
    proxy.rules({"method": "PUT", "contains": "partNumber", "do": "stall", "after": 1000, "times": 6})
    began = time.monotonic()
    report = pipeline.backup()
    assert pipeline.dump.ended[0] - began < 2.0 + 4.0  # type: ignore[attr-defined]
    assert (0, 2) == (report.exit_code, len(report.kept_in)), report.text
    assert "took nothing for 2 s" in report.stores[1].dropped_out
    assert pipeline.verify().ok
    keys = {entry.key.rpartition("/")[2] for entry in s3.entries()}
    assert {"manifest.json", "RECOVER.txt", "shop.dump"} == {key for key in keys if not key.startswith("verify-")}


def test_a_bucket_that_stays_away(s3: S3, spoiled: S3, proxy: FaultProxy, tmp_path: Path) -> None:
    """The run ends in bounded time with exit code 3 and the store named; nothing of the backup is in the bucket."""
    pipeline = make(tmp_path, spoiled, catch_up_timeout=5.0)
    proxy.rules({"method": "PUT", "do": "answer", "status": 503, "code": "SlowDown", "times": 0})
    began = time.monotonic()
    report = pipeline.backup()
    assert time.monotonic() - began < 30
    assert (3, (str(tmp_path / "local"),)) == (report.exit_code, report.kept_in)
    assert f"{spoiled.label}: cannot write" in report.stores[1].error
    assert [] == list(s3.entries())
    proxy.rules()
    assert (report.id,) == pipeline.copy().copied[spoiled.label]
    assert pipeline.verify().ok


def test_damage_in_the_local_store_is_healed_from_the_bucket(s3: S3, tmp_path: Path) -> None:
    """And the bucket's object from the local file."""
    pipeline = make(tmp_path, s3)
    id = pipeline.backup().id
    path = tmp_path / "local" / "shop" / id / "shop.dump"
    path.write_bytes(path.read_bytes()[:-1])
    assert (True, ("shop.dump",)) == ((report := pipeline.repair()).ok, report.repaired[str(tmp_path / "local")])
    s3.write(f"shop/{id}/shop.dump", (b"x" * 100,))
    assert (True, ("shop.dump",)) == ((report := pipeline.repair()).ok, report.repaired[s3.label])
    assert path.read_bytes() == b"".join(s3.read(f"shop/{id}/shop.dump"))
