"""A run: children and callbacks end with it, nothing starts afterwards, and what it raises says why."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time

import pytest

from pgsnap.components.run import Run
from pgsnap.errors import Aborted, ProcessError, StoreError
from pgsnap.streams import drain, fan_out
from pgsnap.streams.process import read_process, spawn

WAIT = 20.0


def test_what_a_run_knows() -> None:
    """Defaults: no limit, nothing encrypts, nobody watches."""
    run = Run("shop", "20261122T080000Z-4f3a")
    assert ("shop", "20261122T080000Z-4f3a", None, None) == (run.pipeline, run.id, run.timeout, run.deadline)
    assert run.encrypted is False
    assert run.aborted is None
    run.progress("shop.dump", 1, None)
    run.check()
    assert "pgsnap.components.run" == run.log.name
    assert Run(encrypted=True).encrypted is True


def test_abort_ends_children_then_calls_back() -> None:
    """First the children end, then the callbacks are called, in that order; the reason stays the first."""
    run = Run()
    children = [run.spawn(["sleep", "60"]) for _ in range(3)]
    seen: list[list[int | None]] = []
    with run.on_abort(lambda: seen.append([c.process.poll() for c in children])):
        run.abort("the first reason.")
        run.abort("the second reason.")
    assert [[-signal.SIGTERM] * 3] == seen
    assert "the first reason." == run.aborted
    for child in children:
        child.release()


def test_nothing_starts_after_an_abort() -> None:
    """spawn, on_abort and check are refused with the reason."""
    run = Run()
    run.abort("stopped by SIGTERM.")
    with pytest.raises(Aborted, match="stopped by SIGTERM"):
        run.check()
    with pytest.raises(Aborted, match="stopped by SIGTERM"):
        run.spawn(["true"])
    with pytest.raises(Aborted, match="stopped by SIGTERM"):
        run.on_abort(print).__enter__()


def test_abort_while_children_start() -> None:
    """Threads that go on spawning while another aborts: in the end no child lives."""
    run = Run()
    started = []
    ready = threading.Barrier(4)

    def start() -> None:
        ready.wait(WAIT)
        try:
            while True:
                started.append(run.spawn(["sleep", "60"]))
        except Aborted:
            return

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(WAIT)
    time.sleep(0.05)
    run.abort("enough.")
    for thread in threads:
        thread.join()
    assert started
    assert {-signal.SIGTERM} == {child.process.returncode for child in started}
    for child in started:
        child.release()


def test_abort_ends_what_stands_behind_a_wrapper() -> None:
    """The whole group of a child ends, so that a pipe held by a grandchild cannot block the pump."""
    run = Run()
    stream = read_process(["sh", "-c", "echo x; sleep 60; true"], start=run.spawn)
    next(stream)
    timer = threading.Timer(0.2, run.abort, ["enough."])
    began = time.monotonic()
    timer.start()
    with pytest.raises(ProcessError, match="SIGTERM"):
        drain(stream)
    timer.join()
    assert time.monotonic() - began < 5


def test_a_callback_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the next one is called."""
    run = Run()
    called: list[int] = []

    def fail() -> None:
        raise OSError("cannot cancel")

    with run.on_abort(fail), run.on_abort(lambda: called.append(1)), caplog.at_level(logging.ERROR):
        run.abort("enough.")
    assert [1] == called
    assert "cannot cancel" in caplog.text


def test_a_callback_lives_as_long_as_its_context() -> None:
    """After its context a callback is not called."""
    run = Run()
    called: list[int] = []
    with run.on_abort(lambda: called.append(1)):
        pass
    run.abort("enough.")
    assert [] == called


def test_watched_passes_a_result_and_an_error_through() -> None:
    """Without an abort an error stays itself; the run is aborted by it, so that nothing goes on behind its back."""
    fine, run = Run(), Run()
    with fine.watched():
        pass
    assert fine.aborted is None
    child = run.spawn(["sleep", "60"])
    error = StoreError("no space left")

    def failing() -> None:
        with run.watched():
            raise error

    with pytest.raises(StoreError) as caught:
        failing()
    assert error is caught.value
    assert run.aborted is not None
    assert -signal.SIGTERM == child.process.returncode
    child.release()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_watched_lets_an_interrupt_through(error: type[BaseException]) -> None:
    """A signal's exception ends the children and stays itself."""
    run = Run()
    child = run.spawn(["sleep", "60"])

    def interrupted() -> None:
        with run.watched():
            raise error

    with pytest.raises(error):
        interrupted()
    assert -signal.SIGTERM == child.process.returncode
    child.release()


def test_watched_turns_what_an_abort_has_caused_into_aborted() -> None:
    """The error of a child that the abort has ended is not the news: the reason of the abort is."""
    run = Run()
    timer = threading.Timer(0.1, run.abort, ["told to stop."])
    timer.start()
    with pytest.raises(Aborted, match="told to stop") as caught, run.watched():
        drain(read_process(["sleep", "60"], start=run.spawn))
    timer.join()
    assert isinstance(caught.value.__cause__, ProcessError)


def test_the_time_limit_aborts_a_dump_that_hangs() -> None:
    """A source that blocks is ended by the deadline, and every consumer hears of it."""
    run = Run(timeout=0.3)
    began = time.monotonic()
    argv = [sys.executable, "-c", "import time; print('x', flush=True); time.sleep(60)"]
    with pytest.raises(Aborted, match=r"time limit of 0\.3 s"), run.watched():
        fan_out(read_process(argv, start=run.spawn), [drain, drain], check=run.check)
    assert time.monotonic() - began < 5


def test_the_time_limit_aborts_consumers_that_hang() -> None:
    """A consumer that blocks does not hold the run beyond its deadline."""
    run = Run(timeout=0.3)
    release = threading.Event()
    began = time.monotonic()
    with pytest.raises(Aborted, match="time limit"), run.watched():
        fan_out([b"x"], [lambda stream: release.wait(WAIT)], check=run.check, grace=0.1)
    release.set()
    assert time.monotonic() - began < 5


def test_within_its_time_limit_a_run_just_ends() -> None:
    """The watching thread is joined when the context is left."""

    def watching() -> bool:
        return any(thread.name == "deadline" for thread in threading.enumerate())

    with Run(timeout=60).watched():
        assert watching()
    assert not watching()


def test_a_deadline_that_passes_unwatched_changes_nothing() -> None:
    """Only ``watched`` keeps the limit: a run that is only constructed aborts nothing."""
    run = Run(timeout=0.0)
    time.sleep(0.01)
    run.check()


def test_a_child_of_another_run_lives_on() -> None:
    """An abort ends its own children only."""
    run, other = Run(), Run()
    child, free = other.spawn(["sleep", "60"]), spawn(["sleep", "60"])
    run.abort("enough.")
    assert child.process.poll() is None
    assert free.process.poll() is None
    child.release()
    free.release()


# --- the log of a run ------------------------------------------------------------------------------------------------


def test_the_log_is_kept_though_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    """Silent by default, and yet a failure can be told with all that was logged."""
    run = Run("shop", "20261122T080000Z-4f3a")
    run.log.info("%s tables", 3)
    run.log.debug("too much")
    try:
        raise ValueError("inner")
    except ValueError:
        run.log.exception("it broke")
    lines = run.log.text.splitlines()
    assert "info    3 tables" == lines[0][20:]
    assert "error   it broke" == lines[1][20:]
    assert "ValueError: inner" in lines[-1]
    assert not any("too much" in line for line in lines)
    assert ("", "") == capfd.readouterr()


def test_records_carry_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever listens sees the logger's name, the pipeline and the id; levels count as for any logger."""
    run = Run("shop", "20261122T080000Z-4f3a")
    with caplog.at_level(logging.WARNING, "pgsnap.components.run"):
        run.log.info("kept, not shown")
        run.log.warning("shown")
    (record,) = caplog.records
    assert ("pgsnap.components.run", "shown", "shop", run.id) == (record.name, record.getMessage(), record.pipeline, record.run)  # type: ignore[attr-defined]
    assert 2 == len(run.log.text.splitlines())


def test_a_very_long_log_keeps_its_beginning_and_its_end() -> None:
    """Memory is bounded, and the log says what is missing."""
    run = Run("shop")
    for number in range(10_000):
        run.log.info("line %d", number)
    lines = run.log.text.splitlines()
    assert lines[0].endswith("line 0")
    assert lines[-1].endswith("line 9999")
    assert "… (6,000 lines are left out here)" == lines[2000]
    assert 4001 == len(lines)


def test_a_bad_log_call_ends_nothing() -> None:
    """Arguments that do not fit are shown as they are."""
    run = Run("shop")
    run.log.info("%d tables", "three")
    assert "%d tables (it could not be formatted:" in run.log.text
