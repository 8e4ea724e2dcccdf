"""What may be set of a class: its fields with their types, and what a type is made of."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs

from pgsnap.components.values import Secret
from pgsnap.errors import ConfigError

__all__ = [
    "LISTS",
    "Option",
    "Type",
    "base",
    "holds_secret",
    "is_anything",
    "is_list",
    "is_mapping",
    "is_union",
    "members",
    "options_of",
]

Type: TypeAlias = Any
"""A type, or what ``typing`` makes of one, such as ``tuple[str, ...]``."""

LISTS: dict[Any, Callable[[list[Any]], Any]] = {
    tuple: tuple,
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: tuple,
    collections.abc.Collection: tuple,
    collections.abc.Iterable: tuple,
    collections.abc.Set: frozenset,
    collections.abc.MutableSequence: list,
}
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def base(type_: Type) -> Any:
    origin: Any = typing.get_origin(type_)
    return type_ if origin is None else origin


def is_union(type_: Type) -> bool:
    return base(type_) in (typing.Union, types.UnionType)


def is_list(type_: Type) -> bool:
    return base(type_) in LISTS


def is_mapping(type_: Type) -> bool:
    return base(type_) in MAPPINGS


def is_anything(type_: Type) -> bool:
    return type_ is Any or type_ is object or type_ is None


def members(type_: Type) -> list[Type]:
    """The types of a union without None, which TOML cannot say."""
    return [member for member in typing.get_args(type_) if member is not types.NoneType]


def holds_secret(type_: Type) -> bool:
    """Return whether a value of this type is, or may hold, a ``Secret``."""
    if type_ is Secret:
        return True
    if isinstance(type_, type) and attrs.has(type_):
        return any(holds_secret(option.type) for option in options_of(type_).values())
    return any(holds_secret(argument) for argument in typing.get_args(type_))


@attrs.frozen
class Option:
    """One field of a class, as a file may set it."""

    name: str
    type: Type
    required: bool
    unit: str


def options_of(class_: type[Any]) -> Mapping[str, Option]:
    """Return what may be set of an attrs class: its fields, with their types resolved.

    Raises:
        ConfigError: a type cannot be resolved, such as one that is imported under TYPE_CHECKING only.
    """
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(class_)
    try:
        hints = typing.get_type_hints(class_)
    except Exception as error:
        raise ConfigError(
            f"the types of {class_.__module__}.{class_.__qualname__}'s options cannot be resolved ({error}); "
            "its module must import them when it runs."
        ) from None
    return {
        field.alias or field.name: Option(
            field.alias or field.name,
            hints.get(field.name, Any),
            field.default is attrs.NOTHING,
            field.metadata.get("unit", ""),
        )
        for field in fields
        if field.init
    }
