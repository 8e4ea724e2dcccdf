"""A run: what all components of one backup or restore share, and how it is stopped.

Abort order: the children are ended, then the callbacks are called; by that the streams fail, the fan-out drops its lanes and
joins their threads, the stages are closed by their pumps, and the dump's context is left. A signal handler only raises once
in the main thread; what it interrupts calls ``abort``.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from subprocess import DEVNULL
from typing import IO, TypeAlias

from pgsnap.components.values import format_duration
from pgsnap.errors import Aborted
from pgsnap.streams.process import Child, spawn, watch

__all__ = ["Progress", "Run", "RunLog"]

logging.getLogger("pgsnap").addHandler(logging.NullHandler())  # a library is silent until its user listens

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a subject (an artifact, or a store's label), the bytes done so far and the bytes expected, if known."""


class RunLog(logging.Logger):
    """The log of one run. What is logged goes to the library's loggers, if somebody listens, and is kept here in any case.

    Each record carries ``pipeline`` and ``run``, the backup's id. Of a very long log the beginning and the end are kept.

    Args:
        run: Whose log it is.
        public: Where the records go on to.
    """

    HEAD = TAIL = 2000
    """Lines kept of the beginning and of the end."""

    def __init__(self, run: Run, public: logging.Logger) -> None:
        super().__init__(public.name, logging.INFO)
        self._run = run
        self._public = public
        self._head: list[str] = []
        self._tail: collections.deque[str] = collections.deque(maxlen=self.TAIL)
        self._lines = 0

    def isEnabledFor(self, level: int) -> bool:
        return level >= logging.INFO or self._public.isEnabledFor(level)

    def handle(self, record: logging.LogRecord) -> None:
        record.pipeline, record.run = self._run.pipeline, self._run.id
        if record.levelno >= logging.INFO:
            self._keep(record)
        if self._public.isEnabledFor(record.levelno):
            self._public.handle(record)

    def _keep(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
        except Exception as error:  # whoever logged it made a mistake, which must not end a backup
            text = f"{record.msg!s} (it could not be formatted: {error})"
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        for line in text.splitlines() or [""]:
            full = f"{time} {record.levelname.lower():7} {line}"
            (self._head if len(self._head) < self.HEAD else self._tail).append(full)
            self._lines += 1

    @property
    def text(self) -> str:
        """What was logged at level INFO and above, one line each with its time (UTC). Not redacted."""
        left_out = self._lines - len(self._head) - len(self._tail)
        middle = [f"… ({left_out:,} lines are left out here)"] if left_out > 0 else []
        return "".join(f"{line}\n" for line in [*list(self._head), *middle, *list(self._tail)])


def _silent(subject: str, done: int, expected: int | None) -> None:
    pass


class Run:
    """One backup, restore or other piece of work of one pipeline.

    Args:
        pipeline: The pipeline's name.
        id: The backup's id.
        timeout: Seconds after which the run aborts itself, once ``watched`` is entered; None: never.
        log: Where what components log goes on to; by default ``pgsnap.components.run``.
        progress: Called often, from several threads; it must be quick and must not raise.
        encrypted: Whether something in the pipeline encrypts. Where nothing does, a dumper leaves secrets such as role
            passwords out.
    """

    def __init__(
        self,
        pipeline: str = "",
        id: str = "",
        *,
        timeout: float | None = None,
        log: logging.Logger | None = None,
        progress: Progress = _silent,
        encrypted: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.id = id
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.log: RunLog = RunLog(self, log or logging.getLogger("pgsnap.components.run"))
        self.progress = progress
        self.encrypted = encrypted
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._children: list[Child] = []
        self._callbacks: list[Callable[[], object]] = []

    @property
    def aborted(self) -> str | None:
        """Why the run was aborted, or None."""
        return self._reason

    def check(self) -> None:
        """Raise Aborted if the run was aborted."""
        if self._reason is not None:
            raise Aborted(self._reason)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = DEVNULL,
        stdout: int | IO[bytes] = DEVNULL,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start a child as ``process.spawn`` does, to be ended by an abort; raise Aborted after one."""
        with self._lock:
            self.check()
            child = spawn(argv, stdin=stdin, stdout=stdout, env=env, pass_fds=pass_fds)
            self._children = [c for c in self._children if c.process.returncode is None]
            self._children.append(child)
            return child

    @contextlib.contextmanager
    def on_abort(self, callback: Callable[[], object]) -> Iterator[None]:
        """Have ``callback`` called by an abort that happens within this context. It must not block for long."""
        with self._lock:
            self.check()
            self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)

    def abort(self, reason: str) -> None:
        """Stop the run: end its children, then call the callbacks. Later calls change nothing."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            children, callbacks = list(self._children), list(self._callbacks)
        for child in children:
            child.terminate()
        for child in children:
            child.stop()
        for callback in callbacks:
            try:
                callback()
            except Exception:
                self.log.exception("a callback of the abort failed")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the time limit while this context lasts, and abort when anything but a result leaves it.

        Raises:
            Aborted: in place of whatever error the abort has caused.
        """

        def tick() -> None:
            if self.deadline is not None and time.monotonic() > self.deadline:
                self.abort(
                    f"the run took longer than its time limit of {format_duration(self.timeout or 0)}; "
                    "see what was slow, or raise 'timeout'."
                )

        try:
            with watch(tick, 0.5, name="deadline") if self.deadline is not None else contextlib.nullcontext():
                yield
        except BaseException as error:
            cause = self._reason
            self.abort(f"the run was interrupted ({type(error).__name__}).")
            if cause is not None and isinstance(error, Exception) and not isinstance(error, Aborted):
                raise Aborted(cause) from error
            raise
