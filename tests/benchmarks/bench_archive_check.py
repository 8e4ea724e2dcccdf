"""What the check of a dump's structure costs: MB/s, and nanoseconds a row, for synthesised archives and SQL text.

    python tests/benchmarks/bench_archive_check.py [--megabytes 512] [--repeat 3]

"Inside" is an archive that pg_dump compressed, whose pieces are 128 KiB (clients 17 and newer) or 4 KiB (older, gzip). With
``-Z0`` each row is a piece: the check runs a Python loop there, and narrow rows are its worst case. Plain SQL is looked through
only where no random key guards its end. All are CPU time of one thread that holds Python's lock; a backup pays them beside
pg_dump, which has a core of its own.
"""

from __future__ import annotations

import argparse
import struct
import time
from collections.abc import Callable, Iterator

from pgsnap.streams import Chunks, Stream, drain

CHUNK = 1 << 20


def _int(value: int) -> bytes:
    return struct.pack("<BI", value < 0, abs(value))


def _string(text: str | None) -> bytes:
    return _int(-1) if text is None else _int(len(text)) + text.encode()


def head(compression: int) -> bytes:
    """Header and table of contents of an archive 1.16 with one table."""
    data = b"PGDMP" + bytes((1, 16, 0, 4, 8, 1, compression)) + b"".join(_int(0) for _ in range(7))
    data += _string("bench") + _string("18.6") + _string("18.6") + _int(1)
    data += _int(7) + _int(1) + _string("0") + _string("16384") + _string("t") + _string("TABLE DATA") + _int(3)
    data += _string("") + _string("") + _string("COPY public.t (a) FROM stdin;\n") + _string("public")
    data += _string("") + _string("") + _int(0) + _string("app") + _string("false") + _string(None)
    return data + b"\x01" + bytes(8)


def archive(piece: int, total: int, compression: int) -> Iterator[bytes]:
    """An archive of about ``total`` bytes in chunks of 1 MiB; its one table consists of pieces of ``piece`` bytes."""
    yield head(compression) + b"\x01" + _int(7)
    one = _int(piece) + b"x" * piece
    period = one * max(1, -(-8 * CHUNK // len(one)))  # chunks are cut without regard to pieces, as reads from a pipe are
    chunks = [period[at : at + CHUNK] for at in range(0, len(period), CHUNK)]
    for _ in range(max(1, total // len(period))):
        yield from chunks
    yield _int(0)


def text(row: int, total: int, key: bytes) -> Iterator[bytes]:
    """A plain dump whose one table has rows of ``row`` bytes."""
    yield b"--\n-- PostgreSQL database dump\n--\n\n\\restrict %b\n\nCOPY public.t (a) FROM stdin;\n" % key
    rows = (b"x" * (row - 1) + b"\n") * (8 * CHUNK // row)
    chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    for _ in range(max(1, total // len(rows))):
        yield from chunks
    yield b"\\.\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict %b\n\n" % key


def measure(title: str, make: Callable[[], Iterator[bytes]], check: Callable[[Chunks], Stream], row: int, repeat: int) -> None:
    """Print the best of ``repeat`` runs; the time to make the chunks is taken off."""
    best = float("inf")
    for _ in range(repeat):
        started = time.thread_time()
        size = drain(make())
        making = time.thread_time() - started
        started = time.thread_time()
        drain(check(make()))
        best = min(best, time.thread_time() - started - making)
    speed = size / best / 1e6
    print(
        f"{title:44} {speed:12,.0f} MB/s {best / (size / row) * 1e9:12,.1f} ns a row or piece {best / (size / 1e9):8.4f} s a GB"
    )


def main() -> None:
    from pgsnap_postgres.archive.check import check_archive
    from pgsnap_postgres.archive.plaintext import check_plain

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512, help="size of each stream")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the best is printed")
    options = parser.parse_args()
    total = options.megabytes * 1_000_000
    for title, piece, compression in (
        ("archive, compressed inside, 128 KiB pieces", 128 << 10, 3),
        ("archive, compressed inside, 4 KiB pieces", 4 << 10, 1),
        ("archive, -Z0, rows of 100 bytes", 100, 0),
        ("archive, -Z0, rows of 12 bytes", 12, 0),
    ):
        measure(title, lambda p=piece, c=compression: archive(p, total, c), check_archive, piece + 5, options.repeat)  # type: ignore[misc]
    for title, row, key in (
        ("plain SQL, random key, rows of 12 bytes", 12, b"k" * 63),
        ("plain SQL, no random key, rows of 100 bytes", 100, b"chosen"),
        ("plain SQL, no random key, rows of 12 bytes", 12, b"chosen"),
    ):
        measure(title, lambda r=row, k=key: text(r, total, k), check_plain, row, options.repeat)  # type: ignore[misc]


if __name__ == "__main__":
    main()
