"""``pgsnap restore``: a backup into a database, after saying which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from pgsnap.cli.session import STORES, Session, pass_session
from pgsnap.errors import ConfigError, IntegrityError

__all__ = ["restore", "use_identity"]


def use_identity(path: str | None) -> None:
    """Let the transforms of this process find a private key."""
    if path is None:
        return
    if not Path(path).is_file():
        raise ConfigError(f"--identity {path}: there is no such file; give the file that 'pgsnap keygen' wrote.")
    os.environ["PGSNAP_AGE_IDENTITY"] = path


def _target(to: str | None, to_env: str | None) -> str:
    if (to is None) == (to_env is None):
        raise ConfigError("say where to restore by one of these: --to URL, or --to-env NAME of a variable that holds the URL.")
    if to_env is not None:
        value = os.environ.get(to_env, "")
        if not value:
            raise ConfigError(f"--to-env {to_env}: the variable is not set; put the URL of the database to restore into there.")
        return value
    assert to is not None
    try:
        secret = urlsplit(to).password is not None or "password=" in to
    except ValueError:
        secret = "@" in to
    if secret:
        raise ConfigError(
            "--to holds a password, which everyone on this machine could read; put the URL into a variable and use --to-env NAME."
        )
    return to


@click.command()
@click.argument("name", required=False)
@click.option(
    "--backup", "-b", "which", default="latest", show_default=True, metavar="ID", help="An id, its beginning or a time."
)
@STORES
@click.option("--to", metavar="URL", help="The database to restore into, without a password.")
@click.option("--to-env", metavar="VAR", help="A variable that holds the URL, password and all.")
@click.option("--table", "-t", "tables", multiple=True, metavar="TABLE", help="Only this table, with what it needs; repeatable.")
@click.option("--schema", "-n", "schemas", multiple=True, metavar="SCHEMA", help="Only this schema; repeatable.")
@click.option(
    "--section",
    "sections",
    multiple=True,
    type=click.Choice(["pre-data", "data", "post-data"]),
    help="Only this section; repeatable.",
)
@click.option(
    "--jobs", "-j", default=1, show_default=True, type=click.IntRange(1), help="Connections; more than 1 needs a local copy."
)
@click.option("--no-globals", is_flag=True, help="Leave out roles and tablespaces.")
@click.option("--no-owners", is_flag=True, help="Everything belongs to the restoring user; no privileges are set.")
@click.option(
    "--replace",
    metavar="DATABASE",
    help="The target may hold data: it is set aside under another name. Type the database's name.",
)
@click.option("--identity", metavar="FILE", help="The private key of an encrypted backup.")
@pass_session
def restore(
    session: Session,
    name: str | None,
    which: str,
    stores: Sequence[str],
    to: str | None,
    to_env: str | None,
    tables: Sequence[str],
    schemas: Sequence[str],
    sections: Sequence[str],
    jobs: int,
    no_globals: bool,
    no_owners: bool,
    replace: str | None,
    identity: str | None,
) -> int:
    """Restore a backup into a database.

    The database that the URL names is made if it does not exist, and filled if it is empty. If the restore fails,
    everything is as it was before.
    """
    from pgsnap.components.contracts import RestoreRequest
    from pgsnap.components.values import Secret, format_duration
    from pgsnap.operations.restore import restore as restore_backup

    use_identity(identity)
    target = _target(to, to_env)
    pipeline = session.pipeline(name, {"store", "transform"}, stores)
    if replace is not None:
        database = unquote(urlsplit(target).path.lstrip("/"))
        if replace != database:
            raise ConfigError(
                f"--replace {replace!r} is not the target's database; type {database!r} if that is what you mean to replace."
            )
    request = RestoreRequest(
        target=Secret(target),
        tables=tuple(tables),
        schemas=tuple(schemas),
        sections=tuple(sections),
        jobs=jobs,
        globals=not no_globals,
        owners=not no_owners,
        force=replace is not None,
    )
    session.line(f"{pipeline.name}: restoring {which} into {pipeline.dump.describe(request)}", "bold")
    with session.progress() as progress:
        try:
            report = restore_backup(pipeline, request, backup=which, progress=progress)
        except IntegrityError as error:
            raise IntegrityError(
                f"{error} The target is as it was; 'pgsnap verify --all' shows which backups are whole, and --backup takes one."
            ) from error
    seconds = (report.ended - report.started).total_seconds()
    session.line(f"{pipeline.name}: {report.id} was restored into {report.target} in {format_duration(seconds)}.", "green")
    return 0
