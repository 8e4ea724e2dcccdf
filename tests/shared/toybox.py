"""A dumper of zeros for the tests of the command; its copy is a plugin in a folder on ``PYTHONPATH``."""

from __future__ import annotations

import contextlib
import time
from typing import ClassVar

import attrs

from pgsnap import Artifact, Dump, Dumper, DumpError, Finding, hookimpl


@attrs.frozen(kw_only=True)
class Toy(Dumper):
    name: ClassVar[str] = "toy"
    size: int = 100_000
    seconds: float = 0.0
    fails: bool = False
    complains: bool = False
    measured: bool = True

    def preflight(self, run):
        return [Finding("error", "toy", "it is broken.", "mend it.") if self.complains else Finding("ok", "toy", "it works.")]

    @contextlib.contextmanager
    def dump(self, run):
        def stream():
            for _ in range(10):
                time.sleep(self.seconds / 10)
                yield bytes(self.size // 10)
            if self.fails:
                raise DumpError("the toy broke; mend it.")

        run.log.info("the toy is wound up")
        expected = self.size if self.measured else None
        yield Dump(artifacts=[Artifact(name="toy.dump", open=stream, expected=expected)], facts={"notes": ["a toy"]})

    def restore(self, source, request, run):
        with open(request.target.reveal(), "wb") as file:
            for name in source.artifacts:
                for chunk in source.open(name):
                    file.write(chunk)

    def recipe(self, artifacts, facts):
        return ""

    def describe(self, request):
        return request.target.reveal()


@hookimpl
def pgsnap_dumpers():
    return [Toy]
