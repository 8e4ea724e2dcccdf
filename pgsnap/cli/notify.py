"""``pgsnap notify test`` and ``summary``: are people told at all, and that all is well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from pgsnap.cli.session import Session, pass_session, print_json

if TYPE_CHECKING:
    from pgsnap.components.events import Event
    from pgsnap.pipeline import Pipeline

__all__ = ["notify"]


@click.group()
def notify() -> None:
    """Tell people something now: a test, or a summary."""


@notify.command(short_help="Send a marked test through every notifier.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
@pass_session
def test(session: Session, names: Sequence[str], as_json: bool) -> int:
    """Send a marked test through every notifier of the named pipelines, or of all, and report each."""
    from pgsnap.components.events import TestMessage

    def event(pipeline: Pipeline) -> Event:
        text = f"{pipeline.name}: this is a test of pgsnap's notifications. Nothing has happened, and nothing needs to be done."
        return TestMessage(pipeline=pipeline.name, text=text)

    return _send(session, session.pipelines(names, {"notify"}), event, as_json)


@notify.command(short_help="Say that all is well, or what is not.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
@pass_session
def summary(session: Session, names: Sequence[str], as_json: bool) -> int:
    """Send the "still alive" summary of the named pipelines, or of all, to the notifiers that want it."""
    from pgsnap.operations.summary import summarize

    return _send(session, session.pipelines(names, {"notify", "store"}), summarize, as_json)


def _send(session: Session, pipelines: Sequence[Pipeline], make: Callable[[Pipeline], Event], as_json: bool) -> int:
    """Tell the notifiers one by one, so that each result can be told apart; return the exit code."""
    from pgsnap.components.redact import Redactor
    from pgsnap.operations.notify import send

    results = []
    for pipeline in pipelines:
        event = make(pipeline)
        redact = Redactor.from_components(pipeline.components)
        wanting = [notifier for notifier in pipeline.notifiers if notifier.wants(event)]
        if not wanting:
            session.line(f"{pipeline.name}: no notifier wants to hear of it; add [[pipeline.{pipeline.name}.notify]].", "yellow")
        for number, notifier in enumerate(wanting):
            errors = send([notifier], event, redact=redact, timeout=pipeline.notify_timeout)
            results.append({"pipeline": pipeline.name, "notifier": notifier.name, "position": number, "error": "".join(errors)})
            if errors:
                session.error(f"{pipeline.name}: {errors[0]}")
            else:
                session.line(f"{pipeline.name}: {notifier.name} has taken the message.", "green")
    if as_json:
        print_json(results)
    return 3 if any(result["error"] for result in results) else 0
