"""The two stores of the core hold to the conformance kit."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pgsnap import FsspecStore, LocalStore
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
