"""P4: nothing of ours is needed to restore. RECOVER.txt is followed by sh, with a PATH that has no Python and no pgsnap."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from desk import Desk
from pgsnap_postgres.server import throwaway_server

ZSTD = '[[pipeline.shop.transform]]\nuse = "zstd"\n'
GZIP = '[[pipeline.shop.transform]]\nuse = "gzip"\n'
SUM = '[[pipeline.shop.transform]]\nuse = "checksum"\nalgorithm = "md5"\n'
TOOLS = ("sh", "cat", "sha256sum", "md5sum", "tail", "head", "grep", "mktemp", "rm", "sed", "awk", "id")


def contents(url: str) -> dict[str, Any]:
    """What must be the same: rows of every table, sequences, large objects, settings, owner and privileges of the database."""
    found: dict[str, Any] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET search_path = ''")
        tables = connection.execute(
            "SELECT format('%I.%I', n.nspname, c.relname), c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
            "ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'm', 'S') AND n.nspname !~ '^(pg_|information_schema)' ORDER BY 1"
        ).fetchall()
        for name, kind in tables:
            query = (
                f"SELECT last_value, is_called FROM {name}"
                if kind == "S"
                else "SELECT count(*), md5(string_agg(row, '|' ORDER BY row)) "
                f"FROM (SELECT ROW(x.*)::text AS row FROM ONLY {name} x) r"
            )
            found[name] = connection.execute(query.encode()).fetchone()
        found["large objects"] = connection.execute(
            "SELECT count(*), md5(string_agg(lo_get(oid)::text, '' ORDER BY oid)) FROM pg_catalog.pg_largeobject_metadata"
        ).fetchone()
        found["database"] = connection.execute(
            "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datacl::text FROM pg_catalog.pg_database "
            "WHERE datname = current_database()"
        ).fetchone()
        found["settings"] = connection.execute(
            "SELECT setrole::regrole::text, setconfig FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d "
            "ON d.oid = s.setdatabase WHERE d.datname = current_database() ORDER BY 1"
        ).fetchall()
    return found


def without_pgsnap(folder: Path, programs: Path, *more: str) -> dict[str, str]:
    """Make an environment whose PATH holds a few tools and PostgreSQL's client programs, and nothing else."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in (*TOOLS, *more):
        found = shutil.which(tool)
        assert found is not None, f"{tool} is not installed"
        (tools / tool).symlink_to(found)
    for program in ("psql", "pg_restore", "createdb"):
        (tools / program).symlink_to(programs / program)
    return {"PATH": str(tools), "LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize("form", ["custom", "plain"])
@pytest.mark.parametrize(
    "stages",
    ["none", "gzip", pytest.param("zstd", marks=pytest.mark.uses_programs), pytest.param("age", marks=pytest.mark.uses_programs)],
)
def test_recover_txt_restores_into_an_empty_server(
    desk: Desk, server17: Any, make_shop: Any, tmp_path: Path, form: str, stages: str
) -> None:
    """A new server, a copy of the backup's folder, ``sh RECOVER.txt``: the shop is there, whole, with its roles and settings."""
    key = tmp_path / "key.txt"
    transforms = {"none": "", "gzip": GZIP, "zstd": ZSTD, "age": ZSTD}[stages]
    if stages == "age":
        made = desk.run("keygen", "--output", str(key))
        assert 0 == made.returncode, made.stderr
        transforms += f'[[pipeline.shop.transform]]\nuse = "age"\nrecipients = ["{made.stdout.strip()}"]\n'
    url = make_shop(server17)
    compress = "none" if stages != "none" else "zstd:1"
    desk.configure(transforms=transforms + SUM, dump=f'format = "{form}"\ncompress = "{compress}"')
    done = desk.run("backup", DATABASE_URL=url)
    assert 0 == done.returncode, done.stderr
    [backup] = desk.committed("one")
    copy = tmp_path / "a copy"
    shutil.copytree(backup, copy)
    tools = {"gzip": ["gzip"], "zstd": ["zstd"], "age": ["age", "zstd"]}.get(stages, [])
    env = without_pgsnap(tmp_path, Path(server17.bindir), *tools)
    with throwaway_server(major=17, listen=None) as empty:
        env |= {
            "PGHOST": str(conninfo_to_dict(empty.socket_url)["host"]),
            "PGPORT": str(empty.port),
            "PGUSER": "postgres",
            "AGE_IDENTITY": str(key),
        }
        recovered = subprocess.run(["sh", "RECOVER.txt"], cwd=copy, env=env, capture_output=True, text=True, timeout=120)
        assert 0 == recovered.returncode, recovered.stdout + recovered.stderr
        assert "FAILED" not in recovered.stdout
        assert contents(url) == contents(empty.database_url("restored", socket=True))
        with psycopg.connect(empty.socket_url) as connection:
            roles = connection.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'shop_owner'").fetchone()
        assert (1,) == roles
    for sidecar in copy.glob("*.md5"):
        subprocess.run(["md5sum", "-c", sidecar.name], cwd=copy, check=True, stdout=subprocess.DEVNULL)


def test_a_damaged_copy_is_noticed_by_the_first_line(desk: Desk, server17: Any, make_shop: Any, tmp_path: Path) -> None:
    """``sha256sum -c`` fails and nothing after it runs."""
    desk.configure()
    url = make_shop(server17)
    assert 0 == desk.run("backup", DATABASE_URL=url).returncode
    [backup] = desk.committed("one")
    dump = max(backup.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(dump.read_bytes())
    data[-1] ^= 1
    dump.write_bytes(data)
    env = without_pgsnap(tmp_path, Path(server17.bindir)) | {"PGHOST": str(tmp_path / "nowhere")}
    done = subprocess.run(["sh", "RECOVER.txt"], cwd=backup, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"{dump.name}: FAILED" in done.stdout
    assert "psql" not in done.stderr


def test_recover_txt_names_nothing_of_the_source(desk: Desk, server17: Any, make_shop: Any) -> None:
    """No host, no user, no URL, no database name, which could be code to a shell."""
    desk.configure()
    url = make_shop(server17)
    assert 0 == desk.run("backup", DATABASE_URL=url).returncode
    [backup] = desk.committed("one")
    text = (backup / "RECOVER.txt").read_text()
    assert "$(x)" not in text
    assert "127.0.0.1" not in text
    assert str(server17.port) not in text
    assert os.fspath(desk.folder) not in text
