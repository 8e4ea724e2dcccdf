"""The gzip transform: the conformance kit, its options, and the gzip program both ways."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

import pgsnap
from pgsnap import ConfigError, IntegrityError
from pgsnap.streams import CHUNK
from pgsnap.testing import TransformConformance, text
from pgsnap_gzip import Gzip


class TestGzip(TransformConformance):
    """With the defaults."""

    @pytest.fixture
    def transform(self) -> Gzip:
        return Gzip()


class TestGzipOneThread(TransformConformance):
    """The highest level of daily use, in one thread."""

    @pytest.fixture
    def transform(self) -> Gzip:
        return Gzip(level=3, threads=1)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_levels_and_threads_round_trip(level: int, threads: int) -> None:
    """Whatever the options, the defaults decode it."""
    plain = text(3 * CHUNK + 17)
    facts: pgsnap.Facts = {}
    encoded = b"".join(Gzip(level=level, threads=threads).encode([plain], facts))
    assert {"level": level} == facts
    assert plain == b"".join(Gzip().decode([encoded], facts))
    assert len(encoded) < len(plain) / 2


def test_equal_input_gives_equal_output() -> None:
    """No time and no name stand in the header, and the number of threads changes nothing."""
    chunks = [text(CHUNK, seed) for seed in range(5)]
    digests = {hashlib.sha256(b"".join(Gzip(threads=threads).encode(chunks, {}))).hexdigest() for threads in (1, 2, 2, 3)}
    assert 1 == len(digests)
    assert bytes.fromhex("1f8b08000000000000ff") == next(Gzip().encode(chunks, {}))[:10]


def test_what_the_gzip_program_wrote_is_not_ours() -> None:
    """A member with a name and a time is refused: this stage never wrote it."""
    foreign = bytearray(subprocess.run(["gzip", "-c"], input=b"x", capture_output=True, check=True).stdout)
    foreign[3] |= 8
    with pytest.raises(IntegrityError, match="header is damaged or not ours"):
        b"".join(Gzip().decode([bytes(foreign)], {}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gzip(level=9), "gzip's level is 9; give 0 (fastest) to 3 (smallest)."),
        (lambda: Gzip(level=-1), "gzip's level is -1; give 0 (fastest) to 3 (smallest)."),
        (lambda: Gzip(threads=-1), "gzip's threads is -1; give 1 to 64, or 0 for as many as there are processors, at most 2."),
        (lambda: Gzip(threads=65), "gzip's threads is 65; give 1 to 64, or 0 for as many as there are processors, at most 2."),
    ],
)
def test_bad_options_are_refused(make: object, message: str) -> None:
    """An option out of range names its value and the range."""
    assert callable(make)
    with pytest.raises(ConfigError) as caught:
        make()
    assert message == str(caught.value)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda data: data[:-1], "the gzip data ends too early: it was cut short."),
        (lambda data: data + b"x", "there is data after the end of the gzip member; it is damaged or was put together wrongly."),
        (lambda data: b"PGDMP" + data, "this is not gzip as pgsnap writes it: its header is damaged or not ours."),
        (lambda data: data[:-6] + b"\0\0" + data[-4:], "the gzip data is damaged: Error -6 Incorrect checksum found."),
    ],
)
def test_messages(alter: object, message: str) -> None:
    """Each kind of damage has a sentence of its own."""
    assert callable(alter)
    encoded = b"".join(Gzip().encode([text(1000)], {}))
    with pytest.raises(IntegrityError) as caught:
        b"".join(Gzip().decode([alter(encoded)], {}))
    assert message == str(caught.value)
