"""From a real PostgreSQL into a folder and a bucket with object lock, by the command, and back from the bucket alone."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from desk import Desk
from pgsnap.repository.catalog import Catalog
from pgsnap.testing.fault_proxy import FaultProxy
from pgsnap_s3 import S3

COMPARE = Path(__file__).parent.parent.parent / "examples" / "demo" / "compare.py"


@pytest.fixture(scope="module")
def describe() -> Callable[..., Any]:
    """The demo's description of a database by hashes."""
    spec = importlib.util.spec_from_file_location("ceph_compare", COMPARE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Any] = module.describe
    return found


@pytest.fixture
def locked(ceph: Any, make_bucket: Callable[..., str]) -> S3:
    """A store in a bucket with object lock, with the owner's key."""
    store: S3 = ceph.store(make_bucket(ObjectLockEnabledForBucket=True), object_lock="governance", object_lock_days=7)
    return store


@pytest.fixture
def desk(tmp_path: Path, make_desk: Any, server17: Any, make_shop: Any, ceph: Any) -> Any:
    """A folder with a key for age, and the variables that the configuration names."""
    desk = make_desk(tmp_path)
    desk.env |= {
        "DATABASE_URL": make_shop(server17),
        "BUCKET_KEY": ceph.owner.access_key,
        "BUCKET_SECRET": ceph.owner.secret_key,
        "RECIPIENT": desk.run("keygen", "--output", "key.txt").stdout.strip(),
    }
    return desk


def configure(desk: Desk, store: S3, endpoint: str, *, local: bool = True) -> None:
    """Write ./pgsnap.toml; a recovery host has no folder, and no DATABASE_URL either."""
    parts = ['[pipeline.shop]\nkeep = { last = 2, min_good = 2 }\ncatch_up_timeout = "60s"\n']
    parts.append('[pipeline.shop.dump]\nuse = "pg_dump"\nurl = { env = "DATABASE_URL" }\n')
    parts.append('[[pipeline.shop.transform]]\nuse = "zstd"\n')
    parts.append('[[pipeline.shop.transform]]\nuse = "age"\nrecipients = [{ env = "RECIPIENT" }]\n')
    if local:
        parts.append(f'[[pipeline.shop.store]]\nurl = "{desk.folder / "local"}"\n')
    parts.append(
        f'[[pipeline.shop.store]]\nurl = "{store.url}"\nprovider = "ceph"\nendpoint = "{endpoint}"\npart_size = "5MiB"\n'
        'access_key = { env = "BUCKET_KEY" }\nsecret_key = { env = "BUCKET_SECRET" }\nio_timeout = "5s"\n'
        f'object_lock = "{store.object_lock}"\nobject_lock_days = {store.object_lock_days}\n'
    )
    (desk.folder / "pgsnap.toml").write_text("\n".join(parts))


def run(desk: Desk, *arguments: str, code: int = 0, **env: str) -> str:
    """Run the command, expect its exit code, and return all that it said, in which is no secret."""
    done = desk.run(*arguments, **env)
    assert code == done.returncode, done.stdout + done.stderr
    assert desk.env["BUCKET_SECRET"] not in done.stdout + done.stderr
    return str(done.stdout + done.stderr)


def listed(desk: Desk) -> list[tuple[str, int]]:
    """Return the ids of the backups, oldest first, each with the number of stores that hold it."""
    done = desk.run("list", "--json")
    assert 0 == done.returncode, done.stdout + done.stderr
    return sorted((item["id"], len(item["stores"])) for item in json.loads(done.stdout))


def test_a_life_with_a_bucket(
    desk: Desk, locked: S3, ceph: Any, proxy: FaultProxy, server17: Any, describe: Callable[..., Any]
) -> None:
    """Doctor, backup, a bucket that is away and is caught up, prune, and a restore from the bucket alone, equal row by row."""
    proxy.rules()
    configure(desk, locked, proxy.url)
    done = desk.run("doctor", "--deep", "--json")
    assert 0 == done.returncode, done.stdout + done.stderr
    findings = json.loads(done.stdout)
    assert [] == [finding for finding in findings if finding["level"] == "error"]
    assert "the bucket has object lock." in [finding["text"] for finding in findings]

    run(desk, "backup")
    ((first, copies),) = listed(desk)
    assert 2 == copies
    run(desk, "verify", "--decode", "--identity", "key.txt")

    away = {"do": "answer", "status": 503, "code": "SlowDown", "times": 0}
    proxy.rules(*({"method": method, **away} for method in ("PUT", "POST", "GET", "HEAD", "DELETE")))
    said = run(desk, "backup", code=3)
    assert "503 SlowDown" in said
    proxy.rules()
    assert [2, 1] == [copies for _, copies in listed(desk)]

    with psycopg.connect(desk.env["DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE added AS SELECT number, md5(number::text) FROM generate_series(1, 1000) AS number")
    said = run(desk, "backup")
    assert "and got it by copy" in said
    (second, copies), (third, copies_) = listed(desk)  # and the first was pruned
    assert ((2, 2), True) == ((copies, copies_), first not in (second, third))
    assert {second, third} == {backup.id for backup in Catalog.read("shop", [locked]).backups}
    assert "0 deleted, 2 stay" in run(desk, "prune")
    page = locked._connect().call("list_object_versions", Bucket=locked._bucket, Prefix=locked._place(f"shop/{first}/")["Key"])
    assert 1 == sum(".dump" in item["Key"] for item in page["Versions"])

    original = describe(desk.env["DATABASE_URL"])
    shutil.rmtree(desk.folder / "local")
    configure(desk, locked, ceph.url, local=False)
    del desk.env["DATABASE_URL"]
    assert [(second, 1), (third, 1)] == listed(desk)
    target = server17.database_url("from_the_bucket", socket=True)
    run(desk, "restore", "shop", "--identity", "key.txt", "--to-env", "TARGET", TARGET=target)
    try:
        assert original == describe(target)
    finally:
        with psycopg.connect(server17.socket_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE from_the_bucket WITH (FORCE)")
