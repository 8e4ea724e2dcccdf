"""A backup run: one dump, all stores, and a manifest as the very last thing.

    running.json -> artifacts (dump -> stages -> every store at once) -> sidecars, RECOVER.txt -> shrink guard -> look again
    -> manifest.json -> prune

A store that fails on the way is dropped and its part of this backup is removed; the others go on. Whatever ends the run before a
manifest is written leaves nothing that counts, and as far as the stores can be reached, nothing at all.
"""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime
from importlib.metadata import version

import attrs

from pgsnap.components.contracts import Artifact, Store
from pgsnap.components.events import Failed, Partial, Pruned, Started, Succeeded, Suspect
from pgsnap.components.run import Progress, Run
from pgsnap.components.values import format_size, new_backup_id, plain_mapping
from pgsnap.errors import (
    Aborted,
    ConfigError,
    Denied,
    DumpError,
    ManifestError,
    PgsnapError,
    ProcessError,
    StageError,
    StoreError,
)
from pgsnap.operations.catch_up import catch_up
from pgsnap.operations.notify import RunNotifications
from pgsnap.operations.prune import prune
from pgsnap.operations.reports import BackupReport, CopyReport, PruneReport, StoreResult
from pgsnap.operations.spec import PipelineSpec
from pgsnap.operations.summary import is_due, last_backup, summarize
from pgsnap.repository import guard as shrink_guard
from pgsnap.repository.catalog import Catalog, scan
from pgsnap.repository.manifest import (
    MANIFEST,
    RECOVER,
    RUNNING,
    SUSPECT,
    ArtifactRecord,
    FileRecord,
    Manifest,
    ObjectRecord,
    StageRecord,
    folder,
)
from pgsnap.repository.recover import recover_text
from pgsnap.repository.stages import Encoding, finder
from pgsnap.repository.store_set import QUIET, StoreSet
from pgsnap.streams import Chunks, Tap, take
from pgsnap.streams.process import lower_priority, watch

__all__ = ["backup"]

REFRESH = 600.0
"""Seconds between two refreshments of running.json."""
STARTED_SECONDS = 10.0
"""Seconds that telling of the beginning may hold a dump up."""
STOPPED_SECONDS = 15.0
"""Seconds for telling of a run that a signal ended: who sent it waits some 30 before the next one kills."""


def backup(pipeline: PipelineSpec, *, progress: Progress | None = None, now: datetime | None = None) -> BackupReport:
    """Back a pipeline up once.

    Returns:
        The report. The backup exists in at least one store, and in as many as the quorum asks for.

    Raises:
        PgsnapError: no backup was made, or it is in fewer stores than the quorum; ``report`` tells which.
    """
    started = now or datetime.now(UTC)
    run = Run(pipeline.name, new_backup_id(started), timeout=pipeline.timeout)
    run.encrypted = any(transform.encrypts for transform in pipeline.transforms)
    if progress is not None:
        run.progress = progress
    return _Backup(pipeline.time_limited, run, started).run_it()


class _Backup:
    """The state of one run: what was written where."""

    def __init__(self, pipeline: PipelineSpec, run: Run, started: datetime) -> None:
        self.pipeline = pipeline
        self.run = run
        self.started = started
        self.prefix = folder(pipeline.name, run.id)
        self.stores = StoreSet(pipeline.stores, run, pipeline.limits)
        self.written: dict[str, None] = {}  # in order, and quick to ask
        self.manifest: Manifest | None = None
        self.committed: set[int] = set()
        self.notifications = RunNotifications(pipeline)
        self.caught_up: CopyReport | None = None
        self.suspect: tuple[str, ...] = ()
        self.pruned: PruneReport | None = None
        self.notes: list[str] = []

    # --- the run --------------------------------------------------------------------------------------------------

    def run_it(self) -> BackupReport:
        if not self.pipeline.stores:
            raise ConfigError(f"pipeline {self.pipeline.name!r} has no store; give it at least one.")
        log = self.run.log
        log.info("%s: backup %s begins", self.pipeline.name, self.run.id)
        text = f"{self.pipeline.name}: backup {self.run.id} begins."
        started = Started(pipeline=self.pipeline.name, id=self.run.id, time=self.started, text=text)
        self.notifications.send(started, at_most=STARTED_SECONDS)
        try:
            with self.run.watched():
                self.look_first()
                self.put_small(RUNNING, self.running_text())
                with watch(self.refresh, REFRESH, name="running"):
                    self.take()
                    self.check_for_collapse()
                self.commit()
        except BaseException as error:
            self.discard()
            self.notify_failure(error)
            if isinstance(error, PgsnapError):
                error.report = self.report()
            raise
        self.discard()
        self.catch_up()
        self.prune()
        self.notify_result()
        report = self.report()
        if report.exit_code == 1:
            failed = StoreError(f"{report.text}\nkept in: {', '.join(report.kept_in)}")
            failed.report = report
            raise failed
        return report

    def look_first(self) -> None:
        """Make sure that nothing lies under this id: it would be written over, and removed if this run fails.

        A store that cannot be listed is dropped, so that the dump waits once for one that gives no answer; before the commit it
        would be dropped for that as well. One that may only be written stays.
        """
        for number, found in self.stores.each(lambda store: any(True for _ in store.entries(self.prefix))).items():
            if found is True:
                label = self.stores.stores[number].label
                raise StoreError(f"{label}: {self.run.id} is there already, from a run that began in this second; run it again.")
            if isinstance(found, PgsnapError) and not isinstance(found, Denied):
                self.stores.drop(number, found)
        self.stores.require()

    def take(self) -> None:
        """Dump every artifact into every store, then write what lies beside them and make the manifest."""
        with self.pipeline.dump.dump(self.run) as dump:
            records, files = [], []
            for artifact in dump.artifacts:
                record, sidecars = self.take_artifact(artifact)
                records.append(record)
                files += [self.put_small(name, content) for name, content in sidecars.items()]
        dumper = self.pipeline.dump
        if not records:
            raise DumpError(f"the dumper {dumper.name!r} gave no artifact; there is nothing to keep.")
        manifest = Manifest(
            id=self.run.id,
            pipeline=self.pipeline.name,
            started=self.started,
            ended=datetime.now(UTC),
            pgsnap=version("pgsnap"),
            dumper=StageRecord(name=dumper.name, version=dumper.version, facts=plain_mapping(dump.facts)),
            artifacts=tuple(records),
            files=tuple(files),
        )
        text = recover_text(manifest, dumper, finder(self.pipeline.transforms, None))
        files.append(self.put_small(RECOVER, text.encode()))
        self.manifest = attrs.evolve(manifest, files=tuple(files))

    def take_artifact(self, artifact: Artifact) -> tuple[ArtifactRecord, dict[str, bytes]]:
        """Pump one artifact through the stages into the stores."""
        encoding = Encoding(self.pipeline.transforms, artifact.compressed)
        name = artifact.name + encoding.suffix
        plain = Tap()
        objects: list[ObjectRecord] = []
        with contextlib.ExitStack() as stack:
            source = artifact.open()
            stack.callback(source.close)
            stack.enter_context(lower_priority())
            counted = plain.through(source)
            stack.callback(counted.close)
            encoded = iter(encoding.encode(counted, stack))
            rest: list[bytes] = []
            while not objects or rest:
                key = name if not objects else f"{name}.{len(objects):03d}"
                piece = take(encoded, self.stores.max_object, rest)
                objects.append(self.put(key, piece, artifact.expected if not objects else None))
                piece.close()
            for chunk in counted:  # what no stage has asked for; pg_dump's exit status comes after its last byte
                if chunk:
                    break
            if not plain.ended:
                names = ", ".join(transform.name for transform in encoding.transforms)
                raise StageError(f"{artifact.name}: the stages ({names}) ended before its end; one of them is at fault.")
        record = ArtifactRecord(
            name=artifact.name, size=plain.size, sha256=plain.sha256, stages=encoding.records, objects=tuple(objects)
        )
        self.run.log.info(
            "%s: %s became %s, sha256 %s",
            artifact.name,
            format_size(record.size),
            format_size(record.stored_size),
            ", ".join(item.sha256 for item in objects),
        )
        return record, encoding.sidecars(name) if len(objects) == 1 else {}

    def check_for_collapse(self) -> None:
        """Compare with the backups before this one; write down what the shrink guard objects to, before the manifest.

        A history that cannot be read is no reason to fail: prune and status look again.
        """
        assert self.manifest is not None
        guard = self.pipeline.guard
        found = self.stores.each(lambda store: scan(store, self.pipeline.name))
        catalog = Catalog.of(self.pipeline.name, self.pipeline.stores, found)
        if not catalog.backups:
            return
        read = self.stores.each(lambda _: catalog.history(self.run.id, guard.last), self.stores.alive[:1])
        for history in read.values():
            if isinstance(history, PgsnapError):
                self.run.log.warning("the backups before this one could not be read to compare it: %s", history)
            else:
                self.suspect = shrink_guard.check(self.manifest, history, guard)
        if self.suspect:
            text = json.dumps({"id": self.run.id, "reasons": self.suspect}, ensure_ascii=False)
            file = self.put_small(SUSPECT, text.encode() + b"\n")
            self.manifest = attrs.evolve(self.manifest, files=(*self.manifest.files, file))

    def prune(self) -> None:
        """Delete what the policies no longer keep, after stores that missed something have caught up.

        Pruned is only in stores that hold this very backup, and never after one that is suspect or missed its quorum. Nothing
        that happens here changes what the backup is; it becomes a note of the report.
        """
        if self.suspect or not self.pipeline.auto_prune or len(self.committed) < self.pipeline.quorum:
            return
        try:
            self.pruned = prune(self.pipeline, stores=self.committed)
        except PgsnapError as error:
            self.notes.append(f"nothing was pruned: {error}")
        except Exception as error:
            self.run.log.exception("the prune failed")
            self.notes.append(f"nothing was pruned, by a fault in pgsnap or a plugin: {type(error).__name__}: {error}")
        else:
            self.notes += self.pruned.problems

    def commit(self) -> None:
        """Look the objects up again, write the manifest to each store that holds them all, and end the sign of life."""
        manifest = self.manifest
        assert manifest is not None
        content = manifest.to_bytes()
        if len(content) > Manifest.MAX_SIZE:
            raise ManifestError(
                f"the manifest would have {format_size(len(content))}, more than the {format_size(Manifest.MAX_SIZE)} that "
                "are ever read of one: split the database into several pipelines."
            )
        wanted = {f"{self.prefix}{item.key}": item.size for item in manifest.contents}
        for number, found in self.stores.each(lambda store: _sizes(store, self.prefix)).items():
            if isinstance(found, Denied):
                continue  # a key that may only write: the store's own answer to each write must do
            if isinstance(found, PgsnapError):
                self.stores.drop(number, found)
                continue
            for key, size in wanted.items():
                if found.get(key) != size:
                    has = f"{found[key]} bytes" if key in found else "nothing"
                    text = f"{key} was stored with {size} bytes and now there is {has}."
                    self.stores.drop(number, StoreError(text))
                    break
        self.stores.require()
        self.run.check()
        self.put_small(MANIFEST, content)
        self.committed = set(self.stores.alive)
        quiet = StoreSet(self.stores.stores, Run(self.pipeline.name), QUIET)  # the backup exists: no time limit undoes that
        quiet.each(lambda store: store.delete([f"{self.prefix}{RUNNING}"]), self.stores.alive)

    def catch_up(self) -> None:
        """Copy what stores lack from those that have it, this very backup too, if one has dropped out. It cannot fail the run."""
        seconds = self.pipeline.catch_up_timeout
        if self.run.deadline is not None:
            seconds = min(seconds, self.run.deadline - time.monotonic())
        if seconds <= 0 or len(self.pipeline.stores) < 2:
            return
        try:
            self.caught_up = catch_up(self.pipeline, self.run.id, seconds=seconds, progress=self.run.progress)
        except Exception as error:
            self.run.log.exception("the catch-up failed")
            text = f"the catch-up failed by a fault in pgsnap or a plugin: {type(error).__name__}: {error}"
            self.caught_up = CopyReport(pipeline=self.pipeline.name, copied={}, errors=(text,))
        for number, store in enumerate(self.pipeline.stores):
            if self.run.id in self.caught_up.copied.get(store.label, ()):
                self.committed.add(number)

    # --- writing --------------------------------------------------------------------------------------------------

    def put(self, name: str, chunks: Chunks, expected: int | None = None) -> ObjectRecord:
        key = f"{self.prefix}{name}"
        if key in self.written:
            raise StageError(f"two files of this backup would be called {name!r}; give the artifacts or sidecars other names.")
        self.written[key] = None
        return self.stores.write(key, chunks, name=name, expected=expected)

    def put_small(self, name: str, content: bytes) -> FileRecord:
        record = self.put(name, (content,), len(content))
        return FileRecord(key=name, size=record.size, sha256=record.sha256)

    def running_text(self) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps({"pipeline": self.pipeline.name, "id": self.run.id, "refreshed": now}).encode() + b"\n"

    def refresh(self) -> None:
        """Say again that the run lives, so that nobody takes its unfinished backup for an orphan."""
        content = self.running_text()
        quick = StoreSet(self.stores.stores, self.run, QUIET)  # the end of the run waits for it
        results = quick.each(lambda store: store.write(f"{self.prefix}{RUNNING}", (content,)), self.stores.alive)
        for result in results.values():
            if isinstance(result, PgsnapError):
                self.run.log.warning("running.json could not be refreshed: %s", result)

    def discard(self) -> None:
        """Remove what this run has written to stores that do not hold the backup; the manifest before the data."""
        numbers = sorted(self.stores.touched - self.committed)
        if not numbers:
            return
        for number, why in self.stores.remove(list(self.written), numbers).items():
            label = self.stores.stores[number].label
            if number in self.stores.wrote:
                self.run.log.warning(
                    "%s: what was written of %s could not be removed and does not count: %s", label, self.run.id, why
                )

    # --- telling --------------------------------------------------------------------------------------------------

    def report(self) -> BackupReport:
        results = []
        for number, store in enumerate(self.stores.stores):
            error = self.stores.failures.get(number)
            if number in self.committed:
                results.append(StoreResult(label=store.label, dropped_out=str(error) if error else ""))
            else:
                results.append(StoreResult(label=store.label, error=str(error) if error else "the backup was not finished."))
        facts = self.manifest.facts if self.manifest else {}
        return BackupReport(
            pipeline=self.pipeline.name,
            id=self.run.id,
            started=self.started,
            ended=datetime.now(UTC),
            stores=tuple(results),
            quorum=self.pipeline.quorum,
            manifest=self.manifest if self.committed else None,
            notes=(*(str(note) for note in facts.get("notes", ())), *self.notes),
            notify_errors=tuple(self.notifications.errors),
            caught_up=self.caught_up,
            suspect=self.suspect if self.committed else (),
            prune=self.pruned,
        )

    def notify_failure(self, error: BaseException) -> None:
        """Tell that there is no backup, with everything that was logged. Also where a signal ended the run, in less time."""
        cause = str(error) if isinstance(error, PgsnapError) else f"{type(error).__name__}: {error}".removesuffix(": ")
        log = self.run.log
        log.error("no backup was made: %s", cause, extra={"raised": True})
        if isinstance(error, ProcessError) and error.argv:
            log.error("the command was: %s", " ".join(error.argv))
            for line in error.stderr.splitlines():
                log.error("it wrote: %s", line)
        event = self.report().event(
            Failed,
            text=f"{self.pipeline.name}: no backup was made. {cause}",
            cause=cause,
            next_step=_next_step(error, self.pipeline.name),
            log=log.text,
        )
        self.notifications.send(event, at_most=None if isinstance(error, Exception) else STOPPED_SECONDS)

    def notify_result(self) -> None:
        """Tell where the backup is, compared with the one before; and that all is well, where that is due."""
        report = self.report()
        last = None
        if self.notifications.wanted(report.event(Succeeded)) or self.pipeline.summary != "never":
            last = last_backup(self.pipeline, self.run.id)
        more = {"last_size": last.size, "last_stored_size": last.stored_size} if last else {}
        lost = [store.error for store in report.stores if not store.ok] + list(report.catch_up_errors)
        if report.suspect:
            next_step = f"Look at it, and at the database; if all is right: pgsnap ack {self.run.id}"
            cause = ", ".join(report.suspect)
            self.notifications.send(report.event(Suspect, cause=cause, next_step=next_step, log=self.run.log.text, **more))
        elif lost:
            next_step = f"When that is put right, bring it up to date without another dump: pgsnap copy {self.pipeline.name}"
            cause = " ".join(lost)
            self.notifications.send(report.event(Partial, cause=cause, next_step=next_step, log=self.run.log.text, **more))
        else:
            self.notifications.send(report.event(Succeeded, **more))
        for store in self.pruned.stores if self.pruned else ():
            if store.deleted or store.refused:
                kept = len(store.decisions) - len(store.deleted)
                self.notifications.send(
                    Pruned(
                        pipeline=self.pipeline.name,
                        id=self.run.id,
                        text=f"{self.pipeline.name}: {len(store.deleted)} backups were pruned from {store.label}, {kept} stay.",
                        store=store.label,
                        deleted=store.deleted,
                        kept=kept,
                        size=store.size,
                        refused=tuple(f"{key}: {reason}" for key, reason in store.refused.items()),
                    )
                )
        if is_due(self.pipeline, last, self.started):
            self.notifications.send(summarize(self.pipeline))


def _next_step(error: BaseException, pipeline: str) -> str:
    """What a person can do about a run that made no backup."""
    if isinstance(error, Aborted) or not isinstance(error, Exception):
        return f"If nobody stopped it on purpose, run: pgsnap backup {pipeline}"
    if isinstance(error, PgsnapError):
        return f"'pgsnap doctor {pipeline}' looks whether a backup would work now; when it does, run: pgsnap backup {pipeline}"
    return f"This is a fault in pgsnap or in a plugin: run 'pgsnap -v backup {pipeline}' and report it."


def _sizes(store: Store, prefix: str) -> dict[str, int]:
    return {entry.key: entry.size for entry in store.entries(prefix)}
