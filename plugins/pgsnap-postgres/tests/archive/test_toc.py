"""The table of contents: what each client's archive says, in whatever encoding."""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgsnap_postgres.archive.check import read_toc
from pgsnap_postgres.archive.toc import _CODECS, Toc, TocEntry
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase

ARCHIVES = Path(__file__).with_name("archives")


def toc_of(name: str) -> Toc:
    return read_toc([(ARCHIVES / f"{name}.dump").read_bytes()])


def find(toc: Toc, desc: str, tag: str) -> TocEntry:
    (entry,) = (entry for entry in toc.entries if (entry.desc, entry.tag) == (desc, tag))
    return entry


@pytest.mark.parametrize(
    ("name", "version", "compression", "level", "client"),
    [
        ("14-gzip", (1, 14, 0), "gzip", -1, "14.23"),
        ("14-none", (1, 14, 0), "none", 0, "14.23"),
        ("15-gzip", (1, 14, 0), "gzip", -1, "15.18 (Debian 15.18-0+deb12u1)"),
        ("16-none", (1, 15, 0), "none", None, "16.15"),
        ("16-zstd", (1, 15, 0), "zstd", None, "16.15"),
        ("16-lz4", (1, 15, 0), "lz4", None, "16.15"),
        ("17-zstd", (1, 16, 0), "zstd", None, "17.10"),
        ("18-gzip", (1, 16, 0), "gzip", None, "18.6"),
    ],
)
def test_the_header_of_each_client(
    name: str, version: tuple[int, int, int], compression: str, level: int | None, client: str
) -> None:
    toc = toc_of(name)
    assert version == toc.version
    assert (compression, level) == (toc.compression, toc.level)
    assert ("sample", client, client, "UTF8") == (toc.dbname, toc.server_version, toc.dump_version, toc.encoding)


@pytest.mark.parametrize("name", ["14-gzip", "15-none", "16-lz4", "17-none", "18-gzip"])
def test_an_entry_tells_what_it_is(name: str) -> None:
    toc = toc_of(name)
    table = find(toc, "TABLE", 'Ünus "ual')
    assert ("public", "postgres", "pre-data", "heap") == (table.namespace, table.owner, table.section, table.tableam)
    assert ("r" if toc.version >= (1, 16, 0) else "") == table.relkind
    assert 1259 == table.tableoid
    assert table.oid >= 16384
    assert table.defn.startswith('CREATE TABLE public."Ünus ""ual" (')
    assert 'DROP TABLE public."Ünus ""ual";\n' == table.drop
    assert not table.has_data
    data = find(toc, "TABLE DATA", 'Ünus "ual')
    assert data.has_data
    assert data.had_dumper
    assert (table.dump_id,) == data.dependencies
    assert 'COPY public."Ünus ""ual" (id, note) FROM stdin;\n' == data.copy
    assert 'TABLE DATA public.Ünus "ual' == data.title
    assert "DATABASE sample" == find(toc, "DATABASE", "sample").title
    constraint = find(toc, "CONSTRAINT", 'Ünus "ual Ünus "ual_pkey')
    assert "post-data" == constraint.section
    assert table.dump_id in constraint.dependencies


@pytest.mark.parametrize("major", [14, 15, 16, 17, 18])
def test_which_entries_have_data(major: int) -> None:
    toc = toc_of(f"{major}-none")
    kinds = sorted(f"{entry.desc} {entry.tag}" for entry in toc.entries if entry.has_data)
    blobs = "BLOBS BLOBS" if major < 17 else "BLOBS 77..3000000001"
    assert [blobs, *(f"TABLE DATA {name}" for name in ("empty", "narrow", "wide", 'Ünus "ual'))] == kinds
    assert [] == [entry for entry in toc_of(f"{major}-empty").entries if entry.has_data]


def test_raw_is_the_head_of_the_file() -> None:
    data = (ARCHIVES / "17-zstd.dump").read_bytes()
    toc = read_toc([data])
    assert data.startswith(toc.raw)
    assert b"\x01" == data[len(toc.raw) : len(toc.raw) + 1]


def test_names_are_decoded_by_the_dump_s_own_encoding(server: Server, make_db: MakeDatabase) -> None:
    """A database in LATIN1 has a table and a name of its own that are no valid UTF-8 in the archive."""
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").format(sql.Identifier("latin"))
        )
        try:
            with psycopg.connect(server.database_url("latin", socket=True), autocommit=True) as other:
                other.execute('CREATE TABLE "Größe" (a integer)')
            dumped = subprocess.run(
                [f"{server.bindir}/pg_dump", "-Fc", "-d", server.database_url("latin", socket=True)],
                capture_output=True,
                check=True,
            )
        finally:
            connection.execute("DROP DATABASE latin WITH (FORCE)")
    assert b"Gr\xf6\xdfe" in dumped.stdout
    toc = read_toc([dumped.stdout])
    assert "LATIN1" == toc.encoding
    assert "public" == find(toc, "TABLE", "Größe").namespace


@pytest.mark.parametrize("codec", sorted(set(_CODECS.values())))
def test_python_knows_the_codec_of_each_encoding(codec: str) -> None:
    assert "abc" == b"abc".decode(codec)


def test_fifty_thousand_entries_are_read_in_about_a_second() -> None:
    def number(value: int) -> bytes:
        return struct.pack("<BI", value < 0, abs(value))

    def string(text: str | None) -> bytes:
        return number(-1) if text is None else number(len(text)) + text.encode()

    parts = [b"PGDMP" + bytes((1, 16, 0, 4, 8, 1, 3)) + number(0) * 7 + string("db") + string("18.6") * 2 + number(50_000)]
    for n in range(1, 50_001):
        parts.append(number(n) + number(0) + string("1259") + string(str(n)) + string(f"table_{n}") + string("TABLE") + number(2))
        parts.append(
            string(f"CREATE TABLE public.table_{n} (\n    id integer NOT NULL\n);\n\n\n") + string(f"DROP TABLE t{n};\n")
        )
        parts.append(string(None) + string("public") + string("") + string("heap") + number(ord("r")) + string("postgres"))
        parts.append(string("false") + string("1") + string("2") + string(None) + bytes((3,)) + bytes(8))
    data = b"".join(parts)
    started = time.process_time()
    toc = read_toc([data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)])
    assert 50_000 == len(toc.entries)
    assert data == toc.raw
    assert time.process_time() - started < 5  # 0.6 s where it was written
