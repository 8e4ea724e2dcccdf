"""Zstandard for pgsnap: faster and smaller than gzip, and read by ``zstd -dc`` anywhere.

What is written is one frame with a checksum of its content. What is read is that and nothing else: a second frame, a
skippable frame or bytes after the frame are refused, because this encoder writes none of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import ClassVar

import attrs

from pgsnap import ConfigError, Facts, IntegrityError, Transform, hookimpl
from pgsnap.streams import CHUNK, Chunks, Stream

__all__ = ["Zstd", "pgsnap_transforms"]

MAGIC = bytes.fromhex("28b52ffd")
"""RFC 8878, 3.1.1: what a frame begins with; a skippable frame begins otherwise."""


def _check_level(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 1 <= value <= 19:
        raise ConfigError(f"zstd's level is {value}; give 1 (fastest) to 19 (smallest).")


def _check_threads(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 0 <= value <= 64:
        raise ConfigError(f"zstd's threads is {value}; give 1 to 64, or 0 for as many as there are processors, at most 2.")


@attrs.frozen(kw_only=True)
class Zstd(Transform):
    """Compresses with Zstandard.

    Args:
        level: 1 to 19. On dumps 1 is both the fastest and nearly the smallest; the README has the curve.
        threads: Threads that compress; 0: as many as there are processors, at most 2.
    """

    name: ClassVar[str] = "zstd"
    suffix: ClassVar[str] = ".zst"
    compresses: ClassVar[bool] = True

    level: int = attrs.field(default=1, validator=_check_level)
    threads: int = attrs.field(default=0, validator=_check_threads)

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield one frame with a checksum. Two threads hold some 20 MiB at level 1, 60 at 3, 150 at 9."""
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd

        option = zstd.CompressionParameter
        frame = zstd.ZstdCompressor(
            options={
                option.compression_level: self.level,
                option.checksum_flag: 1,
                option.nb_workers: self.threads or min(2, os.cpu_count() or 1),
            }
        )
        for chunk in chunks:
            if piece := frame.compress(chunk):
                yield piece
        yield frame.flush()
        facts["level"] = self.level

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield the plain bytes in pieces of at most 1 MiB.

        Raises:
            IntegrityError: the frame is cut short, altered, or followed by anything.
        """
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd

        frame = zstd.ZstdDecompressor()
        start = b""
        for chunk in chunks:
            if not chunk:
                continue
            if frame.eof:
                raise _trailing()
            if len(start) < len(MAGIC):
                start += chunk[: len(MAGIC) - len(start)]
                if not MAGIC.startswith(start):
                    raise IntegrityError("this is not a zstd frame: it is damaged or was not compressed by this stage.")
            try:
                piece = frame.decompress(chunk, CHUNK)
                while piece:
                    yield piece
                    if frame.eof or frame.needs_input:
                        break
                    piece = frame.decompress(b"", CHUNK)
            except zstd.ZstdError as error:
                raise IntegrityError(f"the zstd data is damaged: {error}.") from error
            if frame.unused_data:
                raise _trailing()
        if not frame.eof:
            raise IntegrityError("the zstd data ends too early: it was cut short.")

    def command(self, facts: Facts) -> str | None:
        """``zstd -dc``."""
        return "zstd -dc"

    def needs(self, facts: Facts) -> str:
        """The program zstd."""
        return "zstd"


def _trailing() -> IntegrityError:
    return IntegrityError("there is data after the end of the zstd frame; it is damaged or was put together wrongly.")


@hookimpl
def pgsnap_transforms() -> Sequence[type[Transform]]:
    """Return the zstd transform."""
    return [Zstd]
