"""Child processes: what they exit with, say, hold open and leave behind, and who kills them before what."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap.errors import DumpError, IntegrityError, ProcessError, RestoreError
from pgsnap.streams import CHUNK, Stream, drain, process
from pgsnap.streams.process import (
    Child,
    clean_environment,
    feed_process,
    lower_priority,
    read_process,
    spawn,
    through_process,
    watch,
)
from pgsnap.testing import failing

WAIT = 20.0


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", f"import os, sys, signal, time\n{program}", *arguments]


CAT = ["cat"]
FLOOD = python("b = bytes(65536)\nwhile True: os.write(1, b)")


def descriptors() -> set[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def children() -> set[str]:
    """Everything whose parent is this process, zombies too."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(path.parent.name)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No descriptor, no thread and no child (running or zombie) stays behind."""
    before, threads, family = descriptors(), set(threading.enumerate()), children()
    yield
    deadline = time.monotonic() + WAIT
    while left := set(threading.enumerate()) - threads:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        time.sleep(0.01)
    assert before == descriptors()
    assert family == children()


def read_file_when(path: Path, ready: Callable[[str], bool] = bool) -> str:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if path.exists() and ready(text := path.read_text()):
            return text
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + WAIT
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


# --- the environment -------------------------------------------------------------------------------------------------


def test_a_child_inherits_no_pg_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGHOST and everything else that was not named stays here; PATH goes along, and messages are in English."""
    monkeypatch.setenv("PGHOST", "production")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LANG", "ko_KR.UTF-8")
    seen = b"".join(read_process(["env"], env={"PGSERVICEFILE": "/x"})).decode().splitlines()
    names = {line.partition("=")[0] for line in seen}
    assert {"PATH", "LC_ALL", "PGSERVICEFILE"} <= names
    assert {"PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH", "KRB5CCNAME", "USER"} | {
        "LC_ALL",
        "PGSERVICEFILE",
    } >= names
    assert "LC_ALL=C.UTF-8" in seen


def test_extra_variables_win() -> None:
    """What is given explicitly replaces what is inherited."""
    assert "C" == clean_environment({"LC_ALL": "C"})["LC_ALL"]


def test_there_is_no_shell() -> None:
    """Arguments reach the child as they are."""
    words = ["$(id)", "`id`", "a b", "*", "; exit 1", "'", '"', "\n"]
    assert words == b"".join(read_process(["printf", "%s\\0", *words])).decode().split("\0")[:-1]


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["/dev/null/nothing/pg_dump"], ["/etc/passwd"], ["pg\0dump"], ["cat", "a\0b"]])
def test_a_child_that_cannot_be_started(argv: list[str]) -> None:
    """A missing program, one that may not be run, and a NUL in an argument are a ProcessError without a status."""
    with pytest.raises(ProcessError, match="could not be started") as caught:
        list(read_process(argv, error=DumpError))
    assert (tuple(argv), None, "") == (caught.value.argv, caught.value.status, caught.value.stderr)


@pytest.mark.parametrize("sort", ["read", "through", "feed"])
def test_nothing_starts_before_it_is_consumed(sort: str, tmp_path: Path) -> None:
    """A stream that was never started has started no child."""
    mark = tmp_path / "mark"
    if sort == "read":
        read_process(["touch", str(mark)]).close()
    elif sort == "through":
        through_process([], ["touch", str(mark)]).close()
    assert not mark.exists()


def test_pass_fds() -> None:
    """A descriptor that is passed can be read by the child, all others are closed in it."""
    with tempfile.TemporaryFile() as secret, tempfile.TemporaryFile() as other:
        secret.write(b"[pgsnap]")
        secret.flush()
        path = f"/proc/self/fd/{secret.fileno()}"
        assert b"[pgsnap]" == b"".join(read_process(["cat", path], pass_fds=[secret.fileno()]))
        listed = b"".join(read_process(["ls", "/proc/self/fd"], pass_fds=[secret.fileno()])).split()
        assert str(secret.fileno()).encode() in listed
        assert str(other.fileno()).encode() not in listed


def test_a_child_whose_drain_cannot_be_started_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without threads left must not leave a child that nobody knows."""

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="new thread"):
        spawn(["sleep", "60"])


# --- read_process ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 3_000_000), st.integers(0, 255))
def test_read_process_gives_all_and_then_the_status(size: int, status: int) -> None:
    """All of the output comes first; an exit status that is not 0 is raised after it."""
    argv = python("sys.stdout.buffer.write(bytes(int(sys.argv[1])))\nsys.stdout.flush()\nos._exit(int(sys.argv[2]))")
    stream = read_process([*argv, str(size), str(status)], error=DumpError)
    got = 0
    while got < size:
        chunk = next(stream)
        assert type(chunk) is bytes
        assert 0 < len(chunk) <= CHUNK
        got += len(chunk)
    assert size == got
    if status:
        with pytest.raises(DumpError, match=f"exit status {status} ") as caught:
            next(stream)
        assert status == caught.value.status
    else:
        assert [] == list(stream)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, 40])
def test_read_process_names_the_signal(number: int) -> None:
    """A child that was killed is never an end of the data, whatever killed it and however much came before."""
    argv = python("os.write(1, b'half')\nos.kill(os.getpid(), int(sys.argv[1]))", str(int(number)))
    stream = read_process(argv)
    assert b"half" == next(stream)
    with pytest.raises(ProcessError) as caught:
        drain(stream)
    assert -number == caught.value.status
    name = signal.Signals(number).name if number != 40 else "signal 40"
    assert f"was ended by {name}" in str(caught.value)


def test_read_process_killed_at_any_time() -> None:
    """Kill the child after each of many chunks: never a normal end."""
    for after in range(0, 40, 3):
        children: list[Child] = []

        def start(*args: object, children: list[Child] = children, **kwargs: object) -> Child:
            children.append(spawn(*args, **kwargs))  # type: ignore[arg-type]
            return children[-1]

        stream = read_process(FLOOD, start=start)
        for _ in range(after):
            next(stream)
        if not children:
            next(stream)
        children[0].process.kill()
        with pytest.raises(ProcessError, match="SIGKILL"):
            drain(stream)


def test_read_process_keeps_the_end_of_stderr() -> None:
    """Of a megabyte on stderr the last 8 KiB are kept, and the child is never blocked by it."""
    argv = python("sys.stderr.write('x' * (1 << 20) + 'the real reason')\nsys.exit(1)")
    with pytest.raises(ProcessError) as caught:
        list(read_process(argv))
    assert caught.value.stderr.endswith("xxx" + "the real reason")
    assert 8192 == len(caught.value.stderr)
    assert str(caught.value).rstrip(".").endswith("the real reason")


def test_stderr_need_not_be_text() -> None:
    """Bytes that are not UTF-8 do not break the error."""
    with pytest.raises(ProcessError, match="said"):
        list(read_process(python("os.write(2, b'said \\xff\\xfe')\nos._exit(2)")))


def test_a_child_that_says_nothing() -> None:
    """An error without any stderr is still a sentence."""
    with pytest.raises(ProcessError, match=r"^false failed with exit status 1 and said nothing$"):
        list(read_process(["false"]))


def test_read_process_does_not_wait_for_a_grandchild_that_holds_stderr() -> None:
    """A daemon started by the child keeps its stderr open; the child's own end counts, and its last words are there."""
    argv = python(
        "import subprocess\n"
        "p = subprocess.Popen(['sleep', '30'], stdout=subprocess.DEVNULL, process_group=0)\n"
        "print(p.pid, flush=True)\n"
        "sys.stderr.write('last words')\nsys.exit(3)"
    )
    began = time.monotonic()
    stream = read_process(argv)
    grandchild = int(next(stream))
    try:
        with pytest.raises(ProcessError, match="last words"):
            drain(stream)
        assert time.monotonic() - began < 4
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_close_stops_the_child_and_what_it_has_started(tmp_path: Path) -> None:
    """close() sends SIGTERM to the child's whole group: a program behind a wrapper script ends as well."""
    argv = ["sh", "-c", 'sleep 60 & echo $! && wait; echo "never"']
    stream = read_process(argv)
    grandchild = int(next(stream))
    began = time.monotonic()
    stream.close()
    assert gone(grandchild)
    assert time.monotonic() - began < 3


def test_a_child_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time SIGKILL follows."""
    monkeypatch.setattr(process, "STOP_SECONDS", 0.2)
    stream = read_process(python("signal.signal(15, signal.SIG_IGN)\nos.write(1, b'x')\ntime.sleep(60)"))
    next(stream)
    began = time.monotonic()
    stream.close()
    assert 0.2 <= time.monotonic() - began < 3


def test_sigterm_comes_first(tmp_path: Path) -> None:
    """A child is given the chance to clean up, as pg_dump must to cancel its query."""
    mark = tmp_path / "mark"
    program = (
        "def stop(*_):\n open(sys.argv[1], 'w').write('cleaned')\n os._exit(0)\n"
        "signal.signal(15, stop)\nos.write(1, b'x')\ntime.sleep(60)"
    )
    stream = read_process(python(program, str(mark)))
    next(stream)
    stream.close()
    assert "cleaned" == mark.read_text()


def test_many_runs_leak_nothing() -> None:
    """Descriptors are compared after runs that end, fail and are closed (see the fixture)."""
    for _ in range(10):
        list(read_process(["true"]))
        with pytest.raises(ProcessError):
            list(read_process(["false"]))
        stream = read_process(FLOOD)
        next(stream)
        stream.close()
        with pytest.raises(ProcessError):
            list(read_process(["/dev/null/nothing"]))


# --- through_process -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.lists(st.binary(max_size=50).map(lambda b: b * 5000), max_size=8))
def test_through_process_is_a_filter(chunks: list[bytes]) -> None:
    """cat gives back what it gets, empty chunks included."""
    assert b"".join(chunks) == b"".join(through_process(chunks, CAT))


def test_through_process_that_expands() -> None:
    """A child that writes much more than it reads does not lock up with a source that waits."""
    argv = python("while b := os.read(0, 1024):\n for _ in b: sys.stdout.buffer.write(bytes(1 << 20))")
    assert 48 << 20 == drain(through_process([b"x" * 16] * 3, argv))


def test_through_process_that_shrinks() -> None:
    """A child that reads everything before it writes is fed to the end."""
    argv = python("n = 0\nwhile b := os.read(0, 1 << 20): n += len(b)\nprint(n, end='')")
    assert b"50331648" == b"".join(through_process((bytes(CHUNK) for _ in range(48)), argv))


def test_through_process_that_writes_before_it_reads() -> None:
    """A child that fills its output before it takes anything gets both ends served."""
    argv = python("sys.stdout.buffer.write(bytes(8 << 20))\nsys.stdout.flush()\nwhile os.read(0, 1 << 20): pass")
    assert 8 << 20 == drain(through_process((bytes(CHUNK) for _ in range(8)), argv))


def test_through_process_with_a_slow_source() -> None:
    """What the child has said comes out although the source is slow."""

    def source() -> Stream:
        for n in range(3):
            time.sleep(0.05)
            yield bytes([n])

    assert bytes(range(3)) == b"".join(through_process(source(), CAT))


def test_through_process_raises_the_error_of_the_source(tmp_path: Path) -> None:
    """The child is ended without having seen an end of file, and the source's error comes out."""
    error = IntegrityError("damaged")
    mark = tmp_path / "mark"
    argv = python("while os.read(0, 100): pass\nopen(sys.argv[1], 'w').write('eof')", str(mark))
    with pytest.raises(IntegrityError) as caught:
        drain(through_process(failing([b"x" * 10], error), argv))
    assert error is caught.value
    assert not mark.exists()


@pytest.mark.parametrize("size", [1000, 100_000, 10_000_000])
def test_through_process_that_stops_reading_has_failed(size: int) -> None:
    """Exit status 0 without having read everything is a failure, also if the rest fit_identifier into the pipe."""
    with pytest.raises(ProcessError, match="stopped reading before the end") as caught:
        drain(through_process([bytes(size)], ["head", "-c", "10"]))
    assert 0 == caught.value.status
    assert "failed with exit status 0" not in str(caught.value)


def test_through_process_that_need_not_see_the_end() -> None:
    """A child that knows its length and has read all of it has done its work."""
    for _ in range(20):
        assert b"0123456789" == b"".join(through_process([b"01234", b"56789"], ["head", "-c", "10"]))


def test_through_process_that_fails() -> None:
    """A status that is not 0 is raised with the reason, also when it was noticed by a broken pipe."""
    argv = python("os.read(0, 10)\nsys.stderr.write('no key')\nsys.exit(2)")
    for size in (5, 10_000_000):
        with pytest.raises(ProcessError, match="exit status 2: no key"):
            drain(through_process([bytes(size)], argv))


def test_through_process_may_be_closed() -> None:
    """Closing in the middle ends the child at once."""
    began = time.monotonic()
    stream = through_process(iter(lambda: bytes(CHUNK), b""), CAT)
    next(stream)
    stream.close()
    assert time.monotonic() - began < 3


# --- feed_process ----------------------------------------------------------------------------------------------------


RECORD = """
path = sys.argv[1]
got = 0
signal.signal(15, lambda *_: (open(path, 'a').write('term '), os._exit(1)))
open(path, 'a').write(str(os.getpid()) + ' ')
while data := os.read(0, 1 << 20):
    got += len(data)
    open(path + '.got', 'w').write(str(got))
open(path, 'a').write('eof')
"""


@settings(deadline=None, max_examples=15)
@given(st.lists(st.binary(max_size=50).map(lambda b: b * 5000), max_size=8))
def test_feed_process_feeds_everything(chunks: list[bytes]) -> None:
    """A child that takes all gets all."""
    with tempfile.TemporaryFile() as out:
        feed_process(chunks, CAT, stdout=out)
        out.seek(0)
        assert b"".join(chunks) == out.read()


def test_feed_process_keeps_the_last_chunk_back(tmp_path: Path) -> None:
    """While the source has not ended, the child lacks the last chunk, however long it waits."""
    record = tmp_path / "record"
    got = tmp_path / "record.got"

    def source() -> Stream:
        yield b"a" * 1000
        yield b"b" * 500
        yield b""
        assert "1000" == read_file_when(got)
        time.sleep(0.2)
        assert "1000" == got.read_text()
        assert "eof" not in record.read_text()

    feed_process(source(), python(RECORD, str(record)))
    assert "1500" == got.read_text()
    assert record.read_text().endswith("eof")


@pytest.mark.parametrize("error", [IntegrityError("cut"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("chunks", [[], [b"x" * 1000], [b"x" * 1000, b"y" * 1000]])
def test_feed_process_kills_before_the_child_sees_an_end(chunks: list[bytes], error: BaseException, tmp_path: Path) -> None:
    """A source that fails: the child is killed outright and never sees an end of file, nor the last chunk."""
    record = tmp_path / "record"

    def source() -> Stream:
        yield from chunks
        read_file_when(record)
        if len(chunks) == 2:
            read_file_when(tmp_path / "record.got")
        raise error

    with pytest.raises(type(error)) as caught:
        feed_process(source(), python(RECORD, str(record)))
    assert error is caught.value
    text = record.read_text()
    assert "eof" not in text
    assert "term" not in text
    assert not alive(int(text.split()[0]))
    if len(chunks) == 2:
        assert "1000" == (tmp_path / "record.got").read_text()


def test_feed_process_kills_what_stands_behind_a_wrapper(tmp_path: Path) -> None:
    """A wrapper script's own child, which holds the pipe, is killed too and sees no end of file."""
    record = tmp_path / "record"
    wrapper = ["sh", "-c", '"$@"; exit $?', "sh", *python(RECORD, str(record))]

    def source() -> Stream:
        yield b"x" * 1000
        yield b"y"
        read_file_when(tmp_path / "record.got")
        raise IntegrityError("cut")

    with pytest.raises(IntegrityError):
        feed_process(source(), wrapper)
    pid = int(record.read_text().split()[0])
    assert gone(pid)
    assert "eof" not in record.read_text()


def test_feed_process_raises_a_status() -> None:
    """A child that fails after having read everything has failed."""
    with pytest.raises(RestoreError, match="exit status 3: ERROR") as caught:
        feed_process([b"x"], python("while os.read(0, 9): pass\nsys.stderr.write('ERROR')\nsys.exit(3)"), error=RestoreError)
    assert 3 == caught.value.status


@pytest.mark.parametrize("size", [1000, 10_000_000])
def test_feed_process_refuses_a_child_that_stops_reading(size: int) -> None:
    """Exit status 0 is no success if data were left, also if the rest lay in the pipe."""
    with pytest.raises(RestoreError, match="stopped reading before the end"):
        feed_process([bytes(size)], ["head", "-c", "10"], error=RestoreError)


@pytest.mark.parametrize("count", [1, 40])
def test_feed_process_with_partial_drains_the_rest(count: int) -> None:
    """Where the child may stop early, the source is still run to its end: its checks count."""
    pulled = 0

    def source() -> Stream:
        nonlocal pulled
        for _ in range(count):
            pulled += 1
            yield bytes(CHUNK)

    feed_process(source(), ["head", "-c", "10"], partial=True)
    assert count == pulled
    with pytest.raises(IntegrityError):
        feed_process(failing([bytes(CHUNK)] * count, IntegrityError("tail")), ["head", "-c", "10"], partial=True)


def test_feed_process_with_partial_still_wants_status_0() -> None:
    """Stopping early with a failure is a failure, and the rest of the source need not be pulled for it."""
    pulled = 0

    def source() -> Stream:
        nonlocal pulled
        for _ in range(5000):
            pulled += 1
            time.sleep(0.001)
            yield bytes(100_000)

    with pytest.raises(RestoreError, match="exit status 3: bad"):
        feed_process(
            source(),
            python("os.read(0, 9)\nsys.stderr.write('bad')\nsys.stderr.flush()\nos._exit(3)"),
            partial=True,
            error=RestoreError,
        )
    assert pulled < 5000


def test_feed_process_killed_from_outside() -> None:
    """A child that somebody kills in the middle is named with its signal."""
    children: list[Child] = []

    def start(*args: object, **kwargs: object) -> Child:
        children.append(spawn(*args, **kwargs))  # type: ignore[arg-type]
        return children[-1]

    def source() -> Stream:
        yield bytes(1000)
        children[0].process.kill()
        while True:
            yield bytes(1000)

    for partial in (False, True):
        children.clear()
        with pytest.raises(RestoreError, match="SIGKILL"):
            feed_process(source(), ["sleep", "60"], start=start, error=RestoreError, partial=partial)


# --- watch -----------------------------------------------------------------------------------------------------------


def test_watch_ticks_and_ends() -> None:
    """The tick is called again and again, in another thread, until the context ends."""
    ticks: list[threading.Thread] = []
    thrice = threading.Event()

    def tick() -> None:
        ticks.append(threading.current_thread())
        if len(ticks) == 3:
            thrice.set()

    with watch(tick, 0.01):
        assert thrice.wait(WAIT)
    count = len(ticks)
    assert threading.current_thread() not in ticks
    assert not ticks[0].is_alive()
    assert count == len(ticks)


def test_watch_raises_what_a_tick_raised() -> None:
    """A tick that fails ends the watching; its error is raised when the context is left without another."""
    failed = threading.Event()

    def tick() -> None:
        failed.set()
        raise OSError("no heartbeat")

    with pytest.raises(OSError, match="no heartbeat"), watch(tick, 0.01):
        assert failed.wait(WAIT)
    failed.clear()

    def fail() -> None:
        with watch(tick, 0.01):
            assert failed.wait(WAIT)
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        fail()


# --- children and the end of this process ----------------------------------------------------------------------------


def test_release_may_be_called_again() -> None:
    """release and stop after the end do nothing."""
    child = spawn(["true"])
    child.process.wait()
    for _ in range(2):
        child.release()
        child.stop()
        child.kill()
    assert 0 == child.process.returncode


def test_two_threads_may_stop_one_child() -> None:
    """An abort and the pump may end the same child at once."""
    for _ in range(10):
        child = spawn(["sleep", "60"])
        threads = [threading.Thread(target=child.stop) for _ in range(3)]
        for thread in threads:
            thread.start()
        child.release()
        for thread in threads:
            thread.join()
        assert -signal.SIGTERM == child.process.returncode


def test_an_interrupt_at_the_terminal_does_not_reach_the_child() -> None:
    """A child has a process group of its own: Ctrl-C is ours to handle."""
    child = spawn(["sleep", "60"])
    assert child.process.pid == os.getpgid(child.process.pid)
    child.release()


def test_performance_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """read_process into fan_out with two consumers, for the eye: no limit is asserted."""
    from pgsnap.streams import fan_out

    size = 256 << 20
    began = time.perf_counter()
    outcomes = fan_out(read_process(["head", "-c", str(size), "/dev/zero"]), [drain, drain])
    rate = size / (time.perf_counter() - began) / 1e6
    with capsys.disabled():
        print(f"\nread_process -> fan_out -> 2 consumers: {rate:.0f} MB/s")
    assert [size, size] == [o.value for o in outcomes]


def test_what_a_child_that_succeeds_says_is_handed_on() -> None:
    """A warning on stderr of a child that exits with 0 is not lost; silence calls nobody."""
    heard: list[str] = []
    assert b"data" == b"".join(
        read_process(["sh", "-c", "echo 'pg_dump: warning: circular' >&2; printf data"], on_stderr=heard.append)
    )
    assert b"data" == b"".join(read_process(["printf", "data"], on_stderr=heard.append))
    assert ["pg_dump: warning: circular"] == heard


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has SCHED_BATCH")
def test_step_back_holds_for_its_threads_and_not_beyond() -> None:
    """The thread and those it starts are of the batch kind; a child from before is not, and afterwards all is as it was."""
    child = spawn(["sleep", "60"])
    seen: list[int] = []
    try:
        with lower_priority():
            with lower_priority():  # a copy within a backup
                assert os.SCHED_BATCH == os.sched_getscheduler(0)
            thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
            thread.start()
            thread.join()
            assert os.SCHED_BATCH == os.sched_getscheduler(0)
            assert os.SCHED_OTHER == os.sched_getscheduler(child.process.pid)
    finally:
        child.release()
    assert [os.SCHED_BATCH] == seen
    assert os.SCHED_OTHER == os.sched_getscheduler(0)


@pytest.mark.parametrize("call", ["sched_getscheduler", "sched_setscheduler"])
def test_step_back_where_it_is_not_allowed(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A container that forbids the calls costs nothing but the advantage."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, call, refuse, raising=False)
    with lower_priority():
        done = True
    assert done
