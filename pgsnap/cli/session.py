"""What the commands share: the configuration, the log, the redactor, and how things look on a terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgsnap.errors import ConfigError, PgsnapError

if TYPE_CHECKING:
    from rich.console import Console

    from pgsnap.components.redact import Redactor
    from pgsnap.components.run import Progress
    from pgsnap.config import Config
    from pgsnap.pipeline import Pipeline

__all__ = ["STORES", "Session", "pass_session", "print_json"]

F = TypeVar("F", bound=Callable[..., Any])


STORES = click.option(
    "--store", "stores", multiple=True, metavar="STORE", help="Only in this store, by its label (or URL); repeatable."
)


def pass_session(function: F) -> F:
    """Give a command the session as its first argument."""
    return click.pass_obj(function)  # type: ignore[return-value]


def print_json(document: object) -> None:
    """Print a document for machines on stdout, without the secrets of the configuration."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
    session = click.get_current_context().find_object(Session)
    click.echo(session.redact(text) if session else text)


class Session:
    """One call of the command."""

    def __init__(self) -> None:
        self.config_path: str | None = None
        self.verbose = False
        self.quiet = False
        self.json_log = False
        self.last_word = ""
        """What the command says of a run that failed, before the cause; the log's own line of that is left out then."""
        self._config: Config | None = None
        self._redactor: Redactor | None = None
        self._console: Console | None = None

    def configure(self, config: str | None, log_format: str, quiet: bool, verbose: bool) -> None:
        """Take the options that stand before the command."""
        self.config_path = config
        self.quiet, self.verbose = quiet, verbose
        self.json_log = log_format == "json"
        logger = logging.getLogger("pgsnap")
        logger.handlers = [_Lines(self)]
        logger.propagate = False
        logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)

    # --- configuration ---------------------------------------------------------------------------------------------

    def load(self, roles: Collection[str] | None = None) -> Config:
        """Return the configuration, read at the first call, with the references of the given roles (None: of all)."""
        if self._config is not None:
            return self._config
        from pgsnap.components.redact import Redactor
        from pgsnap.config import load

        path = Path(self.config_path) if self.config_path else None
        config = load(path) if roles is None else load(path, roles=roles)  # type: ignore[arg-type]
        self._redactor = Redactor.from_components(config.pipelines.values())
        self._config = config
        return config

    def pipelines(self, names: Sequence[str], roles: Collection[str] | None = None, stores: Sequence[str] = ()) -> list[Pipeline]:
        """Return the named pipelines, or all of them; with only the stores of these labels, if some are given.

        Raises:
            ConfigError: there is no pipeline of that name, or one of them has no store of that label.
        """
        found = self.load(roles).pipelines
        for name in names:
            if name not in found:
                raise ConfigError(f"there is no pipeline {name!r}; the configuration has {', '.join(found) or 'none'}.")
        return [found[name].only(*stores) for name in (names or found)]

    def pipeline(self, name: str | None, roles: Collection[str] | None = None, stores: Sequence[str] = ()) -> Pipeline:
        """Return the named pipeline, or the only one; ``stores`` as above."""
        found = self.pipelines([name] if name else [], roles, stores)
        if len(found) != 1:
            names = ", ".join(pipeline.name for pipeline in found)
            raise ConfigError(f"the configuration has {len(found)} pipelines ({names}); name one.")
        return found[0]

    # --- output ----------------------------------------------------------------------------------------------------

    @property
    def console(self) -> Console:
        """The terminal, or what stands for it, on stderr."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
        return self._console

    @property
    def out(self) -> Console:
        """Standard output, for what people read."""
        from rich.console import Console

        return Console(highlight=False)

    def redact(self, text: str) -> str:
        """Return a text without the secrets of the configuration."""
        return self._redactor(text) if self._redactor else text

    def line(self, text: str, style: str = "", level: str = "info") -> None:
        """Print a line on stderr, above a progress bar if there is one; of level ``info`` only where it is not to be quiet."""
        if self.quiet and level == "info":
            return
        if self.json_log:
            self.emit(level, text)
            return
        text = self.redact(text)
        if self._console is None and not sys.stderr.isatty():
            click.echo(text, err=True)
        else:
            self.console.print(text, style=style or None, markup=False)

    def error(self, text: str, **about: object) -> None:
        """Print an error on stderr; ``about`` goes into a JSON line."""
        if self.json_log:
            self.emit("error", text, **about)
        else:
            self.line(f"error: {text}", "bold red", "error")

    def emit(self, level: str, text: str, **fields: object) -> None:
        """Print a JSON line on stderr."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        document = {"time": now, "level": level, "message": text, **fields}
        clean = {key: self.redact(value) if isinstance(value, str) else value for key, value in document.items()}
        click.echo(json.dumps(clean, ensure_ascii=False), err=True)

    def failed(self, error: Exception) -> int:
        """Print an error that ends the command, or one pipeline of it; return the exit code."""
        if isinstance(error, ConfigError):
            for problem in error.problems:
                self.error(problem)
        elif isinstance(error, PgsnapError):
            report = error.report
            about = {"pipeline": report.pipeline, "run": report.id} if hasattr(report, "pipeline") else {}
            failed = self.last_word and report is not None and getattr(report, "manifest", report) is None
            self.error(f"{report.pipeline}: {self.last_word}: {error}" if failed else str(error), **about)
        elif isinstance(error, ImportError):
            from pgsnap.config.messages import missing_package

            self.error(missing_package(error))
            if self.verbose:
                self.traceback(error)
            return 2
        else:
            self.error(
                f"unexpected {type(error).__name__}: {error}. This is a fault in pgsnap or a plugin: run with -v and report it."
            )
            if self.verbose:
                self.traceback(error)
            return 1
        if self.verbose and error.__cause__ is not None:
            self.traceback(error)
        return error.exit_code

    def misused(self, error: click.ClickException) -> int:
        """Print what is wrong with the command line, in one sentence; return the exit code."""
        context = getattr(error, "ctx", None)
        text = error.format_message()
        if not text or context is None or isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            error.show(sys.stderr)  # no arguments at all: the help
        else:
            self.error(f"{text[:1].lower()}{text[1:].rstrip('.')}; see '{context.command_path} --help'.")
        return 2

    def traceback(self, error: Exception) -> None:
        """Print the traceback of an error, for a bug report."""
        import traceback

        self.line("".join(traceback.format_exception(error)), level="error")

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Give a callback that draws bars on a terminal; None elsewhere."""
        if self.quiet or self.json_log or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield None
            return
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        columns = (
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=self.console, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def advance(subject: str, done: int, expected: int | None) -> None:
                if subject not in tasks:
                    name = self.redact(subject)
                    short = name if len(name) <= 30 else f"{name[:8]}…{name[-21:]}"
                    tasks[subject] = bars.add_task(short, total=expected)
                # A subject has several objects, one after the other: of the next one the size may be unknown, which
                # update() cannot say (its None leaves the last one's).
                bars.tasks[tasks[subject]].total = max(expected, done) if expected else None
                bars.update(tasks[subject], completed=done)

            yield advance


class _Lines(logging.Handler):
    """Writes log records as plain or JSON lines, without secrets."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info and self._session.verbose:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            level = record.levelname.lower()
            if self._session.json_log:
                about = {key: getattr(record, key) for key in ("pipeline", "run") if getattr(record, key, "")}
                self._session.emit(level, text, logger=record.name, **about)
                return
            if self._session.last_word and getattr(record, "raised", False):
                return
            time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
            prefix = "" if record.levelno < logging.WARNING else f"{level}: "
            style = "yellow" if record.levelno >= logging.WARNING else "dim" if record.levelno < logging.INFO else ""
            self._session.line(f"{time} {prefix}{text}", style, level)
        except Exception:
            self.handleError(record)
