"""All that a store must do, and what faults of the network do, on a server that is as strict as Amazon's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

import pgsnap_s3
from pgsnap import StoreError
from pgsnap.streams import drain
from pgsnap.streams import retry as remote
from pgsnap.testing import StoreConformance, StoreExamination, text
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_s3 import S3

MIB = 1 << 20
PART = 5 * MIB
SIZE = 3 * PART + MIB + 5
DATA = text(SIZE)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setattr(remote, "JITTER", 0.05)


class TestPlain(StoreConformance):
    """In a bucket without anything."""

    @pytest.fixture
    def store(self, s3: S3) -> S3:
        return s3


class TestLocked(StoreConformance):
    """In a bucket with object lock: what is deleted or replaced is there still, and never seen."""

    @pytest.fixture
    def store(self, ceph: Any, make_bucket: Callable[..., str]) -> S3:
        bucket = make_bucket(ObjectLockEnabledForBucket=True)
        store: S3 = ceph.store(bucket, object_lock="compliance", object_lock_days=1)
        return store


class TestEncrypted(StoreConformance):
    """With a key of a key service, where ETags are no digests that could be relied on."""

    @pytest.fixture
    def store(self, s3: S3) -> S3:
        return attrs.evolve(s3, encryption="aws:kms", kms_key="testkey-1")


class TestDoctor(StoreExamination):
    """What doctor says of a bucket without anything."""

    @pytest.fixture
    def store(self, s3: S3) -> S3:
        return s3


class TestDoctorOfLocks(StoreExamination):
    """What doctor says of a bucket with object lock."""

    @pytest.fixture
    def store(self, ceph: Any, make_bucket: Callable[..., str]) -> S3:
        bucket = make_bucket(ObjectLockEnabledForBucket=True)
        store: S3 = ceph.store(bucket, object_lock="governance", object_lock_days=1)
        return store


# --- faults ----------------------------------------------------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"do": "cut", "after": 100_000},
    "stall": {"do": "stall", "after": 100_000},
    "500": {"do": "answer", "status": 500, "code": "InternalError"},
    "SlowDown": {"do": "answer", "status": 503, "code": "SlowDown"},
}


def pieces(data: bytes = DATA) -> Iterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


def left(store: S3) -> tuple[list[str], list[str]]:
    """Return what objects and what multipart uploads are there, asked without the proxy."""
    pages = store._pages("list_multipart_uploads", "KeyMarker", "NextKeyMarker", "")
    return [entry.key for entry in store.entries()], [item["Key"] for page in pages for item in page.get("Uploads", ())]


@pytest.mark.parametrize("part", [1, 2, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_survived(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str, part: int) -> None:
    """The part is sent again, and only that one; the object is whole, and no upload is left."""
    proxy.rules({"method": "PUT", "contains": f"partNumber={part}&", "times": 1, **FAULTS[fault]})
    assert SIZE == spoiled.write("shop/object", pieces())
    assert 5 == sum("partNumber=" in line for line in proxy.requests())
    assert DATA == b"".join(s3.read("shop/object"))
    assert (["shop/object"], []) == left(s3)


@pytest.mark.parametrize("part", [1, 2, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_leaves_nothing(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str, part: int) -> None:
    """The write fails in bounded time with the store named; no object and no upload is there."""
    proxy.rules({"method": "PUT", "contains": f"partNumber={part}&", "times": 0, **FAULTS[fault]})
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot write shop/object") as caught:
        attrs.evolve(spoiled, io_timeout=1.0).write("shop/object", pieces())
    assert time.monotonic() - began < 20
    assert spoiled.label == caught.value.label
    assert ([], []) == left(s3)


@pytest.mark.parametrize("fault", [*FAULTS, "mute"])
def test_faults_of_creation_and_completion(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str) -> None:
    """What was done and whose answer got lost is found: one object, whole, and no upload."""
    rule = {"do": "mute", **FAULTS.get(fault, {})}
    proxy.rules({"method": "POST", "contains": "uploads", **rule}, {"method": "POST", "contains": "uploadId", **rule})
    assert SIZE == spoiled.write("shop/object", pieces())
    assert DATA == b"".join(s3.read("shop/object"))
    assert (["shop/object"], []) == left(s3)


def test_an_upload_that_somebody_aborts_meanwhile(s3: S3) -> None:
    """The write fails and nothing is published, whatever the server calls it."""

    def source() -> Iterator[bytes]:
        yield DATA[: 3 * PART]
        while not (pages := list(s3._pages("list_multipart_uploads", "KeyMarker", "NextKeyMarker", "")))[0].get("Uploads"):
            pass
        (item,) = pages[0]["Uploads"]
        s3._connect().call("abort_multipart_upload", UploadId=item["UploadId"], **s3._place("shop/object"))
        yield DATA[3 * PART :]

    with pytest.raises(StoreError, match="cannot write shop/object"):
        s3.write("shop/object", source())
    assert ([], []) == left(s3)


def test_uploads_of_killed_runs_are_swept(s3: S3) -> None:
    """By their age, below the prefix."""
    for key in ("shop/a", "shop/b", "other/c"):
        upload = s3._connect().call("create_multipart_upload", **s3._place(key))["UploadId"]
        s3._connect().call("upload_part", DATA[:PART], PartNumber=1, UploadId=upload, **s3._place(key))
    now = datetime.now(UTC)
    assert [] == list(s3.sweep("shop/", now - timedelta(hours=1)))
    assert ["shop/a", "shop/b"] == sorted(s3.sweep("shop/", now + timedelta(hours=1)))
    assert ([], ["pg backups/other/c"]) == left(s3)


def test_parts_that_are_too_small(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option refuses them; where a server wants more than the option, its refusal is told, and nothing is left."""
    monkeypatch.setattr(pgsnap_s3, "LEAST_PART", MIB)
    with pytest.raises(StoreError, match="cannot write shop/object: the server wants larger parts; raise part_size"):
        attrs.evolve(s3, part_size=MIB).write("shop/object", pieces())
    assert ([], []) == left(s3)


def test_a_read_goes_on_where_it_was_cut_off(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """At the byte, in each range, with the server's own answers to ranges."""
    s3.write("a", pieces())
    proxy.rules({"method": "GET", "contains": "/a", "do": "truncate", "after": MIB, "times": 3})
    assert DATA == b"".join(spoiled.read("a"))
    assert DATA[7 : 7 + PART] == b"".join(s3.read("a", 7, PART))


def test_an_object_that_is_replaced_while_it_is_read(s3: S3) -> None:
    """Ranges of two objects are never joined."""
    s3.write("a", pieces(text(40 * MIB)))
    stream = s3.read("a")
    next(stream)
    s3.write("a", pieces(text(40 * MIB, seed=2)))
    with pytest.raises(StoreError, match="a was replaced while it was read"):
        drain(stream)


def test_a_completion_that_was_never_answered(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """The write fails, and what is there is whole; no manifest will speak of it."""
    proxy.rules({"method": "POST", "contains": "uploadId", "do": "mute", "times": 0})
    with pytest.raises(StoreError, match="cannot write shop/object"):
        spoiled.write("shop/object", pieces())
    assert [] == left(s3)[1]
    assert DATA == b"".join(s3.read("shop/object"))
