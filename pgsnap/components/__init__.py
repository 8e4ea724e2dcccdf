"""What plugins are written against: the four kinds, their values, runs and events, hooks and the registry. It knows no manifest.

To read: ``contracts``, ``values``, ``run``, ``events``; then how a plugin gives its classes: ``hookspecs``, ``registry``. This
module is what authors of plugins import, with ``pgsnap.streams``.
"""

from __future__ import annotations

from pgsnap.components.contracts import (
    Artifact,
    Component,
    Dump,
    Dumper,
    Notifier,
    RestoreRequest,
    Source,
    Store,
    Transform,
    check_on,
)
from pgsnap.components.delivery import deliver
from pgsnap.components.events import (
    Drilled,
    Event,
    Failed,
    Finished,
    Partial,
    Pruned,
    Started,
    StoreOutcome,
    StoreSummary,
    Succeeded,
    Summary,
    Suspect,
    TestMessage,
    Verified,
    clip,
    one_line,
)
from pgsnap.components.run import Run
from pgsnap.components.values import Entry, Facts, Finding, RetentionPolicy, Secret, escape_name, format_duration, format_size

__all__ = [
    "Artifact",
    "Component",
    "Drilled",
    "Dump",
    "Dumper",
    "Entry",
    "Event",
    "Facts",
    "Failed",
    "Finding",
    "Finished",
    "Notifier",
    "Partial",
    "Pruned",
    "RestoreRequest",
    "RetentionPolicy",
    "Run",
    "Secret",
    "Source",
    "Started",
    "Store",
    "StoreOutcome",
    "StoreSummary",
    "Succeeded",
    "Summary",
    "Suspect",
    "TestMessage",
    "Transform",
    "Verified",
    "check_on",
    "clip",
    "deliver",
    "escape_name",
    "format_duration",
    "format_size",
    "one_line",
]
