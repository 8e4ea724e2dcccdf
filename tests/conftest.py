"""What the tests of the core share as fixtures: ``make`` a pipeline of toys, or run the real command at a ``desk``.

What they are made of is in ``shared/``, which every test can import. The folders of tests mirror the rooms of the package;
``promises/`` and ``end_to_end/`` use real servers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from desk import Desk, clean_environment
from pgsnap import LocalStore, Pipeline
from toys import MakePipeline, ToyDumper

# A shell that starts the tests by & or nohup has them ignore these, and so would every process that a test means to stop.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a test's stores and consumers hang at; opened at its end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def make(tmp_path: Path) -> MakePipeline:
    """Make a pipeline of a toy dumper with two local stores, ``a`` and ``b``; keywords replace its parts."""

    def make_pipeline(**parts: Any) -> Pipeline:
        stores = [LocalStore(url=str(tmp_path / name), fsync=False) for name in ("a", "b")]
        return Pipeline(**({"name": "shop", "dump": ToyDumper(), "stores": stores} | parts))

    return make_pipeline


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def make_desk() -> Callable[[Path], Desk]:
    """Make a desk of a folder; tests give DATABASE_URL themselves."""
    return lambda folder: Desk(folder, clean_environment() | {"HOME": str(folder)})


@pytest.fixture
def desk(tmp_path: Path, make_desk: Callable[[Path], Desk]) -> Desk:
    """A folder of its own, without a database."""
    return make_desk(tmp_path)
