"""What people get wrong, each as a call of the real command.

Every mistake ends in one sentence on stderr that names the thing, the value (never a secret) and the next step, in the exit code
that the documents promise, without a traceback; and it leaves nothing behind, in no store and on no server.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs
import psycopg
import pytest
from psycopg import sql

import pgsnap
from desk import Desk

AGE = '[[pipeline.shop.transform]]\nuse = "age"\nrecipients = ["{0}"]\n'
ZSTD = '[[pipeline.shop.transform]]\nuse = "zstd"\n'
PASSWORD = "c4nary-pass"


@attrs.define
class Shop:
    """A desk with an encrypted backup in two stores, and the URL of the database that it is of."""

    desk: Any
    url: str
    id: str
    server: Any

    def new_url(self, name: str = "shop_copy") -> str:
        """Return the URL of a database that is not there."""
        return str(self.server.database_url(name))

    def folder(self, store: str = "one") -> Path:
        """Return the backup's folder in a store."""
        return Path(self.desk.folder) / store / "shop" / self.id

    def restore(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Restore into TARGET, by default a database that is not there."""
        done: subprocess.CompletedProcess[str] = self.desk.run(
            "restore", "--to-env", "TARGET", *arguments, **{"TARGET": self.new_url(), **env}
        )
        return done


@pytest.fixture(scope="module")
def url(server17: Any) -> Iterator[str]:
    """A small database, with a table that the role ``plain`` may not read."""
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bad_input")
        connection.execute(sql.SQL("CREATE ROLE plain LOGIN PASSWORD {}").format(PASSWORD))
    url = server17.database_url("bad_input")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS code FROM generate_series(1, 5000) i")
        connection.execute("CREATE TABLE wages AS SELECT 1 AS one")
        connection.execute("GRANT SELECT ON orders TO plain")
    yield url
    with psycopg.connect(server17.socket_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE bad_input WITH (FORCE)")
        connection.execute("DROP ROLE plain")


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory, make_desk: Callable[[Path], Any], url: str) -> Any:
    """A desk with one encrypted backup, made once."""
    desk = make_desk(tmp_path_factory.mktemp("backed-up"))
    public = desk.run("keygen", "-o", "key.txt").stdout.strip()
    desk.configure(transforms=AGE.format(public), stores=("one", "two"))
    done = desk.run("backup", DATABASE_URL=url)
    assert 0 == done.returncode, done.stderr
    return desk


@pytest.fixture
def shop(desk: Desk, backed_up: Any, url: str, server17: Any) -> Shop:
    """A copy of it for one test to damage."""
    shutil.copytree(backed_up.folder, desk.folder, dirs_exist_ok=True)
    text = (desk.folder / "pgsnap.toml").read_text()
    (desk.folder / "pgsnap.toml").write_text(text.replace(str(backed_up.folder), str(desk.folder)))
    (backup,) = desk.committed("one")
    return Shop(desk, url, backup.name, server17)


def complaint(done: subprocess.CompletedProcess[str], code: int, *phrases: str) -> str:
    """Return the one sentence of a command that was refused; it holds the phrases in this order."""
    assert code == done.returncode, done.stdout + done.stderr
    seen = done.stdout + done.stderr
    assert "Traceback" not in seen
    assert "fault in pgsnap" not in seen
    assert PASSWORD not in seen
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert 1 == len(lines), done.stderr
    rest = lines[0]
    for phrase in phrases:
        assert phrase in rest, f"{phrase!r} is not in {lines[0]!r}, or too early"
        rest = rest.partition(phrase)[2]
    return lines[0]


@contextlib.contextmanager
def nothing_left(desk: Desk, *servers: Any) -> Iterator[None]:
    """What lies at the desk, and the databases and roles of the servers, are afterwards what they were."""

    def look() -> object:
        files = {
            str(path.relative_to(desk.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in desk.folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("verify-")  # their records
        }
        names = []
        for server in servers:
            with psycopg.connect(server.socket_url) as connection:
                for query in ("SELECT datname FROM pg_database ORDER BY 1", "SELECT rolname FROM pg_roles ORDER BY 1"):
                    names.append(connection.execute(query).fetchall())
        return files, names

    before = look()
    yield
    assert before == look()


def changed(url: str, **parts: str | int) -> str:
    """Return a URL with another user, password, host, port or database."""
    old = urlsplit(url)
    user, password = parts.get("user", old.username), parts.get("password", old.password)
    host, port = parts.get("host", old.hostname), parts.get("port", old.port)
    return urlunsplit(old._replace(netloc=f"{user}:{password}@{host}:{port}", path=f"/{parts.get('dbname', old.path[1:])}"))


# --- the command line and the configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["backup", "--encrypt"], ["no such option", "'--encrypt'", "see 'pgsnap backup --help'"]),
        (["bakup"], ["no such command 'bakup'", "Did you mean 'backup'", "see 'pgsnap --help'"]),
        (["--log-format", "xml", "list"], ["'--log-format'", "'xml' is not one of 'text', 'json'", "see 'pgsnap --help'"]),
        (["restore", "--jobs", "0"], ["'--jobs'", "0 is not in the range", "see 'pgsnap restore --help'"]),
        (["restore", "--section", "middle"], ["'--section'", "'middle' is not one of", "'pre-data'", "see 'pgsnap restore"]),
        (["keygen"], ["missing option '--output'", "see 'pgsnap keygen --help'"]),
        (["restore"], ["say where to restore", "--to URL", "--to-env NAME"]),
        (["restore", "--to", "postgresql:///x", "--to-env", "X"], ["one of these", "--to URL", "--to-env NAME"]),
        (["restore", "--to-env", "NOPE"], ["--to-env NOPE", "not set", "put the URL"]),
        (["restore", "--to", f"postgresql://a:{PASSWORD}@h/d"], ["--to holds a password", "use --to-env NAME"]),
        (["restore", "--to", "mysql://h/d"], ["scheme 'mysql'", "write it like postgresql://"]),
        (["restore", "--to", "postgresql:///x", "--replace", "y"], ["--replace 'y'", "type 'x'"]),
        (["backup", "shopp"], ["no pipeline 'shopp'", "the configuration has shop"]),
        (["list", "shopp"], ["no pipeline 'shopp'", "the configuration has shop"]),
        (["-c", "other.toml", "list"], ["--config names other.toml", "not there", "pgsnap init"]),
        (["keygen", "zstd", "-o", "new.txt"], ["'zstd' has no keys"]),
        (["verify", "--identity", "nokey.txt"], ["--identity nokey.txt", "no such file", "pgsnap keygen"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line(desk: Desk, arguments: list[str], phrases: list[str]) -> None:
    """Exit code 2, and nothing was looked at."""
    desk.configure()
    with nothing_left(desk):
        complaint(desk.run(*arguments, DATABASE_URL="postgresql:///shop"), 2, *phrases)


def test_a_wrong_command_line_is_json_where_lines_are(desk: Desk) -> None:
    """Whoever reads the lines by a program can read this one too."""
    done = desk.run("--log-format", "json", "backup", "--encrypt")
    assert 2 == done.returncode
    assert "error" == json.loads(done.stderr)["level"]


@pytest.mark.parametrize(
    ("dump", "phrases"),
    [
        ('formt = "plain"', ["pgsnap.toml: pipeline.shop.dump (pg_dump)", "unknown option 'formt'", "Did you mean 'format'?"]),
        ('format = "fancy"', ["option 'format'", "one of 'custom', 'plain'", "got 'fancy'"]),
        ('large_objects = "no"', ["option 'large_objects'", "wants true or false", "got text 'no'"]),
        ("tables = 3", ["option 'tables'", "wants", "got a whole number 3"]),
        ('compress = "zstd:99"', ["compress = 'zstd:99'", "it goes from 1 to 22"]),
        ("lock_timeout = 0", ["lock_timeout = 0", "0.1 to 86400"]),
        ('bindir = "/dev/null/nothing/bin"', ["'bindir' names '/dev/null/nothing/bin'", "does not exist", "give the folder"]),
    ],
)
def test_a_wrong_option_in_the_file(desk: Desk, url: str, server17: Any, dump: str, phrases: list[str]) -> None:
    """The sentence has file, path, value and what to write."""
    desk.configure(dump=dump)
    with nothing_left(desk, server17):
        complaint(desk.run("backup", DATABASE_URL=url), 2, *phrases)


def test_all_mistakes_of_a_file_are_told_at_once(desk: Desk) -> None:
    """One line each."""
    desk.configure(dump='formt = "x"\nlarge_objects = "no"', more='quorum = "two"', transforms=ZSTD + "levle = 3\n")
    done = desk.run("backup", DATABASE_URL="postgresql:///x")
    assert 2 == done.returncode
    found = [line for line in done.stderr.splitlines() if line.startswith("error: pgsnap.toml: pipeline.shop")]
    assert 4 == len(found) == len(done.stderr.splitlines())
    for phrase in ("'formt'", "'large_objects'", "'quorum'", "'levle'"):
        assert any(phrase in line for line in found)


def test_toml_that_is_none(desk: Desk) -> None:
    """The line and the column are named."""
    (desk.folder / "pgsnap.toml").write_text("[pipeline.shop\n")
    complaint(desk.run("list"), 2, "pgsnap.toml: line 1", "correct the TOML")


@pytest.mark.parametrize(("env", "said"), [({}, "not set"), ({"DATABASE_URL": ""}, "empty")])
def test_a_missing_variable(desk: Desk, env: dict[str, str], said: str) -> None:
    """It is named, and whether it is unset or empty; what needs no database works all the same."""
    desk.configure()
    with nothing_left(desk):
        complaint(desk.run("backup", **env), 2, "pipeline.shop.dump", "'url'", "DATABASE_URL", said, "set it")
    assert 0 == desk.run("list", **env).returncode


def test_no_configuration_at_all(desk: Desk) -> None:
    """It says where it looked, and the two ways to make one."""
    complaint(desk.run("backup"), 2, "no configuration", "pgsnap.toml", "DATABASE_URL", "pgsnap init", "set DATABASE_URL")


def test_an_unreadable_public_key(desk: Desk, url: str, server17: Any) -> None:
    """A file of recipients that is not there; and one with a private key in it, which is not shown."""
    transform = '[[pipeline.shop.transform]]\nuse = "age"\nrecipients_file = "keys.txt"\n'
    desk.configure(transforms=transform)
    with nothing_left(desk, server17):
        complaint(desk.run("backup", DATABASE_URL=url), 2, "recipients_file", "keys.txt", "No such file", "correct the path")
    desk.run("keygen", "-o", "keys.txt")
    secret = (desk.folder / "keys.txt").read_text().split()[-1]
    with nothing_left(desk, server17):
        text = complaint(desk.run("backup", DATABASE_URL=url), 2, "is a private key (not shown)", "put its public key there")
    assert secret not in text


# --- what is not installed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "phrases"),
    [
        ("gopher", ["gopher://host/x", "the scheme 'gopher'", "install the plugin"]),
        ("sftpp", ["sftpp://host/x", "the scheme 'sftpp'", "Did you mean 'sftp'?"]),
    ],
)
def test_an_unknown_scheme(desk: Desk, scheme: str, phrases: list[str]) -> None:
    """The URL and its scheme are named, without the password in it."""
    desk.configure()
    text = (desk.folder / "pgsnap.toml").read_text()
    text = text.replace(str(desk.folder / "two"), f"{scheme}://user:{PASSWORD}@host/x")
    (desk.folder / "pgsnap.toml").write_text(text)
    with nothing_left(desk):
        complaint(desk.run("backup", DATABASE_URL="postgresql:///x"), 2, "pipeline.shop.store[1]", *phrases)


@pytest.fixture
def without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Make an environment in which packages cannot be imported, or plugins are not installed."""

    def make(*packages: str, plugins: tuple[str, ...] = ()) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("without")
        (folder / "sitecustomize.py").write_text(f"""
import importlib.metadata, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == package or name.startswith(package + ".") for package in {packages!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
found = importlib.metadata.entry_points

def entry_points(**wanted):
    return [point for point in found(**wanted) if point.name not in {plugins!r}]

if {plugins!r}:
    importlib.metadata.entry_points = entry_points
""")
        return {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}

    return make


def test_a_plugin_that_is_not_installed(desk: Desk, without: Any) -> None:
    """Ours is named with the command that installs it; one that is switched off, with the variable that does so."""
    desk.configure(transforms=ZSTD)
    env = {"DATABASE_URL": "postgresql:///x"}
    with nothing_left(desk):
        done = desk.run("backup", **env, **without(plugins=("zstd",)))
        complaint(done, 2, "pipeline.shop.transform[0] (zstd)", "not installed", "pip install ./plugins/pgsnap-zstd")
        done = desk.run("backup", **env, PGSNAP_DISABLE_PLUGINS="zstd")
        complaint(done, 2, "pipeline.shop.transform[0] (zstd)", "take it out of PGSNAP_DISABLE_PLUGINS")


@pytest.mark.parametrize(
    ("package", "plugin"), [("pyrage", "pgsnap-age"), ("psycopg", "pgsnap-postgres"), ("backports.zstd", "pgsnap-zstd")]
)
def test_a_plugin_without_a_package_that_it_needs(
    desk: Desk, url: str, server17: Any, without: Any, package: str, plugin: str
) -> None:
    """The plugin, the package and the command that installs it; and what was begun is taken away again."""
    age = AGE.format("age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p")
    transforms = {"pgsnap-age": age, "pgsnap-zstd": ZSTD}.get(plugin, "")
    desk.configure(transforms=transforms, dump='compress = "none"')
    name = package.rpartition(".")[2]
    with nothing_left(desk, server17):
        done = desk.run("backup", DATABASE_URL=url, **without(package))
        complaint(done, 2, f"{plugin} needs a package", name, f"pip install ./plugins/{plugin}")


def test_a_store_without_its_package(desk: Desk, without: Any) -> None:
    """fsspec knows the scheme, but not without a library."""
    desk.configure()
    text = (desk.folder / "pgsnap.toml").read_text().replace(str(desk.folder / "two"), "az://container/x")
    (desk.folder / "pgsnap.toml").write_text(text)
    done = desk.run("backup", DATABASE_URL="postgresql:///x", **without("adlfs"))
    complaint(done, 2, "az://container/x", "needs a package that is not installed", "adlfs", "pip")


# --- the database that is backed up --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        ({"dbname": "nowhere"}, ["nowhere at 127.0.0.1", 'database "nowhere" does not exist', "correct the database's name"]),
        (
            {"password": PASSWORD},
            ["bad_input at 127.0.0.1", "password authentication failed", "correct the user or the password"],
        ),
        ({"user": "nobody"}, ["as nobody", "failed", "correct the user"]),
        ({"port": 1}, ["bad_input at 127.0.0.1:1 ", "Connection refused", "check the host and the port"]),
        ({"host": "db.invalid"}, ["bad_input at db.invalid", "resolve", "correct the host"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_database_that_cannot_be_reached(
    desk: Desk, url: str, server17: Any, change: dict[str, Any], phrases: list[str]
) -> None:
    """Backup and doctor say where they went, what was answered, and what to correct."""
    desk.configure(stores=("one",))
    wrong = changed(url, **change)
    with nothing_left(desk, server17):
        text = complaint(desk.run("backup", DATABASE_URL=wrong), 1, "cannot connect to", *phrases)
        done = desk.run("doctor", "--json", DATABASE_URL=wrong)
    assert 1 == done.returncode
    (finding,) = [item for item in json.loads(done.stdout) if item["level"] == "error"]
    assert text.partition("; ")[2] in finding["text"] + finding["remedy"]
    assert str(urlsplit(url).password) not in text + done.stdout + done.stderr


def fake_clients(folder: Path, version: str) -> Path:
    """Programs that say that they are of this version, and do nothing else."""
    folder.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} (PostgreSQL) {version}"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def test_a_client_that_is_older_than_the_server(desk: Desk, url: str, server17: Any, tmp_path: Path) -> None:
    """pg_dump refuses newer servers: both versions and the folder are named, and doctor finds it before the night does."""
    folder = fake_clients(tmp_path / "bin14", "14.20")
    desk.configure(dump=f'bindir = "{folder}"')
    phrases = ["server is PostgreSQL 17", "pg_dump", "is 14.20", str(folder), "correct the option 'bindir', or leave it out"]
    with nothing_left(desk, server17):
        complaint(desk.run("backup", DATABASE_URL=url), 2, *phrases)
        done = desk.run("doctor", DATABASE_URL=url)
    assert 1 == done.returncode
    assert f"is 14.20 in {folder}" in done.stdout


def test_a_real_client_that_is_older_than_the_server(desk: Desk, server17: Any, server18: Any) -> None:
    """The programs of 17 are not used with a server of 18."""
    desk.configure(dump=f'bindir = "{server17.bindir}"')
    with nothing_left(desk, server18):
        done = desk.run("backup", DATABASE_URL=server18.url)
        complaint(done, 2, "server is PostgreSQL 18", "is 17.", str(server17.bindir), "cannot be used with a newer server")


def test_no_permission_on_one_table(desk: Desk, url: str, server17: Any) -> None:
    """The role, the table, what it lacks and both ways out; not a dump without the table."""
    desk.configure()
    plain = changed(url, user="plain", password=PASSWORD)
    with nothing_left(desk, server17):
        done = desk.run("backup", DATABASE_URL=plain)
        complaint(done, 1, "role 'plain'", "public.wages", "SELECT", "GRANT", "exclude_tables")
        done = desk.run("doctor", DATABASE_URL=plain)
    assert 1 == done.returncode
    assert re.search(r"NO .*public\.wages.*plain lacks SELECT.*GRANT", done.stdout)
    desk.configure(dump='exclude_tables = ["wages"]')
    assert 0 == desk.run("backup", DATABASE_URL=plain).returncode


# --- what is restored, and where -----------------------------------------------------------------------------------------


def test_a_target_that_is_not_empty(shop: Shop) -> None:
    """It is left alone, by the command and by Python, and the sentence has the word for each of them."""
    with nothing_left(shop.desk, shop.server):
        done = shop.restore("--identity", "key.txt", TARGET=shop.url)
        complaint(done, 1, "'bad_input' is not empty", "2 tables", "under another name", "force", "--replace 'bad_input'")
        from pgsnap_age import Age
        from pgsnap_postgres import PgDump

        pipeline = pgsnap.Pipeline(
            name="shop",
            dump=PgDump(),
            transforms=[Age(identity_file=str(shop.desk.folder / "key.txt"))],
            stores=[str(shop.desk.folder / "one")],
        )
        with pytest.raises(pgsnap.RestoreError, match=r"'bad_input' is not empty: it has 2 tables; .* with force"):
            pipeline.restore(to=shop.url)


def test_a_role_that_may_not_make_the_target(shop: Shop) -> None:
    """Both ways out are named."""
    target = changed(shop.new_url(), user="plain", password=PASSWORD)
    with nothing_left(shop.desk, shop.server):
        done = shop.restore("--identity", "key.txt", TARGET=target)
        complaint(done, 1, "no database 'shop_copy'", "role 'plain' may not create one", "CREATEDB", "empty database")


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        ({"password": PASSWORD}, ["password authentication failed", "correct the user or the password"]),
        ({"port": 1}, ["127.0.0.1:1 ", "Connection refused", "check the host and the port"]),
    ],
    ids=["password", "port"],
)
def test_a_target_that_cannot_be_reached(shop: Shop, change: dict[str, Any], phrases: list[str]) -> None:
    """As for a backup."""
    with nothing_left(shop.desk, shop.server):
        done = shop.restore("--identity", "key.txt", TARGET=changed(shop.new_url(), **change))
        complaint(done, 1, "cannot connect to", *phrases)


@pytest.mark.parametrize(
    ("arguments", "code", "phrases"),
    [
        (["--backup", "20200101"], 1, ["'shop' has no backup '20200101'", "pgsnap list"]),
        (["--backup", "2020-01-01"], 1, ["'shop' has no backup from 2020-01-01", "the oldest is"]),
        (["--backup", "soon"], 2, ["'soon' is no backup", "'latest', an id, or a time such as"]),
        (["--table", "order"], 1, ["no table 'order'", "did you mean 'public.orders'?"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_something_that_the_backup_has_not(shop: Shop, arguments: list[str], code: int, phrases: list[str]) -> None:
    """What there is instead is named, or where to look for it."""
    with nothing_left(shop.desk, shop.server):
        complaint(shop.restore("--identity", "key.txt", *arguments), code, *phrases)


def test_the_wrong_key(shop: Shop) -> None:
    """Verify and restore name the key that is needed; neither private key is shown."""
    public = re.findall(r"age1\w+", (shop.desk.folder / "pgsnap.toml").read_text())[0]
    shop.desk.run("keygen", "-o", "other.txt")
    phrases = ["none of the private keys in the file other.txt", public, "--identity"]
    with nothing_left(shop.desk, shop.server):
        done = [shop.restore("--identity", "other.txt"), shop.desk.run("verify", "--decode", "--identity", "other.txt")]
        for each in done:
            assert "AGE-SECRET-KEY" not in complaint(each, 1, *phrases)


def test_no_key(shop: Shop) -> None:
    """It is said which one is needed, and the ways to give it."""
    phrases = ["encrypted and no private key was given", "age1", "--identity", "PGSNAP_AGE_IDENTITY", "identity_file"]
    with nothing_left(shop.desk, shop.server):
        complaint(shop.restore(), 1, *phrases)


@pytest.mark.parametrize(
    ("key", "code", "phrases"),
    [
        ("nokey.txt", 2, ["--identity nokey.txt", "no such file", "give the file"]),
        (".", 2, ["--identity .", "no such file", "give the file"]),
        ("/proc/self/mem", 1, ["/proc/self/mem", "cannot be read: Input/output error", "--identity"]),
        ("pgsnap.toml", 1, ["line 1 of the file pgsnap.toml", "not a private key", "(not shown)", "--identity"]),
    ],
)
def test_an_unreadable_private_key(shop: Shop, key: str, code: int, phrases: list[str]) -> None:
    """The file is named, and what is wrong with it."""
    with nothing_left(shop.desk, shop.server):
        complaint(shop.restore("--identity", key), code, *phrases)


# --- damaged and foreign folders -----------------------------------------------------------------------------------------


def test_a_backup_that_is_cut_short_everywhere(shop: Shop) -> None:
    """Exit code 4: each store's damage is told, verify says what to do, and a restore leaves nothing."""
    for store in ("one", "two"):
        with (shop.folder(store) / "bad_input.dump.age").open("r+b") as file:
            file.truncate(1000)
    with nothing_left(shop.desk, shop.server):
        done = shop.restore("--identity", "key.txt")
        complaint(done, 4, "bad_input.dump.age ends after 1000 of", "The target is as it was", "pgsnap verify --all", "--backup")
        done = shop.desk.run("verify")
    assert 4 == done.returncode
    assert 2 == done.stderr.count("error: ")
    assert "No store has it whole: run 'pgsnap backup shop' now" in done.stderr


def test_a_backup_that_is_damaged_in_one_store(shop: Shop) -> None:
    """Verify names the store and the byte range, and the way to mend it, which works."""
    path = shop.folder("two") / "bad_input.dump.age"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    done = shop.desk.run("verify")
    complaint(done, 4, "two", "bad_input.dump.age is damaged between bytes 0 and")
    way = f"verify shop --backup {shop.id} --repair"
    assert f"one has it whole; run: pgsnap {way}" in done.stderr
    assert 3 == shop.desk.run(*way.split()).returncode  # done, and somebody should look at that disk
    assert data != path.read_bytes()
    assert 0 == shop.desk.run("verify").returncode


def test_a_missing_object(shop: Shop) -> None:
    """An object that somebody removed from every store is told apart from a network that fails."""
    for store in ("one", "two"):
        (shop.folder(store) / "bad_input.dump.age").unlink()
    with nothing_left(shop.desk, shop.server):
        done = shop.desk.run("verify")
        assert 4 == done.returncode
        assert 2 == len([line for line in done.stderr.splitlines() if "bad_input.dump.age" in line])
        done = shop.restore("--identity", "key.txt")
        assert done.returncode in (1, 4)
        assert "bad_input.dump.age" in complaint(done, done.returncode)


def rewrite(shop: Shop, change: Callable[[bytes], bytes]) -> None:
    """Change the manifest in both stores."""
    for store in ("one", "two"):
        path = shop.folder(store) / "manifest.json"
        path.write_bytes(change(path.read_bytes()))


MANIFESTS = {
    "future": (lambda data: data.replace(b'"format": 1', b'"format": 2'), ["is of format 2", "knows format 1", "RECOVER.txt"]),
    "foreign": (lambda data: b'{"name": "shop", "version": 3}', ["not a manifest of pgsnap", "another store's copy"]),
    "torn": (lambda data: data[:-100], ["not valid JSON", "another store's copy"]),
    "list": (lambda data: b"[1]", ["not a manifest of pgsnap", "another store's copy"]),
    "bad": (lambda data: data.replace(b'"sha256": "', b'"sha256": "x'), ["is damaged", "sha256", "another store's copy"]),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_cannot_be_understood(shop: Shop, kind: str) -> None:
    """Of a future format, somebody else's, or damaged: show and restore say so with exit code 4, and nothing is changed."""
    change, phrases = MANIFESTS[kind]
    rewrite(shop, change)
    with nothing_left(shop.desk, shop.server):
        complaint(shop.desk.run("show"), 4, f"one: shop/{shop.id}/manifest.json", *phrases)
        complaint(shop.restore("--identity", "key.txt"), 4, f"one: shop/{shop.id}/manifest.json", *phrases)
        assert 4 == shop.desk.run("verify").returncode
        assert 0 == shop.desk.run("list").returncode


def test_a_folder_that_was_renamed(shop: Shop) -> None:
    """A backup under another id is not taken for that one."""
    for store in ("one", "two"):
        shop.folder(store).rename(shop.folder(store).with_name("20990101T000000Z-abcd"))
    with nothing_left(shop.desk, shop.server):
        done = shop.restore("--identity", "key.txt")
        complaint(done, 4, "20990101T000000Z-abcd/manifest.json belongs to the backup", shop.id, "move it back")


def test_a_folder_of_other_things(desk: Desk, url: str, server17: Any) -> None:
    """A store full of other people's files has no backup; they are neither listed nor touched."""
    desk.configure()
    for name in ("shop/photo.jpg", "shop/20260101T000000Z-abcd/photo.jpg", "shop/manifest.json", "manifest.json", "x/y/z"):
        path = desk.folder / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with nothing_left(desk, server17):
        done = desk.run("list")
        assert 0 == done.returncode
        assert "no backup yet" in done.stdout
        for arguments in (["show"], ["verify"], ["restore", "--to-env", "TARGET"]):
            done = desk.run(*arguments, TARGET=server17.database_url("never"))
            complaint(done, 1, "'shop' has no backup in", str(desk.folder / "one"), "check the name and the stores' URLs")
    before = {path: path.read_text() for path in desk.files("one")}
    assert 0 == desk.run("backup", DATABASE_URL=url).returncode
    assert before == {path: path.read_text() for path in before}


def test_a_store_that_cannot_be_written(desk: Desk, url: str, server17: Any) -> None:
    """A file where the store's folder should be: the store and the reason are named, and no dump is left behind."""
    desk.configure(stores=("one",))
    (desk.folder / "one").write_text("I am a file")
    with nothing_left(desk, server17):
        done = desk.run("backup", DATABASE_URL=url)
        complaint(done, 1, "no store is left", str(desk.folder / "one"), "give a directory")
    assert ["one", "pgsnap.toml"] == sorted(os.listdir(desk.folder))
