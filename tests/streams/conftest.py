"""No test of a stream leaves a thread behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

WAIT = 20.0
"""Seconds that a thread is given to end."""


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + WAIT
    while left := [t for t in threading.enumerate() if t not in before]:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        left[0].join(0.1)
