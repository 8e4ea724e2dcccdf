"""The hooks by which a package gives its components to pgsnap.

A plugin is a module named by an entry point of the group ``pgsnap``. It implements any of these with ``@pgsnap.hookimpl`` and
returns classes, not objects: what the options are is decided by the person who configures a pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from pgsnap.components.contracts import Dumper, Notifier, Store, Transform

__all__ = ["GROUP", "hookimpl"]

GROUP = "pgsnap"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks the functions of a plugin that implement a hook."""


@hookspec
def pgsnap_dumpers() -> Sequence[type[Dumper]]:  # type: ignore[empty-body]
    """Return the classes that dump and restore a database."""


@hookspec
def pgsnap_transforms() -> Sequence[type[Transform]]:  # type: ignore[empty-body]
    """Return the classes that compress, encrypt or checksum a stream."""


@hookspec
def pgsnap_stores() -> Sequence[type[Store]]:  # type: ignore[empty-body]
    """Return the classes that keep objects; their ``schemes`` say which URLs they serve."""


@hookspec
def pgsnap_notifiers() -> Sequence[type[Notifier]]:  # type: ignore[empty-body]
    """Return the classes that deliver events to people."""
