"""What every notifier must do, as tests to inherit."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from pgsnap.components.contracts import Component, Notifier
from pgsnap.components.events import EVENTS, KINDS, Event, Finished, Kind, StoreOutcome, StoreSummary
from pgsnap.components.values import Secret
from pgsnap.errors import NotifyError
from pgsnap.testing.component import ComponentConformance
from pgsnap.testing.sources import no_thread_left

__all__ = ["NotifierConformance"]


class NotifierConformance(ComponentConformance):
    """Tests of one notifier: subclass it and give the fixtures ``notifier``, ``received`` and ``broken``."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        """Return a notifier that delivers to something this test can look into. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'notifier'.")

    @pytest.fixture
    def received(self, notifier: Notifier) -> Callable[[], Sequence[str]]:
        """Return a function that gives the texts delivered so far. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'received'.")

    @pytest.fixture
    def broken(self) -> Notifier:
        """Return a notifier whose receiver refuses, or is not there. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'broken'.")

    @pytest.fixture
    def component(self, notifier: Notifier) -> Component:
        return notifier

    @pytest.mark.parametrize("kind", KINDS)
    def test_delivers(self, notifier: Notifier, received: Callable[[], Sequence[str]], kind: Kind) -> None:
        """Each kind of event arrives once, with the pipeline's name and the sentence; no thread is left."""
        with no_thread_left():
            notifier.notify(event(kind), timeout=10)
        (text,) = received()
        assert "shop" in text
        assert TEXT in text

    def test_a_pickled_copy_delivers(self, notifier: Notifier, received: Callable[[], Sequence[str]]) -> None:
        """A notifier holds no connection."""
        pickle.loads(pickle.dumps(notifier)).notify(event("succeeded"), timeout=10)
        assert 1 == len(received())

    def test_a_failure_is_told(self, broken: Notifier) -> None:
        """What cannot be delivered raises NotifyError within the time allowed, and the message has no secret."""
        began = time.monotonic()
        with no_thread_left(), pytest.raises(NotifyError) as caught:
            broken.notify(event("failed"), timeout=2)
        assert time.monotonic() - began < 10
        assert str(caught.value)
        for field in attrs.fields(type(broken)):
            value = getattr(broken, field.name)
            if isinstance(value, Secret) and value:
                assert value.reveal() not in str(caught.value)
                assert value.reveal() not in repr(caught.value.__cause__)


WHEN = datetime(2026, 11, 22, 8, tzinfo=UTC)
TEXT = "3 backups <in> 2 stores & 한국어"
OFFLINE = "s3://my-backups: it is offline."
STORES = (StoreOutcome(label="/var/backups/pgsnap"), StoreOutcome(label="s3://my-backups", error=OFFLINE))


def event(kind: Kind) -> Event:
    """Return an event to deliver, with all that its kind may have."""
    more: dict[str, Any] = {}
    if issubclass(EVENTS[kind], Finished):
        more = {"started": WHEN, "ended": WHEN + timedelta(seconds=192), "log": "2026-11-22 08:00:00 info    it begins\n"}
        more |= {"size": 4_200_000_000, "stored_size": 900_000_000, "last_size": 4_100_000_000, "last_stored_size": 880_000_000}
        more |= {"stores": STORES[:1] if kind == "succeeded" else STORES, "notes": ("a note",)}
        more |= {} if kind == "succeeded" else {"cause": OFFLINE, "next_step": "pgsnap copy shop"}
    elif kind == "drilled":
        more = {"started": WHEN, "ended": WHEN + timedelta(seconds=60), "checks": (("tables", "42"),)}
    elif kind == "pruned":
        more = {"store": "/var/backups/pgsnap", "deleted": ("20261115T080000Z-4f3a",), "kept": 7, "size": 900_000_000}
    elif kind == "verified":
        more = {"stores": STORES, "size": 900_000_000, "next_step": "pgsnap copy shop"}
    elif kind == "summary":
        more = {"stores": (StoreSummary(label="/var/backups/pgsnap", count=7, size=1, newest=WHEN, proved=WHEN),), "count": 7}
    return EVENTS[kind](pipeline="shop", id="20261122T080000Z-4f3a", time=WHEN, text=TEXT, **more)
