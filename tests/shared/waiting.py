"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
DEADLINE = 60.0
"""Seconds that no test comes near, unless something waits for ever."""


def wait_for(condition: Callable[[], T], what: str) -> T:
    """Poll until a condition holds and return what it gave; fail after a minute."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited in vain for {what}")
