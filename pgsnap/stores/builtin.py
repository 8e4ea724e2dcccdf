"""The components that come with the core, given by the same hooks that every plugin uses."""

from __future__ import annotations

from collections.abc import Sequence

from pgsnap.components.contracts import Store
from pgsnap.components.hookspecs import hookimpl

__all__ = ["pgsnap_stores"]


@hookimpl
def pgsnap_stores() -> Sequence[type[Store]]:
    """Return the local store and the general fsspec store."""
    from pgsnap.stores import FsspecStore, LocalStore

    return [LocalStore, FsspecStore]
