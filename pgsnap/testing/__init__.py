"""The conformance kit: what every component must do, as test classes to inherit.

A plugin's test file subclasses one of the classes below, gives it a fixture, and inherits all tests::

    class TestZstd(TransformConformance):
        @pytest.fixture
        def transform(self) -> Zstd:
            return Zstd()

Each test's docstring says the rule that it holds a component to; the rules are those of ``pgsnap.streams`` and of the
docstrings in ``pgsnap.components``. Needs the extra ``pgsnap[testing]`` (pytest and hypothesis), which nothing else imports.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "pgsnap.testing.component",
    "pgsnap.testing.dumpers",
    "pgsnap.testing.examination",
    "pgsnap.testing.notifiers",
    "pgsnap.testing.stores",
    "pgsnap.testing.transforms",
)

from pgsnap.testing.dumpers import DumperConformance, MemorySource  # noqa: E402
from pgsnap.testing.examination import StoreExamination  # noqa: E402
from pgsnap.testing.notifiers import NotifierConformance  # noqa: E402
from pgsnap.testing.sources import Boom, Watched, failing, text  # noqa: E402
from pgsnap.testing.stores import StoreConformance  # noqa: E402
from pgsnap.testing.transforms import TransformConformance  # noqa: E402

__all__ = [
    "Boom",
    "DumperConformance",
    "MemorySource",
    "NotifierConformance",
    "StoreConformance",
    "StoreExamination",
    "TransformConformance",
    "Watched",
    "failing",
    "text",
]
