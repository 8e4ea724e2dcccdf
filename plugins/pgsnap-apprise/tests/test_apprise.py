"""The Apprise notifier: the conformance kit, real requests, and services that fail."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import pgsnap
from pgsnap import ConfigError, NotifyError
from pgsnap.components import TestMessage
from pgsnap.testing import NotifierConformance
from pgsnap_apprise import Apprise

TEST = TestMessage(pipeline="shop", text="hello")
SECRET = "c4naryToken"


def url(receiver: Any, path: str = SECRET) -> str:
    return str(receiver.url).replace("http://", "json://") + f"/{path}"


class TestApprise(NotifierConformance):
    @pytest.fixture
    def notifier(self, receiver: Any) -> Apprise:
        return Apprise(urls=(url(receiver),))

    @pytest.fixture
    def received(self, receiver: Any) -> Callable[[], Sequence[str]]:
        return lambda: [f"{each['title']}\n{each['message']}" for each in map(json.loads, bodies(receiver))]

    @pytest.fixture
    def broken(self) -> Apprise:
        return Apprise(urls=(f"json://127.0.0.1:1/{SECRET}",))


def bodies(receiver: Any) -> list[bytes]:
    return [request[3] for request in receiver.requests]


def test_the_level_is_handed_on(receiver: Any) -> None:
    """A failure is one to the service too."""
    from pgsnap.components import Failed
    from pgsnap.testing.notifiers import event

    Apprise(urls=(url(receiver),)).notify(event("failed"), timeout=10)
    (body,) = map(json.loads, bodies(receiver))
    assert isinstance(event("failed"), Failed)
    assert ("failure", "❌ shop: NO BACKUP was made") == (body["type"], body["title"])


def test_a_long_text_is_cut_with_a_mark(receiver: Any) -> None:
    """To what the service takes."""
    Apprise(urls=(url(receiver),)).notify(TestMessage(pipeline="shop", text="한" * 50_000), timeout=10)
    message = json.loads(bodies(receiver)[0])["message"]
    assert len(message) <= 32768
    assert message.endswith("more characters)")


def test_one_that_fails_is_tried_once_more_and_the_others_are_told_once(receiver: Any) -> None:
    """The failed one is named by place and scheme; the other gets one message."""
    both = Apprise(urls=(f"json://127.0.0.1:1/{SECRET}", url(receiver)))
    with pytest.raises(NotifyError) as caught:
        both.notify(TEST, timeout=10)
    expected = "Apprise could not deliver to urls[0] (json); try the URL by itself: apprise -vv -b test URL"
    assert expected == str(caught.value)
    assert 1 == len(receiver.requests)


@pytest.mark.parametrize("answer", [404, 500, "garbage", "hangup", "stall"])
def test_services_that_misbehave(receiver: Any, answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A sentence, in time, without the token."""
    receiver.answers = [answer]
    began = time.monotonic()
    said = r"could not deliver to urls\[0\] \(json\)"
    with caplog.at_level(logging.DEBUG, "pgsnap"), pytest.raises(NotifyError, match=said) as caught:
        Apprise(urls=(url(receiver),)).notify(TEST, timeout=2)
    assert time.monotonic() - began < 4
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ((), "apprise's urls is empty; give at least one, such as tgram://TOKEN/CHAT."),
        (("c4nary",), "apprise's urls[0] is no URL; write it like tgram://TOKEN/CHAT (github.com/caronc/apprise)."),
    ],
)
def test_bad_options_are_refused(urls: tuple[str, ...], message: str) -> None:
    """With what would be right."""
    with pytest.raises(ConfigError) as caught:
        Apprise(urls=urls)
    assert message == str(caught.value)


def test_a_service_that_apprise_does_not_know() -> None:
    """doctor says so, and so does sending."""
    unknown = Apprise(urls=(f"nosuch://{SECRET}",))
    (finding,) = unknown.preflight(pgsnap.Run("shop"))
    assert ("error", "Apprise does not understand urls[0] (nosuch).") == (finding.level, finding.text)
    with pytest.raises(NotifyError, match=r"does not understand urls\[0\] \(nosuch\)"):
        unknown.notify(TEST, timeout=5)
