"""The manifest's format is held by golden files, and nothing that does not fit it is believed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsnap.errors import ManifestError
from pgsnap.repository.manifest import ArtifactRecord, FileRecord, Manifest, ObjectRecord, StageRecord

GOLDEN = Path(__file__).parent.parent / "golden"
A, B, C = "a" * 64, "b" * 64, "c" * 64


def example() -> Manifest:
    return Manifest(
        id="20261122T080000Z-4f3a",
        pipeline="shop",
        started=datetime(2026, 11, 22, 8, 0, 0, tzinfo=UTC),
        ended=datetime(2026, 11, 22, 8, 3, 12, tzinfo=UTC),
        pgsnap="0.1.0",
        dumper=StageRecord(name="pg_dump", version="1", facts={"format": "custom", "notes": ["가나다"], "totals": {"tables": 3}}),
        artifacts=(
            ArtifactRecord(
                name="shop.dump",
                size=40_000_000,
                sha256=A,
                stages=(
                    StageRecord(name="age", version="1", facts={"recipients": ["age1x"]}),
                    StageRecord(name="checksum", version="1", facts={"md5": "0" * 32}),
                ),
                objects=(
                    ObjectRecord(key="shop.dump.age", size=30_000_000, sha256=B, blocks=(A, C)),
                    ObjectRecord(key="shop.dump.age.001", size=11, sha256=B, blocks=(B,)),
                ),
            ),
            ArtifactRecord(
                name="empty", size=0, sha256=A, stages=(), objects=(ObjectRecord(key="empty", size=0, sha256=A, blocks=()),)
            ),
        ),
        files=(FileRecord(key="RECOVER.txt", size=900, sha256=C), FileRecord(key="shop.dump.age.md5", size=48, sha256=C)),
    )


def test_the_golden_manifest_is_written_byte_for_byte() -> None:
    """A change of the text is a change of a format that outlives this code."""
    assert (GOLDEN / "manifest-1.json").read_bytes() == example().to_bytes()


def test_the_golden_manifest_is_read() -> None:
    """What an earlier version has written gives the same values."""
    assert example() == Manifest.from_bytes((GOLDEN / "manifest-1.json").read_bytes(), "golden")


def test_unknown_keys_are_ignored() -> None:
    """A later version may add keys within a format."""
    document = json.loads(example().to_bytes())
    document["added"] = {"x": 1}
    document["artifacts"][0]["objects"][0]["added"] = True
    assert example() == Manifest.from_bytes(json.dumps(document).encode(), "later")


def test_a_future_format_is_refused_with_the_way_out() -> None:
    """It says what to install, and that RECOVER.txt needs nothing."""
    document = json.loads(example().to_bytes()) | {"format": 2}
    with pytest.raises(
        ManifestError, match=r"x is of format 2 .* knows format 1; install a newer pgsnap, or restore by the RECOVER"
    ):
        Manifest.from_bytes(json.dumps(document).encode(), "x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("format"), "names no format"),
        (lambda d: d.update(format="1"), "names no format"),
        (lambda d: d.pop("artifacts"), "artifacts"),
        (lambda d: d.update(id="../../etc"), "id"),
        (lambda d: d.update(pipeline="a/b"), "pipeline"),
        (lambda d: d["artifacts"][0].update(size="40"), "size"),
        (lambda d: d["artifacts"][0].update(size=-1), "size"),
        (lambda d: d["artifacts"][0].update(size=True), "size"),
        (lambda d: d["artifacts"][0].update(name="../x"), "name"),
        (lambda d: d["artifacts"][0]["objects"][0].update(key="../../other/manifest.json"), "key"),
        (lambda d: d["artifacts"][0]["objects"][0].update(key="a b"), "key"),
        (lambda d: d["artifacts"][0]["objects"][0].update(sha256="xyz"), "sha256"),
        (lambda d: d["artifacts"][0]["objects"][0].update(blocks=["xyz"]), "blocks"),
        (lambda d: d["files"][0].update(key="$(x)"), "key"),
        (lambda d: d.update(block=0), "block"),
        (lambda d: d.update(started="yesterday"), "started"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Any, says: str) -> None:
    """No path leaves the folder, no size is a guess; the message names the place."""
    document = json.loads(example().to_bytes())
    change(document)
    with pytest.raises(ManifestError) as caught:
        Manifest.from_bytes(json.dumps(document).encode(), "/b: shop/manifest.json")
    assert "/b: shop/manifest.json" in str(caught.value)
    assert says in str(caught.value)


@given(st.integers(0, len(example().to_bytes()) - 2))
def test_every_truncation_is_refused(at: int) -> None:
    """A manifest cut anywhere is an error, never half a backup."""
    with pytest.raises(ManifestError):
        Manifest.from_bytes(example().to_bytes()[:at], "cut")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    """Foreign files never raise anything but ManifestError."""
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data, "foreign")
