"""Web hooks for pgsnap: each event as JSON to any URL, or as a ping or alert to services that watch.

The JSON is described by ``schema.json`` in this package. With a ``secret`` each request is signed: the header
``Pgsnap-Signature`` is ``t=SECONDS,v1=HEX``, where HEX is the HMAC-SHA256, under the secret, of SECONDS, a dot, and the body's
bytes. A redirect is never followed: what follows one sends the body to nobody and then reports success.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

import attrs

from pgsnap import ConfigError, Finding, Notifier, NotifyError, Run, Secret, hookimpl
from pgsnap.components import Event, check_on, clip, deliver, one_line
from pgsnap_webhook.requests import PRESETS, SILENT, Preset, Request, request_for

__all__ = ["Webhook", "pgsnap_notifiers", "sign"]

DEFAULT_URL: Mapping[Preset, str] = {
    "pagerduty": "https://events.pagerduty.com/v2/enqueue",
    "opsgenie": "https://api.opsgenie.com/v2/alerts",
}
DEFAULT_ON: Mapping[Preset, tuple[Any, ...]] = {
    "json": ("succeeded", "partial", "failed", "suspect", "drilled", "summary"),
    "healthchecks": ("started", "succeeded", "partial", "failed", "suspect"),
    "pagerduty": ("succeeded", "partial", "failed", "suspect", "verified", "drilled"),
    "opsgenie": ("succeeded", "partial", "failed", "suspect", "verified", "drilled"),
}
ANSWER = 10_000
"""Bytes of an answer that are read."""


def _good_url(value: Secret) -> bool:
    try:
        parts = urlsplit(value.reveal())
        blank = any(character.isspace() or not character.isprintable() for character in value.reveal())
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0 and not blank
    except ValueError:
        return False


def _check_url(instance: object, attribute: attrs.Attribute[Secret | None], value: Secret | None) -> None:
    if value and not _good_url(value):
        raise ConfigError("webhook's url is not one; write it like https://example.org/hook.")


def _check_preset(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value not in PRESETS:
        raise ConfigError(f"webhook's preset is {value!r}; choose from {', '.join(PRESETS)}.")


def _check_headers(instance: object, attribute: attrs.Attribute[Mapping[str, Secret]], value: Mapping[str, Secret]) -> None:
    for name, content in value.items():
        text = content.reveal()
        if not name or not all(c.isascii() and (c.isalnum() or c == "-") for c in name):
            raise ConfigError(f"webhook's headers has {name!r}, which cannot be a header's name; use letters, digits and '-'.")
        if not text.isprintable() or not text.isascii():
            raise ConfigError(f"webhook's header {name!r} has a line break or another character that a header cannot hold.")


def _secrets(value: Mapping[str, str | Secret]) -> dict[str, Secret]:
    return {name: Secret(content) for name, content in value.items()}


def _default_on(instance: Webhook) -> tuple[Any, ...]:
    return DEFAULT_ON.get(instance.preset, DEFAULT_ON["json"])


def _check_on(instance: Webhook, attribute: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:
    check_on(instance, attribute, value)
    for kind in value:
        if kind in SILENT.get(instance.preset, ()):
            raise ConfigError(f"on = {kind!r}: preset {instance.preset!r} has nothing to say of it; leave it out.")


@attrs.frozen(kw_only=True)
class Webhook(Notifier):
    """Posts events to a URL.

    Args:
        preset: ``json`` (signed JSON), ``healthchecks`` (start, success and failure pings), ``pagerduty`` or ``opsgenie``.
        url: Where to; ``pagerduty`` and ``opsgenie`` have one by default.
        key: PagerDuty's routing key, Opsgenie's API key.
        secret: Signs the requests of ``json``.
        headers: More headers, such as Authorization.
        on: Each preset has a default of its own.
    """

    name: ClassVar[str] = "webhook"

    preset: Preset = attrs.field(default="json", validator=_check_preset)
    url: Secret | None = attrs.field(default=None, converter=attrs.converters.optional(Secret), validator=_check_url)
    key: Secret | None = attrs.field(default=None, converter=attrs.converters.optional(Secret))
    secret: Secret | None = attrs.field(default=None, converter=attrs.converters.optional(Secret))
    headers: Mapping[str, Secret] = attrs.field(factory=dict, converter=_secrets, validator=_check_headers, repr=False)
    on: tuple[Any, ...] = attrs.field(default=attrs.Factory(_default_on, takes_self=True), validator=_check_on)

    def __attrs_post_init__(self) -> None:
        if self.url is None and self.preset not in DEFAULT_URL:
            raise ConfigError(f"webhook's url is missing; preset {self.preset!r} has none by itself.")
        if self.key is None and self.preset in DEFAULT_URL:
            what = "the integration's routing key" if self.preset == "pagerduty" else "an API key"
            raise ConfigError(f"webhook's key is missing; preset {self.preset!r} wants {what}.")

    @property
    def _url(self) -> str:
        return self.url.reveal() if self.url else DEFAULT_URL.get(self.preset, "")

    def preflight(self, run: Run) -> Sequence[Finding]:
        """Look at the URL; nothing is sent ('pgsnap notify test' does)."""
        parts = urlsplit(self._url)
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            return [Finding("warning", "webhook", f"the URL at {parts.hostname} has no TLS.", "Use https://.")]
        return [Finding("ok", "webhook", f"{self.preset}: events go to {parts.hostname}.")]

    def notify(self, event: Event, *, timeout: float) -> None:
        """Post the event; 429, 5xx and errors of the network are repeated while the time lasts, with the same Pgsnap-Delivery."""
        import secrets

        if event.kind in SILENT[self.preset]:
            return
        request = request_for(self.preset, self._url, self.key.reveal() if self.key else "", event)
        delivery = secrets.token_hex(16)
        deliver(lambda left: self._attempt(request, event, delivery, left), timeout=timeout)

    def _attempt(self, request: Request, event: Event, delivery: str, left: float) -> None:
        import urllib.error
        from http.client import HTTPException
        from urllib.request import HTTPRedirectHandler, build_opener
        from urllib.request import Request as Post

        class NoRedirect(HTTPRedirectHandler):
            def redirect_request(self, *args: Any, **kwargs: Any) -> None:
                return None

        host = urlsplit(request.url).hostname
        headers = {"User-Agent": "pgsnap", **request.headers, "Pgsnap-Event": event.kind, "Pgsnap-Delivery": delivery}
        if self.secret and self.preset == "json":
            headers["Pgsnap-Signature"] = sign(request.body, self.secret.reveal(), int(time.time()))
        headers |= {name: value.reveal() for name, value in self.headers.items()}
        try:
            with build_opener(NoRedirect).open(Post(request.url, request.body, headers, method="POST"), timeout=left) as answer:
                answer.read(ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error, str(host)) from None
        except (OSError, HTTPException) as error:
            slow = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            reason = "it took too long" if slow else one_line(str(getattr(error, "reason", "") or type(error).__name__))
            raise NotifyError(f"{host} could not be reached: {clip(reason, 200)}; check the network.", transient=True) from None
        except ValueError:
            raise NotifyError(f"the URL at {host} cannot be used; correct webhook's url.") from None


def _refusal(error: Any, host: str) -> NotifyError:
    """Return what an answer other than 2xx means."""
    status = int(error.code)
    try:
        said = clip(one_line(error.read(ANSWER).decode("utf-8", "replace")), 200)
    except (OSError, ValueError):
        said = ""
    words = f"{status} ({said})" if said else str(status)
    if 300 <= status < 400:
        return NotifyError(f"{host} answered with a redirect ({status}), which is not followed; give the URL that it leads to.")
    if status == 429 or status >= 500:
        try:
            after = float(error.headers.get("Retry-After"))
        except (TypeError, ValueError):
            after = None
        return NotifyError(f"{host} answered {words}; it may work later.", transient=True, retry_after=after)
    step = "check key and headers" if status in (401, 403) else "check the URL"
    return NotifyError(f"{host} refused the message with {words}; {step}.")


def sign(body: bytes, secret: str, seconds: int) -> str:
    """Return the value of ``Pgsnap-Signature`` for a body at a time (seconds since 1970)."""
    import hashlib
    import hmac

    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


@hookimpl
def pgsnap_notifiers() -> Sequence[type[Notifier]]:
    """Return the web hook notifier."""
    return [Webhook]
