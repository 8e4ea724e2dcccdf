"""A web server on loopback for the tests of what tells people: it takes what is posted, and misbehaves on command.

Load it as a plugin of pytest (``-p pgsnap.testing.web``), and tests have the fixture ``receiver``.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

__all__ = ["Receiver", "receiver"]


class Receiver:
    """A web server on loopback that takes what is posted, and misbehaves on command.

    ``answers`` are used up one after the other, the last one for ever: a status, ``(status, headers, body)``, ``"stall"`` (says
    nothing until the test ends), ``"drip"`` (a byte of the header now and then), ``"garbage"`` (no HTTP) or ``"hangup"``. One
    request is answered after the other.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: list[Any] = [(200, {}, "ok")]
        self.ended = threading.Event()
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def _take(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with receiver._lock:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.requests.append((self.command, self.path, headers, body))
                    answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                self._answer(answer)

            do_POST = do_GET = do_PUT = _take

            def _answer(self, answer: Any) -> None:
                self.close_connection = True
                if answer == "stall":
                    receiver.ended.wait()
                elif answer == "drip":
                    with contextlib.suppress(OSError):
                        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                        while not receiver.ended.wait(0.2):
                            self.wfile.write(b"x")
                elif answer == "garbage":
                    self.wfile.write(b"\x00\xffthis is no HTTP\r\n\r\n")
                elif answer != "hangup":
                    status, headers, body = answer if isinstance(answer, tuple) else (answer, {}, "ok" if answer == 200 else "no")
                    data = body.encode()
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(data)), "Connection": "close", **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(socketserver.TCPServer):
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that gave up is what some tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def json(self, number: int = -1) -> Any:
        """Return the body of a request as JSON."""
        return json.loads(self.requests[number][3])

    def stop(self) -> None:
        """End it, and what hangs in it."""
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A web server that takes what is posted to it."""
    server = Receiver()
    yield server
    server.stop()
