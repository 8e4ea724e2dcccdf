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
    from pgsnap.events import Event
    from pgsnap.hookspecs import hookimpl
    from pgsnap.pipeline import Pipeline
    from pgsnap.registry import Registry
    from pgsnap.reports import BackupReport, CopyReport, RestoreReport, VerifyReport
    from pgsnap.run import Run
    from pgsnap.stores import FsspecStore, LocalStore
    from pgsnap.types import Entry, Facts, Finding, Keep, Secret, escape_name, format_duration, format_size

_HOME = {
    "components": "Artifact Component Dump Dumper Notifier RestoreRequest Source Store Transform",
    "errors": "Aborted BusyError ConfigError Denied DumpError IntegrityError ManifestError NotFound NotifyError PgsnapError "
    "PluginError ProcessError RestoreError StageError StoreError Unsupported UpstreamError",
    "events": "Event",
    "hookspecs": "hookimpl",
    "pipeline": "Pipeline",
    "registry": "Registry",
    "reports": "BackupReport CopyReport RestoreReport VerifyReport",
    "run": "Run",
    "stores": "FsspecStore LocalStore",
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
    "Dump",
    "DumpError",
    "Dumper",
    "Entry",
    "Event",
    "Facts",
    "Finding",
    "FsspecStore",
    "IntegrityError",
    "Keep",
    "LocalStore",
    "ManifestError",
    "NotFound",
    "Notifier",
    "NotifyError",
    "PgsnapError",
    "Pipeline",
    "PluginError",
    "ProcessError",
    "Registry",
    "RestoreError",
    "RestoreReport",
    "RestoreRequest",
    "Run",
    "Secret",
    "Source",
    "StageError",
    "Store",
    "StoreError",
    "Transform",
    "Unsupported",
    "UpstreamError",
    "VerifyReport",
    "__version__",
    "escape_name",
    "format_duration",
    "format_size",
    "hookimpl",
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
