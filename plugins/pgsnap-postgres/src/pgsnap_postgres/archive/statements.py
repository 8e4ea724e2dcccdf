r"""Splits what pg_dump and pg_dumpall write into statements, so that they can be run one by one.

Only what these programs write needs to be read: quoted strings (``''`` and, in ``E''``, backslashes), quoted
identifiers, dollar quotes, ``--`` comments, psql's ``\restrict`` lines. A statement keeps its text as it was,
without comments and the semicolon.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["IDENTIFIER", "quote", "split_statements", "tokens", "unquote"]

IDENTIFIER = r'(?:"(?:[^"]|"")+"|[A-Za-z_\u0080-\U0010ffff][\w$]*)'
"""A regular expression (without groups) for an identifier as these programs write it."""

_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\*.*?\*/ )
    | (?P<quoted> [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$ )
    | (?P<open> [eE]?' | " )
    | (?P<meta> ^\\[^\n]* )
    | (?P<end> ; )
    | (?P<blank> \s+ )
    | (?P<word> [\w$]+ | . )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield kind and text of everything, without a gap.

    The kinds: ``quoted``, ``blank``, ``word``, ``end``, ``comment``, ``meta``, and ``open`` for a quote that is not closed.
    """
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        assert kind is not None
        yield "quoted" if kind == "tag" else kind, match[0]


def split_statements(text: str) -> list[str]:
    """Return the statements of a script.

    Raises:
        ValueError: a quote is not closed, so that the text is not what these programs write. The message holds none of it.
    """
    found: list[str] = []
    pieces: list[str] = []
    for kind, piece in tokens(text):
        if kind == "open":
            raise ValueError("the script has a quote that is not closed")
        if kind == "end":
            found.append("".join(pieces).strip())
            pieces = []
        elif kind == "meta":
            if "".join(pieces).strip():
                pieces.append(piece)
        elif kind != "comment":
            pieces.append(piece)
    found.append("".join(pieces).strip())
    return [statement for statement in found if statement]


def quote(name: str) -> str:
    """Return a name as an identifier that stands for exactly this name, in whatever place."""
    return '"' + name.replace('"', '""') + '"'


def unquote(identifier: str) -> str:
    """Return the name that an identifier stands for."""
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier
