"""The truth about the backups of a pipeline, read from the stores alone: not whether a job ran, but what is there.

A cron job that has been silent for months, a container that is healthy and does nothing, a store that lost what it had: each
shows here, from any machine that can list the stores, and in the exit code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import attrs

from pgsnap.components.run import Run
from pgsnap.components.values import Finding, format_duration
from pgsnap.errors import Denied, IntegrityError, PgsnapError
from pgsnap.operations.spec import PipelineSpec
from pgsnap.repository.catalog import LOOKS, Backup, Catalog, Proof, load_manifest
from pgsnap.repository.manifest import ACK, HELD, PRUNED, RUNNING
from pgsnap.repository.retention import SKEW, Coverage, coverage
from pgsnap.repository.store_set import StoreSet

__all__ = ["PipelineStatus", "StoreStatus", "openmetrics", "status"]

MARKS = (ACK, HELD, PRUNED, RUNNING)
"""What may lie in one store and not in another."""


@attrs.frozen(kw_only=True)
class StoreStatus:
    """What one store has of a pipeline.

    ``last_good`` is an id, ``age`` its age in seconds, ``last_size`` and ``size`` are bytes (of it, and of all); ``missing`` are
    ids that the store's policy would keep and another store has; ``future`` those dated so; ``coverage`` says how far each rule
    of the policy is met; ``error`` why the store could not be listed.
    """

    label: str
    error: str = ""
    count: int = 0
    size: int = 0
    last_good: str = ""
    age: float | None = None
    last_size: int = 0
    missing: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    held: int = 0
    coverage: Mapping[str, Coverage] = attrs.field(factory=dict)

    @property
    def policy_met(self) -> bool:
        """Whether each rule of the policy has all that it could have by now."""
        return all(found.met for found in self.coverage.values())


@attrs.frozen(kw_only=True)
class PipelineStatus:
    """What all stores have of a pipeline.

    ``suspect`` are sentences about backups that nobody has acknowledged; ``proof`` is the last drill or verification of any
    backup and ``proved`` that one's id; ``findings`` is everything that is wrong or worth knowing.
    """

    pipeline: str
    time: datetime
    stores: tuple[StoreStatus, ...]
    suspect: tuple[str, ...]
    proof: Proof | None
    proved: str
    agree: bool
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """4 if a store has no good and young enough backup, or something speaks against one; else 3 if a store could not be asked
        or lacks backups; else 0."""
        levels = {finding.level for finding in self.findings}
        return 4 if "error" in levels else 3 if "warning" in levels else 0


def status(pipeline: PipelineSpec, *, max_age: float | None = None, now: datetime | None = None) -> PipelineStatus:
    """Read the stores and say what is there. Lists each store once, and reads a few of the newest manifests.

    Args:
        max_age: Seconds that the last good backup of each store may be old; None: any age.

    Raises:
        StoreError: no store can be listed.
    """
    now = now or datetime.now(UTC)
    pipeline = pipeline.time_limited
    catalog = Catalog.read(pipeline.name, pipeline.stores)
    findings: list[Finding] = []
    stores = []
    for number, store in enumerate(pipeline.stores):
        if number in catalog.failures:
            found = StoreStatus(label=store.label, error=str(catalog.failures[number]))
        else:
            found = _store(pipeline, catalog, number, now)
        stores.append(found)
        findings += _findings(found, max_age)
    findings += _unread(pipeline, catalog)  # first, since it waits for all at once
    newest_anomaly = catalog.newest_anomaly(pipeline.guard)
    suspect = (*catalog.unacknowledged, *((newest_anomaly,) if newest_anomaly else ()))
    findings += [Finding("error", pipeline.name, f"pruning is frozen: {text}.") for text in suspect]
    differing = _differing(catalog)
    findings += [Finding("error", pipeline.name, text) for text in differing]
    proofs = [(proof, backup.id) for backup in catalog.backups if (proof := backup.proof) is not None]
    proof, proved = max(proofs, default=(None, ""))
    return PipelineStatus(
        pipeline=pipeline.name,
        time=now,
        stores=tuple(stores),
        suspect=suspect,
        proof=proof,
        proved=proved,
        agree=not differing,
        findings=tuple(findings),
    )


def _store(pipeline: PipelineSpec, catalog: Catalog, number: int, now: datetime) -> StoreStatus:
    store = pipeline.stores[number]
    candidates = catalog.candidates(number)
    good = [c for c in candidates if not c.defect and c.time <= now + SKEW]
    last = good[-1] if good else None
    scan = catalog.scans[number]
    there = {c.id for c in candidates}
    wanted = catalog.wanted(number, pipeline.policy(store), pipeline.timezone, now)
    return StoreStatus(
        label=store.label,
        count=len(candidates),
        size=sum(stored.size for stored in scan.values()),
        last_good=last.id if last else "",
        age=max(0.0, (now - last.time).total_seconds()) if last else None,
        last_size=scan[last.id].size if last else 0,
        missing=tuple(id for id in wanted if id not in there),
        future=tuple(c.id for c in candidates if c.time > now + SKEW),
        held=sum(c.held for c in candidates),
        coverage=coverage(pipeline.policy(store), pipeline.timezone, candidates, now),
    )


def _findings(store: StoreStatus, max_age: float | None) -> Iterable[Finding]:
    if store.error:
        yield Finding("warning", store.label, f"it could not be asked: {store.error}")
        return
    if not store.last_good:
        text = f"none of its {store.count} backups is good." if store.count else "it has no backup."
        yield Finding("error", store.label, text, "Run: pgsnap backup")
    elif max_age is not None and (store.age or 0) > max_age:
        old, limit = format_duration(store.age or 0), format_duration(max_age)
        yield Finding("error", store.label, f"the last good backup, {store.last_good}, is {old} old; {limit} are allowed.")
    if store.missing:
        some = ", ".join(store.missing[-3:])
        text = f"{len(store.missing)} backups that another store has and its policy would keep are missing ({some})."
        yield Finding("warning", store.label, text, "Run: pgsnap copy")
    for id in store.future:
        yield Finding("info", store.label, f"{id} is dated in the future: a clock was wrong. It is kept and does not count.")
    for rule, found in store.coverage.items():
        if not found.met:
            yield Finding("info", store.label, f"{rule}: {found.have} of the last {found.want} have a backup.")


def _unread(pipeline: PipelineSpec, catalog: Catalog) -> Iterable[Finding]:
    """Yield a finding for each store that can be listed and whose newest manifest cannot be read; all are tried at once.

    That a key may only list is no fault of the store.
    """
    newest: dict[str, str] = {}
    for number, scan in catalog.scans.items():
        if ids := [stored.id for stored in scan.values() if stored.committed]:
            newest[pipeline.stores[number].label] = ids[-1]
    numbers = [number for number in catalog.scans if pipeline.stores[number].label in newest]
    looks = StoreSet(pipeline.stores, Run(pipeline.name), LOOKS)
    for number, error in looks.each(lambda store: load_manifest([store], pipeline.name, newest[store.label]), numbers).items():
        if isinstance(error, PgsnapError):
            label = pipeline.stores[number].label
            text = f"the manifest of {newest[label]}, its newest backup, cannot be read: {error}"
            yield Finding("info" if isinstance(error, Denied) else "error" if error.exit_code == 4 else "warning", label, text)


def _differing(catalog: Catalog) -> list[str]:
    """Return a sentence for each backup of which two stores hold different objects; of the newest, other manifests."""
    texts = []
    for backup in catalog.backups:
        if len(backup.stores) > 1 and (key := _odd_object(backup)):
            texts.append(f"the copies of {backup.id} differ in {key}; run: pgsnap verify {catalog.pipeline} -b {backup.id}")
    if catalog.backups:
        try:
            catalog.manifest(catalog.backups[-1])
        except IntegrityError as error:
            texts.append(str(error))
        except PgsnapError:
            pass  # unreadable is not differing, and told above
    return texts


def _odd_object(backup: Backup) -> str:
    def sizes(entries: Mapping[str, int]) -> dict[str, int]:
        return {key: size for key, size in entries.items() if key not in MARKS and not key.startswith(("drill-", "verify-"))}

    copies = [sizes({k: entry.size for k, entry in stored.entries.items()}) for stored in backup.stores.values()]
    first = copies[0]
    for other in copies[1:]:
        if odd := sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key)):
            return odd[0]
    return ""


# --- for machines ----------------------------------------------------------------------------------------------------


def openmetrics(found: Sequence[PipelineStatus]) -> str:
    """Return the text that a Prometheus text-file collector reads (OpenMetrics 1.0)."""
    lines: list[str] = []

    def family(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]], unit: str = "") -> None:
        lines.append(f"# TYPE {name} gauge")
        if unit:
            lines.append(f"# UNIT {name} {unit}")
        lines.append(f"# HELP {name} {text}")
        for labels, value in samples:
            inner = ",".join(f'{key}="{_escape(value_)}"' for key, value_ in labels.items())
            lines.append(f"{name}{{{inner}}} {value:.17g}")

    stores = [({"pipeline": one.pipeline, "store": store.label}, store) for one in found for store in one.stores]
    up = [(labels, store) for labels, store in stores if not store.error]
    good = [(labels, store, store.age) for labels, store in up if store.age is not None]
    times = {one.pipeline: one.time for one in found}
    last = [(labels, (times[labels["pipeline"]] - timedelta(seconds=age)).timestamp()) for labels, _, age in good]
    family("pgsnap_store_up", "Whether the store could be listed.", [(labels, not store.error) for labels, store in stores])
    family("pgsnap_last_good_timestamp_seconds", "When the last good backup was started.", last, "seconds")
    family("pgsnap_last_good_size_bytes", "Its size in the store.", [(labels, s.last_size) for labels, s, _ in good], "bytes")
    family("pgsnap_backups", "Committed backups.", [(labels, s.count) for labels, s in up])
    family("pgsnap_stored_bytes", "Bytes of all backups.", [(labels, s.size) for labels, s in up], "bytes")
    family("pgsnap_missing_backups", "Backups that another store has.", [(labels, len(s.missing)) for labels, s in up])
    family("pgsnap_policy_met", "Whether the policy has all it could have.", [(labels, s.policy_met) for labels, s in up])
    one_each = [({"pipeline": one.pipeline}, one) for one in found]
    family("pgsnap_suspect_backups", "Backups to be acknowledged.", [(labels, len(s.suspect)) for labels, s in one_each])
    family("pgsnap_copies_agree", "Whether copies in the stores agree.", [(labels, s.agree) for labels, s in one_each])
    family("pgsnap_status_code", "The exit code of pgsnap status.", [(labels, s.exit_code) for labels, s in one_each])
    proofs = [({**labels, "what": s.proof.what}, s.proof) for labels, s in one_each if s.proof is not None]
    family(
        "pgsnap_last_proof_timestamp_seconds",
        "The last drill.",
        [(labels, p.time.timestamp()) for labels, p in proofs],
        "seconds",
    )
    family("pgsnap_last_proof_ok", "Whether it succeeded.", [(labels, p.ok) for labels, p in proofs])
    return "\n".join([*lines, "# EOF"]) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
