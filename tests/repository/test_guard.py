"""The shrink guard: a pure function first, then the backup that it marks, and the acknowledgement."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsnap import ConfigError, RetentionPolicy
from pgsnap.repository.guard import Guard, check
from pgsnap.repository.manifest import ArtifactRecord, Manifest, StageRecord
from toys import MakePipeline, ToyDumper

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def manifest(number: int, size: int = 1000, *, dumper: str = "toy", **facts: Any) -> Manifest:
    time = NOW + timedelta(days=number)
    return Manifest(
        id=f"{time:%Y%m%dT%H%M%SZ}-0000",
        pipeline="shop",
        started=time,
        ended=time,
        pgsnap="0",
        dumper=StageRecord(name=dumper, version="1", facts=facts),
        artifacts=(ArtifactRecord(name="a", size=size, sha256="0" * 64, stages=(), objects=()),),
        files=(),
    )


def test_nothing_to_compare_with_is_not_suspect() -> None:
    """The first backup of all is what it is."""
    assert () == check(manifest(0, 0), [], Guard())


@pytest.mark.parametrize(("size", "suspect"), [(1000, False), (500, False), (499, True), (0, True), (5000, False)])
def test_size(size: int, suspect: bool) -> None:
    """Less than half of the largest is suspect, half is not, and growth never is."""
    assert suspect == bool(check(manifest(9, size), [manifest(0, 900), manifest(1, 1000), manifest(2, 800)], Guard()))


def test_the_sentence_names_both_numbers() -> None:
    """So that a person can check."""
    new = manifest(9, 400, totals={"tables": 1, "rows": 12_000})
    old = manifest(0, 1_000_000, totals={"tables": 30, "rows": 4_000_000})
    assert (
        "it has 400 B and one of the last 1 had 1.0 MB",
        "it has 12,000 rows and one of the last 1 had 4,000,000",
        "it has 1 tables and one of the last 1 had 30",
    ) == check(new, [old], Guard())


@pytest.mark.parametrize(
    ("now", "before", "said"),
    [
        ({"roles": 0}, [{"roles": 12}, {"roles": 3}], "it has no roles and one of the last 2 had 12"),
        ({"roles": 1}, [{"roles": 12}], ""),
        ({"roles": 0}, [{"roles": 0}, {}], ""),
        ({}, [{"roles": 12}], ""),
    ],
)
def test_roles_that_are_gone(now: dict[str, int], before: list[dict[str, int]], said: str) -> None:
    """A backup without any after one with some lacks what a restore needs; one that takes none on purpose counts none."""
    history = [manifest(number, totals=totals) for number, totals in enumerate(before)]
    assert ((said,) if said else ()) == check(manifest(9, totals=now), history, Guard())


def test_a_tenth_a_day_does_not_slip_by() -> None:
    """Against yesterday alone it always would."""
    history = [manifest(0, 1_000_000)]
    for day in range(1, 30):
        new = manifest(day, int(history[-1].size * 0.9))
        if check(new, history, Guard()):
            assert 7 == day
            return
        history.append(new)
    pytest.fail("it slipped by")


@pytest.mark.parametrize(
    ("now", "before", "said"),
    [
        ({"system_identifier": "2"}, {"system_identifier": "1"}, "system identifier 1 is now 2"),
        ({"database_oid": 5}, {"database_oid": 4}, "database oid 4 is now 5"),
        ({"system_identifier": None}, {"system_identifier": "1"}, ""),
        ({"system_identifier": "1"}, {"system_identifier": None}, ""),
        ({"database_oid": 5, "system_identifier": None}, {"database_oid": 5, "system_identifier": "1"}, ""),
        ({}, {"system_identifier": "1"}, ""),
        (None, {"system_identifier": "1"}, ""),
        ("odd", ["odd"], ""),
    ],
)
def test_identity(now: Any, before: Any, said: str) -> None:
    """Another database is suspect; what is unknown has not changed."""
    reasons = check(manifest(1, identity=now), [manifest(0, identity=before)], Guard())
    assert [bool(said)] == [said in "".join(reasons) and bool(reasons)] if said else reasons == ()


def test_sizes_of_other_formats_are_not_compared() -> None:
    """Turning compression on inside pg_dump is no collapse."""
    before = [manifest(0, 10_000, format="custom", compression="none")]
    assert () == check(manifest(1, 1000, format="custom", compression="zstd:3"), before, Guard())
    assert () == check(manifest(1, 1000, dumper="other", format="custom", compression="none"), before, Guard())
    assert check(manifest(1, 1000, format="custom", compression="none"), before, Guard())


def test_bounds_can_be_moved_and_switched_off() -> None:
    """Each by itself."""
    old = [manifest(0, 1000, totals={"tables": 10}, identity={"database_oid": 1})]
    new = manifest(1, 10, totals={"tables": 1}, identity={"database_oid": 2})
    assert 3 == len(check(new, old, Guard()))
    assert 2 == len(check(new, old, Guard(size=0)))
    assert 1 == len(check(new, old, Guard(size=0.01, tables=0.1)))
    assert () == check(new, old, Guard(size=0, tables=0, rows=0, identity=False))
    assert () == check(manifest(9, 600), [manifest(0, 10_000), manifest(1, 700)], Guard(last=1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 1.5}, "guard.size is 1.5; give a share from 0 (do not look) to 1."),
        ({"rows": -1.0}, "guard.rows is -1; give a share from 0 (do not look) to 1."),
        ({"last": 0}, "guard.last is 0; give a number of backups of 1 or more."),
    ],
)
def test_bad_bounds_are_refused(options: dict[str, Any], text: str) -> None:
    """By a sentence with the option and the value."""
    with pytest.raises(ConfigError) as caught:
        Guard(**options)
    assert text == str(caught.value)


@given(
    new=st.integers(0, 10**9),
    history=st.lists(st.integers(0, 10**9), max_size=12),
    share=st.floats(0, 1),
    last=st.integers(1, 10),
)
def test_any_history_of_sizes(new: int, history: list[int], share: float, last: int) -> None:
    """Suspect exactly if it is below the share of the largest of the last few."""
    manifests = [manifest(number, size) for number, size in enumerate(history)]
    expected = bool(history) and new < max(history[-last:]) * share
    assert expected == bool(check(manifest(99, new), manifests, Guard(last=last, size=share)))


# --- in a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def days(make: MakePipeline) -> Callable[..., Any]:
    """Back up a database of so many bytes on a day, counted from the first."""

    def run(day: int, size: int, **parts: Any) -> Any:
        pipeline = make(dump=ToyDumper(contents={"shop.dump": b"x" * size}), **parts)
        return pipeline.backup(now=NOW - timedelta(days=100 - day))

    return run


def test_a_collapse_is_kept_reported_and_not_counted(days: Any, make: MakePipeline, tmp_path: Path) -> None:
    """It is committed with suspect.json, the exit code is 4, nothing is pruned; after the ack it is the new measure, once."""

    keep = RetentionPolicy(last=1, min_good=1)
    first = days(0, 100_000, auto_prune=False)
    second = days(1, 100_000, auto_prune=False)
    report = days(2, 100, keep=keep)
    assert 4 == report.exit_code
    assert ("it has 100 B and one of the last 2 had 100 kB",) == report.suspect
    assert "SUSPECT" in report.text
    assert f"pgsnap ack {report.id}" in report.text
    pipeline = make(keep=keep)
    assert {first.id, second.id, report.id} == {b.id for b in pipeline.backups().backups}
    for store in ("a", "b"):
        document = json.loads((tmp_path / store / "shop" / report.id / "suspect.json").read_bytes())
        assert {"id": report.id, "reasons": list(report.suspect)} == document
    assert "suspect.json" in [item.key for item in pipeline.backups().manifest(pipeline.backups().find("latest")).files]

    frozen = pipeline.prune()
    assert 4 == frozen.exit_code
    assert [f"{report.id}: it is suspect; look at it, then: pgsnap ack {report.id}"] == list(frozen.frozen)
    assert 3 == len(pipeline.backups().backups)

    again = days(3, 100, keep=keep)
    assert again.suspect
    pipeline.acknowledge(report.id)
    pipeline.acknowledge(again.id)
    later = days(4, 100, keep=keep)
    assert () == later.suspect
    assert 0 == later.exit_code
    assert [later.id] == [b.id for b in pipeline.backups().backups]


def test_an_old_acknowledged_collapse_is_the_measure_for_what_comes(days: Any, make: MakePipeline) -> None:
    """A real clean-up is acknowledged once: the next small ones are not compared with the time before."""
    days(0, 100_000)
    small = days(1, 100)
    assert small.suspect
    make().acknowledge(small.id)
    assert [()] * 3 == [days(day, 90).suspect for day in (2, 3, 4)]
    assert days(5, 10).suspect


def test_prune_looks_again(days: Any, make: MakePipeline) -> None:
    """A run that could not read its history (a key that only writes) leaves the judgement to prune and status."""

    for day in range(3):
        days(day, 100_000, auto_prune=False)
    blind = days(3, 100, guard=Guard(size=0), auto_prune=False)
    assert () == blind.suspect
    report = make(keep=RetentionPolicy(last=1, min_good=1)).prune()
    assert 4 == report.exit_code
    assert f"{blind.id} is suspect: it has 100 B and one of the last 3 had 100 kB" in report.frozen[0]
    assert 4 == len(make().backups().backups)


def test_a_history_that_cannot_be_read_does_not_fail_the_run(days: Any, make: MakePipeline, tmp_path: Path) -> None:
    """The backup is what counts."""
    days(0, 100_000)
    for path in tmp_path.rglob("manifest.json"):
        path.write_text("{")
    assert () == days(1, 100).suspect


def test_a_copied_suspect_stays_suspect(days: Any, make: MakePipeline, tmp_path: Path) -> None:
    """suspect.json is one of the files that the manifest lists, so it goes where the backup goes."""
    import shutil

    days(0, 100_000)
    report = days(1, 100)
    shutil.rmtree(tmp_path / "b")
    make().copy()
    assert (tmp_path / "b" / "shop" / report.id / "suspect.json").exists()


def test_the_guard_is_an_option_of_the_pipeline(make: MakePipeline) -> None:
    """And has defaults."""
    assert Guard() == make().guard
    assert 3 == make(guard=attrs.evolve(Guard(), last=3)).guard.last
