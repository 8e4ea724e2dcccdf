"""P7: no scratch disk and bounded memory: backup, verify, copy and restore are streams, however large the database is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from desk import Desk

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))
MIB = 1 << 20


def synthetic_pg_dump(folder: Path, real: Path, megabytes: int) -> str:
    """Make client programs whose pg_dump prints a plain dump of so many MB that is whole by its structure."""
    folder.mkdir()
    for program in real.iterdir():
        if program.name != "pg_dump":
            (folder / program.name).symlink_to(program)
    major = subprocess.run([real / "pg_dump", "--version"], capture_output=True, text=True, check=True).stdout
    assert "17." in major
    script = f"""#!/bin/sh
case "$*" in *--version*|*--help*|*--schema-only*) exec "{real}/pg_dump" "$@";; esac
cat <<'HEAD'
--
-- PostgreSQL database dump
--

\\restrict abcdefKEY

COPY public.t (a) FROM stdin;
HEAD
yes "$(head -c 4000 /dev/zero | tr '\\0' x)" | head -c {megabytes * 1_000_000}
echo
cat <<'TAIL'
\\.

--
-- PostgreSQL database dump complete
--

\\unrestrict abcdefKEY

TAIL
"""
    (folder / "pg_dump").write_text(script)
    (folder / "pg_dump").chmod(0o755)
    return str(folder)


def peak(desk: Desk, *arguments: str, **env: str) -> int:
    """Run the command in a folder it cannot use for scratch files; return the peak memory in bytes of it or a child of it."""
    nowhere = desk.folder / "nowhere"
    reader, writer = os.pipe()
    code = (
        "import os, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[2:], capture_output=True, text=True)\n"
        "assert done.returncode == 0, done.stderr\n"
        "os.write(int(sys.argv[1]), str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss).encode())\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(writer), PROGRAM, *arguments],
        cwd=desk.folder,
        env={**desk.env, "TMPDIR": str(nowhere), **env},
        pass_fds=(writer,),
        check=True,
        timeout=280,
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        return int(file.read()) * 1024


@pytest.mark.parametrize("stage", ["zstd", "gzip"])
def test_memory_does_not_grow_with_the_database(desk: Desk, big_url: str, server17: Any, tmp_path: Path, stage: str) -> None:
    """Ten times the bytes, the same memory (within 16 MiB), under 100 MiB, with three stores, encryption and every digest."""
    public = desk.run("keygen", "-o", "key.txt").stdout.strip()
    transforms = (
        f'[[pipeline.shop.transform]]\nuse = "{stage}"\n[[pipeline.shop.transform]]\nuse = "age"\nrecipients = ["{public}"]\n'
    )
    peaks = []
    for megabytes in (120, 1200):
        programs = synthetic_pg_dump(tmp_path / f"bin{megabytes}", Path(server17.bindir), megabytes)
        desk.configure(transforms=transforms, stores=("one", "two"), dump=f'format = "plain"\nbindir = "{programs}"')
        taken = peak(desk, "backup", DATABASE_URL=big_url)
        decoded = peak(desk, "verify", "--decode", "--identity", "key.txt")
        peaks.append((taken, decoded))
        for label, size in (("backup", taken), ("verify", decoded)):
            assert size <= 100 * MIB, f"{label}: {size / MIB:.0f} MiB"
    (small, small_verify), (large, large_verify) = peaks
    print(
        f"{stage}: backup {small / MIB:.0f} -> {large / MIB:.0f} MiB, "
        f"verify {small_verify / MIB:.0f} -> {large_verify / MIB:.0f} MiB"
    )
    assert large - small <= 16 * MIB
    assert large_verify - small_verify <= 40 * MIB  # the small backup does not fill a block of 16 MiB


def test_nothing_is_written_outside_the_stores(desk: Desk, big_url: str, server17: Any, make_db: Any, tmp_path: Path) -> None:
    """With a TMPDIR that does not exist, a HOME that cannot hold a file larger than nothing: backup, copy, verify, restore."""
    desk.configure(stores=("one",))
    env = {"TMPDIR": str(tmp_path / "nowhere"), "DATABASE_URL": big_url, "TARGET": make_db(server17)}
    assert 0 == desk.run("backup", **env).returncode
    desk.configure(stores=("one", "two"))
    for arguments in (["copy"], ["verify", "--decode"], ["restore", "--to-env", "TARGET"]):
        done = desk.run(*arguments, **env)
        assert 0 == done.returncode, done.stderr
    allowed = {"one", "two", "pgsnap.toml"}
    assert allowed == {path.name for path in desk.folder.iterdir()}
