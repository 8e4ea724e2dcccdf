"""What keys are refused, in a sentence without a secret, and what a backup does with a key that may do little."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import attrs
import botocore.session
import pytest
from botocore.config import Config

from pgsnap import (
    Artifact,
    Denied,
    Dump,
    Dumper,
    Facts,
    Pipeline,
    RestoreRequest,
    RetentionPolicy,
    Run,
    Secret,
    Source,
    StoreError,
)
from pgsnap.operations.doctor import examine
from pgsnap.streams import Stream, drain
from pgsnap.testing import text
from pgsnap_s3 import S3

MIB = 1 << 20
DATA = text(12 * MIB)

WORK: dict[str, Callable[[S3], object]] = {
    "write a small object": lambda store: store.write("a", [b"x"]),
    "write a large object": lambda store: store.write("a", [text(6 * MIB)]),
    "read": lambda store: drain(store.read("there")),
    "list": lambda store: list(store.entries()),
    "sweep": lambda store: store.sweep("", datetime.now(UTC)),
}
"""What a store does; deleting returns its refusals."""


@attrs.frozen(kw_only=True)
class Bytes(Dumper):
    """Dumps 12 MiB: three parts."""

    name: ClassVar[str] = "bytes"

    @contextlib.contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        def stream() -> Stream:
            for start in range(0, len(DATA), MIB):
                yield DATA[start : start + MIB]

        yield Dump(artifacts=[Artifact(name="shop.dump", open=stream)])

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        raise NotImplementedError

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "@{shop.dump}"


def refused(store: S3, *but: str) -> dict[str, str]:
    """Return the sentences of everything that is denied; what is named in ``but`` must work, and all else must be denied."""
    said = {}
    for what, work in WORK.items():
        if what in but:
            work(store)
            continue
        with pytest.raises(Denied) as caught:
            work(store)
        said[what] = str(caught.value)
        assert not caught.value.transient
    return said


@pytest.fixture
def there(s3: S3) -> S3:
    """The owner's store, with an object in it."""
    s3.write("there", [b"there"])
    return s3


# --- wrong ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"access_key": "canary-of-no-key"}, "the server does not know the access key; check access_key, or AWS_ACCESS_KEY_ID."),
        (
            {"secret_key": "canary-of-no-secret"},
            "the secret key does not belong to the access key; check secret_key, or AWS_SECRET_ACCESS_KEY.",
        ),
    ],
)
def test_wrong_keys(there: S3, options: dict[str, str], problem: str) -> None:
    """The server checks the signature: each operation says which of the two is wrong, and neither value."""
    store = attrs.evolve(there, **{name: Secret(value) for name, value in options.items()})
    said = refused(store)
    said["delete one"] = store.delete(["there"])["there"]
    with pytest.raises(Denied) as caught:
        store.delete(["there", "b"])
    said["delete several"] = str(caught.value)
    for text_ in said.values():
        assert text_.endswith(problem)
        assert "canary" not in text_
    assert [("error", True)] == [(f.level, problem in f.text) for f in store.preflight(Run("shop"))]
    assert ["there"] == [entry.key for entry in there.entries()]


def test_a_missing_bucket(s3: S3) -> None:
    """It is not an empty one, and it is not made."""
    store = attrs.evolve(s3, url="s3://missing-bucket/folder")
    for what, work in WORK.items():
        with pytest.raises(StoreError, match="the bucket does not exist; create it, or correct the url") as caught:
            work(store)
        assert not isinstance(caught.value, Denied), what
    assert "the bucket does not exist" in store.delete(["a"])["a"]
    assert ["error"] == [finding.level for finding in store.preflight(Run("shop"))]


def test_the_region_is_part_of_the_signature_only(there: S3) -> None:
    """Ceph checks the signature with whatever region it was made for; the store works."""
    assert b"there" == b"".join(attrs.evolve(there, region="eu-central-1").read("there"))


def test_somebody_elses_bucket(there: S3, ceph: Any) -> None:
    """Everything is denied, with the permission that is missing, and doctor does not take it for a key that may write."""
    store = attrs.evolve(there, **ceph.guest.options)
    said = refused(store)
    assert "allow s3:PutObject" in said["write a small object"]
    assert "allow s3:PutObject" in said["write a large object"]
    assert "allow s3:GetObject" in said["read"]
    assert "allow s3:ListBucket on this bucket" in said["list"]
    for keys in (["there"], ["there", "b"]):
        assert set(keys) == store.delete(keys).keys()
        assert all("allow s3:DeleteObject" in reason for reason in store.delete(keys).values())
    (finding,) = examine(store, Run("shop"))
    assert ("error", True) == (finding.level, "allow s3:PutObject" in finding.text)
    assert ["there"] == [entry.key for entry in there.entries()]


# --- keys that may do little -----------------------------------------------------------------------------------------


def test_a_key_that_may_only_write(there: S3, allow: Callable[..., S3]) -> None:
    """A backup through it is whole, and the owner's key reads it; listing, pruning and deleting by it is denied."""
    writer = allow(there._bucket, "PutObject", "AbortMultipartUpload", deny=("GetObject", "ListBucket", "DeleteObject"))
    report = Pipeline(name="shop", dump=Bytes(), stores=[writer], auto_prune=False).backup()
    assert (writer.label,) == report.kept_in
    said = refused(writer, "write a small object", "write a large object")
    assert {"read", "list", "sweep"} == said.keys()
    keys = [f"shop/{report.id}/{name}" for name in ("manifest.json", "shop.dump")]
    assert set(keys) == writer.delete(keys).keys()

    reader = Pipeline(name="shop", dump=Bytes(), stores=[there])
    assert [report.id] == [backup.id for backup in reader.backups().backups]
    assert (0, True) == ((checked := reader.verify(decode=True)).exit_code, checked.ok)
    assert DATA == b"".join(there.read(keys[1]))
    with pytest.raises(StoreError, match="allow s3:ListBucket on this bucket"):
        Pipeline(name="shop", dump=Bytes(), stores=[writer]).prune()
    levels = [(finding.level, finding.text) for finding in examine(writer, Run("doctor"))]
    assert [] == [text_ for level, text_ in levels if level == "error"]
    told = " ".join(text_ for level, text_ in levels if level == "info")
    for what in ("the key may not read", "the key may not list", "the key may not delete"):
        assert what in told


def test_a_key_that_may_not_delete(there: S3, allow: Callable[..., S3]) -> None:
    """Backups are made and listed; a prune says what it was refused, for one and for many, and all of them stay whole."""
    actions = ("PutObject", "GetObject", "ListBucket", "AbortMultipartUpload", "ListBucketMultipartUploads")
    store = allow(there._bucket, *actions, deny=("DeleteObject",))
    shop = Pipeline(name="shop", dump=Bytes(), stores=[store], keep=RetentionPolicy(last=1, min_good=1), auto_prune=False)
    ids = [shop.backup(now=datetime.now(UTC) - timedelta(days=ago)).id for ago in (3, 2, 1)]
    report = shop.prune()
    (result,) = report.stores
    assert (3, (), "") == (report.exit_code, result.deleted, result.error)
    assert {f"shop/{id}/manifest.json" for id in ids[:2]} == {key for key in result.refused if "manifest" in key}
    assert all("allow s3:DeleteObject" in reason for reason in result.refused.values())
    assert ids == [backup.id for backup in shop.backups().backups]
    assert all(shop.verify(id).ok for id in ids)


def test_a_key_that_may_only_read(there: S3, allow: Callable[..., S3], tmp_path: Path) -> None:
    """It lists, verifies and reads; writing and deleting is denied, and a run with another store keeps its backup there."""
    owners = Pipeline(name="shop", dump=Bytes(), stores=[there])
    id = owners.backup().id
    reader = allow(there._bucket, "GetObject", "ListBucket")
    said = refused(reader, "read", "list")
    assert "cannot write a: the key is not allowed to do that; allow s3:PutObject" in said["write a small object"]
    assert {"there", "b"} == reader.delete(["there", "b"]).keys()
    shop = Pipeline(name="shop", dump=Bytes(), stores=[reader])
    assert [id] == [backup.id for backup in shop.backups().backups]
    assert shop.verify(decode=True, record=False).ok
    both = Pipeline(name="shop", dump=Bytes(), stores=[tmp_path / "local", reader], catch_up_timeout=5.0)
    report = both.backup()
    assert (3, (str(tmp_path / "local"),)) == (report.exit_code, report.kept_in)
    assert "allow s3:PutObject" in report.text
    assert ["error"] == [finding.level for finding in examine(reader, Run("shop"))]


# --- temporary ones --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assume(ceph: Any) -> Callable[..., dict[str, Secret]]:
    """Get temporary credentials for some seconds, as a role that may write and nothing else; as options of a store."""
    trust = {"Effect": "Allow", "Principal": {"AWS": [ceph.owner.arn]}, "Action": ["sts:AssumeRole"]}
    may = {"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": ["*"]}
    documents = [json.dumps({"Version": "2012-10-17", "Statement": [statement]}) for statement in (trust, may)]
    ceph.admin("role", "create", "--role-name=backup", "--path=/", f"--assume-role-policy-doc={documents[0]}")
    ceph.admin("role-policy", "put", "--role-name=backup", "--policy-name=write", f"--policy-doc={documents[1]}")
    client = botocore.session.get_session().create_client(
        "sts",
        region_name="us-east-1",
        endpoint_url=ceph.sts_url,
        aws_access_key_id=ceph.owner.access_key,
        aws_secret_access_key=ceph.owner.secret_key,
        config=Config(parameter_validation=False),  # which knows that Amazon gives 900 seconds at least
    )

    def get(seconds: int) -> dict[str, Secret]:
        answer = client.assume_role(RoleArn="arn:aws:iam:::role/backup", RoleSessionName="backup", DurationSeconds=seconds)
        found = answer["Credentials"]
        names = {"access_key": "AccessKeyId", "secret_key": "SecretAccessKey", "session_token": "SessionToken"}
        return {option: Secret(found[name]) for option, name in names.items()}

    return get


def test_temporary_credentials(there: S3, ceph: Any, assume: Callable[..., dict[str, Secret]]) -> None:
    """They write, small and large, and do no more than their role."""
    store = attrs.evolve(there, endpoint=ceph.sts_url, **assume(900))
    said = refused(store, "write a small object", "write a large object")
    assert "If it is valid, the key is not allowed to do that; allow s3:ListBucket" in said["list"]


def test_a_token_that_expires(there: S3, ceph: Any, assume: Callable[..., dict[str, Secret]]) -> None:
    """From that second on everything is denied; the server says no more, so both reasons are told, without the token."""
    options = assume(3)
    store = attrs.evolve(there, endpoint=ceph.sts_url, **options)
    assert 1 == store.write("a", [b"x"])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # for the server to find it expired
        try:
            store.write("a", [b"x"])
        except Denied:
            break
        time.sleep(0.1)
    for text_ in refused(store).values():
        assert "the session token may have expired; get a new one" in text_
        assert not any(secret.reveal() in text_ for secret in options.values())


def test_a_token_that_expires_on_the_way(there: S3, ceph: Any, assume: Callable[..., dict[str, Secret]]) -> None:
    """Between two parts of an object: the write fails and nothing is published; the abort is denied too, and left to a sweep."""
    store = attrs.evolve(there, endpoint=ceph.sts_url, parts_in_flight=1, **assume(2))

    def source() -> Iterator[bytes]:
        yield DATA[: 10 * MIB]
        deadline = time.monotonic() + 30
        with contextlib.suppress(Denied):
            while time.monotonic() < deadline:
                store.write("b", [b"x"])
                time.sleep(0.1)
        yield DATA[10 * MIB :]

    with pytest.raises(Denied, match="cannot write a: the session token may have expired"):
        store.write("a", source())
    assert {"there", "b"} == {entry.key for entry in there.entries()}
    assert ["a"] == list(there.sweep("", datetime.now(UTC).replace(year=2100)))


def test_a_token_that_was_tampered_with(there: S3, ceph: Any, assume: Callable[..., dict[str, Secret]]) -> None:
    """It is denied, as is a temporary key without its token."""
    options = assume(900)
    token = options["session_token"].reveal()
    spoiled = Secret(token[:-12] + "A" * 11 + "=")
    store = attrs.evolve(there, endpoint=ceph.sts_url, **{**options, "session_token": spoiled})
    for text_ in refused(store).values():
        assert spoiled.reveal() not in text_
    refused(attrs.evolve(store, session_token=None))
