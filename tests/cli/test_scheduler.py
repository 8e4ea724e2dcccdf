"""The scheduler on a clock of its own: due times over clock changes, sleep, overlap, missed runs; then the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest

from pgsnap import ConfigError, Pipeline, StoreError
from pgsnap.cli.scheduler import Scheduler, due_times
from toys import MakePipeline
from waiting import wait_for

PROGRAM = str(Path(sys.executable).with_name("pgsnap"))


class Enough(BaseException):
    """Ends the loop as a signal does."""


@attrs.define
class World:
    """A clock that goes on by itself when somebody sleeps, and a record of what was run."""

    now: datetime
    end: datetime
    ran: list[tuple[str, str]] = attrs.field(factory=list)
    told: list[str] = attrs.field(factory=list)
    takes: dict[str, timedelta] = attrs.field(factory=dict)
    naps: dict[datetime, timedelta] = attrs.field(factory=dict)

    def clock(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for moment in [moment for moment in self.naps if moment <= self.now]:
            self.now += self.naps.pop(moment)
        if self.now >= self.end:
            raise Enough

    def run(self, pipeline: Pipeline) -> None:
        self.ran.append((pipeline.name, f"{self.now.astimezone(ZoneInfo(pipeline.timezone)):%m-%d %H:%M}"))
        self.now += self.takes.get(pipeline.name, timedelta())
        if self.takes.get(pipeline.name) == timedelta(seconds=13):
            raise StoreError("the disk is on fire.")

    def work(self, *pipelines: Pipeline, **more: Any) -> Scheduler:
        scheduler = Scheduler(pipelines, self.run, self.told.append, clock=self.clock, sleep=self.sleep, **more)
        with pytest.raises(Enough):
            scheduler.work()
        return scheduler


def world(begin: str, hours: float, zone: str = "UTC") -> World:
    now = datetime.fromisoformat(begin).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    return World(now, now + timedelta(hours=hours))


def test_runs_when_the_line_says_in_the_zone(make: MakePipeline) -> None:
    """Eight in the morning in Seoul, each day, once."""
    here = world("2026-11-20 00:00", 72)
    here.work(make(schedule="0 8 * * *", timezone="Asia/Seoul"))
    assert [("shop", f"11-{day} 08:00") for day in (21, 22)] + [("shop", "11-23 08:00")] == here.ran
    assert "the next backup is shop, at 2026-11-21 08:00 Asia/Seoul." in here.told


@pytest.mark.parametrize(
    ("begin", "line", "expected"),
    [
        ("2026-03-28 12:00", "30 2 * * *", ["03-29 03:00"]),  # half past two does not exist: right after
        ("2026-10-24 12:00", "30 2 * * *", ["10-25 02:30"]),  # comes twice: run once
        ("2026-10-24 23:00", "0 */6 * * *", ["10-25 00:00", "10-25 06:00", "10-25 12:00", "10-25 18:00"]),
    ],
)
def test_clock_changes(make: MakePipeline, begin: str, line: str, expected: list[str]) -> None:
    """As Debian's cron has it."""
    here = world(begin, 21, "Europe/Berlin")
    here.work(make(schedule=line, timezone="Europe/Berlin"))
    assert expected == [moment for _, moment in here.ran]


def test_a_machine_that_slept_makes_up_once(make: MakePipeline) -> None:
    """Three days of sleep: one backup, at once, and the log says how many were missed."""
    here = world("2026-11-20 00:00", 100)
    here.naps = {here.now + timedelta(hours=20): timedelta(days=3, hours=1)}
    here.work(make(schedule="0 8 * * *"))
    assert [("shop", "11-20 08:00"), ("shop", "11-23 21:00")] == here.ran
    assert "shop: 2 earlier backups were missed; one is taken, for 2026-11-23 08:00." in here.told


def test_a_clock_set_back_repeats_nothing_early(make: MakePipeline) -> None:
    """The next time stays the next time."""
    here = world("2026-11-20 07:00", 4)
    here.naps = {here.now + timedelta(hours=2): timedelta(hours=-3)}
    here.work(make(schedule="0 8 * * *"))
    assert [("shop", "11-20 08:00")] == here.ran


def test_no_overlap(make: MakePipeline) -> None:
    """A backup longer than its interval is not started beside itself; another waits its turn; failures end nothing."""
    here = world("2026-11-20 00:30", 8)
    here.takes = {"slow": timedelta(hours=2, minutes=30), "bad": timedelta(seconds=13)}
    here.work(make(name="slow", schedule="0 * * * *"), make(name="bad", schedule="15 * * * *"))
    expected = [("slow", "11-20 01:00"), ("slow", "11-20 03:30"), ("bad", "11-20 06:00"), ("slow", "11-20 06:00")]
    assert expected == here.ran[:4]
    assert "bad: the disk is on fire." in here.told
    assert any(text.startswith("slow: ") and "were missed" in text for text in here.told)


def test_what_was_missed_before_the_start_is_taken(make: MakePipeline) -> None:
    """By the stores: the newest backup is older than the last due time. Without any backup the first waits for its time."""
    pipeline = make(schedule="0 8 * * *")
    here = world("2026-11-20 09:00", 1)
    here.work(pipeline)
    assert [] == here.ran
    pipeline.backup(now=datetime(2026, 11, 19, 8, tzinfo=UTC))
    here = world("2026-11-20 09:00", 1)
    here.work(pipeline)
    assert [("shop", "11-20 09:00")] == here.ran
    assert "shop: the backup of 2026-11-20 08:00 was missed while nothing ran here; it is taken now." in here.told
    pipeline.backup(now=datetime(2026, 11, 20, 8, 0, 2, tzinfo=UTC))
    here = world("2026-11-20 09:00", 1)
    here.work(pipeline)
    assert [] == here.ran


def test_the_heartbeat(make: MakePipeline, tmp_path: Path) -> None:
    """When it was written, what is going on, what is next; a folder that is not there stops nothing."""
    here = world("2026-11-20 00:00", 1)
    file = tmp_path / "beat.json"
    here.work(make(schedule="0 8 * * *"), heartbeat=file)
    document = json.loads(file.read_text())
    assert ("waiting", "2026-11-20T08:00:00+00:00", "shop", os.getpid()) == tuple(
        document[key] for key in ("state", "next", "pipeline", "pid")
    )
    assert timedelta(seconds=10) > here.now - datetime.fromisoformat(document["time"])
    world("2026-11-20 00:00", 1).work(make(schedule="0 8 * * *"), heartbeat=tmp_path / "none" / "beat")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("61 * * * *", "schedule '61 * * * *' is no cron line (bad minute); write it like '0 8 * * *'."),
        ("0 8 * *", "schedule '0 8 * *' is no cron line (wrong number of fields); write it like '0 8 * * *'."),
        ("daily", "schedule 'daily' is no cron line (wrong number of fields); write it like '0 8 * * *'."),
        ("", "schedule '' is no cron line (wrong number of fields); write it like '0 8 * * *'."),
    ],
)
def test_a_bad_line_is_refused_with_the_pipeline(make: MakePipeline, line: str, said: str) -> None:
    """When the configuration is read, not when the time has come."""
    with pytest.raises(ConfigError) as caught:
        make(schedule=line)
    assert said == str(caught.value)


def test_nothing_to_schedule_is_an_error(make: MakePipeline) -> None:
    """A container that does nothing must not look healthy."""
    with pytest.raises(ConfigError, match=r'no pipeline has a schedule \(there is shop\); add schedule = "0 8 \* \* \*" to one'):
        Scheduler([make()], print, print)


def test_due_times_are_utc() -> None:
    """And strictly after."""
    times = due_times("0 8 * * *", "Asia/Seoul", datetime(2026, 11, 20, 23, tzinfo=UTC))
    assert datetime(2026, 11, 21, 23, tzinfo=UTC) == next(times)


# --- the command, in a process of its own ----------------------------------------------------------------------------------

TOY = """
import contextlib, os, time
from pgsnap import Artifact, Dump, Dumper
import attrs

@attrs.frozen(kw_only=True)
class Slow(Dumper):
    name = "slow"
    gate: str = ""

    @contextlib.contextmanager
    def dump(self, run):
        def stream():
            yield b"x"
            open(self.gate + ".begun", "w").close()
            while not os.path.exists(self.gate):
                run.check()
                time.sleep(0.01)
            yield b"y"
        yield Dump(artifacts=[Artifact(name="shop.dump", open=stream)], facts={})

    def restore(self, source, request, run):
        pass

    def recipe(self, artifacts, facts):
        return "true"
"""


@pytest.fixture
def scheduled(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start 'pgsnap schedule' with one pipeline whose dump waits for a file."""
    (tmp_path / "slow_dumper.py").write_text(TOY)

    def start(*arguments: str, line: str = "0 0 1 1 *") -> subprocess.Popen[str]:
        (tmp_path / "pgsnap.toml").write_text(
            f'[pipeline.shop]\nschedule = "{line}"\n[pipeline.shop.dump]\nuse = "slow_dumper:Slow"\n'
            f'gate = "{tmp_path / "gate"}"\n'
            f'[[pipeline.shop.store]]\nurl = "{tmp_path / "store"}"\n'
        )
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.Popen(
            [PROGRAM, "schedule", *arguments], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def overdue(tmp_path: Path) -> None:
    """Leave a backup of long ago, so that one is taken at the start."""
    gate = tmp_path / "gate"
    gate.touch()
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([PROGRAM, "backup"], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=60)
    for folder in (tmp_path / "store" / "shop").iterdir():
        new = folder.with_name("20200101T000000Z-0000")
        folder.rename(new)
        text = (new / "manifest.json").read_text().replace(folder.name, new.name)
        (new / "manifest.json").write_text(text)
    gate.unlink()
    (tmp_path / "gate.begun").unlink()


def test_sigterm_while_it_waits(scheduled: Any, tmp_path: Path) -> None:
    """Ends at once, with code 0; the heartbeat was there."""
    process = scheduled("--heartbeat", str(tmp_path / "beat"))
    wait_for((tmp_path / "beat").exists, "the heartbeat")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert 0 == process.returncode, err
    assert "the next backup is shop, at 20" in err


@pytest.mark.parametrize("finish", [True, False])
def test_sigterm_while_a_backup_runs(scheduled: Any, tmp_path: Path, finish: bool) -> None:
    """With --finish the backup ends first, then the code is 0; without, it is aborted, and nothing of it is left."""
    scheduled().kill()
    overdue(tmp_path)
    process = scheduled(*(["--finish"] if finish else []))
    wait_for((tmp_path / "gate.begun").exists, "the backup to begin")
    process.send_signal(signal.SIGTERM)
    if finish:
        time.sleep(0.2)
        assert process.poll() is None
        (tmp_path / "gate").touch()
    _, err = process.communicate(timeout=60)
    assert (0 if finish else 1) == process.returncode, err
    assert "was missed while nothing ran here; it is taken now." in err
    assert (2 if finish else 1) == len(list((tmp_path / "store" / "shop").glob("*/manifest.json")))
    assert (2 if finish else 1) == len(list((tmp_path / "store" / "shop").iterdir()))
