"""What a person says of a backup: acknowledged, held, to be deleted. Small objects beside the manifest; nothing is rewritten.

A mark goes to every store that holds the backup, and one store that has it is enough for it to count.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.errors import ConfigError, PgsnapError, StoreError
from pgsnap.operations.prune import delete_backups
from pgsnap.operations.reports import MarkReport
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.catalog import Backup, Catalog, scan
from pgsnap.repository.lease import lease
from pgsnap.repository.manifest import ACK, HELD, folder

__all__ = ["acknowledge", "delete", "hold", "release"]


def acknowledge(pipeline: PipelineSpec, backup: str) -> MarkReport:
    """Say that somebody has looked at a backup that is suspect or failed a proof. A suspect one counts as good from now on, and
    what comes is measured by it; one that failed a proof does not count, but no longer freezes pruning.

    Raises:
        NotFound, ConfigError: there is no such backup, or it is not clear which.
        StoreError: no store could be written.
    """
    return _each(pipeline, backup, lambda store, found: _put(store, pipeline.name, found.id, ACK))


def hold(pipeline: PipelineSpec, backup: str) -> MarkReport:
    """Let nothing delete a backup until it is released. Under the lease, so that no prune has decided otherwise a moment ago.

    Raises:
        BusyError: a prune or a copy is at work.
        Otherwise as ``acknowledge`` does.
    """
    run = Run(pipeline.name, timeout=pipeline.timeout)

    def work(store: Store, found: Backup) -> None:
        with lease(store, pipeline.name, "hold", run):
            _put(store, pipeline.name, found.id, HELD)

    return _each(pipeline, backup, work)


def release(pipeline: PipelineSpec, backup: str) -> MarkReport:
    """End a hold; raises as ``acknowledge`` does."""

    def work(store: Store, found: Backup) -> None:
        key = f"{folder(pipeline.name, found.id)}{HELD}"
        if refused := store.delete([key]):
            raise StoreError(f"{store.label}: {key} could not be deleted: {refused[key]}", store.label)

    return _each(pipeline, backup, work)


def delete(pipeline: PipelineSpec, backup: str) -> MarkReport:
    """Delete one backup from all stores, whatever the policy says; the floor of good ones stands.

    Raises:
        ConfigError: it is held, or one of the newest ``min_good`` good ones of a store.
        BusyError: a prune or a copy is at work.
        Otherwise as ``acknowledge`` does.
    """
    pipeline = pipeline.time_limited
    run = Run(pipeline.name, timeout=pipeline.timeout)
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    found = catalog.find(backup)
    if found.held:
        raise ConfigError(f"{found.id} is held and was not deleted; release it first: pgsnap release {found.id}")
    for number in found.stores:
        floor = pipeline.floor(pipeline.stores[number])
        good = [c.id for c in catalog.candidates(number) if not c.defect]
        if found.id in good[-floor:]:
            raise ConfigError(
                f"{found.id} is one of the newest {floor} good backups in {pipeline.stores[number].label} and was not deleted; "
                "make new ones first, or lower keep.min_good."
            )

    def work(store: Store, found: Backup) -> None:
        with lease(store, pipeline.name, "delete", run):
            stored = scan(store, pipeline.name).get(found.id)
            if stored is None:
                return
            if stored.held:
                raise StoreError(f"{store.label}: {found.id} has been held in the meantime and was not deleted.", store.label)
            _, refused = delete_backups(store, pipeline.name, [stored], run)
        for key, reason in refused.items():
            raise StoreError(f"{store.label}: {key} could not be deleted: {reason}", store.label)

    with run.watched():
        return _each(pipeline, found.id, work)


def _put(store: Store, pipeline: str, id: str, name: str) -> None:
    key = f"{folder(pipeline, id)}{name}"
    document = {"id": id, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    store.write(key, (json.dumps(document).encode() + b"\n",))
    stored = scan(store, pipeline).get(id)
    if stored is None or not stored.committed:
        store.delete([key])
        raise StoreError(f"{store.label}: {id} was deleted in this moment.", store.label)


def _each(pipeline: PipelineSpec, backup: str, work: Callable[[Store, Backup], None]) -> MarkReport:
    """Do something in each store that holds a backup; raise only if it was done nowhere."""
    pipeline = pipeline.time_limited
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    found = catalog.find(backup)
    labels: list[str] = []
    errors: list[PgsnapError] = list(catalog.failures.values())
    for number in found.stores:
        try:
            work(pipeline.stores[number], found)
        except PgsnapError as error:
            errors.append(error)
        else:
            labels.append(pipeline.stores[number].label)
    if not labels:
        raise errors[-1] if errors else StoreError(f"no store holds {found.id}.")
    return MarkReport(pipeline=pipeline.name, id=found.id, labels=tuple(labels), errors=tuple(str(error) for error in errors))
