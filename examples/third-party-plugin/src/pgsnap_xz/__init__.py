"""xz compression for pgsnap, by the standard library: slow and small, for what is kept for years."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from typing import ClassVar

import attrs

from pgsnap import ConfigError, Facts, IntegrityError, Transform, hookimpl
from pgsnap.streams import CHUNK, Chunks, Stream


def _check_level(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 0 <= value <= 9:
        raise ConfigError(f"xz's level is {value}; give 0 (fastest) to 9 (smallest).")


@attrs.frozen(kw_only=True)
class Xz(Transform):
    """Compresses with xz.

    Args:
        level: 0 to 9, as the ``xz`` program counts them.
    """

    name: ClassVar[str] = "xz"
    suffix: ClassVar[str] = ".xz"
    compresses: ClassVar[bool] = True

    level: int = attrs.field(default=6, validator=_check_level)

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield one xz stream with a CRC64."""
        stream = lzma.LZMACompressor(preset=self.level)
        for chunk in chunks:
            if piece := stream.compress(chunk):
                yield piece
        yield stream.flush()
        facts["level"] = self.level

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        """Yield the plain bytes in pieces of at most 1 MiB; raise IntegrityError unless it is one whole stream."""
        stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
        for chunk in filter(None, chunks):
            if stream.eof:
                raise IntegrityError("there is data after the end of the xz stream.")
            try:
                piece = stream.decompress(chunk, CHUNK)
                while piece:
                    yield piece
                    if stream.eof or stream.needs_input:
                        break
                    piece = stream.decompress(b"", CHUNK)
            except lzma.LZMAError as error:
                raise IntegrityError(f"the xz data is damaged: {error}.") from error
            if stream.unused_data:
                raise IntegrityError("there is data after the end of the xz stream.")
        if not stream.eof:
            raise IntegrityError("the xz data ends too early: it was cut short.")

    def command(self, facts: Facts) -> str | None:
        """``xz -dc``: RECOVER.txt has it."""
        return "xz -dc"


@hookimpl
def pgsnap_transforms() -> Sequence[type[Transform]]:
    """Give the class to pgsnap."""
    return [Xz]
