"""What backups there are: read from the stores themselves, by one listing of a pipeline's prefix, without opening a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import attrs

from pgsnap.components import Store
from pgsnap.errors import ConfigError, IntegrityError, ManifestError, NotFound, PgsnapError, StoreError
from pgsnap.manifest import MANIFEST, RUNNING, Manifest, folder
from pgsnap.types import BACKUP_ID, Entry, backup_time

__all__ = ["Backup", "Catalog", "StoredBackup", "load_manifest", "load_manifest_text", "read_bounded", "scan"]


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
    def read(cls, pipeline: str, stores: Sequence[Store]) -> Catalog:
        """List every store; one that cannot be listed is kept as a failure.

        Raises:
            StoreError: no store at all can be listed.
        """
        scans: dict[int, Mapping[str, StoredBackup]] = {}
        failures: dict[int, PgsnapError] = {}
        for number, store in enumerate(stores):
            try:
                scans[number] = scan(store, pipeline)
            except (StoreError, ConfigError) as error:
                failures[number] = error
        if failures and not scans:
            raise StoreError(" ".join(str(error) for error in failures.values()))
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
            f"the manifests of {pipeline}/{backup_id} differ between {' and '.join(texts.values())}; "
            "one of them was altered: verify each store by itself."
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
