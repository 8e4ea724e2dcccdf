"""A store that is not in order is told so, and what a key may not do is told apart from what does not work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

from pgsnap import Denied, LocalStore, Run
from pgsnap.components.values import Entry
from pgsnap.operations.doctor import examine
from pgsnap.streams import Chunks, Stream
from pgsnap.testing import StoreExamination
from toys import FaultyStore, MakePipeline


class TestLocal(StoreExamination):
    """The local store is in order."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(url=str(tmp_path / "store"), fsync=False)


@attrs.frozen(kw_only=True)
class Odd(LocalStore):
    """A local store with one thing wrong."""

    fsync: bool = False
    wrong: str = ""

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        if self.wrong == "publishes" and key.endswith("aborted"):
            return LocalStore.write(self, key, [b"half"])
        return LocalStore.write(self, key, [b"other"] if self.wrong == "changes" else chunks)

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        if self.wrong == "no read":
            raise Denied(f"{self.label}: cannot read {key}.", self.label)
        yield from LocalStore.read(self, key, start, length)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        if self.wrong == "no list":
            raise Denied(f"{self.label}: cannot list it.", self.label)
        for number, entry in enumerate(LocalStore.entries(self, prefix)):
            if self.wrong == "one page" and number == 1000:
                return
            yield attrs.evolve(entry, modified=entry.modified - timedelta(hours=1)) if self.wrong == "clock" else entry

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(keys, "AccessDenied") if self.wrong == "no delete" else LocalStore.delete(self, keys)


@pytest.mark.parametrize(
    ("wrong", "level", "text"),
    [
        ("publishes", "error", "a write that was broken off left an object"),
        ("changes", "error", "what was read is not what was written"),
        ("one page", "error", "of 1001 objects it lists 1000"),
        ("clock", "warning", "its clock differs from this host's by 1 h 0 m"),
        ("no read", "info", "the key may not read"),
        ("no list", "info", "the key may not list"),
        ("no delete", "info", "the key may not delete (AccessDenied)"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, wrong: str, level: str, text: str) -> None:
    """Each by its own finding, with what to do."""
    found = [f for f in examine(Odd(url=str(tmp_path), wrong=wrong), Run("shop")) if text in f.text]
    assert [level] == [finding.level for finding in found]
    assert found[0].remedy
    if level != "error":
        assert [] == [f for f in examine(Odd(url=str(tmp_path), wrong=wrong), Run("shop")) if f.level == "error"]


def test_a_store_that_cannot_be_written(make: MakePipeline, tmp_path: Path) -> None:
    """One finding, and nothing more is tried."""
    (finding,) = examine(FaultyStore(url=str(tmp_path), offline=True), Run("shop"))
    assert ("error", str(tmp_path)) == (finding.level, finding.subject)
    assert "it is offline" in finding.text


def test_nothing_of_it_is_taken_for_a_backup(make: MakePipeline, tmp_path: Path) -> None:
    """Not even what it may not delete."""
    pipeline = make(stores=[str(tmp_path / "a"), Odd(url=str(tmp_path / "b"), wrong="no delete")])
    report = pipeline.backup()
    assert [] == [finding for finding in pipeline.examine() if finding.level == "error"]
    assert [report.id] == [backup.id for backup in pipeline.backups().backups]
