"""``pgsnap backup`` and ``pgsnap copy``: what writes to the stores."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pgsnap.cli.session import Session, pass_session, print_json
from pgsnap.errors import PgsnapError

__all__ = ["backup", "copy", "tell_report"]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON on stdout.")
@pass_session
def backup(session: Session, names: Sequence[str], as_json: bool) -> int:
    """Back up the named pipelines, or all, one after the other.

    A pipeline that fails does not stop the next one. The exit code is the worst of all.
    """
    from pgsnap.operations.reports import worst

    pipelines = session.pipelines(names)
    for note in session.load().notes:
        session.line(f"{note.subject}: {note.text}", "dim")
    codes: list[int] = []
    documents: list[object] = []
    session.last_word = "no backup was made"
    for pipeline in pipelines:
        error: PgsnapError | None = None
        try:
            with session.progress() as progress:
                report = pipeline.backup(progress=progress)
        except PgsnapError as caught:
            error, report = caught, caught.report
            codes.append(session.failed(caught))
        else:
            codes.append(report.exit_code)
            tell_report(session, report)
        documents.append(_document(pipeline.name, report, error, session))
    if as_json:
        print_json(documents)
    return worst(codes)


def tell_report(session: Session, report: object) -> None:
    """Print what a backup has to say, on stderr."""
    from pgsnap.operations.reports import BackupReport

    assert isinstance(report, BackupReport)
    for note in report.notes:
        session.line(f"note: {note}", "yellow")
    for label, ids in (report.caught_up.copied if report.caught_up else {}).items():
        session.line(f"note: {label} lacked {', '.join(ids)}, and got it by copy.", "yellow")
    for text in report.catch_up_errors:
        session.line(f"warning: {text}", "yellow", "warning")
    for text in report.notify_errors:
        session.line(f"warning: {text}", "yellow", "warning")
    if report.exit_code == 0:
        session.line(report.text, "green")
    else:
        session.line(report.text, "yellow", "warning")
    for store in report.prune.stores if report.prune else ():
        if store.deleted:
            session.line(f"{report.pipeline}: {len(store.deleted)} older backups were pruned from {store.label}.")


def _document(name: str, report: object, error: PgsnapError | None, session: Session) -> object:
    import attrs

    from pgsnap.operations.reports import BackupReport

    if not isinstance(report, BackupReport):
        return {"pipeline": name, "exit_code": error.exit_code if error else 1, "error": session.redact(str(error))}
    return {
        "pipeline": report.pipeline,
        "id": report.id,
        "started": report.started.isoformat(timespec="seconds"),
        "ended": report.ended.isoformat(timespec="seconds"),
        "size": report.size,
        "stored_size": report.stored_size,
        "stores": [attrs.asdict(store) | {"ok": store.ok} for store in report.stores],
        "notes": list(report.notes),
        "suspect": list(report.suspect),
        "pruned": {store.label: list(store.deleted) for store in report.prune.stores} if report.prune else {},
        "notify_errors": list(report.notify_errors),
        "caught_up": {label: list(ids) for label, ids in (report.caught_up.copied if report.caught_up else {}).items()},
        "catch_up_errors": list(report.catch_up_errors),
        "exit_code": error.exit_code if error else report.exit_code,
        "error": session.redact(str(error)) if error else "",
    }


@click.command(short_help="Copy what a store lacks from those that have it; no dump.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--to", metavar="STORE", help="Only to this store, by its URL.")
@click.option("--backup", "-b", "ids", multiple=True, metavar="ID", help="Only these backups; default: all that are missing.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON on stdout.")
@pass_session
def copy(session: Session, names: Sequence[str], to: str | None, ids: Sequence[str], as_json: bool) -> int:
    """Bring stores that missed backups up to date from those that have them, without a dump."""
    import attrs

    from pgsnap.operations.reports import worst

    codes: list[int] = []
    reports = []
    for pipeline in session.pipelines(names, roles={"store", "transform"}):
        try:
            with session.progress() as progress:
                report = pipeline.copy(to=to, backups=ids, progress=progress)
        except PgsnapError as error:
            codes.append(session.failed(error))
            reports.append({"pipeline": pipeline.name, "error": session.redact(str(error))})
            continue
        codes.append(report.exit_code)
        reports.append(attrs.asdict(report))
        for label, copied in report.copied.items():
            what = f"{len(copied)} backup{'' if len(copied) == 1 else 's'} copied" if copied else "nothing was missing"
            session.line(f"{pipeline.name}: {label}: {what}.", "green" if copied else "")
        for text in report.errors:
            session.error(text)
    if as_json:
        print_json(reports)
    return worst(codes)
