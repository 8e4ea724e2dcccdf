"""E-mail for pgsnap: each event as a mail of text and HTML, by the standard library's smtplib.

The connection is encrypted where the server can: TLS from the start on port 465, STARTTLS elsewhere, certificates checked. A
password is never sent over a connection that is not, unless ``security = "none"`` says so or the server is this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

from pgsnap import ConfigError, Finding, Notifier, NotifyError, Run, Secret, hookimpl
from pgsnap.components import Event, clip, deliver, one_line

if TYPE_CHECKING:
    import smtplib

__all__ = ["Email", "pgsnap_notifiers"]

LOCAL = {"localhost", "127.0.0.1", "::1"}
Security = Literal["auto", "starttls", "tls", "none"]
SECURITIES = ("auto", "starttls", "tls", "none")


def _address(value: str) -> str:
    """Return the bare address of ``Name <user@host>``, or of ``user@host``; empty if it is none."""
    from email.utils import parseaddr

    bare = parseaddr(value)[1]
    user, at, host = bare.rpartition("@")
    printable = all(character.isprintable() for character in value) and "\n" not in value and " " not in bare
    return bare if at and user and host and printable and value.count("@") == 1 else ""


def _check_to(instance: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not value:
        raise ConfigError("email's to is empty; give at least one address.")
    for each in value:
        if not _address(each):
            raise ConfigError(f"email's to has {each!r}, which is no address; write it like ops@example.org.")


def _check_sender(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value and not _address(value):
        raise ConfigError(f"email's sender is {value!r}, which is no address; write it like pgsnap@example.org.")


def _check_server(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value.strip() != value or not value or any(character in value for character in "/@ \r\n"):
        raise ConfigError(f"email's server is {value!r}; give the name of the SMTP server alone, like smtp.example.org.")


def _check_port(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not 1 <= value <= 65535:
        raise ConfigError(f"email's port is {value}; give 587 (STARTTLS), 465 (TLS), 25, or what your server wants.")


def _check_security(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value not in SECURITIES:
        raise ConfigError(f"email's security is {value!r}; choose from {', '.join(SECURITIES)}.")


@attrs.frozen(kw_only=True)
class Email(Notifier):
    """Tells people by e-mail.

    Args:
        to: Who gets it.
        server: The SMTP server.
        port: 587, 465 or whatever the server listens at.
        username: For servers that want a login.
        password: With it.
        sender: The address that the mail comes from; by default ``username`` if that is one, else the first of ``to``.
        security: ``starttls``, ``tls`` (from the start), ``none``; ``auto``: TLS on port 465, else STARTTLS if it is offered.
        ca_file: Certificates to trust in place of the system's.
    """

    name: ClassVar[str] = "email"

    to: tuple[str, ...] = attrs.field(validator=_check_to)
    server: str = attrs.field(validator=_check_server)
    port: int = attrs.field(default=587, validator=_check_port)
    username: str = ""
    password: Secret | None = attrs.field(default=None, converter=attrs.converters.optional(Secret))
    sender: str = attrs.field(default="", validator=_check_sender)
    security: Security = attrs.field(default="auto", validator=_check_security)
    ca_file: Path | None = None

    @property
    def source(self) -> str:
        """The address that mails come from."""
        return self.sender or (self.username if _address(self.username) else self.to[0])

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Connect and log in, and send nothing: so a wrong password is found before it is needed."""
        try:
            with self._session(time.monotonic() + 15):
                pass
        except NotifyError as error:
            return [Finding("error", "email", str(error), "")]
        return [Finding("ok", "email", f"{self.server}:{self.port} accepts us; mails go to {', '.join(self.to)}.")]

    def notify(self, event: Event, *, timeout: float) -> None:
        """Send one mail to all; what the server cannot do just now (4xx) and errors of the network are repeated."""
        import secrets

        unique = secrets.token_hex(12)
        deliver(lambda left: self._attempt(event, unique, time.monotonic() + left), timeout=timeout)

    def _attempt(self, event: Event, unique: str, deadline: float) -> None:
        from pgsnap_email.message import compose

        mail = compose(event, self.source, self.to, unique)
        recipients = [_address(each) for each in self.to]
        with self._session(deadline) as connection:
            refused = connection.send_message(mail, from_addr=_address(self.source), to_addrs=recipients)
        if refused:
            reasons = "; ".join(f"{address}: {_reply(reply)}" for address, reply in refused.items())
            others = len(recipients) - len(refused)
            raise NotifyError(f"{self.server} took the mail for {others} of {len(recipients)} addresses; refused: {reasons}.")

    @contextmanager
    def _session(self, deadline: float) -> Iterator[smtplib.SMTP]:
        """Give a connection that is logged in; turn whatever goes wrong inside into a NotifyError."""
        import smtplib
        import ssl

        where = f"{self.server}:{self.port}"
        connection: smtplib.SMTP | None = None
        try:
            connection = self._connect(deadline)
            yield connection
            _patience(connection, deadline)
            with suppress(OSError, smtplib.SMTPException):  # the mail was accepted before that
                connection.quit()
        except smtplib.SMTPAuthenticationError as error:
            reply = _reply((error.smtp_code, error.smtp_error))
            raise NotifyError(
                f"{where} refused the login of {self.username!r} ({reply}); check username and password.",
                transient=400 <= error.smtp_code < 500,
            ) from None
        except smtplib.SMTPRecipientsRefused as error:
            reasons = "; ".join(f"{address}: {_reply(reply)}" for address, reply in error.recipients.items())
            later = all(400 <= reply[0] < 500 for reply in error.recipients.values())
            raise NotifyError(f"{where} refused every address: {reasons}; check 'to'.", transient=later) from None
        except smtplib.SMTPResponseException as error:
            reply = _reply((error.smtp_code, error.smtp_error))
            raise NotifyError(f"{where} refused the mail: {reply}.", transient=400 <= error.smtp_code < 500) from None
        except smtplib.SMTPNotSupportedError as error:
            raise NotifyError(f"{where} cannot do what is needed: {one_line(str(error))}") from None
        except ssl.SSLCertVerificationError as error:
            raise NotifyError(
                f"the certificate of {where} is not trusted: {error.verify_message}; check the server's name, or give ca_file."
            ) from None
        except ssl.SSLError as error:
            raise NotifyError(f"{where} did not agree on TLS ({error.reason}); check port and security.") from None
        except (OSError, smtplib.SMTPException) as error:
            reason = "it took too long" if isinstance(error, TimeoutError) else one_line(str(error)) or type(error).__name__
            raise NotifyError(
                f"{where} could not be reached: {clip(reason, 200)}; check server and port.", transient=True
            ) from None
        except UnicodeError:
            text = f"{where}: the server's name, the username or the password has characters that SMTP cannot send; check them."
            raise NotifyError(text) from None
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, deadline: float) -> smtplib.SMTP:
        """Return a connection: encrypted as asked, logged in if there is a username."""
        import smtplib
        import ssl

        timeout = max(0.1, deadline - time.monotonic())
        wants_tls = self.security == "tls" or (self.security == "auto" and self.port == 465)
        context: Any = None
        if wants_tls or self.security != "none":
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        connection: smtplib.SMTP
        if wants_tls:
            connection = smtplib.SMTP_SSL(self.server, self.port, timeout=timeout, context=context)
        else:
            connection = smtplib.SMTP(self.server, self.port, timeout=timeout)
        try:
            encrypted = wants_tls
            _patience(connection, deadline)
            connection.ehlo_or_helo_if_needed()
            if not encrypted and self.security != "none" and (self.security == "starttls" or connection.has_extn("starttls")):
                _patience(connection, deadline)
                connection.starttls(context=context)
                encrypted = True
            if self.username:
                if not encrypted and self.security != "none" and self.server not in LOCAL:
                    raise NotifyError(
                        f"{self.server}:{self.port} offers no encryption, and the password is not sent without; "
                        'use another port, or say security = "none".'
                    )
                _patience(connection, deadline)
                connection.login(self.username, self.password.reveal() if self.password else "")
            _patience(connection, deadline)
        except BaseException:
            connection.close()
            raise
        return connection


def _patience(connection: smtplib.SMTP, deadline: float) -> None:
    """Let the next step take what is left of the time."""
    if connection.sock is not None:
        connection.sock.settimeout(max(0.1, deadline - time.monotonic()))


def _reply(reply: tuple[int, bytes | str]) -> str:
    code, words = reply
    said = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    return f"{code} {clip(one_line(said), 200)}"


@hookimpl
def pgsnap_notifiers() -> Sequence[type[Notifier]]:
    """Return the e-mail notifier."""
    return [Email]
