"""The conformance kit for stores passes a good store and catches each kind of bad one."""

from __future__ import annotations

import fnmatch
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar

import attrs
import pytest

from pgsnap import Entry, NotFound, Store, StoreError
from pgsnap.streams import Chunks, Stream
from pgsnap.testing import StoreConformance

PLACES: dict[str, dict[str, bytes]] = {}


@attrs.frozen(kw_only=True)
class Dictionary(Store):
    """A good one: objects in a dictionary, found again by the URL."""

    name: ClassVar[str] = "dictionary"

    @property
    def objects(self) -> dict[str, bytes]:
        return PLACES.setdefault(self.url, {})

    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        data = b"".join(chunks)
        self.objects[key] = data
        return len(data)

    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        if key not in self.objects:
            raise NotFound(f"{self.label}: {key} is not there.", self.label)
        data = self.objects[key]
        end = len(data) if length is None else start + length
        if max(start, end) > len(data):
            raise StoreError(f"{self.label}: {key} is shorter.", self.label)
        yield data[start:end]

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for key, data in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield Entry(key, len(data), datetime.now(UTC))

    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        for key in keys:
            self.objects.pop(key, None)
        return {}


class TestTheKitPassesAGoodOne(StoreConformance):
    @pytest.fixture
    def store(self) -> Dictionary:
        return Dictionary(url=f"dictionary://{secrets.token_hex(8)}")


# --- bad ones ----------------------------------------------------------------------------------------------------------------


class PublishesWhatItHas(Dictionary):
    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        self.objects[key] = b""
        for chunk in chunks:
            self.objects[key] += chunk
        return len(self.objects[key])


class BlamesItself(Dictionary):
    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        try:
            return super().write(key, chunks, expected=expected)
        except Exception as error:
            raise StoreError("writing failed.", self.label) from error


class SaysAWrongSize(Dictionary):
    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        super().write(key, chunks)
        return expected or 0


class ClosesTheSource(Dictionary):
    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        size = super().write(key, chunks)
        getattr(chunks, "close", lambda: None)()
        return size


class AppendsOnOverwriting(Dictionary):
    def write(self, key: str, chunks: Chunks, *, expected: int | None = None) -> int:
        return super().write(key, [self.objects.get(key, b""), *chunks])


class ReadsShort(Dictionary):
    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        data = b"".join(super().read(key))
        yield data[start : None if length is None else start + length]


class ReadsAMissingObjectAsEmpty(Dictionary):
    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        yield self.objects.get(key, b"")


class IgnoresTheRange(Dictionary):
    def read(self, key: str, start: int = 0, length: int | None = None) -> Stream:
        yield from super().read(key)


class MatchesNeighbours(Dictionary):
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return super().entries(prefix.rstrip("/"))


class ListsOneLevel(Dictionary):
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return (entry for entry in super().entries(prefix) if "/" not in entry.key.removeprefix(prefix))


class ListsTwice(Dictionary):
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for entry in super().entries(prefix):
            yield entry
            yield entry


class RemembersItsListing(Dictionary):
    remembered: ClassVar[dict[str, list[Entry]]] = {}

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return iter(self.remembered.setdefault(self.url, list(super().entries(prefix))))


class TellsLocalTime(Dictionary):
    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for entry in super().entries(prefix):
            yield attrs.evolve(entry, modified=datetime.now())


class DeletesByPattern(Dictionary):
    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        return super().delete([key for key in list(self.objects) if any(fnmatch.fnmatch(key, pattern) for pattern in keys)])


class DeletesFolders(Dictionary):
    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        return super().delete([key for key in list(self.objects) if any(f"{key}/".startswith(f"{name}/") for name in keys)])


class RefusesAbsentKeys(Dictionary):
    def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
        super().delete(keys)
        return dict.fromkeys(keys, "there is no such object")


class SweepsEverything(Dictionary):
    def sweep(self, prefix: str, before: datetime) -> Sequence[str]:
        found = [entry.key for entry in self.entries(prefix)]
        self.delete(found)
        return found


class TellsThePassword(Dictionary):
    @property
    def label(self) -> str:
        return self.url


KIT = TestTheKitPassesAGoodOne()
Test = Callable[[Store], None]
BAD: list[tuple[type[Dictionary], Sequence[Test]]] = [
    (
        PublishesWhatItHas,
        [
            lambda s: KIT.test_a_failing_source_publishes_nothing(s, OSError(5, "no"), 1),
            KIT.test_a_failing_source_keeps_the_old_object,
            KIT.test_an_unfinished_write_is_not_seen,
            KIT.test_a_second_writer_of_the_same_key,
        ],
    ),
    (BlamesItself, [lambda s: KIT.test_a_failing_source_publishes_nothing(s, OSError(5, "no"), 1)]),
    (SaysAWrongSize, [lambda s: KIT.test_expected_is_only_a_guess(s, 1)]),
    (ClosesTheSource, [KIT.test_the_source_is_not_closed]),
    (AppendsOnOverwriting, [KIT.test_overwriting_replaces]),
    (ReadsShort, [KIT.test_a_range_beyond_the_end_raises]),
    (ReadsAMissingObjectAsEmpty, [KIT.test_a_missing_object_is_not_found, KIT.test_a_folder_is_no_object]),
    (IgnoresTheRange, [lambda s: KIT.test_ranges(s, 1, None), lambda s: KIT.test_ranges(s, 0, 1)]),
    (MatchesNeighbours, [KIT.test_a_prefix_is_a_folder]),
    (ListsOneLevel, [KIT.test_a_prefix_is_a_folder]),
    (ListsTwice, [KIT.test_delete]),
    (RemembersItsListing, [KIT.test_listings_are_not_cached]),
    (TellsLocalTime, [KIT.test_times_are_in_utc]),
    (DeletesByPattern, [KIT.test_deleting_an_odd_key_spares_its_neighbours]),
    (DeletesFolders, [KIT.test_deleting_a_folder_deletes_nothing]),
    (RefusesAbsentKeys, [KIT.test_an_absent_key_is_deleted]),
    (SweepsEverything, [KIT.test_sweep_spares_what_is_finished]),
    (TellsThePassword, [KIT.test_the_label_holds_no_credentials]),
]


@pytest.mark.parametrize(
    ("bad", "test"),
    [(bad, test) for bad, tests in BAD for test in tests],
    ids=[bad.__name__ for bad, tests in BAD for _ in tests],
)
def test_the_kit_catches(bad: type[Dictionary], test: Test) -> None:
    """The test that is meant for it fails, for each way of being wrong."""
    store = bad(url=f"dictionary://user:password@{secrets.token_hex(8)}")
    with pytest.raises((AssertionError, pytest.fail.Exception, StoreError)):
        test(store)
