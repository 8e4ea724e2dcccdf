"""For authors of notifiers: an attempt that is repeated for as long as that makes sense and the time lasts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pgsnap.errors import NotifyError

__all__ = ["deliver"]

T = TypeVar("T")


def deliver(attempt: Callable[[float], T], *, timeout: float) -> T:
    """Call ``attempt(seconds left)`` until it succeeds, for at most ``timeout`` seconds; return what it returns.

    It is repeated after a ``NotifyError`` that is ``transient``: after the time that the receiver asked for, else after half a
    second, one, two … with some chance in it. Where that time is not left, the error comes out at once.

    Raises:
        NotifyError: that of the last attempt.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential, wait_random

    deadline = time.monotonic() + timeout
    backoff = wait_exponential(multiplier=0.5, max=10) + wait_random(0, 0.5)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, NotifyError) else None
        return backoff(state) if asked is None else max(0.0, asked)

    def again(error: BaseException) -> bool:
        return isinstance(error, NotifyError) and error.transient

    for each in Retrying(stop=stop_before_delay(timeout), wait=wait, retry=retry_if_exception(again), reraise=True):
        with each:
            result = attempt(max(0.1, deadline - time.monotonic()))
    return result
