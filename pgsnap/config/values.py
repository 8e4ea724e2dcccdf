"""From the values of a file to the fields of a component, strictly.

cattrs finds the hook for a type; every hook here takes exactly what the type says. Left to itself, a converter makes True of
``"false"`` and seven letters of ``"age1abc"`` where a list was wanted, and a backup then runs that nobody asked for. The rules:

* A value from the file has the type of its field. Two conveniences: a whole number where any number may stand, and text where the
  field says in its metadata what it counts: ``{"unit": "seconds"}`` takes ``"2h"``, ``{"unit": "bytes"}`` takes ``"16MiB"``.
* A value that a reference gave is ``ReferenceText`` and is parsed into the type of its field.
* All that is wrong with a value is raised together, as one ``ValidationError``. No message repeats what a ``Secret`` or a
  reference holds.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from pgsnap.components.values import Secret, parse_duration, parse_size
from pgsnap.config.messages import (
    Problem,
    ReferenceText,
    Unresolved,
    ValidationError,
    missing_package,
    suggest,
    validation_error,
    wanted,
)
from pgsnap.config.options import LISTS, Option, Type, base, is_anything, is_list, is_mapping, is_union, members, options_of
from pgsnap.errors import ConfigError

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = ["construct", "make_converter", "split_text", "structure_options"]

T = TypeVar("T")
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def split_text(text: str) -> list[str]:
    """Return the items of a text that stands for a list: separated by commas or new lines, blank ones left out."""
    return [item.strip() for item in re.split(r"[,\n]", text) if item.strip()]


# --- hooks -----------------------------------------------------------------------------------------------------------


def _bool(value: object, type_: Type) -> bool:
    if isinstance(value, ReferenceText) and (word := value.value.strip().lower()) in WORDS:
        return WORDS[word]
    if type(value) is bool:
        return value
    raise validation_error(type_, value)


def _int(value: object, type_: Type) -> int:
    if isinstance(value, ReferenceText) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", value.value):
        return int(value.value)
    if type(value) is int:
        return value
    raise validation_error(type_, value)


def _float(value: Any, type_: Type) -> float:
    if isinstance(value, ReferenceText) and re.fullmatch(
        r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", value.value
    ):
        return float(value.value)
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    raise validation_error(type_, value)


def _text(value: object, type_: Type) -> Any:
    if isinstance(value, ReferenceText):
        return type_(value.value)
    if type(value) is str:
        return type_(value)
    raise validation_error(type_, value)


def _anything(value: object, _: Type) -> object:
    if isinstance(value, ReferenceText):
        return value.value
    if isinstance(value, list):
        return [_anything(item, Any) for item in value]
    if isinstance(value, dict):
        return {key: _anything(item, Any) for key, item in value.items()}
    return value


def _literal(value: object, type_: Type) -> object:
    choices = typing.get_args(type_)
    plain = value.value.strip() if isinstance(value, ReferenceText) else value
    for choice in choices:
        if (type(choice) is type(plain) and choice == plain) or (isinstance(value, ReferenceText) and str(choice) == plain):
            return choice
    if isinstance(value, str):
        hint = suggest(value, [choice for choice in choices if isinstance(choice, str)])
        raise ValidationError(Problem(f"wants {wanted(type_)}, got {value!r}.{hint}"))
    raise validation_error(type_, value)


def _each(calls: Iterable[tuple[str, Callable[[], object]]]) -> list[Any]:
    """Call each; return the results, or raise the problems of all of them together, each with its place."""
    results: list[Any] = []
    problems: list[Problem] = []
    for place, call in calls:
        try:
            results.append(call())
        except ValidationError as error:
            problems += [problem.within(place) for problem in error.problems]
    if problems:
        raise ValidationError(*problems)
    return results


_EMPTY: dict[Any, object] = {str: "", Secret: Secret(""), Path: Path(), bool: False, int: 0, float: 0.0}


def _empty(type_: Type) -> object:
    """What stands in a required option whose reference was left out."""
    if is_union(type_):
        return None if types.NoneType in typing.get_args(type_) else _empty(members(type_)[0])
    if is_list(type_):
        return LISTS[base(type_)]([])
    return {} if is_mapping(type_) else _EMPTY.get(type_)


def make_converter() -> Converter:
    """Return a converter whose ``structure(value, type)`` keeps the rules above and raises ``ValidationError``."""
    from cattrs import Converter

    converter = Converter()

    def union(value: object, type_: Type) -> object:
        choices = members(type_)
        if len(choices) == 1:
            return converter.structure(value, choices[0])
        if isinstance(value, ReferenceText):  # any text fits str, so what is narrower goes first
            choices.sort(key=lambda member: member in (str, Secret, Path))
        for member in choices:
            try:
                return converter.structure(value, member)
            except ValidationError:
                continue
        raise validation_error(type_, value)

    def sequence(value: object, type_: Type) -> object:
        arguments = typing.get_args(type_)
        items: Sequence[object]
        if isinstance(value, ReferenceText):
            items = [ReferenceText(item, value.source) for item in split_text(value.value)]
        elif isinstance(value, list):
            items = value
        else:
            raise validation_error(type_, value)
        fixed = base(type_) is tuple and arguments and arguments[-1] is not ...
        if fixed and len(items) != len(arguments):
            raise ValidationError(Problem(f"wants {len(arguments)} items, got {len(items)}."))
        kinds = arguments if fixed else [arguments[0] if arguments else Any] * len(items)
        calls = [
            (f"[{number}]", functools.partial(converter.structure, item, each))
            for number, (item, each) in enumerate(zip(items, kinds, strict=True))
        ]
        return LISTS[base(type_)](_each(calls))

    def mapping(value: object, type_: Type) -> object:
        if not isinstance(value, dict):
            raise validation_error(type_, value)
        kind = typing.get_args(type_)[1] if typing.get_args(type_) else Any
        calls = [(key, functools.partial(converter.structure, item, kind)) for key, item in value.items()]
        return dict(zip(value, _each(calls), strict=True))

    def instance(value: object, class_: type[Any]) -> object:
        if not isinstance(value, dict):
            raise validation_error(class_, value)
        options = options_of(class_)
        values, problems = structure_options(converter, value, options)
        made = None
        if all(option.name in values for option in options.values() if option.required):
            try:
                made = construct(class_, values, options)
            except ValidationError as error:
                problems += error.problems
        if problems:
            raise ValidationError(*problems)
        return made

    def other(value: object, type_: Type) -> object:
        try:
            return default(value.value if isinstance(value, ReferenceText) else value, type_)
        except Exception:
            pass
        raise validation_error(type_, value)

    default = Converter().structure
    hooks: list[tuple[Callable[[Type], bool], Callable[[Any, Type], Any]]] = [
        (lambda t: True, other),
        (lambda t: isinstance(t, type) and attrs.has(t), instance),
        (is_mapping, mapping),
        (is_list, sequence),
        (is_union, union),
        (lambda t: base(t) is Literal, _literal),
        (is_anything, _anything),
    ]
    for fits, hook in hooks:  # the last one that fits is asked first
        converter.register_structure_hook_func(fits, hook)
    exact: dict[type, Callable[[Any, Type], Any]] = {
        bool: _bool, int: _int, float: _float, str: _text, Secret: _text, Path: _text,
    }  # fmt: skip

    def primitive(value: object, type_: Type) -> object:
        # cattrs gives a class's hook to its subclasses too, and so an IntEnum to that of int.
        return exact.get(type_, other)(value, type_)

    for class_ in exact:
        converter.register_structure_hook(class_, primitive)
    return converter


def construct(class_: type[T], values: Mapping[str, Any], options: Mapping[str, Option]) -> T:
    """Make an object of structured options.

    attrs stops at the first validator that refuses. To find the others, the option that it refused is left out and the object
    made again, until it can be made.

    Raises:
        ValidationError: validators refuse some options. The texts are theirs, and may repeat values.
    """
    problems: list[Problem] = []
    values = dict(values)
    while True:
        made, texts = _try(class_, values)
        if not texts:
            break
        problems += [Problem(text, kind="whole") for text in texts]
        optional = [name for name in values if name in options and not options[name].required]
        refused = next((name for name in optional if _try(class_, _without(values, name))[1] != texts), None)
        if refused is None:
            break
        del values[refused]
    if problems or made is None:
        raise ValidationError(*problems)
    return made


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _try(class_: type[T], values: Mapping[str, Any]) -> tuple[T | None, tuple[str, ...]]:
    try:
        return class_(**values), ()
    except ConfigError as error:
        return None, error.problems
    except (ValueError, TypeError) as error:
        return None, (str(error.args[0] if error.args else error),)  # attrs' own validators put the value behind the text
    except ImportError as error:
        return None, (missing_package(error),)
    except Exception as error:  # a plugin's mistake; raised as it is, it would show the values in its traceback
        return None, (f"it cannot be made of these options: {type(error).__name__}: {error}",)


def structure_options(
    converter: Converter, values: Mapping[str, object], options: Mapping[str, Option]
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the options with their values structured, and what is wrong: unknown, missing and ill-typed options together.

    Those that are wrong are not among the values, nor are those that were left out and have a default.
    """
    problems = [Problem(suggest(key, options), key, "unknown") for key in values if key not in options]
    structured: dict[str, Any] = {}
    for option in options.values():
        value = values.get(option.name, options)  # a value that no file has
        if value is options:
            if option.required:
                problems.append(Problem(f"is missing; it wants {wanted(option.type, option.unit)}.", option.name))
        elif isinstance(value, Unresolved):
            if option.required and not value.failed:
                structured[option.name] = _empty(option.type)
        else:
            try:
                structured[option.name] = _one(converter, value, option)
            except ValidationError as error:
                problems += [problem.within(option.name) for problem in error.problems]
    return structured, problems


def _one(converter: Converter, value: object, option: Option) -> object:
    if option.unit and isinstance(value, (str, ReferenceText)):
        text = value.value if isinstance(value, ReferenceText) else value
        number = None
        with contextlib.suppress(ConfigError):
            number = parse_duration(text) if option.unit == "seconds" else parse_size(text)
        whole = int in (members(option.type) if is_union(option.type) else [option.type])
        if number is None or (whole and number != int(number)):
            raise validation_error(option.type, value, option.unit)
        return int(number) if whole else float(number)
    try:
        return converter.structure(value, option.type)
    except ValidationError as error:
        problems = error.problems
    if option.unit and not problems[0].option:
        raise validation_error(option.type, value, option.unit)
    raise ValidationError(*problems)
