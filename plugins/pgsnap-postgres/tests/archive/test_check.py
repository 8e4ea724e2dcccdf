"""The check of the custom format: whole archives of every client pass unchanged, and every cut is caught."""

from __future__ import annotations

import contextlib
import itertools
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap import DumpError, UpstreamError
from pgsnap_postgres.archive.check import Toc, check_archive, read_toc
from pgsnap_postgres.server import Server

ARCHIVES = sorted(Path(__file__).with_name("archives").glob("*.dump"))
steady = settings(deadline=None, derandomize=True)
every_archive = pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)


def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def cut_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def is_caught(data: bytes) -> bool:
    try:
        passed = b"".join(check_archive([data]))
    except DumpError:
        return True
    assert data == passed
    return False


# --- archives made by hand: the layout of clients 17 and 18 -----------------------------------------------------------


def number(value: int) -> bytes:
    return struct.pack("<BI", value < 0, abs(value))


def string(text: str | None) -> bytes:
    return number(-1) if text is None else number(len(text.encode())) + text.encode()


def head(entries: Iterable[tuple[int, str, bool]], minor: int = 16, fmt: int = 1) -> bytes:
    """Header and table of contents; an entry is its id, its kind, and whether it has data."""
    data = b"PGDMP" + bytes((1, minor, 0, 4, 8, fmt, 3)) + number(0) * 7
    listed = list(entries)
    data += string("db") + string("18.6") + string("18.6") + number(len(listed))
    for dump_id, desc, has_data in listed:
        data += number(dump_id) + number(has_data) + string("0") + string("0") + string(f"t{dump_id}") + string(desc) + number(3)
        data += string("") * 3 + string("public") + string(None) * 2 + number(0) + string("app") + string("false")
        data += string("1") + string(None) + bytes((1 if has_data else 3,)) + bytes(8)
    return data


def pieces(data: Iterable[bytes]) -> bytes:
    return b"".join(number(len(piece)) + piece for piece in data) + number(0)


def table(dump_id: int, data: Iterable[bytes]) -> bytes:
    return b"\x01" + number(dump_id) + pieces(data)


rows = st.lists(st.binary(min_size=1, max_size=40), max_size=12)
contents = st.lists(st.one_of(rows, st.dictionaries(st.integers(1, 2**31 - 1), rows, max_size=4)), max_size=5)


def assemble(tables: list[list[bytes] | dict[int, list[bytes]]]) -> bytes:
    """An archive of tables (their rows) and blocks of large objects (oid to pieces)."""
    data = head(
        [(1, "SCHEMA", False)] + [(n, "BLOBS" if isinstance(t, dict) else "TABLE DATA", True) for n, t in enumerate(tables, 2)]
    )
    for n, content in enumerate(tables, 2):
        if isinstance(content, dict):
            objects = b"".join(number(-oid if oid % 2 else oid) + pieces(data) for oid, data in content.items())
            data += b"\x03" + number(n) + objects + number(0)
        else:
            data += table(n, content)
    return data


# --- whole -----------------------------------------------------------------------------------------------------------


@every_archive
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 100, 4096, 1 << 20])
def test_a_whole_archive_passes_unchanged_in_chunks_of_any_size(path: Path, size: int) -> None:
    chunks = split(path.read_bytes(), size)
    tocs: list[Toc] = []
    assert chunks == list(check_archive(chunks, tocs.append))
    assert 1 == len(tocs)


def test_chunks_are_passed_on_and_not_copied() -> None:
    chunks = split(ARCHIVES[1].read_bytes(), 1000)
    assert all(given is passed for given, passed in zip(chunks, check_archive(chunks), strict=True))


@steady
@given(contents, st.lists(st.integers(0, 5000), max_size=30))
def test_any_archive_passes_in_any_chunks(tables: list[list[bytes] | dict[int, list[bytes]]], places: list[int]) -> None:
    data = assemble(tables)
    assert data == b"".join(check_archive(cut_at(data, places)))


def test_a_piece_may_be_longer_than_many_chunks() -> None:
    data = head([(2, "TABLE DATA", True)]) + table(2, [b"x" * 1_000_000, b"y"])
    for size in (1000, 4093):
        assert data == b"".join(check_archive(split(data, size)))


@pytest.mark.parametrize("options", [("-Z0",), ("-Z6",), ("-s",), ("-a",), ("--exclude-table-data=*",)], ids=" ".join)
def test_what_a_client_writes_to_a_pipe_or_a_file_passes(
    server: Server, shop_db: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A file can be sought in: pg_dump then notes the offsets of the blocks in the table of contents."""
    command = [f"{server.bindir}/pg_dump", "-Fc", *options, "-d", shop_db]
    piped = subprocess.run(command, capture_output=True, check=True).stdout
    subprocess.run([*command, "-f", str(tmp_path / "file")], check=True)
    for data in (piped, (tmp_path / "file").read_bytes()):
        assert data == b"".join(check_archive(split(data, 65_536)))
        for end in range(len(data) // 50, len(data), len(data) // 50):
            assert is_caught(data[:end])


# --- the table of contents as it flows by -----------------------------------------------------------------------------


@every_archive
def test_the_table_of_contents_is_known_before_the_chunk_that_completes_it_is_passed_on(path: Path) -> None:
    data = path.read_bytes()
    toc = read_toc([data])
    tocs: list[Toc] = []
    stream = check_archive(split(data, 1), tocs.append)
    for _ in range(len(toc.raw) - 1):
        next(stream)
        assert tocs == []
    next(stream, None)
    assert [toc] == tocs
    stream.close()


@every_archive
def test_read_toc_needs_the_head_only_and_pulls_nothing_more(path: Path) -> None:
    data = path.read_bytes()
    toc = read_toc([data])
    chunks = iter(split(data, 10))
    assert toc == read_toc(chunks)
    assert -(-len(toc.raw) // 10) * 10 + len(b"".join(chunks)) in (len(data), -(-len(data) // 10) * 10)
    assert toc == read_toc([toc.raw])


def test_read_toc_refuses_half_a_head() -> None:
    raw = read_toc([ARCHIVES[0].read_bytes()]).raw
    for end in range(0, len(raw), 11):
        with pytest.raises(DumpError, match=r"inside the (header|table of contents)"):
            read_toc([raw[:end]])


def test_what_on_toc_raises_ends_the_stream() -> None:
    def refuse(toc: Toc) -> None:
        raise KeyError(toc.dbname)

    with pytest.raises(KeyError, match="sample"):
        list(check_archive([ARCHIVES[1].read_bytes()], refuse))


# --- cut -------------------------------------------------------------------------------------------------------------


@every_archive
def test_a_cut_at_any_byte_is_caught(path: Path) -> None:
    data = path.read_bytes()
    assert [] == [end for end in range(len(data)) if not is_caught(data[:end])]


@steady
@given(contents.filter(bool), st.integers(0, 1 << 30), st.lists(st.integers(0, 5000), max_size=10))
def test_a_cut_of_any_archive_in_any_chunks_is_caught(
    tables: list[list[bytes] | dict[int, list[bytes]]], end: int, places: list[int]
) -> None:
    data = assemble(tables)
    with pytest.raises(DumpError):
        list(check_archive(cut_at(data[: end % len(data)], places)))


def test_a_cut_says_how_far_the_dump_came_and_in_what() -> None:
    data = head([(2, "TABLE DATA", True), (3, "TABLE DATA", True)]) + table(2, [b"row\n"])
    with pytest.raises(
        DumpError, match=rf"ends after {len(data)} bytes without the data of 1 entries, the first TABLE DATA public.t3;"
    ):
        list(check_archive([data]))
    with pytest.raises(DumpError, match=rf"ends after {len(data) - 7} bytes, inside TABLE DATA public.t2;"):
        list(check_archive([data[:-7]]))
    with pytest.raises(DumpError, match="ends after 0 bytes, inside the header"):
        list(check_archive([]))


def test_the_source_s_own_error_passes_through() -> None:
    def broken() -> Iterator[bytes]:
        yield ARCHIVES[1].read_bytes()[:3000]
        raise UpstreamError("gone")

    with pytest.raises(UpstreamError, match="gone"):
        list(check_archive(broken()))


# --- followed, damaged, foreign --------------------------------------------------------------------------------------


@every_archive
def test_what_follows_a_whole_archive_is_caught(path: Path) -> None:
    data = path.read_bytes()
    for more in (b"\0", b"\n", data, data[:11], b"\x01" + number(1), b"\x01" + number(10**6), b"\0" * 10_000):
        assert is_caught(data + more)


def test_a_block_that_comes_twice_or_is_of_the_wrong_type_is_caught() -> None:
    start = head([(2, "TABLE DATA", True)])
    assert not is_caught(start + table(2, [b"a"]))
    assert is_caught(start + table(2, [b"a"]) + table(2, [b"a"]))
    assert is_caught(start + table(3, [b"a"]))
    assert is_caught(start + b"\x03" + number(2) + number(0))
    assert is_caught(head([(2, "BLOBS", True)]) + table(2, [b"a"]))
    assert is_caught(start + b"\x01" + number(2) + number(-5) + b"abcde" + number(0))


@pytest.mark.parametrize("minor", [13, 17, 99])
def test_an_archive_of_a_version_that_cannot_be_checked_is_refused_with_the_next_step(minor: int) -> None:
    with pytest.raises(DumpError, match=rf"version 1\.{minor}, .*1\.14 to 1\.16.*upgrade pgsnap-postgres"):
        list(check_archive([head([], minor=minor)]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"--\n-- PostgreSQL database dump\n--\n", "not with 'PGDMP'"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "not with 'PGDMP'"),
        (head([], fmt=3), "format is tar where custom was expected"),
        (head([], fmt=5), "format is directory where custom"),
        (b"PGDMP" + bytes((1, 16, 0, 8, 8, 1)) + bytes(50), "numbers of 8 and offsets of 8 bytes"),
    ],
)
def test_what_is_no_custom_archive_is_named(data: bytes, message: str) -> None:
    with pytest.raises(DumpError, match=message):
        list(check_archive([data]))


@settings(steady, max_examples=400)
@given(st.sampled_from(ARCHIVES), st.integers(0, 1 << 20), st.integers(1, 255), st.integers(1, 3000))
def test_a_flipped_byte_never_does_worse_than_a_dump_error(path: Path, place: int, flip: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    damaged = bytes(data)
    with contextlib.suppress(DumpError):
        assert damaged == b"".join(check_archive(split(damaged, size)))


@settings(steady, max_examples=40)
@given(st.sampled_from(ARCHIVES), st.integers(0, 1 << 20), st.integers(1, 255), st.sampled_from([b"\0", b"\1", b"7", b"\xff"]))
def test_a_flipped_byte_of_the_head_neither_hangs_nor_gathers_what_follows(
    path: Path, place: int, flip: int, filler: bytes
) -> None:
    """A length that became huge must not make the check gather a whole database."""
    raw = bytearray(read_toc([path.read_bytes()]).raw)
    raw[place % len(raw)] ^= flip
    started = time.monotonic()
    tracemalloc.start()
    try:
        for _ in check_archive(itertools.chain([bytes(raw)], itertools.repeat(filler * 65536, 64))):
            pass
    except DumpError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20
    assert time.monotonic() - started < 20


def test_a_string_longer_than_any_can_be_is_refused_at_once() -> None:
    data = bytearray(head([(1, "SCHEMA", False)]))
    at = data.index(string("t1"))
    data[at + 1 : at + 5] = struct.pack("<I", 2**31)
    chunks = iter([bytes(data), *[bytes(1 << 16)] * 10])
    with pytest.raises(DumpError, match="a string of 2147483648 bytes begins where at most"):
        list(check_archive(chunks))
    assert 10 == len(list(chunks))


def test_a_count_of_entries_that_was_damaged_is_refused_at_the_first_that_is_none() -> None:
    data = bytearray(head([(1, "SCHEMA", False)]))
    at = data.index(number(1) + number(1))
    data[at : at + 5] = number(2**31 - 1)
    with pytest.raises(DumpError, match="an entry has the id 0"):
        list(check_archive(itertools.chain([bytes(data)], itertools.repeat(bytes(1000)))))


def test_memory_does_not_grow_with_the_data() -> None:
    row = number(12) + b"x" * 12
    chunk = row * (1 << 16)
    data = itertools.chain([head([(2, "TABLE DATA", True)]) + b"\x01" + number(2)], itertools.repeat(chunk, 8), [number(0)])
    tracemalloc.start()
    try:
        for _ in check_archive(data):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
