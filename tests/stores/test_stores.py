"""The two stores of the core hold to the conformance kit."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from pgsnap import ConfigError, FsspecStore, LocalStore, Run, StoreError
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


def test_a_target_that_is_not_mounted_is_no_empty_store(tmp_path: Path) -> None:
    """Every call fails with the same sentence, nothing is made below the mount point, and a preflight says so."""
    mount = tmp_path / "nas"
    mount.mkdir()
    store = LocalStore(url=str(mount / "pgsnap"), mount=str(mount))
    calls = [
        lambda: store.write("a/b", (b"x",)),
        lambda: list(store.read("a/b")),
        lambda: list(store.entries()),
        lambda: list(store.entries("a/")),
        lambda: store.delete(["a/b"]),
        lambda: store.sweep("a/", datetime.now(UTC)),
        lambda: store.sweep("", datetime.now(UTC)),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert f"{mount}/pgsnap: nothing is mounted on {mount}; mount it, and run this again." == str(caught.value)
        assert caught.value.transient
    assert [] == list(mount.iterdir())
    (finding,) = store.preflight(Run())
    assert ("error", store.label, f"nothing is mounted on {mount}.") == (finding.level, finding.subject, finding.text)


def test_a_target_that_is_mounted_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount point may be the directory itself, or any above it."""
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path))
    for url in (tmp_path, tmp_path / "deep" / "down"):
        store = LocalStore(url=str(url), mount=str(tmp_path))
        assert 1 == store.write("a/b", (b"x",))
        assert ["a/b"] == [entry.key for entry in store.entries("a/")]
        assert ["ok"] == [finding.level for finding in store.preflight(Run())]


@pytest.mark.parametrize("mount", ["", "/", "nas", "/mnt/nas/pgsnap/more", "/mnt/na", "/mnt/other", "/mnt/nas/../other"])
def test_a_mount_that_is_not_above_the_directory_is_refused(mount: str) -> None:
    """When the store is made, with what would be right."""
    with pytest.raises(ConfigError, match=f"mount is {mount!r}, which is not /mnt/nas/pgsnap or a directory above it"):
        LocalStore(url="/mnt/nas/pgsnap", mount=mount)


def test_a_directory_where_mounts_are_customary_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is on the same disk as the root, and nothing says that it may not be."""
    monkeypatch.setattr("pgsnap.stores.local._MOUNTS", (str(tmp_path),))
    monkeypatch.setattr("pgsnap.stores.local._device", lambda path: 1)
    store = LocalStore(url=str(tmp_path / "x"))
    _, finding = store.preflight(Run())
    assert ("info", "it is on the same disk as /, though mounts are customary there.") == (finding.level, finding.text)
    monkeypatch.setattr("pgsnap.stores.local._device", lambda path: len(str(path)))
    assert 1 == len(store.preflight(Run()))


MOUNTING = """
import os, subprocess, sys
from pgsnap import LocalStore, StoreError
place = sys.argv[1]
store = LocalStore(url=place + "/pgsnap", mount=place)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
store.write("a/b", (b"x",))
print([entry.key for entry in store.entries()])
subprocess.run(["umount", place], check=True)
try:
    print([entry.key for entry in store.entries()])
except StoreError as error:
    print(error)
print(os.listdir(place))
"""


def test_a_real_mount_comes_and_goes(tmp_path: Path) -> None:
    """A tmpfs in a mount namespace of its own: the store is there, and then it is an error and not empty."""
    flags = [] if os.geteuid() == 0 else ["-r"]
    done = subprocess.run(
        ["unshare", *flags, "-m", sys.executable, "-c", MOUNTING, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine gives no mount namespace; the tests above cover the same code")
    assert 0 == done.returncode, done.stderr
    error = f"{tmp_path}/pgsnap: nothing is mounted on {tmp_path}; mount it, and run this again."
    assert ["['a/b']", error, "[]"] == done.stdout.splitlines()
