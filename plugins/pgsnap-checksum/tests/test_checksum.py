"""The checksum transform: the conformance kit for each algorithm, and the tools that read its files."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pgsnap import ConfigError, Facts, IntegrityError, StageError
from pgsnap.testing import TransformConformance, text
from pgsnap_checksum import Algorithm, Checksum

DATA = text(300_000)


class TestMd5(TransformConformance):
    @pytest.fixture
    def transform(self) -> Checksum:
        return Checksum(algorithm="md5")


class TestSha256(TransformConformance):
    @pytest.fixture
    def transform(self) -> Checksum:
        return Checksum()


class TestBlake3(TransformConformance):
    @pytest.fixture
    def transform(self) -> Checksum:
        return Checksum(algorithm="blake3")


def facts_of(algorithm: Algorithm) -> Facts:
    facts: Facts = {}
    assert DATA == b"".join(Checksum(algorithm=algorithm).encode([DATA[:7], DATA[7:]], facts))
    return facts


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("md5", hashlib.md5(DATA).hexdigest()),
        ("sha256", hashlib.sha256(DATA).hexdigest()),
        ("blake3", blake3(DATA).hexdigest()),
    ],
)
def test_facts_hold_the_digest(algorithm: Algorithm, digest: str) -> None:
    """The digest is that of the algorithm's own library over all bytes."""
    assert {"algorithm": algorithm, "digest": digest, "size": len(DATA)} == facts_of(algorithm)


@pytest.mark.parametrize(("algorithm", "suffix", "tool"), [("md5", ".md5", "md5sum"), ("sha256", ".sha256", "sha256sum")])
def test_the_tool_accepts_the_sidecar(tmp_path: Path, algorithm: Algorithm, suffix: str, tool: str) -> None:
    """``md5sum -c`` and its relatives accept the sidecar, and refuse the file when it was altered."""
    sidecars = Checksum(algorithm=algorithm).sidecars("shop.dump.age", facts_of(algorithm))
    assert [f"shop.dump.age{suffix}"] == list(sidecars)
    (content,) = sidecars.values()
    assert content.endswith(b"  shop.dump.age\n")
    (tmp_path / f"shop.dump.age{suffix}").write_bytes(content)
    for data, status in ((DATA, 0), (DATA[:-1], 1), (b"x" + DATA[1:], 1)):
        (tmp_path / "shop.dump.age").write_bytes(data)
        done = subprocess.run([tool, "-c", f"shop.dump.age{suffix}"], cwd=tmp_path, capture_output=True, check=False)
        assert status == done.returncode


def test_the_sidecar_of_blake3_is_what_b3sum_writes() -> None:
    """Digest, two blanks, name; the digest is that of the 1,024 bytes in BLAKE3's published test vectors."""
    facts: Facts = {}
    stage = Checksum(algorithm="blake3")
    b"".join(stage.encode([bytes(n % 251 for n in range(1024))], facts))
    digest = b"42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"
    assert {"shop.dump.b3": digest + b"  shop.dump\n"} == stage.sidecars("shop.dump", facts)


def test_a_difference_names_both_digests() -> None:
    """The message has the algorithm, both digests and both sizes."""
    facts = facts_of("md5")
    with pytest.raises(IntegrityError) as caught:
        b"".join(Checksum().decode([DATA[:-1]], facts))
    message = str(caught.value)
    for part in ("md5", hashlib.md5(DATA[:-1]).hexdigest(), facts["digest"], "of 299999 bytes", "for 300000 bytes"):
        assert part in message


def test_missing_facts_are_damage() -> None:
    """Without a recorded digest nothing is let through as if it had been checked."""
    with pytest.raises(IntegrityError, match="no digest"):
        b"".join(Checksum().decode([DATA], {}))


def test_an_unknown_algorithm_is_refused_when_read() -> None:
    """A manifest of a later version names what is needed."""
    with pytest.raises(StageError, match="'sha999' is not known to this version"):
        b"".join(Checksum().decode([DATA], {"algorithm": "sha999", "digest": "00", "size": 1}))


def test_an_unknown_algorithm_is_refused_when_given() -> None:
    """The message lists what can be chosen."""
    wrong: Any = "crc32"
    with pytest.raises(ConfigError) as caught:
        Checksum(algorithm=wrong)
    assert "checksum's algorithm is 'crc32'; choose from md5, sha256, blake3." == str(caught.value)
