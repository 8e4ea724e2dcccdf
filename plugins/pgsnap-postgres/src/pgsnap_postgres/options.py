"""What a dumper of PostgreSQL can be told: frozen data, on which all the rooms build.

Options describe what is dumped; all that a restore needs is in the backup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import attrs

from pgsnap import ConfigError, Dumper, Secret

__all__ = ["Compression", "DumpOptions"]

Format = Literal["custom", "plain"]
Globals = Literal["auto", "yes", "no"]

_LEVELS = {"zstd": (1, 22), "gzip": (1, 9), "lz4": (1, 12)}


@attrs.frozen
class Compression:
    """A method of pg_dump's own compression (``zstd``, ``gzip``, ``lz4`` or ``none``) and its level."""

    method: str
    level: int = 0

    def __str__(self) -> str:
        return self.method if self.method == "none" else f"{self.method}:{self.level}"

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read ``zstd:1``, ``gzip``, ``none`` and the like; raise ConfigError otherwise."""
        method, colon, level = text.partition(":")
        if text == "none":
            return cls("none")
        if method not in _LEVELS or (colon and not re.fullmatch(r"\d{1,2}", level)):
            raise ConfigError(f"compress = {text!r} is not understood; write zstd:N, gzip:N, lz4:N or none.")
        least, most = _LEVELS[method]
        number = int(level) if colon else {"gzip": 6}.get(method, 1)
        if not least <= number <= most:
            raise ConfigError(f"compress = {text!r} has a level that {method} lacks; it goes from {least} to {most}.")
        return cls(method, number)


def _check_choice(choices: object) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in get_args(choices):
            raise ConfigError(f"{attribute.name} = {value!r} is unknown; choose from {', '.join(get_args(choices))}.")

    return check


def _check_compress(_: object, __: object, value: str) -> None:
    Compression.parse(value)


def _check_patterns(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    for pattern in value:
        if not isinstance(pattern, str) or not pattern.strip() or "\0" in pattern:
            raise ConfigError(f"{attribute.name} has an empty pattern; write names such as 'public' or 'shop.ord*'.")


def _as_tuple(value: Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _as_secret(value: str | Secret | None) -> Secret | None:
    return None if value is None else Secret(value)


@attrs.frozen(kw_only=True)
class DumpOptions(Dumper):
    """Dumps a PostgreSQL database with pg_dump and restores it; needs no superuser.

    Args:
        url: The database, as ``postgresql://user:password@host:5432/name``. Only a backup needs it, a restore does not.
        format: ``custom`` (pg_restore's archive; single tables can be restored) or ``plain`` (SQL text for psql).
        compress: Compression inside a custom archive: ``zstd:N``, ``gzip:N``, ``lz4:N`` or ``none``. Where pg_dump is older
            than 16 or lacks the method, and for plain format, a transform of the pipeline compresses instead.
        lock_timeout: Seconds that one attempt waits for table locks, while others may queue behind it; there are
            three attempts.
        schemas: Only these schemas; patterns as pg_dump's ``--schema`` takes them. Each must match something.
        exclude_schemas: Not these schemas.
        tables: Only these tables; patterns as pg_dump's ``--table`` takes them. Each must match something.
        exclude_tables: Not these tables.
        exclude_table_data: The definition of these tables, but not their rows.
        large_objects: False leaves large objects out.
        globals: Roles and tablespaces as ``globals.sql``: ``auto`` (as far as the user may read them), ``yes`` (or fail), ``no``.
        role: ``SET ROLE`` to this before dumping.
        bindir: Where pg_dump, pg_dumpall, pg_restore and psql are; by default they are looked for.
    """

    name: ClassVar[str] = "pg_dump"

    url: Secret | None = attrs.field(default=None, converter=_as_secret)
    format: Format = attrs.field(default="custom", validator=_check_choice(Format))
    compress: str = attrs.field(default="zstd:1", validator=_check_compress)
    lock_timeout: float = attrs.field(default=60.0)
    schemas: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_check_patterns)
    exclude_schemas: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_check_patterns)
    tables: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_check_patterns)
    exclude_tables: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_check_patterns)
    exclude_table_data: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_check_patterns)
    large_objects: bool = True
    globals: Globals = attrs.field(default="auto", validator=_check_choice(Globals))
    role: str | None = None
    bindir: str | None = None

    @lock_timeout.validator
    def _check_lock_timeout(self, _: object, value: float) -> None:
        if not 0.1 <= value <= 86400:
            raise ConfigError(f"lock_timeout = {value} is out of range; give seconds from 0.1 to 86400.")
