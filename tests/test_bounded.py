"""Stores that give no answer: each command ends in bounded time, names the store, and does with the others what it can.

The threads that hang here really hang: at an ``Event`` that nobody sets, in the opening of a named pipe that nobody writes to,
at a socket whose server says nothing, and on a mounted file system whose server is gone.
"""

from __future__ import annotations

import contextvars
import gc
import os
import random
import re
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

from pgsnap import Entry, Finding, FsspecStore, Keep, LocalStore, Pipeline, Run, Store, StoreError
from pgsnap.bounded import BoundedStore, Limits
from pgsnap.streams import CHUNK, Bounds, Chunks, Stalled, Stream, bounds, drain
from pgsnap.testing import StoreConformance

Make = Callable[..., Pipeline]
PROGRAM = str(Path(sys.executable).with_name("pgsnap"))
SHORT = 1.0
"""Seconds that a store is given here. All that does answer does so in milliseconds."""
LONG = 60.0
"""Seconds that no test comes near, unless something waits for ever."""


@attrs.frozen(kw_only=True)
class Hanging(LocalStore):
    """A local store that blocks in one method until the gate is opened; in ``read`` after so many bytes of some keys."""

    fsync: bool = False
    where: str = ""
    gate: threading.Event = attrs.field(factory=threading.Event, eq=False)
    after: int = 0
    ending: str = ""

    def _block(self, method: str) -> None:
        if method == self.where:
            self.gate.wait()

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
def gate() -> Iterator[threading.Event]:
    """What the stores of a test hang at; opened at its end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def hanging(make: Make, tmp_path: Path, gate: threading.Event) -> Callable[..., Pipeline]:
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
            keep=Keep(min_good=1),
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
    "read": ["verify", "repair", "restore", "prune", "examine"],
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
def test_a_restore_goes_on_from_the_next_store(make: Make, toy: Any, tmp_path: Path, gate: threading.Event, after: int) -> None:
    """A store that hangs in the middle of an object is left like one that is cut: the next one goes on at the same byte."""
    data = random.Random(1).randbytes(40_000_000)
    dumper = toy(contents={"shop.dump": data})
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


def test_the_catch_up_of_a_backup_ends(make: Make, tmp_path: Path, gate: threading.Event) -> None:
    """A source that hangs while a backup copies what another store lacks: the backup is made, the error is told."""
    make(stores=[str(tmp_path / "a")]).backup(now=datetime.fromisoformat("2026-11-20T08:00:00Z"))
    stuck = Hanging(url=str(tmp_path / "a"), where="read", gate=gate, ending="shop.dump")
    report = make(stores=[stuck, str(tmp_path / "b")], stall_timeout=SHORT, auto_prune=False).backup()
    assert 2 == len(report.kept_in)
    assert any(f"{tmp_path}/a: cannot read" in text for text in report.catch_up_errors)


# --- the command ---------------------------------------------------------------------------------------------------------

TOYBOX = """
import contextlib
import os
from typing import ClassVar

import attrs

from pgsnap import Artifact, Dump, Dumper, LocalStore


@attrs.frozen(kw_only=True)
class Toy(Dumper):
    name: ClassVar[str] = "toy"

    @contextlib.contextmanager
    def dump(self, run):
        yield Dump(artifacts=[Artifact(name="toy.dump", open=lambda: (bytes(1000) for _ in range(10)))])

    def restore(self, source, request, run):
        with open(request.target.reveal(), "wb") as file:
            for name in source.artifacts:
                for chunk in source.open(name):
                    file.write(chunk)

    def recipe(self, artifacts, facts):
        return ""

    def describe(self, request):
        return request.target.reveal()


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
def box(desk: Any) -> Box:
    """A desk with one backup of toys in two stores."""
    (desk.folder / "toybox.py").write_text(TOYBOX)
    os.mkfifo(desk.folder / "pipe")
    (desk.folder / "pgsnap.toml").write_text(
        f"""
        [pipeline.shop]
        answer_timeout = "1s"
        stall_timeout = "1s"
        [pipeline.shop.dump]
        use = "toybox:Toy"
        [[pipeline.shop.store]]
        use = "toybox:Dead"
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
    [(["list"], 3), (["status"], 3), (["restore", "--to", "out"], 0), (["prune"], 3), (["doctor"], 1)],
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
        return BoundedStore.of(LocalStore(url=str(tmp_path), fsync=False), Limits())

    def test_a_pickled_copy_reads(self, store: Store) -> None:
        """It is made where it is used and never sent elsewhere: the store within it is."""
        assert isinstance(store, BoundedStore)
        super().test_a_pickled_copy_reads(store.store)

    def test_listings_are_not_cached(self, store: Store) -> None:
        """As above."""
        assert isinstance(store, BoundedStore)
        super().test_listings_are_not_cached(store.store)


def test_nothing_of_a_store_goes_past_its_bounds() -> None:
    """Whatever a store can be asked or told is asked of the store within: a default of the base class would answer for it."""
    asked = (FunctionType, property)  # a static method is a rule, and not asked of anybody
    offered = {name for name, what in vars(Store).items() if name[0] != "_" and isinstance(what, asked)}
    assert set() == offered - vars(BoundedStore).keys()


def test_what_hangs_is_waited_for_once(tmp_path: Path, gate: threading.Event) -> None:
    """While a call is blocked the next ones fail at once; when it has come back the store is asked again."""
    store = BoundedStore.of(Hanging(url=str(tmp_path), where="delete", gate=gate), Limits(answer=0.2))
    with pytest.raises(StoreError, match=r"cannot delete objects: it gave no answer for 1.2 s; see whether it is mounted"):
        store.delete(["x"])
    threads = threading.active_count()
    for call in (lambda: store.write("x", (b"1",)), lambda: store.write("x", [b"1"]), lambda: list(store.entries())):
        with pytest.raises(StoreError, match="an earlier call has still not come back; see whether") as caught:
            call()
        assert (store.label, True) == (caught.value.label, caught.value.transient)
    assert threads == threading.active_count()
    gate.set()
    while any(thread.name == "bounded" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert 1 == store.write("x", (b"1",))


def test_the_bounds_of_a_bounded_pipeline_are_shared(hanging: Callable[..., Pipeline]) -> None:
    """Bounding twice is bounding once, so that what one operation has found out the next one knows."""
    pipeline = hanging("entries").bounded
    assert pipeline.stores == pipeline.bounded.stores
    assert pipeline.stores[0] is pipeline.bounded.stores[0]
    assert pipeline.policy(pipeline.stores[0]) == Keep(min_good=1)


def test_a_link_is_not_followed_for_ever(make: Make, tmp_path: Path, gate: threading.Event, monkeypatch: Any) -> None:
    """Whether two paths are one place is looked up when a pipeline is made, also on a mount whose server is gone."""
    real = os.path.realpath

    def realpath(path: Any, **more: Any) -> Any:
        if str(path).endswith("dead"):
            gate.wait()
        return real(path, **more)

    monkeypatch.setattr("pgsnap.pipeline.LINK_SECONDS", 0.2)
    monkeypatch.setattr(os.path, "realpath", realpath)
    pipeline = make(stores=[str(tmp_path / "dead"), str(tmp_path / "alive")])
    assert 2 == len(pipeline.stores)


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    """A library that waits for a greeting, with a patience of its own that is far too long."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ftp://127.0.0.1:{server.getsockname()[1]}/backups"
        store = BoundedStore.of(FsspecStore(url=url, options={"timeout": 3600}), Limits(answer=SHORT))
        with pytest.raises(StoreError, match=rf"{url}: cannot list shop/: it gave no answer for 1 s"):
            list(store.entries("shop/"))


# --- the threads ---------------------------------------------------------------------------------------------------------


def test_items_come_in_order_and_the_error_after_them() -> None:
    """Nothing is lost before a failure, and the failure is the source's own."""

    def source() -> Iterator[int]:
        yield from range(1000)
        raise KeyError("boom")

    seen: list[int] = []
    with pytest.raises(KeyError, match="boom"):
        seen.extend(Bounds().items(source, LONG, bound=7))
    assert list(range(1000)) == seen


def test_a_slow_consumer_is_no_stall() -> None:
    """Only while the consumer waits does time count."""
    items = Bounds().items(lambda: iter(range(10)), 0.2, bound=1)
    seen = []
    for item in items:
        time.sleep(0.3 if item == 3 else 0)
        seen.append(item)
    assert list(range(10)) == seen


def test_slow_progress_is_progress() -> None:
    """A source that takes longer than the limit in all, and gives something in time each time."""

    def source() -> Iterator[int]:
        for number in range(6):
            time.sleep(0.2)
            yield number

    assert list(range(6)) == list(Bounds().items(source, 1.0, bound=100))


def test_what_is_pulled_ahead_is_bounded() -> None:
    """The source waits for its consumer when so much is queued."""
    pulled = []

    def source() -> Iterator[int]:
        for number in range(100):
            pulled.append(number)
            yield number

    items = Bounds().items(source, LONG, bound=3)
    assert 0 == next(items)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert len(pulled) <= 3 + 3 + 1  # what the consumer took, what is queued, and the one that waits
        time.sleep(0.01)
    items.close()


def test_a_consumer_that_stops_closes_the_source_where_it_is_pulled() -> None:
    """A generator can only be closed by the thread that runs it; it is, before the consumer goes on."""
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    items = Bounds().items(source, LONG)
    assert 0 == next(items)
    items.close()
    assert ["bounded"] == closed
    del items
    gc.collect()
    assert not any(thread.name == "bounded" for thread in threading.enumerate())


@pytest.mark.parametrize("way", ["read", "write"])
def test_what_nobody_wants_any_more_is_not_blocked(gate: threading.Event, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A reader that was closed early waits for its requests, a writer whose source failed aborts an upload: others go on."""
    monkeypatch.setattr(bounds, "GRACE", 0.01)
    mine, ending = Bounds(), threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            ending.set()
            gate.wait()

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise KeyError("boom")

    def consumer(stream: Stream) -> int:
        try:
            return drain(stream)
        finally:
            ending.set()
            gate.wait()

    if way == "read":
        items = mine.items(source, LONG)
        assert 0 == next(items)
        items.close()
    else:
        with pytest.raises(KeyError, match="boom"):
            mine.feed(broken(), consumer, buffer=CHUNK, stall=LONG, finish=LONG)
    assert ending.wait(LONG)
    assert "answer" == mine.call(lambda: "answer", LONG)


def test_what_nobody_wants_any_more_and_does_not_end_is_blocked(gate: threading.Event) -> None:
    """Once it had its time: a close that hangs is a store that hangs."""
    bounds = Bounds()

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            gate.wait()

    items = bounds.items(source, 0.05)
    assert 0 == next(items)
    items.close()
    time.sleep(0.06)
    with pytest.raises(Stalled, match="an earlier call"):
        bounds.check()


def test_a_call_returns_raises_and_sees_the_context() -> None:
    """It is the same as a call here, but for the thread."""
    name = contextvars.ContextVar("name", default="")
    name.set("mine")
    assert "mine" == Bounds().call(name.get, LONG)
    with pytest.raises(ZeroDivisionError):
        Bounds().call(lambda: 1 / 0, LONG)


@pytest.mark.parametrize("kind", ["takes nothing", "does not finish"])
def test_a_consumer_that_hangs_is_left(gate: threading.Event, kind: str) -> None:
    """In the middle of a stream, or after its end."""
    bounds = Bounds()

    def consumer(stream: Stream) -> int:
        size = 0 if kind == "takes nothing" else drain(stream)
        gate.wait()
        return size

    chunks = [bytes(CHUNK)] * 8 if kind == "takes nothing" else [b"x"]
    with pytest.raises(Stalled, match=r"took nothing for|did not finish within"):
        bounds.feed(chunks, consumer, buffer=2 * CHUNK, stall=0.2, finish=0.2)
    with pytest.raises(Stalled, match="an earlier call"):
        bounds.check()


def test_a_source_that_fails_is_not_the_consumers_fault() -> None:
    """Its own error comes out, as from a write without bounds."""

    def source() -> Iterator[bytes]:
        yield b"x"
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        Bounds().feed(source(), drain, buffer=CHUNK, stall=LONG, finish=LONG)
