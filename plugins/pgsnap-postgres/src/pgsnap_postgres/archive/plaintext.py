"""Check plain SQL from pg_dump or pg_dumpall as it flows by: is it whole?

What proves it:

- Clients since August 2025 open with ``\\restrict KEY``, 63 random letters and digits that nobody but this run of pg_dump knows,
  and close with ``\\unrestrict KEY``. If the stream ends exactly with pg_dump's closing lines and that key, no row, function body
  or name can have imitated them. Then nothing else of the text is looked at.
- Without such a key (older clients, a key chosen by hand, a whole cluster by pg_dumpall) data can hold the closing lines, and a
  stream cut right behind them would pass. So the text is followed as psql would: the closing lines count only where they are
  comments, outside COPY data, string literals, quoted names and dollar-quoted bodies.

Theory of operation of the second way: a regular expression runs over everything between the places where the meaning can
change; inside COPY data, literals and bodies only their end is searched for, so that a line of a gigabyte costs no memory. It
relies on what pg_dump writes, not on SQL in general: quotes inside literals are doubled and never escaped by a backslash (also
in ``E''``, and with ``standard_conforming_strings`` off), comments are ``--`` lines, and a line that begins with ``COPY`` outside
of them begins a COPY statement.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from pgsnap import DumpError
from pgsnap.streams import Chunks, Stream

__all__ = ["check_plain"]

_HEAD = 256  # bytes in which the opening lines are looked for
_TAIL = 1024  # bytes at the end in which the closing lines are looked for; a key chosen by hand may be long
_LINE = 1 << 20  # bytes that a statement or a comment may have before it is taken apart

_OPENING = re.compile(rb"--\n-- PostgreSQL database (cluster )?dump\n--\n\n(?:\\restrict ([^\n]+)\n)?")
_RANDOM_KEY = re.compile(rb"[A-Za-z0-9]{63}")
_COMPLETE_DUMP = b"-- PostgreSQL database dump complete\n"
_COMPLETE_CLUSTER = b"-- PostgreSQL database cluster dump complete\n"
_CLOSING_DUMP = b"--\n" + _COMPLETE_DUMP + b"--\n\n"
_CLOSING_CLUSTER = b"--\n" + _COMPLETE_CLUSTER + b"--\n\n"


def check_plain(chunks: Chunks) -> Stream:
    """Pass the output of pg_dump or pg_dumpall through unchanged; end without an error only if it is whole.

    The chunks that come in go out as they are. Holds one chunk, and at most 1 MiB of a COPY statement.

    Raises:
        DumpError: the text is cut, is followed by something, or is not from pg_dump. A cut shows when the stream ends:
            whoever consumes must not act on the last chunk before that.
    """
    head, tail, size = b"", b"", 0
    opening: _Opening | None = None
    for chunk in chunks:
        if not chunk:
            continue
        size += len(chunk)
        tail = chunk[-_TAIL:] if len(chunk) >= _TAIL else (tail + chunk)[-_TAIL:]
        if opening is not None:
            opening.follow(chunk)
        else:
            head += chunk
            if len(head) >= _HEAD:
                opening, head = _Opening(head), b""
        yield chunk
    (opening or _Opening(head)).finish(tail, size)


class _Opening:
    """What the opening lines say, and therefore how the end is to be judged."""

    def __init__(self, head: bytes) -> None:
        match = _OPENING.match(head)
        if match is None:
            raise DumpError(
                f"the dump is not whole: it begins with {head[:40]!r} and not as pg_dump's plain format does; take it again."
            )
        cluster = match[1] is not None
        key: bytes | None = match[2]
        self._closing = _CLOSING_CLUSTER if cluster else _CLOSING_DUMP
        # a cluster's closing lines hold no key
        guarded = key is not None and not cluster and _RANDOM_KEY.fullmatch(key) is not None
        self._text = None if guarded else _Text(_COMPLETE_CLUSTER if cluster else _COMPLETE_DUMP)
        if key is not None and not cluster:
            self._closing += b"\\unrestrict " + key + b"\n\n"
        self.follow(head)

    def follow(self, chunk: bytes) -> None:
        if self._text is not None:
            self._text.feed(chunk)

    def finish(self, tail: bytes, size: int) -> None:
        """Raise unless the closing lines are there and mean what they say."""
        if not tail.endswith(self._closing):
            reason = f"it does not end with pg_dump's closing lines but with {tail[-40:]!r}"
        elif self._text is None or self._text.ends_with_comment(size - len(self._closing) + 3):
            return
        else:
            reason = f"its last lines look like pg_dump's closing lines but are a part of {self._text.place}"
        raise DumpError(
            f"the dump is not whole: after {size} bytes {reason}; the backup must be taken again; the log of the database "
            "server says what ended pg_dump."
        )


# --- following the text ----------------------------------------------------------------------------------------------

_State: TypeAlias = Literal["sql", "literal", "name", "body", "comment", "copy"]
_PLACES = {
    "sql": "an earlier part",
    "literal": "a string literal",
    "name": "a quoted name",
    "body": "a dollar-quoted body",
    "comment": "a comment",
    "copy": "a table's data",
}

# A possessive repeat of more than a set of bytes is not to be used: until Python 3.11.4 it takes too much (gh-106052).
# Everything up to a place where the meaning may change, or a part of it: matched again and again, until it matches nothing.
# Counted, because each turn of the repeat is kept in memory. It stops at what the next chunk could complete.
_PLAIN_SQL = re.compile(rb"""(?:[^'"$\-\n]++|'[^']*+'|"[^"]*+"|-(?!-|\Z)|\n(?!C|\Z)){0,1000}""")
_COPY = re.compile(rb'\nCOPY [^";]*+(?:"[^"]*+"[^";]*+)*;')
_DOLLAR = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z_0-9\x80-\xff]*+)?\$")
_DOLLAR_BEGUN = re.compile(rb"\$(?:[A-Za-z_\x80-\xff][A-Za-z_0-9\x80-\xff]{0,255})?\Z")


class _Text:
    """Follows SQL through chunks and knows whether a position is SQL, or inside of something."""

    def __init__(self, complete: bytes) -> None:
        self._comment = complete
        self._state: _State = "sql"
        self._end = b""  # what ends a literal, name, body, comment or data
        self._rest = b"\n"  # not looked at yet: the next chunk may complete it; at first the line before the first
        self._base = -1  # offset of ``_rest`` in the stream
        self._complete: list[int] = []  # offsets of the comments that say that the dump is complete

    @property
    def place(self) -> str:
        return _PLACES[self._state]

    def feed(self, chunk: bytes) -> None:
        data = self._rest + chunk
        at = self._look(data)
        self._rest = data[at:]
        self._base += at

    def ends_with_comment(self, offset: int) -> bool:
        """Whether the text ends in SQL and the comment at ``offset`` is the only one that says "complete"."""
        return self._state == "sql" and self._complete == [offset]

    def _enter(self, state: _State, end: bytes) -> None:
        self._state, self._end = state, end

    def _look(self, data: bytes) -> int:
        """Follow the text; return how far it got: what remains is a beginning that more data may complete."""
        at, size = 0, len(data)
        while at < size:
            if self._state != "sql":
                found = data.find(self._end, at)
                if found < 0:
                    return max(at, size - len(self._end) + 1)
                at = found + len(self._end) - (self._end[-1:] == b"\n")  # a line's end is also the next one's beginning
                self._state = "sql"
                continue
            begun = at
            at = _PLAIN_SQL.match(data, at).end()  # type: ignore[union-attr]  # it matches the empty text, too
            if at > begun:
                continue
            mark = data[at : at + 1]
            if mark == b"'":
                self._enter("literal", mark)
                at += 1
            elif mark == b'"':
                self._enter("name", mark)
                at += 1
            elif mark == b"$":
                if dollar := _DOLLAR.match(data, at):
                    self._enter("body", dollar[0])
                    at = dollar.end()
                elif _DOLLAR_BEGUN.match(data, at):
                    return at
                else:  # a parameter: $1
                    at += 1
            elif mark == b"-":
                line_end = data.find(b"\n", at)
                if line_end < 0 and size - at < _LINE:
                    return at
                if len(self._complete) < 2 and data.startswith(self._comment, at):
                    self._complete.append(self._base + at)
                if line_end < 0:
                    self._enter("comment", b"\n")
                at = size if line_end < 0 else line_end
            else:
                if size - at < 6:
                    return at
                if data.startswith(b"\nCOPY ", at):
                    copy = _COPY.match(data, at)
                    if copy is None:
                        if size - at < _LINE:
                            return at
                        raise DumpError(
                            f"the dump is not whole: the COPY statement at byte {self._base + at} does not end within 1 MiB, "
                            "as each that pg_dump writes does; take the dump again."
                        )
                    if copy.end() == size:
                        return at
                    if copy[0].endswith(b" FROM stdin;") and data.startswith(b"\n", copy.end()):
                        self._enter("copy", b"\n\\.\n")
                        at = copy.end()
                        continue
                at += 1
        return size
