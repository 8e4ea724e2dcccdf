"""Catch-up: a store that missed backups gets them from a store that has them, block by verified block, without a dump."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.run import Progress, Run
from pgsnap.errors import BusyError, Denied, IntegrityError, PgsnapError, StoreError
from pgsnap.operations.reports import CopyReport
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.blocks import read_file, read_objects
from pgsnap.repository.catalog import Backup, Catalog
from pgsnap.repository.lease import lease
from pgsnap.repository.manifest import MANIFEST, FileRecord, Manifest, ObjectRecord, folder
from pgsnap.repository.store_set import StoreSet
from pgsnap.streams import Stream, drain

__all__ = ["check_object", "copy", "copy_missing", "read_item"]


def copy(
    pipeline: PipelineSpec, *, to: str | None = None, backups: Sequence[str] = (), progress: Progress | None = None
) -> CopyReport:
    """Copy the backups that a store lacks from those that have them, the newest first. Holds a few blocks.

    What lies there already is read and checked, and used if it is good. The manifest is written last, as in a backup.

    Args:
        to: The label (or URL) of one store; None: every store of the pipeline.
        backups: Ids (or what ``Catalog.find`` takes); empty: all.

    Raises:
        ConfigError: no store has that label.
        StoreError: no store can be listed.
    """
    pipeline = pipeline.time_limited
    run = Run(pipeline.name, timeout=pipeline.timeout)
    if progress is not None:
        run.progress = progress
    targets = list(range(len(pipeline.stores))) if to is None else [pipeline.position(to)]
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    chosen = [catalog.find(which) for which in backups] if backups else list(reversed(catalog.backups))
    wanted = {n: [b for b in chosen if n not in b.stores] for n in targets if n not in catalog.failures}
    with run.watched():
        report = copy_missing(pipeline, catalog, wanted, run)
    copied = {pipeline.stores[n].label: report.copied.get(pipeline.stores[n].label, ()) for n in targets}
    failures = tuple(str(error) for error in catalog.failures.values())
    return attrs.evolve(report, copied=copied, errors=failures + report.errors)


def copy_missing(pipeline: PipelineSpec, catalog: Catalog, wanted: Mapping[int, Sequence[Backup]], run: Run) -> CopyReport:
    """Copy to each store (by position) the backups that it lacks, in that order; one that fails is left for the next store.

    Raises:
        Aborted: the run was stopped; what was copied by then stays.
    """
    copied: dict[str, list[str]] = {pipeline.stores[number].label: [] for number in wanted}
    errors = []
    busy = False
    for number, missing in wanted.items():
        store = pipeline.stores[number]
        if not missing:
            continue
        try:
            with lease(store, pipeline.name, "copy", run):
                for backup in missing:
                    try:
                        _copy_one(pipeline, catalog, backup, number, run)
                    except PgsnapError as error:
                        run.check()
                        errors.append(f"{backup.id} to {store.label}: {error}")
                        if isinstance(error, StoreError):
                            break  # this store is failing: the next backup would fail alike
                    else:
                        copied[store.label].append(backup.id)
        except (BusyError, StoreError) as error:
            run.check()
            busy = busy or isinstance(error, BusyError)
            errors.append(str(error))
    return CopyReport(
        pipeline=pipeline.name, copied={label: tuple(ids) for label, ids in copied.items()}, errors=tuple(errors), busy=busy
    )


def _copy_one(pipeline: PipelineSpec, catalog: Catalog, backup: Backup, number: int, run: Run) -> None:
    manifest, text = catalog.manifest_text(backup)
    sources = [pipeline.stores[n] for n in backup.stores]
    target = StoreSet([pipeline.stores[number]], run, pipeline.limits)
    prefix = folder(pipeline.name, backup.id)
    present = catalog.scans[number].get(backup.id)
    sizes = {key: entry.size for key, entry in present.entries.items()} if present else {}
    written: list[str] = []
    try:
        for item in manifest.contents:
            if sizes.get(item.key) == item.size and check_object(pipeline.stores[number], prefix, item, manifest) is None:
                run.log.info("%s: %s is there already", target.stores[0].label, item.key)
                continue
            written.append(f"{prefix}{item.key}")
            stored = target.write(written[-1], read_item(sources, prefix, item, manifest, run), name=item.key, expected=item.size)
            if stored.sha256 != item.sha256:
                raise IntegrityError(f"{prefix}{item.key} is not what the manifest says, in any store.")
        _look_again(target, prefix, manifest)
        written.append(f"{prefix}{MANIFEST}")
        target.write(written[-1], (text,), name=MANIFEST)
    except BaseException:
        target.remove(written, [0])
        raise
    run.log.info("%s: %s was copied to %s", pipeline.name, backup.id, target.stores[0].label)


def _look_again(target: StoreSet, prefix: str, manifest: Manifest) -> None:
    """Raise StoreError unless the store lists all objects with their sizes; a key that must not list cannot be asked."""
    found = target.each(lambda store: {entry.key: entry.size for entry in store.entries(prefix)})[0]
    if isinstance(found, Denied):
        return
    if isinstance(found, PgsnapError):
        raise found
    for item in manifest.contents:
        if found.get(f"{prefix}{item.key}") != item.size:
            label = target.stores[0].label
            raise StoreError(f"{label}: {prefix}{item.key} was copied, and the store does not list it with its size.", label)


def read_item(sources: Sequence[Store], prefix: str, item: FileRecord, manifest: Manifest, run: Run) -> Stream:
    """Yield an object or a small file from the first of the stores that has it undamaged, verified."""
    if isinstance(item, ObjectRecord):
        yield from read_objects(sources, prefix, [item], manifest.block, lambda text: run.log.warning("%s", text))
        return
    failures: list[str] = []
    for store in sources:
        try:
            yield read_file(store, prefix, item)
            return
        except (StoreError, IntegrityError) as error:
            failures.append(str(error))
    raise IntegrityError(" ".join(failures))


def check_object(store: Store, prefix: str, item: FileRecord, manifest: Manifest) -> PgsnapError | None:
    """Read an object or a small file; return None if it is what the manifest says, else what is wrong with it."""
    try:
        if isinstance(item, ObjectRecord):
            drain(read_objects([store], prefix, [item], manifest.block))
        else:
            read_file(store, prefix, item)
    except (StoreError, IntegrityError) as error:
        return error
    return None
