"""The two stores of the core hold to the conformance kit."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from pgsnap import FsspecStore, LocalStore, Run
from pgsnap.testing import StoreConformance


class TestLocalStore(StoreConformance):
    """A path."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(url=str(tmp_path / "a [new] folder"), fsync=False)


class TestLocalStoreByUrl(StoreConformance):
    """A URL, with everything forced to the disk."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(url=(tmp_path / "with space").as_uri())


class TestFsspecMemory(StoreConformance):
    """A file system without real directories, whose writer can commit and discard."""

    @pytest.fixture
    def store(self) -> Iterator[FsspecStore]:
        url = f"memory://conformance-{secrets.token_hex(4)}/below"
        yield FsspecStore(url=url)
        system, path = fsspec.core.url_to_fs(url)
        if system.exists(path):
            system.rm(path, recursive=True)


class TestFsspecLocal(StoreConformance):
    """A file system that can only move."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> FsspecStore:
        return FsspecStore(url=f"file://{tmp_path}/general")


def test_a_disk_that_is_nearly_full_is_a_warning_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    store = LocalStore(url=str(tmp_path))
    for blocks, level, words in ((1 << 18, "warning", "Only 1.1 GB are free."), (1 << 30, "ok", "4.4 TB are free.")):
        full = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_blocks=real.f_blocks)
        monkeypatch.setattr(os, "statvfs", lambda path, full=full: full)
        (finding,) = store.preflight(Run())
        assert (level, words) == (finding.level, finding.text)
        assert (level == "warning") == bool(finding.remedy)
