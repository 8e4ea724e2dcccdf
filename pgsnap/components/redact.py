"""Takes secrets out of text, as the last gate before a log, a message or a screen.

Nothing should put a secret into a message; this is for what does so all the same: a library's exception with a URL in it, a
server that repeats a connection string. A ``Redactor`` knows the values of the pipelines that it was made for, and finds them

* by type: every ``Secret`` in a field of a component, also within tuples and tables;
* by place: the password of any ``scheme://user:password@host`` in a field, a Secret's or not; what a query or a connection string
  names ``password``, ``token`` and the like; values of such a name in tables that a component does not show in its repr;
* in disguise: percent-encoded, escaped as in JSON or a Python repr, and each longer line of a secret of several lines.

What it cannot know: a value that is written in base64, cut in two, or of which only a part is shown.

A value shorter than four characters is not replaced wherever it occurs, since every ``a`` of a message would become ``***``,
but only where it stands as a password does: ``user:a@``, ``password=a``, ``token: a``. Do not use such passwords.

A redactor is immutable, so threads may share it, and it is one compiled expression: a long log costs one pass.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlsplit

import attrs

from pgsnap.components.values import MASK, Secret

__all__ = ["Redactor", "secrets_in"]

SHORT = 4
"""Values shorter than this are masked only where the context says that they are secret."""

_NAMED = r"pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|private|signature|sig|api[_-]?key|access[_-]?key|account[_-]?key"
_SENSITIVE = re.compile(rf"(?:{_NAMED})\d*$|^(?:key|auth)$|private_key|secret|connection[_-]?string", re.IGNORECASE)
_AZURE = re.compile(r"(?:^|;)\s*(?:AccountKey|SharedAccessSignature)=([^;]+)", re.IGNORECASE)
_CONNINFO = re.compile(r"(?:^|\s)(?:ssl)?password\s*=\s*('(?:[^'\\]|\\.)*'|[^\s']+)")
_LENIENT = "surrogateescape"
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class Redactor:
    """Replaces the secrets it knows by ``***``.

    Args:
        values: The secret values. Their encoded forms are found too; empty ones are ignored.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = {value.strip() for value in values} - {""}
        forms = {form for value in known if len(value) >= SHORT for form in _forms(value)}
        short = sorted((re.escape(value) for value in known if len(value) < SHORT), key=len, reverse=True)
        self._count = len(known)
        patterns = []
        if forms:
            patterns.append("|".join(re.escape(form) for form in sorted(forms, key=lambda form: (-len(form), form))))
        if short:
            some = "|".join(short)
            patterns.append(rf"(?<=:)(?:{some})(?=@)")
            patterns.append(rf"(?P<name>(?i:\b(?:{_NAMED}))['\"]?\s*[=:]\s*['\"]?)(?:{some})(?!\w)")
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    @classmethod
    def from_components(cls, components: Iterable[object], *, extra: Iterable[str] = ()) -> Redactor:
        """Return a redactor of every secret that the fields of components hold, and of ``extra`` values."""
        return cls({*extra, *(value for component in components for value in secrets_in(component))})

    def __call__(self, text: str) -> str:
        """Return ``text`` with every known secret replaced by ``***``."""
        if self._pattern is None:
            return text
        return self._pattern.sub(_mask, text)

    def filter(self) -> logging.Filter:
        """Return a filter for a logging handler: it redacts the message with its arguments, the exception's text and the stack.

        The record is changed for the handlers that come after, too. The exception itself is taken out of it and its redacted text
        left in ``exc_text``, where formatters look first; one that formats ``exc_info`` by itself would let a secret out.
        """
        return _Filter(self)

    def __repr__(self) -> str:
        return f"<Redactor of {self._count} values>"


def _mask(match: re.Match[str]) -> str:
    return (match.groupdict().get("name") or "") + MASK


class _Filter(logging.Filter):
    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception:  # the arguments do not fit the message: whoever wrote it shall see so, without the values
            text = f"{record.msg!s} {record.args!r}"
        record.msg, record.args = self._redactor(text), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.exc_info = None
        record.exc_text = record.exc_text and self._redactor(record.exc_text)
        record.stack_info = record.stack_info and self._redactor(record.stack_info)
        for key in record.__dict__.keys() - _STANDARD:
            record.__dict__[key] = self._cleaned(record.__dict__[key])
        return True

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._redactor(value)
        if isinstance(value, Mapping):
            return {key: self._cleaned(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._cleaned(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        text = str(value)
        clean = self._redactor(text)
        return value if clean == text else clean


# --- finding ---------------------------------------------------------------------------------------------------------


def secrets_in(value: object) -> Iterator[str]:
    """Yield every secret in a component, or in anything made of attrs objects, tables and lists; some more than once."""
    return _walk(value, key="", hidden=False)


def _walk(value: object, key: str, hidden: bool) -> Iterator[str]:
    if isinstance(value, Secret):
        yield from _of_secret(value.reveal())
    elif isinstance(value, str):
        if hidden and _SENSITIVE.search(key):
            yield from _of_secret(value)
        else:
            yield from _of_url(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _walk(item, str(name), hidden)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _walk(item, key, hidden)
    elif attrs.has(type(value)):
        for field in attrs.fields(cast("type[attrs.AttrsInstance]", type(value))):
            yield from _walk(getattr(value, field.name, None), field.name, hidden or field.repr is False)


def _of_secret(text: str) -> Iterator[str]:
    """Yield a secret and the parts of it that are secret by themselves."""
    yield text
    lines = [line.strip() for line in text.splitlines()]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= 8)
    yield from _AZURE.findall(text)
    if "://" in text:
        yield from _of_url(text)
        parts = _split(text)
        if parts is not None and parts.scheme in ("http", "https") and len(parts.path) >= 12:
            # A web hook: HTTP libraries complain about the path alone.
            yield parts.path + (f"?{parts.query}" if parts.query else "")
            yield parts.path
    else:
        for match in _CONNINFO.finditer(text):
            yield re.sub(r"\\(.)", r"\1", match[1][1:-1]) if match[1].startswith("'") else match[1]
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except ValueError:
            return
        yield from _walk(document, key="", hidden=True)


def _split(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _of_url(text: str) -> Iterator[str]:
    """Yield what is secret of a URL that may be shown otherwise: its password, and what its query calls a password or so."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return
    plain = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password with an unencoded '/' or '#' ends where the last '@' is.
    for userinfo in {plain.rpartition("@")[0], rest.rpartition("@")[0]}:
        user, colon, password = userinfo.partition(":")
        if colon and password:
            yield password
            yield unquote(password)
        elif user and scheme.lower() in ("http", "https") and userinfo == plain.rpartition("@")[0]:
            yield user  # a token in the user's place, as code hosts and trackers have it
    parts = _split(text)
    if parts is not None:
        yield from (value for key, value in parse_qsl(parts.query) if _SENSITIVE.search(key))


def _forms(value: str) -> set[str]:
    """Return a value in all the forms in which it may come by."""
    plain = {value, unquote(value), unquote_plus(value)}
    forms = set(plain)
    for form in plain:
        encoded = {quote(form, safe="", errors=_LENIENT), quote(form, errors=_LENIENT), quote_plus(form, errors=_LENIENT)}
        forms |= encoded | {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), text) for text in encoded}
        forms |= {json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1], repr(form)[1:-1]}
    return {form for form in forms if len(form) >= SHORT}
