"""Verification: is every byte of a backup still what was written, in every store that holds it?"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pgsnap.blocks import read_file, read_objects
from pgsnap.catalog import Backup, Catalog, load_manifest
from pgsnap.components import Store
from pgsnap.errors import IntegrityError, ManifestError, PgsnapError, StoreError
from pgsnap.manifest import Manifest, folder
from pgsnap.reports import VerifyReport
from pgsnap.run import Progress, Run
from pgsnap.source import BackupSource
from pgsnap.stages import finder
from pgsnap.streams import drain

if TYPE_CHECKING:
    from pgsnap.pipeline import Pipeline

__all__ = ["verify"]


def verify(pipeline: Pipeline, *, backup: str = "latest", decode: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Read one backup in each of its stores and compare it with the manifest. Holds one block; changes nothing.

    Args:
        decode: Run the transforms backwards too and check the plain bytes; needs the keys.

    Raises:
        NotFound: there is no such backup.
        StoreError: no store can be listed.
    """
    run = Run(pipeline.name, timeout=pipeline.timeout)
    if progress is not None:
        run.progress = progress
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    problems: dict[str, tuple[str, ...]] = {
        pipeline.stores[number].label: (str(error),) for number, error in catalog.failures.items()
    }
    found = catalog.find(backup)
    run.id = found.id
    read = 0
    with run.watched():
        for number in found.stores:
            store = pipeline.stores[number]
            seen, size = _verify_in(store, pipeline, found, decode, run)
            read += size
            problems[store.label] = seen
        try:
            catalog.manifest(found)
        except IntegrityError as error:
            problems = {label: (*seen, str(error)) for label, seen in problems.items()}
        except PgsnapError:
            pass  # told above, for each store
    return VerifyReport(pipeline=pipeline.name, id=found.id, problems=problems, decoded=decode, size=read)


def _verify_in(store: Store, pipeline: Pipeline, found: Backup, decode: bool, run: Run) -> tuple[tuple[str, ...], int]:
    """Return what is wrong with a backup in one store, and the bytes read."""
    try:
        manifest = load_manifest([store], pipeline.name, found.id)
    except (ManifestError, StoreError) as error:
        return (str(error),), 0
    problems = list(_damage(store, manifest, run))
    if decode and not problems:
        source = BackupSource(manifest=manifest, stores=[store], find=finder(pipeline.transforms, None), note=lambda _: None)
        for name in source.artifacts:
            with contextlib.closing(source.open(name)) as stream:
                try:
                    drain(stream)
                except IntegrityError as error:
                    problems.append(str(error))
    return tuple(problems), manifest.stored_size


def _damage(store: Store, manifest: Manifest, run: Run) -> list[str]:
    prefix = folder(manifest.pipeline, manifest.id)
    problems = []
    for record in manifest.artifacts:
        for item in record.objects:
            done = 0
            with contextlib.closing(read_objects([store], prefix, [item], manifest.block)) as stream:
                try:
                    for chunk in stream:
                        done += len(chunk)
                        run.check()
                        run.progress(f"{store.label} {item.key}", done, item.size)
                except (IntegrityError, StoreError) as error:
                    problems.append(str(error))
    for file in manifest.files:
        try:
            read_file(store, prefix, file)
        except (IntegrityError, StoreError) as error:
            problems.append(str(error))
    return problems
