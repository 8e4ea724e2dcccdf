"""A scheduler for people without cron: runs each pipeline when its ``schedule`` says, in the foreground, one at a time.

The clock on the wall decides, looked at every few seconds: so a machine that slept, or a clock that was set, is noticed. What has
passed meanwhile is run once, however many times it was, and the others are reported as missed. No pipeline overlaps itself or
another, since they are run one after the other; what became due is run next. At the start a pipeline whose newest backup is older
than its last due time is run at once, for nobody ran it while nobody was there; one without a backup waits for its time.

Cron lines are read by cronsim, with Debian cron's behaviour at clock changes: a time that is skipped is run right after, one that
comes twice is run once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import attrs

from pgsnap.errors import ConfigError, PgsnapError
from pgsnap.pipeline import Pipeline
from pgsnap.streams.process import watch

__all__ = ["Due", "Scheduler", "due_times"]

LOOK_EVERY = 5.0
"""Seconds between two looks at the clock."""
COUNTED = 1000
"""Missed times beyond which they are not counted any more."""


def due_times(schedule: str, zone: str, after: datetime) -> Iterator[datetime]:
    """Yield the times (UTC) of a cron line (one that a Pipeline has accepted) after a moment."""
    from cronsim import CronSim

    for moment in CronSim(schedule, after.astimezone(ZoneInfo(zone))):
        yield moment.astimezone(UTC)


def last_due(schedule: str, zone: str, before: datetime) -> datetime | None:
    """Return the last time (UTC) of a cron line before a moment, or None if there was none in 50 years."""
    from cronsim import CronSim

    found = next(CronSim(schedule, before.astimezone(ZoneInfo(zone)), reverse=True), None)
    return found.astimezone(UTC) if found is not None else None


@attrs.frozen(kw_only=True)
class Due:
    """A pipeline whose time has come: the time that it is run for, and how many before it were missed."""

    pipeline: Pipeline
    time: datetime
    missed: int = 0


class Scheduler:
    """Runs pipelines by their schedules.

    Args:
        run: Backs one up; what it raises, if it is a PgsnapError, is told by ``tell`` and ends nothing.
        tell: Takes a sentence for the log.
        clock: The time, with a zone.
        sleep: Waits so many seconds.
        heartbeat: A file that is written every few seconds, also while a backup runs: a probe looks at its age.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        run: Callable[[Pipeline], object],
        tell: Callable[[str], object],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], object] = time.sleep,
        heartbeat: Path | None = None,
    ) -> None:
        self.pipelines = [pipeline for pipeline in pipelines if pipeline.schedule is not None]
        if not self.pipelines:
            names = ", ".join(pipeline.name for pipeline in pipelines) or "none"
            raise ConfigError(f'no pipeline has a schedule (there is {names}); add schedule = "0 8 * * *" to one.')
        self._run = run
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._heartbeat = heartbeat
        self._next: dict[str, datetime | None] = {}
        self._state = "waiting"
        self._stopped = False

    def stop(self) -> None:
        """Begin no further backup, and return from ``work`` when the one that runs has ended. For a signal handler."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopped

    def start(self) -> list[Due]:
        """Work out the next times; return what was missed while nobody was there, oldest first."""
        now = self._clock()
        overdue = []
        for pipeline in self.pipelines:
            self._plan(pipeline, now)
            due = last_due(pipeline.schedule or "", pipeline.timezone, now)
            newest = self._newest(pipeline)
            if due is not None and newest is not None and newest < due - timedelta(minutes=1):
                overdue.append(Due(pipeline=pipeline, time=due))
        return sorted(overdue, key=lambda due: due.time)

    def _newest(self, pipeline: Pipeline) -> datetime | None:
        try:
            backups = pipeline.backups().backups
        except PgsnapError as error:
            self._tell(f"{pipeline.name}: it could not be seen whether a backup was missed: {error}")
            return None
        return backups[-1].time if backups else None

    def _plan(self, pipeline: Pipeline, after: datetime) -> None:
        self._next[pipeline.name] = next(due_times(pipeline.schedule or "", pipeline.timezone, after), None)

    def due(self) -> list[Due]:
        """Return what is due by the clock, oldest first, and plan what follows."""
        now = self._clock()
        found = []
        for pipeline in self.pipelines:
            planned = self._next[pipeline.name]
            if planned is None or planned > now:
                continue
            missed, latest = 0, planned
            for moment in due_times(pipeline.schedule or "", pipeline.timezone, planned):
                if moment > now or missed == COUNTED:
                    break
                missed, latest = missed + 1, moment
            found.append(Due(pipeline=pipeline, time=latest, missed=missed))
            self._plan(pipeline, now)
        return sorted(found, key=lambda due: due.time)

    @property
    def next(self) -> tuple[datetime, str] | None:
        """The next time, and the name of its pipeline."""
        return min(((moment, name) for name, moment in self._next.items() if moment is not None), default=None)

    def work(self) -> None:
        """Run for ever: until ``stop`` is called, or something else than a PgsnapError is raised (a signal)."""
        pending = self.start()
        for due in pending:
            self._tell(f"{due.pipeline.name}: the backup of {_said(due)} was missed while nothing ran here; it is taken now.")
        self._announce()
        while not self.stopped:
            for due in pending:
                if not self.stopped:
                    self._one(due)
            if pending:
                self._announce()
            self.beat()
            self._sleep(LOOK_EVERY)
            pending = self.due()
            for due in pending:
                if due.missed:
                    self._tell(f"{due.pipeline.name}: {due.missed} earlier backups were missed; one is taken, for {_said(due)}.")

    def _one(self, due: Due) -> None:
        self._plan(due.pipeline, self._clock())  # what became due while this one waited for its turn is served by it
        self._state = f"backup of {due.pipeline.name}"
        try:
            with watch(self.beat, LOOK_EVERY, name="heartbeat") if self._heartbeat else contextlib.nullcontext():
                self._run(due.pipeline)
        except PgsnapError as error:
            self._tell(f"{due.pipeline.name}: {error}")
        finally:
            self._state = "waiting"

    def _announce(self) -> None:
        if self.next is not None:
            moment, name = self.next
            zone = next(p.timezone for p in self.pipelines if p.name == name)
            self._tell(f"the next backup is {name}, at {moment.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}.")

    def beat(self) -> None:
        """Write the heartbeat file, whole or not at all. One that cannot be written goes stale: its probe looks for that."""
        if self._heartbeat is None:
            return
        upcoming = self.next
        document = {
            "time": self._clock().isoformat(timespec="seconds"),
            "pid": os.getpid(),
            "state": self._state,
            "next": upcoming[0].isoformat(timespec="seconds") if upcoming else None,
            "pipeline": upcoming[1] if upcoming else None,
        }
        partial = self._heartbeat.with_name(f".{self._heartbeat.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            partial.write_text(json.dumps(document) + "\n")
            os.replace(partial, self._heartbeat)


def _said(due: Due) -> str:
    return f"{due.time.astimezone(ZoneInfo(due.pipeline.timezone)):%Y-%m-%d %H:%M}"
