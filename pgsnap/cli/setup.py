"""``pgsnap init``, ``keygen``, ``doctor`` and ``plugins``: what people need before and between backups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pgsnap.cli.screen import paragraph, table
from pgsnap.cli.session import Session, pass_session, print_json
from pgsnap.errors import ConfigError, PluginError

__all__ = ["doctor", "init", "keygen", "plugins"]


@click.command(short_help="Write a configuration from what the environment holds.")
@click.option("--output", "-o", default="pgsnap.toml", show_default=True, metavar="FILE", help="Where to write; '-' is stdout.")
@pass_session
def init(session: Session, output: str) -> int:
    """Write a configuration: of what the environment holds (DATABASE_URL and the like), with comments.

    Secrets stay in the environment; the file only names the variables.
    """
    from pgsnap.config import init_toml

    text = init_toml(os.environ)
    if output == "-":
        click.echo(text, nl=False)
        return 0
    try:
        with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{output} exists and was left as it is; give another name by --output.") from None
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}.") from None
    session.line(f"{output} was written. Look it over, then run: pgsnap doctor", "green")
    return 0


@click.command(short_help="Make a key pair; the public key is printed.")
@click.argument("transform", default="age")
@click.option("--output", "-o", required=True, metavar="FILE", help="Where the private key goes; it must not exist yet.")
@pass_session
def keygen(session: Session, transform: str, output: str) -> int:
    """Make a key pair: the private key into a file, the public one on stdout."""
    from pgsnap.components.contracts import Transform
    from pgsnap.components.registry import Registry

    component = Registry.load().get("transform", transform)
    if not issubclass(component, Transform):
        raise PluginError(f"{transform!r} is not a transform.")
    public = component.keygen(Path(output))
    click.echo(public)
    session.line(f"The private key is in {output}. Without it no backup can be read: keep a copy away from this machine.", "bold")
    return 0


MARKS = {"ok": ("ok", "green"), "info": ("--", "dim"), "warning": ("!!", "yellow"), "error": ("NO", "bold red")}


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


@click.command(short_help="Look whether a backup would work now; changes nothing.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--deep", is_flag=True, help="Try the stores out too: write, read, list, abort and delete in a folder of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
@pass_session
def doctor(session: Session, names: Sequence[str], deep: bool, as_json: bool) -> int:
    """Look whether a backup would work now: server, client programs, permissions, keys, stores. Changes nothing but by --deep."""
    import attrs

    config = session.load()
    documents: list[dict[str, Any]] = []
    failed = False
    looked_at = [("configuration", list(config.notes))] if config.notes else []
    for pipeline in session.pipelines(names):
        looked_at.append((pipeline.name, pipeline.preflight() + (pipeline.examine() if deep else [])))
    for heading, findings in looked_at:
        failed = failed or any(finding.level == "error" for finding in findings)
        documents += [
            {"of": heading} | {key: session.redact(text) for key, text in attrs.asdict(finding).items()} for finding in findings
        ]
        if not as_json:
            session.out.print(heading, style="bold", markup=False)
            for finding in findings:
                mark, style = MARKS[finding.level]
                text = f"{mark}  {finding.subject}: {_upper(finding.text)} {_upper(finding.remedy)}".rstrip()
                paragraph(session.out, session.redact(text), indent=2, hang=4, style=style)
    if as_json:
        print_json(documents)
    return 1 if failed else 0


@click.command(short_help="List the plugins that are installed.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON on stdout.")
@pass_session
def plugins(session: Session, as_json: bool) -> int:
    """List the plugins that are installed, what they offer, and those that are broken or in conflict."""
    from pgsnap.components.registry import Registry

    registry = Registry.load()
    conflicts = {f"{kind} {name}": [i.distribution for i in items] for (kind, name), items in registry.conflicts.items()}
    if as_json:
        print_json(
            {
                "plugins": [
                    {
                        "name": plugin.name,
                        "distribution": plugin.distribution,
                        "version": plugin.version,
                        "offers": [f"{item.kind} {item.name}" for item in plugin.components],
                        "error": plugin.error,
                        "disabled": plugin.disabled,
                    }
                    for plugin in registry.plugins
                ],
                "conflicts": conflicts,
            }
        )
    else:
        rows: list[list[str | tuple[str, str]]] = []
        for plugin in registry.plugins:
            offers = ", ".join(f"{item.kind} {item.name}" for item in plugin.components)
            state = ("disabled", "dim") if plugin.disabled else ("broken", "red") if plugin.error else ("ok", "green")
            rows.append([plugin.distribution, plugin.version, state, offers])
        table(session.out, ["distribution", "version", "state", "offers"], rows)
        for plugin in registry.plugins:
            if plugin.error:
                paragraph(session.out, f"{plugin.distribution}: {plugin.error}", indent=2, hang=2, style="red")
        for name, owners in conflicts.items():
            text = f"conflict: {name} is claimed by {' and '.join(owners)}; name one in PGSNAP_DISABLE_PLUGINS or remove it"
            paragraph(session.out, text, indent=2, hang=2, style="red")
    return 1 if conflicts or any(plugin.error for plugin in registry.plugins) else 0
