"""``nox -s demo`` as a person runs it: the example itself, in a process of its own."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pgsnap_postgres.server import throwaway_server

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "demo" / "demo.py"


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo; what it makes lies in ``folder``/demo-output."""
    # Like a person's: without PYTHONSAFEPATH the example finds the module beside it.
    base = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=folder, env={**base, **environment}, capture_output=True, text=True, timeout=240
    )


def test_demo_leaves_what_it_says(tmp_path: Path) -> None:
    """It fits on one screen, and the key, the configuration and both copies lie where the text says."""
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(len(line) for line in lines if "/" not in line) <= 100
    assert "\x1b" not in done.stdout
    output = tmp_path / "demo-output"
    assert stat.S_IMODE((output / "key.txt").stat().st_mode) == 0o600
    for store in ("store-a", "store-b"):
        (manifest,) = output.glob(f"{store}/shop/*/manifest.json")
        assert (manifest.parent / "RECOVER.txt").exists()
    secret = (output / "key.txt").read_text().split()[-1]
    assert secret.startswith("AGE-SECRET-KEY-")
    assert secret not in done.stdout
    commands = [line.strip() for line in lines if "--config demo-output/pgsnap.toml" in line]
    assert len(commands) == 2
    for command in commands:  # the next ones to try really work
        again = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert again.returncode == 0, command + again.stdout + again.stderr


def test_demo_again_replaces_its_own_output_only(tmp_path: Path) -> None:
    """A folder of that name that is not the demo's is left alone."""
    (tmp_path / "demo-output").mkdir()
    (tmp_path / "demo-output" / "thesis.tex").write_text("years")
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "not from the demo" in done.stdout
    assert (tmp_path / "demo-output" / "thesis.tex").read_text() == "years"


def test_demo_with_a_database_of_ones_own(tmp_path: Path) -> None:
    """DATABASE_URL is backed up instead, restored elsewhere and compared; its password is nowhere in what is left."""
    with throwaway_server(major=17) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE mine")
        url = server.database_url("mine")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE things AS SELECT n, md5(n::text) AS text FROM generate_series(1, 1000) n")
        done = run_demo(tmp_path, DATABASE_URL=url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"public\.things +1,000 .* equal", done.stdout)
        password = server.password.reveal()
        assert password not in done.stdout + done.stderr
        for path in tmp_path.rglob("*"):
            if path.is_file():
                assert password.encode() not in path.read_bytes()


def test_demo_says_why_a_database_cannot_be_reached(tmp_path: Path) -> None:
    """One sentence without the password, exit status 1."""
    done = run_demo(tmp_path, DATABASE_URL="postgresql://u:canary-secret@127.0.0.1:1/x")
    assert done.returncode == 1
    assert "cannot be reached" in done.stdout
    assert "canary-secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["postgresql+asyncpg://u:canary-secret@127.0.0.1:1/x", "postgresql://u:canary secret@[x/y"])
def test_demo_does_not_repeat_a_url_that_it_cannot_read(tmp_path: Path, url: str) -> None:
    """libpq repeats the whole URL in its complaint; the demo must not."""
    done = run_demo(tmp_path, DATABASE_URL=url)
    assert done.returncode == 1
    assert "canary" not in done.stdout + done.stderr
