"""Telling: at once, in bounded time, without secrets; deliver repeats what may be repeated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar

import attrs
import pytest

from pgsnap import Notifier, NotifyError, Secret
from pgsnap.components import Event, deliver
from pgsnap.components.events import Drilled, Failed, StoreOutcome, TestMessage, now
from pgsnap.components.redact import Redactor
from pgsnap.operations.notify import RunNotifications, notify, redacted, send
from toys import MakePipeline

CANARY = "c4nary-s3cret"
NOTHING = Redactor()


@attrs.frozen(kw_only=True)
class Toy(Notifier):
    """Calls what it is given."""

    name: ClassVar[str] = "toy"
    do: Callable[[Event, float], object] = attrs.field(default=lambda event, timeout: None)
    token: Secret = attrs.field(default="", converter=Secret)

    def notify(self, event: Event, *, timeout: float) -> None:
        self.do(event, timeout)


def failing(error: Exception) -> Callable[[Event, float], object]:
    def do(event: Event, timeout: float) -> None:
        raise error

    return do


def test_all_are_told_at_once_and_failures_are_sentences() -> None:
    """One that waits for another would not come back if they were told one after the other."""
    together = threading.Barrier(2, timeout=10)
    both = [Toy(do=lambda event, timeout: together.wait()) for _ in range(2)]
    sick = [Toy(do=failing(NotifyError("nobody answers."))), Toy(do=failing(KeyError("x")))]
    errors = send([both[0], sick[0], both[1], sick[1]], TestMessage(pipeline="shop"), redact=NOTHING, timeout=20)
    assert ("the notifier 'toy' failed: nobody answers.", "the notifier 'toy' failed: KeyError: 'x'") == errors


def test_one_that_hangs_is_given_up() -> None:
    """Within the time, with a sentence; the others have been told. It was given less time than that."""
    release = threading.Event()
    seen: list[float] = []

    def hang(event: Event, timeout: float) -> None:
        seen.append(timeout)
        release.wait()

    told: list[Event] = []
    began = time.monotonic()
    try:
        quick = Toy(do=lambda event, timeout: told.append(event))
        errors = send([Toy(do=hang), quick], TestMessage(pipeline="shop"), redact=NOTHING, timeout=1.5)
    finally:
        release.set()
    assert time.monotonic() - began < 2.5
    assert 1 == len(told)
    assert seen[0] < 1.5
    (error,) = errors
    assert error.startswith("the notifier 'toy' failed: it did not come back within 2 s")


def test_a_run_has_one_limit(make: MakePipeline) -> None:
    """The events of one run share it; each gets two seconds at least, so that the last word is said."""
    seen: list[float] = []

    def slow(event: Event, timeout: float) -> None:
        seen.append(timeout)
        time.sleep(0.3)

    notifications = RunNotifications(make(notifiers=[Toy(do=slow)], notify_timeout=3))
    for _ in range(5):
        notifications.send(TestMessage(pipeline="shop"))
    assert seen == sorted(seen, reverse=True)
    assert 1.0 <= seen[-1] < seen[0] <= 3
    notifications.send(TestMessage(pipeline="shop"), at_most=0.8)
    assert seen[-1] < 0.8


def test_no_secret_reaches_a_notifier(make: MakePipeline) -> None:
    """Not in the sentence, the cause, a store's error, a table or the log."""
    told: list[Event] = []
    pipeline = make(notifiers=[Toy(do=lambda event, timeout: told.append(event), token=Secret(CANARY))])
    failed = Failed(
        pipeline="shop", text=f"a {CANARY}", started=now(), ended=now(), cause=f"b {CANARY}", next_step=f"c {CANARY}",
        stores=(StoreOutcome(label="x", error=f"d {CANARY}"),), notes=(f"e {CANARY}",), log=f"f {CANARY}\n",
    )  # fmt: skip
    drilled = Drilled(pipeline="shop", started=now(), ended=now(), checks=(("g", f"h {CANARY}"),))
    for event in (failed, drilled):
        assert () == notify(pipeline, event)
    assert 2 == len(told)
    for event in told:
        assert CANARY not in str(attrs.asdict(event))
        assert "***" in str(attrs.asdict(event))
    assert told[0].text == "a ***"


def test_no_secret_comes_back_from_a_notifier(make: MakePipeline) -> None:
    """What a careless notifier says of its failure is redacted."""
    pipeline = make(notifiers=[Toy(do=failing(ValueError(f"bad URL {CANARY}")), token=Secret(CANARY))])
    assert ("the notifier 'toy' failed: ValueError: bad URL ***",) == notify(pipeline, TestMessage(pipeline="shop"))


def test_redacted_changes_texts_only() -> None:
    """Times and numbers are as they were."""
    event = TestMessage(pipeline="shop", text="hello")
    assert event == redacted(event, Redactor(["something else"]))


# --- deliver -----------------------------------------------------------------------------------------------------------------


class Attempts:
    """Fails as it is told, then succeeds."""

    def __init__(self, *errors: NotifyError) -> None:
        self.errors = list(errors)
        self.left: list[float] = []

    def __call__(self, left: float) -> str:
        self.left.append(left)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_what_is_transient_is_repeated() -> None:
    """After the time that the receiver asked for; each attempt knows what is left."""
    attempts = Attempts(NotifyError("a", transient=True, retry_after=0.2), NotifyError("b", transient=True, retry_after=0))
    began = time.monotonic()
    assert "done" == deliver(attempts, timeout=10)
    assert 0.2 <= time.monotonic() - began < 5
    assert 3 == len(attempts.left)
    assert attempts.left == sorted(attempts.left, reverse=True)


def test_what_is_final_is_not_repeated() -> None:
    """A refusal stays a refusal."""
    attempts = Attempts(NotifyError("no."))
    with pytest.raises(NotifyError, match="no"):
        deliver(attempts, timeout=10)
    assert 1 == len(attempts.left)


def test_no_wait_goes_beyond_the_limit() -> None:
    """A receiver that wants an hour is not waited for."""
    attempts = Attempts(NotifyError("busy.", transient=True, retry_after=3600))
    began = time.monotonic()
    with pytest.raises(NotifyError, match="busy"):
        deliver(attempts, timeout=5)
    assert time.monotonic() - began < 2
    assert 1 == len(attempts.left)


def test_repeating_ends_with_the_time() -> None:
    """One that never comes up fails within the limit, with the last error."""
    attempts = Attempts(*[NotifyError(str(n), transient=True) for n in range(50)])
    began = time.monotonic()
    with pytest.raises(NotifyError):
        deliver(attempts, timeout=2)
    assert time.monotonic() - began < 2.5
    assert 2 <= len(attempts.left) < 10
