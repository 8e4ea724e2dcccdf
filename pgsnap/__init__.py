"""pgsnap: PostgreSQL backups that are proved restorable.

The names below are all that most programs need. They are imported when they are first used: ``import pgsnap`` alone loads no
plugin and no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgsnap.components.contracts import (
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
    from pgsnap.components.events import (
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
        TestMessage,
        Verified,
        clip,
        one_line,
    )
    from pgsnap.components.hookspecs import hookimpl
    from pgsnap.components.registry import Registry
    from pgsnap.components.run import Run
    from pgsnap.components.values import Entry, Facts, Finding, RetentionPolicy, Secret, escape_name, format_duration, format_size
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
    from pgsnap.operations.notify import deliver
    from pgsnap.operations.reports import BackupReport, CopyReport, MarkReport, PruneReport, RestoreReport, VerifyReport
    from pgsnap.pipeline import Pipeline
    from pgsnap.repository.guard import Guard
    from pgsnap.stores import FsspecStore, LocalStore

_HOME = {
    "components.contracts": "Artifact Component Dump Dumper Notifier RestoreRequest Source Store Transform check_on",
    "errors": "Aborted BusyError ConfigError Denied DumpError IntegrityError ManifestError NotFound NotifyError PgsnapError "
    "PluginError ProcessError RestoreError StageError StoreError Unsupported UpstreamError",
    "components.events": "Drilled Event Failed Finished Partial Pruned Started StoreOutcome Succeeded Summary "
    "Suspect TestMessage Verified clip one_line",
    "repository.guard": "Guard",
    "components.hookspecs": "hookimpl",
    "pipeline": "Pipeline",
    "components.registry": "Registry",
    "operations.reports": "BackupReport CopyReport MarkReport PruneReport RestoreReport VerifyReport",
    "components.run": "Run",
    "stores": "FsspecStore LocalStore",
    "operations.notify": "deliver",
    "components.values": "Entry Facts Finding RetentionPolicy Secret escape_name format_duration format_size",
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
    "RetentionPolicy",
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
    "TestMessage",
    "Transform",
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
