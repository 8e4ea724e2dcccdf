"""Gives a database back what belongs to it and is in none of its objects: encoding, locale, owner, settings, privileges, comment.

``database.sql`` says it, for a database of any name. The new database is created by its ``CREATE DATABASE``,
closed to the public as long as it is being filled; the rest is applied in the same transaction that gives it
its final name. What the server refuses there (a role that is missing, a setting only for superusers) is left
out and reported: the data are worth more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from pgsnap import RestoreError
from pgsnap_postgres.archive.statements import IDENTIFIER, quote, split_statements, tokens, unquote

if TYPE_CHECKING:
    from pgsnap_postgres.connection.connect import Connection
    from pgsnap_postgres.restore.target import ServerInfo

__all__ = ["Properties", "apply_properties", "create_like", "read_properties"]

_PRIVILEGE = re.compile(r"(GRANT|REVOKE|SET SESSION AUTHORIZATION|RESET SESSION AUTHORIZATION)\b")
_OWNER = re.compile(r'ALTER DATABASE (:?"(?:[^"]|"")+") OWNER TO ')
_IGNORED = re.compile(r"(SET (?!SESSION)|SELECT )", re.IGNORECASE)
_TABLESPACE = re.compile(rf"\s+TABLESPACE = ({IDENTIFIER})")


@attrs.frozen
class Properties:
    """What ``database.sql`` says: the ``CREATE DATABASE``, empty if there is none, and the statements that follow "
    "it."""

    create: str = ""
    statements: tuple[str, ...] = ()

    def create_for(self, name: str, server: ServerInfo) -> str:
        """Return the ``CREATE DATABASE`` for a database called ``name``, in words that this server knows."""
        text = _named(self.create or 'CREATE DATABASE :"DB" WITH TEMPLATE = template0', name)
        if server.major < 15:
            text = re.sub(r"\s+LOCALE_PROVIDER = libc\b", "", text)
        space = _TABLESPACE.search(text)
        if space is not None and unquote(space[1]) not in server.tablespaces:
            text = text[: space.start()] + text[space.end() :]
        return text

    @property
    def owner(self) -> str:
        """The role that owned the database; empty if it is not said."""
        owners = [unquote(text[match.end() :].strip()) for text in self.statements if (match := _OWNER.match(text))]
        return owners[0] if owners else ""

    @property
    def wanted(self) -> str:
        """The encoding and the locale, for a message."""
        options = self.create.partition(" ENCODING ")
        return (options[1] + options[2]).strip() or "the server's own encoding and locale"


def read_properties(script: bytes) -> Properties:
    """Read ``database.sql``.

    Raises:
        RestoreError: it is not a script of pgsnap's.
    """
    try:
        statements = split_statements(script.decode("utf-8"))
    except ValueError:
        raise RestoreError(
            "database.sql of the backup cannot be read; restore by the lines of its RECOVER.txt, without database.sql."
        ) from None
    create = [text for text in statements if text.startswith("CREATE DATABASE ")]
    rest = [text for text in statements if not text.startswith("CREATE DATABASE ") and not _IGNORED.match(text)]
    return Properties(create[0] if create else "", tuple(rest))


def _named(statement: str, name: str) -> str:
    """Put a name in where the statement has ``:"DB"``, outside of strings."""
    pieces: list[str] = []
    for kind, piece in tokens(statement):
        if kind == "quoted" and piece == '"DB"' and pieces and pieces[-1] == ":":
            pieces[-1] = quote(name)
        else:
            pieces.append(piece)
    return "".join(pieces)


def create_like(connection: Connection, name: str, other: str) -> str:
    """Return the ``CREATE DATABASE`` of ``name`` with the encoding and the locale that the database ``other`` has."""
    version = connection.info.server_version
    provider = "d.datlocprovider" if version >= 150000 else "'c'"
    locale = "d.datlocale" if version >= 170000 else "d.daticulocale" if version >= 150000 else "NULL::text"
    row = connection.execute(
        f"SELECT pg_encoding_to_char(encoding), datcollate, datctype, {provider}, {locale} "
        "FROM pg_database d WHERE datname = %s".encode(),
        [other],
    ).fetchone()
    assert row is not None
    encoding, collate, ctype, kind, locale_name = row
    text = f"CREATE DATABASE {quote(name)} TEMPLATE template0 ENCODING {_literal(encoding)}"
    text += f" LC_COLLATE {_literal(collate)} LC_CTYPE {_literal(ctype)}"
    words = {"i": ("icu", "ICU_LOCALE"), "b": ("builtin", "BUILTIN_LOCALE")}.get(kind)
    return text if words is None else f"{text} LOCALE_PROVIDER {words[0]} {words[1]} {_literal(locale_name)}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def apply_properties(
    connection: Connection,
    properties: Properties,
    name: str,
    *,
    owners: bool,
    like: str | None = None,
    keep_owner: bool = False,
) -> list[str]:
    """Apply what follows the ``CREATE DATABASE`` to the database called ``name``; return what was refused, as sentences.

    Args:
        connection: Inside a transaction; each statement has a savepoint of its own.
        owners: Set the owner and the privileges of the backup.
        like: Without ``owners``: the database whose owner and privileges are taken instead.
        keep_owner: The database is not new: it stays with its owner, and its privileges are only added to.
    """
    statements = [_named(text, name) for text in properties.statements]
    if not owners:
        statements = [text for text in statements if not _PRIVILEGE.match(text) and not _OWNER.match(text)]
        if like is not None:
            statements += _taken_from(connection, name, like)
    last = [text for text in statements if _OWNER.match(text)]  # whoever gives it away may do nothing more
    ordered = [text for text in statements if not _OWNER.match(text)]
    if not keep_owner:
        public = f"GRANT CONNECT, TEMPORARY ON DATABASE {quote(name)} TO PUBLIC"  # the default, which was revoked meanwhile
        ordered = [public, *ordered, *last]
    return _run(connection, ordered)


def _run(connection: Connection, statements: Sequence[str]) -> list[str]:
    import psycopg

    refused: list[str] = []
    for statement in statements:
        try:
            with connection.transaction():
                connection.execute(statement.encode())
        except psycopg.errors.QueryCanceled:
            raise
        except psycopg.Error as error:
            if connection.closed or connection.broken:
                raise
            kind = " ".join(statement.split()[:2])
            refused.append(f"a statement of database.sql ({kind} …) was refused: {error.diag.message_primary}")
    return refused


def _taken_from(connection: Connection, name: str, other: str) -> list[str]:
    """Return the statements that give ``name`` the owner and the privileges of ``other``."""
    found = [f"REVOKE ALL ON DATABASE {quote(name)} FROM PUBLIC"]
    rows = connection.execute(
        """SELECT CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END, privilege_type, is_grantable,
            pg_get_userbyid(datdba)
        FROM pg_database d, aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE datname = %s""",
        [other],
    ).fetchall()
    for grantee, privilege, grantable, owner in rows:
        if grantee != owner:
            to = "PUBLIC" if grantee is None else quote(grantee)
            option = " WITH GRANT OPTION" if grantable else ""
            found.append(f"GRANT {privilege} ON DATABASE {quote(name)} TO {to}{option}")
    if rows:
        found.append(f"ALTER DATABASE {quote(name)} OWNER TO {quote(rows[0][3])}")
    return found
