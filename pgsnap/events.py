"""What a run tells the people who watch it: one event per milestone, handed to the notifiers of a pipeline."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

import attrs

__all__ = ["KINDS", "Event", "Kind"]

Kind: TypeAlias = Literal["started", "succeeded", "partial", "failed"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@attrs.frozen(kw_only=True)
class Event:
    """One milestone of a run.

    ``kind`` is ``started``, ``succeeded``, ``partial`` (done, but a store was lost or the quorum missed) or ``failed``;
    ``time`` is UTC; ``text`` is one sentence for a person, free of secrets; ``report`` is the run's report, once there is
    one.
    """

    kind: Kind
    pipeline: str
    id: str
    time: datetime
    text: str
    report: Any = None
