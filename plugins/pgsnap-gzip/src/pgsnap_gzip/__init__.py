"""gzip for pgsnap: the format that every machine can read, written by isa-l at ten times the speed of ``gzip``.

What is written is one gzip member with a constant header: no time, no name, so that equal input gives equal output for
one version of the library, one level and whatever number of threads. What is read is that and nothing else: a second
member, bytes after the member or a header of another shape are refused, because this encoder writes none of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

import attrs

from pgsnap import ConfigError, Facts, IntegrityError, Transform, hookimpl
from pgsnap.streams import CHUNK, Chunks, Stream, through_writer

__all__ = ["Gzip", "pgsnap_transforms"]

HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255])
"""RFC 1952: magic, deflate, no flags, no time, no hint, unknown system."""


def _check_level(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 0 <= value <= 3:
        raise ConfigError(f"gzip's level is {value}; give 0 (fastest) to 3 (smallest).")


def _check_threads(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 0 <= value <= 64:
        raise ConfigError(f"gzip's threads is {value}; give 1 to 64, or 0 for as many as there are processors, at most 2.")


@attrs.frozen(kw_only=True)
class Gzip(Transform):
    """Compresses with gzip.

    Args:
        level: 0 to 3 as isa-l counts them: 0 is fastest and a fifth larger; 1 to 3 differ little (the README has the curve).
        threads: Threads that compress; 0: as many as there are processors, at most 2.
    """

    name: ClassVar[str] = "gzip"
    suffix: ClassVar[str] = ".gz"
    compresses: ClassVar[bool] = True

    level: int = attrs.field(default=1, validator=_check_level)
    threads: int = attrs.field(default=0, validator=_check_threads)

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield one gzip member. Holds a few MiB for each thread."""
        from isal import igzip_threaded

        threads = self.threads or min(2, os.cpu_count() or 1)
        compressed = through_writer(
            chunks,
            lambda file: igzip_threaded.open(file, "wb", compresslevel=self.level, threads=threads),  # type: ignore[no-untyped-call]
        )
        try:
            start = b""
            while len(start) < len(HEADER):
                start += next(compressed)
            yield HEADER + start[len(HEADER) :]
            yield from compressed
        finally:
            compressed.close()
        facts["level"] = self.level

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield the plain bytes in pieces of at most 1 MiB.

        Raises:
            IntegrityError: the member is cut short, altered, or followed by anything.
        """
        from isal import igzip_lib

        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        start = b""
        for chunk in chunks:
            if not chunk:
                continue
            if member.eof:
                raise _trailing()
            if len(start) < len(HEADER):
                start += chunk[: len(HEADER) - len(start)]
                if not HEADER.startswith(start):
                    raise IntegrityError("this is not gzip as pgsnap writes it: its header is damaged or not ours.")
            try:
                piece = member.decompress(chunk, CHUNK)
                while piece:
                    yield piece
                    if member.eof or member.needs_input:
                        break
                    piece = member.decompress(b"", CHUNK)
            except igzip_lib.IsalError as error:  # type: ignore[misc]
                raise IntegrityError(f"the gzip data is damaged: {error}.") from error
            if member.unused_data:
                raise _trailing()
        if not member.eof:
            raise IntegrityError("the gzip data ends too early: it was cut short.")

    def command(self, facts: Facts) -> str | None:
        """``gzip -dc``."""
        return "gzip -dc"

    def needs(self, facts: Facts) -> str:
        """The program gzip."""
        return "gzip"


def _trailing() -> IntegrityError:
    return IntegrityError("there is data after the end of the gzip member; it is damaged or was put together wrongly.")


@hookimpl
def pgsnap_transforms() -> Sequence[type[Transform]]:
    """Return the gzip transform."""
    return [Gzip]
