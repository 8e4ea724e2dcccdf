"""``pgsnap prune``, ``ack``, ``hold``, ``release`` and ``delete``: what decides which backups stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from pgsnap.cli.inspect import READERS, find_backup
from pgsnap.cli.screen import paragraph
from pgsnap.cli.session import Session, pass_session, print_json
from pgsnap.errors import PgsnapError

if TYPE_CHECKING:
    from pgsnap.operations.reports import MarkReport, PruneReport, StorePrune
    from pgsnap.pipeline import Pipeline

__all__ = ["ack", "delete", "hold", "prune", "release"]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would go.")
@click.option("--explain", is_flag=True, help="Print each backup, kept or deleted, and by which rule.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON on stdout.")
@pass_session
def prune(session: Session, names: Sequence[str], dry_run: bool, explain: bool, as_json: bool) -> int:
    """Delete what the policies do not keep.

    And what unfinished runs have left.
    Never the newest good backups, nothing that is held, and nothing at all while a backup is suspect.
    """
    from pgsnap.operations.reports import worst

    codes: list[int] = []
    documents: list[object] = []
    for pipeline in session.pipelines(names, READERS):
        try:
            report = pipeline.prune(dry_run=dry_run)
        except PgsnapError as error:
            codes.append(session.failed(error))
            continue
        codes.append(report.exit_code)
        if as_json:
            documents.append(_document(report))
        elif explain:
            _explain(session, report)
        for text in report.problems:
            session.error(text)
        for store in report.stores:
            if not store.error:
                session.line(f"{pipeline.name}: {store.label}: {_summary(report, store)}.", "" if report.frozen else "green")
    if as_json:
        print_json(documents)
    return worst(codes)


def _summary(report: PruneReport, store: StorePrune) -> str:
    going = [decision.id for decision in store.decisions if not decision.keep]
    staying = len(store.decisions) - len(going)
    if report.dry_run or report.frozen:
        text = f"{len(going)} would be deleted, {staying} stay"
        text += f", {len(store.orphans)} unfinished ones would go" if store.orphans else ""
    else:
        text = f"{len(store.deleted)} deleted, {len(store.decisions) - len(store.deleted)} stay"
        text += f", {len(store.orphans)} unfinished ones removed" if store.orphans else ""
    if not store.extended:
        return text
    return text + f", the locks of {len(store.extended)} {'would be' if report.dry_run else 'were'} extended"


def _explain(session: Session, report: PruneReport) -> None:
    for store in report.stores:
        if not store.decisions:
            continue
        session.out.print(f"{report.pipeline}: {store.label}", style="bold", markup=False)
        for decision in store.decisions:
            word, style = ("keep  ", "green") if decision.keep else ("delete", "red")
            paragraph(session.out, f"{word}  {decision.id}  {', '.join(decision.reasons)}", indent=2, hang=31, style=style)


def _document(report: PruneReport) -> dict[str, object]:
    import attrs

    return attrs.asdict(report) | {"exit_code": report.exit_code}


def _mark(session: Session, which: str, name: str | None, do: Callable[[Pipeline, str], MarkReport], done: str) -> int:
    """Find one backup among the pipelines, do something with it, and say where."""
    pipeline, _, backup = find_backup(session, session.pipelines([name] if name else [], READERS), which)
    report = do(pipeline, backup.id)
    session.line(f"{pipeline.name}: {report.id} {done} in {', '.join(report.labels)}.", "green")
    for error in report.errors:
        session.error(error)
    return report.exit_code


PIPELINE = click.option("--pipeline", "-p", metavar="NAME", help="Of this pipeline; needed if several fit.")


@click.command()
@click.argument("which", metavar="ID")
@PIPELINE
@pass_session
def ack(session: Session, which: str, pipeline: str | None) -> int:
    """Acknowledge a suspect backup, so that pruning goes on.

    Also one that failed a drill or a verification. A suspect one counts as good from now on, and what comes is measured by it.
    """
    return _mark(session, which, pipeline, lambda of, id: of.acknowledge(id), "is acknowledged")


@click.command()
@click.argument("which", metavar="ID")
@PIPELINE
@pass_session
def hold(session: Session, which: str, pipeline: str | None) -> int:
    """Keep a backup until it is released.

    Whatever the policy says.
    """
    return _mark(session, which, pipeline, lambda of, id: of.hold(id), "is held")


@click.command()
@click.argument("which", metavar="ID")
@PIPELINE
@pass_session
def release(session: Session, which: str, pipeline: str | None) -> int:
    """End the hold of a backup."""
    return _mark(session, which, pipeline, lambda of, id: of.release(id), "is released")


@click.command()
@click.argument("which", metavar="ID")
@PIPELINE
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def delete(session: Session, which: str, pipeline: str | None, yes: bool) -> int:
    """Delete one backup from all stores. None that is held, and none of the newest good ones."""
    chosen, _, backup = find_backup(session, session.pipelines([pipeline] if pipeline else [], READERS), which)
    if not yes and not click.confirm(f"Delete {backup.id} of {chosen.name} from {len(backup.stores)} stores?", err=True):
        session.line("Nothing was deleted.")
        return 1
    return _mark(session, backup.id, chosen.name, lambda of, id: of.delete(id), "was deleted")
