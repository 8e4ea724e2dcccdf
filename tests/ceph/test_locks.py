"""Versions, object lock and encryption by the server: what is kept of what is overwritten or deleted, and for how long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import attrs
import pytest
from botocore.exceptions import ClientError

from pgsnap import Artifact, Denied, Dump, Dumper, Facts, Pipeline, RestoreRequest, RetentionPolicy, Run, Source, StoreError
from pgsnap.streams import Stream
from pgsnap.testing import text
from pgsnap_s3 import S3

MIB = 1 << 20
DATA = text(12 * MIB)
DAY = timedelta(days=1)


@attrs.frozen(kw_only=True)
class Bytes(Dumper):
    """Dumps 12 MiB, which are three parts, and a little."""

    name: ClassVar[str] = "bytes"

    @contextlib.contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        def large() -> Stream:
            for start in range(0, len(DATA), MIB):
                yield DATA[start : start + MIB]

        def small() -> Stream:
            yield b"roles"

        yield Dump(artifacts=[Artifact(name="shop.dump", open=large), Artifact(name="globals.sql", open=small)])

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        raise NotImplementedError

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "@{shop.dump} @{globals.sql}"


OBJECTS = {"shop.dump", "globals.sql", "RECOVER.txt", "manifest.json"}


def versions(store: S3, key: str) -> list[dict[str, Any]]:
    """Return the versions of an object, deleted or not, newest first."""
    answer = store._connect().call("list_object_versions", Bucket=store._bucket, Prefix=store._place(key)["Key"])
    return [item for item in answer.get("Versions", ()) if item["Key"] == store._place(key)["Key"]]


def retention(store: S3, key: str, version: str | None = None) -> tuple[str, datetime]:
    """Return the mode and the end of a version's lock."""
    which = {} if version is None else {"VersionId": version}
    found = store._connect().call("get_object_retention", **store._place(key), **which)["Retention"]
    return found["Mode"], found["RetainUntilDate"]


def destroy(store: S3, key: str, version: str) -> None:
    """Delete a version for good, with every right there is."""
    place = store._place(key)
    store._connect().call("delete_object", VersionId=version, **place)


@pytest.fixture
def lockable(ceph: Any, make_bucket: Callable[..., str]) -> S3:
    """A store in a bucket with object lock, which does not lock."""
    store: S3 = ceph.store(make_bucket(ObjectLockEnabledForBucket=True))
    return store


@pytest.fixture(params=["governance", "compliance"])
def locked(lockable: S3, request: pytest.FixtureRequest) -> S3:
    """A store in a bucket with object lock, which locks for a day."""
    return attrs.evolve(lockable, object_lock=request.param, object_lock_days=1)


def pipeline(store: S3, *ago: int, **options: Any) -> Pipeline:
    """Make a pipeline with backups of the given days ago."""
    shop = Pipeline(**{"name": "shop", "dump": Bytes(), "stores": [store], "auto_prune": False, **options})
    for days in ago:
        shop.backup(now=datetime.now(UTC) - days * DAY)
    return shop


def ids(shop: Pipeline) -> list[str]:
    return [backup.id for backup in shop.backups().backups]


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_versioned_bucket_keeps_what_is_overwritten_and_deleted(s3: S3) -> None:
    """Every version is there still, and only the newest is listed and read; what is deleted is not listed."""
    s3._connect().call("put_bucket_versioning", Bucket=s3._bucket, VersioningConfiguration={"Status": "Enabled"})
    for size in (1, 6 * MIB, 3):
        s3.write("a", [text(size)])
    assert text(3) == b"".join(s3.read("a"))
    assert [("a", 3)] == [(entry.key, entry.size) for entry in s3.entries()]
    assert {} == s3.delete(["a", "missing"])
    assert [] == list(s3.entries())
    assert [3, 6 * MIB, 1] == [item["Size"] for item in versions(s3, "a")]


def test_a_prune_in_a_versioned_bucket(s3: S3) -> None:
    """What it deletes vanishes from the list; what is stored stays, for a lifecycle rule of the bucket to remove."""
    s3._connect().call("put_bucket_versioning", Bucket=s3._bucket, VersioningConfiguration={"Status": "Enabled"})
    shop = pipeline(s3, 3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    *going, staying = ids(shop)
    report = shop.prune()
    assert (0, tuple(going)) == (report.exit_code, report.stores[0].deleted)
    assert [staying] == ids(shop)
    assert all(key.startswith(f"shop/{staying}/") for key in [entry.key for entry in s3.entries()])
    for id in going:
        assert [len(DATA)] == [item["Size"] for item in versions(s3, f"shop/{id}/shop.dump")]
    assert () == shop.prune().stores[0].orphans


def test_doctor_speaks_of_versions(s3: S3) -> None:
    """Whether they are kept, and whether they ever go."""

    def said() -> dict[str, str]:
        return {finding.text: finding.level for finding in s3.examine(Run("shop"))}

    assert "warning" == said()["the bucket keeps no versions."]
    s3._connect().call("put_bucket_versioning", Bucket=s3._bucket, VersioningConfiguration={"Status": "Enabled"})
    assert "ok" == said()["the bucket keeps versions of what is overwritten or deleted."]
    assert "warning" == said()["no lifecycle rule removes old versions: what prune deletes is kept and paid for."]
    rule = {"ID": "old", "Filter": {"Prefix": ""}, "Status": "Enabled", "NoncurrentVersionExpiration": {"NoncurrentDays": 7}}
    s3._connect().call("put_bucket_lifecycle_configuration", Bucket=s3._bucket, LifecycleConfiguration={"Rules": [rule]})
    assert "ok" == said()["a lifecycle rule removes old versions."]


# --- object lock -----------------------------------------------------------------------------------------------------


def test_every_object_of_a_backup_is_locked(locked: S3) -> None:
    """Those sent in parts, too, for which Ceph forgets it; no version can be deleted for good, in compliance by nobody."""
    (id,) = ids(pipeline(locked, 0))
    keys = {entry.key.rpartition("/")[2]: entry.key for entry in locked.entries(f"shop/{id}/")}
    assert OBJECTS == keys.keys()
    for key in keys.values():
        mode, end = retention(locked, key)
        assert str(locked.object_lock).upper() == mode
        assert abs(end - datetime.now(UTC) - DAY) < timedelta(minutes=2)
        assert end == locked.locked_until(key)
        (version,) = versions(locked, key)
        with pytest.raises(ClientError, match="AccessDenied"):
            destroy(locked, key, version["VersionId"])
    assert (version,) == tuple(versions(locked, key))


def test_what_overwriting_and_deleting_leave_of_a_locked_object(locked: S3) -> None:
    """The lock is of the version: the object can be replaced and hidden, and what was there is read by its version still."""
    locked.write("a", [DATA])
    locked.write("a", [b"forged"])
    assert {} == locked.delete(["a"])
    assert [] == list(locked.entries())
    first = versions(locked, "a")[-1]
    with pytest.raises(ClientError, match="AccessDenied"):
        destroy(locked, "a", first["VersionId"])
    assert DATA == drain_version(locked, "a", first["VersionId"])


def drain_version(store: S3, key: str, version: str) -> bytes:
    into = bytearray()
    store._connect().fetch(into, len(DATA), lambda answer: None, VersionId=version, **store._place(key))
    return bytes(into)


def test_a_prune_extends_what_it_keeps(lockable: S3) -> None:
    """The retention of every object of a kept backup grows, that of a pruned one does not; the pruned one is not listed, and
    its versions stay until their own lock ends."""
    store = attrs.evolve(lockable, object_lock="compliance", object_lock_days=1)
    shop = pipeline(store, 3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    *going, staying = ids(shop)
    before = {key: retention(store, key)[1] for key in sorted(entry.key for entry in store.entries("shop/"))}
    longer = attrs.evolve(shop, stores=[attrs.evolve(store, object_lock_days=10)])  # of which one day is less than half
    dry = longer.prune(dry_run=True)
    assert ((staying,), ()) == (dry.stores[0].extended, dry.stores[0].deleted)
    assert before == {key: retention(store, key)[1] for key in before}

    report = longer.prune()
    assert (0, tuple(going), (staying,)) == (report.exit_code, report.stores[0].deleted, report.stores[0].extended)
    assert [staying] == ids(shop)
    assert shop.verify(decode=True, record=False).ok
    for key, end in before.items():
        if f"/{staying}/" in key:
            mode, now_ends = retention(store, key)
            assert ("COMPLIANCE", True) == (mode, now_ends - end > 8 * DAY)
            continue
        oldest = versions(store, key)[-1]["VersionId"]
        assert ("COMPLIANCE", end) == retention(store, key, oldest)
        with pytest.raises(ClientError, match="AccessDenied"):
            destroy(store, key, oldest)
    again = longer.prune()
    assert (0, ()) == (again.exit_code, again.stores[0].extended)


def test_an_extension_neither_shortens_nor_changes_the_mode(lockable: S3) -> None:
    """A store that is set otherwise by now leaves what is stricter as it is; what had no lock gets one."""
    compliance = attrs.evolve(lockable, object_lock="compliance", object_lock_days=20)
    governance = attrs.evolve(lockable, object_lock="governance", object_lock_days=1)
    compliance.write("strict", [b"x"])
    governance.write("mild", [b"x"])
    lockable.write("none", [b"x"])
    ends = retention(lockable, "strict")[1]
    until = datetime.now(UTC).replace(microsecond=0) + 5 * DAY
    assert {} == governance.extend_lock(["strict", "mild", "none"], until)
    assert ("COMPLIANCE", ends) == retention(lockable, "strict")
    assert {} == governance.extend_lock(["strict"], ends + DAY)
    assert ("COMPLIANCE", ends + DAY) == retention(lockable, "strict")
    assert {} == compliance.extend_lock(["mild"], until + DAY)
    assert ("GOVERNANCE", until + DAY) == retention(lockable, "mild")
    assert ("GOVERNANCE", until) == retention(lockable, "none")


@pytest.mark.parametrize("denied", ["PutObjectRetention", "GetObjectRetention"])
def test_a_key_that_may_not_lock(lockable: S3, allow: Callable[..., S3], denied: str) -> None:
    """Its prune deletes what is due, since leases and marks are not locked, and says which permissions it lacks; exit code 3."""
    shop = pipeline(lockable, 3, 2, 1, keep=RetentionPolicy(last=1, min_good=1))
    *going, staying = ids(shop)
    guest = allow(lockable._bucket, "*", deny=(denied,), object_lock="governance", object_lock_days=1)
    report = attrs.evolve(shop, stores=[guest]).prune()
    result = report.stores[0]
    assert (3, tuple(going), "") == (report.exit_code, result.deleted, result.error)
    assert {staying} == {key.split("/")[1] for key in result.unlocked}
    assert all("allow s3:PutObjectRetention and s3:GetObjectRetention" in reason for reason in result.unlocked.values())
    assert [staying] == ids(shop)


def test_what_is_of_use_for_minutes_is_not_locked(locked: S3) -> None:
    """Leases, signs of life and the marks of a prune are refreshed or removed; each lock would keep a version for days."""
    for key in ("shop/leases/1f.json", "shop/20261122T080000Z-4f3a/running.json", "shop/20261122T080000Z-4f3a/pruned.json"):
        locked.write(key, [b"x"])
        assert locked.locked_until(key) is None
        (version,) = versions(locked, key)
        destroy(locked, key, version["VersionId"])
        assert [] == versions(locked, key)


def test_a_bucket_without_object_lock(s3: S3) -> None:
    """Nothing is stored unlocked where a lock was asked for, also where the server says nothing; doctor says it before."""
    store = attrs.evolve(s3, object_lock="compliance", object_lock_days=1)
    for size in (1, 6 * MIB):
        with pytest.raises(StoreError, match="enable object lock on the bucket, or unset object_lock"):
            store.write("a", [text(size)])
    assert [] == list(s3.entries())
    problem = "object_lock is set, and the bucket has no object lock."
    for findings in (store.preflight(Run("shop")), store.examine(Run("shop"))):
        (finding,) = [finding for finding in findings if finding.level == "error"]
        assert (problem, "Enable it on the bucket, or unset object_lock.") == (finding.text, finding.remedy)


def test_doctor_speaks_of_locks(locked: S3) -> None:
    """The bucket has them; without a lifecycle rule, old versions stay for good."""
    said = {finding.text: finding.level for finding in locked.examine(Run("doctor"))}
    assert "ok" == said["the bucket has object lock."]
    assert "warning" == said["no lifecycle rule removes old versions: what prune deletes is kept and paid for."]
    assert {"ok", "warning"} == set(said.values())
    assert ["ok"] == [finding.level for finding in locked.preflight(Run("shop"))]


# --- encryption by the server ----------------------------------------------------------------------------------------


def test_a_key_of_a_key_service(s3: S3) -> None:
    """Objects are encrypted by it, small and large ones, and whole; their ETags are no digests and are not taken for ones."""
    store = attrs.evolve(s3, encryption="aws:kms", kms_key="testkey-1")
    (id,) = ids(shop := pipeline(store, 0))
    assert shop.verify(decode=True, record=False).ok
    for name in OBJECTS:
        head = s3._connect().call("head_object", **s3._place(f"shop/{id}/{name}"))
        assert ("aws:kms", "testkey-1") == (head["ServerSideEncryption"], head["SSEKMSKeyId"])
    assert [] == [finding for finding in store.examine(Run("shop")) if "encryption" in finding.text]


def test_a_key_that_the_key_service_does_not_have(s3: S3) -> None:
    """It is told as that, although Ceph calls it an unknown access key."""
    store = attrs.evolve(s3, encryption="aws:kms", kms_key="no-such-key")
    for size in (1, 6 * MIB):
        with pytest.raises(StoreError, match="the server does not know the kms_key; correct it") as caught:
            store.write("a", [text(size)])
        assert not isinstance(caught.value, Denied)
    assert [] == list(s3.entries())


def test_encryption_that_the_server_does_not_know(s3: S3) -> None:
    """This Ceph takes AES256 and encrypts nothing: doctor sees that the answer does not speak of it."""
    store = attrs.evolve(s3, encryption="AES256")
    store.write("a", [b"x"])
    assert "ServerSideEncryption" not in s3._connect().call("head_object", **s3._place("a"))
    levels = {finding.text: finding.level for finding in store.examine(Run("shop"))}
    assert "warning" == levels["encryption = 'AES256' is set, and the server does not say that it encrypts."]
