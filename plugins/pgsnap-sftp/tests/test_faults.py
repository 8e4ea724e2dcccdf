"""The store against two real SSH servers whose connections break, once or for good, in every part of an object."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgsnap import StoreError
from pgsnap.testing import text
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_sftp import Sftp

MIB = 1 << 20
SIZE = 9 * MIB + 5
DATA = text(SIZE)


def pieces() -> Iterator[bytes]:
    for start in range(0, SIZE, MIB):
        yield DATA[start : start + MIB]


def names(server: Any, folder: str) -> list[str]:
    return sorted(path.name for path in (server.folder / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("after", [100, 20_000, 2 * MIB, 6 * MIB, 9 * MIB + 5000])
@pytest.mark.parametrize("do", ["cut", "stall"])
def test_a_connection_that_breaks_once_is_replaced(
    sftp: Sftp, spoiled: Sftp, server: Any, folder: str, proxy: FaultProxy, do: str, after: int
) -> None:
    """In the handshake, in the first, a middle and the last piece: it goes on over a new one, and the object is whole."""
    proxy.rules({"do": do, "after": after})
    began = time.monotonic()
    assert SIZE == spoiled.write("shop/object", pieces())
    assert time.monotonic() - began < 15
    assert [do] == proxy.requests()
    assert DATA == b"".join(sftp.read("shop/object"))
    assert ["object"] == names(server, folder)


@pytest.mark.parametrize("after", [100, 20_000, 2 * MIB, 6 * MIB])
@pytest.mark.parametrize("do", ["cut", "stall"])
def test_a_network_that_stays_broken(sftp: Sftp, spoiled: Sftp, proxy: FaultProxy, do: str, after: int) -> None:
    """The write fails in bounded time with the store named; no object is there, and a sweep finds what is left."""
    proxy.rules({"do": do, "after": after}, {"do": do, "after": 100, "times": 0})
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot write shop/object") as caught:
        spoiled.write("shop/object", pieces())
    assert time.monotonic() - began < 20
    assert (spoiled.label, True) == (caught.value.label, caught.value.transient)
    assert [] == list(sftp.entries())
    now = datetime.now(UTC)
    assert [] == list(sftp.sweep("shop/", now - timedelta(hours=1)))
    swept = sftp.sweep("", now + timedelta(hours=1))
    assert (after > 100) == bool(swept)
    assert [] == list(sftp.sweep("", now + timedelta(hours=1)))


@pytest.mark.parametrize("do", ["cut", "stall"])
def test_a_read_goes_on_over_a_new_connection(sftp: Sftp, spoiled: Sftp, proxy: FaultProxy, do: str) -> None:
    """At the piece that was under way."""
    sftp.write("a", pieces())
    stream = spoiled.read("a")
    head = next(stream)
    proxy.rules({"do": do, "after": 1})  # the connection that is open is not spoiled; the next would be
    assert DATA == head + b"".join(stream)
    proxy.rules({"do": do, "after": 4_000})
    assert DATA == b"".join(spoiled.read("a"))
