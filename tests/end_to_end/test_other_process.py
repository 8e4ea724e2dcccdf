"""A pipeline of real components goes to another process, does its work there, and its report or error comes back."""

from __future__ import annotations

import multiprocessing
import operator
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

import pgsnap
from pgsnap_age import Age
from pgsnap_checksum import Checksum
from pgsnap_postgres import PgDump
from pgsnap_zstd import Zstd


@pytest.fixture
def pipeline(server17: Any, make_shop: Any, tmp_path: Path) -> pgsnap.Pipeline:
    """pg_dump of the sample shop, zstd, age and digests, into two stores."""
    key = tmp_path / "key.txt"
    return pgsnap.Pipeline(
        name="shop",
        dump=PgDump(url=make_shop(server17)),
        transforms=[Zstd(), Age(recipients=[Age.keygen(key)], identity_file=str(key)), Checksum()],
        stores=[str(tmp_path / "one"), str(tmp_path / "two")],
    )


def test_a_pipeline_runs_in_a_process_that_was_spawned(pipeline: pgsnap.Pipeline, server17: Any) -> None:
    """Backup, verification and restore, each by the pickled pipeline in a fresh interpreter; the reports come back whole."""
    assert pipeline == pickle.loads(pickle.dumps(pipeline))
    target = server17.database_url("from_elsewhere")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        report = pool.submit(operator.methodcaller("backup"), pipeline).result(60)
        verified = pool.submit(operator.methodcaller("verify", decode=True), pipeline).result(60)
        restored = pool.submit(operator.methodcaller("restore", to=target), pipeline).result(60)
    assert [0, "shop", 2] == [report.exit_code, report.pipeline, len(report.kept_in)]
    assert [report.id] == [backup.id for backup in pipeline.backups().backups]
    assert verified.ok
    assert report.id == restored.id
    assert isinstance(pipeline.dump, PgDump)
    assert pipeline.dump.url is not None
    count = "SELECT count(*), md5(string_agg(c::text, '|' ORDER BY c::text)) FROM customers c"
    with psycopg.connect(target) as copy, psycopg.connect(pipeline.dump.url.reveal()) as original:
        assert original.execute(count).fetchone() == copy.execute(count).fetchone()
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE from_elsewhere WITH (FORCE)")


def test_an_error_comes_back_as_it_was(pipeline: pgsnap.Pipeline, tmp_path: Path) -> None:
    """The same class and sentence, with its report, and without the password."""
    assert isinstance(pipeline.dump, PgDump)
    assert pipeline.dump.url is not None
    old = urlsplit(pipeline.dump.url.reveal())
    wrong = urlunsplit(old._replace(netloc=f"postgres:c4nary@{old.hostname}:{old.port}"))
    broken = pgsnap.Pipeline(name="shop", dump=PgDump(url=wrong), stores=[str(tmp_path / "three")])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(operator.methodcaller("backup"), broken)
        with pytest.raises(
            pgsnap.DumpError, match=r"password authentication failed.*; correct the user or the password"
        ) as caught:
            future.result(60)
    assert "the backup was not finished." == caught.value.report.stores[0].error
    assert "c4nary" not in repr(caught.value) + str(caught.value) + repr(caught.value.report)
    assert [] == list((tmp_path / "three").rglob("*.json"))
