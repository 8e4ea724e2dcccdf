"""What the network and the server may do: an object is whole or invisible, nothing is left, and the time is bounded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from botocore.exceptions import ClientError

from pgsnap import Denied, StoreError
from pgsnap.streams import drain
from pgsnap.streams import retry as remote
from pgsnap.testing import text
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_s3 import S3, connection

MIB = 1 << 20
PART = 5 * MIB
SIZE = 3 * PART + MIB + 5
DATA = text(SIZE)

FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"do": "cut", "after": 100_000},
    "cut at its end": {"do": "cut", "after": MIB + 4},
    "stall": {"do": "stall", "after": 100_000},
    "mute": {"do": "mute"},
    "500": {"do": "answer", "status": 500, "code": "InternalError"},
    "503": {"do": "answer", "status": 503, "code": "ServiceUnavailable"},
    "SlowDown": {"do": "answer", "status": 503, "code": "SlowDown"},
    "truncated answer": {"do": "answer", "status": 400, "code": "IncompleteBody"},
    "wrong ETag": {"do": "etag"},
}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    monkeypatch.setattr(remote, "JITTER", 0.05)


def pieces(data: bytes = DATA) -> Iterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


def left(store: S3) -> tuple[list[str], list[str]]:
    """Return what objects and uploads are there, asked without the proxy."""
    pages = s3_uploads(store)
    return [entry.key for entry in store.entries()], [item["Key"] for page in pages for item in page.get("Uploads", ())]


def s3_uploads(store: S3) -> list[dict[str, Any]]:
    with contextlib.suppress(ClientError):  # NoSuchUpload is how this server says that there are none
        return list(store._pages("list_multipart_uploads", "KeyMarker", "NextKeyMarker", ""))
    return []


@pytest.mark.parametrize("part", [1, 2, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_survived(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str, part: int) -> None:
    """The part is sent again, and only that one; the object is whole."""
    proxy.rules({"method": "PUT", "contains": f"partNumber={part}&", "times": 1, **FAULTS[fault]})
    began = time.monotonic()
    assert SIZE == spoiled.write("shop/object", pieces())
    assert time.monotonic() - began < 10
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
        spoiled.write("shop/object", pieces())
    assert time.monotonic() - began < 15
    assert spoiled.label == caught.value.label
    assert ([], []) == left(s3)


@pytest.mark.parametrize("part", [1, 2, 4])
def test_a_token_that_expires_on_the_way(s3: S3, spoiled: S3, proxy: FaultProxy, part: int) -> None:
    """It is not tried again, and the sentence says what to do; the abort goes through with what still holds."""
    expired = {"do": "answer", "status": 400, "code": "ExpiredToken"}
    proxy.rules({"method": "PUT", "contains": f"partNumber={part}&", "times": 0, **expired})
    with pytest.raises(Denied, match="the session token has expired; get a new one"):
        spoiled.write("shop/object", pieces())
    assert 1 == sum(f"partNumber={part}&" in line for line in proxy.requests())
    assert ([], []) == left(s3)


@pytest.mark.parametrize("fault", ["cut", "mute", "500", "stall"])
def test_faults_of_the_creation(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str) -> None:
    """An upload whose id got lost is found and aborted; the object is whole."""
    proxy.rules({"method": "POST", "contains": "uploads", **FAULTS[fault]})
    assert SIZE == spoiled.write("shop/object", pieces())
    assert DATA == b"".join(s3.read("shop/object"))
    assert (["shop/object"], []) == left(s3)
    proxy.rules({"method": "POST", "contains": "uploads", **FAULTS[fault], "times": 3})
    with pytest.raises(StoreError):
        spoiled.write("shop/other", pieces())
    assert (["shop/object"], []) == left(s3)


def test_a_source_that_fails_before_the_creation_is_answered(
    s3: S3, spoiled: S3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is aborted as soon as it has an id; no part is sent to it, which could take long."""
    asked, call = threading.Event(), connection.Connection.call

    def calling(self: connection.Connection, method: str, *args: Any, **arguments: Any) -> dict[str, Any]:
        asked.set()
        return call(self, method, *args, **arguments)

    def broken() -> Iterator[bytes]:
        yield from pieces(DATA[: 2 * PART])  # what is pulled before the upload is begun, and less than may be under way
        asked.wait(20)
        raise KeyError("boom")

    monkeypatch.setattr(connection.Connection, "call", calling)
    proxy.rules(delay=1.0)
    with pytest.raises(KeyError, match="boom"):
        spoiled.write("shop/object", broken())
    assert ["POST", "DELETE"] == [line.split()[0] for line in proxy.requests()]
    assert ([], []) == left(s3)


@pytest.mark.parametrize("fault", ["cut", "mute", "500", "stall"])
def test_faults_of_the_completion(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str) -> None:
    """It is asked for again; if the answer alone got lost, the object is found to be there."""
    proxy.rules({"method": "POST", "contains": "uploadId", **FAULTS[fault]})
    assert SIZE == spoiled.write("shop/object", pieces())
    assert DATA == b"".join(s3.read("shop/object"))
    assert (["shop/object"], []) == left(s3)


@pytest.mark.parametrize("fault", ["cut", "500", "stall"])
def test_a_completion_that_never_works(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str) -> None:
    """The upload is aborted and nothing is published."""
    proxy.rules({"method": "POST", "contains": "uploadId", **FAULTS[fault], "after": 0, "times": 0})
    with pytest.raises(StoreError, match="cannot write shop/object"):
        spoiled.write("shop/object", pieces())
    assert ([], []) == left(s3)


def test_a_completion_that_is_never_answered(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """It fails, and what is there is whole: no manifest will speak of it."""
    proxy.rules({"method": "POST", "contains": "uploadId", "do": "mute", "times": 0})
    with pytest.raises(StoreError, match="cannot write shop/object"):
        spoiled.write("shop/object", pieces())
    assert [] == left(s3)[1]
    assert DATA == b"".join(s3.read("shop/object"))


def test_a_wrong_etag_of_the_whole_object(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """What was put together is not what was sent: it is taken back."""
    proxy.rules({"method": "POST", "contains": "uploadId", "do": "etag"})
    with pytest.raises(StoreError, match="ETag is not that of what was sent"):
        spoiled.write("shop/object", pieces())
    assert ([], []) == left(s3)


@pytest.mark.parametrize("size", [10, SIZE])
def test_a_wrong_size_after_the_write(s3: S3, spoiled: S3, proxy: FaultProxy, size: int) -> None:
    """Where ETags are no digests, a write is believed when the store tells the size that was sent."""
    unproved = attrs.evolve(spoiled, provider="r2")
    proxy.rules({"method": "HEAD", "do": "short", "after": 1, "times": 0})
    with pytest.raises(StoreError, match=f"shop/object has {size - 1} bytes after {size} were written"):
        unproved.write("shop/object", pieces(DATA[:size]))
    assert ([], []) == left(s3)


@pytest.mark.parametrize(("size", "requests"), [(10, ["PUT"]), (SIZE, ["POST", "PUT", "PUT", "PUT", "PUT", "POST"])])
def test_an_etag_that_proves_the_object_saves_a_request(spoiled: S3, proxy: FaultProxy, size: int, requests: list[str]) -> None:
    """What is digested end to end is not looked up: over a distant line each small file of a backup takes half the time."""
    proxy.rules()
    assert size == spoiled.write("shop/object", pieces(DATA[:size]))
    assert requests == [line.split()[0] for line in proxy.requests()]
    proxy.rules()
    assert size == attrs.evolve(spoiled, provider="r2").write("shop/object", pieces(DATA[:size]))
    assert [*requests, "HEAD"] == [line.split()[0] for line in proxy.requests()]


@pytest.mark.parametrize("fault", ["cut", "mute", "500", "SlowDown", "stall", "wrong ETag"])
def test_small_objects(s3: S3, spoiled: S3, proxy: FaultProxy, fault: str) -> None:
    """What fits into one part is one request, tried again alike."""
    rule = {"method": "PUT", "contains": "shop/", **FAULTS[fault], "after": 10}
    proxy.rules(rule)
    assert 1000 == spoiled.write("shop/small", [DATA[:1000]])
    assert DATA[:1000] == b"".join(s3.read("shop/small"))
    proxy.rules({**rule, "times": 0})
    with pytest.raises(StoreError, match="cannot write shop/other"):
        spoiled.write("shop/other", [DATA[:1000]])
    assert "shop/other" not in left(s3)[0] or fault in ("mute", "wrong ETag")


def test_an_abort_that_fails_is_swept_later(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """Where nothing goes through any more, the error of the write is told; ``sweep`` finds the upload by its age."""
    from datetime import UTC, datetime, timedelta

    refuse = {"do": "answer", "status": 500, "times": 0}
    proxy.rules(
        {"method": "PUT", "contains": "partNumber=2", **refuse}, {"method": "DELETE", **refuse}, {"method": "GET", **refuse}
    )
    with pytest.raises(StoreError, match="500 InternalError"):
        spoiled.write("shop/object", pieces())
    assert ([], ["pg backups/shop/object"]) == left(s3)
    now = datetime.now(UTC)
    assert [] == list(s3.sweep("shop/", now - timedelta(hours=1)))
    assert [] == list(s3.sweep("other/", now + timedelta(hours=1)))
    assert ["shop/object"] == list(s3.sweep("shop/", now + timedelta(hours=1)))
    assert ([], []) == left(s3)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_", ["bytes=0-", "bytes=4194304-", f"bytes={2 * 4194304}-"], ids=["first", "middle", "last"])
@pytest.mark.parametrize("do", ["truncate", "hang", "mute", "answer"])
def test_a_read_goes_on_where_it_was_cut_off(s3: S3, spoiled: S3, proxy: FaultProxy, do: str, range_: str) -> None:
    """Every range is resumed by itself, at the byte, and the object is whole."""
    data = text(2 * 4194304 + 3 * MIB)
    s3.write("a", pieces(data))
    skip = ("bytes=0-", "bytes=4194304-", f"bytes={2 * 4194304}-").index(range_)
    proxy.rules(
        {"method": "GET", "contains": "/a", "do": do, "after": 2_500_000, "status": 503, "code": "SlowDown", "skip": skip}
    )
    began = time.monotonic()
    assert data == b"".join(spoiled.read("a"))
    assert time.monotonic() - began < 10
    asked = [line for line in proxy.requests() if line.startswith("GET")]
    assert 4 == len(asked)


def test_a_connection_that_drops_at_90_percent_resumes_there(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """The second request asks for the rest only, but for what was in a buffer when the connection broke."""
    data = text(4 * MIB)
    s3.write("a", pieces(data))
    proxy.rules({"method": "GET", "contains": "/a", "do": "truncate", "after": int(0.9 * len(data))})
    assert data == b"".join(spoiled.read("a"))
    first, second = [line.split()[2] for line in proxy.requests()]
    assert "bytes=0-4194303" == first
    start = int(second.removeprefix("bytes=").partition("-")[0])
    assert 0.9 * len(data) - MIB < start <= 0.9 * len(data)


def test_a_read_that_is_cut_again_and_again(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """As long as each answer brings something, it goes on; where nothing more comes, it fails in bounded time."""
    data = text(10 * MIB)
    s3.write("a", pieces(data))
    proxy.rules({"method": "GET", "contains": "/a", "do": "truncate", "after": MIB, "times": 0})
    assert data == b"".join(spoiled.read("a"))
    proxy.rules({"method": "GET", "contains": "/a", "do": "hang", "after": 1000, "times": 0})
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot read a"):
        drain(spoiled.read("a"))
    assert time.monotonic() - began < 15


def test_an_object_that_is_replaced_while_it_is_read(s3: S3, spoiled: S3) -> None:
    """Ranges of two objects are never joined."""
    s3.write("a", pieces(text(40 * MIB)))
    stream = spoiled.read("a")
    next(stream)
    s3.write("a", pieces(text(40 * MIB, seed=2)))
    with pytest.raises(StoreError, match="a was replaced while it was read"):
        drain(stream)


def test_an_object_that_is_replaced_before_its_first_range_is_whole(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """The answer that was cut off counts: what is asked for afterwards must be of the same object."""
    s3.write("a", pieces(text(4 * MIB)))
    get = {"method": "GET", "contains": "/a"}
    # Not cut off: of what is in a buffer when a connection breaks it is left to chance how much was read.
    proxy.rules({**get, "do": "hang", "after": 2_500_000}, {**get, "do": "etag"})
    with pytest.raises(StoreError, match="a was replaced while it was read"):
        drain(spoiled.read("a"))


def test_a_server_that_ends_early_and_says_so(s3: S3, spoiled: S3, proxy: FaultProxy) -> None:
    """A shorter answer with a matching length is no end of the object."""
    data = text(3 * MIB)
    s3.write("a", pieces(data))
    proxy.rules({"method": "GET", "contains": "/a", "do": "short", "after": 1000})
    assert data == b"".join(spoiled.read("a"))
    proxy.rules({"method": "GET", "contains": "/a", "do": "short", "after": 3 * MIB, "times": 0})
    with pytest.raises(StoreError, match="cannot read a"):
        drain(spoiled.read("a"))
