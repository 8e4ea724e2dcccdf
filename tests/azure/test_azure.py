"""The general store with ``az://``: the conformance suite, the how-to's own lines by the command, and what goes wrong."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest

from pgsnap import ConfigError, Denied, FsspecStore, PgsnapError, Run, StoreError
from pgsnap.streams import drain
from pgsnap.testing import StoreConformance, StoreExamination
from pgsnap.testing.stores import ODD_KEYS
from pgsnap_postgres.server import Server, throwaway_server

HOW_TO = Path(__file__).parent.parent.parent / "docs" / "how-to" / "store-backups-elsewhere.md"
WRONG = base64.b64encode(b"canary of a wrong key").decode()


@pytest.fixture
def azure_store(account: Any, container: str) -> FsspecStore:
    """A store in an empty container."""
    return FsspecStore(url=f"az://{container}/pg backups", options={"connection_string": account.connection_string})


class TestAzure(StoreConformance):
    """All rules of a store."""

    odd_keys: ClassVar[tuple[str, ...]] = tuple(key for key in ODD_KEYS if not key.endswith("?"))
    """adlfs takes what follows a ``?`` for a query; see below."""

    @pytest.fixture
    def store(self, azure_store: FsspecStore) -> FsspecStore:
        return azure_store


class TestDoctor(StoreExamination):
    """What doctor says of it."""

    @pytest.fixture
    def store(self, azure_store: FsspecStore) -> FsspecStore:
        return azure_store


def test_a_key_that_would_be_another(azure_store: FsspecStore) -> None:
    """adlfs would write ``a?`` over ``a``: it is refused, and ``a`` is as it was."""
    azure_store.write("a", [b"x"])
    with pytest.raises(StoreError, match="would not take the key 'a\\?' literally"):
        azure_store.write("a?", [b"other"])
    with pytest.raises(StoreError, match="would not take the key 'a\\?' literally"):
        drain(azure_store.read("a?"))
    assert ["a?"] == list(azure_store.delete(["a?"]))
    assert b"x" == b"".join(azure_store.read("a"))


# --- what goes wrong ---------------------------------------------------------------------------------------------------


def works(store: FsspecStore) -> list[Callable[[], object]]:
    return [lambda: store.write("shop/a", [b"x"]), lambda: drain(store.read("shop/a")), lambda: list(store.entries())]


def test_a_wrong_key(account: Any, container: str) -> None:
    """It is the credentials, says one line; the key is in none."""
    text = account.connection_string.replace(account.key, WRONG)
    store = FsspecStore(url=f"az://{container}/x", options={"connection_string": text})
    for work in works(store):
        with pytest.raises(Denied, match="check the credentials and what they allow") as caught:
            work()
        assert "\n" not in str(caught.value)
        assert WRONG not in str(caught.value)
    refused = store.delete(["shop/a"])["shop/a"]
    assert "failed to authenticate" in refused
    assert "\n" not in refused
    assert WRONG not in refused + repr(store)


def test_a_container_that_is_missing(account: Any) -> None:
    """Writing says so in a line; doctor tells it beforehand, though a missing container lists as an empty one."""
    store = FsspecStore(url="az://missing/x", options={"connection_string": account.connection_string})
    with pytest.raises(StoreError, match="The specified container does not exist; check the URL") as caught:
        store.write("shop/a", [b"x"])
    assert "\n" not in str(caught.value)
    (finding,) = store.preflight(Run("shop"))
    assert ("warning", "missing is not there yet.") == (finding.level, finding.text)


@pytest.mark.parametrize("text", [f"canary={WRONG}", WRONG])
def test_a_connection_string_that_is_none(text: str) -> None:
    """Nothing is sent, and nothing of it is shown."""
    store = FsspecStore(url="az://container/x", options={"connection_string": text})
    for work in works(store):
        with pytest.raises(PgsnapError) as caught:
            work()
        assert isinstance(caught.value, ConfigError)
        assert str(caught.value).endswith("correct the URL or 'options'.")
        assert WRONG not in str(caught.value) + repr(store)


# --- by the command ----------------------------------------------------------------------------------------------------


def blocks() -> list[str]:
    """The how-to's TOML for Azure: by adlfs's own variable, and by a reference."""
    section = HOW_TO.read_text().partition("## Azure")[2].partition("\n## ")[0]
    return [block for block in re.findall(r"```text\n(.*?)```", section, re.DOTALL) if "az://" in block]


@pytest.fixture(scope="module")
def shop() -> Iterator[Server]:
    """A database of a few rows."""
    with throwaway_server() as server:
        with psycopg.connect(server.socket_url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE shop")
        with psycopg.connect(server.database_url("shop", socket=True)) as connection:
            connection.execute("CREATE TABLE item AS SELECT n, md5(n::text) AS name FROM generate_series(1, 5000) n")
        yield server


@pytest.mark.parametrize("number", [0, 1])
def test_the_how_to(account: Any, container: str, shop: Server, make_desk: Any, tmp_path: Path, number: int) -> None:
    """Backup, list, verify and restore by the command, with the lines of the how-to; the key is in nothing that is printed."""
    assert 2 == len(blocks())
    desk = make_desk(tmp_path)
    desk.configure(stores=())
    text = blocks()[number].replace("az://container/", f"az://{container}/")
    path = desk.folder / "pgsnap.toml"
    path.write_text(path.read_text() + text)
    variable = ("AZURE_STORAGE_CONNECTION_STRING", "SHOP_AZURE")[number]
    variables = {variable: account.connection_string, "DATABASE_URL": shop.database_url("shop", socket=True)}

    def run(*arguments: str) -> str:
        done = desk.run(*arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert account.key not in done.stdout + done.stderr
        return str(done.stdout)

    run("doctor")
    run("backup")
    listed = run("list", "--json")
    assert 1 == len(json.loads(listed)), listed
    assert f"az://{container}/pgsnap" in listed
    run("verify")
    target = f"copy{number}"
    run("restore", "shop", "--to", shop.database_url(target, socket=True))
    with psycopg.connect(shop.database_url(target, socket=True)) as connection:
        row = connection.execute("SELECT count(*), md5(string_agg(name, '' ORDER BY n)) FROM item").fetchone()
    with psycopg.connect(shop.database_url("shop", socket=True)) as connection:
        assert connection.execute("SELECT count(*), md5(string_agg(name, '' ORDER BY n)) FROM item").fetchone() == row
