"""The conformance kit for notifiers passes a good notifier and catches bad ones."""

from __future__ import annotations

import contextlib
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import attrs
import pytest

from pgsnap import Notifier, NotifyError, Secret
from pgsnap.components import Event
from pgsnap.testing import NotifierConformance


@attrs.frozen(kw_only=True)
class Post(Notifier):
    """A good one: posts a line to a URL that has a secret in it."""

    name: ClassVar[str] = "post"

    url: Secret = attrs.field(converter=Secret)

    def line(self, event: Event) -> str:
        return f"{event.pipeline}: {event.text}"

    def notify(self, event: Event, *, timeout: float) -> None:
        try:
            urllib.request.urlopen(self.url.reveal(), data=self.line(event).encode(), timeout=timeout).close()
        except (OSError, ValueError) as error:
            raise NotifyError(f"post could not deliver: {type(error).__name__}.") from None


class Receiver:
    """Takes what is posted to ``/good/…``, refuses the rest."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        texts = self.texts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                good = urllib.parse.urlsplit(self.path).path.startswith("/good/")
                if good:
                    texts.append(body)
                self.send_response(200 if good else 403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


class TestTheKitPassesAGoodOne(NotifierConformance):
    @pytest.fixture
    def notifier(self, receiver: Receiver) -> Post:
        return Post(url=f"{receiver.url}/good/s3cret")

    @pytest.fixture
    def received(self, receiver: Receiver) -> Callable[[], Sequence[str]]:
        return lambda: receiver.texts

    @pytest.fixture
    def broken(self, receiver: Receiver) -> Post:
        return Post(url=f"{receiver.url}/bad/s3cret")


# --- bad ones ----------------------------------------------------------------------------------------------------------------


class SaysNothing(Post):
    def notify(self, event: Event, *, timeout: float) -> None:
        pass


class LeavesTheNameOut(Post):
    def line(self, event: Event) -> str:
        return event.text


class LosesLetters(Post):
    def line(self, event: Event) -> str:
        return super().line(event).encode("ascii", "ignore").decode()


class HidesItsFailure(Post):
    def notify(self, event: Event, *, timeout: float) -> None:
        with contextlib.suppress(NotifyError):
            super().notify(event, timeout=timeout)


class TellsItsSecret(Post):
    def notify(self, event: Event, *, timeout: float) -> None:
        try:
            super().notify(event, timeout=timeout)
        except NotifyError as error:
            raise NotifyError(f"{self.url.reveal()} did not work.") from error


KIT = TestTheKitPassesAGoodOne()


@pytest.mark.parametrize("bad", [SaysNothing, LeavesTheNameOut, LosesLetters])
def test_the_kit_catches_what_does_not_arrive(bad: type[Post], receiver: Receiver) -> None:
    """Nothing, or less than what was to be told."""
    with pytest.raises((AssertionError, ValueError)):
        KIT.test_delivers(bad(url=f"{receiver.url}/good/s3cret"), lambda: receiver.texts, "failed")


@pytest.mark.parametrize("bad", [HidesItsFailure, TellsItsSecret])
def test_the_kit_catches_a_bad_failure(bad: type[Post], receiver: Receiver) -> None:
    """A failure that is hidden, or that shows a secret."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        KIT.test_a_failure_is_told(bad(url=f"{receiver.url}/bad/s3cret"))
