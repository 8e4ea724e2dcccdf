"""Bounded parallel work on the pieces of a stream, such as the parts of an upload."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_flight"]

R = TypeVar("R")
T = TypeVar("T")


def in_flight(work: Callable[[T], R], items: Iterable[T], limit: int) -> Generator[R]:
    """Yield ``work(item)`` for each item, in order, with at most ``limit`` of them under way, each in a thread of its own.

    The items are pulled by the consuming thread, at most ``limit`` of them ahead. The first failure is raised in its place,
    after all others under way have ended; no further item is started. The threads are daemons, as a pool's are not: one that
    is blocked for ever cannot keep the process of an abandoned consumer from ending.
    """
    waiting: deque[tuple[threading.Thread, Future[R]]] = deque()

    def start(item: T) -> None:
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="in-flight", daemon=True)
        waiting.append((thread, future))
        try:
            thread.start()
        except BaseException:
            waiting.pop()
            raise

    try:
        for item in items:
            if any(future.done() and future.exception() for _, future in waiting):
                break
            start(item)
            if len(waiting) >= limit:
                yield waiting[0][1].result()
                waiting.popleft()[0].join()
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()[0].join()
    finally:
        for thread, _ in waiting:
            thread.join()
