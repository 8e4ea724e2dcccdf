"""References: an option's value that stands somewhere else than in the configuration file.

    url = { env = "DATABASE_URL" }                        an environment variable
    passphrase = { file = "/run/secrets/passphrase" }     a file, without one trailing new line
    webhook = { command = ["pass", "show", "slack"] }     what a program prints, without one trailing new line

A reference is a table with one of these keys alone, and may stand in place of any value. What it gives is parsed as text into the
type of the option. Nothing here puts a value into a message.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pgsnap.components.run import Run
from pgsnap.config.messages import ReferenceText, Unresolved
from pgsnap.errors import Aborted, ConfigError, ProcessError
from pgsnap.streams.process import read_process

__all__ = ["References", "is_reference"]

KINDS = ("env", "file", "command")
LIMIT = 1 << 20
"""The most bytes that a reference may give."""


def is_reference(value: object) -> bool:
    """Return whether a value of a file is a reference: a table with nothing but ``env``, ``file`` or ``command``."""
    return isinstance(value, dict) and bool(value) and set(value) <= set(KINDS)


class References:
    """Resolves references, each once.

    Args:
        environ: Where ``env`` looks; commands get it too.
        folder: What a relative ``file`` is relative to.
        timeout: Seconds that a command may take.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path, timeout: float = 60.0) -> None:
        self._environ = environ
        self._folder = folder
        self._timeout = timeout
        self._known: dict[str, ReferenceText] = {}

    def resolve(self, value: object, wanted: bool, problem: Callable[[str, str], object], place: str) -> Any:
        """Return an option's value with every reference in it replaced: by ReferenceText if it is wanted, else by Unresolved.

        What is left out of a list or a table within the value is simply not there.

        Args:
            problem: Called with the place and a sentence for each reference that cannot be resolved; Unresolved stands for it.
            place: The option's name.
        """
        if is_reference(value):
            assert isinstance(value, dict)
            try:
                return self._text(value) if wanted else Unresolved(_name(value))
            except ConfigError as error:
                problem(place, str(error))
                return Unresolved(_name(value), failed=True)
        if isinstance(value, dict):
            items = {key: self.resolve(item, wanted, problem, f"{place}.{key}") for key, item in value.items()}
            return {key: item for key, item in items.items() if not isinstance(item, Unresolved)}
        if isinstance(value, list):
            found = [self.resolve(item, wanted, problem, f"{place}[{number}]") for number, item in enumerate(value)]
            return [item for item in found if not isinstance(item, Unresolved)]
        return value

    def _text(self, reference: dict[str, Any]) -> ReferenceText:
        if len(reference) > 1:
            raise ConfigError(f"has a reference with {' and '.join(reference)}; give one of them.")
        ((kind, value),) = reference.items()
        key = repr((kind, value))
        if key not in self._known:
            read = {"env": self._env, "file": self._file, "command": self._command}[kind]
            self._known[key] = ReferenceText(read(value), _name(reference))
        return self._known[key]

    def _env(self, name: object) -> str:
        if not isinstance(name, str) or not name:
            raise ConfigError('needs the name of a variable: { env = "NAME" }.')
        value = self._environ.get(name)
        if not value:
            state = "not set" if value is None else "empty"
            raise ConfigError(f"needs the environment variable {name}, which is {state}; set it.")
        return value

    def _file(self, name: object) -> str:
        if not isinstance(name, str) or not name:
            raise ConfigError('needs the path of a file: { file = "PATH" }.')
        path = self._folder / os.path.expanduser(name)
        try:
            with open(path, "rb") as file:
                data = file.read(LIMIT + 1)
        except OSError as error:
            why = error.strerror or type(error).__name__
        except ValueError:
            why = "it is no path"
        else:
            return _as_text(data, f"the file {path}")
        raise ConfigError(f"needs the file {path}, which cannot be read: {why}.")

    def _command(self, argv: object) -> str:
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) and word for word in argv):
            raise ConfigError('needs a program and its arguments, without a shell: { command = ["PROGRAM", "ARGUMENT"] }.')
        name = f"the command {argv[0]!r}"
        run = Run(timeout=self._timeout)
        data = bytearray()
        try:
            with run.watched(), contextlib.closing(read_process(argv, start=run.spawn, env=dict(self._environ))) as chunks:
                for chunk in chunks:
                    data += chunk
                    if len(data) > LIMIT:
                        break
        except Aborted:
            why = f"took longer than {self._timeout:g} s and was ended; run it by hand to see why."
        except ProcessError as error:
            # Not what it wrote: a tool that shows a secret may show it in its complaint too.
            if error.status is None:
                why = "could not be started; install it or correct its path."
            else:
                ended = f"failed with exit status {error.status}" if error.status > 0 else f"was ended by signal {-error.status}"
                why = f"{ended}; run it by hand to see why."
        else:
            return _as_text(bytes(data), f"what {name} prints")
        raise ConfigError(f"needs {name}, which {why}")


def _name(reference: dict[str, Any]) -> str:
    kind, value = next(iter(reference.items()))
    if kind == "env":
        return f"the environment variable {value}"
    if kind == "file":
        return f"the file {value}"
    return f"the command {value[0]!r}" if isinstance(value, list) and value else "the command"


def _as_text(data: bytes, what: str) -> str:
    if len(data) > LIMIT:
        raise ConfigError(f"needs {what}, but that is more than 1 MiB.")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"needs {what}, but that is not UTF-8 text.")
    text = text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")
    if not text:
        raise ConfigError(f"needs {what}, but that is empty.")
    return text
