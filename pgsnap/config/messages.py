"""What is wrong with a value, in words: what was wanted, what was got, and the next step where the mistake is a common one."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import attrs

from pgsnap.components.values import Secret
from pgsnap.config.options import LISTS, Type, base, holds_secret, is_anything, is_list, is_mapping, is_union, members

__all__ = [
    "Problem",
    "ReferenceText",
    "Unresolved",
    "ValidationError",
    "missing_package",
    "suggest",
    "validation_error",
    "wanted",
]


@attrs.frozen
class ReferenceText:
    """What a reference gave: ``source`` names where it came from, ``value`` is never shown."""

    value: str = attrs.field(repr=False)
    source: str


@attrs.frozen
class Unresolved:
    """Stands for a reference that was not resolved: this command has no need of it, or (``failed``) it could not be."""

    source: str
    failed: bool = False


@attrs.frozen
class Problem:
    """One thing that is wrong.

    Args:
        text: What is wrong with the option, or a sentence of its own where ``kind`` is ``whole``, such as a component's.
        option: Where (``keep.daily``, ``recipients[1]``), relative to what was structured.
        kind: ``unknown`` for an option that does not exist.
    """

    text: str
    option: str = ""
    kind: Literal["validation_error", "unknown", "whole"] = "validation_error"

    def __str__(self) -> str:
        if self.kind == "whole":
            return self.text
        return f"unknown option {self.option!r}.{self.text}" if self.kind == "unknown" else f"option {self.option!r} {self.text}"

    def within(self, place: str) -> Problem:
        """Return the same problem seen from one level further out."""
        inner = self.option
        return attrs.evolve(self, option=f"{place}.{inner}" if inner and not inner.startswith("[") else place + inner)


class ValidationError(Exception):
    """A value does not fit its type."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'level'?`` (with the space), or nothing where no known word is close."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def wanted(type_: Type, unit: str = "") -> str:
    if is_union(type_):
        return " or ".join(dict.fromkeys(wanted(member, unit) for member in members(type_)))
    if unit == "seconds" and type_ in (int, float):
        return 'seconds, or a duration such as "2h"'
    if unit == "bytes" and type_ in (int, float):
        return 'bytes, or a size such as "16MiB"'
    if base(type_) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(type_)))}"
    if is_list(type_):
        inner = [argument for argument in typing.get_args(type_) if argument is not ...]
        same = inner and all(argument == inner[0] for argument in inner)
        return "a list" + (f" of {wanted(inner[0])}" if same and not is_anything(inner[0]) else "")
    if is_mapping(type_) or (isinstance(type_, type) and attrs.has(type_)):
        return "a table"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Secret: "text", Path: "a path"}
    return words.get(type_) or f"a {getattr(type_, '__name__', str(type_))}"


def _got(value: object, hide: bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    names = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    name = names.get(type(value)) or f"a {type(value).__name__}"
    shown = "" if hide or isinstance(value, (list, dict)) else f" {value!r}"
    return name + (shown if len(shown) <= 60 else "")


def _hint(type_: Type, value: object, hide: bool) -> str:
    """The next step, where the mistake is a common one."""
    bases = {base(member) for member in (members(type_) if is_union(type_) else [type_])}
    if isinstance(value, str):
        plain = value.strip()
        if (bases & {int, float} and re.fullmatch(r"[+-]?\d+(\.\d+)?", plain)) or (bool in bases and plain in ("true", "false")):
            return " Remove the quotes."
        if bases & LISTS.keys():
            return " Put it in brackets." if hide or len(value) > 60 else f" Write [{json.dumps(value, ensure_ascii=False)}]."
    if bases & {str, Secret, Path}:
        if isinstance(value, dict):
            return ' For a reference write { env = "NAME" }, { file = "PATH" } or { command = ["PROGRAM"] }.'
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return " Put it in quotes."
    return ""


def validation_error(type_: Type, value: object, unit: str = "") -> ValidationError:
    """Make the error for a value of the wrong type."""
    if isinstance(value, ReferenceText):
        return ValidationError(Problem(f"wants {wanted(type_, unit)}; what {value.source} holds is not that."))
    hide = holds_secret(type_)
    return ValidationError(Problem(f"wants {wanted(type_, unit)}, got {_got(value, hide)}.{_hint(type_, value, hide)}"))


def missing_package(error: ImportError) -> str:
    """Say which plugin lacks something that it needs, and how to install it: it is the one in whose code the import failed."""
    from importlib.metadata import entry_points

    from pgsnap.components.hookspecs import GROUP
    from pgsnap.components.registry import FIRST_PARTY

    owners = {point.module.partition(".")[0]: point.dist.name for point in entry_points(group=GROUP) if point.dist}
    asking = "pgsnap"
    trace = error.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package != "pgsnap":
            asking = owners.get(package, asking)
        trace = trace.tb_next
    where = "." if asking == "pgsnap" else f"./plugins/{asking}" if asking in FIRST_PARTY.values() else asking
    return f"{asking} needs a package that cannot be imported ({error}); install it again with all it needs: pip install {where}"
