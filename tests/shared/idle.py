"""Components that are made and never used: a test of what makes them gives them a name and options."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import attrs

from pgsnap import Dump, Dumper, Facts, Notifier, RestoreRequest, Run, Source, Transform
from pgsnap.components.events import Event
from pgsnap.streams import Chunks, Stream


@attrs.frozen(kw_only=True)
class IdleDumper(Dumper):
    """Dumps nothing."""

    def dump(self, run: Run) -> AbstractContextManager[Dump]:
        raise NotImplementedError

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        raise NotImplementedError

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class IdleTransform(Transform):
    """Changes nothing."""

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        raise NotImplementedError

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class IdleNotifier(Notifier):
    """Tells nobody."""

    def notify(self, event: Event, *, timeout: float) -> None:
        raise NotImplementedError
