"""A backup run: several stores from one dump, a manifest as the last thing, and nothing left of what failed."""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgsnap import (
    ConfigError,
    DumpError,
    LocalStore,
    NotifyError,
    PgsnapError,
    Pipeline,
    RetentionPolicy,
    StageError,
    StoreError,
    Transform,
)
from pgsnap.components import Event
from pgsnap.components.events import Failed, Pruned, Succeeded, Suspect
from pgsnap.components.values import Facts
from pgsnap.repository.manifest import Manifest
from pgsnap.streams import Chunks, Stream
from remember import Remember
from toys import FaultyStore, MakePipeline, ToyDumper, files_below


@attrs.frozen(kw_only=True)
class Flip(Transform):
    """Inverts every bit, to have something between the dump and the stores."""

    name: ClassVar[str] = "flip"
    suffix: ClassVar[str] = ".flip"
    compresses: ClassVar[bool] = True

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        for chunk in chunks:
            yield bytes(255 - byte for byte in chunk)
        facts["done"] = True

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from self.encode(chunks, {})

    def command(self, facts: Facts) -> str | None:
        return "flip -d"


@attrs.frozen(kw_only=True)
class Sum(Transform):
    """Passes through, with a sidecar."""

    name: ClassVar[str] = "sum"

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        digest = hashlib.md5()
        for chunk in chunks:
            digest.update(chunk)
            yield chunk
        facts["md5"] = digest.hexdigest()

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from chunks

    def sidecars(self, filename: str, facts: Facts) -> dict[str, bytes]:
        return {f"{filename}.md5": f"{facts['md5']}  {filename}\n".encode()}


def test_both_stores_hold_the_same_backup(make: MakePipeline, tmp_path: Path) -> None:
    """One dump; two folders that are the same, byte for byte; nothing beside what the manifest lists."""
    pipeline = make(transforms=[Flip(), Sum()])
    report = pipeline.backup()
    folder = Path("shop") / report.id
    expected = [
        "RECOVER.txt",
        "globals.sql.flip",
        "globals.sql.flip.md5",
        "manifest.json",
        "shop.dump.flip",
        "shop.dump.flip.md5",
    ]
    for store in ("a", "b"):
        assert [f"{folder}/{name}" for name in expected] == files_below(tmp_path / store)
    for name in expected:
        assert (tmp_path / "a" / folder / name).read_bytes() == (tmp_path / "b" / folder / name).read_bytes()
    assert 0 == report.exit_code
    assert ["in", "out"] == pipeline.dump.entered  # type: ignore[attr-defined]
    assert ("a note",) == report.notes
    manifest = Manifest.from_bytes((tmp_path / "a" / folder / "manifest.json").read_bytes(), "a")
    assert manifest == report.manifest
    assert [("flip", {"done": True}), ("sum", manifest.artifacts[0].stages[1].facts)] == [
        (stage.name, stage.facts) for stage in manifest.artifacts[0].stages
    ]
    stored = (tmp_path / "a" / folder / "shop.dump.flip").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == manifest.artifacts[0].objects[0].sha256
    assert f"{hashlib.md5(stored).hexdigest()}  shop.dump.flip\n" == (tmp_path / "a" / folder / "shop.dump.flip.md5").read_text()


def test_a_transform_that_compresses_steps_aside(make: MakePipeline) -> None:
    """What is compressed already is not compressed again, and the manifest says what was done."""
    report = make(dump=ToyDumper(compressed=True), transforms=[Flip(), Sum()]).backup()
    assert ["sum"] == [stage.name for stage in report.manifest.artifacts[0].stages]  # type: ignore[union-attr]
    assert "shop.dump" == report.manifest.artifacts[0].objects[0].key  # type: ignore[union-attr]


def test_sidecars_only_where_nothing_changes_the_bytes_after(make: MakePipeline, tmp_path: Path) -> None:
    """A checksum in the middle of the pipeline is not one of the stored file."""
    make(transforms=[Sum(), Flip()]).backup()
    assert not [name for name in files_below(tmp_path) if name.endswith(".md5")]


@pytest.mark.parametrize("key", ["shop.dump", "globals.sql", "RECOVER.txt", "manifest.json"])
@pytest.mark.parametrize("after", [0, 1_500_000])
def test_a_store_that_fails_drops_out(make: MakePipeline, tmp_path: Path, key: str, after: int) -> None:
    """The other one has its backup; of the failing one nothing is left; the run says so with exit code 3."""
    bad = FaultyStore(url=str(tmp_path / "b"), fail_write=key, after=after)
    remember = Remember()
    pipeline = make(stores=[str(tmp_path / "a"), bad], notifiers=[remember])
    report = pipeline.backup()
    assert (3, (str(tmp_path / "a"),)) == (report.exit_code, report.kept_in)
    assert "the disk is on fire" in report.stores[1].error
    assert [] == files_below(tmp_path / "b")
    assert pipeline.verify(decode=True).problems == {str(tmp_path / "a"): ()}
    assert ["started", "partial"] == [event.kind for event in remember.events]
    assert "Missing: " in remember.events[1].text


@pytest.mark.parametrize("took", [True, False])
def test_remains_are_told_of_a_store_that_took_something(make: MakePipeline, tmp_path: Path, took: bool) -> None:
    """Where nothing could be written from the beginning on, that is told once, and not that nothing could be removed either."""

    class Keeping(FaultyStore):
        def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
            raise StoreError(f"{self.label}: it lets nothing go.", self.label)

    bad = Keeping(url=str(tmp_path / "b"), fail_write="shop.dump" if took else "", after=0)
    remember = Remember()
    pipeline = make(stores=[str(tmp_path / "a"), bad], notifiers=[remember], catch_up_timeout=0, auto_prune=False)
    assert 3 == pipeline.backup().exit_code
    log = remember.events[-1].log
    assert 1 == log.count("a store has dropped out")
    assert took is ("could not be removed and does not count" in log)


@pytest.mark.parametrize("how", ["lose", "short"])
@pytest.mark.parametrize("key", ["shop.dump", "RECOVER.txt"])
def test_a_store_that_lies_gets_no_manifest(make: MakePipeline, tmp_path: Path, how: str, key: str) -> None:
    """What a store says it has stored is counted and looked up again before the commit."""
    liar = FaultyStore(url=str(tmp_path / "b"), **{how: key})
    report = make(stores=[str(tmp_path / "a"), liar]).backup()
    assert (str(tmp_path / "a"),) == report.kept_in
    assert [] == files_below(tmp_path / "b")


def test_all_stores_failing_is_an_error_with_each_reason(make: MakePipeline, tmp_path: Path) -> None:
    """Nothing is kept, each store is named, and the dump is not pulled to its end for nobody."""
    bad = [FaultyStore(url=str(tmp_path / name), fail_write="shop.dump") for name in ("a", "b")]
    with pytest.raises(StoreError) as caught:
        make(stores=bad).backup()
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)
    assert (1, ()) == (caught.value.report.exit_code, caught.value.report.kept_in)
    assert [] == files_below(tmp_path)


def test_the_quorum_grades_and_what_was_kept_stays(make: MakePipeline, tmp_path: Path) -> None:
    """Two of two were asked for and one succeeded: exit code 1, and the one backup is there."""
    bad = FaultyStore(url=str(tmp_path / "b"), offline=True)
    pipeline = make(stores=[str(tmp_path / "a"), bad], quorum=2)
    with pytest.raises(StoreError, match=r"kept in: .*/a") as caught:
        pipeline.backup()
    assert 1 == caught.value.report.exit_code
    assert pipeline.verify().ok is False
    assert [caught.value.report.id] == [backup.id for backup in pipeline.backups().backups]


@pytest.mark.parametrize("fail_at", [0, 100_000, 2_900_000])
def test_a_dump_that_fails_leaves_nothing(make: MakePipeline, tmp_path: Path, fail_at: int) -> None:
    """The dump's own error comes out, once; the stores are as before; the dump's context was left; the notifier heard of it."""
    remember = Remember()
    pipeline = make(dump=ToyDumper(fail_at=fail_at), notifiers=[remember])
    with pytest.raises(DumpError, match="it was shot") as caught:
        pipeline.backup()
    assert [] == files_below(tmp_path)
    assert ["in", "out"] == pipeline.dump.entered  # type: ignore[attr-defined]
    assert ["started", "failed"] == [event.kind for event in remember.events]
    assert "it was shot" in remember.events[1].text
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(caught.value) == str(again)
    assert caught.value.report == again.report


def test_a_stalled_store_does_not_hold_the_others(make: MakePipeline, tmp_path: Path) -> None:
    """It is dropped after its time, and the run ends while it is still hanging."""
    release = threading.Event()
    stuck = FaultyStore(url=str(tmp_path / "b"), fail_write="shop.dump", hang=release, after=1)
    pipeline = make(stores=[str(tmp_path / "a"), stuck], stall_timeout=0.3, finish_timeout=0.3, buffer=1 << 20)
    began = time.monotonic()
    try:
        report = pipeline.backup()
    finally:
        release.set()
    assert (str(tmp_path / "a"),) == report.kept_in
    assert "took nothing for 0.3 s" in report.stores[1].error or "did not finish" in report.stores[1].error
    assert time.monotonic() - began < 60


def test_a_failing_notifier_grades_and_changes_nothing(make: MakePipeline) -> None:
    """The backup is there; the exit code is 3; the report says who could not be told."""
    report = make(notifiers=[Remember(fail=True), Remember()]).backup()
    assert 3 == report.exit_code
    assert ("the notifier 'remember' failed: nobody answers.",) * 2 == report.notify_errors
    assert 2 == len(report.kept_in)


def test_a_failure_is_told_with_cause_next_step_and_log(make: MakePipeline) -> None:
    """A person can see from the message alone what happened and what to do."""
    remember = Remember()
    with pytest.raises(DumpError):
        make(dump=ToyDumper(fail_at=100_000), notifiers=[remember]).backup()
    failed = remember.events[-1]
    assert isinstance(failed, Failed)
    assert "pg_dump failed with exit status 1: it was shot." == failed.cause
    assert "'pgsnap doctor shop' looks whether a backup would work now; when it does, run: pgsnap backup shop" == failed.next_step
    assert ("info", "error") == tuple(line.split()[2] for line in failed.log.splitlines())
    assert failed.log.endswith("no backup was made: pg_dump failed with exit status 1: it was shot.\n")
    assert () == failed.recover
    assert all(store.error for store in failed.stores)


def test_a_success_is_told_with_sizes_and_recover(make: MakePipeline, tmp_path: Path) -> None:
    """Where RECOVER.txt lies, for each store; no log."""
    remember = Remember()
    report = make(notifiers=[remember]).backup()
    done = remember.events[-1]
    assert isinstance(done, Succeeded)
    assert (report.size, report.stored_size) == (done.size, done.stored_size)
    assert tuple(f"{tmp_path / store}/shop/{report.id}/RECOVER.txt" for store in "ab") == done.recover
    assert all(Path(place).is_file() for place in done.recover)
    assert "" == done.log


@pytest.fixture
def history(make: MakePipeline) -> tuple[Pipeline, Remember]:
    """A pipeline with backups of 1,000 bytes of the 20th, 21st and 22nd in two stores, and what hears of the next."""
    remember = Remember(on=("succeeded", "partial", "failed", "suspect", "pruned"))
    pipeline = make(dump=ToyDumper(contents={"shop.dump": b"x" * 1000}))
    for day in (20, 21, 22):
        pipeline.backup(now=datetime(2026, 11, day, 8, tzinfo=UTC))
    return attrs.evolve(pipeline, notifiers=[remember], keep=RetentionPolicy(last=2, min_good=1)), remember


NEXT = datetime(2026, 11, 23, 8, tzinfo=UTC)


def test_an_emptied_database_is_told(history: tuple[Pipeline, Remember], tmp_path: Path) -> None:
    """One message: what was compared, what to do, the size against last time, where the backup is; nothing is pruned."""
    pipeline, remember = history
    report = attrs.evolve(pipeline, dump=ToyDumper(contents={"shop.dump": b"x"})).backup(now=NEXT)
    (told,) = remember.events
    assert isinstance(told, Suspect)
    assert ("shop", report.id, "error") == (told.pipeline, told.id, told.level)
    assert "it has 1 B and one of the last 3 had 1.0 kB" == told.cause
    assert f"Look at it, and at the database; if all is right: pgsnap ack {report.id}" == told.next_step
    assert (1, 1000) == (told.size, told.last_size)
    assert [(str(tmp_path / store), "") for store in "ab"] == [(store.label, store.error) for store in told.stores]
    assert tuple(f"{tmp_path / store}/shop/{report.id}/RECOVER.txt" for store in "ab") == told.recover
    assert "backup" in told.log
    assert 4 == len(pipeline.backups().backups)


def test_a_suspect_backup_that_a_store_lacks_is_told_so(history: tuple[Pipeline, Remember]) -> None:
    """The worse news comes first; the lost store stands beside it."""
    pipeline, remember = history
    bad = FaultyStore(url=pipeline.stores[1].url, fail_write="shop.dump")
    attrs.evolve(pipeline, stores=[pipeline.stores[0], bad], dump=ToyDumper(contents={"shop.dump": b"x"})).backup(now=NEXT)
    (told,) = remember.events
    assert "suspect" == told.kind
    assert [False, True] == ["the disk is on fire" in store.error for store in told.stores]


def test_each_store_that_was_pruned_is_told(history: tuple[Pipeline, Remember], tmp_path: Path) -> None:
    """After the backup itself: which backups went from which store, how many stay, and the bytes that are free again."""
    pipeline, remember = history
    first, second, *_ = (backup.id for backup in pipeline.backups().backups)
    freed = [sum(p.stat().st_size for id in (first, second) for p in (tmp_path / s / "shop" / id).iterdir()) for s in "ab"]
    report = pipeline.backup(now=NEXT)
    done, *pruned = remember.events
    assert "succeeded" == done.kind
    assert [
        Pruned(
            pipeline="shop",
            id=report.id,
            time=told.time,
            text=f"shop: 2 backups were pruned from {tmp_path / store}, 2 stay.",
            store=str(tmp_path / store),
            deleted=(first, second),
            kept=2,
            size=size,
        )
        for told, store, size in zip(pruned, "ab", freed, strict=True)
    ] == pruned
    assert all(size > 2000 for size in freed)
    assert report.prune is not None
    assert freed == [store.size for store in report.prune.stores]


def test_a_store_that_deletes_nothing_is_told_as_such(history: tuple[Pipeline, Remember], tmp_path: Path) -> None:
    """What it refused, with its reason; those backups are still there and count. A store without deletions is not spoken of."""

    class Keeping(LocalStore):
        def delete(self, keys: Sequence[str]) -> Mapping[str, str]:
            mine = {key: "AccessDenied" for key in keys if "/20261120T" in key or "/20261121T" in key}
            return {**LocalStore.delete(self, [key for key in keys if key not in mine]), **mine}

    pipeline, remember = history
    first, second, *_ = (backup.id for backup in pipeline.backups().backups)
    stores = [Keeping(url=pipeline.stores[0].url), LocalStore(url=pipeline.stores[1].url, keep=RetentionPolicy(last=9))]
    report = attrs.evolve(pipeline, stores=stores).backup(now=NEXT)
    done, told = remember.events
    assert isinstance(told, Pruned)
    assert (str(tmp_path / "a"), (), 4, 0, "warning") == (told.store, told.deleted, told.kept, told.size, told.level)
    assert {f"shop/{id}/manifest.json: AccessDenied" for id in (first, second)} <= set(told.refused)
    assert any("objects could not be deleted" in note for note in done.notes)
    assert 4 == len(list((tmp_path / "a").rglob("manifest.json")))
    assert report.id in {path.parent.name for path in (tmp_path / "a").rglob("manifest.json")}


class Stop(BaseException):
    """As the command raises for a signal."""


def test_a_run_that_a_signal_ended_is_told(make: MakePipeline) -> None:
    """Who kills the nightly run, an operator or a scheduler, leaves nobody in the dark."""
    remember = Remember()

    @attrs.frozen(kw_only=True)
    class Stopped(ToyDumper):
        name: ClassVar[str] = "stopped"

        def dump(self, run: Any) -> Any:
            raise Stop("SIGTERM")

    with pytest.raises(Stop):
        make(dump=Stopped(), notifiers=[remember]).backup()
    failed = remember.events[-1]
    assert isinstance(failed, Failed)
    assert "Stop: SIGTERM" == failed.cause
    assert "If nobody stopped it on purpose, run: pgsnap backup shop" == failed.next_step


def test_a_notifier_that_failed_at_the_start_makes_no_partial_backup(make: MakePipeline) -> None:
    """The backup is in every store, so that is what the others are told."""

    @attrs.frozen(kw_only=True)
    class Hoarse(Remember):
        name: ClassVar[str] = "hoarse"

        def notify(self, event: Event, *, timeout: float) -> None:
            if event.kind == "started":
                raise NotifyError("nobody answers.")

    remember = Remember()
    report = make(notifiers=[Hoarse(), remember]).backup()
    assert 3 == report.exit_code
    assert ["started", "succeeded"] == [event.kind for event in remember.events]


def test_a_time_limit_ends_the_run(make: MakePipeline, tmp_path: Path) -> None:
    """The error names the limit, and nothing is left."""

    release = threading.Event()

    @attrs.frozen(kw_only=True)
    class Endless(ToyDumper):
        name: ClassVar[str] = "endless"

        def dump(self, run: Any) -> Any:
            import contextlib

            from pgsnap import Artifact, Dump

            def stream() -> Stream:
                while True:
                    yield b"x"
                    release.wait(0.01)

            return contextlib.nullcontext(Dump(artifacts=[Artifact(name="endless", open=stream)]))

    with pytest.raises(Exception, match=r"longer than its time limit of 0\.7 s") as caught:
        make(dump=Endless(), timeout=0.7).backup()
    assert 1 == caught.value.exit_code  # type: ignore[attr-defined]
    assert [] == files_below(tmp_path)


def test_an_artifact_is_cut_at_the_least_limit_of_the_stores(make: MakePipeline, tmp_path: Path) -> None:
    """The objects join to the artifact in the shell's own order, and the catalogue reads them."""

    @attrs.frozen(kw_only=True)
    class Small(LocalStore):
        max_object = 1_000_000

    pipeline = make(stores=[Small(url=str(tmp_path / "a")), str(tmp_path / "b")])
    report = pipeline.backup()
    keys = [item.key for item in report.manifest.artifacts[0].objects]  # type: ignore[union-attr]
    assert ["shop.dump", "shop.dump.001", "shop.dump.002"] == keys
    folder = tmp_path / "b" / "shop" / report.id
    joined = b"".join(path.read_bytes() for path in sorted(folder.glob("shop.dump*")))
    assert pipeline.dump.contents["shop.dump"] == joined  # type: ignore[attr-defined]
    assert pipeline.verify(decode=True).ok


def test_an_exact_multiple_of_the_limit_makes_no_empty_object(make: MakePipeline, tmp_path: Path) -> None:
    """The last object is full, not followed by an empty one; and an empty artifact is one empty object."""

    @attrs.frozen(kw_only=True)
    class Small(LocalStore):
        max_object = 1_000_000

    dump = ToyDumper(contents={"two": b"x" * 2_000_000, "none": b""})
    report = make(dump=dump, stores=[Small(url=str(tmp_path / "a"))]).backup()
    artifacts = report.manifest.artifacts  # type: ignore[union-attr]
    assert [[1_000_000, 1_000_000], [0]] == [[item.size for item in record.objects] for record in artifacts]


def test_a_running_backup_says_so_and_stops_saying_so(make: MakePipeline, tmp_path: Path) -> None:
    """While it runs there is a running.json with the id; after the commit there is none."""
    seen: list[str] = []

    def look(subject: str, done: int, expected: int | None) -> None:
        seen.extend(files_below(tmp_path / "a"))

    report = make().backup(progress=look)
    running = f"shop/{report.id}/running.json"
    assert running in seen
    assert running not in files_below(tmp_path / "a")


def test_a_pipeline_without_stores_is_refused(make: MakePipeline) -> None:
    """Before anything is dumped."""
    pipeline = make(stores=[])
    with pytest.raises(ConfigError, match="has no store"):
        pipeline.backup()
    assert [] == pipeline.dump.entered  # type: ignore[attr-defined]


def test_recover_names_every_file_and_fills_in_the_commands(make: MakePipeline, tmp_path: Path) -> None:
    """The digests are of the stored files, the recipe's marks are replaced by commands that undo the stages."""
    report = make(transforms=[Flip()]).backup()
    folder = tmp_path / "a" / "shop" / report.id
    text = (folder / "RECOVER.txt").read_text()
    for name in ("shop.dump.flip", "globals.sql.flip"):
        assert f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" in text
    assert "cat shop.dump.flip | flip -d > out-shop.dump" in text
    assert str(tmp_path) not in text


def test_the_manifest_holds_no_secret_host_or_path(make: MakePipeline, tmp_path: Path) -> None:
    """Nothing of the stores is in it."""
    report = make().backup()
    document = json.loads((tmp_path / "a" / "shop" / report.id / "manifest.json").read_text())
    assert str(tmp_path) not in json.dumps(document)


@pytest.mark.parametrize("name", ["manifest.json", "RECOVER.txt", "running.json", "x.partial", "../x", "a b"])
def test_an_artifact_cannot_take_a_name_of_ours(make: MakePipeline, tmp_path: Path, name: str) -> None:
    """One that is called manifest.json would commit a backup that is not there."""
    with pytest.raises(ConfigError, match="the artifact's name"):
        make(dump=ToyDumper(contents={name: b"{}"})).backup()
    assert [] == files_below(tmp_path)


def test_two_files_of_one_name_are_refused(make: MakePipeline, tmp_path: Path) -> None:
    """The second would overwrite the first: here a cut artifact meets one that is called like its second object."""

    @attrs.frozen(kw_only=True)
    class Small(LocalStore):
        max_object: ClassVar[int | None] = 1_000

    with pytest.raises(StageError, match=r"two files of this backup would be called 'a\.001'"):
        make(dump=ToyDumper(contents={"a": b"x" * 1_500, "a.001": b"y"}), stores=[Small(url=str(tmp_path / "a"))]).backup()
    assert [] == files_below(tmp_path)


@attrs.frozen(kw_only=True)
class Fails(Transform):
    """Passes bytes on, and fails after so many of them."""

    name: ClassVar[str] = "fails"
    after: int

    def encode(self, chunks: Chunks, facts: Facts) -> Stream:
        seen = 0
        for chunk in chunks:
            seen += len(chunk)
            if seen >= self.after:
                raise StageError("the stage broke.")
            yield chunk
        raise StageError("the stage broke at its end.")

    def decode(self, chunks: Chunks, facts: Facts) -> Stream:
        yield from chunks


STAGES = ("dump", "first transform", "last transform", "store a", "store b", "both stores")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken=st.sets(st.sampled_from(STAGES)), at=st.integers(0, 700_000))
def test_whatever_fails_wherever_a_backup_is_whole_or_not_there(
    tmp_path_factory: pytest.TempPathFactory, broken: set[str], at: int
) -> None:
    """Any of the stages fails at any byte: what is committed verifies, what is not has left no file and no thread."""
    root = tmp_path_factory.mktemp("anything")
    fails_a = bool(broken & {"store a", "both stores"})
    fails_b = bool(broken & {"store b", "both stores"})
    transforms: list[Transform] = [Flip(), Sum()]
    if "first transform" in broken:
        transforms.insert(0, Fails(after=at))
    if "last transform" in broken:
        transforms.append(Fails(after=at))
    pipeline = Pipeline(
        name="shop",
        dump=ToyDumper(contents={"shop.dump": b"0123456789" * 70_000, "tail": b"x"}, fail_at=at if "dump" in broken else None),
        transforms=transforms,
        stores=[
            FaultyStore(url=str(root / "a"), fail_write="shop.dump.flip" if fails_a else "\0", after=at),
            FaultyStore(url=str(root / "b"), fail_write="shop.dump.flip" if fails_b else "\0", after=at),
        ],
    )
    threads = set(threading.enumerate())
    upstream = broken & {"dump", "first transform", "last transform"}
    must_fail = (fails_a and fails_b) or bool(upstream - {"dump"}) or ("dump" in broken and at <= 600_000)
    if must_fail:
        with pytest.raises(PgsnapError) as caught:
            pipeline.backup()
        assert () == caught.value.report.kept_in
        assert [] == files_below(root)
    else:
        report = pipeline.backup()
        expected = [str(root / name) for name, fails in (("a", fails_a), ("b", fails_b)) if not fails]
        assert expected == list(report.kept_in)
        assert dict.fromkeys(expected, ()) == dict(pipeline.verify(decode=True).problems)
        assert {name for name, fails in (("a", fails_a), ("b", fails_b)) if not fails} == {name[0] for name in files_below(root)}
    assert threads >= set(threading.enumerate())
