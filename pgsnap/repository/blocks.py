"""Reads a stored artifact so that only verified bytes come out, whichever store they come from.

The stored bytes are the same in every store and a manifest holds the running digest at the end of each block of them. So a
reader holds one block,
checks it, and only then passes it on; and when a store is unreachable, cut short or damaged, it goes on from the next store
at the first byte that has not been passed on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from pgsnap.components.contracts import Store
from pgsnap.errors import IntegrityError, PgsnapError, StoreError
from pgsnap.repository.manifest import FileRecord, ObjectRecord
from pgsnap.streams import Stream, resize

__all__ = ["Note", "read_file", "read_object", "read_objects"]

Note: TypeAlias = Callable[[str], object]
"""Called with one sentence whenever a store had to be left for another."""


def read_objects(
    stores: Sequence[Store], prefix: str, objects: Sequence[ObjectRecord], block: int, note: Note = lambda _: None
) -> Stream:
    """Yield the concatenation of objects, verified block by block. Holds one block (16 MiB) and a chunk.

    Args:
        stores: Where to read, in the order of trying; a store that has failed is tried again only for the next object.
        prefix: The folder of the backup.
        block: Bytes that one digest covers.
        note: Told about each change of store.

    Raises:
        IntegrityError: no store holds the bytes undamaged; the message has each store's reason.
        StoreError: no store could be read, for other reasons than damage.
    """
    for item in objects:
        yield from read_object(stores, prefix, item, block, note)


def read_object(stores: Sequence[Store], prefix: str, item: ObjectRecord, block: int, note: Note = lambda _: None) -> Stream:
    """Yield the verified blocks of one object; see ``read_objects``."""
    expected = -(-item.size // block)
    if len(item.blocks) != expected:
        raise IntegrityError(f"{prefix}{item.key}: the manifest has {len(item.blocks)} block digests where {expected} belong.")
    verified = _Verified()
    failures: list[tuple[Store, PgsnapError]] = []
    for store in stores:
        if failures:
            left, error = failures[-1]
            at = f"block {verified.number} of {expected} of {item.key}"
            note(f"{error} Going on from {store.label} at {at} instead of {left.label}.")
        try:
            yield from _checked(store, prefix, item, block, verified)
            return
        except (StoreError, IntegrityError) as error:
            failures.append((store, error))
    damage = any(isinstance(error, IntegrityError) for _, error in failures)
    text = " ".join(str(error) for _, error in failures) or f"{prefix}{item.key}: there is no store to read it from."
    if not damage and len(failures) == 1:
        raise failures[0][1]
    raise IntegrityError(text) if damage else StoreError(text)


class _Verified:
    """How far an object has been verified, in whichever stores: blocks, and the running digest at the end of the last one."""

    def __init__(self) -> None:
        self.number = 0
        self.digest = hashlib.sha256()


def _checked(store: Store, prefix: str, item: ObjectRecord, block: int, verified: _Verified) -> Stream:
    """Yield the blocks of an object of one store that are not verified yet; none that is damaged."""
    key = f"{prefix}{item.key}"
    start = min(verified.number * block, item.size)
    stream = store.read(key, start)
    pieces = resize(stream, block)
    try:
        for piece in pieces:
            start += len(piece)
            if start > item.size:
                raise IntegrityError(f"{store.label}: {key} is longer than the {item.size} bytes in the manifest.")
            if len(piece) != block and start != item.size:
                raise IntegrityError(f"{store.label}: {key} ends after {start} of {item.size} bytes.")
            digest = verified.digest.copy()
            digest.update(piece)
            if digest.hexdigest() != item.blocks[verified.number]:
                raise IntegrityError(
                    f"{store.label}: {key} is damaged between bytes {start - len(piece)} and {start} (block {verified.number})."
                )
            verified.number, verified.digest = verified.number + 1, digest
            yield piece
        if start != item.size:
            raise IntegrityError(f"{store.label}: {key} ends after {start} of {item.size} bytes.")
    finally:
        pieces.close()
        stream.close()


def read_file(store: Store, prefix: str, item: FileRecord) -> bytes:
    """Return a small file of a backup, checked.

    Raises:
        IntegrityError: it is not what the manifest says.
        StoreError, NotFound: it cannot be read.
    """
    stream = store.read(f"{prefix}{item.key}")
    try:
        data = bytearray()
        for chunk in stream:
            data += chunk
            if len(data) > item.size:
                break
    finally:
        stream.close()
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise IntegrityError(f"{store.label}: {prefix}{item.key} is not what the manifest says.")
    return bytes(data)
