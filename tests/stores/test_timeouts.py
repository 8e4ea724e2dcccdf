"""Stores that give no answer: each command ends in bounded time, names the store, and does with the others what it can.

The threads that hang here really hang: at an ``Event`` that nobody sets, in the opening of a named pipe that nobody writes to,
at a socket whose server says nothing, and on a mounted file system whose server is gone.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FunctionType
from typing import Any

import attrs
import pytest

from desk import Desk
from pgsnap import Entry, Finding, FsspecStore, LocalStore, Pipeline, RetentionPolicy, Run, Store, StoreError
from pgsnap.errors import Denied
from pgsnap.repository.store_set import StoreSet
from pgsnap.stores.timeouts import Limits, TimeLimitedStore
from pgsnap.streams import CHUNK, Chunks, Stream
from pgsnap.testing import StoreConformance
from toys import FaultyStore, MakePipeline, ToyDumper

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))
SHORT = 1.0
"""Seconds that a store is given here. All that does answer does so in milliseconds."""
SLACK = 10.0
"""Seconds that a busy machine may add, where less than that must be told from the 30 and more that a store was once given."""
LONG = 60.0
"""Seconds that no test comes near, unless something waits for ever."""


@attrs.frozen(kw_only=True)
class Hanging(LocalStore):
    """A local store that blocks in one method until the gate is opened, and then fails with the error, if one is given; in
    ``read`` after so many bytes of some keys."""

    fsync: bool = False
    where: str = ""
    gate: threading.Event = attrs.field(factory=threading.Event, eq=False)
    after: int = 0
    ending: str = ""
    error: str = ""

    def _block(self, method: str) -> None:
        if method == self.where:
            self.gate.wait()
            if self.error:
                raise StoreError(f"{self.label}: {self.error}", self.label)

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        self._block("write")
        return LocalStore.write(self, key, chunks, expected=expected)

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        done = 0
        for chunk in LocalStore.read(self, key, start, length):
            if done >= self.after and key.endswith(self.ending):
                self._block("read")
            done += len(chunk)
            yield chunk

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        self._block("entries")
        yield from LocalStore.entries(self, prefix)

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        self._block("delete")
        return LocalStore.delete(self, keys)

    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        self._block("sweep")
        return LocalStore.sweep(self, prefix, before)

    def preflight(self, run: Run) -> Sequence[Finding]:
        self._block("preflight")
        return LocalStore.preflight(self, run)

    def examine(self, run: Run) -> Sequence[Finding]:
        self._block("examine")
        return ()


@pytest.fixture
def hanging(make: MakePipeline, tmp_path: Path, gate: threading.Event) -> Callable[..., Pipeline]:
    """Make a pipeline with two backups in ``a`` and ``b`` and a third in ``b`` alone; ``a`` hangs in one method."""

    def make_it(where: str, **options: Any) -> Pipeline:
        good = make()
        good.backup(now=datetime.fromisoformat("2026-11-20T08:00:00Z"))
        good.backup(now=datetime.fromisoformat("2026-11-21T08:00:00Z"))
        good.only(str(tmp_path / "b")).backup(now=datetime.fromisoformat("2026-11-22T08:00:00Z"))
        stuck = Hanging(url=str(tmp_path / "a"), where=where, gate=gate, **options)
        return attrs.evolve(
            good,
            stores=[stuck, good.stores[1]],
            answer_timeout=SHORT,
            stall_timeout=SHORT,
            finish_timeout=SHORT,
            keep=RetentionPolicy(min_good=1),
        )

    return make_it


def told(findings: Sequence[Finding]) -> list[str]:
    return [f"{found.level} {found.subject}: {found.text}" for found in findings]


OPERATIONS: dict[str, Callable[[Pipeline], Any]] = {
    "backups": lambda p: p.backups().failures,
    "status": lambda p: told(p.status().findings),
    "verify": lambda p: p.verify("20261121").problems,
    "repair": lambda p: p.repair("20261121").problems,
    "restore": lambda p: p.restore("20261121", to="postgresql:///x").notes,
    "copy": lambda p: p.copy().errors,
    "prune": lambda p: p.prune().problems,
    "acknowledge": lambda p: p.acknowledge("20261121").errors,
    "hold": lambda p: p.hold("20261121").errors,
    "release": lambda p: p.release("20261121").errors,
    "delete": lambda p: p.delete("20261120").errors,
    "preflight": lambda p: told(p.preflight()),
    "examine": lambda p: told(p.examine()),
}
HANGS = {
    "entries": ["backups", "status", "verify", "repair", "restore", "copy", "prune", "acknowledge", "delete", "examine"],
    "read": ["status", "verify", "repair", "restore", "prune", "examine"],
    "write": ["copy", "prune", "acknowledge", "hold", "delete", "examine"],
    "delete": ["prune", "release", "examine"],
    "sweep": ["prune"],
    "preflight": ["preflight"],
    "examine": ["examine"],
}


@pytest.mark.parametrize(("where", "operation"), [(where, name) for where, names in HANGS.items() for name in names])
def test_each_operation_ends_and_names_the_store(
    hanging: Callable[..., Pipeline], tmp_path: Path, where: str, operation: str
) -> None:
    """Whichever method of the store blocks, what needs it returns, names the store and does not blame the other one."""
    pipeline = hanging(where)
    began = time.monotonic()
    said = str(OPERATIONS[operation](pipeline))
    assert time.monotonic() - began < LONG
    assert re.search(rf"{tmp_path}/a: [^;]*(it gave no answer for|an earlier call has still not come back)", said), said
    assert f"{tmp_path}/b: cannot" not in said


def test_the_backup_in_the_other_store_is_there_all_the_same(hanging: Callable[..., Pipeline], tmp_path: Path) -> None:
    """A store that cannot be listed hides nothing that the other holds; the report has the store's error."""
    pipeline = hanging("entries")
    assert 3 == len(pipeline.backups().backups)
    found = pipeline.status()
    assert [True, False] == [bool(store.error) for store in found.stores]
    assert 3 == found.exit_code


@pytest.mark.parametrize("after", [0, 20 * CHUNK])
def test_a_restore_goes_on_from_the_next_store(make: MakePipeline, tmp_path: Path, gate: threading.Event, after: int) -> None:
    """A store that hangs in the middle of an object is left like one that is cut: the next one goes on at the same byte."""
    data = random.Random(1).randbytes(40_000_000)
    dumper = ToyDumper(contents={"shop.dump": data})
    make(dump=dumper).backup()
    stuck = Hanging(url=str(tmp_path / "a"), where="read", gate=gate, after=after, ending="shop.dump")
    report = make(dump=dumper, stores=[stuck, str(tmp_path / "b")], stall_timeout=SHORT).restore(to="postgresql:///x")
    assert data == dumper.restored["shop.dump"]
    (note,) = report.notes
    assert f"Going on from {tmp_path}/b at block {after // (16 * CHUNK)} of 3 of shop.dump instead of {tmp_path}/a." in note


def test_a_hang_is_no_damage(hanging: Callable[..., Pipeline], tmp_path: Path) -> None:
    """A verification that a store did not answer records nothing against the copy in it."""
    pipeline = hanging("read")
    report = pipeline.verify("20261121")
    assert 4 == report.exit_code
    assert ((f"{tmp_path}/a",), [], [f"{tmp_path}/b"]) == (report.unread, report.damaged, report.whole)
    assert [] == list((tmp_path / "a").rglob("verify-*"))
    assert 1 == len(list((tmp_path / "b").rglob("verify-*-ok.json")))


def test_the_catch_up_of_a_backup_ends(make: MakePipeline, tmp_path: Path, gate: threading.Event) -> None:
    """A source that hangs while a backup copies what another store lacks: the backup is made, the error is told."""
    make(stores=[str(tmp_path / "a")]).backup(now=datetime.fromisoformat("2026-11-20T08:00:00Z"))
    stuck = Hanging(url=str(tmp_path / "a"), where="read", gate=gate, ending="shop.dump")
    report = make(stores=[stuck, str(tmp_path / "b")], stall_timeout=SHORT, auto_prune=False).backup()
    assert 2 == len(report.kept_in)
    assert any(f"{tmp_path}/a: cannot read" in text for text in report.catch_up_errors)


# --- before the dump -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Asked(Hanging):
    """Counts the calls that reach it; ``denied`` refuses to be listed, as to a key that may only write."""

    denied: bool = False
    calls: list[str] = attrs.field(factory=list, eq=False)

    def _block(self, method: str) -> None:
        self.calls.append(method)
        if self.denied and method == "entries":
            raise Denied(f"{self.label}: this key may not list.", self.label)
        Hanging._block(self, method)


@pytest.mark.parametrize("where", ["entries", "write"])
def test_the_dump_waits_for_one_answer_and_no_more(make: MakePipeline, tmp_path: Path, gate: threading.Event, where: str) -> None:
    """A store that answers nothing is dropped after one ``answer_timeout``, however long a stream may take, and asked no more."""
    dumper = ToyDumper()
    stuck = Asked(url=str(tmp_path / "a"), where=where, gate=gate)
    pipeline = make(dump=dumper, stores=[stuck, str(tmp_path / "b")], answer_timeout=SHORT, summary="daily")
    began = time.monotonic()
    report = pipeline.backup()
    assert time.monotonic() - began < SHORT + SLACK
    assert (3, (str(tmp_path / "b"),)) == (report.exit_code, report.kept_in)
    assert re.search(rf"{tmp_path}/a: cannot (list|write) [^;]*: it gave no answer for 1 s; see", report.stores[0].error)
    assert ["entries", *(["write"] if where == "write" else [])] == stuck.calls


def test_with_no_answer_from_any_store_nothing_is_dumped(make: MakePipeline, tmp_path: Path, gate: threading.Event) -> None:
    """All are asked at once and waited for together; the run ends with 1 before the database is touched."""
    dumper = ToyDumper()
    stores = [Hanging(url=str(tmp_path / name), where="entries", gate=gate) for name in ("a", "b", "c")]
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"no store is left. .*/a: cannot list .*/b: cannot list .*/c: cannot list ") as caught:
        make(dump=dumper, stores=stores, answer_timeout=SHORT).backup()
    assert time.monotonic() - began < SHORT + SLACK
    assert ([], 1) == (dumper.entered, caught.value.exit_code)


def test_a_store_that_may_only_be_written_stays(make: MakePipeline, tmp_path: Path, gate: threading.Event) -> None:
    """That listing is refused is an answer."""
    store = Asked(url=str(tmp_path / "a"), denied=True, gate=gate)
    report = make(stores=[store, str(tmp_path / "b")], auto_prune=False).backup()
    assert [True, True] == [result.ok for result in report.stores]


def test_a_store_that_fails_at_once_is_dropped_by_its_own_error(make: MakePipeline, tmp_path: Path) -> None:
    """It holds nobody up, and nothing is said of files there that were never begun."""
    report = make(stores=[FaultyStore(url=str(tmp_path / "a"), offline=True), str(tmp_path / "b")]).backup()
    assert f"{tmp_path}/a: it is offline." == report.stores[0].error
    assert not (tmp_path / "a").exists()


def test_stores_are_listed_at_once_and_in_order(make: MakePipeline, tmp_path: Path) -> None:
    """Each answers when all were asked, so that several which give no answer cost the time of one."""
    together: Any = threading.Barrier(4)
    stores = [Hanging(url=str(tmp_path / name), where="entries", gate=together) for name in ("a", "b", "c")]
    stores.append(Hanging(url=str(tmp_path / "d"), where="entries", gate=together, error="it is offline."))
    catalog = make(stores=stores, answer_timeout=SLACK).backups()
    assert [0, 1, 2] == list(catalog.scans)
    assert {3: f"{tmp_path}/d: it is offline."} == {number: str(error) for number, error in catalog.failures.items()}


def test_what_each_store_does_is_told_with_its_name(tmp_path: Path, gate: threading.Event) -> None:
    """Also where the limit of the run ends it, and not one of the store's own."""
    stores = [Hanging(url=str(tmp_path / name), where="entries", gate=gate) for name in ("a", "b")]
    limits = Limits(finish=0.2, grace=0.1)
    results = StoreSet(stores, Run("shop"), limits).each(lambda store: list(store.entries("shop/")))
    text = "did not finish within 0.2 s after the last byte."
    assert [f"{store.label}: {text}" for store in stores] == [str(results[0]), str(results[1])]
    assert all(isinstance(error, StoreError) and error.transient for error in results.values())


def test_status_names_a_store_that_lists_and_cannot_be_read(hanging: Callable[..., Pipeline], tmp_path: Path) -> None:
    """Its backups may be there and are of no use; that only shows when one is read."""
    found = hanging("read").status()
    (text,) = [text for text in told(found.findings) if "cannot be read" in text]
    assert text.startswith(f"warning {tmp_path}/a: the manifest of 20261121T080000Z-")
    assert "its newest backup, cannot be read: " in text
    assert "it gave no answer for 1 s" in text
    assert 3 == found.exit_code


# --- the command ---------------------------------------------------------------------------------------------------------

TOYBOX = Path(__file__).parent.parent / "shared" / "toybox.py"
DEADBOX = """
import os
from typing import ClassVar

import attrs

from pgsnap import LocalStore


def hang(method):
    if os.environ.get("HANGS") == method:
        open(os.environ["PIPE"])  # a system call that waits until somebody writes, and nobody does


@attrs.frozen(kw_only=True)
class Dead(LocalStore):
    name: ClassVar[str] = "dead"

    def read(self, key, start=0, length=None):
        hang("read")
        yield from LocalStore.read(self, key, start, length)

    def entries(self, prefix=""):
        hang("entries")
        yield from LocalStore.entries(self, prefix)

    def write(self, key, chunks, *, expected=None):
        hang("write")
        return LocalStore.write(self, key, chunks, expected=expected)

    def preflight(self, run):
        hang("preflight")
        return LocalStore.preflight(self, run)
"""


@attrs.define
class Box:
    """A desk whose pipeline ``shop`` has a store ``one`` that hangs when it is told to, and a store ``two`` that never does."""

    desk: Any

    def run(self, *arguments: str, hangs: str = "", code: int = 0) -> tuple[str, str]:
        """Run the command, which must end by itself with this code and without a traceback; return its two outputs."""
        folder = self.desk.folder
        done = self.desk.run(*arguments, PYTHONPATH=str(folder), HANGS=hangs, PIPE=str(folder / "pipe"))
        assert code == done.returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr


@pytest.fixture
def box(desk: Desk) -> Box:
    """A desk with one backup of toys in two stores."""
    shutil.copy(TOYBOX, desk.folder)
    (desk.folder / "deadbox.py").write_text(DEADBOX)
    os.mkfifo(desk.folder / "pipe")
    (desk.folder / "pgsnap.toml").write_text(
        f"""
        [pipeline.shop]
        answer_timeout = "1s"
        stall_timeout = "1s"
        [pipeline.shop.dump]
        use = "toybox:Toy"
        size = 10_000
        [[pipeline.shop.store]]
        use = "deadbox:Dead"
        url = "{desk.folder}/one"
        [[pipeline.shop.store]]
        url = "{desk.folder}/two"
        """
    )
    found = Box(desk)
    found.run("backup")
    return found


@pytest.mark.parametrize(
    ("arguments", "hangs", "code", "shown"),
    [
        (["list"], "entries", 3, r"\d{8}T\d{6}Z-[0-9a-f]{4} .*\?.*yes"),
        (["list", "--json"], "entries", 3, '"proof"'),
        (["show"], "entries", 3, "two/shop/"),
        (["status"], "entries", 3, "cannot be asked"),
        (["verify"], "entries", 4, ""),
        (["verify", "--all"], "read", 4, ""),
        (["restore", "--to", "out"], "entries", 0, ""),
        (["restore", "--to", "out"], "read", 0, ""),
        (["copy"], "entries", 3, ""),
        (["prune"], "entries", 3, ""),
        (["prune"], "write", 3, ""),
        (["hold", "latest"], "write", 3, ""),
        (["doctor"], "preflight", 1, "one: It gave no answer for 1 s"),
        (["doctor", "--deep"], "write", 1, "one: Writing a small object failed"),
    ],
)
def test_each_command_ends_and_names_the_store(box: Box, arguments: list[str], hangs: str, code: int, shown: str) -> None:
    """Its thread is blocked in the kernel for ever, and the process ends all the same; what the other store holds is used."""
    out, err = box.run(*arguments, hangs=hangs, code=code)
    one = re.escape(str(box.desk.folder / "one"))
    flat = " ".join((out + err).split())
    assert re.search(rf"{one}: [^;]*([Ii]t gave no answer for 1 s|an earlier call has still not come back)", flat), out + err
    assert re.search(shown, out, flags=re.DOTALL), out
    if arguments[0] == "restore":
        assert bytes(10_000) == (box.desk.folder / "out").read_bytes()


DEAD = """
import ctypes, os, subprocess, sys
place, *command = sys.argv[1:]
libc = ctypes.CDLL(None)
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
if libc.mount(b"dead", place.encode(), b"fuse", 0, options.encode()):
    sys.exit("mount: not permitted")
code = subprocess.run(command).returncode
libc.umount2(place.encode(), 2)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["list"], 3), (["status"], 3), (["restore", "--to", "out"], 0), (["prune"], 3), (["doctor"], 1), (["backup"], 3)],
)
def test_a_mount_whose_server_is_gone(box: Box, arguments: list[str], code: int) -> None:
    """A real one: a FUSE file system, in a mount namespace of its own, whose server never answers the kernel."""
    folder = box.desk.folder
    (folder / "dead").mkdir()
    text = (folder / "pgsnap.toml").read_text().replace(f'"{folder}/one"', f'"{folder}/dead/one"')
    (folder / "pgsnap.toml").write_text(text)
    flags = [] if os.geteuid() == 0 else ["-r"]
    done = subprocess.run(
        ["unshare", *flags, "-m", sys.executable, "-c", DEAD, str(folder / "dead"), PROGRAM, *arguments],
        cwd=folder,
        env={**box.desk.env, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    if any(word in done.stderr for word in ("unshare:", "/dev/fuse", "mount: not permitted")):
        pytest.skip("this machine gives no FUSE mount; a pipe that nobody writes to blocks in the kernel as well, above")
    assert code == done.returncode, done.stdout + done.stderr
    assert f"{folder}/dead/one: " in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


# --- the wrapper ---------------------------------------------------------------------------------------------------------


class TestBoundedStore(StoreConformance):
    """What is bounded is a store like any other."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return TimeLimitedStore.of(LocalStore(url=str(tmp_path), fsync=False), Limits())

    def test_a_pickled_copy_reads(self, store: Store) -> None:
        """It is made where it is used and never sent elsewhere: the store within it is."""
        assert isinstance(store, TimeLimitedStore)
        super().test_a_pickled_copy_reads(store.store)

    def test_listings_are_not_cached(self, store: Store) -> None:
        """As above."""
        assert isinstance(store, TimeLimitedStore)
        super().test_listings_are_not_cached(store.store)


def test_nothing_of_a_store_goes_past_its_bounds() -> None:
    """Whatever a store can be asked or told is asked of the store within: a default of the base class would answer for it."""
    asked = (FunctionType, property)  # a static method is a rule, and not asked of anybody
    offered = {name for name, what in vars(Store).items() if name[0] != "_" and isinstance(what, asked)}
    assert set() == offered - vars(TimeLimitedStore).keys()


def test_what_hangs_is_waited_for_once(tmp_path: Path, gate: threading.Event) -> None:
    """While a call is blocked the next ones fail at once; when it has come back the store is asked again."""
    store = TimeLimitedStore.of(Hanging(url=str(tmp_path), where="delete", gate=gate), Limits(answer=0.2))
    with pytest.raises(StoreError, match=r"cannot delete objects: it gave no answer for 1.2 s; see whether it is mounted"):
        store.delete(["x"])
    threads = threading.active_count()
    for call in (lambda: store.write("x", (b"1",)), lambda: store.write("x", [b"1"]), lambda: list(store.entries())):
        with pytest.raises(StoreError, match="an earlier call has still not come back; see whether") as caught:
            call()
        assert (store.label, True) == (caught.value.label, caught.value.transient)
    assert threads == threading.active_count()
    gate.set()
    while any(thread.name == "watchdog" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert 1 == store.write("x", (b"1",))


def test_the_bounds_of_a_bounded_pipeline_are_shared(hanging: Callable[..., Pipeline]) -> None:
    """Bounding twice is bounding once, so that what one operation has found out the next one knows."""
    pipeline = hanging("entries").time_limited
    assert pipeline.stores == pipeline.time_limited.stores
    assert pipeline.stores[0] is pipeline.time_limited.stores[0]
    assert pipeline.policy(pipeline.stores[0]) == RetentionPolicy(min_good=1)


def test_a_link_is_not_followed_for_ever(make: MakePipeline, tmp_path: Path, gate: threading.Event, monkeypatch: Any) -> None:
    """Whether two paths are one place is looked up when a pipeline is made, also on a mount whose server is gone."""
    real = os.path.realpath

    def realpath(path: Any, **more: Any) -> Any:
        if str(path).endswith("dead"):
            gate.wait()
        return real(path, **more)

    monkeypatch.setattr("pgsnap.operations.spec.LINK_SECONDS", 0.2)
    monkeypatch.setattr(os.path, "realpath", realpath)
    pipeline = make(stores=[str(tmp_path / "dead"), str(tmp_path / "alive")])
    assert 2 == len(pipeline.stores)


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    """A library that waits for a greeting, with a patience of its own that is far too long."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ftp://127.0.0.1:{server.getsockname()[1]}/backups"
        store = TimeLimitedStore.of(FsspecStore(url=url, options={"timeout": 3600}), Limits(answer=SHORT))
        with pytest.raises(StoreError, match=rf"{url}: cannot list shop/: it gave no answer for 1 s"):
            list(store.entries("shop/"))
