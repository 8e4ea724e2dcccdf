"""What backups there are: read from the stores themselves, by one listing of a pipeline's prefix, without opening a manifest."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import attrs

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.components.values import BACKUP_ID, Entry, RetentionPolicy, backup_time
from pgsnap.errors import ConfigError, IntegrityError, ManifestError, NotFound, PgsnapError, StoreError
from pgsnap.repository.guard import Guard, check
from pgsnap.repository.manifest import ACK, HELD, MANIFEST, PRUNED, RUNNING, SUSPECT, Manifest, folder
from pgsnap.repository.retention import Candidate, decide
from pgsnap.repository.store_set import StoreSet
from pgsnap.stores.timeouts import Limits

__all__ = [
    "LOOKS",
    "Backup",
    "Catalog",
    "Proof",
    "StoredBackup",
    "load_manifest",
    "load_manifest_text",
    "proof_key",
    "read_bounded",
    "scan",
]

LOOKS = Limits(finish=math.inf, grace=5)
"""What is read may be long: where there is no progress, the store's own bounds end it."""
_PROOF = re.compile(r"(drill|verify)-(\d{8}T\d{6}Z)-(ok|failed)\.json")


@attrs.frozen(order=True)
class Proof:
    """A drill or a verification of a backup: when it ended (UTC), which it was, and whether the backup passed."""

    time: datetime
    what: str
    ok: bool


def proof_key(what: str, time: datetime, ok: bool) -> str:
    """Return the name of the small object that records a proof, beside the manifest."""
    return f"{what}-{time.astimezone(UTC):%Y%m%dT%H%M%SZ}-{'ok' if ok else 'failed'}.json"


@attrs.frozen(kw_only=True)
class StoredBackup:
    """One backup as one store holds it. ``entries`` are its objects by key relative to its folder."""

    id: str
    entries: Mapping[str, Entry]

    @property
    def committed(self) -> bool:
        """Whether it exists: its manifest is there."""
        return MANIFEST in self.entries

    @property
    def running(self) -> bool:
        """Whether a run says that it is still writing it."""
        return RUNNING in self.entries and not self.committed

    @property
    def suspect(self) -> bool:
        """Whether the shrink guard objected."""
        return SUSPECT in self.entries

    @property
    def held(self) -> bool:
        """Whether it must not be deleted."""
        return HELD in self.entries

    @property
    def pruned(self) -> bool:
        """Whether it was being deleted, and nothing was written here since."""
        mark = self.entries.get(PRUNED)
        return mark is not None and not self.committed and all(e.modified <= mark.modified for e in self.entries.values())

    @property
    def proofs(self) -> list[Proof]:
        """Drills and verifications, oldest first."""
        found = []
        for match in filter(None, map(_PROOF.fullmatch, self.entries)):
            with contextlib.suppress(ValueError):  # a name that somebody made up, with an impossible time
                time = datetime.strptime(match[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                found.append(Proof(time, match[1], match[3] == "ok"))
        return sorted(found)

    @property
    def size(self) -> int:
        """Bytes of everything in its folder."""
        return sum(entry.size for entry in self.entries.values())


def scan(store: Store, pipeline: str) -> dict[str, StoredBackup]:
    """Return the backups of a pipeline in one store by id, committed or not, oldest first. What is not ours is passed over.

    Raises:
        StoreError: the store cannot be listed.
    """
    found: dict[str, dict[str, Entry]] = {}
    for entry in store.entries(f"{pipeline}/"):
        parts = entry.key.split("/")
        if len(parts) == 3 and parts[0] == pipeline and _is_id(parts[1]):
            found.setdefault(parts[1], {})[parts[2]] = entry
    return {id: StoredBackup(id=id, entries=found[id]) for id in sorted(found)}


def _is_id(text: str) -> bool:
    try:
        backup_time(text)
    except ConfigError:
        return False
    return True


@attrs.frozen(kw_only=True)
class Backup:
    """One committed backup: its id and the stores (by position in the pipeline) that hold it."""

    id: str
    stores: Mapping[int, StoredBackup]

    @property
    def time(self) -> datetime:
        """When it was started, UTC."""
        return backup_time(self.id)

    @property
    def suspect(self) -> bool:
        """Whether the shrink guard objected."""
        return any(stored.suspect for stored in self.stores.values())

    @property
    def held(self) -> bool:
        """Whether it must not be deleted."""
        return any(stored.held for stored in self.stores.values())

    @property
    def acknowledged(self) -> bool:
        """Whether somebody has acknowledged it, after everything that speaks against it."""
        marks = [stored.entries[ACK].modified for stored in self.stores.values() if ACK in stored.entries]
        return bool(marks) and all(proof.time <= max(marks) for proof in self._failing(self.stores))

    def _failing(self, numbers: Iterable[int]) -> list[Proof]:
        """Return the last drill if it failed, and the last verification in each of the stores where that failed."""
        drills = [proof for stored in self.stores.values() for proof in stored.proofs if proof.what == "drill"]
        checks = [[p for p in self.stores[number].proofs if p.what == "verify"] for number in numbers]
        return [max(proofs) for proofs in (drills, *checks) if proofs and not max(proofs).ok]

    @property
    def proof(self) -> Proof | None:
        """The last drill or verification, in any store."""
        return max((proof for stored in self.stores.values() for proof in stored.proofs), default=None)

    def defect(self, number: int) -> str:
        """Return why the copy in a store is not good: by the last drill in any store, the last verification in that one, or the
        shrink guard, unless that was acknowledged. Empty if it is good."""
        for proof in self._failing([number]):
            return f"its last {'drill' if proof.what == 'drill' else 'verification'} failed"
        return "it is suspect" if self.suspect and not self.acknowledged else ""

    @property
    def size(self) -> int:
        """Bytes that it takes in one store."""
        return max(stored.size for stored in self.stores.values())


@attrs.frozen(kw_only=True)
class Catalog:
    """The backups of one pipeline over several stores.

    ``scans`` has a store's backups by its position; ``failures`` the error of each store that could not be listed.
    """

    pipeline: str
    stores: Sequence[Store]
    scans: Mapping[int, Mapping[str, StoredBackup]]
    failures: Mapping[int, PgsnapError]

    @classmethod
    def read(cls, pipeline: str, stores: Sequence[Store], numbers: Iterable[int] | None = None) -> Catalog:
        """List every store, or those at the given positions, at once; one that cannot be listed is kept as a failure.

        Raises:
            StoreError: no store at all can be listed.
        """
        looks = StoreSet(stores, Run(pipeline), LOOKS)
        found = looks.each(lambda store: scan(store, pipeline), None if numbers is None else sorted(numbers))
        catalog = cls.of(pipeline, stores, found)
        if catalog.failures and not catalog.scans:
            raise StoreError(" ".join(str(error) for error in catalog.failures.values()))
        return catalog

    @classmethod
    def of(cls, pipeline: str, stores: Sequence[Store], found: Mapping[int, Mapping[str, StoredBackup] | PgsnapError]) -> Catalog:
        """Make one of what ``scan`` gave in each store, or the error that it raised there."""
        scans = {number: result for number, result in found.items() if not isinstance(result, PgsnapError)}
        failures = {number: result for number, result in found.items() if isinstance(result, PgsnapError)}
        return cls(pipeline=pipeline, stores=stores, scans=scans, failures=failures)

    @property
    def backups(self) -> list[Backup]:
        """The committed backups, oldest first."""
        found: dict[str, dict[int, StoredBackup]] = {}
        for number, stored in self.scans.items():
            for item in stored.values():
                if item.committed:
                    found.setdefault(item.id, {})[number] = item
        return [Backup(id=id, stores=found[id]) for id in sorted(found)]

    def candidates(self, number: int) -> list[Candidate]:
        """Return the committed backups of one store as retention wants them.

        What is suspect, acknowledged, held or failed its drill in one store, is so in all. A failed verification is of one
        store's copy alone.
        """
        return [
            Candidate(
                id=backup.id,
                time=backup.time,
                defect=backup.defect(number),
                acknowledged=backup.acknowledged,
                held=backup.held,
            )
            for backup in self.backups
            if number in backup.stores
        ]

    def wanted(self, number: int, keep: RetentionPolicy | None, zone: str, now: datetime) -> list[str]:
        """Return the ids, oldest first, that a store's policy would keep if it had every backup that any store has. One of which
        no undamaged copy is known counts only where it is."""
        union = []
        for backup in self.backups:
            here = number in backup.stores
            judged = {other: backup.defect(other) for other in backup.stores}
            if here or not all(reason.endswith("failed") for reason in judged.values()):
                defect = judged[number] if here else min(judged.values(), key=len)
                union.append(
                    Candidate(id=backup.id, time=backup.time, defect=defect, acknowledged=backup.acknowledged, held=backup.held)
                )
        return [decision.id for decision in decide(keep, zone, union, now) if decision.keep]

    @property
    def unacknowledged(self) -> list[str]:
        """Why pruning is frozen: a sentence for each backup that is suspect or failed a proof, and that nobody acknowledged."""
        found = []
        for backup in self.backups:
            reasons = dict.fromkeys(reason for number in backup.stores if (reason := backup.defect(number)))
            if reasons and not backup.acknowledged:
                found.append(f"{backup.id}: {', '.join(reasons)}; look at it, then: pgsnap ack {backup.id}")
        return found

    def history(self, before: str, count: int) -> list[Manifest]:
        """Return manifests of the last ``count`` good backups before an id, oldest first, from the last acknowledged one on: the
        measure of the shrink guard. Those that cannot be read are left out."""
        found: list[Manifest] = []
        moment = backup_time(before)  # ids of one second are in no order
        for backup in reversed(self.backups):
            if backup.id == before or backup.time > moment or any(backup.defect(number) for number in backup.stores):
                continue
            try:
                found.append(self.manifest(backup))
            except PgsnapError:
                continue
            if len(found) == count or (backup.acknowledged and backup.suspect):
                break
        return found[::-1]

    def newest_anomaly(self, guard: Guard) -> str:
        """Return why the newest backup is suspect though nothing says so yet, or an empty string.

        The run that made it may not have seen its history: by a key that only writes, or while a store was away.
        """
        backups = self.backups
        if not backups or backups[-1].acknowledged or backups[-1].suspect:
            return ""
        newest = backups[-1]
        history = self.history(newest.id, guard.last)
        try:
            reasons = check(self.manifest(newest), history, guard) if history else ()
        except PgsnapError as error:
            return f"{newest.id} cannot be judged: {error}"
        return f"{newest.id} is suspect: {', '.join(reasons)}; look at it, then: pgsnap ack {newest.id}" if reasons else ""

    def find(self, which: str = "latest") -> Backup:
        """Return a committed backup by ``latest``, an id, the beginning of an id, or a time (the newest that began by then).

        A time is written as ISO 8601; without a zone it is UTC. A date alone means its end.

        Raises:
            NotFound: there is no such backup.
            ConfigError: the text is none of these, or the beginning of several ids.
        """
        backups = self.backups
        if not backups:
            where = ", ".join(store.label for number, store in enumerate(self.stores) if number in self.scans)
            raise NotFound(f"pipeline {self.pipeline!r} has no backup in {where}; check the name and the stores' URLs.")
        if which == "latest":
            return backups[-1]
        exact = [b for b in backups if b.id == which]
        begins = exact or [b for b in backups if b.id.startswith(which)]
        looks_like_id = re.fullmatch(r"\d{4,8}(T[\dZ]*(-[0-9a-f]{0,4})?)?", which)
        if len(begins) == 1:
            return begins[0]
        if begins:
            ids = ", ".join(b.id for b in begins[:4])
            raise ConfigError(f"{which!r} is the beginning of {len(begins)} backups ({ids} …); give more of the id.")
        moment = None if looks_like_id else _moment(which)
        if moment is None:
            if BACKUP_ID.fullmatch(which) or looks_like_id:
                raise NotFound(f"pipeline {self.pipeline!r} has no backup {which!r}; 'pgsnap list' shows those it has.")
            raise ConfigError(f"{which!r} is no backup: give 'latest', an id, or a time such as 2026-11-22 or 2026-11-22T08:00Z.")
        before = [b for b in backups if b.time <= moment]
        if not before:
            raise NotFound(f"pipeline {self.pipeline!r} has no backup from {which} or before; the oldest is {backups[0].id}.")
        return before[-1]

    def manifest(self, backup: Backup) -> Manifest:
        """Return the manifest of a backup, from the first of its stores that gives a good one.

        Raises:
            IntegrityError: the stores hold different manifests.
            ManifestError, StoreError: none could be read.
        """
        return self.manifest_text(backup)[0]

    def manifest_text(self, backup: Backup) -> tuple[Manifest, bytes]:
        """Return the manifest and its bytes as they are stored, which may have keys of a later version; see ``manifest``."""
        return load_manifest_text([self.stores[number] for number in backup.stores], self.pipeline, backup.id)


def load_manifest(stores: Iterable[Store], pipeline: str, backup_id: str) -> Manifest:
    """Return the manifest that all readable stores agree upon; see ``Catalog.manifest``."""
    return load_manifest_text(stores, pipeline, backup_id)[0]


def load_manifest_text(stores: Iterable[Store], pipeline: str, backup_id: str) -> tuple[Manifest, bytes]:
    """Return the same with its bytes as they are stored: whoever writes it elsewhere writes these."""
    texts: dict[bytes, str] = {}
    failures: list[PgsnapError] = []
    manifests: list[Manifest] = []
    for store in stores:
        where = f"{store.label}: {folder(pipeline, backup_id)}{MANIFEST}"
        try:
            data = read_bounded(store, folder(pipeline, backup_id) + MANIFEST, Manifest.MAX_SIZE)
            manifest = Manifest.from_bytes(data, where)
            if (manifest.id, manifest.pipeline) != (backup_id, pipeline):
                raise ManifestError(
                    f"{where} belongs to the backup {manifest.pipeline}/{manifest.id}; it was put here by hand: move it back to "
                    "a folder of that name."
                )
        except (StoreError, ManifestError) as error:
            failures.append(error)
            continue
        texts.setdefault(data, store.label)
        manifests.append(manifest)
    if len(texts) > 1:
        raise IntegrityError(
            f"the manifests of {pipeline}/{backup_id} differ between {' and '.join(texts.values())}; one of "
            f"them was altered: look at each by 'pgsnap show {backup_id} --store STORE', and use the one you trust by --store "
            f"{' or --store '.join(map(shlex.quote, texts.values()))}."
        )
    if not manifests:
        if len(failures) == 1:
            raise failures[0]
        raise ManifestError(" ".join(str(error) for error in failures) or f"no store holds {pipeline}/{backup_id}.")
    return manifests[0], next(iter(texts))


def read_bounded(store: Store, key: str, limit: int) -> bytes:
    """Return a small object whole; raise ManifestError if it has more than ``limit`` bytes."""
    stream = store.read(key)
    pieces: list[bytes] = []
    size = 0
    try:
        for chunk in stream:
            size += len(chunk)
            if size > limit:
                raise ManifestError(f"{store.label}: {key} has more than {limit} bytes; it is not a file of ours.")
            pieces.append(chunk)
    finally:
        stream.close()
    return b"".join(pieces)


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        moment = moment.replace(hour=23, minute=59, second=59)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
