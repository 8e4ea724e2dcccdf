"""The e-mail notifier: the conformance kit, a real SMTP server with and without TLS and logins, and servers that misbehave."""

from __future__ import annotations

import contextlib
import email
import logging
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

import pgsnap
from pgsnap import ConfigError, NotifyError
from pgsnap.components import Failed, StoreOutcome, Succeeded, TestMessage
from pgsnap.testing import NotifierConformance
from pgsnap_email import Email
from pgsnap_email.message import compose, html, text

PASSWORD = "c4naryPassword"
WHEN = datetime(2026, 11, 22, 8, tzinfo=UTC)
TEST = TestMessage(pipeline="shop", text="hello")


def failed(**more: Any) -> Failed:
    fields: dict[str, Any] = {
        "text": "shop: no backup was made. it broke.",
        "cause": "it broke.",
        "next_step": "pgsnap doctor shop",
    }
    return Failed(pipeline="shop", id="20261122T080000Z-4f3a", started=WHEN, ended=WHEN + timedelta(seconds=3), **(fields | more))


class Inbox:
    """Keeps the mails that the server accepts; refuses what a test says."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.envelopes: list[Any] = []
        self.refuse: dict[str, str] = {}
        self.data: list[str] = []

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.data:
            return self.data.pop(0)
        self.envelopes.append(envelope)
        self.mails.append(email.message_from_bytes(envelope.content, policy=default))  # type: ignore[arg-type]
        return "250 OK"

    def texts(self) -> list[str]:
        """Return what a reader sees of each mail: text and HTML must both have it."""
        seen = []
        for mail in self.mails:
            plain = mail.get_body(("plain",))
            rich = mail.get_body(("html",))
            assert plain is not None
            assert rich is not None
            assert "3 backups &lt;in&gt; 2 stores &amp; 한국어" in rich.get_content() or "hello" in rich.get_content()
            seen.append(plain.get_content())
        return seen


def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (b"me@example.org", PASSWORD.encode()), handled=False)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def serve(inbox: Inbox) -> Iterator[Callable[..., int]]:
    """Start a real SMTP server; return its port."""
    started = []

    def start(**options: Any) -> int:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        controller = Controller(inbox, hostname="127.0.0.1", port=port, **options)
        controller.start()
        started.append(controller)
        return port

    yield start
    for controller in started:
        controller.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's certificate for 127.0.0.1, and the file that makes it trusted."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return context, path


def mailer(port: int, **more: Any) -> Email:
    return Email(**({"to": ("ops@example.org",), "server": "127.0.0.1", "port": port} | more))


class TestEmail(NotifierConformance):
    @pytest.fixture
    def notifier(self, serve: Callable[..., int]) -> Email:
        return mailer(serve())

    @pytest.fixture
    def received(self, inbox: Inbox) -> Callable[[], Sequence[str]]:
        return inbox.texts

    @pytest.fixture
    def broken(self) -> Email:
        return mailer(1, username="me", password=PASSWORD)


# --- the mail ----------------------------------------------------------------------------------------------------------------


def test_a_failure_has_everything(serve: Callable[..., int], inbox: Inbox) -> None:
    """Outcome in the subject; stores, cause, next step in both parts; the whole log attached."""
    stores = (StoreOutcome(label="/a"), StoreOutcome(label="s3://b", error="s3://b: <offline>."))
    log = "".join(f"line {number}\n" for number in range(3000))
    mailer(serve(), to=("Ops <ops@example.org>", "me@example.org")).notify(failed(stores=stores, log=log), timeout=10)
    (mail,) = inbox.mails
    assert "❌ shop: NO BACKUP was made" == mail["Subject"]
    assert ["ops@example.org", "me@example.org"] == inbox.envelopes[0].rcpt_tos
    assert "Ops <ops@example.org>, me@example.org" == mail["To"]
    assert ("1", "auto-generated") == (mail["X-Priority"], mail["Auto-Submitted"])
    plain, rich = mail.get_body(("plain",)).get_content(), mail.get_body(("html",)).get_content()  # type: ignore[union-attr]
    for part in ("it broke.", "pgsnap doctor shop", "s3://b", "3.0 s", "20261122T080000Z-4f3a", "line 2999"):
        assert part in plain
        assert part in rich
    assert "<offline>" in plain
    assert "&lt;offline&gt;" in rich
    assert "line 1\n" not in plain
    assert "more characters before this are in the attachment" in plain
    (attachment,) = list(mail.iter_attachments())
    assert "shop-20261122T080000Z-4f3a.log" == attachment.get_filename()
    assert log == attachment.get_content().replace("\r\n", "\n")


def test_the_mails_of_a_pipeline_make_a_thread() -> None:
    """They refer to the same message, and have ids of their own; another pipeline has another thread."""
    one, two = (compose(TEST, "a@example.org", ["b@example.org"], unique) for unique in ("x1", "x2"))
    other = compose(TestMessage(pipeline="app"), "a@example.org", ["b@example.org"], "x3")
    assert one["References"] == two["References"] == one["In-Reply-To"]
    assert one["Message-ID"] != two["Message-ID"]
    assert one["References"] != other["References"]


@pytest.mark.parametrize("nasty", ["x\r\nBcc: evil@example.org", "x\nSubject: no", "x\u2028y", "x\x00y", "한국어 😀 " * 100])
def test_no_text_gets_into_the_headers(serve: Callable[..., int], inbox: Inbox, nasty: str) -> None:
    """A database's name with line breaks in it makes no header, and the subject is one line of bounded length."""
    event = failed(text=nasty, cause=nasty, stores=(StoreOutcome(label=nasty, error=nasty),))
    event = pgsnap.components.Failed(
        **{**{f: getattr(event, f) for f in ("started", "ended", "text", "cause", "stores")}, "pipeline": nasty}
    )
    mailer(serve()).notify(event, timeout=10)
    (mail,) = inbox.mails
    assert None is mail["Bcc"]
    assert 1 == len(mail.get_all("Subject"))  # type: ignore[arg-type]
    assert len(mail["Subject"]) <= 200
    assert ["ops@example.org"] == inbox.envelopes[0].rcpt_tos


@pytest.mark.parametrize("words", ["한국어 오류 " * 1500, "😀" * 10_000, "<&>" * 3500])
def test_long_texts_arrive_whole(serve: Callable[..., int], inbox: Inbox, words: str) -> None:
    """10,000 characters of any script."""
    mailer(serve()).notify(failed(cause=words.strip(), text="shop"), timeout=10)
    plain = inbox.mails[0].get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert words.strip() in plain


def test_text_and_html_of_a_success_have_no_log_and_no_alarm() -> None:
    """Sizes, and where to restore from."""
    event = Succeeded(pipeline="shop", started=WHEN, ended=WHEN + timedelta(seconds=2), size=2_000_000, stored_size=1_000_000,
                      last_size=1_000_000, last_stored_size=1_000_000, recover=("/a/shop/x/RECOVER.txt",))  # fmt: skip
    for made in (text(event), html(event)):
        assert "2.0 MB (+100.0%, last 1.0 MB)" in made
        assert "/a/shop/x/RECOVER.txt" in made
        assert "Log" not in made
    assert None is compose(event, "a@b.c", ["d@e.f"], "x")["X-Priority"]


# --- TLS and logins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["auto", "starttls"])
def test_starttls_and_a_login(serve: Callable[..., int], inbox: Inbox, certificate: Any, security: str) -> None:
    """Encrypted before the password is sent."""
    port = serve(
        tls_context=certificate[0], require_starttls=True, authenticator=login, auth_required=True, auth_require_tls=True
    )
    mailer(port, username="me@example.org", password=PASSWORD, ca_file=certificate[1], security=security).notify(TEST, timeout=10)
    assert "me@example.org" == inbox.mails[0]["From"]


def test_tls_from_the_start(serve: Callable[..., int], inbox: Inbox, certificate: Any) -> None:
    """As on port 465."""
    port = serve(ssl_context=certificate[0])
    mailer(port, ca_file=certificate[1], security="tls").notify(TEST, timeout=10)
    assert 1 == len(inbox.mails)


def test_a_certificate_that_is_not_trusted(serve: Callable[..., int], inbox: Inbox, certificate: Any) -> None:
    """Nothing is sent, and the sentence says what to do."""
    port = serve(tls_context=certificate[0], authenticator=login, auth_required=True)
    with pytest.raises(
        NotifyError, match=r"the certificate of 127.0.0.1:.* is not trusted: .*; check the server's name, or give ca_file"
    ):
        mailer(port, username="me@example.org", password=PASSWORD).notify(TEST, timeout=10)
    assert [] == inbox.mails


def test_a_wrong_password_is_named_and_not_shown(
    serve: Callable[..., int], certificate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: repeating it would lock the account. doctor finds it too."""
    port = serve(tls_context=certificate[0], authenticator=login, auth_required=True)
    wrong = mailer(port, username="me@example.org", password="wrong-c4nary", ca_file=certificate[1])
    message = f"127.0.0.1:{port} refused the login of 'me@example.org' (535 5.7.8 Authentication credentials invalid)"
    with caplog.at_level(logging.DEBUG), pytest.raises(NotifyError) as caught:
        wrong.notify(TEST, timeout=10)
    assert f"{message}; check username and password." == str(caught.value)
    assert not caught.value.transient
    (finding,) = wrong.preflight(pgsnap.Run("shop"))
    assert ("error", f"{message}; check username and password.") == (finding.level, finding.text)
    assert "c4nary" not in str(caught.value) + caplog.text + finding.text


def test_no_password_without_encryption(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., int], inbox: Inbox) -> None:
    """A server that takes its offer of STARTTLS back does not get it."""
    monkeypatch.setattr("pgsnap_email.LOCAL", set())
    port = serve(authenticator=login, auth_required=True, auth_require_tls=False)
    with pytest.raises(NotifyError, match="offers no encryption, and the password is not sent without"):
        mailer(port, username="me@example.org", password=PASSWORD).notify(TEST, timeout=5)
    mailer(port, username="me@example.org", password=PASSWORD, security="none").notify(TEST, timeout=5)
    assert 1 == len(inbox.mails)


# --- servers that refuse and misbehave ---------------------------------------------------------------------------------------


def test_one_refused_address_does_not_stop_the_others(serve: Callable[..., int], inbox: Inbox) -> None:
    """They have the mail, and the refused one is named."""
    inbox.refuse = {"gone@example.org": "550 no such user"}
    with pytest.raises(NotifyError) as caught:
        mailer(serve(), to=("ops@example.org", "gone@example.org")).notify(TEST, timeout=5)
    assert "127.0.0.1 took the mail for 1 of 2 addresses; refused: gone@example.org: 550 no such user." == str(caught.value)
    assert ["ops@example.org"] == inbox.envelopes[0].rcpt_tos


def test_every_address_refused(serve: Callable[..., int], inbox: Inbox) -> None:
    """Named, with the server's reason."""
    inbox.refuse = {"ops@example.org": "550 no such user"}
    with pytest.raises(NotifyError, match=r"refused every address: ops@example\.org: 550 no such user; check 'to'"):
        mailer(serve()).notify(TEST, timeout=5)


def test_what_is_temporary_is_repeated(serve: Callable[..., int], inbox: Inbox) -> None:
    """Greylisting, a full queue: the same mail again, with the same id."""
    inbox.data = ["451 try again"]
    mailer(serve()).notify(TEST, timeout=10)
    assert 1 == len(inbox.mails)


def test_what_is_final_is_not(serve: Callable[..., int], inbox: Inbox) -> None:
    """5xx stays."""
    inbox.data = ["554 this is spam"] * 5
    with pytest.raises(NotifyError, match="refused the mail: 554 this is spam"):
        mailer(serve()).notify(TEST, timeout=10)
    assert 4 == len(inbox.data)


@contextlib.contextmanager
def wild(first: bytes) -> Iterator[int]:
    """A server that says something and then nothing."""
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(first)
            if first != b"":
                ended.wait()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("first", [b"\0", b"220 hello\r\n", b"garbage\r\n", b"", b"220-never\r\n" * 3, b"554 go away\r\n"])
def test_servers_that_stall_or_talk_nonsense(first: bytes) -> None:
    """A sentence, within the time."""
    with wild(first) as port:
        began = time.monotonic()
        with pytest.raises(NotifyError, match=f"127.0.0.1:{port} "):
            mailer(port).notify(TEST, timeout=2)
        assert time.monotonic() - began < 4


# --- options -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": ()}, "email's to is empty; give at least one address."),
        ({"to": ("ops",)}, "email's to has 'ops', which is no address; write it like ops@example.org."),
        (
            {"to": ("a@b.c\nBcc: d@e.f",)},
            "email's to has 'a@b.c\\nBcc: d@e.f', which is no address; write it like ops@example.org.",
        ),
        ({"sender": "me"}, "email's sender is 'me', which is no address; write it like pgsnap@example.org."),
        ({"server": "smtp://x"}, "email's server is 'smtp://x'; give the name of the SMTP server alone, like smtp.example.org."),
        ({"server": ""}, "email's server is ''; give the name of the SMTP server alone, like smtp.example.org."),
        ({"port": 0}, "email's port is 0; give 587 (STARTTLS), 465 (TLS), 25, or what your server wants."),
        ({"security": "ssl"}, "email's security is 'ssl'; choose from auto, starttls, tls, none."),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    """With the option, the value and what would be right."""
    with pytest.raises(ConfigError) as caught:
        mailer(**({"port": 587} | options))
    assert message == str(caught.value)


def test_who_it_comes_from() -> None:
    """The sender, else a username that is an address, else the first recipient."""
    assert "x@y.z" == mailer(25, sender="x@y.z", username="me@example.org").source
    assert "me@example.org" == mailer(25, username="me@example.org").source
    assert "ops@example.org" == mailer(25, username="apikey").source
