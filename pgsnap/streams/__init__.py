"""How bytes flow through pgsnap, and the only place where threads and child processes are. It knows no store.

``Chunks`` (any iterable of bytes) is what a stage consumes, ``Stream`` (a generator of bytes) is what it returns.

The contract:

1. Chunks are ``bytes``, never a view of a buffer that will be used again. Empty chunks mean nothing; sizes carry no meaning
   (about 1 MiB is customary).
2. A stream ends normally only when it is complete. Every failure is raised out of ``next()``: "no error" means "whole".
3. Memory is bounded by a few chunks per stage. A decoder yields bounded pieces, however much a few bytes expand to.
4. Whoever consumes may stop: it calls ``close()``. A stage acquires only inside its generator's body, frees in ``finally``, and
   never closes its input. A generator cannot be closed while another thread runs it: the thread that pumps closes.
5. A component is frozen and may be used for many streams at once; the state of one stream lives in its generator's frame.
6. ``decode`` raises on truncated, altered or trailing data; ``facts`` are complete only after the stream has ended.

Why generators and not file objects: ``with open(path, "wb")`` of a remote file system publishes a truncated object when its
body raises, and writers of gzip and zstd left by an exception write a valid trailer. A generator that is not exhausted has
published nothing. Only ``Store.write`` opens anything for writing.

Theory of operation: the thread that calls ``fan_out`` (or any other sink) pulls chunks through all stages. The bridges below
adapt libraries that want files: ``ChunkReader`` (reads), ``through_writer`` (writes), ``through_thread`` (both at once).
``Watchdog`` does in a thread what may never come back, and leaves it behind. ``process`` makes children streams; ``retry``
is for stores behind a network: requests repeated, reads resumed.

To read: ``basics``, ``fan_out``, ``bridges``, ``process``; then the rest. This module is what authors of plugins import.
"""

from __future__ import annotations

from pgsnap.streams.basics import BLOCK, CHUNK, Chunks, Stream, Tap, drain, read_chunks, resize, take
from pgsnap.streams.bridges import ChunkReader, prefetch, through_thread, through_writer
from pgsnap.streams.fan_out import Outcome, Stalled, fan_out
from pgsnap.streams.parallel import in_flight
from pgsnap.streams.process import Child, feed_process, read_child, read_process, spawn, through_process, watch
from pgsnap.streams.retry import (
    RequestBody,
    RetryPolicy,
    TrackedChunks,
    chunks_of,
    fetch_until_complete,
    read_ranges,
    wait_while_progressing,
)
from pgsnap.streams.watchdog import Watchdog

__all__ = [
    "BLOCK",
    "CHUNK",
    "Child",
    "ChunkReader",
    "Chunks",
    "Outcome",
    "RequestBody",
    "RetryPolicy",
    "Stalled",
    "Stream",
    "Tap",
    "TrackedChunks",
    "Watchdog",
    "chunks_of",
    "drain",
    "fan_out",
    "feed_process",
    "fetch_until_complete",
    "in_flight",
    "prefetch",
    "read_child",
    "read_chunks",
    "read_process",
    "read_ranges",
    "resize",
    "spawn",
    "take",
    "through_process",
    "through_thread",
    "through_writer",
    "wait_while_progressing",
    "watch",
]
