"""The dumper ``pg_dump``: its options (``options``), and one short method for each thing that it does.

A dump is taken by PostgreSQL's own pg_dump inside a snapshot that pgsnap exports and holds (``dump``), and restored by pg_restore
or psql (``restore``). The work is imported when it is wanted, so that a configuration is read without psycopg.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs

from pgsnap import Dump, Facts, Finding, RestoreRequest, Run, Source
from pgsnap_postgres.options import DumpOptions

__all__ = ["PgDump"]


@attrs.frozen(kw_only=True)
class PgDump(DumpOptions):
    __doc__ = DumpOptions.__doc__

    @contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        """Hold a snapshot and give the artifacts ``<database>.dump`` (or ``.sql``), ``database.sql`` and ``globals.sql``."""
        from pgsnap_postgres.dump.dump import dump

        with dump(self, run) as taken:
            yield taken

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        """Restore into a new database that is renamed at the end, or into an empty one."""
        from pgsnap_postgres.restore.restore import restore

        restore(self, source, request, run)

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        """Return the pg_restore or psql lines for RECOVER.txt."""
        from pgsnap_postgres.dump.recipe import recipe

        return recipe(artifacts, facts)

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Connect, and look for what would make a dump fail or be incomplete."""
        from pgsnap_postgres.dump.preflight import preflight

        return preflight(self, run)

    def describe(self, request: RestoreRequest) -> str:
        """Return the target as ``shop at db.example.com:5432 as app``, with what the ``PG*`` variables add."""
        from pgsnap_postgres.connection.url import parse_url

        return parse_url(request.target).describe()
