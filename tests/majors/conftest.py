"""The majors that the wheels of the ordinary tests do not bring: ``nox -s majors`` fetches them and names them in a variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDERS = [Path(folder) for folder in os.environ.get("PGSNAP_TEST_BINDIRS", "").split(os.pathsep) if folder]

collect_ignore_glob = [] if FOLDERS else ["test_*.py"]
"""Without them there is nothing to test here, and nothing is reported as skipped."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that wants a ``bindir`` with each of them."""
    if "bindir" in metafunc.fixturenames:
        metafunc.parametrize("bindir", FOLDERS, ids=[_label(folder) for folder in FOLDERS])


def _label(folder: Path) -> str:
    import subprocess

    said = subprocess.run([folder / "pg_dump", "--version"], capture_output=True, text=True, check=True).stdout
    return "pg" + said.split()[2]
