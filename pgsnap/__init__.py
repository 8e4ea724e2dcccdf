"""pgsnap: PostgreSQL backups that are proved restorable.

The package is in rooms, and each imports only from those below it in this list:

    cli           parse, call the library, print
    config        a TOML file or the environment -> pipelines
    pipeline      the class that users hold: what a pipeline is, and one short method a verb
    operations    what is done with a pipeline, one verb a file
    repository    what lies in the stores: the format, how it is read, what is decided about it
    stores        a local directory, whatever fsspec reaches, and a limit in time round any store
    components    the four kinds that plugins are written against, their values, events and the registry
    streams       how bytes move; the only threads and child processes
    errors        what can go wrong, with the exit codes

The names below are all that most programs need. They are imported when they are first used: ``import pgsnap`` alone loads no
plugin and no heavy library. Authors of plugins find more in ``pgsnap.components``, ``pgsnap.streams`` and ``pgsnap.testing``; all
other modules may change without a word.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgsnap.components.contracts import Artifact, Component, Dump, Dumper, Notifier, RestoreRequest, Source, Store, Transform
    from pgsnap.components.hookspecs import hookimpl
    from pgsnap.components.registry import Registry
    from pgsnap.components.run import Run
    from pgsnap.components.values import Entry, Facts, Finding, RetentionPolicy, Secret
    from pgsnap.config import load
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
    from pgsnap.operations.reports import BackupReport, CopyReport, MarkReport, PruneReport, RestoreReport, VerifyReport
    from pgsnap.operations.status import PipelineStatus
    from pgsnap.pipeline import Pipeline
    from pgsnap.repository.catalog import Backup, Catalog
    from pgsnap.repository.guard import Guard
    from pgsnap.stores import FsspecStore, LocalStore
    from pgsnap.stores.timeouts import Limits

_HOME = {
    "components.contracts": "Artifact Component Dump Dumper Notifier RestoreRequest Source Store Transform",
    "components.hookspecs": "hookimpl",
    "components.registry": "Registry",
    "components.run": "Run",
    "components.values": "Entry Facts Finding RetentionPolicy Secret",
    "config": "load",
    "errors": "Aborted BusyError ConfigError Denied DumpError IntegrityError ManifestError NotFound NotifyError "
    "PgsnapError PluginError ProcessError RestoreError StageError StoreError Unsupported UpstreamError",
    "operations.reports": "BackupReport CopyReport MarkReport PruneReport RestoreReport VerifyReport",
    "operations.status": "PipelineStatus",
    "pipeline": "Pipeline",
    "repository.catalog": "Backup Catalog",
    "repository.guard": "Guard",
    "stores": "FsspecStore LocalStore",
    "stores.timeouts": "Limits",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = [
    "Aborted",
    "Artifact",
    "Backup",
    "BackupReport",
    "BusyError",
    "Catalog",
    "Component",
    "ConfigError",
    "CopyReport",
    "Denied",
    "Dump",
    "DumpError",
    "Dumper",
    "Entry",
    "Facts",
    "Finding",
    "FsspecStore",
    "Guard",
    "IntegrityError",
    "Limits",
    "LocalStore",
    "ManifestError",
    "MarkReport",
    "NotFound",
    "Notifier",
    "NotifyError",
    "PgsnapError",
    "Pipeline",
    "PipelineStatus",
    "PluginError",
    "ProcessError",
    "PruneReport",
    "Registry",
    "RestoreError",
    "RestoreReport",
    "RestoreRequest",
    "RetentionPolicy",
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
    "hookimpl",
    "load",
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
