"""What every notifier must do, as tests to inherit."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import attrs
import pytest

from pgsnap.components import Component, Notifier
from pgsnap.errors import NotifyError
from pgsnap.events import KINDS, Event, Kind
from pgsnap.testing.component import ComponentConformance
from pgsnap.testing.sources import no_thread_left
from pgsnap.types import Secret

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
        assert "3 backups <in> 2 stores & 한국어" in text

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


def event(kind: Kind) -> Event:
    """Return an event to deliver."""
    return Event(
        kind=kind,
        pipeline="shop",
        id="20261122T080000Z-4f3a",
        time=datetime(2026, 11, 22, 8, tzinfo=UTC),
        text="3 backups <in> 2 stores & 한국어",
    )
