"""Reading backups back: catalogue, verified blocks, restore, verify and copy, over stores that are damaged, cut or gone."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgsnap import (
    ConfigError,
    FsspecStore,
    IntegrityError,
    LocalStore,
    ManifestError,
    NotFound,
    Pipeline,
    RestoreError,
    StoreError,
)
from pgsnap.components import Verified
from pgsnap.repository.blocks import read_objects
from pgsnap.repository.catalog import scan
from pgsnap.repository.manifest import ObjectRecord
from pgsnap.streams import Tap
from remember import Remember
from toys import FaultyStore, MakePipeline, ToyDumper

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def damage(path: Path, at: int, what: str) -> None:
    """Flip a bit at a place, or cut the file there, or remove it, or add to it."""
    data = bytearray(path.read_bytes())
    if what == "flip":
        data[at] ^= 1
    elif what == "cut":
        del data[at:]
    elif what == "add":
        data += b"x"
    if what == "gone":
        path.unlink()
    else:
        path.write_bytes(data)


# --- verified blocks ---------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    size=st.integers(0, 5000),
    block=st.integers(1, 1500),
    wounds=st.lists(
        st.tuples(st.sampled_from(["flip", "cut", "gone", "add", "well"]), st.integers(0, 4999)), min_size=1, max_size=3
    ),
)
def test_only_verified_bytes_come_out(
    tmp_path_factory: pytest.TempPathFactory, size: int, block: int, wounds: list[tuple[str, int]]
) -> None:
    """Whatever is wrong with the stores: what comes out is a prefix of the truth, and all of it if the stream ends well."""
    root = tmp_path_factory.mktemp("blocks")
    data = os.urandom(size)
    tap = Tap(block)
    tap.update(data)
    record = ObjectRecord(key="x", size=size, sha256=tap.sha256, blocks=tap.blocks)
    stores = []
    for number, (what, at) in enumerate(wounds):
        store = LocalStore(url=str(root / str(number)), fsync=False)
        store.write("p/x", [data])
        if what != "well" and (size or what in ("gone", "add")):
            damage(root / str(number) / "p" / "x", at % size if size else 0, what)
        stores.append(store)
    out = b""
    told: list[str] = []
    try:
        for piece in read_objects(stores, "p/", [record], block, told.append):
            out += piece
    except (IntegrityError, StoreError):
        assert data.startswith(out)
        assert all(what != "well" for what, _ in wounds)
    else:
        assert data == out
    shutil.rmtree(root)


def test_reading_goes_on_from_the_next_store_at_the_same_block(make: MakePipeline, tmp_path: Path) -> None:
    """The first store is damaged in the middle: nothing is read twice, and it is said."""
    pipeline = make(dump=ToyDumper(contents={"big": os.urandom(40 << 20)}))
    report = pipeline.backup()
    damage(tmp_path / "a" / "shop" / report.id / "big", 20 << 20, "flip")
    restored = pipeline.restore(to="postgresql:///copy")
    assert pipeline.dump.contents == pipeline.dump.restored  # type: ignore[attr-defined]
    assert 1 == len(restored.notes)
    assert f"{tmp_path}/a: shop/{report.id}/big is damaged between bytes 16777216 and 33554432 (block 1)" in restored.notes[0]
    assert f"Going on from {tmp_path}/b at block 1 of 3" in restored.notes[0]


@pytest.mark.parametrize("what", ["flip", "cut", "gone", "add"])
def test_a_restore_survives_one_bad_store_and_refuses_two(make: MakePipeline, tmp_path: Path, what: str) -> None:
    """With one good copy it restores; with none it raises before the dumper has seen an end."""
    pipeline = make()
    report = pipeline.backup()
    damage(tmp_path / "a" / "shop" / report.id / "shop.dump", 2_999_999, what)
    pipeline.restore(to="postgresql:///copy")
    assert pipeline.dump.contents == pipeline.dump.restored  # type: ignore[attr-defined]
    damage(tmp_path / "b" / "shop" / report.id / "shop.dump", 10, what)
    with pytest.raises((IntegrityError, StoreError)) as caught:
        pipeline.restore(to="postgresql:///copy")
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)


def test_an_unreachable_store_is_said_and_passed_over(make: MakePipeline, tmp_path: Path) -> None:
    """A restore from the other store works, and its report says what was wrong."""
    pipeline = make()
    pipeline.backup()
    broken = attrs.evolve(pipeline, stores=[FaultyStore(url=str(tmp_path / "a"), offline=True), pipeline.stores[1]])
    report = broken.restore(to="postgresql:///copy")
    assert [f"{tmp_path}/a: it is offline. Reading from the other stores."] == list(report.notes)


def test_a_dumper_that_fails_says_so(make: MakePipeline) -> None:
    """The error of the dumper comes out as it is."""

    class Refusing(ToyDumper):
        def restore(self, source: Any, request: Any, run: Any) -> None:
            raise RestoreError("the target 'x' is not empty.")

    pipeline = make()
    pipeline.backup()
    with pytest.raises(RestoreError, match="is not empty"):
        attrs.evolve(pipeline, dump=Refusing()).restore(to="postgresql:///x")


def test_a_local_copy_is_private_and_removed(make: MakePipeline) -> None:
    """For what must seek: mode 0600, whole, and gone afterwards."""
    seen: list[Path] = []

    class Seeking(ToyDumper):
        def restore(self, source: Any, request: Any, run: Any) -> None:
            with source.local("shop.dump") as path:
                assert 0o600 == path.stat().st_mode & 0o777
                assert self.contents["shop.dump"] == path.read_bytes()
                seen.append(path)

    pipeline = make(dump=Seeking())
    pipeline.backup()
    pipeline.restore(to="postgresql:///x")
    assert not seen[0].exists()
    assert not seen[0].parent.exists()


# --- the catalogue -----------------------------------------------------------------------------------------------------


def history(make: MakePipeline, days: int = 3) -> tuple[Pipeline, list[str]]:
    pipeline = make()
    return pipeline, [pipeline.backup(now=NOW + timedelta(days=day)).id for day in range(days)]


def test_backups_are_found_by_latest_id_prefix_and_time(make: MakePipeline) -> None:
    """The four ways of naming one."""
    pipeline, ids = history(make)
    catalog = pipeline.backups()
    assert ids == [backup.id for backup in catalog.backups]
    assert ids[2] == catalog.find("latest").id
    assert ids[1] == catalog.find(ids[1]).id
    assert ids[1] == catalog.find("20261123").id
    assert ids[0] == catalog.find("2026-11-22").id
    assert ids[1] == catalog.find("2026-11-24T07:59:59Z").id
    assert ids[2] == catalog.find("2026-11-24T17:00:00+09:00").id


@pytest.mark.parametrize(
    ("which", "error", "says"),
    [
        ("2026", ConfigError, "beginning of 3 backups"),
        ("20251122T080000Z-0000", NotFound, "has no backup '20251122T080000Z-0000'"),
        ("2025-01-01", NotFound, "no backup from 2025-01-01 or before; the oldest is 20261122T"),
        ("yesterday", ConfigError, "'yesterday' is no backup"),
    ],
)
def test_what_is_no_backup_is_told_apart(make: MakePipeline, which: str, error: type[Exception], says: str) -> None:
    """Unknown, ambiguous, too early, nonsense."""
    pipeline, _ = history(make)
    with pytest.raises(error, match=says):
        pipeline.backups().find(which)


def test_no_backup_at_all_names_the_stores(make: MakePipeline, tmp_path: Path) -> None:
    """An empty place is more often a wrong place."""
    with pytest.raises(NotFound, match=f"pipeline 'shop' has no backup in {tmp_path}/a, {tmp_path}/b"):
        make().backups().find()


def test_neighbours_and_strangers_are_not_listed(make: MakePipeline, tmp_path: Path) -> None:
    """Only the pipeline's own folder counts, whatever a name begins with; foreign files do not disturb."""
    for name in ("shop", "shop2", "shop-prod", "sho"):
        make(name=name).backup()
    (tmp_path / "a" / "shop" / "notes.txt").write_text("x")
    (tmp_path / "a" / "shop" / "20261122").mkdir()
    (tmp_path / "a" / "shop" / "20261122" / "manifest.json").write_text("{}")
    assert 1 == len(make(name="shop").backups().backups)
    assert 1 == len(scan(make().stores[0], "shop"))


def test_what_has_no_manifest_is_not_a_backup(make: MakePipeline, tmp_path: Path) -> None:
    """It is there in the scan, as unfinished, and nowhere else."""
    pipeline = make(stores=[str(tmp_path / "a")])
    report = pipeline.backup()
    (tmp_path / "a" / "shop" / report.id / "manifest.json").unlink()
    assert [] == pipeline.backups().backups
    assert False is scan(pipeline.stores[0], "shop")[report.id].committed


def test_differing_manifests_are_an_integrity_error(make: MakePipeline, tmp_path: Path) -> None:
    """One of two was altered: nobody can say which, so nothing is restored from either."""
    pipeline = make()
    report = pipeline.backup()
    path = tmp_path / "b" / "shop" / report.id / "manifest.json"
    path.write_text(path.read_text().replace('"pgsnap": "0.1.0"', '"pgsnap": "0.1.1"'))
    with pytest.raises(IntegrityError, match=f"differ between {tmp_path}/a and {tmp_path}/b"):
        pipeline.restore(to="postgresql:///x")
    assert False is pipeline.verify().ok


def test_one_of_two_stores_is_taken_by_its_label(make: MakePipeline, tmp_path: Path) -> None:
    """The error says how, and then the backup can be restored, verified and shown from the store that is trusted."""
    pipeline = make()
    report = pipeline.backup()
    path = tmp_path / "b" / "shop" / report.id / "manifest.json"
    path.write_text(path.read_text().replace('"pgsnap": "0.1.0"', '"pgsnap": "0.1.1"'))
    one, two = (shlex.quote(str(tmp_path / name)) for name in ("a", "b"))
    way = f"'pgsnap show {report.id} --store STORE', and use the one you trust by --store {one} or --store {two}."
    with pytest.raises(IntegrityError, match=re.escape(way)):
        pipeline.restore(to="postgresql:///x")
    for name, version in (("a", "0.1.0"), ("b", "0.1.1")):
        chosen = pipeline.only(str(tmp_path / name))
        assert [str(tmp_path / name)] == [store.label for store in chosen.stores]
        chosen.restore(to="postgresql:///x")
        assert chosen.verify().ok
        assert version == chosen.backups().manifest(chosen.backups().find()).pgsnap


def test_stores_are_chosen_by_label_or_url_alone(make: MakePipeline, tmp_path: Path) -> None:
    """Exactly, but for a slash at the end; in the pipeline's order; the quorum is no more than what is left."""
    secret = FsspecStore(url="memory://user:pass@there/x")
    pipeline = make(stores=[str(tmp_path / "a"), str(tmp_path / "b"), secret], quorum=3)
    assert pipeline is pipeline.only()
    assert pipeline.stores[:2] == pipeline.only(f"{tmp_path}/b/", f"{tmp_path}/a").stores
    assert (secret,) == pipeline.only("memory://there/x").stores == pipeline.only("memory://user:pass@there/x").stores
    assert 2 == pipeline.only(f"{tmp_path}/b", f"{tmp_path}/a").quorum
    for wrong in ("", "a", "1", f"{tmp_path}", f"{tmp_path}/a/b", "memory://user:pass@there/y"):
        with pytest.raises(ConfigError) as caught:
            pipeline.only(f"{tmp_path}/a", wrong)
        has = f"it has {tmp_path}/a, {tmp_path}/b, memory://there/x."
        assert f"pipeline 'shop' has no store {wrong.replace('user:pass@', '')!r}; {has}" == str(caught.value)


def test_a_manifest_that_was_moved_is_refused(make: MakePipeline, tmp_path: Path) -> None:
    """A folder renamed by hand is not the backup that its name says."""
    pipeline = make(stores=[str(tmp_path / "a")])
    report = pipeline.backup()
    other = "20200101T000000Z-0000"
    (tmp_path / "a" / "shop" / report.id).rename(tmp_path / "a" / "shop" / other)
    with pytest.raises(ManifestError, match=f"belongs to the backup shop/{report.id}"):
        pipeline.restore(other, to="postgresql:///x")


def test_one_good_manifest_is_enough(make: MakePipeline, tmp_path: Path) -> None:
    """A cut manifest in one store does not hide the backup in the other."""
    pipeline = make()
    report = pipeline.backup()
    damage(tmp_path / "a" / "shop" / report.id / "manifest.json", 100, "cut")
    pipeline.restore(to="postgresql:///x")
    assert pipeline.dump.contents == pipeline.dump.restored  # type: ignore[attr-defined]


# --- verify ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["flip", "cut", "gone", "add"])
@pytest.mark.parametrize("name", ["shop.dump", "globals.sql", "RECOVER.txt", "manifest.json"])
def test_verify_finds_every_damage_and_names_the_store(make: MakePipeline, tmp_path: Path, name: str, what: str) -> None:
    """The damaged copy is told, the good one is not."""
    pipeline = make()
    report = pipeline.backup()
    damage(tmp_path / "b" / "shop" / report.id / name, 3, what)
    found = pipeline.verify()
    if (name, what) == ("manifest.json", "gone"):  # then that store does not have the backup at all
        assert [str(tmp_path / "a")] == list(found.problems)
        return
    assert 4 == found.exit_code
    assert [] == list(found.problems[str(tmp_path / "a")])
    assert 1 <= len(found.problems[str(tmp_path / "b")])
    assert name in found.problems[str(tmp_path / "b")][0]


def test_verify_decodes_when_asked(make: MakePipeline, tmp_path: Path) -> None:
    """A wrong digest of the plain bytes is seen only by decoding."""
    pipeline = make(stores=[str(tmp_path / "a")])
    report = pipeline.backup()
    manifest = report.manifest
    assert manifest is not None
    forged = attrs.evolve(manifest, artifacts=(attrs.evolve(manifest.artifacts[0], sha256="0" * 64), *manifest.artifacts[1:]))
    (tmp_path / "a" / "shop" / report.id / "manifest.json").write_bytes(forged.to_bytes())
    assert pipeline.verify().ok
    assert False is pipeline.verify(decode=True).ok


def test_verify_tells_when_asked(make: MakePipeline, tmp_path: Path) -> None:
    """Damage reaches who asked for failures, with the way out; a whole backup only who asked for that."""
    quiet, talkative = Remember(on=("failed",)), Remember(on=("verified",))
    pipeline = make(notifiers=[quiet, talkative])
    report = pipeline.backup()
    pipeline.verify(notify=True)
    assert ([], ["ok"]) == (quiet.events, [event.level for event in talkative.events])
    damage(tmp_path / "b" / "shop" / report.id / "shop.dump", 3, "flip")
    pipeline.verify()
    found = pipeline.verify(notify=True)
    assert (4, ()) == (found.exit_code, found.notify_errors)
    (told,) = quiet.events
    assert isinstance(told, Verified)
    assert (report.id, "error", "shop: a backup is DAMAGED") == (told.id, told.level, told.title)
    assert f"It is whole in {tmp_path / 'a'}: run 'pgsnap verify shop --backup {report.id} --repair'." == told.next_step
    assert [False, True] == [bool(store.error) for store in told.stores]
    damage(tmp_path / "a" / "shop" / report.id / "shop.dump", 3, "flip")
    pipeline.verify(notify=True)
    assert "No store has a whole copy" in quiet.events[-1].next_step  # type: ignore[attr-defined]


def test_a_verification_that_nobody_heard_of(make: MakePipeline) -> None:
    """Exit code 3: whole, but not told."""
    pipeline = make(notifiers=[Remember(on=("verified",), fail=True)])
    pipeline.backup()
    report = pipeline.verify(notify=True)
    assert (3, ("the notifier 'remember' failed: nobody answers.",)) == (report.exit_code, report.notify_errors)


# --- copy --------------------------------------------------------------------------------------------------------------


def test_copy_brings_a_new_store_up_to_date(make: MakePipeline, tmp_path: Path) -> None:
    """The same bytes, manifest and all, without a dump; a second copy has nothing to do."""
    pipeline, ids = history(make)
    entered = list(pipeline.dump.entered)  # type: ignore[attr-defined]
    wider = attrs.evolve(pipeline, stores=[*pipeline.stores, str(tmp_path / "c")])
    report = wider.copy()
    assert tuple(reversed(ids)) == report.copied[str(tmp_path / "c")]
    assert 0 == report.exit_code
    for id in ids:
        assert wider.verify(id, decode=True).ok
        assert 3 == len(wider.verify(id).problems)
        texts = {(tmp_path / store / "shop" / id / "manifest.json").read_bytes() for store in "abc"}
        assert 1 == len(texts)
    assert entered == pipeline.dump.entered  # type: ignore[attr-defined]
    assert {str(tmp_path / name): () for name in "abc"} == wider.copy().copied


def test_copy_takes_from_the_good_store_and_uses_what_is_there(make: MakePipeline, tmp_path: Path) -> None:
    """A damaged object of the source is read from another; what the target has already is checked before it is used."""
    pipeline, [id] = history(make, 1)
    wider = attrs.evolve(pipeline, stores=[*pipeline.stores, str(tmp_path / "c")])
    target = tmp_path / "c" / "shop" / id
    target.mkdir(parents=True)
    for name in ("shop.dump", "globals.sql"):
        shutil.copy(tmp_path / "a" / "shop" / id / name, target / name)
    damage(target / "globals.sql", 2, "flip")
    before = (target / "shop.dump").stat().st_ino
    damage(tmp_path / "a" / "shop" / id / "globals.sql", 1, "flip")
    assert 0 == wider.copy(to=str(tmp_path / "c")).exit_code
    assert before == (target / "shop.dump").stat().st_ino
    assert () == wider.verify(id).problems[str(tmp_path / "c")]


def test_a_copy_that_fails_leaves_nothing_that_counts(make: MakePipeline, tmp_path: Path) -> None:
    """The target fails in the middle: an error with its name, no manifest, and the parts are gone."""
    pipeline, [id] = history(make, 1)
    bad = FaultyStore(url=str(tmp_path / "c"), fail_write="globals.sql")
    report = attrs.evolve(pipeline, stores=[*pipeline.stores, bad]).copy()
    assert 3 == report.exit_code
    assert f"{id} to {tmp_path}/c: " in report.errors[0]
    assert [] == [path for path in (tmp_path / "c").rglob("*") if path.is_file()]


def test_a_damaged_backup_is_not_copied(make: MakePipeline, tmp_path: Path) -> None:
    """If no store has the bytes undamaged, the target gets none of it."""
    pipeline, [id] = history(make, 1)
    for name in "ab":
        damage(tmp_path / name / "shop" / id / "shop.dump", 5, "flip")
    report = attrs.evolve(pipeline, stores=[*pipeline.stores, str(tmp_path / "c")]).copy()
    assert "is damaged" in report.errors[0]
    assert [] == [path for path in (tmp_path / "c").rglob("*") if path.is_file()]


def test_copy_to_an_unknown_store_names_those_there_are(make: MakePipeline, tmp_path: Path) -> None:
    """Nothing is copied anywhere else instead."""
    with pytest.raises(ConfigError, match=f"has no store '/nowhere'; it has {tmp_path}/a, {tmp_path}/b"):
        make().copy(to="/nowhere")


# --- the pipeline itself -------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Nameless(LocalStore):
    name: ClassVar[str] = "nameless"


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"name": "a/b"}, "the pipeline's name 'a/b' cannot be used"),
        ({"name": "*"}, "cannot be used"),
        ({"stores": ["s3://bucket"]}, "s3://… is given as a plain string"),
        ({"stores": ["/x", "/x"]}, "the store /x is given twice"),
        ({"quorum": 3}, "quorum is 3 and there are 2 stores"),
        ({"quorum": 0}, "quorum is 0"),
        ({"timezone": "Mars/Olympus"}, "timezone 'Mars/Olympus' is unknown"),
        ({"timeout": -1}, "timeout is -1"),
        ({"stall_timeout": 0}, "stall_timeout is 0"),
        ({"buffer": 10}, "buffer is 10 bytes"),
    ],
)
def test_a_pipeline_that_cannot_work_is_refused(make: MakePipeline, parts: dict[str, Any], says: str) -> None:
    """At once, in one sentence, with the value."""
    with pytest.raises(ConfigError) as caught:
        make(**parts)
    assert says in str(caught.value)
