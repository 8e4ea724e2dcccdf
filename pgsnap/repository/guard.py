"""The shrink guard: is this backup much smaller than the ones before, or of another database? A pure function over manifests.

A blank branch, a replaced volume, a lost schema: the dump of the wrong or emptied database is whole, and pushes the good ones out
of the store day by day. So sizes, rows and tables are compared with the largest of the last few good backups (with yesterday's
alone, a tenth a day slips by), and the database's identity with that of the newest; a backup without roles after one with them
has lost something too. What has collapsed is *suspect*: it is kept and reported, does not count as good, and freezes pruning
until ``pgsnap ack ID``. What is acknowledged is the new measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from pgsnap.components.values import format_size
from pgsnap.errors import ConfigError
from pgsnap.repository.manifest import Manifest

__all__ = ["Guard", "check"]


def _share(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"guard.{attribute.name} is {value:g}; give a share from 0 (do not look) to 1.")


def _count(instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if value < 1:
        raise ConfigError(f"guard.{attribute.name} is {value}; give a number of backups of 1 or more.")


@attrs.frozen(kw_only=True)
class Guard:
    """When a backup is suspect: below these shares of the largest of the ``last`` good ones. A share of 0 does not look.

    Args:
        last: How many good backups are looked at.
        size: Of the plain bytes; only between backups of the same format and compression.
        rows: Of the rows, where the dumper counts them.
        tables: Of the number of tables.
        identity: Whether another database, by all that is known of both, is suspect.
    """

    last: int = attrs.field(default=7, validator=_count)
    size: float = attrs.field(default=0.5, validator=_share)
    rows: float = attrs.field(default=0.5, validator=_share)
    tables: float = attrs.field(default=0.5, validator=_share)
    identity: bool = True


def check(new: Manifest, history: Sequence[Manifest], guard: Guard) -> tuple[str, ...]:
    """Return why a backup is suspect, one sentence for each reason; nothing if it is not.

    Args:
        history: Good backups from before it, oldest first, beginning with the last that was acknowledged if there is one. Only
            the last ``guard.last`` count.
    """
    before = [m for m in history if m.id != new.id][-guard.last :]
    if not before:
        return ()
    reasons = []
    alike = [m for m in before if _written_as(m) == _written_as(new)]
    if collapsed := _collapse(new.size, [m.size for m in alike], guard.size):
        reasons.append(f"it has {format_size(new.size)} and one of the last {len(alike)} had {format_size(collapsed)}")
    for what, share in (("rows", guard.rows), ("tables", guard.tables)):
        number = _total(new, what)
        others = [total for m in before if (total := _total(m, what)) is not None]
        if number is not None and (collapsed := _collapse(number, others, share)):
            reasons.append(f"it has {number:,} {what} and one of the last {len(others)} had {collapsed:,}")
    if _total(new, "roles") == 0 and (most := max(_total(m, "roles") or 0 for m in before)):
        reasons.append(f"it has no roles and one of the last {len(before)} had {most:,}")
    if guard.identity and (other := _differing(new, before[-1])):
        reasons.append(f"it is of another database than {before[-1].id}: {other}")
    return tuple(reasons)


def _collapse(new: float, others: Sequence[int], share: float) -> int:
    """Return the largest of the others if the new number is less than that share of it, else 0."""
    largest = max(others, default=0)
    return largest if new < largest * share else 0


def _written_as(manifest: Manifest) -> tuple[object, ...]:
    return (manifest.dumper.name, manifest.facts.get("format"), manifest.facts.get("compression"))


def _total(manifest: Manifest, what: str) -> int | None:
    totals = manifest.facts.get("totals")
    number = totals.get(what) if isinstance(totals, Mapping) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _differing(new: Manifest, old: Manifest) -> str:
    """Return what is known of both databases and differs, in words; unknown is not different."""
    mine, its = new.facts.get("identity"), old.facts.get("identity")
    if not isinstance(mine, Mapping) or not isinstance(its, Mapping):
        return ""
    known = [key for key in mine if mine[key] is not None and its.get(key) is not None]
    return ", ".join(f"{key.replace('_', ' ')} {its[key]} is now {mine[key]}" for key in known if mine[key] != its[key])
