"""The conformance kit for transforms passes a good transform and catches each kind of bad one."""

from __future__ import annotations

import hashlib
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast

import attrs
import pytest

from pgsnap import Facts, IntegrityError, Secret, StageError, Transform
from pgsnap.streams import CHUNK, ChunkReader, Chunks, Stream
from pgsnap.testing import TransformConformance

UNFRAME = """
import sys
read = sys.stdin.buffer.read
while size := int.from_bytes(read(4), "big"):
    sys.stdout.buffer.write(read(size))
"""


@attrs.frozen(kw_only=True)
class Framed(Transform):
    """A good one: frames of a length and bytes, and a digest of all at the end."""

    name: ClassVar[str] = "framed"
    suffix: ClassVar[str] = ".framed"

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        digest = hashlib.sha256()
        for chunk in chunks:
            for at in range(0, len(chunk), CHUNK):
                piece = chunk[at : at + CHUNK]
                digest.update(piece)
                yield len(piece).to_bytes(4, "big") + piece
        yield bytes(4) + digest.digest()
        facts["digest"] = digest.hexdigest()

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        reader, digest = ChunkReader(chunks), hashlib.sha256()
        while True:
            head = reader.read_exactly(4)
            size = int.from_bytes(head, "big")
            if len(head) < 4 or size > CHUNK:
                raise IntegrityError("cut short or damaged.")
            if size == 0:
                break
            piece = reader.read_exactly(size)
            if len(piece) < size:
                raise IntegrityError("cut short.")
            digest.update(piece)
            yield piece
        if reader.read_exactly(32) != digest.digest() or digest.hexdigest() != facts["digest"]:
            raise IntegrityError("damaged.")
        if reader.read(1):
            raise IntegrityError("trailing data.")

    def command(self, facts: Facts) -> str | None:
        return shlex.join([sys.executable, "-c", UNFRAME])


class TestTheKitPassesAGoodOne(TransformConformance):
    @pytest.fixture
    def transform(self) -> Framed:
        return Framed()


def test_a_program_that_is_missing_skips_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kit says what is not installed; an author's machine need not have every program."""
    monkeypatch.setattr(Framed, "command", lambda self, facts: "no-such-program-here -d")
    with pytest.raises(pytest.skip.Exception, match="no-such-program-here is not installed"):
        TestTheKitPassesAGoodOne().test_the_shell_command_decodes(Framed(), {})


# --- bad ones ----------------------------------------------------------------------------------------------------------------


class EndsQuietlyWhenCutShort(Framed):
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        try:
            yield from super().decode(chunks, facts)
        except IntegrityError as error:
            if "cut short" not in str(error):
                raise


class IgnoresDamage(Framed):
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        try:
            yield from super().decode(chunks, facts)
        except IntegrityError as error:
            if "damaged." != str(error):
                raise


class IgnoresTrailingData(Framed):
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        try:
            yield from super().decode(chunks, facts)
        except IntegrityError as error:
            if "trailing" not in str(error):
                raise


class ClosesItsInput(Framed):
    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        try:
            yield from super().encode(chunks, facts)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()


class WrapsTheSourcesError(Framed):
    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        try:
            yield from super().encode(chunks, facts)
        except Exception as error:
            raise StageError("framing failed.") from error


class TakesAFailedSourceForTheEnd(Framed):
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        def quiet() -> Iterator[bytes]:
            try:
                yield from chunks
            except OSError:
                return

        yield from super().decode(quiet(), facts)


RELEASE = threading.Event()


class LeavesAThread(Framed):
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        threading.Thread(target=RELEASE.wait, name="forgotten", daemon=True).start()
        yield from super().decode(chunks, facts)


class YieldsBuffers(Framed):
    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        for chunk in super().encode(chunks, facts):
            yield cast("bytes", bytearray(chunk))


class StartsBeforeItIsAsked(Framed):
    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        first = list(chunks)
        return super().encode(first, facts)


class HoldsEverything(Framed):
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield b"".join(super().decode(chunks, facts))


class RecordsBytes(Framed):
    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from super().encode(chunks, facts)
        facts["sizes"] = (1, 2)


class ChangesTheFacts(Framed):
    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from super().decode(chunks, facts)
        facts.clear()


class SharesItsState(Framed):
    shared: ClassVar[list[Any]] = []

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        self.shared[:] = [hashlib.sha256()]
        for chunk in chunks:
            self.shared[0].update(chunk)
            yield len(chunk).to_bytes(4, "big") + chunk
        yield bytes(4) + self.shared[0].digest()
        facts["digest"] = self.shared[0].hexdigest()


@attrs.frozen(kw_only=True)
class NeedsItsOption(Framed):
    """Cannot be read without the option that wrote it."""

    mask: int = 0

    def _masked(self, chunks: Chunks) -> Stream:
        for chunk in chunks:
            yield bytes(byte ^ self.mask for byte in chunk)

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from self._masked(super().encode(chunks, facts))

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from super().decode(self._masked(chunks), facts)


class SaysTheBytesAreUnchanged(Framed):
    def command(self, facts: Facts) -> str | None:
        return None


class DecodesByAWrongCommand(Framed):
    def command(self, facts: Facts) -> str | None:
        return "cat"


KIT = TestTheKitPassesAGoodOne()
Test = Callable[[Transform], None]
BAD: list[tuple[Transform, str, Test]] = [
    (bad, name, test)
    for bad, tests in [
        (
            EndsQuietlyWhenCutShort(),
            [lambda t: KIT.test_every_truncation_raises(t, 300), KIT.test_truncation_of_a_long_stream_raises],
        ),
        (IgnoresDamage(), [KIT.test_a_flipped_bit_never_gives_other_bytes, KIT.test_a_flipped_bit_of_a_long_stream_is_refused]),
        (
            IgnoresTrailingData(),
            [lambda t: KIT.test_trailing_data_raises(t, b""), lambda t: KIT.test_trailing_data_raises(t, b"x")],
        ),
        (ClosesItsInput(), [KIT.test_closing_midway_leaves_nothing, KIT.test_ending_leaves_nothing]),
        (WrapsTheSourcesError(), [lambda t: KIT.test_an_error_of_the_source_passes_unchanged(t, OSError(5, "no"), 1)]),
        (TakesAFailedSourceForTheEnd(), [lambda t: KIT.test_an_error_of_the_source_passes_unchanged(t, OSError(5, "no"), 3)]),
        (LeavesAThread(), [KIT.test_closing_midway_leaves_nothing, KIT.test_ending_leaves_nothing]),
        (YieldsBuffers(), [KIT.test_chunks_are_bytes]),
        (StartsBeforeItIsAsked(), [KIT.test_nothing_happens_before_the_first_next]),
        (HoldsEverything(), [KIT.test_decoded_pieces_are_bounded]),
        (RecordsBytes(), [KIT.test_facts_are_json]),
        (ChangesTheFacts(), [KIT.test_decoding_leaves_the_facts_alone]),
        (SharesItsState(), [KIT.test_streams_of_one_component_do_not_meet]),
        (NeedsItsOption(mask=1), [lambda t: KIT.test_another_instance_decodes(t, NeedsItsOption())]),
        (SaysTheBytesAreUnchanged(), [lambda t: KIT.test_the_shell_command_decodes(t, {})]),
        (DecodesByAWrongCommand(), [lambda t: KIT.test_the_shell_command_decodes(t, {})]),
    ]
    for name, test in [(f"{type(bad).__name__}-{number}", test) for number, test in enumerate(cast("list[Test]", tests))]
]


@pytest.mark.parametrize(("bad", "test"), [(bad, test) for bad, _, test in BAD], ids=[name for _, name, _ in BAD])
def test_the_kit_catches(bad: Transform, test: Test) -> None:
    """The test that is meant for it fails, for each way of being wrong."""
    RELEASE.clear()
    try:
        with pytest.raises((AssertionError, pytest.fail.Exception, IntegrityError, StageError)):
            test(bad)
    finally:
        RELEASE.set()


@attrs.frozen
class TakesPositions(Framed):
    """Its option is positional, so adding one later breaks its users."""

    size: int = 0


def test_a_positional_option_is_caught() -> None:
    """Options are keyword arguments."""
    with pytest.raises(AssertionError, match="size is positional"):
        KIT.test_is_a_frozen_attrs_class_with_a_name(TakesPositions())


@attrs.frozen(kw_only=True)
class ShowsItsSecret(Framed):
    """Reveals what it must hide."""

    password: Secret = attrs.field(converter=Secret, repr=Secret.reveal)


def test_a_shown_secret_is_caught() -> None:
    """A custom repr must not reveal."""
    with pytest.raises(AssertionError):
        KIT.test_shows_no_secret(ShowsItsSecret(password="hunter2"))
