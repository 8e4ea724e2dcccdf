"""The pipeline that the environment alone describes, for a hosted project that has its variables already and no file.

    DATABASE_URL             what to dump
    PGSNAP_NAME              the pipeline's name; by default the database's
    PGSNAP_DIR               the local directory, kept for 7 days; by default in the user's data folder
    AWS_S3_BACKUP_BUCKET     a second place (its driver reads AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)
    GCS_BACKUP_BUCKET        another (its driver reads GOOGLE_APPLICATION_CREDENTIALS)
    PGSNAP_AGE_RECIPIENTS    encrypt for these, separated by commas
    SLACK_WEBHOOK_URL        tell a channel
    ADMIN_EMAIL              tell a person, with SMTP_SERVER, SMTP_PORT, SMTP_USERNAME, SMTP_PASSWORD, SMTP_SENDER
    HEALTHCHECKS_URL         ping a dead man's switch, which notices a night in which nothing ran

It is made as the same document that a TOML file would be, with secrets as ``{ env = … }``: so the same rules check it, and
``pgsnap init`` writes it down as it is. A variable whose plugin is missing is an error, not a skip.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

from pgsnap.components.values import Finding, escape_name
from pgsnap.config.values import split_text
from pgsnap.errors import ConfigError

__all__ = ["Described", "describe_environment", "is_described"]

BUCKETS = {"AWS_S3_BACKUP_BUCKET": "s3", "GCS_BACKUP_BUCKET": "gs"}
SMTP = {"server": "SMTP_SERVER", "port": "SMTP_PORT", "username": "SMTP_USERNAME", "password": "SMTP_PASSWORD"}
SMTP |= {"sender": "SMTP_SENDER"}
KEPT_DAYS = 7


@attrs.frozen
class Described:
    """A pipeline as the environment describes it.

    ``document`` is what a TOML file would have become; ``because`` names the variable behind a component's path; ``notes`` say
    which variables made which part, without values that are secret.
    """

    name: str
    document: Mapping[str, Any]
    because: Mapping[str, str]
    notes: tuple[Finding, ...]


def is_described(environ: Mapping[str, str]) -> bool:
    """Return whether the environment says enough to try: a database, a bucket or a directory."""
    return any(environ.get(name) for name in ("DATABASE_URL", "PGSNAP_DIR", *BUCKETS))


def describe_environment(environ: Mapping[str, str], *, dump: bool = True) -> Described:
    """Return the pipeline that the environment describes.

    Args:
        dump: The database is needed. Where it is not, a recovery host does without DATABASE_URL.

    Raises:
        ConfigError: a variable is missing or does not fit another one.
    """
    problems: list[str] = []
    notes: list[Finding] = []
    because: dict[str, str] = {}

    def note(variable: str, text: str, remedy: str = "") -> None:
        notes.append(Finding("warning" if remedy else "info", variable, text, remedy))

    if dump and not environ.get("DATABASE_URL"):
        problems.append("environment: DATABASE_URL is not set; set it to postgresql://USER:PASSWORD@HOST/DATABASE.")
    try:
        name = _name(environ)
    except ConfigError as error:
        problems = problems or [f"environment: {error}"]
        name = "database"
    path = f"pipeline.{name}"
    note("PGSNAP_NAME" if environ.get("PGSNAP_NAME") else "DATABASE_URL", f"names the pipeline {name!r}.")
    if environ.get("DATABASE_URL"):
        because[f"{path}.dump"] = "DATABASE_URL"
        note("DATABASE_URL", "is the database that is dumped.")

    transforms: list[dict[str, Any]] = [{"use": "gzip"}]
    recipients = environ.get("PGSNAP_AGE_RECIPIENTS")
    if recipients:
        because[f"{path}.transform[{len(transforms)}]"] = "PGSNAP_AGE_RECIPIENTS"
        transforms.append({"use": "age", "recipients": split_text(recipients)})
        note("PGSNAP_AGE_RECIPIENTS", f"encrypts for {len(split_text(recipients))} recipients.")
    else:
        note(
            "PGSNAP_AGE_RECIPIENTS",
            "is not set: backups are not encrypted; role passwords are left out.",
            "Set it to a public key; 'pgsnap keygen' makes one.",
        )
    transforms += [{"use": "checksum", "algorithm": "md5"}, {"use": "checksum", "algorithm": "sha256"}]

    stores: list[dict[str, Any]] = []
    try:
        stores.append({"url": _directory(environ), "keep": {"daily": KEPT_DAYS}})
        chosen = "is" if environ.get("PGSNAP_DIR") else "is not set: the default is"
        note("PGSNAP_DIR", f"{chosen} the local directory {stores[0]['url']}, kept for {KEPT_DAYS} days.")
    except ConfigError as error:
        problems.append(f"environment: {error}")
    for variable, scheme in BUCKETS.items():
        if bucket := environ.get(variable, "").strip().strip("/"):
            because[f"{path}.store[{len(stores)}]"] = variable
            stores.append({"url": bucket if "://" in bucket else f"{scheme}://{bucket}"})
            note(variable, f"is a second place: {stores[-1]['url']}.")
    problems += _credentials(environ)

    notifiers: list[dict[str, Any]] = []
    if environ.get("SLACK_WEBHOOK_URL"):
        because[f"{path}.notify[0]"] = "SLACK_WEBHOOK_URL"
        notifiers.append({"use": "slack", "webhook": {"env": "SLACK_WEBHOOK_URL"}})
        note("SLACK_WEBHOOK_URL", "is told how each run ended.")
    if environ.get("ADMIN_EMAIL") and environ.get("SMTP_SERVER"):
        because[f"{path}.notify[{len(notifiers)}]"] = "ADMIN_EMAIL"
        smtp = {option: {"env": variable} for option, variable in SMTP.items() if environ.get(variable)}
        notifiers.append({"use": "email", "to": split_text(environ["ADMIN_EMAIL"]), **smtp})
        note("ADMIN_EMAIL", "gets an e-mail about each run.")
    elif environ.get("ADMIN_EMAIL"):
        note("ADMIN_EMAIL", "gets no e-mail, because SMTP_SERVER is not set.", "Set SMTP_SERVER, or unset ADMIN_EMAIL.")
    if environ.get("HEALTHCHECKS_URL"):
        because[f"{path}.notify[{len(notifiers)}]"] = "HEALTHCHECKS_URL"
        notifiers.append({"use": "webhook", "preset": "healthchecks", "url": {"env": "HEALTHCHECKS_URL"}})
        note("HEALTHCHECKS_URL", "is pinged at the start and the end of each run.")
    if problems:
        raise ConfigError(problems=problems)

    table: dict[str, Any] = {"dump": {"use": "pg_dump", "url": {"env": "DATABASE_URL"}}, "transform": transforms, "store": stores}
    if notifiers:
        table["notify"] = notifiers
    return Described(name, {"pipeline": {name: table}}, because, tuple(notes))


def _name(environ: Mapping[str, str]) -> str:
    name = environ.get("PGSNAP_NAME")
    if name:
        return name
    url = environ.get("DATABASE_URL", "")
    database = _database(url)
    if not database:
        why = "does not name a database that can be read from it" if url else "is not set"
        raise ConfigError(f"the pipeline has no name: DATABASE_URL {why}, and PGSNAP_NAME is not set; set PGSNAP_NAME.")
    return escape_name(database)


_PAIR = r"\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|[^\s'=@/:]*)"


def _database(text: str) -> str:
    """Return the database that a URL or a connection string names, as libpq reads it: else that of the user's name.

    What is not understood gives no name: a part of it may be a password, and the name becomes a folder in every store.
    """
    text = unquoted(text)
    if "://" not in text:
        if not re.fullmatch(rf"\s*{_PAIR}(?:\s+{_PAIR})*\s*", text):
            return ""
        found = {key: quoted or bare for key, quoted, bare in re.findall(r"(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^\s']+))", text)}
        return str(found.get("dbname") or found.get("user", ""))
    try:
        parts = urlsplit(text.removeprefix("jdbc:"))
    except ValueError:
        return ""
    path = parts.path.removeprefix("/")
    rest = path + parts.query + parts.fragment
    if parts.scheme.partition("+")[0] not in ("postgres", "postgresql") or "/" in path or "@" in rest or ":" in path:
        return ""
    query = parse_qs(parts.query)
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    return query.get("dbname", [""])[-1] or unquote(path) or unquote(user)


def _directory(environ: Mapping[str, str]) -> str:
    """Return the local directory, absolute: a relative one would move with the directory that cron starts us in."""
    given = environ.get("PGSNAP_DIR")
    home = environ.get("HOME") or (os.path.expanduser("~") if os.path.isabs(os.path.expanduser("~")) else "")
    if given:
        if given.startswith("file://"):
            return given
        if "://" in given:
            raise ConfigError("PGSNAP_DIR wants a directory, not a URL; for other stores write a file with 'pgsnap init'.")
        return os.path.abspath(home + given[1:] if home and (given == "~" or given.startswith("~/")) else given)
    data = environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data):
        return os.path.join(data, "pgsnap")
    if not home:
        raise ConfigError("PGSNAP_DIR is not set and there is no HOME for the default; set PGSNAP_DIR to a directory.")
    return os.path.join(home, ".local", "share", "pgsnap")


def _credentials(environ: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the variables that the drivers of the buckets read by themselves."""
    problems = []
    if environ.get("AWS_S3_BACKUP_BUCKET"):
        pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        given = [name for name in pair if environ.get(name)]
        if len(given) == 1:
            other = pair[1 - pair.index(given[0])]
            problems.append(f"environment: {given[0]} is set without {other}; set both, or neither where the machine has a role.")
    credentials = environ.get("GOOGLE_APPLICATION_CREDENTIALS", "").strip()
    if environ.get("GCS_BACKUP_BUCKET") and credentials:
        variable = "environment: GOOGLE_APPLICATION_CREDENTIALS"
        if unquoted(credentials).lstrip("'\" ").startswith("{"):
            try:
                json.loads(unquoted(credentials))
            except ValueError:
                problems.append(f"{variable} begins like JSON, but is none; set it again, whole.")
        elif not os.path.isfile(credentials):
            # Anything else may be a key that somebody pasted.
            harmless = re.fullmatch(r"[/.~][\w./ -]{0,200}|[\w.-]{1,100}\.json", credentials)
            shown = f"is {credentials!r}, which is no file" if harmless else "names no file; it is not shown, it may be a key"
            problems.append(f"{variable} {shown}; set it to the path of a service account's file, or to its JSON.")
    return problems


def unquoted(text: str) -> str:
    """Return a text without the quotes that an env file has kept around it, once."""
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
