"""The zstd transform: the conformance kit, its options, and the zstd program both ways."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

import pgsnap
from pgsnap import ConfigError, IntegrityError
from pgsnap.streams import CHUNK
from pgsnap.testing import TransformConformance, text
from pgsnap_zstd import Zstd


class TestZstd(TransformConformance):
    """With the defaults."""

    @pytest.fixture
    def transform(self) -> Zstd:
        return Zstd()


class TestZstdOneThread(TransformConformance):
    """The highest level of daily use, in one thread."""

    @pytest.fixture
    def transform(self) -> Zstd:
        return Zstd(level=3, threads=1)


SKIPPABLE = bytes.fromhex("502a4d1800000000")
"""An empty frame that the format tells a decoder to pass over (RFC 8878, 3.1.2)."""


def encode(transform: Zstd, plain: bytes) -> bytes:
    return b"".join(transform.encode([plain], {}))


@pytest.mark.parametrize("level", [1, 3, 9, 19])
@pytest.mark.parametrize("threads", [1, 2])
def test_levels_and_threads_round_trip(level: int, threads: int) -> None:
    """Whatever the options, the defaults decode it."""
    plain = text(2 * CHUNK + 17)
    facts: pgsnap.Facts = {}
    encoded = b"".join(Zstd(level=level, threads=threads).encode([plain], facts))
    assert {"level": level} == facts
    assert plain == b"".join(Zstd().decode([encoded], facts))
    assert len(encoded) < len(plain) / 2


def test_equal_input_gives_equal_output() -> None:
    """For one level, the number of threads and the chunks' sizes change nothing."""
    plain = text(5 * CHUNK)
    wholes = [b"".join(Zstd(threads=n).encode([plain[:7], plain[7:]], {})) for n in (1, 2, 3)]
    wholes.append(encode(Zstd(), plain))
    assert 1 == len({hashlib.sha256(whole).hexdigest() for whole in wholes})


def test_the_frame_has_a_checksum() -> None:
    """Bit 2 of the frame header descriptor (RFC 8878, 3.1.1.1.1): the zstd program checks the content too."""
    assert encode(Zstd(), b"x")[4] & 0b100


@pytest.mark.uses_programs
def test_what_the_zstd_program_wrote_is_read() -> None:
    """A frame is a frame, whoever wrote it."""
    plain = text(2 * CHUNK)
    foreign = subprocess.run(["zstd", "-c", "-3"], input=plain, capture_output=True, check=True).stdout
    assert plain == b"".join(Zstd().decode([foreign], {}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Zstd(level=0), "zstd's level is 0; give 1 (fastest) to 19 (smallest)."),
        (lambda: Zstd(level=20), "zstd's level is 20; give 1 (fastest) to 19 (smallest)."),
        (lambda: Zstd(threads=-1), "zstd's threads is -1; give 1 to 64, or 0 for as many as there are processors, at most 2."),
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
        (lambda data: data[:-1], "the zstd data ends too early: it was cut short."),
        (lambda data: data + b"x", "there is data after the end of the zstd frame; it is damaged or was put together wrongly."),
        (lambda data: b"PGDMP" + data, "this is not a zstd frame: it is damaged or was not compressed by this stage."),
        (lambda data: SKIPPABLE + data, "this is not a zstd frame: it is damaged or was not compressed by this stage."),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "the zstd data is damaged: "),
    ],
)
def test_messages(alter: object, message: str) -> None:
    """Each kind of damage has a sentence of its own; a skippable frame is refused as foreign."""
    assert callable(alter)
    with pytest.raises(IntegrityError) as caught:
        b"".join(Zstd().decode([alter(encode(Zstd(), text(1000)))], {}))
    assert str(caught.value).startswith(message)
