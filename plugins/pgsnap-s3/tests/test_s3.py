"""The store against a real server: the conformance suite, and what is special to S3."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from pgsnap import ConfigError, Denied, NotFound, Run, Secret, StoreError
from pgsnap.operations.doctor import examine
from pgsnap.repository.catalog import Catalog
from pgsnap.streams import drain
from pgsnap.streams import retry as remote
from pgsnap.testing import StoreConformance, StoreExamination, text
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_s3 import S3, connection
from pgsnap_s3.download import Download
from pgsnap_s3.providers import PROVIDERS

MIB = 1 << 20
DENY = {"do": "answer", "status": 403, "code": "AccessDenied", "times": 0}


class TestS3(StoreConformance):
    """All rules of a store, in a folder of a bucket, with parts of 5 MiB."""

    @pytest.fixture
    def store(self, s3: S3) -> S3:
        return s3


class TestDoctor(StoreExamination):
    """What doctor says of it."""

    @pytest.fixture
    def store(self, s3: S3) -> S3:
        return s3


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setattr(remote, "JITTER", 0.05)


def make(**options: Any) -> S3:
    return S3(**{"url": "s3://bucket/folder", **options})


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "s3://KEY:hidden@bucket"}, r"^s3://bucket: keys do not belong in the url; give access_key"),
        ({"url": "s3:///folder"}, "the url of a bucket is s3://bucket or s3://bucket/folder"),
        ({"url": "s3://bucket?versionId=1"}, "the url of a bucket is"),
        ({"provider": "azure"}, "s3's provider is 'azure'; choose from aws, r2, b2"),
        ({"provider": "r2"}, "the provider r2 needs an endpoint"),
        ({"provider": "hetzner"}, "the provider hetzner needs a region"),
        ({"endpoint": "s3.example.org"}, "endpoint wants a URL such as https://s3.example.org"),
        ({"endpoint": "https://user:hidden@s3.example.org"}, "endpoint wants a URL"),
        ({"access_key": Secret("hidden")}, "give access_key and secret_key, both or neither"),
        ({"profile": "x", "access_key": Secret("hidden"), "secret_key": Secret("hidden")}, "a profile or access_key, not both"),
        ({"part_size": MIB}, "part_size is 1048576 bytes; S3 takes parts of 5MiB to 5GiB"),
        ({"parts_in_flight": 0}, "parts_in_flight is 0; give 1 to 64"),
        ({"io_timeout": 0.0}, "io_timeout is 0; give a number of seconds above 0"),
        ({"kms_key": "x"}, "kms_key is used with encryption = 'aws:kms' only"),
        ({"object_lock": "governance"}, "give object_lock and object_lock_days, both or neither"),
        ({"object_lock": "governance", "object_lock_days": 0}, "object_lock_days is 0; give 1 or more"),
    ],
)
def test_bad_options(options: dict[str, Any], problem: str) -> None:
    """Each is told in a sentence, without a secret, when the store is made."""
    with pytest.raises(ConfigError, match=problem) as caught:
        make(**options)
    assert "hidden" not in str(caught.value)


def test_the_largest_object_is_the_parts_that_the_provider_takes() -> None:
    """The core cuts an artifact there."""
    assert 10_000 * 16 * MIB == make().max_object
    assert 1_000 * 16 * MIB == make(provider="scaleway", region="fr-par").max_object
    assert 1_000 * 5 * MIB == make(provider="scaleway", region="fr-par", part_size=5 * MIB).max_object
    assert 5 << 40 == make(part_size=1 << 30).max_object


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_every_preset_makes_a_client(provider: str) -> None:
    """Its endpoint is filled in, and botocore accepts what it sets."""
    given = {"endpoint": "https://s3.example.org"} if provider in ("r2", "minio", "ceph", "other") else {}
    store = make(provider=provider, region="eu-central-1", access_key=Secret("a"), secret_key=Secret("b"), **given)
    client: Any = store._connect()._client
    assert "{" not in client.meta.endpoint_url
    assert "eu-central-1" == client.meta.region_name
    assert client.meta.config.request_checksum_calculation == "when_required"


def test_stores_of_equal_settings_share_a_client(s3: S3) -> None:
    """A run writes dozens of objects from as many threads; each new client would cost a session and a connection."""
    assert s3._connect()._client is pickle.loads(pickle.dumps(s3))._connect()._client
    assert s3._connect()._client is not attrs.evolve(s3, io_timeout=3.0)._connect()._client


def test_what_goes_with_an_object(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class, encryption and lock are asked for when the object is begun, whether it has one part or several."""
    seen: dict[str, dict[str, Any]] = {}
    call = connection.Connection.call

    def record(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        seen[method] = kwargs
        if method == "get_object_retention":  # this server knows no locks; those are tested on Ceph
            return {"Retention": {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=3)}}
        extra = ("ObjectLockMode", "ObjectLockRetainUntilDate", "ServerSideEncryption", "SSEKMSKeyId", "StorageClass")
        return call(self, method, *args, **{name: value for name, value in kwargs.items() if name not in extra})

    monkeypatch.setattr(connection.Connection, "call", record)
    store = attrs.evolve(
        s3, storage_class="STANDARD_IA", encryption="aws:kms", kms_key="id", object_lock="compliance", object_lock_days=3
    )
    store.write("small", [b"x"])
    store.write("large", [text(6 * MIB)])
    for method in ("put_object", "create_multipart_upload"):
        given = seen[method]
        assert "STANDARD_IA" == given["StorageClass"]
        assert ("aws:kms", "id") == (given["ServerSideEncryption"], given["SSEKMSKeyId"])
        assert "COMPLIANCE" == given["ObjectLockMode"]
        assert given["ObjectLockRetainUntilDate"].tzinfo is not None


def test_parts_have_one_size(spoiled: S3, proxy: FaultProxy) -> None:
    """All but the last, whatever the chunks were: some providers demand it."""
    assert 17 * MIB == spoiled.write("a", [text(1_300_000)] * 13 + [text(17 * MIB - 13 * 1_300_000)])
    numbers = [line.partition("partNumber=")[2].partition("&")[0] for line in proxy.requests() if "partNumber" in line]
    assert ["1", "2", "3", "4"] == sorted(numbers)


def test_more_parts_than_the_provider_takes(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before the server says it; the core cuts artifacts so that it does not happen."""
    monkeypatch.setitem(PROVIDERS, "other", attrs.evolve(PROVIDERS["other"], max_parts=2))
    with pytest.raises(StoreError, match="it has more than 2 parts of 5242880 bytes; raise part_size"):
        s3.write("a", [text(11 * MIB)])
    assert [] == list(s3.entries())


# --- credentials and permissions -------------------------------------------------------------------------------------


def test_wrong_credentials(s3: S3) -> None:
    """Each operation says which of the two is wrong, and neither value."""
    cases = {
        r"the server does not know the access key; check access_key": attrs.evolve(s3, access_key=Secret("canary-of-the-key")),
        r"the secret key does not belong to the access key": attrs.evolve(s3, secret_key=Secret("canary-of-another")),
    }
    for problem, store in cases.items():
        for work in (
            lambda store: store.write("a", [b"x"]),
            lambda store: store.write("a", [text(6 * MIB)]),
            lambda store: drain(store.read("a")),
            lambda store: list(store.entries()),
        ):
            with pytest.raises(Denied, match=problem) as caught:
                work(store)
            assert "canary" not in str(caught.value)
        assert ["error"] == [finding.level for finding in store.preflight(Run("shop"))]


def test_no_credentials(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without keys in options, variables, files or from the machine, the sentence says where they go."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = attrs.evolve(s3, access_key=None, secret_key=None)
    with pytest.raises(Denied, match="there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        store.write("a", [b"x"])
    with pytest.raises(ConfigError, match="the AWS profile 'nobody' is not in"):
        attrs.evolve(store, profile="nobody").write("a", [b"x"])


def test_credentials_of_the_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """What every AWS tool reads is read, and read again when it changes."""
    assert s3.access_key is not None
    assert s3.secret_key is not None
    store = attrs.evolve(s3, access_key=None, secret_key=None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key.reveal())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Denied):
        store.write("a", [b"x"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key.reveal())
    assert 1 == store.write("a", [b"x"])


def test_a_missing_bucket(s3: S3) -> None:
    """It is not an empty one."""
    store = attrs.evolve(s3, url="s3://missing-bucket/folder")
    for work in (lambda: store.write("a", [b"x"]), lambda: store.write("a", [text(6 * MIB)]), lambda: list(store.entries())):
        with pytest.raises(StoreError, match="the bucket does not exist; create it, or correct the url"):
            work()
    assert ["error"] == [finding.level for finding in store.preflight(Run("shop"))]


@pytest.mark.parametrize("size", [10, 11 * MIB])
def test_a_key_that_may_only_write(s3: S3, spoiled: S3, proxy: FaultProxy, size: int) -> None:
    """The answer to the write must do where neither HEAD nor list nor delete is allowed; everything else is Denied."""
    proxy.rules(
        *({"method": method, **DENY} for method in ("HEAD", "GET", "DELETE")), {"method": "POST", "contains": "delete", **DENY}
    )
    assert size == spoiled.write("a/b", [text(size)])
    assert text(size) == b"".join(s3.read("a/b"))
    with pytest.raises(Denied, match="the key is not allowed to do that; allow s3:ListBucket on this bucket"):
        list(spoiled.entries())
    with pytest.raises(Denied, match="allow s3:GetObject"):
        drain(spoiled.read("a/b"))
    assert {"a/b"} == spoiled.delete(["a/b"]).keys()
    for keys in (["a/b"], ["a/b", "c"]):
        assert set(keys) == spoiled.delete(keys).keys()
        assert all("allow s3:DeleteObject" in reason for reason in spoiled.delete(keys).values())
    with pytest.raises(Denied, match="s3:ListBucketMultipartUploads"):
        spoiled.sweep("a/", datetime.now(UTC))
    assert ["info"] == [finding.level for finding in spoiled.preflight(Run("shop"))]


def test_a_bucket_that_may_only_be_read(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """The sentence names the permission."""
    proxy.rules({"method": "PUT", **DENY}, {"method": "POST", **DENY})
    for size in (1, 6 * MIB):
        with pytest.raises(Denied, match="cannot write a: the key is not allowed to do that; allow s3:PutObject"):
            spoiled.write("a", [text(size)])
    assert [] == list(s3.entries())


@pytest.mark.parametrize(
    ("code", "status", "kind", "problem"),
    [
        ("ExpiredToken", 400, Denied, "the session token has expired; get a new one"),
        ("AuthorizationHeaderMalformed", 400, StoreError, "the bucket is in another region; set region"),
        ("RequestTimeTooSkewed", 403, StoreError, "the clock of this host differs too much"),
        ("EntityTooLarge", 400, StoreError, "lower part_size"),
        ("QuotaExceeded", 403, StoreError, "the quota is used up"),
        ("SomethingNew", 418, StoreError, "the server answers 418 SomethingNew: spoiled"),
    ],
)
def test_answers(spoiled: S3, proxy: FaultProxy, code: str, status: int, kind: type[StoreError], problem: str) -> None:
    """Known codes become sentences with the next step, others are repeated; none of these is asked again."""
    proxy.rules({"method": "PUT", "do": "answer", "status": status, "code": code, "times": 0})
    with pytest.raises(kind, match=problem) as caught:
        spoiled.write("a", [b"x"])
    assert (spoiled.label, False) == (caught.value.label, caught.value.transient)
    assert 1 == len(proxy.requests())


def test_no_server(s3: S3) -> None:
    """A refused connection is the network's fault: it may pass."""
    with pytest.raises(StoreError, match="cannot write a: EndpointConnectionError") as caught:
        attrs.evolve(s3, endpoint="http://127.0.0.1:1").write("a", [b"x"])
    assert caught.value.transient


# --- list and delete -------------------------------------------------------------------------------------------------


def test_ten_thousand_backups_are_listed_by_pages_alone(server: tuple[str, int, Path], spoiled: S3, proxy: FaultProxy) -> None:
    """One request for each 1,000 objects and no other: no manifest is opened, no object looked at."""
    folder = server[2] / spoiled._bucket / "pg backups" / "shop"
    for number in range(10_000):
        backup = folder / f"20{number // 600:02d}0101T{number // 60 % 10:02d}{number % 60:02d}00Z-4f3a"
        backup.mkdir(parents=True)
        (backup / "manifest.json").write_bytes(b"{}")
    found = Catalog.read("shop", [attrs.evolve(spoiled, io_timeout=60.0)]).backups
    asked = proxy.requests()
    assert 10_000 == len(found)
    assert 10 <= len(asked) <= 11
    assert all(line.startswith("GET ") and "list-type=2" in line for line in asked)


def test_2500_objects_are_deleted_by_thousands(s3: S3, spoiled: S3, proxy: FaultProxy, server: tuple[str, int, Path]) -> None:
    """Three requests, those that are not there among them; what a server cannot do in bulk is done one by one."""
    folder = server[2] / spoiled._bucket / "pg backups"
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"{number}").write_bytes(b"x")
    assert {} == spoiled.delete([str(number) for number in range(2_500)])
    assert 3 == len(proxy.requests())
    assert [] == list(s3.entries())
    for name in "abc":
        s3.write(name, [b"x"])
    for code, status in (("MissingContentMD5", 400), ("NotImplemented", 501)):
        proxy.rules({"method": "POST", "do": "answer", "status": status, "code": code})
        assert {} == spoiled.delete(["a", "b"])
    assert ["c"] == [entry.key for entry in s3.entries()]


def test_a_list_that_does_not_go_on(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says there is more, and gives the same page again, would make a loop or a false list."""
    monkeypatch.setattr(connection.Connection, "call", lambda *_, **__: {"IsTruncated": True, "NextContinuationToken": "same"})
    with pytest.raises(StoreError, match="says that its list goes on, and not where"):
        list(s3.entries())


def test_a_server_that_does_not_know_ranges_is_not_resumed() -> None:
    """It gives the object from its first byte again: that is no rest of what was cut off."""

    class Whole:
        def fetch(self, into: bytearray, length: int, check: Any, **_: Any) -> None:
            check({"ContentLength": 10})
            if not into:
                into += b"01234"
                raise ConnectionResetError("cut off")
            into += b"0123456789"[:length]

    download = Download(connection=cast(Any, Whole()), label="s3://b", key="a", place={}, ranges_in_flight=2)
    with pytest.raises(StoreError, match="cannot read a: the server does not know ranges"):
        drain(download.receive(0, None))


def test_a_missing_object_names_the_store(s3: S3) -> None:
    """Store, key and what was done stand in the sentence."""
    with pytest.raises(NotFound, match=r"^s3://b\w+/pg backups: cannot read x/y: it is not there\.$"):
        drain(s3.read("x/y"))


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_on_a_key_that_may_only_write(spoiled: S3, proxy: FaultProxy) -> None:
    """It is said what other keys are needed for; nothing is an error."""
    proxy.rules(*({"method": method, **DENY} for method in ("HEAD", "GET")), {"method": "DELETE", "contains": "small", **DENY})
    levels = [(f.level, f.text) for f in examine(attrs.evolve(spoiled, io_timeout=20.0), Run("shop"))]
    assert [] == [text for level, text in levels if level == "error"]
    told = " ".join(text for level, text in levels if level == "info")
    assert "the key may not read" in told
    assert "the key may not list" in told


def test_doctor_on_a_lock_that_is_not_there(s3: S3) -> None:
    """This server knows no object lock: the option would protect nothing."""
    store = attrs.evolve(s3, object_lock="compliance", object_lock_days=1)
    found = [(f.level, f.text) for f in store.examine(Run("shop"))]
    assert ("error", "object_lock is set, and the bucket has no object lock.") in found
    assert ("ok", "a multipart upload was begun and aborted.") in found


def test_doctor_on_a_wrong_key(s3: S3) -> None:
    """One finding that says which."""
    (finding,) = examine(attrs.evolve(s3, secret_key=Secret("canary")), Run("shop"))
    assert "error" == finding.level
    assert "the secret key does not belong to the access key" in finding.text
    assert "canary" not in finding.text
