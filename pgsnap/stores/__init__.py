"""The two stores of the core: a local directory, and whatever fsspec can reach."""

from __future__ import annotations

from pgsnap.stores.fsspec import FsspecStore
from pgsnap.stores.local import LocalStore

__all__ = ["FsspecStore", "LocalStore"]
