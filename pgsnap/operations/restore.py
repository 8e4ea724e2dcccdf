"""A restore: a committed backup, read verified from whichever store has it, handed to the dumper that made it."""

from __future__ import annotations

from datetime import UTC, datetime

from pgsnap.components.contracts import Dumper, RestoreRequest
from pgsnap.components.registry import Registry
from pgsnap.components.run import Progress, Run
from pgsnap.errors import PluginError
from pgsnap.operations.reports import RestoreReport
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.catalog import Catalog
from pgsnap.repository.manifest import Manifest
from pgsnap.repository.source import BackupSource
from pgsnap.repository.stages import finder

__all__ = ["dumper_of", "open_source", "restore"]


def restore(
    pipeline: PipelineSpec, request: RestoreRequest, *, backup: str = "latest", progress: Progress | None = None
) -> RestoreReport:
    """Restore one backup of a pipeline; which one as in ``Catalog.find``.

    Raises:
        NotFound: there is no such backup.
        RestoreError: the target refused; it is as it was before.
        IntegrityError: no store holds the backup undamaged; the target is as it was before.
    """
    started = datetime.now(UTC)
    run = Run(pipeline.name, timeout=pipeline.timeout)
    if progress is not None:
        run.progress = progress
    source, notes = open_source(pipeline, backup, run)
    run.id = source.id
    dumper = dumper_of(pipeline, source.manifest)
    with run.watched():
        dumper.restore(source, request, run)
    return RestoreReport(
        pipeline=pipeline.name,
        id=source.id,
        target=dumper.describe(request),
        started=started,
        ended=datetime.now(UTC),
        notes=tuple(notes),
    )


def open_source(pipeline: PipelineSpec, backup: str, run: Run) -> tuple[BackupSource, list[str]]:
    """Return a backup to read from, and the list into which each change of store is noted."""
    pipeline = pipeline.time_limited
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        run.log.warning("%s", text)

    for error in catalog.failures.values():
        note(f"{error} Reading from the other stores.")
    found = catalog.find(backup)
    source = BackupSource(
        manifest=catalog.manifest(found),
        stores=[pipeline.stores[number] for number in found.stores],
        find=finder(pipeline.transforms, None),
        note=note,
        progress=run.progress,
    )
    return source, notes


def dumper_of(pipeline: PipelineSpec, manifest: Manifest) -> Dumper:
    """Return the dumper that understands a backup: the pipeline's if it made it, else the registry's with its defaults."""
    if pipeline.dump.name == manifest.dumper.name:
        return pipeline.dump
    component = Registry.load().get("dump", manifest.dumper.name)
    if not issubclass(component, Dumper):
        raise PluginError(f"{manifest.dumper.name!r} is not a dumper.")
    return component()
