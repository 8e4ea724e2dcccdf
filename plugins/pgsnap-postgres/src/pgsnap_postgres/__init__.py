"""PostgreSQL for pgsnap: the dumper ``pg_dump``, and throwaway servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pgsnap import hookimpl

if TYPE_CHECKING:
    from pgsnap import Dumper
    from pgsnap_postgres.dumper import PgDump

__all__ = ["PgDump", "pgsnap_dumpers"]


@hookimpl
def pgsnap_dumpers() -> Sequence[type[Dumper]]:
    """Give the dumper ``pg_dump``."""
    from pgsnap_postgres.dumper import PgDump

    return [PgDump]


def __getattr__(name: str) -> object:
    if name != "PgDump":
        raise AttributeError(f"module 'pgsnap_postgres' has no attribute {name!r}")
    from pgsnap_postgres.dumper import PgDump

    return PgDump
