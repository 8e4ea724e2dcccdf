"""The file that ``pgsnap init`` writes: the pipeline that the environment describes, with comments and what else there is.

Secrets are written as ``{ env = … }``. Read back in the same environment, the file gives the pipeline that the environment gave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pgsnap.config.environment import describe_environment, is_described

__all__ = ["init_toml"]

HEAD = """\
# pgsnap's configuration. 'pgsnap doctor' checks it, 'pgsnap backup' runs it.
# A value may stand elsewhere: { env = "NAME" }, { file = "PATH" } or { command = ["PROGRAM", "ARGUMENT"] }.
"""
NOTHING = """\
# The environment says nothing about a database yet: this is an example to be changed.
"""
RUN = """\
# timeout = "2h"          # a run that takes longer is aborted
# quorum = 2              # a run that is kept in fewer stores than this has failed
# timezone = "UTC"        # in which the days of 'keep' are counted
# schedule = "0 8 * * *"  # for 'pgsnap schedule', in the time zone above
# keep = { daily = 7, weekly = 4, monthly = 12 }      # for every store that has no 'keep' of its own
"""
COMMENTS = {
    "pg_dump": "What is dumped. The archive is compressed by pg_dump itself where that can (version 16 and newer).",
    "gzip": "Compresses what pg_dump has not compressed already.",
    "age": "Encrypts: only the private keys of these recipients can read the backups. They are not needed to make one.",
    "checksum": "Puts a file beside each stored one that md5sum -c or sha256sum -c accepts.",
    "slack": "Tells a channel how each run ended.",
    "email": "Tells a person how each run ended.",
    "webhook": "Pings a dead man's switch, which notices a night in which nothing ran.",
}
NO_AGE = """\
# Encryption: 'pgsnap keygen' makes a key pair; only who has its private key can read the backups.
# Without encryption, passwords of roles are left out of the backups. This goes before the checksums.
# [[pipeline.{name}.transform]]
# use = "age"
# recipients = ["age1..."]
"""
NO_BUCKET = """\
# A second place, outside of this machine. Every store gets the same bytes of one dump.
# [[pipeline.{name}.store]]
# url = "s3://my-backups/pgsnap"
"""


def init_toml(environ: Mapping[str, str]) -> str:
    """Return the text of a configuration file: the environment's pipeline, or an example where it describes none.

    Raises:
        ConfigError: the environment contradicts itself.
    """
    described = is_described(environ)
    missing = {} if environ.get("DATABASE_URL") or environ.get("PGSNAP_NAME") else {"PGSNAP_NAME": "mydatabase"}
    made = describe_environment({**environ, **missing}, dump=False)
    name = _key(made.name)
    table: Mapping[str, Any] = made.document["pipeline"][made.name]
    parts = [HEAD + ("" if described else NOTHING), f"[pipeline.{name}]\n{RUN}"]
    parts.append(_section(f"[pipeline.{name}.dump]", table["dump"]))
    encrypted = any(item["use"] == "age" for item in table["transform"])
    seen = set()
    for item in table["transform"]:
        if item["use"] == "checksum" and "checksum" not in seen and not encrypted:
            parts.append(NO_AGE.format(name=name))
        parts.append(_section(f"[[pipeline.{name}.transform]]", item, comment=item["use"] not in seen))
        seen.add(item["use"])
    parts += [_section(f"[[pipeline.{name}.store]]", item) for item in table["store"]]
    if len(table["store"]) == 1:
        parts.append(NO_BUCKET.format(name=name))
    parts += [_section(f"[[pipeline.{name}.notify]]", item) for item in table.get("notify", ())]
    return "\n".join(parts)


def _section(head: str, table: Mapping[str, Any], *, comment: bool = True) -> str:
    text = COMMENTS.get(table.get("use", "")) if comment else None
    lines = [f"# {text}"] if text else []
    return "\n".join([*lines, head, *(f"{_key(key)} = {_value(value)}" for key, value in table.items())]) + "\n"


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key) else _value(key)


def _value(value: object) -> str:
    """Write a value as TOML. A JSON string is a TOML string, but for DEL, which TOML wants escaped."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)
