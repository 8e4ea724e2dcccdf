"""What every dumper must do, as tests to inherit, and a source to restore from."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from pgsnap.components.contracts import Component, Dump, Dumper, RestoreRequest
from pgsnap.components.run import Run
from pgsnap.components.values import Facts
from pgsnap.errors import PgsnapError
from pgsnap.streams import CHUNK, Stream, drain
from pgsnap.testing.component import ComponentConformance
from pgsnap.testing.sources import Boom, cut, failing, must_raise, no_thread_left

__all__ = ["DumperConformance", "MemorySource"]


class MemorySource:
    """A ``Source`` whose artifacts are in memory; ``fail_after`` makes the streams fail after so many bytes."""

    def __init__(
        self, contents: Mapping[str, bytes], facts: Facts, id: str = "20261122T080000Z-4f3a", fail_after: int | None = None
    ) -> None:
        self._contents = dict(contents)
        self._facts = facts
        self._id = id
        self._fail_after = fail_after

    @property
    def artifacts(self) -> Sequence[str]:
        """Names of the artifacts."""
        return tuple(self._contents)

    @property
    def facts(self) -> Facts:
        """The facts of the dump."""
        return self._facts

    @property
    def id(self) -> str:
        """The backup's id."""
        return self._id

    def open(self, name: str) -> Stream:
        """Return the bytes of an artifact."""
        if self._fail_after is None:
            yield from cut(self._contents[name], CHUNK)
        else:
            yield from failing(cut(self._contents[name][: self._fail_after], CHUNK), Boom("the source failed"))

    def size(self, name: str) -> int:
        """Return the size of an artifact in bytes."""
        return len(self._contents[name])

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Give a temporary file with the bytes of an artifact."""
        with tempfile.NamedTemporaryFile() as file:
            for chunk in self.open(name):
                file.write(chunk)
            file.flush()
            yield Path(file.name)


class DumperConformance(ComponentConformance):
    """Tests of one dumper against a real, small database.

    Subclass it, give the fixtures ``dumper`` and ``restore_request`` (of a target that is empty for each test), and say in
    ``assert_restored`` and ``assert_untouched`` how the target is looked at.
    """

    @pytest.fixture
    def dumper(self) -> Dumper:
        """Return a dumper of a database that has something in it. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'dumper'.")

    @pytest.fixture
    def restore_request(self) -> RestoreRequest:
        """Return a request to restore everything into a target that is empty. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture 'restore_request'.")

    def assert_restored(self, request: RestoreRequest) -> None:
        """Fail unless the target has what the dumped database had. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define 'assert_restored'.")

    def assert_untouched(self, request: RestoreRequest) -> None:
        """Fail unless the target is as it was before a restore. Override it."""
        raise NotImplementedError(f"{type(self).__name__} must define 'assert_untouched'.")

    @pytest.fixture
    def component(self, dumper: Dumper) -> Component:
        return dumper

    @pytest.fixture
    def run(self) -> Run:
        """A run that nothing aborts."""
        return Run("conformance", "20261122T080000Z-4f3a")

    def test_a_dump_has_artifacts_and_facts(self, dumper: Dumper, run: Run) -> None:
        """Artifacts have names of their own and give bytes; facts are JSON; no thread and no child is left."""
        with no_thread_left():
            contents, facts = dump(dumper, run)
        assert contents
        assert any(contents.values())
        assert facts == json.loads(json.dumps(facts))

    def test_stopping_early_leaves_nothing(self, dumper: Dumper, run: Run) -> None:
        """The context may be left with nothing consumed, or with a stream closed after its first chunk."""
        with no_thread_left():
            with dumper.dump(run):
                pass
            with dumper.dump(run) as dumped:
                stream = dumped.artifacts[-1].open()
                next(stream)
                stream.close()

    def test_an_aborted_run_does_not_end_as_a_whole_dump(self, dumper: Dumper, run: Run) -> None:
        """After ``run.abort`` no artifact ends without an error."""
        with no_thread_left(), must_raise(PgsnapError, "the dump ended as if it were whole"), dumper.dump(run) as dumped:
            run.abort("the test says so")
            for artifact in dumped.artifacts:
                drain(artifact.open())

    def test_restore_gives_the_database_back(self, dumper: Dumper, run: Run, restore_request: RestoreRequest) -> None:
        """What was dumped is restored into an empty target."""
        contents, facts = dump(dumper, run)
        with no_thread_left():
            dumper.restore(MemorySource(contents, facts), restore_request, run)
        self.assert_restored(restore_request)

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_a_failing_source_leaves_the_target_alone(
        self, dumper: Dumper, run: Run, restore_request: RestoreRequest, share: float
    ) -> None:
        """If the streams fail before, amid or after the last byte, restore raises and the target is as it was."""
        contents, facts = dump(dumper, run)
        after = int(share * max(map(len, contents.values())))
        with no_thread_left(), pytest.raises((Boom, PgsnapError)):
            dumper.restore(MemorySource(contents, facts, fail_after=after), restore_request, run)
        self.assert_untouched(restore_request)

    def test_the_recipe_is_shell(self, dumper: Dumper, run: Run) -> None:
        """The lines for RECOVER.txt are shell, and speak of the artifacts that there are."""
        contents, facts = dump(dumper, run)
        recipe = dumper.recipe(tuple(contents), facts)
        assert set(re.findall(r"@\{([^}]*)\}", recipe)) <= set(contents)
        script = re.sub(r"@\{[^}]*\}", "cat file", recipe)
        assert (0, b"") == _parse(script)

    def test_describe_holds_no_secret(self, dumper: Dumper, restore_request: RestoreRequest) -> None:
        """Where a restore would go is shown before anything changes, without a password."""
        target = restore_request.target.reveal()
        told = dumper.describe(restore_request)
        assert told
        userinfo = target.partition("://")[2].partition("/")[0].rpartition("@")[0]
        password = userinfo.partition(":")[2]
        assert not password or password not in told


def dump(dumper: Dumper, run: Run) -> tuple[dict[str, bytes], Facts]:
    """Return everything of one dump."""
    contents: dict[str, bytes] = {}
    with dumper.dump(run) as dumped:
        assert isinstance(dumped, Dump)
        for artifact in dumped.artifacts:
            assert artifact.name not in contents, f"two artifacts are named {artifact.name}"
            contents[artifact.name] = b"".join(artifact.open())
    return contents, dumped.facts


def _parse(script: str) -> tuple[int, bytes]:
    done = subprocess.run(["sh", "-n"], input=script.encode(), capture_output=True, check=False)
    return done.returncode, done.stderr
