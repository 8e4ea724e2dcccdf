"""Slack for pgsnap: each event as a Block Kit message to an incoming web hook, by slack_sdk.

The web hook's URL is all that is needed to write into the channel, so it is a secret and stands in no message or log; slack_sdk
logs it at level DEBUG, and gets a logger of its own that is off. Receivers that speak the same language (Mattermost, Rocket.Chat)
work too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import urlsplit

import attrs

from pgsnap import ConfigError, Finding, Notifier, NotifyError, Run, Secret, hookimpl
from pgsnap.components import Event, clip, deliver, one_line
from pgsnap_slack.blocks import blocks, fallback

__all__ = ["Slack", "pgsnap_notifiers"]

REASONS = {
    400: "it did not understand the message: report this as a fault of pgsnap-slack",
    403: "the workspace does not allow it: ask an administrator",
    404: "there is no such web hook: it was removed, or the URL is not whole; make a new one",
    410: "the channel is archived: make a web hook for another one",
}


def _check_webhook(instance: object, attribute: attrs.Attribute[Secret], value: Secret) -> None:
    try:
        parts = urlsplit(value.reveal().strip())
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if value and not good:
        raise ConfigError(
            "slack's webhook is not a URL; copy it from the app's page 'Incoming Webhooks': https://hooks.slack.com/…"
        )


@attrs.frozen(kw_only=True)
class Slack(Notifier):
    """Tells a Slack channel.

    Args:
        webhook: The incoming web hook's URL.
    """

    name: ClassVar[str] = "slack"

    webhook: Secret = attrs.field(converter=Secret, validator=_check_webhook)

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Look at the URL; nothing is sent ('pgsnap notify test' does)."""
        parts = urlsplit(self.webhook.reveal().strip())
        host = parts.hostname or ""
        if parts.scheme != "https":
            return [Finding("warning", "slack", f"the web hook at {host} has no TLS.", "Use https://.")]
        return [Finding("ok", "slack", f"messages go to a web hook at {host}.")]

    def notify(self, event: Event, *, timeout: float) -> None:
        """Post the event; a limit (429), an error of the server or of the network is repeated while the time lasts."""
        deliver(lambda left: self._attempt(event, left), timeout=timeout)

    def _attempt(self, event: Event, left: float) -> None:
        from http.client import HTTPException

        from slack_sdk.webhook import WebhookClient

        silent = logging.Logger("pgsnap.slack", logging.CRITICAL + 1)
        client = WebhookClient(
            self.webhook.reveal().strip(),
            timeout=left,  # type: ignore[arg-type]  # seconds, handed on to urllib
            logger=silent,
            retry_handlers=[],
        )
        try:
            answer = client.send(text=fallback(event), blocks=blocks(event), unfurl_links=False, unfurl_media=False)
        except (OSError, HTTPException) as error:
            slow = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            reason = "it took too long" if slow else one_line(str(getattr(error, "reason", "") or type(error).__name__))
            raise NotifyError(f"Slack could not be reached: {reason}; check the network.", transient=True) from None
        except Exception as error:  # a URL or an answer that slack_sdk or urllib cannot digest; their text may hold the URL
            raise NotifyError(
                f"Slack's answer made no sense ({type(error).__name__}); check that the URL is a web hook."
            ) from None
        body = clip(one_line(answer.body or ""), 200)
        status = answer.status_code
        if status == 200 and body.lower() == "ok":
            return
        if status == 200:
            raise NotifyError(f"what answered is no web hook: it said {body!r} and not 'ok'; check the URL.")
        if status == 429 or status >= 500:
            after = _seconds(answer.headers.get("Retry-After")) if status == 429 else None
            raise NotifyError(f"Slack answered {status} ({body}); it may work later.", transient=True, retry_after=after)
        reason = REASONS.get(status, "check the web hook's URL")
        raise NotifyError(f"Slack refused the message with {status} ({body}): {reason}.")


def _seconds(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


@hookimpl
def pgsnap_notifiers() -> Sequence[type[Notifier]]:
    """Return the Slack notifier."""
    return [Slack]
