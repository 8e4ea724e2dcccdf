"""The two stores of the core hold to the conformance kit."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

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


class NoReplacing(LocalFileSystem):
    """Moves as WebDAV's driver does: it does not replace. And ``rm_file`` of a folder removes all that is in it."""

    protocol = "noreplacing"
    cachable = False

    def mv(self, path1: str, path2: str, **options: object) -> None:
        if os.path.exists(path2):
            raise OSError("received 412 (Precondition Failed)\n<xml>of many lines</xml>")
        os.rename(path1, path2)

    def rm_file(self, path: str) -> None:
        (shutil.rmtree if os.path.isdir(path) else os.remove)(path)


class TestFsspecNoReplacing(StoreConformance):
    """A file system that does neither replace nor refuse to delete a folder."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> FsspecStore:
        fsspec.register_implementation("noreplacing", NoReplacing, clobber=True)
        return FsspecStore(url=f"noreplacing://{tmp_path}/general", options={"auto_mkdir": True})


def test_a_disk_that_is_nearly_full_is_a_warning_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    store = LocalStore(url=str(tmp_path))
    for blocks, level, words in ((1 << 18, "warning", "Only 1.1 GB are free."), (1 << 30, "ok", "4.4 TB are free.")):
        full = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_blocks=real.f_blocks)
        monkeypatch.setattr(os, "statvfs", lambda path, full=full: full)
        (finding,) = store.preflight(Run())
        assert (level, words) == (finding.level, finding.text)
        assert (level == "warning") == bool(finding.remedy)
