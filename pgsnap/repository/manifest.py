"""The manifest: what a backup consists of. Its presence in a store is what makes the backup exist there.

Format 1 is specified in ``docs/reference/manifest.md`` and held by golden files in the tests. It is the same, byte for byte, in
every store that holds the backup. Readers ignore keys that they do not know and refuse a format that they do not know.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any, ClassVar

import attrs
from attrs.validators import deep_iterable, ge, instance_of, le, matches_re

from pgsnap.components.values import BACKUP_ID, NAME, Facts
from pgsnap.errors import ManifestError
from pgsnap.streams import BLOCK

__all__ = [
    "ACK",
    "HELD",
    "MANIFEST",
    "PRUNED",
    "RECOVER",
    "RUNNING",
    "SUSPECT",
    "ArtifactRecord",
    "FileRecord",
    "Manifest",
    "NewerFormat",
    "ObjectRecord",
    "StageRecord",
    "folder",
]

MANIFEST = "manifest.json"
RECOVER = "RECOVER.txt"
RUNNING = "running.json"
SUSPECT = "suspect.json"
ACK = "ack.json"
HELD = "held.json"
PRUNED = "pruned.json"
FORMAT = 1
MAX_BLOCK = 256 << 20
"""The largest block, in bytes, that is believed: a reader holds one."""

_KEY = matches_re(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")  # one plain file name: no path, nothing a shell would expand
_SHA256 = matches_re(r"[0-9a-f]{64}")
_SIZE = [instance_of(int), ge(0)]


class NewerFormat(ManifestError):
    """A manifest of a format that this version does not know, which says nothing against the backup."""


def folder(pipeline: str, backup_id: str) -> str:
    """Return the prefix below which all objects of a backup lie, with its trailing slash."""
    return f"{pipeline}/{backup_id}/"


def _to_the_second(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


@attrs.frozen(kw_only=True)
class FileRecord:
    """A small file beside the artifacts: its key (relative to the backup's folder), size in bytes and hex sha256."""

    key: str = attrs.field(validator=_KEY)
    size: int = attrs.field(validator=_SIZE)
    sha256: str = attrs.field(validator=_SHA256)


@attrs.frozen(kw_only=True)
class ObjectRecord(FileRecord):
    """A stored object, and the hex sha256 of all its bytes up to the end of each block (the last may be short, and its digest is
    that of the object; an empty object has none)."""

    blocks: tuple[str, ...] = attrs.field(validator=deep_iterable(_SHA256))


@attrs.frozen(kw_only=True)
class StageRecord:
    """A transform that the bytes went through, and what it recorded."""

    name: str
    version: str
    facts: Facts = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ArtifactRecord:
    """An artifact: the size and sha256 of its plain bytes, the stages in the order of encoding, and the objects whose
    concatenation is what came out of the last stage."""

    name: str = attrs.field(validator=matches_re(NAME))
    size: int = attrs.field(validator=_SIZE)
    sha256: str = attrs.field(validator=_SHA256)
    stages: tuple[StageRecord, ...]
    objects: tuple[ObjectRecord, ...]

    @property
    def stored_size(self) -> int:
        """Bytes in a store."""
        return sum(item.size for item in self.objects)


@attrs.frozen(kw_only=True)
class Manifest:
    """What a backup consists of: identity and facts of the dump, artifacts, small files. No secret, no host, no user."""

    MAX_SIZE: ClassVar[int] = 64 << 20
    """Bytes beyond which nothing is read as a manifest: enough for the digests of 10 TB."""

    id: str = attrs.field(validator=matches_re(BACKUP_ID))
    pipeline: str = attrs.field(validator=matches_re(NAME))
    started: datetime = attrs.field(converter=_to_the_second)
    ended: datetime = attrs.field(converter=_to_the_second)
    pgsnap: str
    dumper: StageRecord
    block: int = attrs.field(default=BLOCK, validator=[instance_of(int), ge(1), le(MAX_BLOCK)])
    artifacts: tuple[ArtifactRecord, ...]
    files: tuple[FileRecord, ...]

    @property
    def facts(self) -> Facts:
        """What the dumper recorded."""
        return self.dumper.facts

    @property
    def size(self) -> int:
        """Plain bytes of all artifacts."""
        return sum(artifact.size for artifact in self.artifacts)

    @property
    def stored_size(self) -> int:
        """Bytes of all artifacts in a store."""
        return sum(artifact.stored_size for artifact in self.artifacts)

    @property
    def contents(self) -> tuple[FileRecord, ...]:
        """Every object and file that a store must hold beside the manifest."""
        return (*(item for artifact in self.artifacts for item in artifact.objects), *self.files)

    def artifact(self, name: str) -> ArtifactRecord:
        """Return the artifact of that name; raise KeyError if there is none."""
        for record in self.artifacts:
            if record.name == name:
                return record
        raise KeyError(name)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON text: sorted keys, one line each, UTF-8, a newline at the end."""
        document = {"format": FORMAT, **attrs.asdict(self, value_serializer=_plain)}
        return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest; ``where`` names it in messages.

        Raises:
            ManifestError: it is no manifest, is damaged, or is of a format that this version does not know.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):  # the latter of brackets that are nested by the thousand
            raise ManifestError(f"{where} is not valid JSON; use another store's copy of this backup.") from None
        number = document.get("format") if isinstance(document, dict) else None
        if not isinstance(number, int) or number < 1:
            raise ManifestError(
                f"{where} is not a manifest of pgsnap: it names no format; use another store's copy of this backup."
            )
        if number > FORMAT:
            raise NewerFormat(
                f"{where} is of format {number} and this pgsnap knows format {FORMAT}; install a newer pgsnap, "
                "or restore by the RECOVER.txt beside it."
            )
        try:
            manifest: Manifest = _converter().structure(document, cls)
        except Exception as error:
            raise ManifestError(f"{where} is damaged: {_reason(error)}; use another store's copy of this backup.") from None
        return manifest

    def digest(self) -> str:
        """Return the hex sha256 of the canonical text."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _plain(instance: type | None, attribute: attrs.Attribute[Any] | None, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds").replace("+00:00", "Z")
    return value


def _converter() -> Any:
    import cattrs

    converter = cattrs.Converter()
    for kind in (str, int):
        converter.register_structure_hook(kind, _exactly)
    converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(_exactly(value, str)))
    return converter


def _exactly(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} wanted, {type(value).__name__} got")
    return value


def _reason(error: Exception) -> str:
    import cattrs
    from cattrs.v import format_exception

    def say(one: BaseException, kind: type | None) -> str:
        # A validator's message, which attrs puts first, says more than "invalid value".
        return str(one.args[0]) if isinstance(one, ValueError) and one.args else format_exception(one, kind)

    return "; ".join(cattrs.transform_error(error, path="manifest", format_exception=say)[:3]) or str(error)
