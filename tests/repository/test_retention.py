"""Retention is a pure function: tables for the calendar, restic's manual as an oracle, random histories for the promises."""

from __future__ import annotations

import time as clock
from datetime import UTC, date, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsnap import RetentionPolicy
from pgsnap.repository.retention import SKEW, Candidate, decide
from pgsnap.repository.retention import coverage as cover

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


def history(*times: datetime) -> list[Candidate]:
    return [Candidate(id=f"{time.astimezone(UTC):%Y%m%dT%H%M%SZ}-{number:04x}", time=time) for number, time in enumerate(times)]


def kept(keep: RetentionPolicy | None, backups: list[Candidate], zone: str = "UTC", now: datetime = NOW) -> list[Candidate]:
    stay = {d.id for d in decide(keep, zone, backups, now) if d.keep}
    return [b for b in backups if b.id in stay]


# --- the calendar ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, RetentionPolicy(), RetentionPolicy(min_good=1)])
def test_an_empty_policy_keeps_everything(keep: RetentionPolicy | None) -> None:
    """No rule, no deletion, whatever the floor is."""
    backups = history(*(NOW - timedelta(days=n * 40) for n in range(30)))
    assert backups == kept(keep, backups)


def test_the_policy_that_was_asked_for() -> None:
    """Daily 7, weekly 4, monthly 12 of one backup a day over two years: each rule's own, and nothing else."""
    backups = history(*(NOW - timedelta(days=n) for n in range(730)))
    decisions = {d.id: d for d in decide(RetentionPolicy(daily=7, weekly=4, monthly=12), "Asia/Seoul", backups, NOW)}
    stay = [b for b in backups if decisions[b.id].keep]
    days = [b.time.astimezone(ZoneInfo("Asia/Seoul")).date() for b in stay]
    daily = [date(2026, 11, 22) - timedelta(days=n) for n in range(7)]
    weekly = [date(2026, 11, 22), date(2026, 11, 15), date(2026, 11, 8), date(2026, 11, 1)]
    monthly = [date(2026, 11, 22), date(2026, 10, 31), date(2026, 9, 30), date(2026, 8, 31), date(2026, 7, 31), date(2026, 6, 30)]
    monthly += [date(2026, 5, 31), date(2026, 4, 30), date(2026, 3, 31), date(2026, 2, 28), date(2026, 1, 31), date(2025, 12, 31)]
    assert sorted({*daily, *weekly, *monthly}) == sorted(days)
    newest = decisions[backups[0].id].reasons
    assert ("daily 1 of 7 (2026-11-22)", "weekly 1 of 4 (2026-W47)", "monthly 1 of 12 (2026-11)") == newest


@pytest.mark.parametrize(
    ("rule", "number", "zone", "written"),
    [
        # A day begins at midnight of the zone: 23:30 UTC and 00:30 UTC are one day in Seoul, two in UTC.
        ("daily", 2, "UTC", "+2026-11-20 23:30, +2026-11-21 00:30"),
        ("daily", 1, "Asia/Seoul", "-2026-11-20 23:30, +2026-11-21 00:30"),
        # Sunday and Monday are two weeks, wherever the year ends: 2025-12-29 to 2026-01-04 is W01 of 2026.
        ("weekly", 2, "UTC", "+2025-12-28 12:00, -2025-12-29 12:00, +2026-01-01 12:00"),
        ("weekly", 1, "UTC", "-2025-12-29 12:00, -2026-01-01 12:00, +2026-01-04 12:00"),
        # 2020 had 53 weeks: 2021-01-03 is W53, 2021-01-04 is W01.
        ("weekly", 2, "UTC", "-2020-12-31 12:00, +2021-01-03 12:00, +2021-01-04 00:00"),
        # The year ends where the zone says so.
        ("yearly", 1, "UTC", "-2025-12-31 12:00, +2026-01-01 04:30"),
        ("yearly", 1, "America/New_York", "-2025-12-31 12:00, +2026-01-01 04:30"),
        ("yearly", 2, "America/New_York", "-2025-06-01 12:00, +2025-12-31 12:00, +2026-01-01 05:00"),
        # Berlin, 2026-10-25: 02:00 to 03:00 comes twice, and is two hours.
        ("hourly", 2, "Europe/Berlin", "-2026-10-25 00:10, +2026-10-25 00:50, +2026-10-25 01:20"),
        # Berlin, 2026-03-29: 02:00 to 03:00 does not exist; 01:59 and 03:00 are neighbours.
        ("hourly", 2, "Europe/Berlin", "-2026-03-28 23:30, +2026-03-29 00:59, +2026-03-29 01:00"),
        # The days of a clock change have 25 and 23 hours, and are one day each.
        ("daily", 2, "Europe/Berlin", "-2026-10-24 22:30, -2026-10-25 12:00, +2026-10-25 22:30, +2026-10-25 23:30"),
        ("daily", 2, "Europe/Berlin", "+2026-03-28 22:59, -2026-03-28 23:00, +2026-03-29 21:59"),
        # A zone that is half an hour off begins its hours there.
        ("hourly", 2, "Asia/Kolkata", "+2026-11-20 10:29, -2026-11-20 10:31, +2026-11-20 11:29"),
        # A leap day is a day, and February ends with it.
        ("monthly", 2, "UTC", "-2024-02-28 12:00, +2024-02-29 12:00, +2024-03-01 00:00"),
    ],
)
def test_natural_boundaries(rule: str, number: int, zone: str, written: str) -> None:
    """Hours, days, ISO weeks, months and years begin where the pipeline's zone says, over clock changes and year ends."""
    moments = [(item[0] == "+", item[1:]) for item in written.split(", ")]
    stay = kept(RetentionPolicy(**{rule: number, "min_good": 1}), history(*(at(text) for _, text in moments)), zone)
    assert [text for stays, text in moments if stays] == [f"{b.time:%Y-%m-%d %H:%M}" for b in stay]


def test_rules_that_are_not_full_keep_the_oldest() -> None:
    """Ten days are not twelve months: the first backup stays until there are twelve."""
    backups = history(*(NOW - timedelta(days=n) for n in range(10)))
    decisions = decide(RetentionPolicy(monthly=12, min_good=1), "UTC", backups, NOW)
    assert [True, *[False] * 8, True] == [d.keep for d in decisions]
    assert ("the oldest, while there are not 12 monthly ones",) == decisions[0].reasons


# --- restic ----------------------------------------------------------------------------------------------------------


def test_the_example_of_restics_manual() -> None:
    """Twelve Sundays and keep-daily 4: the last four Sundays stay (restic's manual, "Removing snapshots by policy")."""
    sundays = history(*(at("2019-09-01 11:00") + timedelta(weeks=n) for n in range(12)))
    assert sundays[-4:] == kept(RetentionPolicy(daily=4), sundays)


def test_the_hundred_years_of_restics_manual() -> None:
    """One backup a day, daily 7, weekly 5, monthly 12, yearly 75: 7 days, then the last days of weeks, months and years."""
    backups = history(*(NOW - timedelta(days=n) for n in range(36525)))
    days = [b.time.date() for b in kept(RetentionPolicy(daily=7, weekly=5, monthly=12, yearly=75), backups)]
    assert 7 + 4 + 11 + 74 - 1 == len(days)  # the last day of 2025 ends a month and a year
    for day in days[7:]:
        after = day + timedelta(days=1)
        assert day.isoweekday() == 7 or after.month != day.month


def documented(keep: RetentionPolicy, backups: list[Candidate], zone: str) -> set[str]:
    """What restic's manual says of the rules, in its own words and another way than the code."""
    newest_first = sorted(backups, key=lambda b: (b.time, b.id), reverse=True)
    formats = {"hourly": "%Y%m%d%H%z", "daily": "%Y%m%d", "weekly": "%G%V", "monthly": "%Y%m", "yearly": "%Y"}
    stay = {b.id for b in newest_first[: keep.last or 0]}
    if keep.within is not None and newest_first:
        stay |= {b.id for b in newest_first if newest_first[0].time - b.time <= timedelta(seconds=keep.within)}
    for rule, form in formats.items():
        wanted = getattr(keep, rule)
        if wanted is None:
            continue
        latest: dict[str, str] = {}  # "for the last n days which have one or more snapshots, … the most recent one for each day"
        for backup in newest_first:
            latest.setdefault(backup.time.astimezone(ZoneInfo(zone)).strftime(form), backup.id)
        stay |= set(list(latest.values())[:wanted])
        if len(latest) < wanted and newest_first:  # "if there are not enough …, the oldest snapshot is kept additionally"
            stay.add(newest_first[-1].id)
    return stay


zones = st.sampled_from(["UTC", "Asia/Seoul", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
keeps = st.builds(
    RetentionPolicy,
    **{rule: st.none() | st.integers(1, 15) for rule in RULES},
    within=st.none() | st.floats(1, 86400 * 400),
    min_good=st.integers(1, 6),
)
moments = st.one_of(
    st.datetimes(datetime(2024, 1, 1), datetime(2026, 11, 22), timezones=st.just(UTC)),
    st.integers(0, 300).map(lambda n: NOW - timedelta(hours=n * 7)),
    st.integers(0, 300).map(lambda n: at("2026-10-26 00:00") - timedelta(minutes=n * 17)),
)
candidates = st.lists(
    st.builds(
        Candidate,
        id=st.integers(0, 16**6).map("{:06x}".format),
        time=moments | st.integers(1, 9000).map(lambda n: NOW + timedelta(hours=n)),
        defect=st.sampled_from(["", "", "", "it is suspect", "its drill failed"]),
        acknowledged=st.booleans(),
        held=st.sampled_from([False, False, False, True]),
    ),
    max_size=60,
    unique_by=lambda b: b.id,
)


@given(keep=keeps, moments=st.lists(moments, max_size=80), zone=zones)
def test_agrees_with_restics_documentation(keep: RetentionPolicy, moments: list[datetime], zone: str) -> None:
    """With the floor at one, good backups of the past are kept exactly as restic's manual says, in any zone."""
    keep = attrs.evolve(keep, min_good=1)
    backups = history(*moments)
    expected = {b.id for b in backups} if keep.empty else documented(keep, backups, zone)
    newest = {max(backups, key=lambda b: (b.time, b.id)).id} if backups else set()
    assert expected | newest == {d.id for d in decide(keep, zone, backups, NOW) if d.keep}


# --- promises over any history ---------------------------------------------------------------------------------------


@given(keep=keeps, backups=candidates, zone=zones, jump=st.integers(-(10**6), 10**6), random=st.randoms())
def test_what_always_holds(keep: RetentionPolicy, backups: list[Candidate], zone: str, jump: int, random: Random) -> None:
    """Whatever the policy, the history, its failures and the clock: floor, newest, held, future and unacknowledged ones stay.

    Order is nothing; each has a reason."""
    now = NOW + timedelta(hours=jump)
    decisions = decide(keep, zone, backups, now)
    stay = {d.id for d in decisions if d.keep}
    good = sorted((b for b in backups if not b.defect and b.time <= now + SKEW), key=lambda b: (b.time, b.id), reverse=True)
    assert {b.id for b in good[: keep.min_good]} <= stay
    assert {b.id for b in backups if b.held or b.time > now + SKEW or (b.defect and not b.acknowledged)} <= stay
    assert all(d.reasons and all(d.reasons) for d in decisions)
    assert sorted(b.id for b in backups) == sorted(d.id for d in decisions)
    if not good:
        assert {b.id for b in backups} == stay
    shuffled = list(backups)
    random.shuffle(shuffled)
    assert decisions == decide(keep, zone, shuffled, now)


@given(keep=keeps, backups=candidates, zone=zones)
def test_deciding_again_deletes_nothing_more(keep: RetentionPolicy, backups: list[Candidate], zone: str) -> None:
    """What one prune has kept, the next one keeps: a repeated command is harmless."""
    stay = kept(keep, backups, zone)
    assert stay == kept(keep, stay, zone)


@given(keep=keeps, backups=candidates, zone=zones, late=st.integers(0, 10**5))
def test_time_that_passes_deletes_nothing(keep: RetentionPolicy, backups: list[Candidate], zone: str, late: int) -> None:
    """A job that stalls for years and then prunes finds what it left: only new good backups push old ones out."""
    past = [b for b in backups if b.time <= NOW]
    assert kept(keep, past, zone) == kept(keep, past, zone, NOW + timedelta(hours=late))


@given(
    keep=keeps,
    zone=zones,
    runs=st.lists(
        st.tuples(st.integers(1, 100), st.sampled_from(["good", "good", "good", "fails", "suspect", "future", "past"])),
        max_size=50,
    ),
)
def test_years_of_use(keep: RetentionPolicy, zone: str, runs: list[tuple[int, str]]) -> None:
    """Run, prune, run, prune: as many of the newest good backups as the floor says are there at every moment."""
    now, store, ever = at("2024-01-01 00:00"), list[Candidate](), list[Candidate]()
    for number, (hours, what) in enumerate(runs):
        now += timedelta(hours=hours)
        if what == "fails":
            continue  # no backup, and no prune
        moment = {"future": now + timedelta(days=3650), "past": now - timedelta(days=3650)}.get(what, now)
        backup = Candidate(id=f"{number:04x}", time=moment, defect="it is suspect" if what == "suspect" else "")
        store.append(backup)
        ever.append(backup)
        if what == "good":
            store = kept(keep, store, zone, now)
        good = sorted((b for b in ever if not b.defect and b.time <= now + SKEW), key=lambda b: (b.time, b.id), reverse=True)
        assert {b.id for b in good[: keep.min_good]} <= {b.id for b in store}


def test_one_stamp_from_2035_deletes_nothing() -> None:
    """A backup from the future is kept, and is no reference for ages (it once deleted 58 of 61)."""
    backups = history(*(NOW - timedelta(days=n) for n in range(60)))
    future = Candidate(id="f", time=at("2035-01-01 00:00"))
    before = kept(RetentionPolicy(within=30 * 86400.0), backups)
    assert 31 == len(before)
    assert [*before, future] == kept(RetentionPolicy(within=30 * 86400.0), [*backups, future])


def test_ages_count_from_the_newest_good_backup() -> None:
    """A year without a good backup: ``within = 30d`` keeps the month before it stopped."""
    backups = history(*(NOW - timedelta(days=365 + n) for n in range(60)))
    bad = [Candidate(id=f"bad{n}", time=NOW - timedelta(days=n), defect="it is suspect") for n in range(300)]
    assert [*backups[:31], *bad] == kept(RetentionPolicy(within=30 * 86400.0), [*backups, *bad])


def test_an_acknowledged_failure_goes_when_good_ones_have_followed() -> None:
    """What failed its drill takes no place of a good one, and is deleted after the floor has filled behind it."""
    failed = Candidate(id="x", time=NOW - timedelta(days=9), defect="its drill failed", acknowledged=True)
    few = history(NOW, NOW - timedelta(days=1))
    assert [*few, failed] == kept(RetentionPolicy(last=1), [*few, failed])
    many = history(NOW, NOW - timedelta(days=1), NOW - timedelta(days=2))
    assert many == kept(RetentionPolicy(last=1), [*many, failed])


# --- coverage and speed ------------------------------------------------------------------------------------------------


def test_coverage_names_gaps_and_forgives_youth() -> None:
    """Daily 7 with days 2 and 3 missing has 5 of 7; three days of history are not four days short."""
    backups = history(*(NOW - timedelta(days=n) for n in (0, 1, 4, 5, 6, 7, 8)))
    found = cover(RetentionPolicy(daily=7, monthly=12), "UTC", backups, NOW)
    assert (5, 7, (2, 3), False) == (found["daily"].have, found["daily"].want, found["daily"].gaps, found["daily"].met)
    assert (1, 1, True) == (found["monthly"].have, found["monthly"].want, found["monthly"].met)
    young = cover(RetentionPolicy(daily=7), "UTC", backups[:2], NOW)
    assert (2, 2, True) == (young["daily"].have, young["daily"].want, young["daily"].met)
    hourly = cover(RetentionPolicy(hourly=4), "Asia/Kolkata", history(*(NOW - timedelta(hours=n) for n in (0, 1, 3))), NOW)
    assert (3, 4, (2,)) == (hourly["hourly"].have, hourly["hourly"].want, hourly["hourly"].gaps)


def test_ten_thousand_backups_in_fifty_pipelines(record_property: pytest.RecordProperty) -> None:
    """Decisions for 10,000 backups in 50 pipelines, all rules set, take less than a second."""
    pipelines = [history(*(NOW - timedelta(hours=5 * n + p) for n in range(200))) for p in range(50)]
    keep = RetentionPolicy(last=3, within=864000.0, hourly=24, daily=7, weekly=4, monthly=12, yearly=3)
    begun = clock.perf_counter()
    total = sum(len(decide(keep, "Asia/Seoul", backups, NOW)) for backups in pipelines)
    seconds = clock.perf_counter() - begun
    record_property("seconds", seconds)
    print(f"{total} decisions in {seconds:.3f} s")
    assert 10_000 == total
    assert 1 > seconds
