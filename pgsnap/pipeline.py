"""The class that Python users hold: what a pipeline is (``operations.spec``), and one short method a verb.

A verb is imported when it is called, so that a pipeline can be described, pickled and sent elsewhere without its machinery.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import attrs

from pgsnap.components.contracts import RestoreRequest
from pgsnap.components.events import Event
from pgsnap.components.run import Progress, Run
from pgsnap.components.values import Finding, Secret
from pgsnap.operations.reports import BackupReport, CopyReport, MarkReport, PruneReport, RestoreReport, VerifyReport
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.catalog import Catalog

if TYPE_CHECKING:
    from pgsnap.operations.status import PipelineStatus

__all__ = ["Pipeline"]


@attrs.frozen(kw_only=True)
class Pipeline(PipelineSpec):
    __doc__ = PipelineSpec.__doc__

    def backup(self, *, progress: Progress | None = None, now: datetime | None = None) -> BackupReport:
        """Back up once; see ``pgsnap.operations.backup.backup``."""
        from pgsnap.operations.backup import backup

        return backup(self, progress=progress, now=now)

    def backups(self) -> Catalog:
        """Return what backups there are; see ``pgsnap.repository.catalog.Catalog``."""
        return Catalog.read(self.name, self.time_limited.stores)

    def restore(
        self,
        backup: str = "latest",
        *,
        to: str | Secret,
        tables: Sequence[str] = (),
        schemas: Sequence[str] = (),
        sections: Sequence[str] = (),
        jobs: int = 1,
        globals: bool = True,
        owners: bool = True,
        force: bool = False,
        progress: Progress | None = None,
    ) -> RestoreReport:
        """Restore a backup into the database that the URL ``to`` names; the options are those of ``RestoreRequest``."""
        from pgsnap.operations.restore import restore

        request = RestoreRequest(
            target=Secret(to),
            tables=tuple(tables),
            schemas=tuple(schemas),
            sections=tuple(sections),
            jobs=jobs,
            globals=globals,
            owners=owners,
            force=force,
        )
        return restore(self, request, backup=backup, progress=progress)

    def verify(
        self,
        backup: str = "latest",
        *,
        decode: bool = False,
        record: bool = True,
        notify: bool = False,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Check every byte of a backup in every store; see ``pgsnap.operations.verify.verify``."""
        from pgsnap.operations.verify import verify

        return verify(self, backup=backup, decode=decode, record=record, notify=notify, progress=progress)

    def notify(self, event: Event) -> tuple[str, ...]:
        """Tell an event to the notifiers that want it; return what failed, a sentence each. See ``operations.notify.notify``."""
        from pgsnap.operations.notify import notify

        return notify(self, event)

    def repair(
        self,
        backup: str = "latest",
        *,
        decode: bool = False,
        record: bool = True,
        notify: bool = False,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Verify a backup, and replace what is damaged in one store by what is good in another."""
        from pgsnap.operations.repair import repair

        return repair(self, backup=backup, decode=decode, record=record, notify=notify, progress=progress)

    def copy(self, *, to: str | None = None, backups: Sequence[str] = (), progress: Progress | None = None) -> CopyReport:
        """Bring stores up to date from each other; see ``pgsnap.operations.copy.copy``."""
        from pgsnap.operations.copy import copy

        return copy(self, to=to, backups=backups, progress=progress)

    def prune(
        self,
        *,
        dry_run: bool = False,
        stores: Collection[int] | None = None,
        now: datetime | None = None,
        progress: Progress | None = None,
    ) -> PruneReport:
        """Delete what the policies do not keep, and what unfinished runs have left; see ``pgsnap.operations.prune.prune``."""
        from pgsnap.operations.prune import prune

        return prune(self, dry_run=dry_run, stores=stores, now=now, progress=progress)

    def status(self, *, max_age: float | None = None, now: datetime | None = None) -> PipelineStatus:
        """Say what the stores really hold; see ``pgsnap.operations.status.status``."""
        from pgsnap.operations.status import status

        return status(self, max_age=max_age, now=now)

    def acknowledge(self, backup: str) -> MarkReport:
        """Say that somebody has looked at a suspect backup; see ``pgsnap.operations.marks.acknowledge``."""
        from pgsnap.operations.marks import acknowledge

        return acknowledge(self, backup)

    def hold(self, backup: str) -> MarkReport:
        """Let nothing delete a backup; see ``pgsnap.operations.marks.hold``."""
        from pgsnap.operations.marks import hold

        return hold(self, backup)

    def release(self, backup: str) -> MarkReport:
        """End a hold; see ``pgsnap.operations.marks.release``."""
        from pgsnap.operations.marks import release

        return release(self, backup)

    def delete(self, backup: str) -> MarkReport:
        """Delete one backup from all stores; see ``pgsnap.operations.marks.delete``."""
        from pgsnap.operations.marks import delete

        return delete(self, backup)

    def preflight(self) -> list[Finding]:
        """Ask every component what would fail if a backup started now. Connects, and changes nothing."""
        run = Run(self.name)
        run.encrypted = any(transform.encrypts for transform in self.transforms)
        return [finding for component in self.time_limited.components for finding in component.preflight(run)]

    def examine(self) -> list[Finding]:
        """Try out every store: write, read, list, abort and delete in a folder of its own; see ``operations.doctor.examine``."""
        from pgsnap.operations.doctor import examine

        run = Run(self.name, timeout=self.timeout)
        with run.watched():
            return [finding for store in self.time_limited.stores for finding in examine(store, run)]
