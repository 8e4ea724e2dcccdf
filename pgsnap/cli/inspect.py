"""``pgsnap list``, ``show`` and ``verify``: what reads the stores and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from pgsnap.cli.screen import paragraph, table
from pgsnap.cli.session import STORES, Session, pass_session, print_json
from pgsnap.errors import ConfigError, NotFound, PgsnapError

if TYPE_CHECKING:
    from pgsnap.operations.reports import VerifyReport
    from pgsnap.pipeline import Pipeline
    from pgsnap.repository.catalog import Backup, Catalog

__all__ = ["READERS", "find_backup", "list_backups", "show", "verify"]

READERS = {"store", "transform"}


@click.command("list", short_help="List the backups, the newest last.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@STORES
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON on stdout.")
@pass_session
def list_backups(session: Session, names: Sequence[str], stores: Sequence[str], as_json: bool) -> int:
    """List the backups of the named pipelines, or of all, the newest last."""
    from pgsnap.operations.reports import worst

    codes = [0]
    documents = []
    for pipeline in session.pipelines(names, READERS, stores):
        try:
            catalog = pipeline.backups()
        except PgsnapError as error:
            codes.append(session.failed(error))
            continue
        for failure in catalog.failures.values():
            session.error(str(failure))
            codes.append(3)
        if as_json:
            documents += [_document(pipeline, backup) for backup in catalog.backups]
        else:
            _print_table(session, pipeline, catalog)
    if as_json:
        print_json(documents)
    return worst(codes)


def _document(pipeline: Pipeline, backup: Backup) -> dict[str, object]:
    return {
        "pipeline": pipeline.name,
        "id": backup.id,
        "time": backup.time.isoformat(),
        "size": backup.size,
        "suspect": backup.suspect,
        "acknowledged": backup.acknowledged,
        "held": backup.held,
        "proof": f"{backup.proof.what} {'ok' if backup.proof.ok else 'failed'}" if backup.proof else "",
        "stores": [pipeline.stores[number].label for number in backup.stores],
    }


def _states(backup: Backup) -> str:
    """Return what is known of a backup beside its being there: suspect, held, the last proof."""
    words = []
    if backup.suspect:
        words.append("acknowledged" if backup.acknowledged else "suspect")
    if backup.held:
        words.append("held")
    if backup.proof is not None:
        words.append(f"{backup.proof.what} {'ok' if backup.proof.ok else 'failed'}")
    return ", ".join(words)


def _print_table(session: Session, pipeline: Pipeline, catalog: Catalog) -> None:
    from pgsnap.components.values import format_age, format_size

    out = session.out
    out.print(pipeline.name, style="bold", markup=False)
    now = datetime.now(UTC)
    backups = catalog.backups
    states = [_states(backup) for backup in backups]
    labels = [store.label for store in pipeline.stores]
    room = out.width - 44 - max(map(len, states), default=0)
    wide = sum(len(label) + 2 for label in labels) > room  # then they stand below, by number
    wanted = [
        set(catalog.wanted(number, pipeline.policy(store), pipeline.timezone, now))
        for number, store in enumerate(pipeline.stores)
    ]
    rows: list[list[str | tuple[str, str]]] = []
    for backup, state in zip(backups, states, strict=True):
        age = (now - backup.time).total_seconds()
        row: list[str | tuple[str, str]] = [
            backup.id,
            format_age(age) if age >= 0 else ("future", "red"),
            format_size(backup.size),
        ]
        for number in range(len(labels)):
            if number in catalog.failures:
                row.append(("?", "yellow"))
            else:
                absent = ("missing", "red") if backup.id in wanted[number] else ("-", "dim")  # its policy would not keep it
                row.append(("yes", "green") if number in backup.stores else absent)
        bad = "suspect" in state or "failed" in state
        rows.append([*row, (state, "red" if bad else "green" if state.endswith("ok") else "")])
    if rows:
        names = [f"[{n}]" if wide else label for n, label in enumerate(labels, 1)]
        table(out, ["backup", ">age", ">size", *names, "state" if any(states) else ""], rows)
    else:
        reached = [label for number, label in enumerate(labels) if number not in catalog.failures]
        paragraph(out, f"no backup yet in {', '.join(reached)}", indent=2, hang=2)
    unfinished = {i.id for scan in catalog.scans.values() for i in scan.values() if not i.committed} - {b.id for b in backups}
    for id in sorted(unfinished):
        running = any(id in scan and scan[id].running for scan in catalog.scans.values())
        state = "still running, or was killed" if running else "unfinished"
        paragraph(out, f"{id}  {state}; it does not count", indent=2, hang=2, style="dim")
    if rows and wide:
        for number, label in enumerate(labels, 1):
            paragraph(out, f"[{number}] {label}", indent=2, hang=4, style="dim")


def find_backup(session: Session, pipelines: Sequence[Pipeline], which: str) -> tuple[Pipeline, Catalog, Backup]:
    """Find a backup among several pipelines; the one it belongs to is given back ``time_limited``."""
    found = []
    missing: list[PgsnapError] = []
    for pipeline in (pipeline.time_limited for pipeline in pipelines):
        catalog = pipeline.backups()
        try:
            found.append((pipeline, catalog, catalog.find(which)))
        except NotFound as error:
            missing.append(error)
    if len(found) > 1:
        names = ", ".join(pipeline.name for pipeline, _, _ in found)
        raise ConfigError(f"{which!r} fits backups of {names}; say which by --pipeline.")
    if not found:
        raise missing[0]
    return found[0]


@click.command()
@click.argument("which", metavar="ID", default="latest")
@click.option("--pipeline", "-p", metavar="NAME", help="Of this pipeline; needed if several fit.")
@STORES
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is stored.")
@pass_session
def show(session: Session, which: str, pipeline: str | None, stores: Sequence[str], as_json: bool) -> int:
    """Show what a backup consists of. ID is an id, its beginning, a time, or 'latest'."""
    from pgsnap.components.values import format_duration, format_size

    chosen, catalog, backup = find_backup(session, session.pipelines([pipeline] if pipeline else [], READERS, stores), which)
    for failure in catalog.failures.values():
        session.error(str(failure))
    code = 3 if catalog.failures else 0
    manifest = catalog.manifest(backup)
    if as_json:
        click.echo(manifest.to_bytes().decode(), nl=False)
        return code
    out = session.out
    seconds = (manifest.ended - manifest.started).total_seconds()
    out.print(f"{chosen.name} {backup.id}", style="bold", markup=False)
    took = format_duration(seconds) if seconds else "less than a second"  # the manifest counts whole ones
    lines = [("taken", f"{manifest.started:%Y-%m-%d %H:%M:%S} UTC in {took}, by pgsnap {manifest.pgsnap}")]
    lines.append(("size", f"{format_size(manifest.size)} became {format_size(manifest.stored_size)}"))
    lines += [("in", f"{chosen.stores[number].label}/{chosen.name}/{backup.id}") for number in backup.stores]
    facts = {key: value for key, value in manifest.facts.items() if key != "notes" and not isinstance(value, (dict, list))}
    lines += [("facts", ", ".join(f"{key} {value}" for key, value in facts.items()))] if facts else []
    lines += [("note", note) for note in manifest.facts.get("notes", ())]
    for name, text in lines:
        paragraph(out, f"{name:6}{text}", indent=2, hang=6)
    for record in manifest.artifacts:
        out.print()
        chain = " > ".join([record.name, *(stage.name for stage in record.stages)])
        paragraph(out, f"{chain}: {format_size(record.size)}", indent=2, hang=2, style="bold")
        out.print(f"    sha256 {record.sha256}", soft_wrap=True)
        for item in record.objects:
            paragraph(out, f"{item.key}: {format_size(item.size)}", indent=2, hang=2)
            out.print(f"    sha256 {item.sha256}", soft_wrap=True)
    return code


@click.command(short_help="Compare every byte of a backup, in each store.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--backup", "-b", "which", default="latest", show_default=True, metavar="ID", help="An id, its beginning or a time."
)
@STORES
@click.option("--all", "every", is_flag=True, help="Every backup.")
@click.option("--no-record", is_flag=True, help="Change nothing: do not record the result in the store.")
@click.option("--repair", is_flag=True, help="Replace what is damaged by what another store holds undamaged, and verify again.")
@click.option("--decode", is_flag=True, help="Decrypt and decompress too, and check the plain bytes; needs the key.")
@click.option("--identity", metavar="FILE", help="The private key, for --decode.")
@click.option("--notify", is_flag=True, help="Tell the result to the pipeline's notifiers.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON on stdout.")
@pass_session
def verify(
    session: Session,
    names: Sequence[str],
    which: str,
    stores: Sequence[str],
    every: bool,
    no_record: bool,
    repair: bool,
    decode: bool,
    identity: str | None,
    notify: bool,
    as_json: bool,
) -> int:
    """Read backups in every store and compare each byte with the manifest.

    What it finds is recorded beside the manifest: a damaged copy no longer counts as good, and freezes pruning.
    """
    from pgsnap.cli.restore import use_identity
    from pgsnap.components.values import format_size
    from pgsnap.operations.reports import worst

    use_identity(identity)
    codes: list[int] = []
    documents: list[dict[str, object]] = []
    for pipeline in session.pipelines(names, READERS | {"notify"} if notify else READERS, stores):
        pipeline = pipeline.time_limited  # so that a store that gives no answer is waited for once, and not for each backup
        try:
            ids = [backup.id for backup in pipeline.backups().backups] if every else [which]
        except PgsnapError as error:
            codes.append(session.failed(error))
            documents.append({"pipeline": pipeline.name, "id": None, "ok": False, "error": session.redact(str(error))})
            continue
        for id in ids:
            try:
                with session.progress() as progress:
                    check = pipeline.repair if repair else pipeline.verify
                    report = check(id, decode=decode, record=not no_record, notify=notify, progress=progress)
            except PgsnapError as error:
                codes.append(session.failed(error))
                documents.append({"pipeline": pipeline.name, "id": id, "ok": False, "error": session.redact(str(error))})
                continue
            codes.append(report.exit_code)
            documents.append(
                {
                    "pipeline": report.pipeline,
                    "id": report.id,
                    "ok": report.ok,
                    "decoded": decode,
                    "size": report.size,
                    "problems": dict(report.problems),
                    "repaired": dict(report.repaired),
                    "notify_errors": list(report.notify_errors),
                }
            )
            for text in report.notify_errors:
                session.line(f"warning: {text}", "yellow", "warning")
            for label, keys in report.repaired.items():
                if keys:
                    session.line(f"{pipeline.name}: {report.id}: repaired in {label}: {', '.join(keys)}", "yellow", "warning")
            for label, problems in report.problems.items():
                for problem in problems:
                    session.error(problem)
                if not problems:
                    session.line(f"{pipeline.name}: {report.id} is whole in {label}", "green")
            if not report.ok:
                session.line(_after_damage(pipeline, report), "bold", "warning")
            session.line(f"{format_size(report.size)} were read{' and decoded' if decode else ''}.", "dim")
    if as_json:
        print_json(documents)
    return worst(codes)


def _after_damage(pipeline: Pipeline, report: VerifyReport) -> str:
    """Say what to do about a backup that is not whole everywhere."""
    if report.whole and not report.damaged:
        unread = ", ".join(report.unread)
        return f"{report.whole[0]} has it whole; of {unread} nothing is known: run: pgsnap doctor {pipeline.name}"
    if report.whole:
        return f"{report.whole[0]} has it whole; run: pgsnap verify {pipeline.name} --backup {report.id} --repair"
    return f"No store has it whole: run 'pgsnap backup {pipeline.name}' now, and 'pgsnap verify --all' to see which others are."
