"""Healing: damage in one store is replaced by what is good in another, and never the other way round."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from pgsnap import LocalStore, StoreError
from pgsnap.streams import Stream
from toys import FaultyStore, MakePipeline


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the records of verifications."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("verify-")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hurt(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif how == "longer":
        path.write_bytes(data + b"x")
    else:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("how", ["gone", "cut", "longer", "flip"])
@pytest.mark.parametrize("name", ["shop.dump", "globals.sql", "RECOVER.txt"])
@pytest.mark.parametrize("where", ["a", "b"])
def test_damage_is_replaced_from_the_good_store(make: MakePipeline, tmp_path: Path, where: str, name: str, how: str) -> None:
    """Afterwards both stores are as they were, byte for byte, whichever of them was hurt; the exit code tells of it."""
    pipeline = make()
    folder = tmp_path / where / "shop" / pipeline.backup().id
    before = tree(tmp_path)
    hurt(folder / name, how)
    report = pipeline.repair()
    assert (True, 3) == (report.ok, report.exit_code)
    assert (name,) == report.repaired[str(tmp_path / where)]
    assert before == tree(tmp_path)
    assert (0, {}) == (pipeline.repair().exit_code, pipeline.repair().repaired)


def test_each_store_heals_the_other(make: MakePipeline, tmp_path: Path) -> None:
    """Different objects damaged in each of two stores: neither has the backup whole, together they have."""
    pipeline = make()
    id = pipeline.backup().id
    before = tree(tmp_path)
    hurt(tmp_path / "a" / "shop" / id / "shop.dump", "flip")
    hurt(tmp_path / "b" / "shop" / id / "globals.sql", "gone")
    assert pipeline.repair().ok
    assert before == tree(tmp_path)


def test_what_no_store_has_undamaged_stays_as_it_is(make: MakePipeline, tmp_path: Path) -> None:
    """Nothing is replaced by something that is damaged too; what can be repaired is."""
    pipeline = make()
    id = pipeline.backup().id
    for store in "ab":
        hurt(tmp_path / store / "shop" / id / "shop.dump", "flip")
    hurt(tmp_path / "b" / "shop" / id / "globals.sql", "cut")
    before = tree(tmp_path / "a")
    report = pipeline.repair()
    assert (False, 4) == (report.ok, report.exit_code)
    assert ("globals.sql",) == report.repaired[str(tmp_path / "b")]
    assert before == tree(tmp_path / "a")
    assert any("shop.dump is damaged" in problem for problem in report.problems[str(tmp_path / "b")])


def test_a_manifest_that_is_no_manifest_is_replaced(make: MakePipeline, tmp_path: Path) -> None:
    """Where all others agree."""
    pipeline = make()
    id = pipeline.backup().id
    before = tree(tmp_path)
    (tmp_path / "a" / "shop" / id / "manifest.json").write_bytes(b"{")
    report = pipeline.repair(id)
    assert report.ok, report.problems
    assert ("manifest.json",) == report.repaired[str(tmp_path / "a")]
    assert before == tree(tmp_path)


def test_manifests_that_differ_are_left_alone(make: MakePipeline, tmp_path: Path) -> None:
    """Which is right cannot be known: nothing is changed."""
    pipeline = make()
    id = pipeline.backup().id
    path = tmp_path / "a" / "shop" / id / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"pgsnap": "0', b'"pgsnap": "9'))
    hurt(tmp_path / "a" / "shop" / id / "globals.sql", "cut")
    before = tree(tmp_path)
    report = pipeline.repair(id)
    assert 4 == report.exit_code
    assert before == tree(tmp_path)
    assert any("differ" in problem for problem in report.problems[str(tmp_path / "a")])


def test_a_store_that_cannot_be_read_is_not_overwritten(make: MakePipeline, tmp_path: Path) -> None:
    """An error of the network is no proof of damage."""

    @attrs.frozen(kw_only=True)
    class Unreadable(LocalStore):
        def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
            if key.endswith("shop.dump"):
                raise StoreError(f"{self.label}: the network is down.", self.label, transient=True)
            yield from LocalStore.read(self, key, start, length)

    pipeline = make(stores=[str(tmp_path / "a"), Unreadable(url=str(tmp_path / "b"))])
    pipeline.backup()
    before = tree(tmp_path)
    report = pipeline.repair()
    assert (4, {}) == (report.exit_code, report.repaired)
    assert before == tree(tmp_path)
    assert any("it could not be repaired" in problem for problem in report.problems[str(tmp_path / "b")])


def test_the_only_store_cannot_be_repaired(make: MakePipeline, tmp_path: Path) -> None:
    """It says that no other store holds the backup."""
    pipeline = make(stores=[str(tmp_path / "a")])
    hurt(tmp_path / "a" / "shop" / pipeline.backup().id / "shop.dump", "cut")
    (problems,) = pipeline.repair().problems.values()
    assert "no other store holds this backup" in problems[-1]


def test_a_replacement_that_fails_leaves_the_old(make: MakePipeline, tmp_path: Path) -> None:
    """The damaged object stays until the new one is whole: it may still be of use to somebody."""
    pipeline = make()
    path = tmp_path / "b" / "shop" / pipeline.backup().id / "shop.dump"
    hurt(path, "flip")
    data = path.read_bytes()
    bad = make(stores=[str(tmp_path / "a"), FaultyStore(url=str(tmp_path / "b"), fail_write="shop.dump", after=1_000_000)])
    assert 4 == bad.repair().exit_code
    assert data == path.read_bytes()
