"""The small tools: each against a naive model."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsnap.errors import IntegrityError
from pgsnap.streams import Tap, drain, read_chunks, resize, take
from pgsnap.testing import failing

pieces = st.lists(st.binary(max_size=40), max_size=20)


@given(pieces)
def test_drain_counts_bytes(chunks: list[bytes]) -> None:
    """drain gives the number of bytes, however they are cut."""
    assert len(b"".join(chunks)) == drain(chunks)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_read_chunks_is_the_file(data: bytes, size: int) -> None:
    """read_chunks gives the file's bytes and leaves the file open."""
    file = io.BytesIO(data)
    assert data == b"".join(read_chunks(file, size))
    assert not file.closed


@given(pieces, st.integers(1, 60))
def test_resize_cuts_evenly(chunks: list[bytes], size: int) -> None:
    """Every chunk of resize has the size, only the last one may be shorter, and none is empty or of another type."""
    data = b"".join(chunks)
    assert [data[at : at + size] for at in range(0, len(data), size)] == list(resize(chunks, size))
    assert all(type(chunk) is bytes for chunk in resize(chunks, size))


def test_resize_holds_no_small_objects() -> None:
    """Eight MiB that come in pieces of two bytes cost memory as bytes, not as four million objects."""
    program = """
        import resource
        from pgsnap.streams import resize
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in resize((bytes((n & 255, 7)) for n in range(2 << 20)), 4 << 20):
            pass
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    grown = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True)
    assert int(grown.stdout) < 24  # MiB


@given(pieces, st.lists(st.integers(0, 70), max_size=8))
def test_take_cuts_one_stream_into_objects(chunks: list[bytes], limits: list[int]) -> None:
    """Successive takes give consecutive slices; ``rest`` is empty after one if and only if the source has ended in it."""
    data = b"".join(chunks)
    source, rest, at = iter(chunks), list[bytes](), 0
    for limit in limits:
        got = b"".join(take(source, limit, rest))
        assert data[at : at + limit] == got
        at += len(got)
        assert (at == len(data)) == (not rest)
        if not rest:
            break
    assert data[at:] == b"".join(take(source, None, rest))
    assert [] == rest


def test_take_raises_what_comes_after_the_last_byte() -> None:
    """An error right after the limit belongs to this take: its object must not be stored as whole."""
    with pytest.raises(IntegrityError):
        b"".join(take(failing([b"12345"], IntegrityError("bad")), 5, []))


@given(pieces, st.integers(1, 30))
def test_tap_agrees_with_hashlib(chunks: list[bytes], block: int) -> None:
    """A tap passes bytes unchanged and gives the digest of the whole, and of all bytes up to the end of each block."""
    data = b"".join(chunks)
    tap = Tap(block)
    assert data == b"".join(tap.through(chunks))
    assert len(data) == tap.size
    assert hashlib.sha256(data).hexdigest() == tap.sha256
    expected = tuple(hashlib.sha256(data[: at + block]).hexdigest() for at in range(0, len(data), block))
    assert expected == tap.blocks


def test_tap_without_blocks() -> None:
    """With block=None there are no block digests, and the rest is the same."""
    tap = Tap()
    assert b"abc" == b"".join(tap.through([b"a", b"bc"]))
    assert (3, (), hashlib.sha256(b"abc").hexdigest()) == (tap.size, tap.blocks, tap.sha256)
