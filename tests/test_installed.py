"""Where nox runs the tests, what is tested are the installed wheels and not the checkout."""

from __future__ import annotations

import os
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

import pgsnap

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not os.environ.get("PGSNAP_TEST_INSTALLED"), reason="the checkout is being tested on purpose")
def test_the_wheels_are_tested() -> None:
    """Core and every plugin come from this environment."""
    prefix = Path(sys.prefix).resolve()
    assert Path(pgsnap.__file__).resolve().is_relative_to(prefix), f"{pgsnap.__file__} is not the installed wheel"
    found = {str(dist.metadata["Name"]): Path(str(dist.locate_file(""))).resolve() for dist in distributions()}
    for name in sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")):
        assert name in found, f"{name} is not installed"
        assert found[name].is_relative_to(prefix), f"{name} comes from {found[name]}, not from the installed wheel"
