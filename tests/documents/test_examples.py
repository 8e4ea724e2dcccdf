"""The examples of the documents run.

In README.md, docs/ and the plugins' READMEs these fenced blocks are run from top to bottom, in an empty folder, with
``DATABASE_URL`` naming a small database on a throwaway server, and ``RESTORE_URL`` a database there that does not exist yet:

* ``python`` is executed; names live on to the next block of the document.
* ``console``: each line that begins with ``$ `` is run by bash and must exit with 0, or with N if it ends in ``# exit N``;
  exported variables and the working directory live on.
* ``toml`` must be TOML, and is written to the file that its first line names (``# pgsnap.toml``).

All other languages (``text``, ``sh``, ``sql``, ``ini``) are for reading only.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

from pgsnap_postgres.server import Server, throwaway_server

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("README.md", "docs/**/*.md", "plugins/*/README.md")
    for path in ROOT.glob(pattern)
    if any(f"```{language}" in path.read_text() for language in ("python", "console", "toml"))
)

SAMPLE = """
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, joined timestamptz);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint REFERENCES customers, total numeric);
INSERT INTO customers (name, joined) SELECT 'customer ' || n, timestamptz '2026-01-01Z' + n * interval '1 h'
    FROM generate_series(1, 500) n;
INSERT INTO orders (customer, total) SELECT 1 + n % 500, n * 1.25 FROM generate_series(1, 2000) n;
"""


@pytest.fixture(scope="module")
def document_server() -> Iterator[Server]:
    """One server for all documents."""
    with throwaway_server(listen=None) as server:
        yield server


@pytest.fixture
def desk_of_a_reader(document_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a document an empty folder, a database, and an environment of its own."""
    server = document_server
    with psycopg.connect(server.socket_url, autocommit=True) as connection:
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE oid >= 16384").fetchall():
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute("CREATE DATABASE shop")
    with psycopg.connect(server.database_url("shop", socket=True)) as connection:
        connection.execute(SAMPLE)
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("PG", "AWS_", "SMTP_")) and n != "PGSNAP_PG_BIN"]:
        del os.environ[name]
    os.environ["DATABASE_URL"] = server.database_url("shop", socket=True)
    os.environ["RESTORE_URL"] = server.database_url("shop_restored", socket=True)
    os.environ["HOME"] = str(tmp_path)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    yield
    os.environ.clear()  # the blocks may have exported anything
    os.environ.update(before)


def run_console(example: Any) -> str | None:
    """Run the commands of a console block; return what went wrong, or None."""
    commands: list[str] = []
    goes_on = False
    for line in str(example.parsed).splitlines():
        if line.startswith("$ "):
            commands.append(line[2:])
        elif goes_on:
            commands[-1] += "\n" + line
        goes_on = (line.startswith("$ ") or goes_on) and line.endswith("\\")
    assert commands, "a console block has no line that begins with '$ '"
    for command in commands:
        text, _, status = command.partition("# exit ")
        with tempfile.NamedTemporaryFile() as state:
            script = f"set -eo pipefail\n{text}\nenv -0 >{shlex.quote(state.name)}\n"
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
            if done.returncode != int(status.strip() or 0):
                return f"$ {command}\nexited with {done.returncode}\n{done.stdout}{done.stderr}"
            after = dict(item.split("=", 1) for item in state.read().decode().split("\0") if item)
        if after:
            os.environ.update(after)
            os.chdir(after["PWD"])
    return None


def write_toml(example: Any) -> None:
    """Write the block to the file that its first line names; without such a line it must at least be TOML."""
    text = str(example.parsed)
    tomllib.loads(text)
    first = text.lstrip().partition("\n")[0]
    if first.startswith("# ") and first.endswith(".toml"):
        Path(first[2:]).write_text(text)


READER = Sybil(parsers=[PythonCodeBlockParser(), CodeBlockParser("console", run_console), CodeBlockParser("toml", write_toml)])


@pytest.mark.usefixtures("desk_of_a_reader")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_document_run(path: Path) -> None:
    """From top to bottom; the first that fails is named with its line."""
    for example in READER.parse(path).examples():
        example.evaluate()
