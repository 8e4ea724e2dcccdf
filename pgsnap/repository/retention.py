"""Which backups of one store stay and which go, and why: a pure function of policy, time zone, backups and clock.

    decide(keep, zone, candidates, now)  ->  one Decision for each, oldest first

The rules, those that share a name with restic's by restic's documented meaning:

* ``last = n``: the newest n. ``within``: all that are at most so much older than the reference.
* ``hourly``, ``daily``, ``weekly``, ``monthly``, ``yearly = n``: of each of the last n hours, days … that have a backup, the
  newest. The boundaries are the natural ones in the pipeline's time zone; weeks are ISO weeks and begin on Monday. Where there
  are fewer such periods than n, the oldest backup stays too, since it stands for what came before.
* What one rule keeps, stays. Under all of them lies the floor: the newest ``min_good`` good backups always stay.

Only good backups are counted by rules and floor. The reference is the newest good one that is not later than the clock plus
``SKEW``: ages do not grow while no backup is made, and a wrong clock deletes nothing more. Later ones are kept, and are no
reference. What is not good stays until somebody has acknowledged it. A policy without rules keeps everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import attrs

from pgsnap.components.values import RetentionPolicy, format_span

__all__ = ["PERIODS", "SKEW", "Candidate", "Coverage", "Decision", "coverage", "decide", "next_expiry"]

SKEW = timedelta(hours=1)
"""How far ahead of this clock a backup may be dated before it counts as from the future."""


@attrs.frozen(kw_only=True)
class Candidate:
    """What is known of one committed backup in one store.

    ``defect`` says why it is not good and is empty if it is; ``acknowledged`` that a person knows; ``held`` that it must stay.
    """

    id: str
    time: datetime
    defect: str = ""
    acknowledged: bool = False
    held: bool = False


@attrs.frozen
class Decision:
    """Whether a backup stays, and by which rules (or why it goes)."""

    id: str
    keep: bool
    reasons: tuple[str, ...]


@attrs.frozen
class Period:
    """A calendar period: the number of the one that a local time lies in (they go up by ``step``), and what it is called."""

    number: Callable[[datetime], int]
    label: Callable[[datetime], str]
    step: int = 1


def _hour(local: datetime) -> int:
    """Half hours since 1970 up to the beginning of the local hour: the hour that a clock change repeats is two hours, and some
    zones are half an hour off."""
    return int(local.timestamp() - local.minute * 60 - local.second) // 1800


def _iso_week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year}-W{week:02d}"


PERIODS: Mapping[str, Period] = {
    "hourly": Period(_hour, lambda t: f"{t:%Y-%m-%d %H}h", 2),
    "daily": Period(lambda t: t.toordinal(), lambda t: f"{t:%Y-%m-%d}"),
    "weekly": Period(lambda t: (t.toordinal() - 1) // 7, _iso_week),  # day 1 of year 1 was a Monday
    "monthly": Period(lambda t: t.year * 12 + t.month, lambda t: f"{t:%Y-%m}"),
    "yearly": Period(lambda t: t.year, lambda t: f"{t:%Y}"),
}


def decide(
    keep: RetentionPolicy | None, zone: str, backups: Iterable[Candidate], now: datetime, *, skew: timedelta = SKEW
) -> list[Decision]:
    """Decide about each backup of one store; their order does not matter.

    Args:
        keep: The policy; None or one without rules keeps all.
        zone: The name of the time zone of hours, days, weeks, months and years.
        now: The clock, with a zone. It only tells what is from the future.

    Returns:
        A decision for each, oldest first.
    """
    ordered = sorted(backups, key=lambda b: (b.time, b.id))
    reasons: dict[str, list[str]] = {b.id: [] for b in ordered}
    good, future = _good(ordered, now + skew)
    for backup in ordered:
        if backup.held:
            reasons[backup.id].append("held")
        if backup.id in future:
            reasons[backup.id].append("dated in the future")
    if keep is None or keep.empty:
        return [Decision(b.id, True, (*reasons[b.id], "the policy keeps everything")) for b in ordered]
    if good:
        _apply(keep, ZoneInfo(zone), good, reasons)
    for backup in good[: keep.min_good]:
        if not reasons[backup.id]:
            reasons[backup.id].append(f"one of the newest {keep.min_good} good ones (min_good)")
    return [_conclude(b, keep, good, reasons[b.id]) for b in ordered]


def _good(ordered: list[Candidate], latest: datetime) -> tuple[list[Candidate], set[str]]:
    """Return the good backups up to ``latest``, newest first, and the ids of all later ones."""
    future = {b.id for b in ordered if b.time > latest}
    return [b for b in reversed(ordered) if not b.defect and b.id not in future], future


def _apply(keep: RetentionPolicy, zone: ZoneInfo, good: list[Candidate], reasons: dict[str, list[str]]) -> None:
    """Note which rules keep which of the good backups (newest first)."""
    for place, backup in enumerate(good[: keep.last or 0], 1):
        reasons[backup.id].append(f"last {place} of {keep.last}")
    if keep.within is not None:
        since = good[0].time - timedelta(seconds=keep.within)
        text = f"within {format_span(keep.within)} of {good[0].id}"
        for backup in good:
            if backup.time >= since:
                reasons[backup.id].append(text)
    local = [b.time.astimezone(zone) for b in good]
    for name, period in PERIODS.items():
        wanted: int | None = getattr(keep, name)
        if wanted is None:
            continue
        seen: set[int] = set()
        kept = good[0]
        for backup, time in zip(good, local, strict=True):
            number = period.number(time)
            if number in seen:
                continue
            if len(seen) == wanted:
                break
            seen.add(number)
            kept = backup
            reasons[backup.id].append(f"{name} {len(seen)} of {wanted} ({period.label(time)})")
        if len(seen) < wanted and kept is not good[-1]:
            reasons[good[-1].id].append(f"the oldest, while there are not {wanted} {name} ones")


def _conclude(backup: Candidate, keep: RetentionPolicy, good: list[Candidate], reasons: list[str]) -> Decision:
    if reasons:
        return Decision(backup.id, True, tuple(reasons))
    if not backup.defect:
        return Decision(backup.id, False, ("no rule keeps it",))
    if not backup.acknowledged:
        return Decision(backup.id, True, (f"{backup.defect}; it stays until it is acknowledged",))
    newer = sum(b.time > backup.time for b in good)
    if newer >= keep.min_good:
        return Decision(backup.id, False, (f"{backup.defect}, acknowledged, and there are {newer} newer good ones",))
    return Decision(backup.id, True, (f"{backup.defect}; there are not {keep.min_good} newer good ones",))


def next_expiry(keep: RetentionPolicy | None, zone: str, backups: Iterable[Candidate], now: datetime) -> datetime | None:
    """Return when the first of these backups goes if one good backup a day follows; None if none does within two years."""
    present = list(backups)
    ids = {backup.id for backup in present}
    if keep is None or keep.empty or not ids:
        return None
    for day in range(1, 731):
        moment = now + timedelta(days=day)
        present.append(Candidate(id=f"~{day:03d}", time=moment))
        gone = {decision.id for decision in decide(keep, zone, present, moment) if not decision.keep}
        if gone & ids:
            return moment
        present = [backup for backup in present if backup.id not in gone]
    return None


@attrs.frozen
class Coverage:
    """How much of what a rule asks for is there: ``have`` of ``want`` periods (or backups); the periods that have none."""

    have: int
    want: int
    gaps: tuple[int, ...] = ()

    @property
    def met(self) -> bool:
        """Whether nothing is missing."""
        return self.have >= self.want


def coverage(keep: RetentionPolicy | None, zone: str, backups: Iterable[Candidate], now: datetime) -> dict[str, Coverage]:
    """Return for each rule with periods how many of them have a good backup.

    Periods count back from the reference, as many as the rule wants, but not before the oldest backup: a young history is no gap.
    ``gaps`` counts periods back from the reference's, which is 0.
    """
    good, _ = _good(sorted(backups, key=lambda b: (b.time, b.id)), now + SKEW)
    found: dict[str, Coverage] = {}
    for name, period in PERIODS.items():
        wanted: int | None = getattr(keep, name) if keep is not None else None
        if wanted is None or not good:
            continue
        numbers = {period.number(b.time.astimezone(ZoneInfo(zone))) for b in good}
        newest, oldest = max(numbers), min(numbers)
        back = {(newest - number) // period.step for number in numbers}
        want = min(wanted, (newest - oldest) // period.step + 1)
        gaps = tuple(number for number in range(want) if number not in back)
        found[name] = Coverage(want - len(gaps), want, gaps)
    return found
