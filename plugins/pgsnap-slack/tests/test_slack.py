"""The Slack notifier: the conformance kit, Slack's limits, and web servers that misbehave."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pgsnap
from pgsnap import ConfigError, NotifyError
from pgsnap.components import Event, Failed, StoreOutcome, TestMessage
from pgsnap.testing import NotifierConformance
from pgsnap_slack import Slack
from pgsnap_slack.blocks import blocks, escape, fallback

SECRET = "/services/T000/B000/c4narySecret"
WHEN = datetime(2026, 11, 22, 8, tzinfo=UTC)
TEST = TestMessage(pipeline="shop", text="hello")


def failed(**more: Any) -> Failed:
    fields: dict[str, Any] = {"text": "shop: no backup was made.", "cause": "it broke.", "next_step": "pgsnap doctor shop"}
    return Failed(pipeline="shop", id="20261122T080000Z-4f3a", started=WHEN, ended=WHEN + timedelta(seconds=3), **(fields | more))


def texts(document: Any) -> str:
    """Return all texts of a message."""
    if isinstance(document, dict):
        return "\n".join(texts(value) for value in document.values())
    if isinstance(document, list):
        return "\n".join(texts(value) for value in document)
    return str(document).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


class TestSlack(NotifierConformance):
    @pytest.fixture
    def notifier(self, receiver: Any) -> Slack:
        return Slack(webhook=receiver.url + SECRET)

    @pytest.fixture
    def received(self, receiver: Any) -> Callable[[], Sequence[str]]:
        return lambda: [texts(receiver.json(number)) for number in range(len(receiver.requests))]

    @pytest.fixture
    def broken(self) -> Slack:
        return Slack(webhook="http://127.0.0.1:1" + SECRET)


def check_limits(event: Event) -> None:
    """Fail if a message breaks a limit that Slack documents."""
    made = blocks(event)
    assert 1 <= len(made) <= 50
    assert len(fallback(event)) <= 4000
    for block in made:
        if block["type"] == "header":
            assert "plain_text" == block["text"]["type"]
            assert 1 <= len(block["text"]["text"]) <= 150
        elif block["type"] == "section":
            assert len(block.get("fields", [])) <= 10
            for field in block.get("fields", []):
                assert 1 <= len(field["text"]) <= 2000
            if "text" in block:
                assert 1 <= len(block["text"]["text"]) <= 3000
            assert "text" in block or block.get("fields")
        else:
            assert "context" == block["type"]
            assert 1 <= len(block["elements"]) <= 10
    json.dumps(made)


@settings(max_examples=150, deadline=None)
@given(
    cause=st.text(max_size=40).flatmap(lambda t: st.integers(1, 300).map(lambda n: t * n)),
    stores=st.integers(0, 120),
    label=st.text(min_size=1, max_size=400),
    log=st.text(max_size=200).flatmap(lambda t: st.integers(1, 200).map(lambda n: (t + "\n") * n)),
)
def test_no_message_breaks_a_limit(cause: str, stores: int, label: str, log: str) -> None:
    """Whatever the texts are, however many stores there are."""
    outcomes = tuple(StoreOutcome(label=f"{label}{n}", error=cause if n % 2 else "") for n in range(stores))
    check_limits(
        failed(text=cause, cause=cause, next_step=cause, stores=outcomes, notes=(cause,) * 5, recover=(label,) * 40, log=log)
    )


@pytest.mark.parametrize("text", ["한국어 오류 " * 1500, "😀" * 10_000, "<&>" * 3500, "x" * 10_000])
def test_long_texts_are_cut_with_a_mark(text: str) -> None:
    """10,000 characters, of any script: what is left out is counted."""
    check_limits(failed(cause=text))
    (section,) = [block["text"]["text"] for block in blocks(failed(cause=text)) if str(block).find("*Cause*") >= 0]
    assert section.startswith("*Cause*\n" + escape(text[:100], 3000)[:100])
    assert "more characters)" in section
    assert "more characters)" not in texts(blocks(failed(cause=text[:100])))


def test_a_text_from_a_database_is_no_markup() -> None:
    """It cannot call everybody or make a link."""
    made = blocks(failed(cause="<!channel> <https://evil|click> @here", log="``` <!here>\n"))
    assert "<!" not in json.dumps(made)
    assert "<https" not in json.dumps(made)
    assert all(each["text"]["verbatim"] for each in made if each["type"] == "section" and "text" in each)


def test_a_person_sees_the_outcome_at_a_glance() -> None:
    """Sign and outcome in the head; stores, cause, next step, and the end of the log below."""
    event = failed(stores=(StoreOutcome(label="/a"), StoreOutcome(label="s3://b", error="s3://b: offline.")), log="one\ntwo\n")
    made = blocks(event)
    assert "❌ shop: NO BACKUP was made" == made[0]["text"]["text"]
    everything = texts(made)
    for part in ("✅ /a", "❌ s3://b", "*Cause*\nit broke.", "*What to do now*\npgsnap doctor shop", "```one\ntwo```", "3.0 s"):
        assert part in everything


def test_a_limit_is_waited_for(receiver: Any) -> None:
    """429 with Retry-After, then success: one message, after the time that was asked for."""
    receiver.answers = [(429, {"Retry-After": "1"}, "rate_limited"), (200, {}, "ok")]
    began = time.monotonic()
    Slack(webhook=receiver.url + SECRET).notify(TEST, timeout=10)
    assert time.monotonic() - began >= 1
    assert 2 == len(receiver.requests)


@pytest.mark.parametrize(
    ("answer", "message", "attempts"),
    [
        ((429, {"Retry-After": "3600"}, "rate_limited"), "Slack answered 429 (rate_limited); it may work later.", 1),
        (
            (404, {}, "no_service"),
            "Slack refused the message with 404 (no_service): there is no such web hook: it was removed, or the URL is not "
            "whole; make a new one.",
            1,
        ),
        (
            (403, {}, "action_prohibited"),
            "Slack refused the message with 403 (action_prohibited): the workspace does not allow it: ask an administrator.",
            1,
        ),
        (
            (200, {}, "<html>Sign in</html>"),
            "what answered is no web hook: it said '<html>Sign in</html>' and not 'ok'; check the URL.",
            1,
        ),
        ((302, {"Location": "/elsewhere"}, ""), None, None),
        ("garbage", None, None),
        ("hangup", None, None),
        ("stall", None, None),
        (500, "Slack answered 500 (no); it may work later.", None),
    ],
)
def test_servers_that_misbehave(receiver: Any, answer: Any, message: str | None, attempts: int | None) -> None:
    """Each is a sentence, in time, without the URL; nothing is taken for delivered."""
    receiver.answers = [answer]
    if isinstance(answer, tuple) and answer[0] == 302:
        receiver.answers.append((200, {}, "<html>elsewhere</html>"))
    began = time.monotonic()
    with pytest.raises(NotifyError) as caught:
        Slack(webhook=receiver.url + SECRET).notify(TEST, timeout=2)
    assert time.monotonic() - began < 4
    assert "c4nary" not in str(caught.value)
    if message is not None:
        assert message == str(caught.value)
    if attempts is not None:
        assert attempts == len(receiver.requests)


@pytest.mark.parametrize(
    "url", ["hooks.slack.com/services/c4nary", "ftp://c4nary/x", "https://", "http://[c4nary", "https://h:c4nary/"]
)
def test_a_bad_url_is_named_and_not_shown(url: str) -> None:
    """The option, and where the right one is found; never the value."""
    with pytest.raises(ConfigError, match="slack's webhook is not a URL; copy it from") as caught:
        Slack(webhook=url)
    assert "c4nary" not in str(caught.value)


def test_no_log_shows_the_url(receiver: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Not even at level DEBUG, where slack_sdk would."""
    with caplog.at_level(logging.DEBUG):
        Slack(webhook=receiver.url + SECRET).notify(TEST, timeout=5)
        with pytest.raises(NotifyError):
            Slack(webhook="http://127.0.0.1:1" + SECRET).notify(TEST, timeout=0.5)
    assert "c4nary" not in caplog.text


def test_doctor_looks_at_the_url() -> None:
    """And sends nothing."""
    run = pgsnap.Run("shop")
    assert [("ok", "messages go to a web hook at hooks.slack.com.")] == [
        (finding.level, finding.text) for finding in Slack(webhook="https://hooks.slack.com" + SECRET).preflight(run)
    ]
    assert ["warning"] == [finding.level for finding in Slack(webhook="http://127.0.0.1/x").preflight(run)]
