"""What ``pgsnap doctor --deep`` does with a store, as tests to inherit: for a store of one's own, or a bucket of one's own."""

from __future__ import annotations

import pytest

from pgsnap.components.contracts import Store
from pgsnap.components.run import Run
from pgsnap.operations.doctor import examine

__all__ = ["StoreExamination"]


class StoreExamination:
    """Tests of one store, which may hold something already: subclass it and give the fixture ``store``.

    It writes some 24 MiB and 1,001 small objects into a folder of its own, and removes them.
    """

    @pytest.fixture
    def store(self) -> Store:
        """Return the store. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'store'.")

    def test_doctor_finds_no_error_and_cleans_up(self, store: Store) -> None:
        """Writing, reading, listing, aborting and deleting work, or are refused on purpose; what is not in order has a remedy."""
        findings = list(examine(store, Run("conformance")))
        assert [] == [finding for finding in findings if finding.level == "error"]
        assert {store.label} == {finding.subject for finding in findings}
        assert [] == [finding for finding in findings if finding.level == "warning" and not finding.remedy]
        if not any("may not" in finding.text for finding in findings):
            assert [] == list(store.entries("conformance/"))
