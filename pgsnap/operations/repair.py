"""Healing: what is damaged in one store is replaced by what another store holds undamaged, never the other way round.

What is good is decided by digests alone: those in the manifest for every object and file, and for the manifest itself the
agreement of all stores that can be read. Which of two manifests is right is nothing that a machine should decide.
"""

from __future__ import annotations

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.run import Progress, Run
from pgsnap.errors import IntegrityError, ManifestError, NotFound, PgsnapError, StoreError
from pgsnap.operations.copy import check_object, read_item
from pgsnap.operations.reports import VerifyReport
from pgsnap.operations.spec import PipelineSpec
from pgsnap.operations.verify import notify_result, verify
from pgsnap.repository.catalog import Backup, Catalog, load_manifest_text, read_bounded
from pgsnap.repository.manifest import MANIFEST, folder
from pgsnap.repository.store_set import StoreSet

__all__ = ["repair"]


def repair(
    pipeline: PipelineSpec,
    *,
    backup: str = "latest",
    decode: bool = False,
    record: bool = True,
    notify: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Verify one backup in each of its stores; where it is damaged, replace what is, and verify again.

    An object is replaced by a stream of verified blocks, and the old one stays until the new one is whole. What no store holds
    undamaged stays as it is. With ``notify`` the pipeline's notifiers are told of the result.

    Returns:
        The report of the last verification; ``repaired`` has what was replaced.

    Raises:
        NotFound: there is no such backup.
        StoreError: no store can be listed.
    """
    report = _repaired(pipeline.time_limited, backup, decode, record, progress)
    return notify_result(pipeline, report) if notify else report


def _repaired(pipeline: PipelineSpec, backup: str, decode: bool, record: bool, progress: Progress | None) -> VerifyReport:
    first = verify(pipeline, backup=backup, decode=decode, record=record, progress=progress)
    if first.ok:
        return first
    run = Run(pipeline.name, first.id, timeout=pipeline.timeout)
    if progress is not None:
        run.progress = progress
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    found = catalog.find(first.id)
    repaired: dict[str, tuple[str, ...]] = {}
    failures: dict[str, list[str]] = {}
    with run.watched():
        for number in found.stores:
            label = pipeline.stores[number].label
            if not first.problems.get(label):
                continue
            keys: list[str] = []
            try:
                _heal(pipeline, found, number, keys, run)
            except PgsnapError as error:
                run.check()
                failures.setdefault(label, []).append(f"{label}: it could not be repaired. {error}")
            repaired[label] = tuple(keys)
    if not any(repaired.values()):
        problems = {label: (*seen, *failures.get(label, ())) for label, seen in first.problems.items()}
        return attrs.evolve(first, problems=problems)
    return attrs.evolve(verify(pipeline, backup=first.id, decode=decode, record=record, progress=progress), repaired=repaired)


def _heal(pipeline: PipelineSpec, found: Backup, number: int, keys: list[str], run: Run) -> None:
    """Replace what is damaged in one store; put the keys of what was replaced into ``keys``."""
    store = pipeline.stores[number]
    others = [pipeline.stores[n] for n in found.stores if n != number]
    if not others:
        raise StoreError("no other store holds this backup.")
    prefix = folder(pipeline.name, found.id)
    target = StoreSet([store], run, pipeline.limits)
    manifest, text = load_manifest_text([store, *others], pipeline.name, found.id)  # raises if they differ
    failures = []
    for item in manifest.contents:
        wrong = check_object(store, prefix, item, manifest)
        if wrong is None:
            continue
        if not isinstance(wrong, (IntegrityError, NotFound)):
            raise wrong  # it cannot be read now, which is no proof of damage
        try:
            content = read_item(others, prefix, item, manifest, run)
            target.write(f"{prefix}{item.key}", content, name=item.key, expected=item.size)
        except PgsnapError as error:
            run.check()
            failures.append(str(error))
            target = StoreSet([store], run, pipeline.limits)
        else:
            keys.append(item.key)
            run.log.warning("%s: %s%s was damaged and is replaced", store.label, prefix, item.key)
    if not _holds(store, f"{prefix}{MANIFEST}", text):
        target.write(f"{prefix}{MANIFEST}", (text,), name=MANIFEST)
        keys.append(MANIFEST)
    if failures:
        raise IntegrityError(" ".join(failures))


def _holds(store: Store, key: str, content: bytes) -> bool:
    try:
        return read_bounded(store, key, len(content)) == content
    except (NotFound, ManifestError):
        return False
