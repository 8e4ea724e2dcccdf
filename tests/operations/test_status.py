"""Status tells what the stores hold, for people, probes and machines."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from pgsnap import LocalStore, Pipeline, RetentionPolicy
from pgsnap.cli import cli
from pgsnap.cli.session import Session
from pgsnap.operations.status import PipelineStatus, openmetrics
from toys import FaultyStore, FillPipeline, MakePipeline, ToyDumper

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = 3600.0


@pytest.fixture
def filled(make: MakePipeline) -> FillPipeline:
    """Make a pipeline whose stores hold a backup of each of the given hours ago."""

    def fill(*hours: float, **parts: Any) -> Pipeline:
        pipeline = make(**{"dump": ToyDumper(contents={"shop.dump": b"x" * 1000}), "auto_prune": False} | parts)
        for ago in hours:
            pipeline.backup(now=NOW - timedelta(hours=ago))
        return pipeline

    return fill


def said(found: PipelineStatus, level: str) -> list[str]:
    return [f"{finding.subject}: {finding.text}" for finding in found.findings if finding.level == level]


def test_all_is_well(filled: FillPipeline) -> None:
    """Both stores have what the policy wants, and it is young enough."""
    found = filled(50, 26, 2, keep=RetentionPolicy(daily=3)).status(max_age=26 * HOUR, now=NOW)
    assert (0, []) == (found.exit_code, list(found.findings))
    assert [(3, 3)] * 2 == [(store.count, store.coverage["daily"].have) for store in found.stores]
    assert [2 * HOUR] * 2 == [round(store.age) // 60 * 60 for store in found.stores]
    assert found.agree
    assert all(store.last_size > 1000 and store.size > 3000 for store in found.stores)


def test_too_old_in_one_store(filled: FillPipeline, tmp_path: Path) -> None:
    """Each store by itself: the other's new backup does not help."""
    pipeline = filled(50, 2)
    shutil.rmtree(next((tmp_path / "b" / "shop").glob(f"{NOW - timedelta(hours=2):%Y%m%dT%H%M}*")))
    found = pipeline.status(max_age=26 * HOUR, now=NOW)
    assert 4 == found.exit_code
    assert 1 == len(said(found, "error"))
    assert f"{tmp_path / 'b'}: the last good backup, " in said(found, "error")[0]
    assert "is 50 h 0 m old; 26 h 0 m are allowed." in said(found, "error")[0]
    assert "1 backups that another store has and its policy would keep are missing" in said(found, "warning")[0]
    assert 3 == pipeline.status().exit_code


def test_what_the_policy_would_not_keep_is_not_missing(filled: FillPipeline, tmp_path: Path) -> None:
    """A local store that keeps two of six has all it should have."""
    stores = [LocalStore(url=str(tmp_path / "a"), keep=RetentionPolicy(last=2, min_good=1)), LocalStore(url=str(tmp_path / "b"))]
    pipeline = filled(6, 5, 4, 3, 2, 1, stores=stores)
    pipeline.prune()
    assert 0 == pipeline.status().exit_code


def test_nothing_at_all(make: MakePipeline) -> None:
    """No backup is an error of each store."""
    found = make().status()
    assert (4, 2) == (found.exit_code, len(said(found, "error")))
    assert "it has no backup." in said(found, "error")[0]


def test_a_store_that_cannot_be_asked(filled: FillPipeline, tmp_path: Path) -> None:
    """Exit code 3: what is there is good, as far as can be seen."""
    pipeline = filled(1)
    pipeline = attrs.evolve(pipeline, stores=[pipeline.stores[0], FaultyStore(url=str(tmp_path / "b"), offline=True)])
    found = pipeline.status(max_age=HOUR * 2)
    assert 3 == found.exit_code
    assert "it could not be asked" in said(found, "warning")[0]


def test_a_suspect_is_told_until_it_is_acknowledged(filled: FillPipeline) -> None:
    """With the command that ends it; and it is not the last good one."""
    pipeline = filled(3, 2)
    good = pipeline.backups().backups[-1].id
    small = attrs.evolve(pipeline, dump=ToyDumper(contents={"shop.dump": b"x"})).backup()
    found = pipeline.status()
    assert 4 == found.exit_code
    assert f"pgsnap ack {small.id}" in said(found, "error")[0]
    assert [good, good] == [store.last_good for store in found.stores]
    pipeline.acknowledge(small.id)
    assert 0 == pipeline.status().exit_code
    assert small.id == pipeline.status().stores[0].last_good


def test_copies_that_differ(filled: FillPipeline, tmp_path: Path) -> None:
    """An object of another size in one store, or another manifest of the newest."""
    pipeline = filled(2, 1)
    for path in (tmp_path / "b" / "shop").glob("*/shop.dump"):
        path.write_bytes(b"short")
    found = pipeline.status()
    assert (4, False, 2) == (found.exit_code, found.agree, len(said(found, "error")))
    assert "differ in shop.dump; run: pgsnap verify shop -b" in said(found, "error")[0]


def test_a_verification_is_a_proof(filled: FillPipeline, tmp_path: Path) -> None:
    """It is recorded; a damaged copy is no good one there, freezes pruning, and is told; a repaired one is good again."""
    pipeline = filled(30, 1, keep=RetentionPolicy(last=1, min_good=1))
    newest = pipeline.backups().backups[-1].id
    assert pipeline.status().proof is None
    pipeline.verify()
    pipeline.verify()
    found = pipeline.status()
    assert found.proof is not None
    assert ("verify", True, newest) == (found.proof.what, found.proof.ok, found.proved)
    assert 1 == len(list((tmp_path / "a" / "shop" / newest).glob("verify-*-ok.json")))
    path = tmp_path / "b" / "shop" / newest / "shop.dump"
    whole = path.read_bytes()
    path.write_bytes(b"y" * 1000)
    for record in (tmp_path / "b" / "shop" / newest).glob("verify-*"):
        record.rename(record.with_name("verify-20200101T000000Z-ok.json"))
    assert not pipeline.verify(record=False).ok
    assert 0 == pipeline.status().exit_code
    assert not pipeline.verify().ok
    found = pipeline.status()
    assert 4 == found.exit_code
    assert f"pruning is frozen: {newest}: its last verification failed" in said(found, "error")[0]
    assert newest == found.stores[0].last_good
    assert newest != found.stores[1].last_good
    assert 4 == pipeline.prune().exit_code
    path.write_bytes(whole)
    for record in (tmp_path / "b" / "shop" / newest).glob("verify-*-failed.json"):
        record.rename(record.with_name("verify-20210101T000000Z-failed.json"))
    assert pipeline.verify().ok
    assert 0 == pipeline.status().exit_code


def test_an_unreachable_store_records_nothing(filled: FillPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a copy could not be read says nothing about it."""
    from pgsnap import StoreError

    pipeline = filled(1)

    def broken(self: LocalStore, key: str, start: int = 0, length: int | None = None) -> Any:
        raise StoreError(f"{self.label}: the network is down.", self.label, transient=True)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "read", broken)
        assert not pipeline.verify().ok
    assert [] == list(tmp_path.rglob("verify-*"))


def test_a_newer_format_is_not_damage(filled: FillPipeline, tmp_path: Path) -> None:
    """It fails the verification, and is not held against the backup."""
    pipeline = filled(1)
    for path in tmp_path.rglob("manifest.json"):
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert not pipeline.verify().ok
    assert [] == list(tmp_path.rglob("verify-*"))


def test_gaps_are_worth_knowing_and_no_error(filled: FillPipeline) -> None:
    """A policy that wants seven days, of which one has none."""
    found = filled(24 * 5, 24 * 3, 0, keep=RetentionPolicy(daily=7)).status(max_age=HOUR * 26)
    assert 0 == found.exit_code
    assert "daily: 3 of the last 6 have a backup." in said(found, "info")[0]
    assert not found.stores[0].policy_met


LINE = re.compile(r'[a-z_]+\{[a-z]+="(?:[^"\\]|\\.)*"(?:,[a-z]+="(?:[^"\\]|\\.)*")*\} -?[0-9.e+-]+')


def test_openmetrics(filled: FillPipeline) -> None:
    """Each family once, with type and help before its samples, a unit that ends its name, and an end."""
    pipeline = filled(2, 1, keep=RetentionPolicy(daily=7))
    pipeline.verify()
    text = openmetrics([pipeline.status()])
    lines = text.splitlines()
    assert text.endswith("\n# EOF\n")
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    current = ""
    for line in lines[:-1]:
        words = line.split()
        if line.startswith("# TYPE"):
            current = words[2]
        elif line.startswith("#"):
            assert words[2] == current
            assert words[1] != "UNIT" or current.endswith("_" + words[3])
        else:
            assert LINE.fullmatch(line), line
            assert current == line.partition("{")[0]
    label = pipeline.stores[0].label
    assert f'pgsnap_backups{{pipeline="shop",store="{label}"}} 2' in lines
    assert 'pgsnap_status_code{pipeline="shop"} 0' in lines
    assert any(line.startswith("pgsnap_last_proof_ok") and line.endswith(" 1") for line in lines)


# --- the commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command on two local stores with a policy of one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "pgsnap.toml").write_text(
        '[pipeline.shop]\nkeep = { last = 1, min_good = 1 }\nschedule = "0 8 * * *"\n[pipeline.shop.dump]\nuse = "pg_dump"\n'
        'url = "postgresql:///x"\n[[pipeline.shop.store]]\nurl = "a"\n[[pipeline.shop.store]]\nurl = "b"\n'
    )

    def run(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(cli, list(arguments), obj=Session(), standalone_mode=False)
        code = done.return_value
        if done.exception is not None:
            code = Session().failed(done.exception)  # type: ignore[arg-type]
        return code, done.stdout, done.stderr

    return run


def test_the_command_status(filled: FillPipeline, command: Any, tmp_path: Path) -> None:
    """A table, JSON and a file; and the exit code of a probe."""
    filled(30, 1)
    code, out, _ = command("status", "--max-age", "26h", "--openmetrics", str(tmp_path / "pgsnap.prom"))
    assert 0 == code
    assert "last good" in out
    assert (tmp_path / "pgsnap.prom").read_text().endswith("# EOF\n")
    code, out, _ = command("status", "--max-age", "30m", "--json")
    assert 4 == code
    document = json.loads(out)[0]
    assert ["a", "b"] == [store["label"] for store in document["stores"]]
    assert 2 == document["stores"][0]["count"]
    code, _, _ = command("status", "--max-age", "soon")
    assert 2 == code
    code, _, _ = command("status", "--openmetrics", str(tmp_path / "none" / "x"))
    assert 2 == code


def test_the_command_prune(filled: FillPipeline, command: Any) -> None:
    """Explained, as JSON, and done."""
    pipeline = filled(30, 2, 1)
    code, out, err = command("prune", "--dry-run", "--explain")
    assert 0 == code
    assert 4 == out.count("delete")
    assert 2 == out.count("last 1 of 1")
    assert "shop: a: 2 would be deleted, 1 stay." in err
    assert 3 == len(pipeline.backups().backups)
    code, out, _ = command("prune", "--json")
    assert [2, 2] == [len(store["deleted"]) for store in json.loads(out)[0]["stores"]]
    assert 1 == len(pipeline.backups().backups)


def test_the_commands_of_marks(filled: FillPipeline, command: Any) -> None:
    """hold, release, ack and delete find the pipeline by the id; list shows the state."""
    pipeline = filled(30, 20, 2, 1)
    first = pipeline.backups().backups[0].id
    assert 0 == command("hold", first)[0]
    assert "held" in command("list")[1]
    assert json.loads(command("list", "--json")[1])[0]["held"]
    assert 2 == command("delete", first, "--yes")[0]
    assert 0 == command("release", first)[0]
    assert 0 == command("ack", first)[0]
    assert 1 == command("delete", first)[0]  # nobody said yes
    assert 4 == len(pipeline.backups().backups)
    assert 0 == command("delete", first, "--yes")[0]
    assert 3 == len(pipeline.backups().backups)
    assert 1 == command("hold", "19990101T000000Z-0000")[0]
