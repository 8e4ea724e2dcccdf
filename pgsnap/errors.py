"""What can go wrong, split by whose fault it is.

    PgsnapError                 1   anything pgsnap raises on purpose
    ├── ConfigError             2   a file, variable, option or argument is wrong; nothing was started
    ├── PluginError             2   a plugin is missing, broken or in conflict with another
    ├── Unsupported             2   this component cannot do what was asked of it
    ├── Aborted                 1   the run was told to stop: a signal, its time limit, its caller
    ├── ProcessError            1   a child process failed: argv, status, the end of its stderr
    │   ├── DumpError           1   the database could not be dumped, or the dump is not whole
    │   └── RestoreError        1   the target could not be restored; it is as it was before
    ├── StageError              1   a transform failed
    │   └── IntegrityError      4   bytes are not what they were when they were written
    ├── ManifestError           4   a manifest cannot be read, or is of a format this version does not know
    ├── StoreError              1   a store failed: its label, and whether trying again may help
    │   ├── NotFound            1   there is no such object or backup
    │   └── Denied              1   the store refused the credentials or the operation
    ├── NotifyError             3   a message could not be delivered
    ├── BusyError               75  another run holds the lock
    └── UpstreamError           1   inside a stream only: what feeds this stage failed, not the stage

The number is the exit code of the command. Every message is one sentence that names the thing, the value (never a secret)
and the next step. Every error pickles, so that it can cross to another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = [
    "Aborted",
    "BusyError",
    "ConfigError",
    "Denied",
    "DumpError",
    "IntegrityError",
    "ManifestError",
    "NotFound",
    "NotifyError",
    "PgsnapError",
    "PluginError",
    "ProcessError",
    "RestoreError",
    "StageError",
    "StoreError",
    "Unsupported",
    "UpstreamError",
]


class PgsnapError(Exception):
    """Base of every error that pgsnap raises on purpose.

    ``report`` is the report of the run that raised it, where there was one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.report: Any = None


class ConfigError(PgsnapError):
    """A configuration file, a variable, an option or an argument is wrong; nothing was started.

    ``problems`` holds one sentence for each thing that is wrong.
    """

    exit_code = 2

    def __init__(self, message: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message or "\n".join(problems))
        self.problems = tuple(problems) or (message,)


class PluginError(PgsnapError):
    """A plugin is missing, broken, or two plugins claim the same name."""

    exit_code = 2


class Unsupported(PgsnapError):
    """A component was asked for something it does not offer."""

    exit_code = 2


class Aborted(PgsnapError):
    """The run was told to stop: by a signal, by its time limit or by its caller."""


class ProcessError(PgsnapError):
    """A child process failed.

    ``argv`` is its command line (which never holds a secret), ``status`` its exit status (negative: the signal that
    ended it; None: it was not started), ``stderr`` the end of what it wrote there, at most 8 KiB.
    """

    def __init__(self, message: str = "", argv: Sequence[str] = (), status: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr


class DumpError(ProcessError):
    """The database could not be dumped, or what came out is not a whole dump."""


class RestoreError(ProcessError):
    """The target could not be restored; it is as it was before."""


class StageError(PgsnapError):
    """A transform could not encode or decode a stream."""


class IntegrityError(StageError):
    """Bytes are not what they were when they were written: damaged, cut short, or not ours."""

    exit_code = 4


class ManifestError(PgsnapError):
    """A manifest cannot be understood."""

    exit_code = 4


class StoreError(PgsnapError):
    """A store failed.

    ``label`` names the store without credentials; ``transient`` says that the same call may succeed later.
    """

    def __init__(self, message: str = "", label: str = "", transient: bool = False) -> None:
        super().__init__(message)
        self.label = label
        self.transient = transient


class NotFound(StoreError):
    """A store has no such object, or no store has such a backup."""


class Denied(StoreError):
    """A store refused the credentials, or what they were used for."""


class NotifyError(PgsnapError):
    """A message could not be delivered.

    ``transient`` says that the same call may succeed later; ``retry_after`` after how many seconds, where the receiver said so.
    """

    exit_code = 3

    def __init__(self, message: str = "", transient: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.retry_after = retry_after


class BusyError(PgsnapError):
    """Another run holds the lock."""

    exit_code = 75


class UpstreamError(PgsnapError):
    """What feeds this stream has failed; ``__cause__`` says how.

    A consumer cleans up and lets it pass. It never retries it and is never blamed for it.
    """
