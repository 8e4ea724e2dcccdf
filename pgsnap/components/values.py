"""The small values that every room uses: secrets, findings, names, ids, policies.

Nothing here touches a disk, a network or a clock.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import attrs

from pgsnap.errors import ConfigError

Facts: TypeAlias = dict[str, Any]
"""JSON-able values that a component records about one backup, artifact or stage; never a secret."""

MASK = "***"


class Secret:
    """A value that must not be seen: its ``str`` and ``repr`` are masked, ``reveal()`` gives it.

    It compares by value, hashes, and pickles (with the value, since another process must be able to use it).
    """

    __slots__ = ("_value",)

    def __init__(self, value: str | Secret) -> None:
        if not isinstance(value, (str, Secret)):
            raise TypeError(f"a Secret holds text, not {type(value).__name__}.")
        self._value: str = value._value if isinstance(value, Secret) else value

    def reveal(self) -> str:
        """Return the value itself. Call it only where it is handed on, and never into a message."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __str__(self) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return False
        mine, its = (s._value.encode("utf-8", "surrogatepass") for s in (self, other))
        return secrets.compare_digest(mine, its)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return (Secret, (self._value,))


Level: TypeAlias = Literal["ok", "info", "warning", "error"]


@attrs.frozen
class Finding:
    """One thing that preflight or doctor has seen.

    ``level`` is ``ok``, ``info``, ``warning`` or ``error`` (an error means the run would fail); ``subject`` names what was
    looked at; ``remedy`` is the next step, and empty where none is needed.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


@attrs.frozen
class Entry:
    """One object of a store: its key, its size in bytes and the store's own time of its last change (UTC)."""

    key: str
    size: int
    modified: datetime


def _positive(instance: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"keep.{attribute.name} is {value}; give a number of backups of 1 or more, or leave it out.")


def _some_time(instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 < value <= 1e10:
        raise ConfigError(f"keep.{attribute.name} is {value:g} seconds; give a duration above 0, such as '30d', or leave it out.")


@attrs.frozen(kw_only=True)
class RetentionPolicy:
    """How many backups a store keeps: the newest ``last``, all ``within`` so many seconds of the newest, and the newest of each
    of so many hours, days, weeks, months, years. What one rule keeps, stays; see ``pgsnap.repository.retention``.

    ``min_good`` is the floor under all rules: so many of the newest good backups are never deleted. A policy in which no rule is
    set keeps everything.
    """

    last: int | None = attrs.field(default=None, validator=_positive)
    within: float | None = attrs.field(default=None, validator=_some_time, metadata={"unit": "seconds"})
    hourly: int | None = attrs.field(default=None, validator=_positive)
    daily: int | None = attrs.field(default=None, validator=_positive)
    weekly: int | None = attrs.field(default=None, validator=_positive)
    monthly: int | None = attrs.field(default=None, validator=_positive)
    yearly: int | None = attrs.field(default=None, validator=_positive)
    min_good: int = attrs.field(default=3, validator=_positive)

    @property
    def empty(self) -> bool:
        """Whether no rule is set, so that everything is kept."""
        return self == RetentionPolicy(min_good=self.min_good)


# --- names and ids ---------------------------------------------------------------------------------------------------

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
BACKUP_ID = re.compile(r"([0-9]{8}T[0-9]{6}Z)-([0-9a-f]{4})")


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it can name a pipeline or an artifact (it becomes a part of a key), else raise ConfigError."""
    if not NAME.fullmatch(name):
        shown = "" if re.search("[:@=]", name) else f" {name!r}"  # it may be a pasted URL with a password
        raise ConfigError(f"{what}{shown} cannot be used: begin with a letter or digit and use at most 100 of A-Z a-z 0-9 . _ -")
    return name


def escape_name(text: str) -> str:
    """Turn any text, such as a database's name, into a valid name; different texts give different names.

    A text that is a valid name already stays as it is. Otherwise what is not allowed becomes ``_`` and eight hex digits of
    the text's sha256 follow, so that ``a*`` and ``a_`` never meet.
    """
    if NAME.fullmatch(text) and not re.search(r"-[0-9a-f]{8}$", text):
        return text
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", plain).lstrip("._-")[:80]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain or 'x'}-{digest}"


def new_backup_id(now: datetime) -> str:
    """Make an id from a time and four random hex digits: ``20261122T080000Z-4f3a``. Ids sort by time."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def backup_time(backup_id: str) -> datetime:
    """Return the time (UTC) that an id begins with; raise ConfigError if it is not an id."""
    match = BACKUP_ID.fullmatch(backup_id)
    if match is None:
        raise ConfigError(f"{backup_id!r} is not a backup id; ids look like 20261122T080000Z-4f3a, see 'pgsnap list'.")
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise ConfigError(f"{backup_id!r} is not a backup id: it holds no valid time.") from None


# --- sizes, durations, URLs ------------------------------------------------------------------------------------------

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SPANS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Return bytes from ``"64 MiB"``, ``"5GB"`` or ``"1048576"``; raise ConfigError otherwise."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{text!r} is not a size; write it like 64MiB, 5GB or 1048576.")
    return int(Fraction(match[1]) * _UNITS[match[2].upper()])


def parse_duration(text: str) -> float:
    """Return seconds from ``"90s"``, ``"2h"``, ``"1h30m"`` or ``"45"``; raise ConfigError otherwise."""
    text = text.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    part = r"([0-9]+(?:\.[0-9]+)?)\s*(ms|[smhd])\s*"
    if not re.fullmatch(f"({part})+", text):
        raise ConfigError(f"{text!r} is not a duration; write it like 90s, 15m, 2h or 1h30m.")
    return sum(float(number) * _SPANS[unit] for number, unit in re.findall(part, text))


def format_size(size: float) -> str:
    """Return bytes as people read them, in decimal units: ``"1.2 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        digits = 0 if unit == "B" or round(size, 1) >= 100 else 1
        if round(size, digits) < 1000:
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_duration(seconds: float) -> str:
    """Return seconds as people read them: ``"0.4 s"``, ``"3 m 12 s"``, ``"2 h 5 m"``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m"


def format_age(seconds: float) -> str:
    """Return an age as people say it, in its largest unit: ``"0 m"``, ``"5 m"``, ``"26 h"``, ``"12 d"`` (from two days on)."""
    if seconds >= 2 * 86400:
        return f"{seconds // 86400:.0f} d"
    return f"{seconds // 3600:.0f} h" if seconds >= 3600 else f"{seconds // 60:.0f} m"


def format_span(seconds: float) -> str:
    """Return seconds as a configuration would say them: ``"30d"``, ``"26h"``, ``"90s"``."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:[0-9]*)?")


def without_userinfo(url: str) -> str:
    """Return a URL without user, password, query and fragment: what may stand in a message.

    fsspec's chains (``simplecache::s3://…``) are treated link by link, plain paths are returned as they are. Where an unescaped
    character leaves it open what belongs to a password (``u:a/b@host``), everything but the scheme is masked.
    """
    first, *others = re.split(r"::(?=[A-Za-z0-9+.-]+://)", url, maxsplit=1)
    if others:
        return f"{without_userinfo(first)}::{without_userinfo(others[0])}"
    scheme, separator, rest = url.partition("://")
    if not separator:  # a path; but libpq's "password=…" and "user:password@host:path" come here too
        doubtful = re.match(r"/?/?[^/]*:.*@", url, re.DOTALL) or re.search(r"pass\w*\s*=", url, re.IGNORECASE)
        return MASK if doubtful else url
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    hosts = authority.rpartition("@")[2]
    if (":" in authority and "@" in tail) or not all(_HOST.fullmatch(host) for host in hosts.split(",")):
        return f"{scheme}://{MASK}"
    return f"{scheme}://{hosts}{re.split('[?#]', tail)[0]}"


def plain_mapping(value: Mapping[str, Any]) -> Facts:
    """Return a deep copy of JSON-able ``value`` made of dicts and lists only."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(k): plain(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(v) for v in item]
        return item

    return {str(k): plain(v) for k, v in value.items()}
