"""What every test run needs: proof that the installed wheels are tested, and the examples of the documents as tests.

In README.md and docs/ these fenced blocks are run from top to bottom, in an empty folder, with ``DATABASE_URL`` naming a small
database on a throwaway server, and ``RESTORE_URL`` a database there that does not exist yet:

* ``python`` is executed; names live on to the next block of the document.
* ``console``: each line that begins with ``$ `` is run by bash and must exit with 0, or with N if it ends in ``# exit N``;
  exported variables and the working directory live on.
* ``toml`` must be TOML, and is written to the file that its first line names (``# pgsnap.toml``).

All other languages (``text``, ``sh``, ``sql``, ``ini``) are for reading only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent

# Servers and sample databases, as fixtures for all tests. pytest takes plugins from the top-level conftest.py only.
pytest_plugins = ["pgsnap_postgres.testing"] if find_spec("pgsnap_postgres") else []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where nox runs the tests, what is tested must be the installed wheels and not the checkout."""
    if not os.environ.get("PGSNAP_TEST_INSTALLED"):
        return
    import pgsnap

    prefix = Path(sys.prefix).resolve()
    assert Path(pgsnap.__file__).resolve().is_relative_to(prefix), f"{pgsnap.__file__} is not the installed wheel"
    found = {str(dist.metadata["Name"]): Path(str(dist.locate_file(""))).resolve() for dist in distributions()}
    for name in sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")):
        assert name in found, f"{name} is not installed"
        assert found[name].is_relative_to(prefix), f"{name} comes from {found[name]}, not from the installed wheel"


# --- the examples of the documents ---------------------------------------------------------------------------------------

SAMPLE = """
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, joined timestamptz);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer bigint REFERENCES customers, total numeric);
INSERT INTO customers (name, joined) SELECT 'customer ' || n, timestamptz '2026-01-01Z' + n * interval '1 h'
    FROM generate_series(1, 500) n;
INSERT INTO orders (customer, total) SELECT 1 + n % 500, n * 1.25 FROM generate_series(1, 2000) n;
"""


session_stack = contextlib.ExitStack()


@functools.cache
def document_server() -> Any:
    """The server of all documents, started when the first of them needs it."""
    from pgsnap_postgres.server import throwaway_server

    return session_stack.enter_context(throwaway_server(listen=None))


def pytest_unconfigure() -> None:
    """Stop it."""
    session_stack.close()


def set_up_document(namespace: dict[str, Any]) -> None:
    """Give a document an empty folder, a database, and an environment of its own."""
    import psycopg
    from psycopg import sql

    server = document_server()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsnap-document-"))
        with psycopg.connect(server.socket_url, autocommit=True) as connection:
            for (name,) in connection.execute("SELECT datname FROM pg_database WHERE oid >= 16384").fetchall():
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute("CREATE DATABASE shop")
        with psycopg.connect(server.database_url("shop", socket=True)) as connection:
            connection.execute(SAMPLE)
        before, cwd = dict(os.environ), os.getcwd()

        def restore() -> None:
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(before)

        stack.callback(restore)
        for name in [n for n in os.environ if n.startswith(("PG", "AWS_", "SMTP_")) and n != "PGSNAP_PG_BIN"]:
            del os.environ[name]
        os.environ["DATABASE_URL"] = server.database_url("shop", socket=True)
        os.environ["RESTORE_URL"] = server.database_url("shop_restored", socket=True)
        os.environ["HOME"] = folder
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        os.chdir(folder)
        namespace["_stack"] = stack.pop_all()


def tear_down_document(namespace: dict[str, Any]) -> None:
    """Stop the document's server and remove its folder."""
    if stack := namespace.get("_stack"):
        stack.close()


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
            script = f"set -eo pipefail\n{text}\nenv -0 >{state.name}\n"
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


with contextlib.suppress(ImportError):  # without sybil the examples are not collected; nox installs it
    from sybil import Sybil
    from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

    pytest_collect_file = Sybil(
        parsers=[
            PythonCodeBlockParser(),
            CodeBlockParser("console", run_console),
            CodeBlockParser("toml", write_toml),
        ],
        patterns=["README.md", "docs/**/*.md", "plugins/*/README.md"],
        setup=set_up_document,
        teardown=tear_down_document,
    ).pytest()
