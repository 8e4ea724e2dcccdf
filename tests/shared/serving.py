"""A server in a process of its own on a port of the loopback, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

START_SECONDS = 60.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def serving(argv: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """Start a server, wait until it takes connections, and end it; what it says goes into the file ``log``."""
    with open(log, "wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"{argv[0]} does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()
