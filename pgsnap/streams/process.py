"""Child processes as streams: a source, a filter or a sink, never through a shell.

Rules, each of which a backup somewhere was lost to:

* A child that exits with anything but 0 raises out of the stream: a pipe's end is not the end of the data.
* Its stderr is always drained, and the end of it (8 KiB) is kept for the error.
* Its environment is made here: only PATH, HOME and the like are inherited, so no ``PGHOST`` decides where a dump comes from.
* To psql and pg_restore an early end of file looks like success. So ``feed_process`` writes a chunk only after the next one was
  pulled and checked, and kills the child before it closes the pipe when its source fails.
* A child is stopped by SIGTERM, five seconds, SIGKILL. pg_dump killed outright leaves its server process queued for locks.
* Signals go to the child's whole process group: behind a wrapper script it is the wrapper's child that holds the pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import selectors
import shlex
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Protocol

from pgsnap.errors import ProcessError
from pgsnap.streams.basics import CHUNK, Chunks, Stream

__all__ = [
    "Child",
    "Spawn",
    "clean_environment",
    "feed_process",
    "lower_priority",
    "read_child",
    "read_process",
    "spawn",
    "through_process",
    "watch",
]

STDERR_KEPT = 8192
STOP_SECONDS = 5.0
DRAIN_SECONDS = 1.0
"""How long to wait for the end of stderr once the child has ended: all that it wrote is in the pipe, only others hold it open."""
_INHERITED = ("PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH", "KRB5CCNAME", "USER")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: PATH, HOME and the like, messages in English, and ``extra``. No ``PG*``."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", **(extra or {})}


class Child:
    """A running child process whose stderr is being drained."""

    def __init__(self, argv: Sequence[str], process: subprocess.Popen[bytes]) -> None:
        self.argv = tuple(argv)
        self.process = process
        self._signalled = False
        self._tail = bytearray()
        self._drain = threading.Thread(target=self._read_stderr, name="stderr", daemon=True)
        self._drain.start()

    def _read_stderr(self) -> None:
        stderr = self.process.stderr
        assert stderr is not None
        with stderr:
            while data := stderr.read1(65536):  # type: ignore[attr-defined]
                self._tail += data
                if len(self._tail) > 2 * STDERR_KEPT:
                    del self._tail[:-STDERR_KEPT]

    @property
    def stderr(self) -> str:
        """The end of what it has written to stderr, at most 8 KiB."""
        return bytes(self._tail[-STDERR_KEPT:]).decode("utf-8", "replace").strip()

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:  # once it was waited for, its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    @property
    def has_exited(self) -> bool:
        """Whether it was told to end and has: who still holds its pipes is something that it left behind, and not waited for."""
        return self._signalled and self.process.poll() is not None

    def terminate(self) -> None:
        """Ask it and what it has started to end (SIGTERM), without waiting."""
        self._signalled = True
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it: SIGTERM, five seconds, SIGKILL. Does nothing if it has ended."""
        self.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once with SIGKILL, so that it cannot act on anything that it has read."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def release(self) -> None:
        """Close its pipes and join the drain; the child is stopped first if it has not ended."""
        self.stop()
        self._drain.join(DRAIN_SECONDS)  # it closes stderr when that ends, which a grandchild may put off
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def stderr_tail(self) -> str:
        """Return the end of its stderr, complete as far as it closed that when it ended."""
        self._drain.join(DRAIN_SECONDS)
        return self.stderr

    def failure(self, error: type[ProcessError], note: str = "") -> ProcessError:
        """Make the error that tells how it ended; ``note`` is a sentence that follows."""
        self._drain.join(DRAIN_SECONDS)
        status = self.process.returncode
        name = os.path.basename(self.argv[0])
        if status is None:
            text = name
        elif status < 0:
            try:
                text = f"{name} was ended by {signal.Signals(-status).name}"
            except ValueError:
                text = f"{name} was ended by signal {-status}"
        else:
            text = f"{name} {'failed' if status else 'ended'} with exit status {status}"
        text += f": {self.stderr}" if self.stderr else " and said nothing"
        if note:
            text = f"{text.rstrip('.')}. {note}"
        return error(text, self.argv, status, self.stderr)


class Spawn(Protocol):
    """Starts a child: ``spawn`` itself, or a run's ``spawn`` that can end all of its children at once."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = ...,
        stdout: int | IO[bytes] = ...,
        env: Mapping[str, str] | None = ...,
        pass_fds: Sequence[int] = ...,
    ) -> Child: ...


def spawn(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start a child in a process group of its own, without a shell.

    Args:
        argv: The program and its arguments. Anyone on the machine can read them: never a secret.
        env: Added to the clean environment.
        pass_fds: File descriptors that it inherits.

    Raises:
        ProcessError: It could not be started; ``status`` is None.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=clean_environment(env),
            pass_fds=tuple(pass_fds),
            process_group=0,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        why = error.strerror if isinstance(error, OSError) else error
        raise ProcessError(f"{shlex.quote(argv[0])} could not be started: {why}", argv) from error
    try:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _enlarge(pipe)
        return Child(argv, process)
    except BaseException:
        with process:  # closes the pipes and waits
            process.kill()
        raise


def _enlarge(pipe: IO[bytes]) -> None:
    """Ask for a pipe of 1 MiB: sixteen times fewer switches between the two processes."""
    setting = getattr(fcntl, "F_SETPIPE_SZ", None)
    if setting is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, setting, CHUNK)


STOPPED_READING = "It stopped reading before the end."


class _Input:
    """A child's stdin: closed when all was written, and afterwards asked whether the child has read all of it.

    What still fits into the pipe is written without an error to a child that never reads it, so a broken pipe alone does not
    tell. Where the system allows it (Linux), a reader of our own is opened at the end and says how many bytes were left.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe
        self.descriptor = pipe.fileno()
        self.cut_off = False
        self._reader: int | None = None

    def write(self, data: memoryview) -> int:
        """Write what can be written; on a broken pipe set ``cut_off`` and drop it all."""
        try:
            return os.write(self.descriptor, data)
        except BrokenPipeError:
            self.cut_off = True
            return len(data)

    def write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.write(view) :]

    def end(self) -> None:
        """Let the child see the end of file."""
        if not self.cut_off:
            with contextlib.suppress(OSError):
                self._reader = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.pipe.close()

    def was_read(self) -> bool:
        """Whether the child, which has ended, had read everything."""
        if self.cut_off or self._reader is None:
            return not self.cut_off
        count: int = struct.unpack("i", fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)))[0]
        return count == 0

    def release(self) -> None:
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None


def read_process(
    argv: Sequence[str],
    *,
    start: Spawn = spawn,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    error: type[ProcessError] = ProcessError,
    on_stderr: Callable[[str], object] | None = None,
) -> Stream:
    """Yield what a child writes to stdout, in chunks of at most 1 MiB; the child starts at the first ``next()``.

    Args:
        on_stderr: Called with the end of its stderr (at most 8 KiB) if it succeeded and wrote something there, such as a warning.

    Raises:
        error: It exited with anything but 0, after all of its output was yielded.
    """
    yield from read_child(start(argv, stdout=subprocess.PIPE, env=env, pass_fds=pass_fds), error=error, on_stderr=on_stderr)


def read_child(
    child: Child, *, error: type[ProcessError] = ProcessError, on_stderr: Callable[[str], object] | None = None
) -> Stream:
    """Yield what a child writes to stdout, as ``read_process`` does; for one that was started before it is read.

    A stream that is never begun frees nothing: then release the child yourself.
    """
    try:
        assert child.process.stdout is not None
        descriptor = child.process.stdout.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        while True:
            if not ready.poll(1000):
                if child.has_exited:
                    raise child.failure(error)
                continue
            chunk = os.read(descriptor, CHUNK)
            if not chunk:
                break
            yield chunk
        if child.process.wait():
            raise child.failure(error)
        if on_stderr is not None and (text := child.stderr_tail()):
            on_stderr(text)
    finally:
        child.release()


def through_process(
    chunks: Chunks,
    argv: Sequence[str],
    *,
    start: Spawn = spawn,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    error: type[ProcessError] = ProcessError,
) -> Stream:
    """Run a stream through a child that filters stdin to stdout, such as gpg. One chunk is held on either side.

    Raises:
        error: It exited with anything but 0, or stopped reading before the end.
    """
    child = start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, pass_fds=pass_fds)
    source = iter(chunks)
    stdin, stdout = child.process.stdin, child.process.stdout
    assert stdin is not None
    assert stdout is not None
    into = _Input(stdin)
    try:
        os.set_blocking(into.descriptor, False)
        with selectors.DefaultSelector() as ready:
            ready.register(stdin, selectors.EVENT_WRITE)
            ready.register(stdout, selectors.EVENT_READ)
            pending = memoryview(b"")
            while ready.get_map():
                if not (events := ready.select(1.0)) and child.has_exited:
                    raise child.failure(error)
                for key, _ in events:
                    if key.fileobj is stdout:
                        data = os.read(stdout.fileno(), CHUNK)
                        if data:
                            yield data
                        else:
                            ready.unregister(stdout)
                        continue
                    if not pending:
                        chunk = next(source, None)
                        if chunk is None:
                            ready.unregister(stdin)
                            into.end()
                            continue
                        pending = memoryview(chunk)
                    with contextlib.suppress(BlockingIOError):
                        pending = pending[into.write(pending) :]
                    if into.cut_off:
                        ready.unregister(stdin)
        if child.process.wait():
            raise child.failure(error)
        if not into.was_read():
            raise child.failure(error, STOPPED_READING)
    finally:
        child.release()
        into.release()


def feed_process(
    chunks: Chunks,
    argv: Sequence[str],
    *,
    start: Spawn = spawn,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    error: type[ProcessError] = ProcessError,
    partial: bool = False,
) -> None:
    """Feed a stream to a child's stdin so that it commits only what is whole.

    A chunk is written only after the next one was pulled, so the child lacks the last chunk until the source has ended
    without an error; and it is killed before the pipe is closed if the source fails.

    Args:
        partial: The child may stop reading early and succeed (``pg_restore -t``); the rest is drained, and so still checked.

    Raises:
        error: It exited with anything but 0, or stopped reading early where it must not.
    """
    child = start(argv, stdin=subprocess.PIPE, stdout=stdout, env=env, pass_fds=pass_fds)
    assert child.process.stdin is not None
    into = _Input(child.process.stdin)
    fed = False
    try:
        held = b""
        for chunk in chunks:
            if not chunk:
                continue
            if not into.cut_off:
                into.write_all(held)
            if into.cut_off and (not partial or child.process.poll()):
                break
            held = chunk
        else:
            if not into.cut_off:
                into.write_all(held)
        fed = True
        into.end()
        if child.process.wait():
            raise child.failure(error)
        if not partial and not into.was_read():
            raise child.failure(error, STOPPED_READING)
    finally:
        if not fed:
            child.kill()
        child.release()
        into.release()


@contextlib.contextmanager
def watch(tick: Callable[[], object], every: float, name: str = "watch") -> Iterator[None]:
    """Call ``tick`` every ``every`` seconds in a thread while the context lasts; it is joined when the context ends.

    An exception of ``tick`` ends the watching and is raised when the context is left without another error.
    """
    ended = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        while not ended.wait(every):
            try:
                tick()
            except BaseException as caught:
                failures.append(caught)
                return

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def lower_priority() -> Iterator[None]:
    """Let this thread, and the threads that it starts meanwhile, interrupt nobody when there is work for them again.

    Who pumps is woken by every few KiB that pg_dump writes. On a machine with as many busy processes as processors each time
    costs pg_dump, or the server behind it, its place; what is left for us is enough. By ``SCHED_BATCH`` (sched(7)), where the
    system has it and lets us; elsewhere nothing changes. Children that were started before are not touched.
    """
    batch = getattr(os, "SCHED_BATCH", None)
    before = None
    with contextlib.suppress(OSError):
        if batch is not None and os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, batch, os.sched_param(0))
            before = os.SCHED_OTHER
    try:
        yield
    finally:
        if before is not None:
            os.sched_setscheduler(0, before, os.sched_param(0))
