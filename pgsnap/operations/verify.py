"""Verification: is every byte of a backup still what was written, in every store that holds it?"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.events import StoreOutcome, Verified
from pgsnap.components.run import Progress, Run
from pgsnap.errors import Denied, IntegrityError, ManifestError, PgsnapError, StoreError
from pgsnap.operations.notify import notify
from pgsnap.operations.reports import VerifyReport
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.blocks import read_file, read_objects
from pgsnap.repository.catalog import Backup, Catalog, StoredBackup, load_manifest, proof_key
from pgsnap.repository.manifest import Manifest, NewerFormat, folder
from pgsnap.repository.source import BackupSource
from pgsnap.repository.stages import finder
from pgsnap.streams import drain

__all__ = ["notify_result", "verify"]


def verify(
    pipeline: PipelineSpec,
    *,
    backup: str = "latest",
    decode: bool = False,
    record: bool = True,
    notify: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Read one backup in each of its stores and compare it with the manifest. Holds one block.

    Args:
        decode: Run the transforms backwards too and check the plain bytes; needs the keys.
        record: Write the result beside the manifest, so that a damaged copy no longer counts as good. A store that does not
            allow it is left as it is; so is one that could not be read, since that says nothing about the copy.
        notify: Tell the pipeline's notifiers of the result.

    Raises:
        NotFound: there is no such backup.
        StoreError: no store can be listed.
    """
    pipeline = pipeline.time_limited
    run = Run(pipeline.name, timeout=pipeline.timeout)
    if progress is not None:
        run.progress = progress
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    problems: dict[str, tuple[str, ...]] = {
        pipeline.stores[number].label: (str(error),) for number, error in catalog.failures.items()
    }
    unread = list(problems)
    found = catalog.find(backup)
    run.id = found.id
    read = 0
    with run.watched():
        for number in found.stores:
            store = pipeline.stores[number]
            seen, undecoded, size = _verify_in(store, pipeline, found, decode, run)
            read += size
            problems[store.label] = (*map(str, seen), *undecoded)
            if seen and all(map(_says_nothing, seen)):
                unread.append(store.label)
            if record and not undecoded and not any(map(_says_nothing, seen)):  # a wrong key is no damage
                _record(store, pipeline.name, found.stores[number], ok=not seen, run=run)
        try:
            catalog.manifest(found)
        except IntegrityError as error:
            problems = {label: (*seen, str(error)) for label, seen in problems.items()}
        except PgsnapError:
            pass  # told above, for each store
    report = VerifyReport(pipeline=pipeline.name, id=found.id, problems=problems, decoded=decode, size=read, unread=tuple(unread))
    return notify_result(pipeline, report) if notify else report


def notify_result(pipeline: PipelineSpec, report: VerifyReport) -> VerifyReport:
    """Tell the result to the pipeline's notifiers; return the report with what failed of that."""
    return attrs.evolve(report, notify_errors=notify(pipeline, _event(report)))


def _event(report: VerifyReport) -> Verified:
    stores = tuple(StoreOutcome(label=label, error=" ".join(problems)) for label, problems in report.problems.items())
    whole = report.whole
    next_step = ""
    if report.ok:
        text = f"{report.pipeline}: {report.id} is whole in {', '.join(whole)}."
        if repaired := [label for label, keys in report.repaired.items() if keys]:
            text += f" It was damaged in {', '.join(repaired)}, and was repaired there from another store."
    else:
        damaged = ", ".join(store.label for store in stores if store.error)
        text = f"{report.pipeline}: {report.id} is damaged or cannot be read in {damaged}."
        next_step = (
            f"It is whole in {', '.join(whole)}; of the others nothing is known: run 'pgsnap doctor {report.pipeline}'."
            if whole and not report.damaged
            else f"It is whole in {', '.join(whole)}: run 'pgsnap verify {report.pipeline} --backup {report.id} --repair'."
            if whole
            else f"No store has a whole copy: take a backup now (pgsnap backup {report.pipeline}) and verify the older ones "
            f"(pgsnap verify {report.pipeline} --all)."
        )
    return Verified(
        pipeline=report.pipeline,
        id=report.id,
        text=text,
        stores=stores,
        size=report.size,
        decoded=report.decoded,
        next_step=next_step,
    )


def _verify_in(
    store: Store, pipeline: PipelineSpec, found: Backup, decode: bool, run: Run
) -> tuple[list[PgsnapError], list[str], int]:
    """Return what is wrong with a backup in one store, what is whole and cannot be decoded, and the bytes read."""
    try:
        manifest = load_manifest([store], pipeline.name, found.id)
    except (ManifestError, StoreError) as error:
        return [error], [], 0
    problems = _damage(store, manifest, run)
    undecoded: list[str] = []
    if decode and not problems:
        source = BackupSource(manifest=manifest, stores=[store], find=finder(pipeline.transforms, None), note=lambda _: None)
        for name in source.artifacts:
            with contextlib.closing(source.open(name)) as stream:
                try:
                    drain(stream)
                except IntegrityError as error:
                    undecoded.append(str(error))
    return problems, undecoded, manifest.stored_size


def _says_nothing(error: PgsnapError) -> bool:
    """Whether an error is about the way to the copy, or about this version of pgsnap, and not about the copy."""
    return isinstance(error, (Denied, NewerFormat)) or (isinstance(error, StoreError) and error.transient)


def _record(store: Store, pipeline: str, stored: StoredBackup, *, ok: bool, run: Run) -> None:
    """Write down how it went; of successes only the last is kept."""
    prefix = folder(pipeline, stored.id)
    name = proof_key("verify", datetime.now(UTC), ok)
    earlier = [f"{prefix}{proof_key(p.what, p.time, p.ok)}" for p in stored.proofs if p.what == "verify" and p.ok]
    try:
        store.write(f"{prefix}{name}", (b"{}\n",))
        if ok:
            store.delete([key for key in earlier if key != f"{prefix}{name}"])
    except StoreError as error:
        run.log.info("%s: the verification could not be recorded: %s", store.label, error)


def _damage(store: Store, manifest: Manifest, run: Run) -> list[PgsnapError]:
    prefix = folder(manifest.pipeline, manifest.id)
    problems: list[PgsnapError] = []
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
                    problems.append(error)
    for file in manifest.files:
        try:
            read_file(store, prefix, file)
        except (IntegrityError, StoreError) as error:
            problems.append(error)
    return problems
