"""A run: what all components of one backup or restore share, and how it is stopped.

Abort order: the children are ended, then the callbacks are called; by that the streams fail, the fan-out drops its lanes and
joins their threads, the stages are closed by their pumps, and the dump's context is left. A signal handler only raises once
in the main thread; what it interrupts calls ``abort``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from subprocess import DEVNULL
from typing import IO, TypeAlias

from pgsnap.errors import Aborted
from pgsnap.process import Child, spawn, watch
from pgsnap.types import format_duration

__all__ = ["Progress", "Run"]

logging.getLogger("pgsnap").addHandler(logging.NullHandler())  # a library is silent until its user listens

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a subject (an artifact, or a store's label), the bytes done so far and the bytes expected, if known."""


def _silent(subject: str, done: int, expected: int | None) -> None:
    pass


class Run:
    """One backup, restore or other piece of work of one pipeline.

    Args:
        pipeline: The pipeline's name.
        id: The backup's id.
        timeout: Seconds after which the run aborts itself, once ``watched`` is entered; None: never.
        log: Where components log; by default ``pgsnap.run``.
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
        self.log = log or logging.getLogger("pgsnap.run")
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
