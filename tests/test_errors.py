"""Errors: the tree drawn in the module is the tree, each has its exit code, and each survives a pickle."""

from __future__ import annotations

import copy
import pickle
import re

import attrs
import pytest

from pgsnap import errors
from pgsnap.errors import ConfigError, DumpError, PgsnapError, ProcessError, StoreError

CLASSES = [getattr(errors, name) for name in errors.__all__]


def drawn() -> dict[str, tuple[str, int]]:
    """Read name, parent and exit code of each error from the docstring."""
    found: dict[str, tuple[str, int]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ([│├└─ ]*)(\w+) +(\d+) {2,3}\S.*", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else "Exception", int(match[3]))
    return found


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class is drawn once, under its parent and with its exit code, and nothing else is."""
    assert {c.__name__: (c.__mro__[1].__name__, c.exit_code) for c in CLASSES} == drawn()


def test_all_is_complete() -> None:
    """Every class of the module is public."""
    here = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert here == set(errors.__all__)


@attrs.frozen
class _Report:
    id: str


def test_every_error_pickles_and_copies() -> None:
    """Message, fields and report cross to another process."""
    for cls in CLASSES:
        error = cls("the thing 'x' failed; do this.")
        fields = {"argv": ("pg_dump", "-Fc"), "status": -9, "stderr": "tail", "label": "s3://b", "transient": True}
        for name in fields.keys() & vars(error).keys():
            setattr(error, name, fields[name])
        error.report = _Report("20261122T080000Z-4f3a")
        error.add_note("a note")
        for same in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert cls is type(same)
            assert str(error) == str(same)
            assert vars(error) == vars(same)


def test_constructors_that_take_more_pickle() -> None:
    """Errors made with all of their arguments pickle as well, positional or by name."""
    for error in (
        DumpError("pg_dump failed", ["pg_dump"], 1, "tail"),
        ProcessError("x", argv=["a"], status=None, stderr=""),
        StoreError("cut", label="s3://b", transient=True),
        ConfigError(problems=["one", "two"]),
        ConfigError("two problems", ["one", "two"]),
    ):
        same = pickle.loads(pickle.dumps(error))
        assert (type(error), str(error), vars(error)) == (type(same), str(same), vars(same))


def test_config_error_holds_its_problems() -> None:
    """Without a message the problems are the message; without problems the message is the problem."""
    assert "one\ntwo" == str(ConfigError(problems=["one", "two"]))
    assert ("one",) == ConfigError("one").problems


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_a_pgsnap_error(cls: type[PgsnapError]) -> None:
    """One except clause catches them all, none is an OSError, and a fresh one has no report."""
    assert issubclass(cls, PgsnapError)
    assert not issubclass(cls, OSError)
    assert cls("x").report is None
    assert cls.__doc__
