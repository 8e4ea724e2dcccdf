"""What every transform must do, as tests to inherit."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shlex
import shutil
import subprocess
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgsnap.components.contracts import Component, Transform
from pgsnap.components.values import Facts
from pgsnap.errors import IntegrityError, UpstreamError
from pgsnap.streams import CHUNK, Chunks, Stream, in_flight
from pgsnap.testing.component import ComponentConformance
from pgsnap.testing.sources import Boom, Watched, cut, failing, must_raise, no_thread_left, text

__all__ = ["TransformConformance"]

SMALL = text(300)
_quick = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
_chunks = st.lists(
    st.one_of(
        st.just(b""),
        st.binary(max_size=100),
        st.integers(1, 70_000).map(text),
        st.tuples(st.binary(min_size=1, max_size=1), st.integers(1, 300_000)).map(lambda pair: pair[0] * pair[1]),
    ),
    max_size=6,
)
_sizes = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 12_345)


class TransformConformance(ComponentConformance):
    """Tests of one transform: subclass it and give the fixture ``transform``.

    The transform that the fixture gives must be able to encode and to decode (so one that encrypts has its private key).
    """

    piece_limit: ClassVar[int] = 4 * CHUNK
    """The largest piece in bytes that ``decode`` may yield."""

    @pytest.fixture
    def transform(self) -> Transform:
        """Return the transform to test. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'transform'.")

    @pytest.fixture
    def reader(self, transform: Transform) -> Transform:
        """Return the transform that a restore on another machine would use: by default the class without any option.

        Override it for a transform that needs a key.
        """
        return type(transform)()

    @pytest.fixture
    def command_environment(self) -> Mapping[str, str]:
        """Return variables that the shell command of ``command`` needs, such as the path of a key."""
        return {}

    @pytest.fixture
    def component(self, transform: Transform) -> Component:
        return transform

    # --- round trips -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", _sizes)
    def test_round_trip_by_size(self, transform: Transform, size: int) -> None:
        """What goes in comes out: nothing, one byte, and around the size of a chunk."""
        plain = text(size)
        encoded, facts = encode(transform, cut(plain, CHUNK))
        assert plain == join(transform.decode(cut(encoded, CHUNK), facts))

    def test_round_trip_of_any_chunking(self, transform: Transform) -> None:
        """Chunk sizes carry no meaning and empty chunks mean nothing, on the way in and on the way out."""

        @_quick
        @given(_chunks, st.integers(1, 70_000))
        def check(chunks: list[bytes], size: int) -> None:
            encoded, facts = encode(transform, chunks)
            assert b"".join(chunks) == join(transform.decode([b"", *cut(encoded, size), b""], facts))

        check()

    def test_decodes_byte_by_byte(self, transform: Transform) -> None:
        """A decoder may be given one byte at a time."""
        encoded, facts = encode(transform, [SMALL])
        assert SMALL == join(transform.decode(cut(encoded, 1), facts))

    def test_incompressible_data(self, transform: Transform) -> None:
        """Data that grow when they are compressed come back as they were."""
        plain = b"".join(cut(os.urandom(3 * CHUNK + 7), 1000))
        encoded, facts = encode(transform, cut(plain, CHUNK + 3))
        assert plain == join(transform.decode([encoded], facts))

    def test_another_instance_decodes(self, transform: Transform, reader: Transform) -> None:
        """Decoding depends on facts and keys only: the class with its defaults reads what any options wrote."""
        encoded, facts = encode(transform, [SMALL])
        assert SMALL == join(reader.decode([encoded], facts))

    def test_a_pickled_copy_decodes(self, transform: Transform) -> None:
        """A copy from another process reads what this one wrote."""
        encoded, facts = encode(transform, [SMALL])
        assert SMALL == join(pickle.loads(pickle.dumps(transform)).decode([encoded], facts))

    def test_decoding_leaves_the_facts_alone(self, transform: Transform) -> None:
        """Facts come from a manifest; ``decode`` does not change them."""
        encoded, facts = encode(transform, [SMALL])
        before = copy.deepcopy(facts)
        join(transform.decode([encoded], facts))
        assert before == facts

    # --- what is damaged ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, len(SMALL)])
    def test_every_truncation_raises(self, transform: Transform, size: int) -> None:
        """A stream that was cut short at any byte raises IntegrityError; it never ends as if it were whole."""
        encoded, facts = encode(transform, [SMALL[:size]])
        for end in range(len(encoded)):
            with must_raise(IntegrityError, f"cut after {end} of {len(encoded)} bytes, and nothing was raised"):
                join(transform.decode([encoded[:end]], facts))

    def test_truncation_of_a_long_stream_raises(self, transform: Transform) -> None:
        """The same between the pieces of a long one."""
        encoded, facts = encode(transform, cut(os.urandom(3 * CHUNK), CHUNK))
        for end in (*range(0, len(encoded), len(encoded) // 16 + 1), len(encoded) - 1):
            with must_raise(IntegrityError, f"cut after {end} of {len(encoded)} bytes, and nothing was raised"):
                join(transform.decode(cut(encoded[:end], CHUNK), facts))

    def test_a_flipped_bit_never_gives_other_bytes(self, transform: Transform) -> None:
        """One flipped bit, at every byte: IntegrityError, or the same plain bytes (a bit that the format ignores)."""
        encoded, facts = encode(transform, [SMALL])
        refused = 0
        for at in range(len(encoded)):
            altered = bytearray(encoded)
            altered[at] ^= 1 << at % 8
            try:
                assert SMALL == join(transform.decode([bytes(altered)], facts)), f"byte {at} was altered unnoticed"
            except IntegrityError:
                refused += 1
        assert refused >= 0.9 * len(encoded), f"only {refused} of {len(encoded)} flipped bits were refused"

    def test_a_flipped_bit_of_a_long_stream_is_refused(self, transform: Transform) -> None:
        """The same in the middle of a long one, whose data no decoder ignores."""
        encoded, facts = encode(transform, cut(os.urandom(2 * CHUNK), CHUNK))
        for at in range(1000, len(encoded) - 1000, len(encoded) // 12):
            altered = bytearray(encoded)
            altered[at] ^= 0x10
            with must_raise(IntegrityError, f"byte {at} of {len(encoded)} was altered, and nothing was raised"):
                join(transform.decode(cut(bytes(altered), CHUNK), facts))

    @pytest.mark.parametrize("plain", [b"", SMALL], ids=["empty", "small"])
    def test_trailing_data_raises(self, transform: Transform, plain: bytes) -> None:
        """Anything after the end raises IntegrityError: a byte, a zero, a second stream, in the same chunk or a later one."""
        encoded, facts = encode(transform, [plain])
        second, _ = encode(transform, [SMALL])
        for trailing in (b"\0", b"x", b"\0" * 1024, second, b"y" * (2 * CHUNK)):
            for chunks in ([encoded + trailing], [encoded, trailing], [encoded, b"", trailing]):
                with must_raise(IntegrityError, f"{len(trailing)} bytes after the end, and nothing was raised"):
                    join(transform.decode(chunks, facts))

    def test_foreign_data_raises(self, transform: Transform) -> None:
        """Bytes that this transform never wrote raise IntegrityError."""
        _, facts = encode(transform, [SMALL])
        for foreign in (b"", b"\0", b"no such format\n" * 100, b"\xff" * 5000):
            with must_raise(IntegrityError, f"{foreign[:8]!r} was decoded, and nothing was raised"):
                join(transform.decode([foreign], facts))

    # --- the stream contract -----------------------------------------------------------------------------------------

    def test_nothing_happens_before_the_first_next(self, transform: Transform) -> None:
        """A stage acquires only inside the generator's body: calling it pulls nothing and starts nothing."""
        encoded, facts = encode(transform, [SMALL])
        for call in both(transform, facts):
            source = Watched([encoded])
            with no_thread_left():
                stream = call(source)
                assert isinstance(stream, Generator)
                assert 0 == source.pulled
                stream.close()
            assert not source.closed

    def test_chunks_are_bytes(self, transform: Transform) -> None:
        """Streams consist of ``bytes``: a bytearray or memoryview could change while it waits in a queue."""
        facts: Facts = {}
        pieces = list(transform.encode([SMALL, text(2 * CHUNK)], facts))
        assert {bytes} == {type(piece) for piece in pieces}
        assert {bytes} == {type(piece) for piece in transform.decode(pieces, facts)}

    def test_decoded_pieces_are_bounded(self, transform: Transform) -> None:
        """However much a few bytes expand to, a piece stays small: 64 MiB of zeros are 2 kB of zstd."""
        facts: Facts = {}
        encoded = b"".join(transform.encode((bytes(CHUNK) for _ in range(64)), facts))
        chunks = cut(encoded, CHUNK)
        size = 0
        for piece in transform.decode(chunks, facts):
            assert len(piece) <= self.piece_limit
            size += len(piece)
        assert 64 * CHUNK == size

    def test_closing_midway_leaves_nothing(self, transform: Transform) -> None:
        """A consumer may stop after any piece: no thread is left, and the input is not closed."""
        plain = cut(os.urandom(4 * CHUNK), CHUNK // 2)
        facts: Facts = {}
        encoded = cut(b"".join(transform.encode(plain, facts)), CHUNK)
        for call, chunks in zip(both(transform, facts), (plain, encoded), strict=True):
            for pieces in (1, 2):
                source = Watched(chunks)
                with no_thread_left():
                    stream = call(source)
                    for _ in range(pieces):
                        next(stream, None)
                    assert source.pulled, "there was output before any input was read"
                    stream.close()
                assert not source.closed

    def test_ending_leaves_nothing(self, transform: Transform) -> None:
        """A stream that was consumed leaves no thread, and has not closed its input."""
        encoded, facts = encode(transform, [SMALL])
        for call, chunks in zip(both(transform, facts), ([SMALL], [encoded]), strict=True):
            source = Watched(chunks)
            with no_thread_left():
                join(call(source))
            assert not source.closed

    @pytest.mark.parametrize("error", [Boom("no"), OSError(28, "no space"), UpstreamError("cut"), KeyboardInterrupt()], ids=type)
    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_an_error_of_the_source_passes_unchanged(self, transform: Transform, error: BaseException, after: int) -> None:
        """What the source raises comes out as the same object, from ``encode`` and ``decode``, whatever came before it."""
        plain = cut(text(4 * CHUNK), CHUNK)
        encoded, facts = encode(transform, plain)
        for call, chunks in zip(both(transform, facts), (plain, cut(encoded, len(encoded) // 5 + 1)), strict=True):
            with no_thread_left(), pytest.raises(type(error)) as caught:
                join(call(failing(chunks[:after], error)))
            assert error is caught.value

    def test_facts_are_json(self, transform: Transform) -> None:
        """Facts go into a manifest: they survive JSON as they are."""
        facts: Facts = {}
        join(transform.encode([SMALL], facts))
        assert facts == json.loads(json.dumps(facts))

    def test_streams_of_one_component_do_not_meet(self, transform: Transform) -> None:
        """A component may serve many streams: one after another, by turns in one thread, and in two threads."""
        plains = [text(3 * CHUNK, seed=1), text(2 * CHUNK, seed=10**6)]
        facts: list[Facts] = [{}, {}]
        streams = [transform.encode(cut(plain, 100_000), fact) for plain, fact in zip(plains, facts, strict=True)]
        outputs = [bytearray(), bytearray()]
        going = [0, 1]
        while going:
            for which in list(going):
                piece = next(streams[which], None)
                if piece is None:
                    going.remove(which)
                else:
                    outputs[which] += piece
        for plain, fact, output in zip(plains, facts, outputs, strict=True):
            assert plain == join(transform.decode([bytes(output)], fact))

        def trip(plain: bytes) -> bytes:
            encoded, fact = encode(transform, cut(plain, 100_000))
            return join(transform.decode(cut(encoded, 100_000), fact))

        assert plains == list(in_flight(trip, plains, 2))

    # --- without pgsnap ----------------------------------------------------------------------------------------------

    def test_the_shell_command_decodes(self, transform: Transform, command_environment: Mapping[str, str]) -> None:
        """The filter of RECOVER.txt gives the plain bytes by itself; None means that the bytes are unchanged."""
        plain = text(2 * CHUNK + 5)
        encoded, facts = encode(transform, cut(plain, CHUNK))
        command = transform.command(facts)
        if command is None:
            assert plain == encoded
            return
        if shutil.which(shlex.split(command)[0]) is None:
            pytest.skip(f"{shlex.split(command)[0]} is not installed")
        done = subprocess.run(
            ["sh", "-c", command], input=encoded, capture_output=True, env={**os.environ, **command_environment}, check=False
        )
        assert (0, b"") == (done.returncode, done.stderr)
        assert plain == done.stdout

    def test_names(self, transform: Transform) -> None:
        """The suffix begins with a dot or is empty; sidecars lie beside the file that they tell about."""
        assert transform.suffix == "" or transform.suffix.startswith(".")
        _, facts = encode(transform, [SMALL])
        for name, content in transform.sidecars("shop.dump", facts).items():
            assert name.startswith("shop.dump.")
            assert "/" not in name
            assert isinstance(content, bytes)


def encode(transform: Transform, chunks: Chunks) -> tuple[bytes, Facts]:
    """Return an encoded stream, and its facts as a manifest would give them back."""
    facts: Facts = {}
    encoded = b"".join(transform.encode(chunks, facts))
    return encoded, json.loads(json.dumps(facts))


def join(stream: Stream) -> bytes:
    """Return all bytes of a stream."""
    return b"".join(stream)


def both(transform: Transform, facts: Facts) -> tuple[Callable[[Chunks], Stream], Callable[[Chunks], Stream]]:
    """Return ``encode`` and ``decode`` as functions of their chunks."""
    return (lambda chunks: transform.encode(chunks, {})), partial(_decode, transform, facts)


def _decode(transform: Transform, facts: Facts, chunks: Chunks) -> Stream:
    return transform.decode(chunks, facts)
