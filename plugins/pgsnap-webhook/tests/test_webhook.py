"""The web hook: the conformance kit, its schema and signature, each preset, and web servers that misbehave."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

import pgsnap
from pgsnap import ConfigError, NotifyError
from pgsnap.components import Drilled, Failed, Partial, Started, StoreOutcome, Succeeded, TestMessage, Verified
from pgsnap.testing import NotifierConformance
from pgsnap_webhook import Webhook, sign
from pgsnap_webhook.requests import document

SECRET = "/hook/c4narySecret"
WHEN = datetime(2026, 11, 22, 8, tzinfo=UTC)
ID = "20261122T080000Z-4f3a"
TEST = TestMessage(pipeline="shop", text="hello")
STARTED = Started(pipeline="shop", id=ID, text="begins")
SPAN: Any = {"pipeline": "shop", "id": ID, "started": WHEN, "ended": WHEN + timedelta(seconds=3)}
SUCCEEDED = Succeeded(**SPAN, text="it is there.")
PARTIAL = Partial(**SPAN, stores=(StoreOutcome(label="a"), StoreOutcome(label="b", error="b: offline.")), text="one is missing.")
FAILED = Failed(**SPAN, text="no backup.", cause="it broke.", next_step="pgsnap doctor shop", log="line 1\nline 2\n")
SCHEMA = json.loads((files("pgsnap_webhook") / "schema.json").read_text(encoding="utf-8"))


class TestWebhook(NotifierConformance):
    @pytest.fixture
    def notifier(self, receiver: Any) -> Webhook:
        return Webhook(url=receiver.url + SECRET, secret="c4naryHmac", headers={"Authorization": "Bearer c4naryToken"})

    @pytest.fixture
    def received(self, receiver: Any) -> Callable[[], Sequence[str]]:
        def texts() -> Sequence[str]:
            for number in range(len(receiver.requests)):
                jsonschema.validate(receiver.json(number), SCHEMA, format_checker=jsonschema.FormatChecker())
            return [request[3].decode() for request in receiver.requests]

        return texts

    @pytest.fixture
    def broken(self) -> Webhook:
        return Webhook(url="http://127.0.0.1:1" + SECRET)


def test_the_schema_is_one_and_says_what_is_sent() -> None:
    """It is a valid schema; what it requires of all kinds is sent of all kinds; another kind of document is refused."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["required"]) <= set(document(TEST))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document(FAILED) | {"size": "many"}, SCHEMA)


def test_a_signed_request(receiver: Any) -> None:
    """The signature is the one that the README describes, over the bytes as sent; more headers go along."""
    Webhook(url=receiver.url + "/x", secret="s3cret", headers={"X-Mine": "yes"}).notify(FAILED, timeout=5)
    ((method, path, headers, body),) = receiver.requests
    assert ("POST", "/x", "yes", "failed") == (method, path, headers["x-mine"], headers["pgsnap-event"])
    seconds, digest = headers["pgsnap-signature"].removeprefix("t=").split(",v1=")
    assert hmac.new(b"s3cret", f"{seconds}.".encode() + body, hashlib.sha256).hexdigest() == digest
    assert abs(int(seconds) - time.time()) < 60
    assert headers["pgsnap-signature"] == sign(body, "s3cret", int(seconds))
    assert "line 1\nline 2\n" == json.loads(body)["log"]


def test_a_long_log_is_cut_with_a_mark() -> None:
    """Its end is sent."""
    log = document(Failed(**SPAN, log="x" * 150_000 + "the reason"))["log"]
    assert log.startswith("… (50,010 characters before this are left out)\n")
    assert log.endswith("the reason")


# --- presets -----------------------------------------------------------------------------------------------------------------


def test_healthchecks(receiver: Any) -> None:
    """Start, success and failure each have an ending; one run has one id; a test changes nothing there."""
    hook = Webhook(preset="healthchecks", url=receiver.url + "/ping/uuid?create=1")
    summary = pgsnap.components.Summary(pipeline="shop", count=1, text="alive")
    damaged = Verified(pipeline="shop", id=ID, stores=(StoreOutcome(label="a", error="a: damaged."),), text="damaged")
    for event in (STARTED, SUCCEEDED, PARTIAL, FAILED, TEST, summary, damaged):
        hook.notify(event, timeout=5)
    paths = [request[1].partition("?")[0] for request in receiver.requests]
    assert ["/start", "", "/fail", "/fail", "/log", "/log", "/fail"] == [path.removeprefix("/ping/uuid") for path in paths]
    rids = [request[1].partition("rid=")[2] for request in receiver.requests]
    assert len(rids[0]) == 36
    assert [rids[0]] * 4 == rids[:4]
    assert ["", "", ""] == rids[4:]
    assert all("?create=1" in request[1] for request in receiver.requests)
    body = receiver.requests[3][3].decode()
    assert "it broke." in body
    assert "line 2" in body
    assert ("started", "succeeded", "partial", "failed", "suspect") == hook.on


def test_pagerduty(receiver: Any) -> None:
    """What goes badly triggers, the next good one of the same sort resolves; started says nothing."""
    hook = Webhook(preset="pagerduty", url=receiver.url, key="R0UTING")
    proved = Drilled(**SPAN, text="proved")
    for event in (STARTED, FAILED, PARTIAL, SUCCEEDED, proved, TEST):
        hook.notify(event, timeout=5)
    sent = [receiver.json(number) for number in range(len(receiver.requests))]
    assert [
        ("trigger", "pgsnap/shop", "critical"),
        ("trigger", "pgsnap/shop", "warning"),
        ("resolve", "pgsnap/shop", None),
        ("resolve", "pgsnap/shop/drill", None),
        ("trigger", "pgsnap/shop/test", "info"),
    ] == [(each["event_action"], each["dedup_key"], each.get("payload", {}).get("severity")) for each in sent]
    assert {"R0UTING"} == {each["routing_key"] for each in sent}
    assert all(len(each["payload"]["summary"]) <= 1024 for each in sent if "payload" in each)
    assert {"summary", "source", "severity"} <= sent[0]["payload"].keys()


def test_opsgenie(receiver: Any) -> None:
    """Alerts are created and closed by alias; texts keep the limits."""
    hook = Webhook(preset="opsgenie", url=receiver.url + "/v2/alerts", key="G3NIE")
    long = Failed(**SPAN, text="한" * 20_000, cause="😀" * 20_000)
    for event in (long, SUCCEEDED):
        hook.notify(event, timeout=5)
    created, closed = receiver.requests
    assert ("/v2/alerts", "GenieKey G3NIE") == (created[1], created[2]["authorization"])
    alert = json.loads(created[3])
    assert ("pgsnap/shop", "P1") == (alert["alias"], alert["priority"])
    assert len(alert["message"]) <= 130
    assert len(alert["description"]) == 15_000
    assert alert["description"].endswith("more characters)")
    assert "/v2/alerts/pgsnap%2Fshop/close?identifierType=alias" == closed[1]


# --- servers that misbehave --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["json", "healthchecks", "pagerduty", "opsgenie"])
def test_a_limit_is_waited_for(receiver: Any, preset: Any) -> None:
    """429 with Retry-After, an error, then success: the same message again, with the same Pgsnap-Delivery."""
    receiver.answers = [(429, {"Retry-After": "1"}, "slow down"), 503, "hangup", 204]
    began = time.monotonic()
    Webhook(preset=preset, url=receiver.url, key="K3Y").notify(FAILED, timeout=20)
    assert time.monotonic() - began >= 1
    assert 4 == len(receiver.requests)
    assert 1 == len({(request[2]["pgsnap-delivery"], request[3]) for request in receiver.requests})


@pytest.mark.parametrize(
    ("answer", "message", "attempts"),
    [
        ((429, {"Retry-After": "3600"}, "later"), "127.0.0.1 answered 429 (later); it may work later.", 1),
        ((429, {"Retry-After": "Wed, 21 Oct 2015"}, ""), None, None),
        ((404, {}, "gone"), "127.0.0.1 refused the message with 404 (gone); check the URL.", 1),
        ((401, {}, ""), "127.0.0.1 refused the message with 401; check key and headers.", 1),
        (
            (302, {"Location": "/elsewhere"}, ""),
            "127.0.0.1 answered with a redirect (302), which is not followed; give the URL that it leads to.",
            1,
        ),
        (500, "127.0.0.1 answered 500 (no); it may work later.", None),
        ("garbage", None, None),
        ("hangup", None, None),
        ("stall", None, None),
    ],
)
def test_servers_that_misbehave(receiver: Any, answer: Any, message: str | None, attempts: int | None) -> None:
    """Each is a sentence, in time, without the URL; nothing is taken for delivered."""
    receiver.answers = [answer]
    began = time.monotonic()
    with pytest.raises(NotifyError) as caught:
        Webhook(url=receiver.url + SECRET).notify(TEST, timeout=2)
    assert time.monotonic() - began < 4
    assert "c4nary" not in str(caught.value)
    if message is not None:
        assert message == str(caught.value)
    if attempts is not None:
        assert attempts == len(receiver.requests)


def test_a_server_that_drips_is_given_up(receiver: Any) -> None:
    """A byte now and then keeps every timeout of a socket away; the run's own limit holds."""
    from pgsnap import LocalStore, Pipeline

    class NoDump(pgsnap.Dumper):
        """Dumps nothing."""

        name = "none"

        def dump(self, run: Any) -> Any: ...

        def restore(self, source: Any, request: Any, run: Any) -> None: ...

        def recipe(self, artifacts: Any, facts: Any) -> str:
            return ""

    receiver.answers = ["drip"]
    hook = Webhook(url=receiver.url + SECRET)
    pipeline = Pipeline(name="shop", dump=NoDump(), stores=[LocalStore(url="/x")], notifiers=[hook], notify_timeout=2)
    began = time.monotonic()
    (error,) = pipeline.notify(TEST)
    assert time.monotonic() - began < 4
    assert "c4nary" not in error


# --- options -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "webhook's url is missing; preset 'json' has none by itself."),
        ({"url": "example.org/c4nary"}, "webhook's url is not one; write it like https://example.org/hook."),
        ({"url": "https://h/c4nary\r\nX: y"}, "webhook's url is not one; write it like https://example.org/hook."),
        (
            {"preset": "nagios", "url": "https://h"},
            "webhook's preset is 'nagios'; choose from json, healthchecks, pagerduty, opsgenie.",
        ),
        ({"preset": "pagerduty"}, "webhook's key is missing; preset 'pagerduty' wants the integration's routing key."),
        ({"preset": "opsgenie"}, "webhook's key is missing; preset 'opsgenie' wants an API key."),
        (
            {"url": "https://h", "headers": {"a b": "c4nary"}},
            "webhook's headers has 'a b', which cannot be a header's name; use letters, digits and '-'.",
        ),
        (
            {"url": "https://h", "headers": {"X": "c4nary\r\nY: z"}},
            "webhook's header 'X' has a line break or another character that a header cannot hold.",
        ),
        ({"url": "https://h", "on": ("failure",)}, "on = 'failure' is no event; did you mean 'failed'?"),
        (
            {"preset": "pagerduty", "key": "k", "on": ("started",)},
            "on = 'started': preset 'pagerduty' has nothing to say of it; leave it out.",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    """With the option and what would be right; secrets are not shown."""
    with pytest.raises(ConfigError) as caught:
        Webhook(**options)
    assert message == str(caught.value)


def test_no_log_shows_a_secret(receiver: Any, caplog: pytest.LogCaptureFixture) -> None:
    """At no level."""
    with caplog.at_level(logging.DEBUG):
        Webhook(url=receiver.url + SECRET, secret="c4nary2", headers={"Authorization": "c4nary3"}).notify(TEST, timeout=5)
    assert "c4nary" not in caplog.text
    assert "c4nary" not in repr(Webhook(url=receiver.url + SECRET, secret="c4nary2", headers={"Authorization": "c4nary3"}))


def test_doctor_looks_at_the_url() -> None:
    """And sends nothing."""
    run = pgsnap.Run("shop")
    assert ["ok"] == [finding.level for finding in Webhook(preset="pagerduty", key="k").preflight(run)]
    assert ["warning"] == [finding.level for finding in Webhook(url="http://example.org/x").preflight(run)]
