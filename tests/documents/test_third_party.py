"""The example of a third party's plugin: it registers by its hook alone, and its own tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from pgsnap.components.registry import Registry

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "third-party-plugin"


def test_it_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point, as an installed distribution is."""
    info = tmp_path / "pgsnap_xz-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pgsnap-xz\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text("[pgsnap]\nxz = pgsnap_xz\n")
    assert ["xz"] == [point.name for point in PathDistribution(info).entry_points]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    registry = Registry.load()
    assert ("pgsnap-xz", "1.0.0", "") in [(p.distribution, p.version, p.error) for p in registry.plugins]
    assert "Xz" == registry.get("transform", "xz").__name__
    sys.modules.pop("pgsnap_xz")


def test_its_own_tests_pass() -> None:
    """As its author runs them, in a process of their own."""
    # What the parent found first must be found first here, too: the wheels where nox runs this, else the checkout.
    path = os.pathsep.join([str(EXAMPLE / "src"), *filter(None, sys.path)])
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--rootdir", str(EXAMPLE), "-p", "no:cacheprovider", "tests"]
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=EXAMPLE, env=environment, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout
