"""A notifier that keeps what it is told."""

from __future__ import annotations

from typing import ClassVar

import attrs

from pgsnap import Notifier, NotifyError
from pgsnap.components import Event
from pgsnap.components.events import KINDS, Kind


@attrs.frozen(kw_only=True)
class Remember(Notifier):
    """Hears of everything unless ``on`` says what; keeps it in ``events``, and then fails if it shall ``fail``."""

    name: ClassVar[str] = "remember"
    on: tuple[Kind, ...] = KINDS
    events: list[Event] = attrs.field(factory=list)
    fail: bool = False

    def notify(self, event: Event, *, timeout: float) -> None:
        self.events.append(event)
        if self.fail:
            raise NotifyError("nobody answers.")
