"""What every store must do, as tests to inherit. They write some 40 MiB and remove nothing of what was there before."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import attrs
import pytest

from pgsnap.components.contracts import Component, Store
from pgsnap.components.values import Secret
from pgsnap.errors import NotFound, StoreError, UpstreamError
from pgsnap.streams import BLOCK, CHUNK, Stream, drain, in_flight
from pgsnap.testing.component import ComponentConformance
from pgsnap.testing.sources import Boom, Watched, cut, failing, must_raise, no_thread_left, text

__all__ = ["StoreConformance"]

ODD_KEYS = (
    "shop/20261122T080000Z-4f3a/manifest.json",
    "odd/with space",
    "odd/a*",
    "odd/a?",
    "odd/[ab]",
    "odd/{a,b}",
    "odd/한국어 ümlaut.dump",
    "odd/plus+and%2Fpercent",
    "odd/'quote\"$HOME`;",
    "odd/#hash&amp=1",
    "odd/~tilde",
    "odd/.hidden",
)


class StoreConformance(ComponentConformance):
    """Tests of one store: subclass it and give the fixture ``store``, a store in an empty place of its own for each test."""

    odd_keys: ClassVar[tuple[str, ...]] = ODD_KEYS
    """Keys that a store must take literally. Leave some out only if what is behind the store cannot have them."""

    @pytest.fixture
    def store(self) -> Store:
        """Return a store with nothing in it. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'store'.")

    @pytest.fixture
    def component(self, store: Store) -> Component:
        return store

    # --- write and read ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, BLOCK + CHUNK + 7])
    def test_what_was_written_is_read(self, store: Store, size: int) -> None:
        """An object comes back whole, whatever its size; ``write`` returns the bytes stored, ``entries`` tells them."""
        data = text(size)
        assert size == store.write("a/object", iter(cut(data, CHUNK)), expected=size)
        assert data == read(store, "a/object")
        assert {"a/object": size} == listing(store)

    @pytest.mark.parametrize("expected", [None, 0, 1, 10**9])
    def test_expected_is_only_a_guess(self, store: Store, expected: int | None) -> None:
        """A wrong guess of the size changes nothing."""
        assert 300 == store.write("a", [text(300)], expected=expected)
        assert text(300) == read(store, "a")

    def test_chunks_of_any_size(self, store: Store) -> None:
        """Empty chunks mean nothing, and a chunk may be large or one byte."""
        data = text(6 * CHUNK)
        chunks = [b"", data[:1], b"", data[1 : 5 * CHUNK], *cut(data[5 * CHUNK : 5 * CHUNK + 50], 1), data[5 * CHUNK + 50 :], b""]
        assert len(data) == store.write("a", chunks)
        assert data == read(store, "a")

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, None), (0, 0), (0, 1), (1, None), (CHUNK - 1, 2), (CHUNK, CHUNK), (5 * CHUNK, 11), (5 * CHUNK + 10, 1)],
    )
    def test_ranges(self, store: Store, start: int, length: int | None) -> None:
        """A range is exactly what was asked for; chunks are bytes."""
        data = text(5 * CHUNK + 11)
        store.write("a", cut(data, CHUNK))
        chunks = list(store.read("a", start, length))
        assert {type(chunk) for chunk in chunks} <= {bytes}
        assert data[start : None if length is None else start + length] == b"".join(chunks)

    def test_a_range_beyond_the_end_raises(self, store: Store) -> None:
        """Fewer bytes than were asked for is an error and not a short stream: an object that was cut short must show."""
        store.write("a", [b"12345"])
        for start, length in ((0, 6), (4, 2), (6, 1)):
            with must_raise(StoreError, f"{length} bytes from {start} of 5 were read without an error"):
                drain(store.read("a", start, length))

    def test_reading_may_stop_early(self, store: Store) -> None:
        """A reader that is closed midway leaves no thread, and the object can be read again."""
        data = text(5 * CHUNK)
        store.write("a", cut(data, CHUNK))
        stream = store.read("a")
        next(stream)
        stream.close()
        assert data == read(store, "a")

    def test_a_missing_object_is_not_found(self, store: Store) -> None:
        """NotFound, with the store's label: a missing object is not an empty one."""
        store.write("a/b", [b"x"])
        for key in ("missing", "a/missing", "missing/below"):
            with must_raise(NotFound, f"{key} was read without an error") as caught:
                drain(store.read(key))
            assert store.label == caught[0].label

    def test_a_folder_is_no_object(self, store: Store) -> None:
        """A key below which objects lie cannot be read; it must not look like an empty object."""
        store.write("a/b", [b"x"])
        with must_raise(StoreError, "a folder was read without an error"):
            drain(store.read("a"))

    def test_overwriting_replaces(self, store: Store) -> None:
        """Writing a key again replaces the object, by a longer and by a shorter one."""
        for size in (10, 2 * CHUNK, 3):
            store.write("a/b", [text(size)])
            assert text(size) == read(store, "a/b")
            assert {"a/b": size} == listing(store)

    # --- whole or not at all -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("error", [Boom("no"), OSError(28, "no space"), UpstreamError("cut"), KeyboardInterrupt()], ids=type)
    @pytest.mark.parametrize("after", [0, 1, 7])
    def test_a_failing_source_publishes_nothing(self, store: Store, error: BaseException, after: int) -> None:
        """If the chunks raise, no object appears, and the same exception comes out: it is not the store's to blame or retry."""
        store.write("a/other", [b"other"])
        with no_thread_left(), pytest.raises(type(error)) as caught:
            store.write("a/b", failing(cut(text(after * CHUNK), CHUNK), error))
        assert error is caught.value
        assert {"a/other": 5} == listing(store)
        with pytest.raises(NotFound):
            drain(store.read("a/b"))

    def test_a_failing_source_keeps_the_old_object(self, store: Store) -> None:
        """If an overwriting fails, the object that was there is there still, whole."""
        store.write("a/b", [b"old"])
        with pytest.raises(Boom):
            store.write("a/b", failing([text(CHUNK)] * 6, Boom("no")))
        assert b"old" == read(store, "a/b")
        assert {"a/b": 3} == listing(store)

    def test_an_unfinished_write_is_not_seen(self, store: Store) -> None:
        """While an object is being written, it is neither listed nor readable."""
        seen: list[dict[str, int]] = []

        def source() -> Iterator[bytes]:
            for chunk in cut(text(6 * CHUNK), CHUNK):
                seen.append(listing(store))
                with pytest.raises(NotFound):
                    drain(store.read("a/b"))
                yield chunk

        store.write("a/b", source())
        assert [{}] * 6 == seen
        assert {"a/b": 6 * CHUNK} == listing(store)

    def test_the_source_is_not_closed(self, store: Store) -> None:
        """A store consumes its chunks to the end and does not close them."""
        source = Watched([b"1", b"2"])
        with no_thread_left():
            store.write("a", source)
        assert (2, False) == (source.pulled, source.closed)

    # --- more than one at once ---------------------------------------------------------------------------------------

    def test_a_second_writer_of_another_key(self, store: Store) -> None:
        """Another object may be written, whole, while one is under way."""

        def source() -> Iterator[bytes]:
            yield text(6 * CHUNK)
            store.write("a/second", [text(CHUNK)])
            yield b"end"

        store.write("a/first", source())
        assert {"a/first": 6 * CHUNK + 3, "a/second": CHUNK} == listing(store)
        assert text(CHUNK) == read(store, "a/second")
        assert text(6 * CHUNK) + b"end" == read(store, "a/first")

    def test_a_second_writer_of_the_same_key(self, store: Store) -> None:
        """Of two writers of one key the last to finish wins, whole; nothing is mixed."""

        def source() -> Iterator[bytes]:
            yield b"1" * 6 * CHUNK
            store.write("a", [b"2" * CHUNK])
            assert b"2" * CHUNK == read(store, "a")
            yield b"1" * CHUNK

        store.write("a", source())
        assert b"1" * 7 * CHUNK == read(store, "a")

    def test_many_threads(self, store: Store) -> None:
        """A store may be used by several threads at once."""

        def trip(number: int) -> bool:
            data = text(200_000, seed=number)
            store.write(f"t/{number}", cut(data, 50_000))
            return data == read(store, f"t/{number}")

        assert [True] * 8 == list(in_flight(trip, range(8), 4))
        assert {f"t/{number}": 200_000 for number in range(8)} == listing(store, "t/")

    # --- entries -----------------------------------------------------------------------------------------------------

    def test_a_missing_prefix_has_no_entries(self, store: Store) -> None:
        """An empty store and a missing prefix list as nothing."""
        assert {} == listing(store)
        assert {} == listing(store, "missing/")
        store.write("a/b", [b"x"])
        assert {} == listing(store, "missing/")

    def test_a_prefix_is_a_folder(self, store: Store) -> None:
        """``a/`` has what is below it at any depth, and nothing of ``ab/`` or ``a.txt``."""
        for key in ("a/1", "a/2/3", "a/2/4/5", "ab/1", "a.txt", "b/a/1"):
            store.write(key, [key.encode()])
        assert {"a/1": 3, "a/2/3": 5, "a/2/4/5": 7} == listing(store, "a/")
        assert {"a/2/3": 5, "a/2/4/5": 7} == listing(store, "a/2/")
        assert {"a/1", "a/2/3", "a/2/4/5", "ab/1", "a.txt", "b/a/1"} == set(listing(store))

    def test_listings_are_not_cached(self, store: Store) -> None:
        """What another process writes or deletes is seen by the next listing."""
        other = pickle.loads(pickle.dumps(store))
        assert {} == listing(store)
        other.write("a/b", [b"x"])
        assert {"a/b": 1} == listing(store)
        other.delete(["a/b"])
        assert {} == listing(store)

    def test_times_are_in_utc(self, store: Store) -> None:
        """``modified`` is the store's own time, aware and in UTC."""
        store.write("a", [b"x"])
        (entry,) = store.entries()
        assert timedelta(0) == entry.modified.utcoffset()
        assert abs(datetime.now(UTC) - entry.modified) < timedelta(days=1)

    # --- keys --------------------------------------------------------------------------------------------------------

    def test_odd_keys_are_literal(self, store: Store) -> None:
        """Keys are taken as they are: ``*``, ``?``, ``[``, spaces and Unicode mean nothing."""
        for key in self.odd_keys:
            store.write(key, [key.encode()])
        assert {key: len(key.encode()) for key in self.odd_keys} == listing(store)
        for key in self.odd_keys:
            assert key.encode() == read(store, key)

    def test_deleting_an_odd_key_spares_its_neighbours(self, store: Store) -> None:
        """Deleting ``a*`` deletes that object alone: a glob once deleted a neighbour's backup."""
        neighbours = {"odd/a", "odd/ab", "odd/abc", "odd/b"}
        odd = [key for key in self.odd_keys if key.startswith("odd/")]
        for key in (*neighbours, *odd):
            store.write(key, [b"x"])
        for key in odd:
            assert {} == store.delete([key])
            odd_left = set(odd[odd.index(key) + 1 :])
            assert neighbours | odd_left == set(listing(store))

    # --- delete and sweep --------------------------------------------------------------------------------------------

    def test_delete(self, store: Store) -> None:
        """Several objects are deleted at once; those not named stay."""
        for key in ("a/1", "a/2", "a/3", "ab/1"):
            store.write(key, [b"x"])
        assert {} == store.delete(["a/1", "a/3"])
        assert {"a/2": 1, "ab/1": 1} == listing(store)
        with pytest.raises(NotFound):
            drain(store.read("a/1"))

    def test_an_absent_key_is_deleted(self, store: Store) -> None:
        """Deleting what is not there is no error, alone or among others; deleting nothing is none either."""
        store.write("a/1", [b"x"])
        assert {} == store.delete(["missing", "a/missing", "a/1", "missing/below"])
        assert {} == store.delete([])
        assert {} == listing(store)

    def test_deleting_a_folder_deletes_nothing(self, store: Store) -> None:
        """A key names one object, never all that is below it."""
        store.write("a/1", [b"x"])
        store.delete(["a"])
        assert {"a/1": 1} == listing(store)

    def test_sweep_spares_what_is_finished(self, store: Store) -> None:
        """``sweep`` removes remains of unfinished writes only, however late ``before`` is."""
        store.write("a/b", [text(CHUNK)])
        with pytest.raises(Boom):
            store.write("a/c", failing([text(CHUNK)] * 6, Boom("no")))
        removed = store.sweep("a/", datetime.now(UTC) + timedelta(days=2))
        assert "a/b" not in removed
        assert {"a/b": CHUNK} == listing(store)
        assert [] == list(store.sweep("missing/", datetime.now(UTC)))

    def test_locks(self, store: Store) -> None:
        """A store that locks says until when, extends, and shortens nothing; of any other, nothing is locked and all can go."""
        keys = ["a/small", "a/large"]
        before = datetime.now(UTC) - timedelta(seconds=1)
        store.write("a/small", [b"x"])
        store.write("a/large", cut(text(BLOCK + CHUNK), CHUNK))
        period = store.lock_period
        if period is None:
            assert {} == store.extend_lock(keys, datetime.now(UTC) + timedelta(days=1))
            assert [None, None] == [store.locked_until(key) for key in keys]
            assert {} == store.delete(keys)
            assert {} == listing(store)
            return
        for key in keys:
            end = locked(store, key)
            assert before + period <= end <= datetime.now(UTC) + period
        later = before + 1.5 * period
        assert {} == store.extend_lock(keys, later)
        assert {} == store.extend_lock(keys, before + 1.2 * period)
        for key in keys:
            assert abs(locked(store, key) - later) < timedelta(seconds=1)
        assert {"missing"} == store.extend_lock([*keys, "missing"], later).keys()
        with must_raise(NotFound, "the lock of a missing object was told"):
            store.locked_until("missing")

    # --- the rest ----------------------------------------------------------------------------------------------------

    def test_a_pickled_copy_reads(self, store: Store) -> None:
        """A store holds no connection: its copy in another process sees the same objects."""
        store.write("a", [b"x"])
        assert b"x" == read(pickle.loads(pickle.dumps(store)), "a")

    def test_the_label_holds_no_credentials(self, store: Store) -> None:
        """The label stands in every message: no user, no password, no secret option."""
        assert store.label
        assert "@" not in store.label.partition("://")[2].partition("/")[0]
        for field in attrs.fields(type(store)):
            secret = getattr(store, field.name)
            if isinstance(secret, Secret) and secret:
                assert secret.reveal() not in store.label


def read(store: Store, key: str) -> bytes:
    """Return a whole object."""
    stream: Stream = store.read(key)
    return b"".join(stream)


def locked(store: Store, key: str) -> datetime:
    """Return when the lock of an object ends."""
    end = store.locked_until(key)
    assert end is not None, f"{key} has no lock"
    return end


def listing(store: Store, prefix: str = "") -> dict[str, int]:
    """Return keys and sizes below a prefix, and fail if one is listed twice."""
    found = [(entry.key, entry.size) for entry in store.entries(prefix)]
    assert len(found) == len(dict(found)), f"an object is listed twice: {sorted(found)}"
    return dict(found)
