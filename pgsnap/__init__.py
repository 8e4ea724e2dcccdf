"""pgsnap: PostgreSQL backups that are proved restorable.

The names below are all that most programs need. They are imported when they are first used: ``import pgsnap`` alone loads no
plugin and no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgsnap.components import (
        Artifact,
        Component,
        Dump,
        Dumper,
        Notifier,
        RestoreRequest,
        Source,
        Store,
        Transform,
        check_on,
    )
    from pgsnap.errors import (
        Aborted,
        BusyError,
        ConfigError,
        Denied,
        DumpError,
        IntegrityError,
        ManifestError,
        NotFound,
        NotifyError,
        PgsnapError,
        PluginError,
        ProcessError,
        RestoreError,
        StageError,
        StoreError,
        Unsupported,
        UpstreamError,
    )
    from pgsnap.events import (
        Drilled,
        Event,
        Failed,
        Finished,
        Partial,
        Pruned,
        Started,
        StoreOutcome,
        Succeeded,
        Summary,
        Suspect,
        Trial,
        Verified,
        clip,
        one_line,
    )
    from pgsnap.guard import Guard
    from pgsnap.hookspecs import hookimpl
    from pgsnap.pipeline import Pipeline
    from pgsnap.registry import Registry
    from pgsnap.reports import BackupReport, CopyReport, MarkReport, PruneReport, RestoreReport, VerifyReport
    from pgsnap.run import Run
    from pgsnap.stores import FsspecStore, LocalStore
    from pgsnap.telling import deliver
    from pgsnap.types import Entry, Facts, Finding, Keep, Secret, escape_name, format_duration, format_size

_HOME = {
    "components": "Artifact Component Dump Dumper Notifier RestoreRequest Source Store Transform check_on",
    "errors": "Aborted BusyError ConfigError Denied DumpError IntegrityError ManifestError NotFound NotifyError PgsnapError "
    "PluginError ProcessError RestoreError StageError StoreError Unsupported UpstreamError",
    "events": "Drilled Event Failed Finished Partial Pruned Started StoreOutcome Succeeded Summary "
    "Suspect Trial Verified clip one_line",
    "guard": "Guard",
    "hookspecs": "hookimpl",
    "pipeline": "Pipeline",
    "registry": "Registry",
    "reports": "BackupReport CopyReport MarkReport PruneReport RestoreReport VerifyReport",
    "run": "Run",
    "stores": "FsspecStore LocalStore",
    "telling": "deliver",
    "types": "Entry Facts Finding Keep Secret escape_name format_duration format_size",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = [
    "Aborted",
    "Artifact",
    "BackupReport",
    "BusyError",
    "Component",
    "ConfigError",
    "CopyReport",
    "Denied",
    "Drilled",
    "Dump",
    "DumpError",
    "Dumper",
    "Entry",
    "Event",
    "Facts",
    "Failed",
    "Finding",
    "Finished",
    "FsspecStore",
    "Guard",
    "IntegrityError",
    "Keep",
    "LocalStore",
    "ManifestError",
    "MarkReport",
    "NotFound",
    "Notifier",
    "NotifyError",
    "Partial",
    "PgsnapError",
    "Pipeline",
    "PluginError",
    "ProcessError",
    "PruneReport",
    "Pruned",
    "Registry",
    "RestoreError",
    "RestoreReport",
    "RestoreRequest",
    "Run",
    "Secret",
    "Source",
    "StageError",
    "Started",
    "Store",
    "StoreError",
    "StoreOutcome",
    "Succeeded",
    "Summary",
    "Suspect",
    "Transform",
    "Trial",
    "Unsupported",
    "UpstreamError",
    "Verified",
    "VerifyReport",
    "__version__",
    "check_on",
    "clip",
    "deliver",
    "escape_name",
    "format_duration",
    "format_size",
    "hookimpl",
    "one_line",
]


if not TYPE_CHECKING:  # to a type checker it would make every misspelt name an object

    def __getattr__(name: str) -> object:
        module = _MODULE.get(name)
        if module is None:
            raise AttributeError(f"module 'pgsnap' has no attribute {name!r}")
        value = getattr(import_module(f"pgsnap.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
