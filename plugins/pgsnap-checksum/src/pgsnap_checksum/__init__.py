"""Checksums for pgsnap: the bytes pass through unchanged, their digest is recorded, and checked when they are read.

The manifest has sha256 digests of everything already. This transform is for people and for other tools: as the last stage
it puts a file beside the stored one that ``md5sum -c``, ``sha256sum -c`` or ``b3sum -c`` accepts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol, TypeAlias, get_args

import attrs

from pgsnap import ConfigError, Facts, IntegrityError, StageError, Transform, hookimpl
from pgsnap.streams import Chunks, Stream

__all__ = ["Algorithm", "Checksum", "pgsnap_transforms"]

Algorithm: TypeAlias = Literal["md5", "sha256", "blake3"]
SUFFIXES: Mapping[str, str] = {"md5": ".md5", "sha256": ".sha256", "blake3": ".b3"}
"""What follows the file's name in the name of its checksum file."""


class _Digest(Protocol):
    def update(self, data: bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


def _new_digest(algorithm: str) -> _Digest:
    if algorithm == "blake3":
        from blake3 import blake3

        return blake3()
    return hashlib.new(algorithm, usedforsecurity=False)


def _check_algorithm(instance: object, attribute: attrs.Attribute[Algorithm], value: Algorithm) -> None:
    if value not in SUFFIXES:
        raise ConfigError(f"checksum's algorithm is {value!r}; choose from {', '.join(get_args(Algorithm))}.")


@attrs.frozen(kw_only=True)
class Checksum(Transform):
    """Records the digest of what passes, and checks it when the backup is read.

    Use it several times for several algorithms.

    Args:
        algorithm: ``md5``, ``sha256`` or ``blake3``.
    """

    name: ClassVar[str] = "checksum"

    algorithm: Algorithm = attrs.field(default="sha256", validator=_check_algorithm)

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield the chunks unchanged; ``facts`` gets ``algorithm``, ``digest`` (hex) and ``size`` (bytes)."""
        digest, size = _new_digest(self.algorithm), 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk
        facts.update(algorithm=self.algorithm, digest=digest.hexdigest(), size=size)

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield the chunks unchanged, and raise after the last one if they are not those that were recorded.

        Raises:
            IntegrityError: the digest differs, or none was recorded.
            StageError: it was made by an algorithm that this version does not know.
        """
        algorithm, wanted = facts.get("algorithm"), facts.get("digest")
        if not (isinstance(algorithm, str) and isinstance(wanted, str)):
            raise IntegrityError("the backup's manifest has no digest for its checksum stage; it is damaged.")
        if algorithm not in SUFFIXES:
            raise StageError(
                f"the checksum algorithm {algorithm!r} is not known to this version of pgsnap-checksum; use a newer one."
            )
        digest, size = _new_digest(algorithm), 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk
        got = digest.hexdigest()
        if got != wanted:
            raise IntegrityError(
                f"the {algorithm} of {size} bytes is {got}, but {wanted} was recorded for {facts.get('size')} bytes: "
                "they were altered or cut short."
            )

    def sidecars(self, filename: str, facts: Facts) -> Mapping[str, bytes]:
        """Return the checksum file of ``filename`` in the format of ``md5sum``: ``{filename}.md5``, ``.sha256`` or ``.b3``.

        The digest is that of the stream at this stage. It is that of the stored file only if no later stage changes the
        bytes and the artifact is stored as one object; the caller asks for sidecars only then.
        """
        return {filename + SUFFIXES[facts["algorithm"]]: f"{facts['digest']}  {filename}\n".encode()}


@hookimpl
def pgsnap_transforms() -> Sequence[type[Transform]]:
    """Return the checksum transform."""
    return [Checksum]
