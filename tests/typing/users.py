"""A user's view of the API: pipelines in Python, as ``mypy --strict`` must accept them; read, not run."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

from pgsnap import (
    BackupReport,
    CopyReport,
    Dumper,
    Finding,
    FsspecStore,
    Guard,
    LocalStore,
    MarkReport,
    Notifier,
    PgsnapError,
    Pipeline,
    PruneReport,
    Registry,
    RestoreReport,
    RetentionPolicy,
    Secret,
    StoreError,
    Transform,
    VerifyReport,
)


def compose(dump: Dumper, transforms: Sequence[Transform], notifiers: list[Notifier]) -> Pipeline:
    """Stores are objects or plain paths; sequences of any kind will do."""
    Pipeline(name="shop", dump=dump, stores=["/var/backups/pgsnap"])
    Pipeline(name="shop", dump=dump, transforms=[], stores=(Path("/var/backups"), FsspecStore(url="memory://x")))
    return Pipeline(
        name="shop",
        dump=dump,
        transforms=transforms,
        stores=[
            "/var/backups/pgsnap",
            LocalStore(url="/mnt/b", keep=RetentionPolicy(daily=7, weekly=4)),
            FsspecStore(url="s3://b"),
        ],
        notifiers=notifiers,
        quorum=2,
        timeout=7200.0,
        keep=RetentionPolicy(last=3, within=86400.0, min_good=2),
        timezone="Asia/Seoul",
        schedule="0 8 * * *",
        guard=Guard(size=0.3, identity=False),
        auto_prune=False,
    )


def use(shop: Pipeline, url: str) -> None:
    """What each call gives back."""
    report = shop.backup(progress=lambda subject, done, expected: print(subject, done, expected))
    assert_type(report, BackupReport)
    assert_type(report.id, str)
    assert_type([store.label for store in report.stores if not store.ok], list[str])
    assert_type(shop.restore(report.id, to=url), RestoreReport)
    assert_type(shop.restore(to=Secret(url), tables=("orders",), jobs=4), RestoreReport)
    assert_type(shop.verify(decode=True), VerifyReport)
    assert_type(shop.only("backups/here"), Pipeline)
    assert_type(shop.copy(), CopyReport)
    pruned = shop.prune(dry_run=True)
    assert_type(pruned, PruneReport)
    assert_type([d.reasons for store in pruned.stores for d in store.decisions if not d.keep], list[tuple[str, ...]])
    assert_type(shop.acknowledge(report.id), MarkReport)
    assert_type(shop.hold(report.id).labels, tuple[str, ...])
    assert_type(shop.release(report.id), MarkReport)
    assert_type(shop.delete(report.id), MarkReport)
    assert_type(shop.status(max_age=93600.0).exit_code, int)
    assert_type(shop.preflight(), list[Finding])
    assert_type(Registry.load().names("store"), list[str])
    pickle.dumps(shop)


def handle(shop: Pipeline) -> int:
    """Errors have their exit code, and a store's its label."""
    try:
        shop.backup()
    except StoreError as error:
        assert_type(error.label, str)
        assert_type(error.transient, bool)
        return error.exit_code
    except PgsnapError as error:
        return error.exit_code
    return 0


def mistakes(dump: Dumper, shop: Pipeline) -> None:
    """Each is an error to mypy: an ignore that is not needed would be one as well."""
    Pipeline(name="shop", dump=dump)  # type: ignore[call-arg]
    Pipeline(name="shop", dump="postgresql:///shop", stores=["/x"])  # type: ignore[arg-type]
    Pipeline(name="shop", dump=dump, stores=["/x"], transforms=["zstd"])  # type: ignore[list-item]
    Pipeline(name="shop", dump=dump, stores=[7])  # type: ignore[list-item]
    shop.restore("latest")  # type: ignore[call-arg]
    shop.name = "other"  # type: ignore[misc]
    RetentionPolicy(daily="7")  # type: ignore[arg-type]
    LocalStore("/x")  # type: ignore[call-arg]
