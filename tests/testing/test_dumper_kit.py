"""The conformance kit for dumpers passes a good dumper and catches bad ones."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import attrs
import pytest

from pgsnap import Artifact, Dump, Dumper, Facts, RestoreRequest, Run, Secret, Source
from pgsnap.streams import CHUNK, Stream
from pgsnap.testing import DumperConformance, text

CONTENTS = {"globals.sql": text(500), "shop.dump": text(2 * CHUNK + 5)}
TARGETS: dict[str, dict[str, bytes]] = {}


@attrs.frozen(kw_only=True)
class Toy(Dumper):
    """A good one: its database is a constant, its targets are dictionaries."""

    name: ClassVar[str] = "toy"

    def stream(self, name: str, run: Run) -> Stream:
        data = CONTENTS[name]
        for at in range(0, len(data), CHUNK):
            run.check()
            yield data[at : at + CHUNK]

    @contextlib.contextmanager
    def dump(self, run: Run) -> Iterator[Dump]:
        artifacts = [Artifact(name=name, open=lambda name=name: self.stream(name, run)) for name in CONTENTS]  # type: ignore[misc]
        yield Dump(artifacts=artifacts, facts={"totals": {"tables": 2}})

    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        found = {name: b"".join(source.open(name)) for name in source.artifacts}
        TARGETS.setdefault(request.target.reveal(), {}).update(found)

    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "\n".join(f"@{{{name}}} | psql" for name in artifacts)


class TestTheKitPassesAGoodOne(DumperConformance):
    @pytest.fixture
    def dumper(self) -> Toy:
        return Toy()

    @pytest.fixture
    def restore_request(self) -> RestoreRequest:
        return new_request()

    def assert_restored(self, request: RestoreRequest) -> None:
        assert CONTENTS == TARGETS.get(request.target.reveal())

    def assert_untouched(self, request: RestoreRequest) -> None:
        assert {} == TARGETS.get(request.target.reveal(), {})


def new_request() -> RestoreRequest:
    return RestoreRequest(target=Secret(f"toy://user:s3cret@host/{secrets.token_hex(4)}"))


# --- bad ones ----------------------------------------------------------------------------------------------------------------


class GoesOnAfterAnAbort(Toy):
    def stream(self, name: str, run: Run) -> Stream:
        yield CONTENTS[name]


class RestoresWhatItHasGot(Toy):
    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        target = TARGETS.setdefault(request.target.reveal(), {})
        for name in source.artifacts:
            target[name] = b""
            for chunk in source.open(name):
                target[name] += chunk


class HidesAFailedSource(Toy):
    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        with contextlib.suppress(Exception):
            super().restore(source, request, run)


class RestoresAHalf(Toy):
    def restore(self, source: Source, request: RestoreRequest, run: Run) -> None:
        super().restore(source, request, run)
        del TARGETS[request.target.reveal()]["globals.sql"]


class SpeaksOfOthers(Toy):
    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "@{other.dump} | psql"


class WritesNoShell(Toy):
    def recipe(self, artifacts: Sequence[str], facts: Facts) -> str:
        return "if then ( psql"


class TellsThePassword(Toy):
    def describe(self, request: RestoreRequest) -> str:
        return request.target.reveal()


KIT = TestTheKitPassesAGoodOne()
RUN = Run("conformance", "20261122T080000Z-4f3a")
BAD: list[tuple[Toy, Callable[[Toy], None]]] = [
    (GoesOnAfterAnAbort(), lambda d: KIT.test_an_aborted_run_does_not_end_as_a_whole_dump(d, Run("conformance"))),
    (RestoresWhatItHasGot(), lambda d: KIT.test_a_failing_source_leaves_the_target_alone(d, RUN, new_request(), 0.5)),
    (HidesAFailedSource(), lambda d: KIT.test_a_failing_source_leaves_the_target_alone(d, RUN, new_request(), 1.0)),
    (RestoresAHalf(), lambda d: KIT.test_restore_gives_the_database_back(d, RUN, new_request())),
    (SpeaksOfOthers(), lambda d: KIT.test_the_recipe_is_shell(d, RUN)),
    (WritesNoShell(), lambda d: KIT.test_the_recipe_is_shell(d, RUN)),
    (TellsThePassword(), lambda d: KIT.test_describe_holds_no_secret(d, new_request())),
]


@pytest.mark.parametrize(("bad", "test"), BAD, ids=[type(bad).__name__ for bad, _ in BAD])
def test_the_kit_catches(bad: Toy, test: Callable[[Toy], None]) -> None:
    """The test that is meant for it fails, for each way of being wrong."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(bad)
