"""The pipeline of the environment alone, and the file that init writes: the same thing twice."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import attrs
import pytest

from idle import IdleDumper, IdleNotifier, IdleTransform
from pgsnap import (
    ConfigError,
    Dumper,
    FsspecStore,
    LocalStore,
    Notifier,
    Pipeline,
    RetentionPolicy,
    Secret,
    Transform,
    hookimpl,
)
from pgsnap.components.contracts import Store
from pgsnap.components.registry import Registry
from pgsnap.config import ROLES, Config, init_toml, load
from pgsnap.config.environment import describe_environment
from pgsnap.stores import builtin

URL = "postgresql://shop:hunter22-canary@db.example/shop"


@attrs.frozen(kw_only=True)
class PgDump(IdleDumper):
    name: ClassVar[str] = "pg_dump"
    url: Secret | None = None


@attrs.frozen(kw_only=True)
class Gzip(IdleTransform):
    name: ClassVar[str] = "gzip"


@attrs.frozen(kw_only=True)
class Age(IdleTransform):
    name: ClassVar[str] = "age"
    recipients: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Checksum(IdleTransform):
    name: ClassVar[str] = "checksum"
    algorithm: str


@attrs.frozen(kw_only=True)
class Slack(IdleNotifier):
    name: ClassVar[str] = "slack"
    webhook: Secret


@attrs.frozen(kw_only=True)
class Email(IdleNotifier):
    name: ClassVar[str] = "email"
    to: tuple[str, ...]
    server: str
    port: int = 25
    username: str = ""
    password: Secret | None = None
    sender: str = ""


@attrs.frozen(kw_only=True)
class Webhook(IdleNotifier):
    name: ClassVar[str] = "webhook"
    preset: str
    url: Secret


@attrs.frozen(kw_only=True)
class Bucket(FsspecStore):
    name: ClassVar[str] = "bucket"
    schemes: ClassVar[tuple[str, ...]] = ("s3", "gs")


class Plugins:
    """Stand-ins with the names and the options of our own plugins."""

    @hookimpl
    def pgsnap_dumpers(self) -> Sequence[type[Dumper]]:
        return [PgDump]

    @hookimpl
    def pgsnap_transforms(self) -> Sequence[type[Transform]]:
        return [Gzip, Age, Checksum]


class Later:
    """Those that need not be installed."""

    @hookimpl
    def pgsnap_stores(self) -> Sequence[type[Store]]:
        return [Bucket]

    @hookimpl
    def pgsnap_notifiers(self) -> Sequence[type[Notifier]]:
        return [Slack, Email, Webhook]


@pytest.fixture
def registry() -> Registry:
    return Registry([("core", builtin), ("plugins", Plugins()), ("later", Later())])


@pytest.fixture
def pipeline(tmp_path: Path, registry: Registry) -> Callable[..., Pipeline]:
    """Return the one pipeline of an environment."""

    def of(environ: Mapping[str, str], **more: object) -> Pipeline:
        (pipeline,) = load(registry=registry, environ=environ, directory=tmp_path, **more).pipelines.values()  # type: ignore[arg-type]
        return pipeline

    return of


EVERYTHING = {
    "HOME": "/home/me",
    "DATABASE_URL": URL,
    "PGSNAP_NAME": "my-shop",
    "PGSNAP_DIR": "/var/backups/pgsnap",
    "PGSNAP_AGE_RECIPIENTS": "age1abc, ssh-ed25519 AAAA me@host",
    "AWS_S3_BACKUP_BUCKET": "my-bucket",
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": "aws-canary",
    "GCS_BACKUP_BUCKET": "other-bucket/folder/",
    "SLACK_WEBHOOK_URL": "https://hooks.example/slack-canary",
    "ADMIN_EMAIL": "me@example.org, you@example.org",
    "SMTP_SERVER": "smtp.example",
    "SMTP_PORT": "587",
    "SMTP_USERNAME": "me",
    "SMTP_PASSWORD": "smtp-canary",
    "SMTP_SENDER": "pgsnap@example.org",
    "HEALTHCHECKS_URL": "https://hc.example/ping-canary",
}


def test_everything_that_a_hosted_project_may_have(pipeline: Callable[..., Pipeline]) -> None:
    """Every variable has its part, in the order of the bytes: compressed, encrypted, then checksums of what is stored."""
    found = pipeline(EVERYTHING)
    assert ("my-shop", PgDump(url=Secret(URL))) == (found.name, found.dump)
    assert (
        Gzip(),
        Age(recipients=("age1abc", "ssh-ed25519 AAAA me@host")),
        Checksum(algorithm="md5"),
        Checksum(algorithm="sha256"),
    ) == found.transforms
    assert (
        LocalStore(url="/var/backups/pgsnap", keep=RetentionPolicy(daily=7)),
        Bucket(url="s3://my-bucket"),
        Bucket(url="gs://other-bucket/folder"),
    ) == found.stores
    to = ("me@example.org", "you@example.org")
    assert (
        Slack(webhook=Secret("https://hooks.example/slack-canary")),
        Email(
            to=to,
            server="smtp.example",
            port=587,
            username="me",
            password=Secret("smtp-canary"),
            sender="pgsnap@example.org",
        ),
        Webhook(preset="healthchecks", url=Secret("https://hc.example/ping-canary")),
    ) == found.notifiers


def test_a_database_url_is_enough(pipeline: Callable[..., Pipeline]) -> None:
    """The name is the database's, and the local directory the user's data folder."""
    shop = pipeline({"DATABASE_URL": URL, "HOME": "/home/me"})
    assert "shop" == shop.name
    assert (Gzip(), Checksum(algorithm="md5"), Checksum(algorithm="sha256")) == shop.transforms
    assert (LocalStore(url="/home/me/.local/share/pgsnap", keep=RetentionPolicy(daily=7)),) == shop.stores
    assert () == shop.notifiers


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://u@h/shop", "shop"),
        ("postgres://u@h:5432/shop?sslmode=require", "shop"),
        ("postgresql://h/my%20shop", "my_shop-21e02318"),
        ("postgresql://me:x@h", "me"),
        ("postgresql://me@h/?dbname=shop", "shop"),
        ("host=h dbname=shop password='a b'", "shop"),
        ("host=h dbname='the shop'", "the_shop-9965c668"),
        ("host=h user=me", "me"),
    ],
)
def test_the_name_is_the_databases(url: str, name: str) -> None:
    """As libpq finds it, made fit for a folder."""
    assert name == describe_environment({"DATABASE_URL": url, "HOME": "/h"}).name


@pytest.mark.parametrize(
    "pasted",
    [
        "DATABASE_URL=postgresql://u:hunter22-canary@h/x",
        "export DATABASE_URL='postgresql://u:hunter22-canary@h/x'",
        "psql postgresql://u:hunter22-canary@h/x",
        "psql 'host=h password=hunter22-canary'",
        "postgresql://u:hunter22/canary@h/x",
        "postgresql://u:hunter22#canary@h/x",
        "postgresql://u:hunter22?dbname=canary@h/x",
        "Host=h;Username=u;Password=hunter22-canary;Database=x",
        "mysql://u:p@h/hunter22-canary",
        "hunter22-canary",
        "password=hunter22-canary",
    ],
)
def test_what_is_not_understood_gives_no_name(pasted: str) -> None:
    """The name is a folder in every store, and no folder is called like a password."""
    with pytest.raises(ConfigError, match="the pipeline has no name") as caught:
        describe_environment({"DATABASE_URL": pasted, "HOME": "/h"})
    assert "canary" not in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("paste", ["{}", "'{}'", '"{}"', " {}\n", "X={}"])
@pytest.mark.parametrize("secret", ['{"private_key": "hunter22-canary"', "eyJwcml2YXRlX2tleSI6Imh1bnRlcjIyLWNhbmFyeSJ9"])
def test_pasted_credentials_are_not_shown(paste: str, secret: str) -> None:
    """Whether they are JSON in quotes, half of it, or base64: only what looks like a path is repeated."""
    environ = {"DATABASE_URL": URL, "HOME": "/h", "GCS_BACKUP_BUCKET": "b"}
    with pytest.raises(ConfigError) as caught:
        describe_environment({**environ, "GOOGLE_APPLICATION_CREDENTIALS": paste.format(secret)})
    assert secret[4:30] not in str(caught.value)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value)


@pytest.mark.parametrize("paste", ["{}", "'{}'", " '{}'\n", '"{}"'])
def test_json_in_quotes_is_understood(paste: str) -> None:
    """An env file may keep the quotes that somebody wrote around it."""
    environ = {"DATABASE_URL": URL, "HOME": "/h", "GCS_BACKUP_BUCKET": "b"}
    made = describe_environment({**environ, "GOOGLE_APPLICATION_CREDENTIALS": paste.format('{"type": "service_account"}')})
    assert "gs://b" == made.document["pipeline"]["shop"]["store"][1]["url"]


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"HOME": "/home/me"}, "/home/me/.local/share/pgsnap"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": "/data"}, "/data/pgsnap"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": "relative"}, "/home/me/.local/share/pgsnap"),
        ({"HOME": "/home/me", "PGSNAP_DIR": "~/backups"}, "/home/me/backups"),
        ({"PGSNAP_DIR": "backups"}, f"{Path.cwd()}/backups"),
        ({"PGSNAP_DIR": "file:///backups"}, "file:///backups"),
    ],
)
def test_the_local_directory_is_absolute(environ: dict[str, str], directory: str) -> None:
    """Cron starts in another directory than a person."""
    made = describe_environment({"DATABASE_URL": URL, **environ})
    assert directory == made.document["pipeline"]["shop"]["store"][0]["url"]


def test_the_notes_name_variables_and_no_values() -> None:
    """doctor shows which variable made which part."""
    made = describe_environment(EVERYTHING)
    assert {
        "DATABASE_URL", "PGSNAP_NAME", "PGSNAP_DIR", "PGSNAP_AGE_RECIPIENTS", "AWS_S3_BACKUP_BUCKET", "GCS_BACKUP_BUCKET",
        "SLACK_WEBHOOK_URL", "ADMIN_EMAIL", "HEALTHCHECKS_URL",
    } == {note.subject for note in made.notes}  # fmt: skip
    assert "canary" not in repr(made.notes)
    (warning,) = [note for note in describe_environment({"DATABASE_URL": URL, "HOME": "/h"}).notes if note.level == "warning"]
    assert "PGSNAP_AGE_RECIPIENTS" == warning.subject


def test_an_address_without_a_mail_server_is_only_noted() -> None:
    """Hosted projects have ADMIN_EMAIL for other reasons."""
    made = describe_environment({"DATABASE_URL": URL, "HOME": "/h", "ADMIN_EMAIL": "me@example.org"})
    assert "notify" not in made.document["pipeline"]["shop"]
    assert ("warning", "gets no e-mail, because SMTP_SERVER is not set.") == (made.notes[-1].level, made.notes[-1].text)


def problems_of(environ: Mapping[str, str], registry: Registry, directory: Path, roles: Sequence[str] = ROLES) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(registry=registry, environ={"HOME": "/h", **environ}, directory=directory, roles=roles)  # type: ignore[arg-type]
    assert "canary" not in str(caught.value)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"PGSNAP_DIR": "/x"}, "environment: DATABASE_URL is not set; set it to postgresql://USER:PASSWORD@HOST/DATABASE."),
        (
            {"DATABASE_URL": "postgresql://:hunter22-canary@h"},
            "environment: the pipeline has no name: DATABASE_URL does not name a "
            "database that can be read from it, and PGSNAP_NAME is not set; set PGSNAP_NAME.",
        ),
        (
            {"DATABASE_URL": URL, "PGSNAP_NAME": "a/b"},
            "environment: pipeline.a/b: the pipeline's name 'a/b' cannot be used: begin "
            "with a letter or digit and use at most 100 of A-Z a-z 0-9 . _ -",
        ),
        (
            {"DATABASE_URL": URL, "PGSNAP_DIR": "s3://b"},
            "environment: PGSNAP_DIR wants a directory, not a URL; for other stores write a file with 'pgsnap init'.",
        ),
        (
            {"DATABASE_URL": URL, "AWS_S3_BACKUP_BUCKET": "b", "AWS_ACCESS_KEY_ID": "k"},
            "environment: AWS_ACCESS_KEY_ID is set "
            "without AWS_SECRET_ACCESS_KEY; set both, or neither where the machine has a role.",
        ),
        (
            {"DATABASE_URL": URL, "GCS_BACKUP_BUCKET": "b", "GOOGLE_APPLICATION_CREDENTIALS": "/no/file"},
            "environment: GOOGLE_APPLICATION_CREDENTIALS is '/no/file', which is no file; set it to the path of a service "
            "account's file, or to its JSON.",
        ),
        (
            {"DATABASE_URL": URL, "GCS_BACKUP_BUCKET": "b", "GOOGLE_APPLICATION_CREDENTIALS": '{"private_key": "canary"'},
            "environment: GOOGLE_APPLICATION_CREDENTIALS begins like JSON, but is none; set it again, whole.",
        ),
        (
            {"DATABASE_URL": URL, "ADMIN_EMAIL": "a@b", "SMTP_SERVER": "s", "SMTP_PORT": "canary"},
            "environment: pipeline.shop.notify[0] (email): option 'port' wants a whole number; what the environment variable "
            "SMTP_PORT holds is not that.",
        ),
    ],
)
def test_says_which_variable_is_wrong(environ: dict[str, str], problem: str, registry: Registry, tmp_path: Path) -> None:
    assert [problem] == problems_of(environ, registry, tmp_path)


def test_a_variable_whose_plugin_is_missing_is_an_error(tmp_path: Path) -> None:
    """Skipped, the notification that nobody gets would be missed when it matters."""
    bare = Registry([("core", builtin), ("plugins", Plugins())])
    environ = {"DATABASE_URL": URL, "SLACK_WEBHOOK_URL": "https://canary"}
    assert [
        "environment: pipeline.shop.notify[0] (slack): SLACK_WEBHOOK_URL is set, but the notify 'slack' is not installed; run: "
        "pip install ./plugins/pgsnap-slack"
    ] == problems_of(environ, bare, tmp_path)
    assert [
        "environment: pipeline.shop.dump (pg_dump): DATABASE_URL is set, but the dump 'pg_dump' is not installed; run: pip "
        "install ./plugins/pgsnap-postgres"
    ] == problems_of({"DATABASE_URL": URL}, Registry([("core", builtin), ("p", OnlyTransforms())]), tmp_path)


class OnlyTransforms:
    @hookimpl
    def pgsnap_transforms(self) -> Sequence[type[Transform]]:
        return [Gzip, Age, Checksum]


def test_a_recovery_host_needs_a_bucket_and_a_name(pipeline: Callable[..., Pipeline], registry: Registry, tmp_path: Path) -> None:
    """No DATABASE_URL, and no notifier's plugin."""
    environ = {"HOME": "/h", "AWS_S3_BACKUP_BUCKET": "b", "PGSNAP_NAME": "shop", "SLACK_WEBHOOK_URL": "x"}
    shop = pipeline(environ, roles=("transform", "store"))
    assert ("shop", PgDump(url=None), ()) == (shop.name, shop.dump, shop.notifiers)
    assert Bucket(url="s3://b") == shop.stores[1]
    assert [
        "environment: the pipeline has no name: DATABASE_URL is not set, and PGSNAP_NAME is not set; set PGSNAP_NAME."
    ] == problems_of({"AWS_S3_BACKUP_BUCKET": "b"}, registry, tmp_path, roles=("transform", "store"))


def test_a_file_is_used_alone(registry: Registry, tmp_path: Path) -> None:
    """Variables do not add stores to what a file says."""
    (tmp_path / "pgsnap.toml").write_text(init_toml({"DATABASE_URL": URL, "PGSNAP_DIR": "/backups"}))
    loaded = load(registry=registry, environ=EVERYTHING, directory=tmp_path)
    assert tmp_path / "pgsnap.toml" == loaded.path
    assert (LocalStore(url="/backups", keep=RetentionPolicy(daily=7)),) == loaded.pipelines["shop"].stores


def test_our_own_plugins_take_what_the_environment_gives(tmp_path: Path) -> None:
    """The stand-ins above have the names and options of the real ones."""
    names = ("pgsnap_postgres", "pgsnap_gzip", "pgsnap_checksum", "pgsnap_age", "pgsnap_slack", "pgsnap_email", "pgsnap_webhook")
    plugins = [(name, pytest.importorskip(name)) for name in names]
    registry = Registry([("core", builtin), *plugins])
    recipient = registry.get("transform", "age").keygen(tmp_path / "key")  # type: ignore[attr-defined]
    environ = {"DATABASE_URL": URL, "HOME": "/h", "PGSNAP_AGE_RECIPIENTS": recipient}
    environ |= {name: value for name, value in EVERYTHING.items() if name.startswith(("SLACK", "SMTP", "ADMIN", "HEALTH"))}
    (shop,) = load(registry=registry, environ=environ, directory=tmp_path).pipelines.values()
    assert ["gzip", "age", "checksum", "checksum"] == [transform.name for transform in shop.transforms]
    assert "pg_dump" == shop.dump.name
    assert ["slack", "email", "webhook"] == [notifier.name for notifier in shop.notifiers]


# --- init ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        EVERYTHING,
        {"DATABASE_URL": URL, "HOME": "/home/me"},
        {"DATABASE_URL": "postgresql://h/my%20shop", "PGSNAP_DIR": '/odd "dir"\\ü\x7f'},
        {"DATABASE_URL": URL, "PGSNAP_NAME": "a.b", "PGSNAP_DIR": "/x"},
    ],
)
def test_init_writes_the_environments_pipeline(environ: dict[str, str], registry: Registry, tmp_path: Path) -> None:
    """Read back in the same environment it is the same pipeline, and no secret stands in it."""
    described: Config = load(registry=registry, environ=environ, directory=tmp_path)
    path = tmp_path / "pgsnap.toml"
    path.write_text(init_toml(environ))
    assert described.pipelines == load(path, registry=registry, environ=environ).pipelines
    assert "canary" not in path.read_text()


def test_init_writes_an_example_where_the_environment_says_nothing(registry: Registry, tmp_path: Path) -> None:
    """It runs as soon as DATABASE_URL is set."""
    text = init_toml({"HOME": "/home/me"})
    assert "# The environment says nothing about a database yet" in text
    path = tmp_path / "pgsnap.toml"
    path.write_text(text)
    shop = load(path, registry=registry, environ={"DATABASE_URL": URL}).pipelines["mydatabase"]
    assert PgDump(url=Secret(URL)) == shop.dump


@pytest.mark.parametrize("environ", [{"HOME": "/h"}, {"DATABASE_URL": URL, "HOME": "/h"}])
def test_what_init_comments_out_is_right_too(environ: dict[str, str], registry: Registry, tmp_path: Path) -> None:
    """Who takes the ``#`` away gets a file that loads."""
    lines = init_toml(environ).splitlines()
    shown = [line.removeprefix("# ") if line.startswith("# ") and (" = " in line or line[2] == "[") else line for line in lines]
    text = "\n".join(line for line in shown if not line.startswith(("A value may", "# ")))
    assert {"timeout", "quorum", "timezone", "keep"} < next(iter(tomllib.loads(text)["pipeline"].values())).keys()
    path = tmp_path / "pgsnap.toml"
    path.write_text(text)
    (shop,) = load(path, registry=registry, environ={"DATABASE_URL": URL}).pipelines.values()
    assert [Gzip, Age, Checksum, Checksum] == [type(transform) for transform in shop.transforms]
    assert [LocalStore, Bucket] == [type(store) for store in shop.stores]
