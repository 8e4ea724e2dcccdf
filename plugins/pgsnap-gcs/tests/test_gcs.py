"""The store against a real server of the protocol: the conformance suite, faults, and what is special to GCS."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from pgsnap import ConfigError, Denied, Run, Secret, StoreError
from pgsnap.streams import drain
from pgsnap.streams import retry as remote
from pgsnap.testing import StoreConformance, StoreExamination, text
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_gcs import Gcs, connection

MIB = 1 << 20
SIZE = 3 * MIB + 5
DATA = text(SIZE)
FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"do": "cut", "after": 100_000},
    "stall": {"do": "stall", "after": 100_000},
    "mute": {"do": "mute"},
    "500": {"do": "answer", "status": 500},
    "503": {"do": "answer", "status": 503},
    "429": {"do": "answer", "status": 429},
}


class TestGcs(StoreConformance):
    """All rules of a store, in a folder of a bucket, with parts of 1 MiB."""

    @pytest.fixture
    def store(self, gcs: Gcs) -> Gcs:
        return gcs


class TestDoctor(StoreExamination):
    """What doctor says of it."""

    @pytest.fixture
    def store(self, gcs: Gcs) -> Gcs:
        return gcs


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setattr(remote, "JITTER", 0.05)


def pieces() -> Iterator[bytes]:
    for start in range(0, SIZE, 300_000):
        yield DATA[start : start + 300_000]


@pytest.mark.parametrize("skip", [0, 1, 3], ids=["first", "middle", "last"])
@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "mute"])
def test_a_fault_that_passes_is_survived(gcs: Gcs, spoiled: Gcs, proxy: FaultProxy, fault: str, skip: int) -> None:
    """The part is sent again from where the server has it; the object is whole."""
    rule = {"method": "PUT", "contains": "upload", **FAULTS[fault], "skip": skip}
    proxy.rules({**rule, "after": 1 if skip == 3 else 100_000})
    assert SIZE == spoiled.write("shop/object", pieces())
    assert DATA == b"".join(gcs.read("shop/object"))


@pytest.mark.parametrize("skip", [0, 1, 3], ids=["first", "middle", "last"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_leaves_nothing(gcs: Gcs, spoiled: Gcs, proxy: FaultProxy, fault: str, skip: int) -> None:
    """The write fails in bounded time with the store named. What had been sent whole may be there, whole; nothing else."""
    proxy.rules({"method": "PUT", "contains": "upload", **FAULTS[fault], "skip": skip, "times": 0, "after": 0})
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot write shop/object") as caught:
        spoiled.write("shop/object", pieces())
    assert time.monotonic() - began < 15
    assert spoiled.label == caught.value.label
    left = [entry.key for entry in gcs.entries()]
    if (fault, skip) == ("mute", 3):
        assert DATA == b"".join(gcs.read("shop/object"))
    else:
        assert [] == left


def test_a_session_that_is_given_up_is_deleted(spoiled: Gcs, proxy: FaultProxy) -> None:
    """The server hears of it at once."""

    def source() -> Iterator[bytes]:
        yield DATA
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoiled.write("shop/object", source())
    assert proxy.requests()[-1].startswith("DELETE /upload/")


def test_faults_of_the_begin(gcs: Gcs, spoiled: Gcs, proxy: FaultProxy) -> None:
    """A session whose URL got lost is replaced by another."""
    for fault in ("mute", "503", "cut"):
        proxy.rules({"method": "POST", "contains": "upload", **FAULTS[fault]})
        assert SIZE == spoiled.write("shop/object", pieces())
    assert DATA == b"".join(gcs.read("shop/object"))


def test_what_the_server_stored_is_compared(gcs: Gcs, spoiled: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another size or MD5 in its answer: the object is taken back."""
    call = connection.Connection.call
    for field, value in (("size", "7"), ("md5Hash", "AAAAAAAAAAAAAAAAAAAAAA==")):

        def lie(self: Any, method: str, url: str, *args: Any, field: str = field, value: str = value, **kwargs: Any) -> Any:
            answer = call(self, method, url, *args, **kwargs)
            if method != "PUT" or answer.status == 308:
                return answer
            return attrs.evolve(answer, body=json.dumps(answer.json | {field: value}).encode())

        monkeypatch.setattr(connection.Connection, "call", lie)
        with pytest.raises(StoreError, match=f"after {SIZE} with MD5"):
            gcs.write("a", pieces())
        assert [] == list(gcs.entries())


@pytest.mark.parametrize("do", ["truncate", "hang", "mute", "answer"])
def test_a_read_goes_on_where_it_was_cut_off(gcs: Gcs, spoiled: Gcs, proxy: FaultProxy, do: str) -> None:
    """At the byte, in every range."""
    data = text(17 * MIB)
    gcs.write("a", [data])
    for skip in (0, 1, 2):
        proxy.rules({"method": "GET", "contains": "alt=media", "do": do, "after": 600_000, "status": 503, "skip": skip})
        assert data == b"".join(spoiled.read("a"))
        assert 4 == sum("alt=media" in line for line in proxy.requests())


def test_permissions_and_credentials(spoiled: Gcs, proxy: FaultProxy) -> None:
    """Each refusal is a sentence that says what to grant."""
    forbid = {"do": "answer", "status": 403, "times": 0}
    proxy.rules(*({"method": method, **forbid} for method in ("GET", "POST", "DELETE")))
    for problem, work in {
        "grant storage.objects.create": lambda: spoiled.write("a", [b"x"]),
        "grant storage.objects.get": lambda: drain(spoiled.read("a")),
        "grant storage.objects.list": lambda: list(spoiled.entries()),
    }.items():
        with pytest.raises(Denied, match=problem):
            work()
    assert "grant storage.objects.delete" in spoiled.delete(["a"])["a"]
    assert ["info"] == [finding.level for finding in spoiled.preflight(Run("shop"))]
    proxy.rules({"do": "answer", "status": 401, "times": 0})
    with pytest.raises(Denied, match="the credentials are not valid"):
        spoiled.write("a", [b"x"])


def test_an_account_that_may_only_write(gcs: Gcs, spoiled: Gcs, proxy: FaultProxy) -> None:
    """The answer to the upload tells size and MD5, so nothing else is asked for."""
    proxy.rules({"method": "GET", "do": "answer", "status": 403, "times": 0})
    assert SIZE == spoiled.write("a", pieces())
    assert DATA == b"".join(gcs.read("a"))


def test_a_missing_bucket(gcs: Gcs) -> None:
    """It is not an empty one."""
    store = attrs.evolve(gcs, url="gs://missing-bucket")
    for work in (lambda: store.write("a", [b"x"]), lambda: list(store.entries())):
        with pytest.raises(StoreError, match="the bucket does not exist"):
            work()


@pytest.mark.parametrize("form", ["http://{}:{}", "{}:{}"])
def test_an_emulator_that_the_environment_names(
    gcs: Gcs, server: tuple[str, int], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """It is used as Google's libraries use it, without the credentials of the machine; doctor warns; an endpoint goes before."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", form.format(*server))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", service_account())
    store = Gcs(url=gcs.url, part_size=1 << 20)
    assert SIZE == store.write("shop/object", pieces())
    assert DATA == b"".join(gcs.read("shop/object"))
    assert store._connect()._system.credentials.token == "anon"
    warning, found = store.preflight(Run("shop"))
    assert ("warning", "ok") == (warning.level, found.level)
    assert f"STORAGE_EMULATOR_HOST is set: its objects go to http://{server[0]}:{server[1]}, and not to Google." == warning.text
    proxy.rules()
    elsewhere = attrs.evolve(store, endpoint=proxy.url, anonymous=True)
    assert ["ok"] == [finding.level for finding in elsewhere.preflight(Run("shop"))]
    assert 1 == len(proxy.requests())


def test_an_emulator_does_not_hide_credentials_that_are_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private endpoint wants them."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    connection = Gcs(url="gs://b", credentials=Secret(service_account()))._connect()
    assert "backup@p" in connection._system.credentials.credentials.service_account_email


@pytest.mark.parametrize("value", ["", "default"])
def test_no_emulator(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Empty, and gcsfs's word for Google's own."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", value)
    assert Gcs(url="gs://b", anonymous=True)._connect().bucket("b").startswith("https://storage.googleapis.com/")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "gs://user:hidden@bucket"}, "the url of a bucket is gs://bucket"),
        ({"part_size": 1000}, "part_size is 1000 bytes; give a multiple of 256KiB"),
        ({"ranges_in_flight": 0}, "ranges_in_flight is 0"),
        ({"io_timeout": 0.0}, "io_timeout is 0"),
        ({"anonymous": True, "credentials": Secret("hidden")}, "credentials or anonymous, not both"),
    ],
)
def test_bad_options(options: dict[str, Any], problem: str) -> None:
    """Each is told in a sentence, without a secret."""
    with pytest.raises(ConfigError, match=problem) as caught:
        Gcs(**{"url": "gs://bucket", **options})
    assert "hidden" not in str(caught.value)


def service_account() -> str:
    """Return the JSON of a service account that is well-formed and unknown to Google."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "1",
            "private_key": pem,
            "client_email": "backup@p.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": "http://127.0.0.1:1/token",
        }
    )


def test_credentials_are_a_path_or_the_json_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an option and in the variable; what cannot be used is an error without its text."""
    account = service_account()
    path = tmp_path / "account.json"
    path.write_text(account)
    for value in (account, str(path), f"'{account}'\n"):
        assert (
            "backup@p"
            in Gcs(url="gs://b", credentials=Secret(value))._connect()._system.credentials.credentials.service_account_email
        )
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", value)
        assert "backup@p" in Gcs(url="gs://b")._connect()._system.credentials.credentials.service_account_email
    for value in ("{canary", str(tmp_path / "missing"), '{"type": "canary"}'):
        with pytest.raises(ConfigError, match="the Google credentials cannot be used: give the path") as caught:
            Gcs(url="gs://b", credentials=Secret(value)).write("a", [b"x"])
        assert "canary" not in str(caught.value)
