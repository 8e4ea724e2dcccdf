"""The check of plain SQL: whole dumps pass unchanged, every cut is caught, and no row can imitate the end."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgsnap import DumpError, UpstreamError
from pgsnap_postgres.archive import plaintext
from pgsnap_postgres.archive.plaintext import check_plain
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import MakeDatabase

SETS = ("IN", "LITERAL", "NOT_LITERAL", "ANY")
KEY = b"k3Y" * 21
OPENING = b"--\n-- PostgreSQL database dump\n--\n\n"
COMPLETE = b"--\n-- PostgreSQL database dump complete\n--\n\n"
CLOSING = b"\n\n" + COMPLETE
ROWS = b"COPY public.t (a) FROM stdin;\nx\n\\.\n\n"
IMITATION = (COMPLETE, COMPLETE + b"\\unrestrict " + KEY + b"\n\n", CLOSING)


def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def is_whole(data: bytes, size: int = 1 << 20) -> bool:
    try:
        passed = b"".join(check_plain(split(data, size)))
    except DumpError:
        return False
    assert data == passed
    return True


def without_key(text: bytes) -> bytes:
    """What the same client before August 2025 would have written."""
    return re.sub(rb"(?m)^\\(un)?restrict [A-Za-z0-9]+\n\n", b"", text)


def run(server: Server, program: str, *options: str) -> bytes:
    return subprocess.run([f"{server.bindir}/{program}", *options], capture_output=True, check=True).stdout


@pytest.fixture
def tricky_db(server: Server, make_db: MakeDatabase) -> str:
    """Rows, names, comments and bodies that hold pg_dump's closing lines, and other things that look like syntax."""
    url = make_db(server)
    closing = "\n\n--\n-- PostgreSQL database dump complete\n--\n\n"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE lines (n serial PRIMARY KEY, line text)")
        for line in (*closing.split("\n"), closing, "\\.", "COPY public.t (a) FROM stdin;", "$$", "$x$", "'", '"', "--", "\\"):
            connection.execute("INSERT INTO lines (line) VALUES (%s)", [line])
        connection.execute(
            "CREATE TABLE \"a'b;\n--\" (\"c\nd\" text DEFAULT E'it''s\\\\ \n\n--\n-- PostgreSQL database dump complete\n--\n')"
        )
        connection.execute('INSERT INTO "a\'b;\n--" DEFAULT VALUES')
        connection.execute(f"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $f$ SELECT $$don't{closing}$$::text $f$")
        connection.execute(f"COMMENT ON FUNCTION f() IS 'a comment{closing}'")
        connection.execute("CREATE FUNCTION g(a integer) RETURNS integer LANGUAGE sql BEGIN ATOMIC SELECT -a - -1 / $1; END")
        connection.execute("CREATE VIEW v AS WITH stdin AS (SELECT '$x$'::text AS a) SELECT a FROM stdin")
        connection.execute("SELECT lo_from_bytea(0, %s)", [closing.encode()])
    return url


MODES = [
    (),
    ("--inserts",),
    ("--column-inserts", "--rows-per-insert=3"),
    ("--disable-dollar-quoting",),
    ("-v",),
    ("--schema-only",),
]


@pytest.mark.parametrize("options", MODES, ids=" ".join)
@pytest.mark.parametrize("old", [False, True], ids=["with-key", "without-key"])
def test_real_dumps_pass_and_every_cut_is_caught(server: Server, tricky_db: str, options: tuple[str, ...], old: bool) -> None:
    text = run(server, "pg_dump", *options, "-d", tricky_db)
    if old:
        text = without_key(text)
        assert b"restrict" not in text
    for size in (1, 7, 4096):
        assert is_whole(text, size)
    # a cut that could pass ends as the closing lines do
    ends = {end for match in re.finditer(rb"\n", text) for end in (match.start(), match.end())} | set(range(0, len(text), 37))
    assert [] == [end for end in sorted(ends - {len(text)}) if is_whole(text[:end])]


@pytest.mark.parametrize("program", ["pg_dumpall", "pg_dumpall -g"])
@pytest.mark.parametrize("old", [False, True], ids=["with-key", "without-key"])
def test_the_whole_cluster_and_its_globals(server: Server, tricky_db: str, program: str, old: bool) -> None:
    name, *options = program.split()
    text = run(server, name, *options, "-d", server.socket_url)
    text = without_key(text) if old else text
    for size in (1, 100, 1 << 20):
        assert is_whole(text, size)
    ends = [match.end() for match in re.finditer(rb"\n", text)][:-1]
    assert [] == [end for end in ends if is_whole(text[:end])]


def test_every_cut_of_a_small_dump_is_caught() -> None:
    for text in (
        OPENING + ROWS + CLOSING,
        OPENING + b"\\restrict " + KEY + b"\n\n" + ROWS + CLOSING + b"\\unrestrict " + KEY + b"\n\n",
        OPENING + b"\\restrict chosen\n\n" + ROWS + CLOSING + b"\\unrestrict chosen\n\n",
    ):
        assert is_whole(text)
        assert [] == [end for end in range(len(text)) if is_whole(text[:end])]


@pytest.mark.parametrize("fake", IMITATION, ids=["lines", "lines-and-key", "blank-lines"])
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_rows_that_imitate_the_end_do_not_fool_it(fake: bytes, size: int) -> None:
    for start in (
        OPENING + b"COPY public.t (a) FROM stdin;\n",
        OPENING + b'COPY public."t;\n" ("a""b") FROM stdin;\nx\n',
        OPENING + ROWS + b"COPY public.t (a) FROM stdin;\n",
        OPENING + b"SELECT 1;\nINSERT INTO public.t VALUES ('a",
        OPENING + b"INSERT INTO public.t VALUES (E'a",
        OPENING + b'CREATE TABLE public."a',
        OPENING + b"CREATE FUNCTION public.f() RETURNS text LANGUAGE sql AS $_$ select $$ ",
        OPENING + b"CREATE FUNCTION public.f() RETURNS text LANGUAGE sql AS $$",
    ):
        assert not is_whole(start + b"\n" + fake, size)


def test_the_key_proves_the_end_whatever_the_text_is_made_of() -> None:
    """With a random key nothing is looked through: not even quotes that do not close make a whole dump suspect."""
    opening = OPENING + b"\\restrict " + KEY + b"\n\n"
    assert is_whole(opening + b"'" + CLOSING + b"\\unrestrict " + KEY + b"\n\n")
    assert not is_whole(opening + ROWS + CLOSING)
    assert not is_whole(opening + ROWS + CLOSING + b"\\unrestrict " + KEY[::-1] + b"\n\n")
    assert not is_whole(opening + ROWS + b"\\unrestrict " + KEY + b"\n\n")


def test_what_follows_the_end_is_caught() -> None:
    text = OPENING + ROWS + CLOSING
    for more in (b"\n", b"x", text, b"\0" * 5000):
        assert not is_whole(text + more)


def test_a_view_that_ends_like_a_copy_statement_begins_no_data() -> None:
    text = OPENING + b"CREATE VIEW public.v AS\n WITH stdin AS (\n SELECT 1 AS a\n )\n SELECT a\n   FROM stdin;\n\n" + CLOSING
    assert is_whole(text)


@pytest.mark.parametrize("text", [b"", b"PGDMP\x01\x0e", b"-- nothing", b"--\n-- PostgreSQL database du", OPENING])
def test_what_is_no_dump_says_so(text: bytes) -> None:
    with pytest.raises(DumpError, match=r"the dump is not whole: (it begins with|after [0-9]+ bytes it does not end)"):
        list(check_plain([text]))


def test_the_messages_tell_an_imitation_from_a_cut() -> None:
    with pytest.raises(DumpError, match="look like pg_dump's closing lines but are a part of a table's data"):
        list(check_plain([OPENING + b"COPY public.t (a) FROM stdin;\n" + COMPLETE]))
    with pytest.raises(DumpError, match=r"does not end with pg_dump's closing lines but with b'.*x.n'"):
        list(check_plain([OPENING + b"COPY public.t (a) FROM stdin;\nx\n"]))


def test_chunks_are_passed_on_and_the_source_s_error_too() -> None:
    chunks = split(OPENING + ROWS + CLOSING, 10)
    assert all(given is passed for given, passed in zip(chunks, check_plain(chunks), strict=True))

    def broken() -> Iterator[bytes]:
        yield OPENING
        raise UpstreamError("gone")

    with pytest.raises(UpstreamError, match="gone"):
        list(check_plain(broken()))


lines = st.sampled_from(
    [
        b"--",
        b"-- PostgreSQL database dump complete",
        b"",
        b"\\\\.",
        b"x'y",
        b'"',
        b"$$",
        b"COPY public.t (a) FROM stdin;",
        b"\\\\",
    ]
)


@settings(deadline=None, derandomize=True)
@given(st.lists(lines, max_size=12), st.lists(lines, max_size=12), st.integers(1, 60), st.integers(0, 1 << 20))
def test_any_rows_pass_whole_and_never_cut(rows: list[bytes], literal: list[bytes], size: int, end: int) -> None:
    text = OPENING + b"COPY public.t (a) FROM stdin;\n" + b"".join(row + b"\n" for row in rows) + b"\\.\n\n\n"
    text += b"INSERT INTO public.t VALUES ('" + b"\n".join(literal).replace(b"'", b"''") + b"');\n"
    text += b"CREATE FUNCTION public.f() AS $_$" + b"\n".join(literal) + b"$_$;\n" + CLOSING
    assert is_whole(text, size)
    assert not is_whole(text[: end % len(text)], size)


def test_a_line_of_any_length_costs_no_memory() -> None:
    chunk = b"x" * (1 << 20)
    for start, end in (
        (b"COPY public.t (a) FROM stdin;\n", b"\n\\.\n\n\n"),
        (b"INSERT INTO public.t VALUES ('", b"');\n\n\n"),
        (b"CREATE FUNCTION public.f() AS $_$", b"$_$;\n\n\n"),
        (b"-- Name: ", b"\n\n\n"),
        (b"SELECT ", b";\n\n\n"),
    ):
        tracemalloc.start()
        try:
            for _ in check_plain(itertools.chain([OPENING + start], itertools.repeat(chunk, 24), [end + COMPLETE])):
                pass
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20, start


@pytest.mark.parametrize("filler", [b"'", b"'a',", b"$", b"-", b"\n", b"\nCOPY ", b"\nC", b'"', b"--\n", b"$a", b"/*"])
def test_no_text_makes_it_slow(filler: bytes) -> None:
    text = OPENING + filler * ((4 << 20) // len(filler))
    started = time.process_time()
    assert not is_whole(text, 1 << 16)
    assert time.process_time() - started < 15


def test_no_pattern_repeats_a_group_possessively() -> None:
    """Python before 3.11.5 (Debian 12 has 3.11.2) lets such a repeat run over its end: whole dumps were refused."""
    parser = importlib.import_module("re._parser")

    def possessive_groups(parsed: Any) -> Iterator[str]:
        for operator, argument in parsed:
            if str(operator) == "POSSESSIVE_REPEAT" and (len(argument[2]) != 1 or str(argument[2][0][0]) not in SETS):
                yield str(argument[2])
            for part in argument if isinstance(argument, tuple | list) else ():
                for inner in part if isinstance(part, list) else [part]:
                    if isinstance(inner, parser.SubPattern):
                        yield from possessive_groups(inner)

    patterns = {name: value.pattern for name, value in vars(plaintext).items() if isinstance(value, re.Pattern)}
    assert {"_PLAIN_SQL", "_COPY"} <= set(patterns)
    assert [] != list(possessive_groups(parser.parse(rb"(?:ab|c)*+")))
    assert [] != list(possessive_groups(parser.parse(rb"x(?:y(?:ab|c)*+|z)*")))
    assert {name: [] for name in patterns} == {
        name: list(possessive_groups(parser.parse(pattern))) for name, pattern in patterns.items()
    }


def test_a_statement_of_many_literals_ends_where_it_ends() -> None:
    """The text is followed in parts of a thousand pieces; what stands behind them counts just as well."""
    for count in (998, 999, 1000, 1001, 2500):
        literals = b"INSERT INTO t VALUES (" + b"-1,'a'," * count + b"'" + CLOSING + b"');\n"
        assert is_whole(OPENING + literals + CLOSING)
        assert not is_whole(OPENING + literals[: -len(b"');\n")])
