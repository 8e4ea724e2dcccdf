"""An event as a Slack message: Block Kit, within the limits that Slack documents.

Sources: docs.slack.dev/reference/block-kit/blocks (50 blocks a message; a header 150 characters; a section's text 3,000, at most
10 fields of 2,000; 10 elements a context), docs.slack.dev/messaging/formatting-message-text (``&``, ``<``, ``>`` are escaped, and
texts are ``verbatim``, so that one from a database can neither make a link nor call ``@channel``).
"""

from __future__ import annotations

from typing import Any, TypeAlias

from pgsnap.components import Event, clip

__all__ = ["FALLBACK", "blocks", "escape", "fallback"]

Block: TypeAlias = dict[str, Any]

BLOCKS = 50
HEADER = 150
SECTION = 3000
FIELD = 2000
FIELDS = 10
FALLBACK = 4000
"""Characters of the text that stands in notifications; Slack cuts it beyond 40,000 and advises 4,000."""
STORE_SECTIONS = 20


def escape(text: str, limit: int) -> str:
    """Return a text for ``mrkdwn`` of at most ``limit`` characters, cut with a mark; what would be markup is shown as it is."""
    plain = _printable(text)
    low, high = 0, min(len(plain), limit)
    while low < high:  # the longest that fits once it is escaped
        middle = (low + high + 1) // 2
        if len(_escaped(clip(plain, middle))) <= limit:
            low = middle
        else:
            high = middle - 1
    return _escaped(clip(plain, low))


def _printable(text: str) -> str:
    return "".join(character for character in text if character in "\n\t" or character.isprintable())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fallback(event: Event) -> str:
    """Return the text for notifications and for readers that show no blocks."""
    return escape(f"{event.mark} {event.title}\n{event.text}", FALLBACK)


def blocks(event: Event) -> list[Block]:
    """Return the message: outcome, facts, stores, cause, next step, where RECOVER.txt lies, the end of the log."""
    title = clip(f"{event.mark} {event.title}", HEADER)
    made: list[Block] = [{"type": "header", "text": {"type": "plain_text", "text": title, "emoji": True}}]
    if not event.cause or event.cause not in event.text:
        made += _section("", event.text)
    fields = [_mrkdwn(f"*{escape(label, 200)}*\n{escape(value, FIELD - 300)}") for label, value in event.facts]
    for start in range(0, len(fields), FIELDS):
        made.append({"type": "section", "fields": fields[start : start + FIELDS]})
    if event.kind != "summary":
        made += _stores(event)
    made += _section("Cause", event.cause)
    made += _section("What to do now", event.next_step)
    made += _section("Notes", "\n".join(event.notes))
    if event.recover:
        made += _section("To restore without pgsnap", "\n".join(event.recover))
    made += _log(event.log)
    made = made[: BLOCKS - 1]
    made.append({"type": "context", "elements": [_mrkdwn(f"pgsnap · {event.time:%Y-%m-%d %H:%M} UTC")]})
    return made


def _mrkdwn(text: str) -> Block:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _section(heading: str, text: str) -> list[Block]:
    if not text.strip():
        return []
    head = f"*{heading}*\n" if heading else ""
    return [{"type": "section", "text": _mrkdwn(head + escape(text, SECTION - len(head)))}]


def _stores(event: Event) -> list[Block]:
    """A line for each store, as many to a section as fit."""
    pieces: list[str] = []
    for store in event.stores:
        sign = "\N{CROSS MARK}" if store.error else "\N{WHITE HEAVY CHECK MARK}"
        line = f"{sign} {escape(store.label, 500)}" + (f"\n      {escape(store.error, 1500)}" if store.error else "")
        if pieces and len(pieces[-1]) + len(line) + 1 <= SECTION:
            pieces[-1] += f"\n{line}"
        else:
            pieces.append(line)
    made: list[Block] = [{"type": "section", "text": _mrkdwn(piece)} for piece in pieces[:STORE_SECTIONS]]
    if len(pieces) > STORE_SECTIONS:
        made += _section("", "… and more stores than fit into a message")
    return made


def _log(log: str) -> list[Block]:
    """The end of the log, where the reason is."""
    if not log.strip():
        return []
    room = SECTION - 200
    lines: list[str] = []
    for line in reversed(log.rstrip().splitlines()):
        if sum(len(escape(each, room)) + 1 for each in [*lines, line]) > room:
            break
        lines.insert(0, line)
    shown = "\n".join(lines) or log.rstrip()[-500:]
    left_out = len(log.rstrip()) - len(shown)
    head = f"*Log* (the last of it; {left_out:,} characters before are left out)" if left_out else "*Log*"
    inner = _escaped(_printable(shown).replace("```", "'''"))
    return [{"type": "section", "text": _mrkdwn(f"{head}\n```{inner}```")}]
