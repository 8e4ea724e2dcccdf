"""An event as a mail: a text part and an HTML part that say the same, and the whole log as an attachment.

The mails of one pipeline make one thread: each refers to the same first message, which never existed (RFC 5322, section 3.6.4,
allows that), so that mail programs put them together without any state of ours. What reaches a header is one line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from html import escape

from pgsnap.components import Event, clip, one_line

__all__ = ["compose", "html", "text"]

SUBJECT = 200
SHOWN_LOG = 4000
"""Characters of the log's end that the body shows; the attachment has all of it."""
COLOURS = {"info": "#57606a", "ok": "#1a7f37", "warning": "#9a6700", "error": "#cf222e"}
MONO = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px"


def compose(event: Event, sender: str, to: Sequence[str], unique: str) -> EmailMessage:
    """Return the mail. ``unique`` makes its Message-ID; the same mail sent again has the same."""
    from email.utils import format_datetime

    domain = sender.rpartition("@")[2].strip("> ") or "pgsnap.invalid"
    root = f"<{hashlib.sha256(event.pipeline.encode()).hexdigest()[:24]}.pgsnap@{domain}>"
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = clip(one_line(f"{event.mark} {event.title}"), SUBJECT)
    mail["From"] = sender
    mail["To"] = ", ".join(to)
    mail["Date"] = format_datetime(event.time)
    mail["Message-ID"] = f"<{unique}.pgsnap@{domain}>"
    mail["In-Reply-To"] = root
    mail["References"] = root
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    if event.level == "error":
        mail["X-Priority"] = "1"
        mail["Importance"] = "high"
    mail.set_content(text(event), charset="utf-8", cte="base64")
    mail.add_alternative(html(event), subtype="html", charset="utf-8", cte="base64")
    if event.log:
        name = "-".join(part for part in (event.pipeline, event.id) if part)
        mail.add_attachment(event.log, subtype="plain", charset="utf-8", cte="base64", filename=f"{name}.log")
    return mail


def _log_end(log: str) -> str:
    """Return the end of a log, from the beginning of a line."""
    log = log.rstrip()
    if len(log) <= SHOWN_LOG:
        return log
    end = log[-SHOWN_LOG:]
    end = end.partition("\n")[2] or end
    return f"… ({len(log) - len(end):,} more characters before this are in the attachment)\n{end}"


def text(event: Event) -> str:
    """Return the text part."""
    parts = [f"{event.mark} {event.title}"]
    if event.text:
        parts.append(event.text)
    if event.cause and event.cause not in event.text:
        parts.append(f"Cause\n{event.cause}")
    if event.next_step:
        parts.append(f"What to do now\n{event.next_step}")
    width = max((len(label) for label, _ in event.facts), default=0)
    parts.append("\n".join(f"{label:{width}}  {value}" for label, value in event.facts))
    if event.stores and event.kind != "summary":
        lines = [f"{'NO ' if each.error else 'yes'}  {each.label}{each.error and ': '}{each.error}" for each in event.stores]
        parts.append("Stores\n" + "\n".join(lines))
    parts += [f"note: {note}" for note in event.notes]
    if event.recover:
        parts.append("To restore without pgsnap\n" + "\n".join(event.recover))
    if event.log:
        parts.append("Log\n" + _log_end(event.log))
    return "\n\n".join(part for part in parts if part) + "\n\n-- \npgsnap, " + f"{event.time:%Y-%m-%d %H:%M} UTC\n"


def html(event: Event) -> str:
    """Return the HTML part: tables and inline styles, as mail programs want it; no image, no link, no script."""
    colour = COLOURS[event.level]
    rows = [_row(label, escape(value)) for label, value in event.facts]
    if event.kind != "summary":
        for store in event.stores:
            sign, tint = ("&#10060;", COLOURS["error"]) if store.error else ("&#9989;", "inherit")
            error = f'<div style="color:{tint}">{_lines(store.error)}</div>' if store.error else ""
            rows.append(_row(sign, f'<span style="{MONO}">{escape(store.label)}</span>{error}'))
    parts = [
        f'<div style="border-left:6px solid {colour};padding:12px 16px;background:#f6f8fa">'
        f'<div style="font-size:20px;font-weight:600;color:{colour}">{escape(event.mark)} {escape(event.title)}</div>'
        f'<div style="margin-top:6px">{_lines(event.text)}</div></div>'
    ]
    if event.cause and event.cause not in event.text:
        parts.append(_box("Cause", _lines(event.cause)))
    if event.next_step:
        parts.append(_box("What to do now", _lines(event.next_step)))
    parts.append(f'<table role="presentation" style="border-collapse:collapse;margin-top:14px">{"".join(rows)}</table>')
    parts += [f'<p style="color:{COLOURS["warning"]};margin:10px 0 0">note: {_lines(note)}</p>' for note in event.notes]
    if event.recover:
        places = "<br>".join(escape(place) for place in event.recover)
        parts.append(_box("To restore without pgsnap", f'<span style="{MONO}">{places}</span>'))
    if event.log:
        log = escape(_log_end(event.log))
        style = f"{MONO};white-space:pre-wrap;background:#f6f8fa;padding:10px;margin:4px 0 0"
        parts.append(_box("Log", f'<pre style="{style}">{log}</pre>'))
    parts.append(f'<p style="color:#57606a;font-size:12px;margin-top:18px">pgsnap, {event.time:%Y-%m-%d %H:%M} UTC</p>')
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>{escape(event.title)}</title></head>\n'
        '<body style="margin:0;padding:16px;color:#1f2328;font:15px/1.5 -apple-system,Segoe UI,Helvetica,Arial,sans-serif">\n'
        f'<div style="max-width:720px">\n{body}\n</div></body></html>\n'
    )


def _lines(words: str) -> str:
    return escape(words).replace("\n", "<br>")


def _row(label: str, value: str) -> str:
    shown = label if label.startswith("&#") else escape(label)
    cell = "padding:3px 14px 3px 0;vertical-align:top"
    return f'<tr><td style="{cell};color:#57606a;white-space:nowrap">{shown}</td><td style="{cell}">{value}</td></tr>'


def _box(heading: str, inner: str) -> str:
    return f'<div style="margin-top:14px"><div style="font-weight:600">{heading}</div><div>{inner}</div></div>'
