"""``pgsnap schedule``: the foreground process of a container that has no cron."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from pgsnap.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pgsnap.pipeline import Pipeline

__all__ = ["schedule"]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--heartbeat", metavar="FILE", help="Written every few seconds; a probe looks at its age.")
@click.option("--finish", is_flag=True, help="At SIGTERM let a running backup end; without it, it is aborted cleanly.")
@pass_session
def schedule(session: Session, names: Sequence[str], heartbeat: str | None, finish: bool) -> int:
    """Back up by the schedules, in the foreground.

    Each pipeline when its 'schedule' says, in its 'timezone'.
    One at a time; what was missed is made up for once. SIGTERM ends it: with code 0 while it waits.
    """
    from pgsnap.cli.backup import tell_report
    from pgsnap.cli.scheduler import Scheduler

    idle = True

    def run(pipeline: Pipeline) -> None:
        nonlocal idle
        idle = False
        try:
            tell_report(session, pipeline.backup())
        except Exception as error:  # also a fault in a plugin: the other pipelines must have their backups
            session.failed(error)
        finally:
            idle = True

    scheduler = Scheduler(
        session.pipelines(names), run, session.line, heartbeat=Path(heartbeat) if heartbeat is not None else None
    )
    abort = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        scheduler.stop()
        if idle:
            raise click.exceptions.Exit(0)
        if finish:
            session.line("SIGTERM: the running backup ends first.")
        elif callable(abort):
            abort(number, frame)

    signal.signal(signal.SIGTERM, stop)
    scheduler.work()
    return 0
