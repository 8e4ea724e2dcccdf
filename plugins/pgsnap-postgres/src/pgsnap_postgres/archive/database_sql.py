"""Write ``database.sql``: what belongs to a database itself and comes back with none of its objects.

Without ``-C`` pg_restore leaves out the database's encoding, locale, owner, settings (also those of roles in this database),
privileges and comment; pg_dumpall's globals have none of them. A copy without them is open to everybody where the original was
not. A custom archive always says them, in its table of contents.

The text is a script for psql, in the order in which ``pg_restore -C`` would run it. The name of the database is everywhere psql's
variable ``DB``, quoted as a name, so that it can be restored under any: ``psql -v DB=name -d postgres -f database.sql``.
"""

from __future__ import annotations

from collections.abc import Iterator

from pgsnap import DumpError

from .statements import quote, tokens, unquote
from .toc import Toc, TocEntry

__all__ = ["PLACEHOLDER", "database_sql", "owners"]

PLACEHOLDER = ':"DB"'
"""What stands for the database's name: psql puts the variable in, quoted as a name."""

_HEADER = """\
-- What belongs to the database itself: encoding, locale, owner, settings, privileges, comment.
-- psql -v DB=name -d postgres -f database.sql
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
"""
_ABOUT = ("COMMENT", "SECURITY LABEL", "ACL")


def database_sql(toc: Toc) -> str:
    """Return the script. Bytes that are not valid in the dump's encoding become U+FFFD, so that it is always valid UTF-8.

    Raises:
        DumpError: the archive says nothing of its database, as ``pg_dump`` always does for a custom archive.
    """
    database = next((entry for entry in toc.entries if entry.desc == "DATABASE"), None)
    if database is None:
        raise DumpError(
            "the dump says nothing of its database (encoding, owner, settings), as if only parts of it had been dumped; "
            "take the dump with pg_dump's custom format."
        )
    plain = any(entry.desc == "STDSTRINGS" and "'off'" not in entry.defn for entry in toc.entries)
    name = database.tag
    parts = [_HEADER, _renamed(database.defn, name, plain)]
    if database.owner:
        parts.append(f"ALTER DATABASE {PLACEHOLDER} OWNER TO {quote(database.owner)};\n")
    for desc in ("COMMENT", "SECURITY LABEL", "DATABASE PROPERTIES", "ACL"):
        for entry in toc.entries:
            if entry.desc == desc and (desc == "DATABASE PROPERTIES" or database.dump_id in entry.dependencies):
                parts.append(_renamed(entry.defn, name, plain))
    text = "\n".join(part.rstrip("\n") + "\n" for part in parts)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _renamed(defn: str, name: str, plain: bool) -> str:
    """Put the placeholder wherever the database is named: after the word DATABASE, outside of quotes.

    ``plain`` is false where backslashes in the dump's literals have a meaning (``standard_conforming_strings`` is off).
    """
    pieces: list[str] = []
    after_word = False
    for kind, piece in tokens(defn):
        if kind in ("word", "quoted"):
            if after_word and unquote(piece) == name:
                pieces.append(PLACEHOLDER)
            else:
                pieces.append(f"E{piece}" if piece.startswith("'") and not plain else piece)
            after_word = piece == "DATABASE"
        else:
            pieces.append(piece)
    return "".join(pieces)


# --- roles -----------------------------------------------------------------------------------------------------------


def owners(toc: Toc) -> tuple[str, ...]:
    """Return the names of all roles that the archive mentions: as owners, in privileges, policies, settings and user mappings.

    Sorted; PUBLIC is no role. Restoring needs them, so ``globals.sql`` must have them.
    """
    found = {entry.owner for entry in toc.entries if entry.owner}
    for entry in toc.entries:
        found.update(map(toc.shared, _roles(entry)))
    return tuple(sorted(found))


_BEFORE_ROLES = {
    "ACL": frozenset({"TO", "FROM", "AUTHORIZATION"}),
    "DEFAULT ACL": frozenset({"TO", "FROM", "ROLE"}),
    "DATABASE PROPERTIES": frozenset({"ROLE"}),
    "POLICY": frozenset({"TO"}),
    "USER MAPPING": frozenset({"FOR"}),
}
_NO_ROLES = frozenset({"PUBLIC", "public"})  # unquoted; no role can be called public


def _roles(entry: TocEntry) -> Iterator[str]:
    """The roles in an entry's statements: the names in the list behind TO, FROM and the like."""
    before = _BEFORE_ROLES.get(entry.desc)
    if before is None:
        return
    expected = in_list = False
    for kind, piece in tokens(entry.defn):
        if kind in ("blank", "comment") or piece == "GROUP":
            continue
        if piece == "(" and entry.desc == "POLICY":  # expressions follow
            return
        if expected and kind in ("word", "quoted"):
            if piece not in _NO_ROLES:
                yield unquote(piece)
            expected, in_list = False, True
        else:
            expected = piece in before or (in_list and piece == ",")
            in_list = False
