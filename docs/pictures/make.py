"""Draws the pictures of the messages: the HTML of a mail as it is, and a Slack message from its Block Kit JSON.

    python docs/pictures/make.py        needs the plugins, chromium and pillow; nothing else in the project does

Slack's own look cannot be had without Slack: the layout is drawn from the same JSON in its manner.
"""

from __future__ import annotations

import html
import io
import re
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from pgsnap import components as events
from pgsnap_email.message import html as mail_html
from pgsnap_slack.blocks import blocks

HERE = Path(__file__).parent
ID, BEFORE = "20261122T230000Z-4f3a", "20261121T230000Z-91c0"
WHEN = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)
LOCAL, BUCKET = "/var/backups/pgsnap", "s3://my-backups"
SPAN: dict[str, Any] = {"pipeline": "shop", "id": ID, "time": WHEN, "started": WHEN, "ended": WHEN + timedelta(seconds=192)}
SIZES: dict[str, Any] = {
    "size": 4_231_000_000, "stored_size": 903_000_000, "last_size": 4_198_000_000, "last_stored_size": 897_000_000,
}  # fmt: skip
GOOD = (events.StoreOutcome(label=LOCAL), events.StoreOutcome(label=BUCKET))
LOST = "s3://my-backups: the store refused the write: SlowDown, please reduce your request rate; try again later."
HALF = (GOOD[0], events.StoreOutcome(label=BUCKET, error=LOST))
RECOVER = (f"{LOCAL}/shop/{ID}/RECOVER.txt", f"{BUCKET}/shop/{ID}/RECOVER.txt")
DEAD = 'pg_dump failed with exit status 1: error: could not read block 7 in file "base/16384/24601": Input/output error'
LOG = f"""2026-11-22 23:00:00 info    shop: backup {ID} begins
2026-11-22 23:00:02 info    42 tables are locked, snapshot 00000004-0000001B-1 is exported
2026-11-22 23:01:10 error   no backup was made: {DEAD}
"""
EVENTS: list[events.Event] = [
    events.Started(pipeline="shop", id=ID, time=WHEN, text=f"shop: backup {ID} begins."),
    events.Succeeded(**SPAN, **SIZES, stores=GOOD, recover=RECOVER,
                     text=f"shop: {ID} is in {LOCAL}, {BUCKET}: 4.2 GB became 903 MB in 3 m 12 s."),
    events.Partial(**SPAN, **SIZES, stores=HALF, recover=RECOVER[:1], cause=LOST,
                   next_step="When that is put right, bring it up to date without another dump: pgsnap copy shop",
                   text=f"shop: {ID} is in {LOCAL}: 4.2 GB became 903 MB in 3 m 12 s. Missing: {LOST}"),
    events.Failed(**SPAN, cause=DEAD, text=f"shop: no backup was made. {DEAD}", log=LOG,
                  stores=tuple(events.StoreOutcome(label=each, error="the backup was not finished.") for each in (LOCAL, BUCKET)),
                  next_step="'pgsnap doctor shop' looks whether a backup would work now; when it does, run: pgsnap backup shop"),
    events.Suspect(**SPAN, **(SIZES | {"size": 41_000_000, "stored_size": 9_000_000}), stores=GOOD, recover=RECOVER,
                   cause="rows fell from 18,204,112 to 90,431 (-99.5%) against the largest of the last 7 good backups.",
                   next_step=f"If that was meant, say so: pgsnap ack {ID}. Nothing is pruned until then.",
                   text=f"shop: {ID} exists, but most of the database seems to be gone."),
    events.Verified(pipeline="shop", id=BEFORE, time=WHEN, size=1_806_000_000, decoded=True,
                    stores=(GOOD[0], events.StoreOutcome(label=BUCKET, error="shop.dump.age: block 17 is damaged.")),
                    text=f"shop: {BEFORE} is damaged or cannot be read in {BUCKET}.",
                    next_step=f"It is whole in {LOCAL}: run 'pgsnap verify shop --backup {BEFORE} --repair'."),
    events.Drilled(**SPAN, checks=(("tables", "42 of 42 agree"), ("rows", "18,204,112")),
                   text=f"shop: {ID} was restored into a throwaway server and agrees with the database as it was."),
    events.Pruned(pipeline="shop", time=WHEN, store=LOCAL, deleted=("20261114T230000Z-77aa",), kept=7, size=897_000_000,
                  text="shop: one backup was removed, by keep.daily = 7."),
    events.Summary(pipeline="shop", time=WHEN, count=7, since=WHEN - timedelta(days=7), sizes=(870_000_000, 903_000_000),
                   text=f"shop: 7 backups made since 2026-11-15; the newest is {ID}.",
                   stores=(events.StoreSummary(label=LOCAL, count=7, size=6_200_000_000, newest=WHEN,
                                               proved=WHEN - timedelta(days=1)),
                           events.StoreSummary(label=BUCKET, count=23, size=19_400_000_000, newest=WHEN))),
    events.TestMessage(pipeline="shop", time=WHEN, text="shop: this is a test of pgsnap's notifications. Nothing has happened."),
]  # fmt: skip


def slack_html(event: events.Event) -> str:
    """Return a page that shows a message's blocks in Slack's manner."""

    def words(text: str) -> str:
        text = re.sub(r"```(.*?)```", r"<pre>\1</pre>", text, flags=re.DOTALL)
        return re.sub(r"^\*(.+?)\*", r"<b>\1</b>", text, flags=re.MULTILINE).replace("\n", "<br>")

    parts = []
    for block in blocks(event):
        if block["type"] == "header":
            parts.append(f"<h1>{html.escape(block['text']['text'])}</h1>")
        elif block["type"] == "context":
            parts.append(f"<small>{words(block['elements'][0]['text'])}</small>")
        elif "fields" in block:
            parts.append(
                "<div class=fields>" + "".join(f"<div>{words(each['text'])}</div>" for each in block["fields"]) + "</div>"
            )
        else:
            parts.append(f"<p>{words(block['text']['text'])}</p>")
    style = (
        "body{margin:0;padding:16px;font:15px/1.46 Lato,Helvetica,Arial,sans-serif;color:#1d1c1d}.m{display:flex;gap:10px}"
        ".a{flex:none;width:36px;height:36px;border-radius:6px;background:#336791;color:#fff;text-align:center;line-height:36px}"
        "h1{font-size:18px;margin:2px 0 6px}p{margin:0 0 8px}small{color:#616061}.t{color:#616061;font-size:12px}"
        ".fields{display:grid;grid-template-columns:1fr 1fr;gap:6px 16px;margin:0 0 8px}"
        "pre{background:#f8f8f8;border:1px solid #ddd;border-radius:4px;padding:8px;font-size:12px;"
        "white-space:pre-wrap;margin:4px 0}"
    )
    head = "<b>pgsnap</b> <span class=t>APP&nbsp; 08:03</span>"
    return (
        f"<!DOCTYPE html><meta charset=utf-8><style>{style}</style>"
        f"<div class=m><div class=a>pg</div><div>{head}{''.join(parts)}</div></div>"
    )


def draw(page: str, path: Path) -> None:
    """Render a page and cut the white below it off."""
    with tempfile.TemporaryDirectory() as folder:
        source, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        source.write_text(page, encoding="utf-8")
        argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=760,1200"]
        subprocess.run([*argv, f"--screenshot={shot}", str(source)], check=True, capture_output=True)
        picture = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    bottom = Image.eval(picture.convert("L"), lambda value: 255 - value).getbbox()
    height = min(picture.height, (bottom[3] if bottom else 100) + 16)
    picture.crop((0, 0, picture.width, height)).quantize(48).save(path, optimize=True)


if __name__ == "__main__":
    for each in EVENTS:
        draw(mail_html(each), HERE / f"mail-{each.kind}.png")
        draw(slack_html(each), HERE / f"slack-{each.kind}.png")
