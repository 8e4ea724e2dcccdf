"""Chains of transforms: encoding by the pipeline, decoding by the manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pgsnap.components.contracts import Transform
from pgsnap.components.registry import Registry
from pgsnap.components.values import Facts, plain_mapping
from pgsnap.errors import PluginError
from pgsnap.repository.manifest import StageRecord
from pgsnap.streams import Chunks, Stream

__all__ = ["Encoding", "Finder", "decode", "finder"]


class Encoding:
    """One artifact's way through the transforms; ``records`` is complete when the stream has ended.

    Args:
        transforms: In the order of encoding. Those that compress step aside if ``compressed``.
    """

    def __init__(self, transforms: Sequence[Transform], compressed: bool) -> None:
        self.transforms = [t for t in transforms if not (compressed and t.compresses)]
        self._facts: list[Facts] = [{} for _ in self.transforms]

    @property
    def suffix(self) -> str:
        """What is added to the artifact's name."""
        return "".join(transform.suffix for transform in self.transforms)

    def encode(self, chunks: Chunks, stack: ExitStack) -> Chunks:
        """Return the encoded stream; leaving ``stack`` closes the stages, the last first."""
        for transform, facts in zip(self.transforms, self._facts, strict=True):
            stream = transform.encode(chunks, facts)
            stack.callback(stream.close)
            chunks = stream
        return chunks

    @property
    def records(self) -> tuple[StageRecord, ...]:
        """What goes into the manifest."""
        return tuple(
            StageRecord(name=transform.name, version=transform.version, facts=plain_mapping(facts))
            for transform, facts in zip(self.transforms, self._facts, strict=True)
        )

    def sidecars(self, filename: str) -> dict[str, bytes]:
        """Return the sidecars of the stored file: of those transforms after which nothing has changed the bytes."""
        files: dict[str, bytes] = {}
        for transform, facts in reversed(list(zip(self.transforms, self._facts, strict=True))):
            if transform.suffix or transform.command(facts) is not None:
                break
            files.update(transform.sidecars(filename, facts))
        return files


Finder = Callable[[StageRecord], Transform]
"""Gives the transform that decodes a recorded stage."""


def finder(transforms: Sequence[Transform], registry: Registry | None) -> Finder:
    """Return a finder: the pipeline's own component of that name if there is one, else the registry's with its defaults."""
    loaded = registry

    def find(record: StageRecord) -> Transform:
        nonlocal loaded
        for transform in transforms:
            if transform.name == record.name:
                return transform
        loaded = loaded or Registry.load()
        component = loaded.get("transform", record.name)
        if not issubclass(component, Transform):
            raise PluginError(f"{record.name!r} is not a transform.")
        return component()

    return find


def decode(chunks: Chunks, stages: Sequence[StageRecord], find: Finder, stack: ExitStack) -> Chunks:
    """Return the plain stream of a stored one; leaving ``stack`` closes the stages, the last first."""
    for record in reversed(stages):
        stream: Stream = find(record).decode(chunks, plain_mapping(record.facts))
        stack.callback(stream.close)
        chunks = stream
    return chunks
