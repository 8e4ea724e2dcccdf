"""A pytest plugin: the programs that RECOVER.txt calls, for machines that lack them.

Where ``age``, ``age-keygen`` or ``zstd`` is missing, a stand-in of that name, in Python, is put at the end of PATH. The session
``programs`` wants the real ones: it sets ``PGSNAP_TEST_PROGRAMS``; then no stand-in is used, and a test whose program is missing
fails instead of being skipped.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Never

import pytest

REAL = "PGSNAP_TEST_PROGRAMS" in os.environ
STANDINS = {"age": "age_program.py", "age-keygen": "age_program.py", "zstd": "zstd_program.py"}
FOLDER = pytest.StashKey[str]()


def missing(what: str) -> Never:
    """Skip a test that needs ``what``, or fail it in the session that promises to have it."""
    if REAL:
        pytest.fail(f"{what} is missing, and this session must have it")
    pytest.skip(f"{what} is missing; the session 'programs' has it")


def pytest_configure(config: pytest.Config) -> None:
    """Put stand-ins on PATH for what is missing."""
    wanted = {name: script for name, script in STANDINS.items() if not REAL and shutil.which(name) is None}
    if not wanted:
        return
    folder = config.stash[FOLDER] = tempfile.mkdtemp(prefix="pgsnap-standins-")
    Path(folder).chmod(0o755)
    for name, script in wanted.items():
        program = Path(folder, name)
        command = shlex.join([sys.executable, "-P", str(Path(__file__).parent / "standins" / script), name])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), folder])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove them."""
    if folder := config.stash.get(FOLDER, None):
        shutil.rmtree(folder, ignore_errors=True)
