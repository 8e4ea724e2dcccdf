"""How an event reaches people: redacted, to every notifier that wants it, all at once, in bounded time.

    notify(pipeline, report.event(Suspect, cause="…", next_step="pgsnap ack …"))   ->   ("the notifier 'slack' failed: …",)

Whatever a notifier does, the caller goes on: what fails or takes too long comes back as a sentence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import attrs

from pgsnap.components.contracts import Notifier
from pgsnap.components.events import Event
from pgsnap.components.redact import Redactor
from pgsnap.errors import NotifyError
from pgsnap.operations.spec import PipelineSpec
from pgsnap.streams import Stalled, drain, fan_out

__all__ = ["NOTIFY_SECONDS", "RunNotifications", "notify", "redacted", "send"]

T = TypeVar("T")

NOTIFY_SECONDS = 60.0
"""Seconds that all messages of one run together may take, unless the pipeline says otherwise."""
LEAST_SECONDS = 2.0
"""What a message gets even where those before it have used up the time."""
GRACE = 0.5
"""Seconds to wait for the thread of a notifier that was given up."""


def notify(pipeline: PipelineSpec, event: Event, *, timeout: float | None = None) -> tuple[str, ...]:
    """Tell an event to the notifiers of a pipeline, without its secrets; return what failed, a sentence each.

    Args:
        timeout: Seconds that it may take in all; by default the pipeline's ``notify_timeout``.
    """
    redact = Redactor.from_components(pipeline.components)
    return send(pipeline.notifiers, event, redact=redact, timeout=timeout or pipeline.notify_timeout)


class RunNotifications:
    """Tells the events of one run, which share one time limit; ``errors`` collects what failed."""

    def __init__(self, pipeline: PipelineSpec) -> None:
        self._pipeline = pipeline
        self._left = pipeline.notify_timeout
        self.errors: list[str] = []

    def wanted(self, event: Event) -> bool:
        """Return whether anybody wants to hear it."""
        return any(notifier.wants(event) for notifier in self._pipeline.notifiers)

    def send(self, event: Event, *, at_most: float | None = None) -> None:
        """Send one event, within ``at_most`` seconds and what is left of the run's limit (but two seconds at least)."""
        began = time.monotonic()
        left = max(LEAST_SECONDS, self._left)
        self.errors += notify(self._pipeline, event, timeout=left if at_most is None else min(left, at_most))
        self._left -= time.monotonic() - began


def send(notifiers: Sequence[Notifier], event: Event, *, redact: Redactor, timeout: float = NOTIFY_SECONDS) -> tuple[str, ...]:
    """Hand an event to every notifier that wants it, all at once; return the failures as sentences, in their order.

    A notifier that does not come back within ``timeout`` seconds is given up, its thread left behind.
    """
    chosen = [notifier for notifier in notifiers if notifier.wants(event)]
    if not chosen:
        return ()
    clean = redacted(event, redact)
    patience = max(timeout - 2 * GRACE, timeout / 2)  # of the notifier itself; it shall find the better words
    limit = max(timeout - 1.5 * GRACE, timeout * 0.6)

    def consumer(notifier: Notifier) -> Callable[[Iterator[bytes]], None]:
        def consume(stream: Iterator[bytes]) -> None:
            drain(stream)
            notifier.notify(clean, timeout=patience)

        return consume

    outcomes = fan_out((), [consumer(notifier) for notifier in chosen], finish=limit, grace=GRACE)
    errors = []
    for notifier, outcome in zip(chosen, outcomes, strict=True):
        error = outcome.error
        if error is not None:
            if isinstance(error, NotifyError):
                text = str(error)
            elif isinstance(error, Stalled):
                text = f"it did not come back within {timeout:.0f} s; look at its network, or raise notify_timeout."
            else:
                text = f"{type(error).__name__}: {error}"
            errors.append(redact(f"the notifier {notifier.name!r} failed: {text}"))
    return tuple(errors)


def redacted(event: Event, redact: Redactor) -> Event:
    """Return an event without secrets in any of its texts."""
    result: Event = _clean(event, redact)
    return result


def _clean(value: Any, redact: Redactor) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, tuple):
        return tuple(_clean(item, redact) for item in value)
    if attrs.has(type(value)):
        changes = {field.name: _clean(getattr(value, field.name), redact) for field in attrs.fields(type(value))}
        return attrs.evolve(value, **changes)
    return value
