"""An unlucky or hostile world: stores that answer late, lie or hang, files put there by somebody, limits that are passed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import fsspec
import pytest

from desk import Desk
from pgsnap import (
    Aborted,
    ConfigError,
    Dump,
    DumpError,
    FsspecStore,
    IntegrityError,
    LocalStore,
    ManifestError,
    Run,
    StageError,
    StoreError,
    Transform,
)
from pgsnap.components.values import Facts
from pgsnap.operations import backup as backup_module
from pgsnap.repository.blocks import read_file
from pgsnap.repository.catalog import scan
from pgsnap.repository.manifest import FileRecord, Manifest
from pgsnap.stores.timeouts import Limits
from pgsnap.streams import Chunks, Stream, drain
from pgsnap.streams.process import read_process, through_process
from toys import FaultyStore, MakePipeline, ToyDumper, files_below

# --- what a store holds must not be undone ------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Late(LocalStore):
    """Publishes an object only when the event is set, long after all its bytes were given to it."""

    fsync: bool = False
    key: str = "manifest.json"
    go_on: threading.Event = attrs.field(factory=threading.Event)
    done: threading.Event = attrs.field(factory=threading.Event)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        if not key.endswith(self.key):
            return LocalStore.write(self, key, chunks, expected=expected)

        def late() -> Stream:
            yield from chunks
            self.go_on.wait(30)

        try:
            return LocalStore.write(self, key, late(), expected=expected)
        finally:
            self.done.set()


def test_a_manifest_that_arrives_late_finds_its_objects(make: MakePipeline, tmp_path: Path) -> None:
    """The store was dropped while its manifest was on the way. Were the objects removed, it would commit a backup of nothing."""
    late = Late(url=str(tmp_path / "late"))
    pipeline = make(stores=[LocalStore(url=str(tmp_path / "a"), fsync=False), late], finish_timeout=0.3, stall_timeout=0.3)
    report = pipeline.backup()
    assert [True, False] == [store.ok for store in report.stores]
    late.go_on.set()
    assert late.done.wait(30)
    assert report.manifest is not None
    alone = make(stores=[LocalStore(url=str(tmp_path / "late"), fsync=False)])
    assert alone.verify(report.id).ok


def test_the_end_of_a_run_does_not_wait_for_a_sign_of_life(make: MakePipeline, tmp_path: Path, monkeypatch: Any) -> None:
    """running.json is refreshed when the dump fails, and the store hangs: its ten minutes for large objects are not for that."""
    refreshing, released = threading.Event(), threading.Event()

    @attrs.frozen(kw_only=True)
    class Hanging(LocalStore):
        fsync: bool = False
        writes: list[str] = attrs.field(factory=list)

        def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
            self.writes.append(key)
            if len(self.writes) > 1:
                refreshing.set()
                released.wait(60)
            return LocalStore.write(self, key, chunks, expected=expected)

    class Dumper(ToyDumper):
        @contextlib.contextmanager
        def dump(self, run: Run) -> Iterator[Dump]:
            assert refreshing.wait(30)
            yield Dump(artifacts=[])

    monkeypatch.setattr(backup_module, "REFRESH", 0.05)
    monkeypatch.setattr(backup_module, "QUIET", Limits(stall=0.2, finish=0.2, grace=0.2))
    began = time.monotonic()
    with pytest.raises(DumpError):
        make(dump=Dumper(), stores=[Hanging(url=str(tmp_path / "a"))], finish_timeout=20.0).backup()
    took = time.monotonic() - began
    released.set()
    assert took < 10


@pytest.mark.parametrize("spelling", ["{}/", "{}/../{name}", "file://{}", "link"])
def test_one_directory_in_two_spellings_is_refused(make: MakePipeline, tmp_path: Path, spelling: str) -> None:
    """As two stores they would count for a quorum of two, and what one drops the other would lose."""
    real = tmp_path / "real"
    (tmp_path / "link").symlink_to(real)
    other = str(tmp_path / "link") if spelling == "link" else spelling.format(real, name="real")
    with pytest.raises(ConfigError, match="two copies need two places"):
        make(stores=[str(real), LocalStore(url=other)])


def test_a_second_run_never_writes_over_a_backup_of_the_same_id(make: MakePipeline, tmp_path: Path, monkeypatch: Any) -> None:
    """Four hex digits meet sooner or later; the run that comes second leaves the first one's backup alone, even when it fails."""
    monkeypatch.setattr(backup_module, "new_backup_id", lambda now: "20261122T080000Z-4f3a")
    first = make().backup()
    before = {name: (tmp_path / "a" / name).read_bytes() for name in files_below(tmp_path / "a")}
    with pytest.raises(StoreError, match=f"{first.id} is there already"):
        make(dump=ToyDumper(fail_at=0)).backup()
    assert before == {name: (tmp_path / "a" / name).read_bytes() for name in files_below(tmp_path / "a")}


# --- a backup counts only if it is whole and can be read --------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Early(Transform):
    """Ends before its source has."""

    name: ClassVar[str] = "early"
    suffix: ClassVar[str] = ".early"
    chunks: int = 1

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        for number, chunk in enumerate(chunks, 1):
            yield chunk
            if number == self.chunks:
                return

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from chunks

    def command(self, facts: Facts) -> str | None:
        return "cat"


def test_a_transform_that_stops_early_makes_no_backup(make: MakePipeline, tmp_path: Path) -> None:
    """What it did not ask for would be missing, and every digest would agree."""
    with pytest.raises(StageError, match=r"globals\.sql.*before its end"):
        make(dump=ToyDumper(contents={"globals.sql": bytes(300_000)}), transforms=[Early()]).backup()
    assert [] == files_below(tmp_path / "a")


def test_a_source_that_fails_at_its_very_end_is_heard_through_such_a_transform(make: MakePipeline) -> None:
    """It took every byte, but pg_dump's exit status comes after the last one."""
    with pytest.raises(DumpError):
        make(dump=ToyDumper(contents={"shop.dump": bytes(200_000)}, fail_at=100_000), transforms=[Early()]).backup()


def test_a_dump_of_nothing_is_no_backup(make: MakePipeline, tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="no artifact"):
        make(dump=ToyDumper(contents={})).backup()
    assert [] == files_below(tmp_path / "a")


def test_a_manifest_that_nobody_would_read_is_not_written(make: MakePipeline, tmp_path: Path, monkeypatch: Any) -> None:
    """Readers refuse what is larger than MAX_SIZE: such a backup would be listed and never restored."""
    monkeypatch.setattr(Manifest, "MAX_SIZE", 1000)
    with pytest.raises(ManifestError, match="the manifest would have"):
        make().backup()
    assert [] == files_below(tmp_path / "a")


def test_what_follows_the_commit_does_not_deny_it(make: MakePipeline, tmp_path: Path) -> None:
    """The time limit passes while running.json is removed: the backup is there, and so says the report."""

    @attrs.frozen(kw_only=True)
    class Slow(LocalStore):
        fsync: bool = False

        def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
            threading.Event().wait(2.5)
            return LocalStore.delete(self, keys)

    report = make(stores=[Slow(url=str(tmp_path / "a"))], timeout=1.0).backup()
    assert 0 == report.exit_code
    assert make(stores=[str(tmp_path / "a")]).verify(report.id).ok


# --- copies -----------------------------------------------------------------------------------------------------------------


def test_a_copy_takes_the_manifest_byte_by_byte(make: MakePipeline, tmp_path: Path) -> None:
    """A newer version may have written keys that this one does not know; rewritten without them, the two would differ."""
    a, b = (LocalStore(url=str(tmp_path / name), fsync=False) for name in "ab")
    report = make(stores=[a]).backup()
    path = tmp_path / "a" / "shop" / report.id / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"signature": "of a later version"}))
    both = make(stores=[a, b])
    assert () == both.copy().errors
    assert path.read_bytes() == (tmp_path / "b" / "shop" / report.id / "manifest.json").read_bytes()
    assert both.verify(report.id).ok


def test_a_copy_looks_again_before_it_commits(make: MakePipeline, tmp_path: Path) -> None:
    """The run that was dropped by this store removes its part while the copy fills it up."""
    a = LocalStore(url=str(tmp_path / "a"), fsync=False)
    report = make(stores=[a]).backup()

    @attrs.frozen(kw_only=True)
    class Losing(LocalStore):
        fsync: bool = False

        def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
            size = LocalStore.write(self, key, chunks, expected=expected)
            if key.endswith("RECOVER.txt"):
                LocalStore.delete(self, [f"shop/{report.id}/shop.dump"])
            return size

    copied = make(stores=[a, Losing(url=str(tmp_path / "b"))]).copy()
    assert 3 == copied.exit_code
    assert "shop.dump" in copied.errors[0]
    assert not any(name.endswith("manifest.json") for name in files_below(tmp_path / "b"))


def test_a_copy_that_cannot_take_its_manifest_back_leaves_its_objects(make: MakePipeline, tmp_path: Path) -> None:
    """The store says that it failed, has the manifest all the same, and will not delete it: nothing else goes."""
    a = LocalStore(url=str(tmp_path / "a"), fsync=False)
    report = make(stores=[a]).backup()

    class Stubborn(FaultyStore):
        def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
            LocalStore.delete(self, [key for key in keys if not key.endswith("manifest.json")])
            return {key: "it is locked" for key in keys if key.endswith("manifest.json")}

    b = tmp_path / "b"
    assert 3 == make(stores=[a, Stubborn(url=str(b), short="manifest.json")]).copy().exit_code
    assert make(stores=[str(b)]).verify(report.id).ok


# --- what somebody has put into a store -----------------------------------------------------------------------------------------


def test_a_folder_of_an_impossible_time_is_passed_over(make: MakePipeline, tmp_path: Path) -> None:
    """Its name looks like an id; it must not stand in the way of the backups that are there."""
    pipeline = make()
    report = pipeline.backup()
    path = tmp_path / "a" / "shop" / "20269999T999999Z-0000"
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    catalog = pipeline.backups()
    assert [report.id] == [backup.id for backup in catalog.backups]
    assert report.id == catalog.find("2027-01-01").id == catalog.find().id


@pytest.mark.parametrize("content", ["[" * 200_000, '{"format": 1, "x": ' + "[" * 200_000, "\ud800"])
def test_a_manifest_that_no_parser_takes_leaves_the_other_store(make: MakePipeline, tmp_path: Path, content: str) -> None:
    pipeline = make()
    report = pipeline.backup()
    (tmp_path / "a" / "shop" / report.id / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    catalog = pipeline.backups()
    assert report.manifest == catalog.manifest(catalog.find())


def test_a_block_that_no_memory_holds_is_refused(make: MakePipeline, tmp_path: Path) -> None:
    """A reader holds one block; a manifest that says there is only one asks for the size of the whole object."""
    report = make().backup()
    assert report.manifest is not None
    document = json.loads(report.manifest.to_bytes()) | {"block": 1 << 50}
    with pytest.raises(ManifestError, match="block"):
        Manifest.from_bytes(json.dumps(document).encode(), "here")


def test_a_small_file_that_has_grown_is_not_read_to_its_end() -> None:
    """RECOVER.txt of a terabyte: the reader stops where the manifest says that it ends."""
    asked = []

    class Endless(LocalStore):
        def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
            for number in range(1000):
                asked.append(number)
                yield bytes(1000)

    with pytest.raises(IntegrityError, match="not what the manifest says"):
        read_file(Endless(url="/nowhere"), "p/", FileRecord(key="RECOVER.txt", size=1500, sha256="0" * 64))
    assert len(asked) <= 2


@pytest.mark.parametrize("name", ["manifest.json", "shop.dump"])
def test_a_pipe_in_place_of_a_file_is_no_wait_for_ever(make: MakePipeline, tmp_path: Path, name: str) -> None:
    pipeline = make(stores=[str(tmp_path / "a")])
    report = pipeline.backup()
    path = tmp_path / "a" / "shop" / report.id / name
    path.unlink()
    os.mkfifo(path)
    outcome: list[object] = []

    def look() -> None:
        try:
            outcome.append(pipeline.verify(report.id))
        except StoreError as error:
            outcome.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(10)
    alive = thread.is_alive()
    if alive:
        path.open("wb").close()
    assert not alive
    assert outcome
    assert not getattr(outcome[0], "ok", False)


def test_a_link_to_itself_does_not_hide_the_store(make: MakePipeline, tmp_path: Path) -> None:
    """Nor one to nowhere, nor one to a folder: they are no objects, and the listing goes on."""
    report = make().backup()
    folder = tmp_path / "a" / "shop" / report.id
    for name, target in {"loop": "loop", "nowhere": "nothing", "folder": "."}.items():
        (folder / name).symlink_to(target)
    held = scan(LocalStore(url=str(tmp_path / "a")), "shop")[report.id]
    assert {path.name for path in folder.iterdir() if not path.is_symlink()} == set(held.entries)


# --- listings -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[tuple[FsspecStore, Any]]:
    """A store in memory, and its file system."""
    url = f"memory://adversity-{secrets.token_hex(4)}"
    system, path = fsspec.core.url_to_fs(url)
    yield FsspecStore(url=url), system
    if system.exists(path):
        system.rm(path, recursive=True)


@pytest.mark.parametrize("where", ["shop", "20261122T080000Z-4f3a"])
@pytest.mark.parametrize("error", [ConnectionError("reset"), PermissionError("403"), TimeoutError("slow")])
def test_a_listing_that_fails_is_not_an_empty_one(
    memory: tuple[FsspecStore, Any], monkeypatch: Any, where: str, error: OSError
) -> None:
    """fsspec's walk leaves out what it cannot list. To retention that would look like a store without backups."""
    store, system = memory
    store.write("shop/20261122T080000Z-4f3a/manifest.json", [b"{}"])
    plain = type(system).ls

    def ls(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith(where):
            raise error
        return plain(self, path, *args, **options)

    monkeypatch.setattr(type(system), "ls", ls)
    with pytest.raises(StoreError, match="cannot list"):
        scan(store, "shop")


def test_a_folder_that_goes_while_the_listing_runs_hides_no_other(memory: tuple[FsspecStore, Any], monkeypatch: Any) -> None:
    store, system = memory
    ids = [f"2026112{n}T080000Z-4f3a" for n in range(5)]
    for id in ids:
        store.write(f"shop/{id}/manifest.json", [b"{}"])
    plain = type(system).ls

    def ls(self: Any, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith(ids[2]):
            raise FileNotFoundError(path)
        return plain(self, path, *args, **options)

    monkeypatch.setattr(type(system), "ls", ls)
    assert [*ids[:2], *ids[3:]] == list(scan(store, "shop"))


# --- secrets ------------------------------------------------------------------------------------------------------------------

TALKER = """
import attrs
from typing import ClassVar
from pgsnap import Notifier, Secret

@attrs.frozen(kw_only=True)
class Talker(Notifier):
    name: ClassVar[str] = "talker"
    hook: Secret

    def notify(self, event, *, timeout):
        raise RuntimeError(f"POST {self.hook.reveal()} failed")
"""


def test_what_is_printed_for_machines_is_redacted_too(desk: Desk) -> None:
    """A notifier's library names its secret URL in the exception; --json printed the reports as they were."""
    (desk.folder / "talker.py").write_text(TALKER)
    (desk.folder / "pgsnap.toml").write_text(
        f"""
        [pipeline.shop.dump]
        use = "pg_dump"
        url = "postgresql://u@localhost:1/nothing"
        [[pipeline.shop.store]]
        url = "{desk.folder}/one"
        [[pipeline.shop.notify]]
        use = "talker:Talker"
        hook = "https://hooks.example/c4n4ry\\"end"
        """
    )
    done = desk.run("-v", "backup", "--json", PYTHONPATH=str(desk.folder))
    assert 1 == done.returncode
    assert "c4n4ry" not in done.stdout + done.stderr
    assert ["the notifier 'talker' failed: RuntimeError: POST *** failed"] == json.loads(done.stdout)[0]["notify_errors"]


# --- children -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["read", "through"])
def test_the_time_limit_holds_though_a_grandchild_holds_the_pipe(how: str) -> None:
    """The child has ended, so that nothing is left to signal; its own child would keep the run waiting."""
    run = Run("shop", timeout=0.5)
    argv = ["sh", "-c", "sleep 20 & exit 0"]
    began = time.monotonic()
    stream = read_process(argv, start=run.spawn) if how == "read" else through_process([], argv, start=run.spawn)
    with pytest.raises(Aborted), run.watched():
        drain(stream)
    assert time.monotonic() - began < 10


# --- signals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ignored", "code"), [(True, 2), (False, 1)])
def test_what_was_ignored_from_the_start_stays_ignored(desk: Desk, ignored: bool, code: int) -> None:
    """nohup ignores SIGHUP for its child, a script's shell SIGINT for what it starts by &: no logout ends a backup."""
    began = desk.folder / "began"
    (desk.folder / "pgsnap.toml").write_text(
        f"""
        [pipeline.shop.dump]
        use = "pg_dump"
        url = {{ command = ["sh", "-c", "touch '{began}'; sleep 2"] }}
        [[pipeline.shop.store]]
        url = "{desk.folder}/one"
        """
    )
    trap = "trap '' HUP; " if ignored else ""
    argv = ["sh", "-c", f'{trap}exec "$0" backup', str(Path(sys.executable).with_name("pgsnap"))]
    process = subprocess.Popen(argv, cwd=desk.folder, env=desk.env, stderr=subprocess.PIPE)
    while not began.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    said = process.communicate(timeout=60)[1]
    assert (code, ignored) == (process.returncode, b"SIGHUP" not in said), said
