"""``pgsnap status``: what is there, for people, for probes and for machines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgsnap.cli.inspect import READERS
from pgsnap.cli.screen import paragraph, table
from pgsnap.cli.session import Session, pass_session, print_json
from pgsnap.errors import ConfigError, PgsnapError

if TYPE_CHECKING:
    from pgsnap.operations.status import PipelineStatus

__all__ = ["status"]

MARKS = {"error": ("NO", "bold red"), "warning": ("!!", "yellow"), "info": ("--", "dim"), "ok": ("ok", "green")}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--max-age", metavar="DURATION", help="How old the last good backup of each store may be, such as 26h.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on stdout.")
@click.option("--openmetrics", metavar="FILE", help="Also write it for a Prometheus text-file collector.")
@pass_session
def status(session: Session, names: Sequence[str], max_age: str | None, as_json: bool, openmetrics: str | None) -> int:
    """Say what backups the stores really hold. Reads the stores, not any local state.

    Exit code 0 only if each store has a good backup that is young enough, and nothing speaks against one.
    """
    from pgsnap.components.values import parse_duration
    from pgsnap.operations.reports import worst
    from pgsnap.operations.status import openmetrics as metrics

    seconds = parse_duration(max_age) if max_age is not None else None
    codes: list[int] = []
    found: list[PipelineStatus] = []
    for pipeline in session.pipelines(names, READERS):
        try:
            one = pipeline.status(max_age=seconds)
        except PgsnapError as error:
            codes.append(session.failed(error))
            continue
        found.append(one)
        codes.append(one.exit_code)
        if not as_json:
            _print(session, one)
    if as_json:
        print_json([_document(one) for one in found])
    if openmetrics is not None:
        _write(Path(openmetrics), metrics(found))
    return worst(codes)


def _print(session: Session, one: PipelineStatus) -> None:
    from pgsnap.components.values import format_age, format_size

    out = session.out
    out.print(one.pipeline, style="bold", markup=False)
    rows: list[list[str | tuple[str, str]]] = []
    for number, store in enumerate(one.stores, 1):
        if store.error:
            rows.append([f"[{number}]", ("cannot be asked", "red"), "", "", "", ""])
        else:
            last = store.last_good or ("none", "red")
            age = format_age(store.age) if store.age is not None else ""
            size = format_size(store.last_size) if store.last_good else ""
            rows.append([f"[{number}]", last, age, size, str(store.count), format_size(store.size)])
    table(out, ["", "last good", ">age", ">size", ">backups", ">in all"], rows)
    for number, store in enumerate(one.stores, 1):
        rules = ", ".join(f"{rule} {part.have}/{part.want}" for rule, part in store.coverage.items())
        paragraph(out, f"[{number}] {store.label}{': ' + rules if rules else ''}", indent=2, hang=4, style="dim")
    if one.proof is None:
        out.print("  last proof: none; run: pgsnap verify", style="dim")
    else:
        word = "passed" if one.proof.ok else "FAILED"
        out.print(f"  last proof: {one.proof.what} of {one.proved} {word}, {one.proof.time:%Y-%m-%d %H:%M} UTC")
    for finding in sorted(one.findings, key=lambda f: list(MARKS).index(f.level)):
        mark, style = MARKS[finding.level]
        text = f"{mark}  {finding.subject}: {finding.text} {finding.remedy}".rstrip()
        paragraph(out, session.redact(text), indent=2, hang=4, style=style)


def _document(one: PipelineStatus) -> dict[str, object]:
    import attrs

    stores = [attrs.asdict(store) | {"policy_met": store.policy_met} for store in one.stores]
    return attrs.asdict(one) | {"stores": stores, "time": one.time.isoformat(timespec="seconds"), "exit_code": one.exit_code}


def _write(path: Path, text: str) -> None:
    """Replace a file at once: the collector must never read half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
