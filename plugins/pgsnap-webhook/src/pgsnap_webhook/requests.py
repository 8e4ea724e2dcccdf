"""An event as what each receiver wants: a URL, a body, headers.

* ``json``: the document that ``schema.json`` beside this file describes.
* ``healthchecks``: pings after healthchecks.io/docs/http_api: ``/start``, the URL itself, ``/fail``, and ``/log`` for what says
  nothing about whether the job works; ``rid`` ties the pings of one run together; bodies up to 100 kB.
* ``pagerduty``: Events API v2 (developer.pagerduty.com/docs/events-api-v2): what goes badly triggers, what is well resolves.
* ``opsgenie``: Alert API (docs.opsgenie.com/docs/alert-api): creates and closes by alias; a message of at most 130 characters, a
  description of 15,000.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

import attrs

from pgsnap.components import Event, clip

__all__ = ["PRESETS", "SILENT", "Preset", "Request", "document", "request_for"]

Preset = Literal["json", "healthchecks", "pagerduty", "opsgenie"]
PRESETS: tuple[Preset, ...] = ("json", "healthchecks", "pagerduty", "opsgenie")
SILENT: Mapping[Preset, frozenset[str]] = {
    "json": frozenset(),
    "healthchecks": frozenset(),
    "pagerduty": frozenset({"started", "pruned", "summary"}),
    "opsgenie": frozenset({"started", "pruned", "summary"}),
}
"""Events that a receiver has no use for."""
FORMAT = 1
LOG = 100_000
"""Characters of a log that are sent; the end of it is where the reason is."""


@attrs.frozen(kw_only=True)
class Request:
    """What is posted."""

    url: str
    body: bytes
    headers: Mapping[str, str] = attrs.field(factory=dict)


def document(event: Event) -> dict[str, Any]:
    """Return an event as JSON-able values: what all kinds have, then what this kind has."""
    log = (
        event.log
        if len(event.log) <= LOG
        else f"… ({len(event.log) - LOG:,} characters before this are left out)\n{event.log[-LOG:]}"
    )
    made: dict[str, Any] = {
        "format": FORMAT,
        "kind": event.kind,
        "level": event.level,
        "title": event.title,
        "facts": [{"label": label, "value": value} for label, value in event.facts],
    }
    for field in attrs.fields(type(event)):
        made[field.name] = _plain(getattr(event, field.name))
    return made | {"log": log}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    return value


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def request_for(preset: Preset, url: str, key: str, event: Event) -> Request:
    """Return what a receiver is to get of an event."""
    if preset == "healthchecks":
        return _ping(url, event)
    if preset == "pagerduty":
        return _pagerduty(url, key, event)
    if preset == "opsgenie":
        return _opsgenie(url, key, event)
    return Request(url=url, body=_dump(document(event)), headers={"Content-Type": "application/json; charset=utf-8"})


def _words(event: Event) -> str:
    """Return all that a person wants to read, as plain text."""
    parts = [event.text]
    if event.cause and event.cause not in event.text:
        parts.append(event.cause)
    parts.append(event.next_step)
    parts.append("\n".join(f"{label}: {value}" for label, value in event.facts))
    if event.kind != "summary":
        parts.append("\n".join(f"{store.label}: {store.error or 'ok'}" for store in event.stores))
    return "\n\n".join(part for part in parts if part)


def _ping(url: str, event: Event) -> Request:
    parts = urlsplit(url)
    if event.kind == "started":
        ending = "/start"
    elif event.kind in ("succeeded",):
        ending = ""
    elif event.level == "error" or event.kind in ("partial", "failed", "suspect"):
        ending = "/fail"
    else:
        ending = "/log"
    query = parts.query
    if event.id and event.kind in ("started", "succeeded", "partial", "failed", "suspect"):
        rid = uuid.uuid5(uuid.NAMESPACE_URL, f"pgsnap:{event.pipeline}/{event.id}")
        query = f"{query}&rid={rid}" if query else f"rid={rid}"
    target = urlunsplit(parts._replace(path=parts.path.rstrip("/") + ending, query=query))
    words = f"{event.title}\n\n{_words(event)}" + (f"\n\n{event.log[-50_000:]}" if event.log else "")
    body = words.encode("utf-8", "replace")[:100_000]
    return Request(url=target, body=body, headers={"Content-Type": "text/plain; charset=utf-8"})


def _subject(event: Event) -> str:
    """What an incident is about: backups, their bytes, or their restorability, each of which can be well or not by itself."""
    about = {"verified": "/verify", "drilled": "/drill", "test": "/test"}.get(event.kind, "")
    return f"pgsnap/{event.pipeline}{about}"


def _pagerduty(url: str, key: str, event: Event) -> Request:
    body: dict[str, Any] = {"routing_key": key, "dedup_key": _subject(event), "client": "pgsnap"}
    if event.level == "ok":
        body["event_action"] = "resolve"
    else:
        body["event_action"] = "trigger"
        body["payload"] = {
            "summary": clip(f"{event.title}: {event.text}", 1024),
            "source": event.pipeline,
            "severity": {"error": "critical", "warning": "warning"}.get(event.level, "info"),
            "timestamp": event.time.isoformat(),
            "component": "backup",
            "class": event.kind,
            "custom_details": {"id": event.id, "what": clip(_words(event), 20_000), "log": event.log[-20_000:]},
        }
    return Request(url=url, body=_dump(body), headers={"Content-Type": "application/json"})


def _opsgenie(url: str, key: str, event: Event) -> Request:
    headers = {"Content-Type": "application/json", "Authorization": f"GenieKey {key}"}
    alias = _subject(event)
    if event.level == "ok":
        closing = f"{url.rstrip('/')}/{quote(alias, safe='')}/close?identifierType=alias"
        return Request(url=closing, body=_dump({"source": "pgsnap", "note": clip(event.text, 25_000)}), headers=headers)
    body = {
        "message": clip(event.title, 130),
        "alias": alias,
        "description": clip(_words(event), 15_000),
        "priority": {"error": "P1", "warning": "P3"}.get(event.level, "P5"),
        "source": "pgsnap",
        "entity": event.pipeline,
        "tags": ["pgsnap", event.kind],
        "details": {"id": event.id},
    }
    return Request(url=url, body=_dump(body), headers=headers)
