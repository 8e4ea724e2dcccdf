"""Apprise for pgsnap: whatever service Apprise can reach by a URL (Telegram, Discord, Matrix, ntfy, Teams and a hundred more).

Such a URL holds the service's tokens, so it is a secret; a message about a failure names its scheme and its place alone.
Apprise tells no reason to its caller, only to its log, where tokens may stand: so it is not repeated here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs

from pgsnap import ConfigError, Finding, Notifier, NotifyError, Run, Secret, hookimpl
from pgsnap.components import Event, clip, deliver

__all__ = ["Apprise", "pgsnap_notifiers"]

TYPES = {"info": "info", "ok": "success", "warning": "warning", "error": "failure"}
ATTEMPTS = 2
"""Apprise does not say whether trying again may help, so it is done once."""


def _urls(value: Any) -> tuple[Secret, ...]:
    return tuple(Secret(each) for each in ((value,) if isinstance(value, (str, Secret)) else value))


def _check_urls(instance: object, attribute: attrs.Attribute[tuple[Secret, ...]], value: tuple[Secret, ...]) -> None:
    if not value:
        raise ConfigError("apprise's urls is empty; give at least one, such as tgram://TOKEN/CHAT.")
    for number, each in enumerate(value):
        if "://" not in each.reveal():
            raise ConfigError(
                f"apprise's urls[{number}] is no URL; write it like tgram://TOKEN/CHAT (github.com/caronc/apprise)."
            )


@attrs.frozen(kw_only=True)
class Apprise(Notifier):
    """Tells whatever Apprise can reach.

    Args:
        urls: Apprise's URLs, each with the tokens of a service.
    """

    name: ClassVar[str] = "apprise"

    urls: tuple[Secret, ...] = attrs.field(converter=_urls, validator=_check_urls)

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Look whether Apprise understands the URLs; nothing is sent ('pgsnap notify test' does)."""
        findings = []
        for number, url in enumerate(self.urls):
            if _service(url.reveal()) is None:
                text = f"Apprise does not understand {self._label(number)}."
                findings.append(Finding("error", "apprise", text, "Look the service up at github.com/caronc/apprise."))
        return findings or [Finding("ok", "apprise", f"{len(self.urls)} services are told: {', '.join(self._schemes())}.")]

    def notify(self, event: Event, *, timeout: float) -> None:
        """Tell every service; those that fail are tried once more, and then named together."""
        deadline = time.monotonic() + timeout
        waiting = list(range(len(self.urls)))
        tried = 0

        def attempt(left: float) -> None:
            nonlocal waiting, tried
            tried += 1
            failed = []
            for position, number in enumerate(waiting):
                share = max(0.1, (deadline - time.monotonic()) / (len(waiting) - position))
                if not self._tell(number, event, share):
                    failed.append(number)
            waiting = failed
            if failed:
                names = ", ".join(self._label(number) for number in failed)
                text = f"Apprise could not deliver to {names}; try the URL by itself: apprise -vv -b test URL"
                raise NotifyError(text, transient=tried < ATTEMPTS)

        deliver(attempt, timeout=timeout)

    def _tell(self, number: int, event: Event, seconds: float) -> bool:
        service = _service(self.urls[number].reveal())
        if service is None:
            raise NotifyError(
                f"Apprise does not understand {self._label(number)}; look the service up at github.com/caronc/apprise."
            )
        service.socket_connect_timeout = service.socket_read_timeout = max(0.1, seconds / 2)
        title = clip(f"{event.mark} {event.title}", service.title_maxlen or 250)
        body = clip(_body(event), service.body_maxlen)
        if not service.title_maxlen:
            body = clip(f"{title}\n\n{_body(event)}", service.body_maxlen)
        try:
            return bool(service.notify(body=body, title=title if service.title_maxlen else "", notify_type=TYPES[event.level]))
        except Exception:  # a service's fault; its text may hold the URL
            return False

    def _schemes(self) -> list[str]:
        return [url.reveal().partition("://")[0] for url in self.urls]

    def _label(self, number: int) -> str:
        return f"urls[{number}] ({self._schemes()[number]})"


def _service(url: str) -> Any:
    """Return Apprise's object for a URL, or None if it understands none such."""
    import apprise

    try:
        return apprise.Apprise.instantiate(url)
    except Exception:
        return None


def _body(event: Event) -> str:
    """Return the message as plain text; what matters most comes first, since some services cut it."""
    parts = [event.text]
    if event.cause and event.cause not in event.text:
        parts.append(event.cause)
    parts.append(event.next_step)
    parts.append("\n".join(f"{label}: {value}" for label, value in event.facts))
    if event.kind != "summary":
        parts.append("\n".join(f"{store.label}: {store.error or 'ok'}" for store in event.stores))
    return "\n\n".join(part for part in parts if part)


@hookimpl
def pgsnap_notifiers() -> Sequence[type[Notifier]]:
    """Return the Apprise notifier."""
    return [Apprise]
