"""Configuration: a TOML file, a table of ``pyproject.toml``, or the environment alone, made into pipelines.

    load()  ->  Config(path, pipelines, source, notes)

The first of these that is found is used alone, nothing is merged: the file that ``--config`` names, the one that
``PGSNAP_CONFIG`` names, ``./pgsnap.toml``, ``[tool.pgsnap]`` in ``./pyproject.toml``, ``~/.config/pgsnap/pgsnap.toml``,
``/etc/pgsnap/pgsnap.toml``; and where there is no file, the environment's own variables (see ``environment``).

Theory of operation: TOML makes a document of a file; ``references`` replaces ``{ env = … }`` and its like; ``values`` structures
options by the types of a component's fields, strictly; ``build`` walks the document, calls both, and collects everything that is
wrong, so that one run shows it all. cattrs, pluggy and the plugins are imported by ``load`` only.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import attrs

from pgsnap.components.contracts import ComponentKind
from pgsnap.components.values import Finding
from pgsnap.config.environment import describe_environment, is_described
from pgsnap.config.template import init_toml
from pgsnap.errors import ConfigError

if TYPE_CHECKING:
    from pgsnap.components.registry import Registry
    from pgsnap.pipeline import Pipeline

__all__ = ["ROLES", "Config", "Role", "find_config", "init_toml", "load"]

Role = ComponentKind
ROLES: tuple[Role, ...] = get_args(ComponentKind)
"""What a command may need of a pipeline; ``backup`` and ``doctor`` need everything."""

NAME = "pgsnap.toml"
SYSTEM = Path("/etc/pgsnap") / NAME


@attrs.frozen(kw_only=True)
class Config:
    """What was configured.

    Args:
        path: The file, or None for the environment alone.
        pipelines: By name, in the file's order.
        source: What to call it in a message.
        notes: What is worth knowing though it works, such as a secret in a file that others can read; never a value.
    """

    path: Path | None
    pipelines: Mapping[str, Pipeline]
    source: str
    notes: tuple[Finding, ...] = ()


def load(
    path: Path | None = None,
    *,
    registry: Registry | None = None,
    roles: Collection[Role] = ROLES,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Config:
    """Find the configuration and return its pipelines.

    Args:
        path: A file to use in place of what would be found.
        registry: Where components are looked up; by default everything that is installed.
        roles: The kinds of component that will be used. For the others references are not resolved, so that a host that only
            restores needs no DATABASE_URL; notifiers that are not asked for are not built.
        environ: The environment; by default the process's.
        directory: Where to look first; by default the current one.

    Raises:
        ConfigError: there is none, or something is wrong with it; ``problems`` has everything.
    """
    environ = os.environ if environ is None else environ
    found = find_config(path, environ=environ, directory=directory)
    if found is None:
        return _from_environment(registry, roles, environ)
    return _from_file(found, registry, roles, environ)


def find_config(
    path: Path | None = None, *, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> Path | None:
    """Return the configuration file that would be used, or None where there is none.

    Raises:
        ConfigError: the file that ``path`` or ``PGSNAP_CONFIG`` names is missing, or it cannot be seen whether there is one.
    """
    environ = os.environ if environ is None else environ
    directory = Path() if directory is None else directory
    for named, by in ((path, "--config"), (environ.get("PGSNAP_CONFIG"), "PGSNAP_CONFIG")):
        if named:
            chosen = Path(named).expanduser()
            if not _exists(chosen):
                raise ConfigError(f"{by} names {chosen}, which is not there; correct the path, or write it with 'pgsnap init'.")
            return chosen
    project = directory / "pyproject.toml"
    candidates = [directory / NAME, project]
    home = environ.get("HOME")
    settings = environ.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else "")
    candidates += [Path(settings) / "pgsnap" / NAME] if os.path.isabs(settings) else []
    for candidate in [*candidates, SYSTEM]:
        if _exists(candidate) and (candidate != project or _has_table(candidate)):
            return candidate
    return None


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        # Not taken for absent: what comes further down the list may be another database.
        raise ConfigError(f"{path} cannot be looked at: {error.strerror}; correct its permissions.") from None
    return True


def _has_table(path: Path) -> bool:
    """Return whether a pyproject.toml is ours too; one that is broken and does not mention us is none of our business."""
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return False
    if "pgsnap" not in text:
        return False
    try:
        return "pgsnap" in tomllib.loads(text).get("tool", {})
    except tomllib.TOMLDecodeError:
        return "[tool.pgsnap" in text


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check that it is there and who may read it.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line}: it is not UTF-8 text; save it as UTF-8.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
    said, _, at = message.rpartition(" (at ")
    place = at.removesuffix(")") if said else ""
    what = said or message
    what = f"{what[:1].lower()}{what[1:]}"
    remedy = "correct the TOML there"
    if twice := re.fullmatch(r"cannot declare \((.*?),?\) twice", what):
        name = ".".join(part.strip(" '\"") for part in twice[1].split(","))
        several = name.rpartition(".")[2] in ("store", "transform", "notify")
        what, remedy = f"[{name}] is there twice", f"write [[{name}]] for each of several" if several else "keep one of them"
    elif what == "invalid value":
        what, remedy = "this is no value", 'text stands in "quotes"'
    raise ConfigError(f"{path}: {place + ': ' if place else ''}{what}; {remedy}.")


def _from_file(path: Path, registry: Registry | None, roles: Collection[Role], environ: Mapping[str, str]) -> Config:
    from pgsnap.config.build import Builder
    from pgsnap.config.references import References

    document, prefix = _read(path), ""
    if path.name == "pyproject.toml":
        prefix = "tool.pgsnap."
        document = document.get("tool", {}).get("pgsnap")
        if not isinstance(document, dict):
            raise ConfigError(f"{path} has no table [tool.pgsnap]; add [tool.pgsnap.pipeline.NAME], or name another file.")
    builder = Builder(str(path), registry or _installed(), References(environ, path.parent), roles, prefix=prefix)
    pipelines = builder.build(document)
    notes = list(builder.notes)
    if builder.open_secrets and (mode := _readable_by_others(path)):
        notes.append(
            Finding(
                "warning",
                str(path),
                f"it holds secrets, and others can read it (mode {mode:04o}).",
                f"Run: chmod 600 {path}",
            )
        )
    return Config(path=path, pipelines=pipelines, source=str(path), notes=tuple(notes))


def _readable_by_others(path: Path) -> int:
    """Return the mode of a file that its group or anyone can read, else 0."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return mode if mode & 0o044 else 0


def _from_environment(registry: Registry | None, roles: Collection[Role], environ: Mapping[str, str]) -> Config:
    from pgsnap.config.build import Builder
    from pgsnap.config.references import References

    if not is_described(environ):
        raise ConfigError(
            "there is no configuration: no pgsnap.toml here, in ~/.config/pgsnap or in /etc/pgsnap, and neither DATABASE_URL nor "
            "a bucket in the environment; run 'pgsnap init' to write a file, or set DATABASE_URL."
        )
    made = describe_environment(environ, dump="dump" in roles)
    builder = Builder("environment", registry or _installed(), References(environ, Path()), roles, because=made.because)
    pipelines = builder.build(made.document)
    return Config(path=None, pipelines=pipelines, source="the environment", notes=(*made.notes, *builder.notes))


def _installed() -> Registry:
    from pgsnap.components.registry import Registry

    return Registry.load()
