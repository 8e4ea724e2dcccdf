"""All that a transform must do is inherited; what is left to test is what is special."""

from __future__ import annotations

import pytest
from pgsnap_xz import Xz

from pgsnap import ConfigError
from pgsnap.testing import TransformConformance


class TestXz(TransformConformance):
    @pytest.fixture
    def transform(self) -> Xz:
        return Xz(level=0)


def test_a_level_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="xz's level is 10; give 0"):
        Xz(level=10)
