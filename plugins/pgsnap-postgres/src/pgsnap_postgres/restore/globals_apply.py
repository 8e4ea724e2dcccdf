"""Brings roles and tablespaces back: what is missing is created, what is there is left alone, what is refused is reported.

``pg_dumpall -g`` writes a script for an empty server; run as a whole it always fails, because the role that
runs it exists already. So it is read statement by statement and applied role by role. Roles belong to the
whole server: a role that exists keeps its password, attributes and memberships, since other databases rely on
them. ``undo`` takes back what was created here, for a restore that fails later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from pgsnap import RestoreError
from pgsnap_postgres.archive.statements import IDENTIFIER, quote, split_statements, tokens, unquote

if TYPE_CHECKING:
    from pgsnap_postgres.connection.connect import Connection

__all__ = ["Applied", "Globals", "apply_globals", "read_globals", "undo"]

_ROLE = re.compile(rf"(?:CREATE|ALTER|COMMENT ON|SECURITY LABEL (?:FOR {IDENTIFIER} )?ON) ROLE ({IDENTIFIER})(?=\s|$)")
_CREATE = re.compile(rf"CREATE ROLE ({IDENTIFIER})$")
_ATTRIBUTES = re.compile(rf"ALTER ROLE {IDENTIFIER} WITH (.+)$", re.DOTALL)
_GRANT = re.compile(rf"GRANT ({IDENTIFIER}) TO ({IDENTIFIER})(\s.*)?$", re.DOTALL)
_GRANTED_BY = re.compile(rf"\s+GRANTED BY {IDENTIFIER}$")
_TABLESPACE = re.compile(rf"CREATE TABLESPACE ({IDENTIFIER}) ")
_ON_TABLESPACE = re.compile(rf"(?:ALTER|COMMENT ON|GRANT .+ ON|REVOKE .+ ON) TABLESPACE ({IDENTIFIER})\s", re.DOTALL)
_PARAMETER = re.compile(rf"(?:GRANT|REVOKE) .+ ON PARAMETER .+ (?:TO|FROM) ({IDENTIFIER})", re.DOTALL)
_IGNORED = re.compile(r"SET |SELECT |DROP |BEGIN$|COMMIT$")
_FLAGS = ("SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "LOGIN", "REPLICATION", "BYPASSRLS")
_DEFAULTS = frozenset(flag if flag == "INHERIT" else f"NO{flag}" for flag in _FLAGS)


@attrs.frozen
class Globals:
    """What ``globals.sql`` says: the roles in its order, and the statements by what they are about."""

    roles: tuple[str, ...] = ()
    about_roles: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    grants: tuple[tuple[str, str, str], ...] = ()
    tablespaces: tuple[str, ...] = ()
    about_tablespaces: tuple[tuple[str, str], ...] = ()
    unknown: int = 0

    @property
    def login_without_password(self) -> frozenset[str]:
        """Roles that may log in and come without a password."""
        login = {role for role, text in self.about_roles if re.search(r"\bLOGIN\b", text)}
        return frozenset(login - {role for role, text in self.about_roles if " PASSWORD " in text})


@attrs.frozen
class Applied:
    """What ``apply_globals`` did. ``refused`` holds sentences without a secret."""

    created: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()
    tablespaces: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def read_globals(script: bytes) -> Globals:
    """Read the output of ``pg_dumpall -g``, in UTF-8.

    Raises:
        RestoreError: it is not such a script.
    """
    try:
        statements = split_statements(script.decode("utf-8"))
    except ValueError as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RestoreError(
            f"globals.sql cannot be read: {reason}; restore without it (globals = false) and create the roles by hand."
        ) from None
    roles: list[str] = []
    about_roles: list[tuple[str, str]] = []
    grants: list[tuple[str, str, str]] = []
    spaces: list[str] = []
    about_spaces: list[tuple[str, str]] = []
    unknown = 0
    for statement in statements:
        if match := _CREATE.match(statement):
            roles.append(unquote(match[1]))
        elif match := _ROLE.match(statement) or _PARAMETER.match(statement):
            about_roles.append((unquote(match[1]), statement))
        elif match := _GRANT.match(statement):
            grants.append((unquote(match[1]), unquote(match[2]), statement))
        elif match := _TABLESPACE.match(statement):
            spaces.append(unquote(match[1]))
            about_spaces.append((unquote(match[1]), statement))
        elif match := _ON_TABLESPACE.match(statement):
            about_spaces.append((unquote(match[1]), statement))
        elif not _IGNORED.match(statement):
            unknown += 1
    return Globals(tuple(roles), tuple(about_roles), tuple(grants), tuple(spaces), tuple(about_spaces), unknown)


def apply_globals(connection: Connection, wanted: Globals, *, member: bool = True) -> Applied:
    """Create the roles and tablespaces that are missing; roles in one transaction, so that all or none of them stay.

    What the server refuses (an attribute that only a superuser may give, a tablespace whose folder is not there) is left
    out and reported. Nothing that existed is changed, except that it may become a member of a role that was created.

    Args:
        connection: In autocommit mode.
        member: Make the current role a member of the roles it creates, so that it may give them ownership.
    """
    existing = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
    refused: list[str] = []
    created: list[str] = []
    with connection.transaction():
        if member and connection.info.server_version >= 160000:
            connection.execute("SET LOCAL createrole_self_grant = 'set, inherit'")
        for role in wanted.roles:
            if role not in existing and _try(connection, f"CREATE ROLE {quote(role)}", f"role {role!r}", refused):
                created.append(role)
                if member and connection.info.server_version < 160000:
                    _become_member(connection, role)
        for role, statement in wanted.about_roles:
            if role in created:
                _apply_to_role(connection, role, statement, refused)
        for role, to, statement in wanted.grants:
            if role in created or to in created:
                _apply_grant(connection, role, to, statement, refused)
    spaces = _tablespaces(connection, wanted, refused)
    if wanted.unknown:
        refused.append(f"{wanted.unknown} statements of globals.sql are of a kind that is not known here and were left out")
    left_alone = tuple(role for role in wanted.roles if role in existing)
    return Applied(tuple(created), left_alone, spaces, tuple(refused))


def undo(connection: Connection, applied: Applied) -> list[str]:
    """Drop what ``apply_globals`` created, as long as nothing uses it; return a sentence for each that had to stay."""
    left: list[str] = []
    for name in reversed(applied.tablespaces):
        _try(connection, f"DROP TABLESPACE {quote(name)}", f"tablespace {name!r} stays", left)
    for role in reversed(applied.created):
        _try(connection, f"DROP ROLE {quote(role)}", f"role {role!r} stays", left)
    return left


def _try(connection: Connection, statement: str, what: str, refused: list[str]) -> bool:
    """Run one statement, in a savepoint where there is a transaction; note why it was refused."""
    import psycopg

    try:
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            connection.execute(statement.encode())
        else:
            with connection.transaction():
                connection.execute(statement.encode())
    except psycopg.errors.QueryCanceled:
        raise
    except psycopg.Error as error:
        if connection.closed or connection.broken:
            raise
        refused.append(f"{what}: {error.diag.message_primary}")
        return False
    return True


def _become_member(connection: Connection, role: str) -> None:
    """Let a role with CREATEROLE hand objects to the role it has made; superusers need no membership."""
    is_superuser = connection.info.parameter_status("is_superuser") == "on"
    if not is_superuser:
        _try(connection, f"GRANT {quote(role)} TO CURRENT_USER", "", [])


def _apply_to_role(connection: Connection, role: str, statement: str, refused: list[str]) -> None:
    match = _ATTRIBUTES.match(statement)
    if match is None:
        what = re.sub(r"\s+(TO|IS)\s.*", "", statement.removeprefix(f"ALTER ROLE {quote(role)} "), flags=re.DOTALL)
        _try(connection, statement, f"role {role!r}, {what.split(chr(10))[0][:80]}", refused)
        return
    if _try(connection, statement, "", []):
        return
    for attribute in _attributes(match[1]):  # one by one: what only a superuser may give is left out, the rest is kept
        if attribute not in _DEFAULTS:
            shown = attribute.split("'")[0].strip()
            _try(connection, f"ALTER ROLE {quote(role)} WITH {attribute}", f"role {role!r}, {shown}", refused)


def _attributes(text: str) -> Iterator[str]:
    """Split ``NOSUPERUSER CONNECTION LIMIT 5 PASSWORD 'x'`` into its attributes."""
    held: list[str] = []
    for kind, piece in tokens(text):
        if kind == "blank":
            continue
        held.append(piece)
        flag = piece.removeprefix("NO") in _FLAGS
        if flag or kind == "quoted" or piece.isdigit():
            yield " ".join(held).replace("- ", "-")
            held = []


def _apply_grant(connection: Connection, role: str, to: str, statement: str, refused: list[str]) -> None:
    """Grant a membership; where its grantor is missing or may not do it, the current role becomes the grantor."""
    if not _try(connection, statement, "", []):
        plain = _GRANTED_BY.sub("", statement)
        _try(connection, plain, f"membership of {to!r} in {role!r}", refused)


def _tablespaces(connection: Connection, wanted: Globals, refused: list[str]) -> tuple[str, ...]:
    existing = {row[0] for row in connection.execute("SELECT spcname FROM pg_tablespace")}
    created: list[str] = []
    for name, statement in wanted.about_tablespaces:
        if statement.startswith("CREATE TABLESPACE"):
            if name not in existing and _try(connection, statement, f"tablespace {name!r}", refused):
                created.append(name)
        elif name in created:
            _try(connection, statement, f"tablespace {name!r}, {statement.split(' ')[0]}", refused)
    return tuple(created)
