"""Opens psycopg connections, and says in one sentence why one could not be opened.

A failed connection is reported with where it went and what to do; the password is in none of it. Sessions carry a name that tells
which run on which host they belong to, and no timeout of the server or the role can end them.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

import attrs

from pgsnap import DumpError, ProcessError, Run
from pgsnap_postgres.connection.url import Target

if TYPE_CHECKING:
    import psycopg

    Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

__all__ = ["Names", "connect", "in_a_sentence", "scrubbed", "settle"]

_CAUSES = (
    (r"password authentication failed|no password supplied", "correct the user or the password in the URL"),
    (
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "let this host and user in by pg_hba.conf, or add sslmode=require to the URL",
    ),
    (r"database .* does not exist", "correct the database's name in the URL"),
    (r"role .* does not exist", "correct the user in the URL"),
    (r"permission denied for database", "GRANT CONNECT ON DATABASE to this user, or to a role that it is in"),
    (r"translate host name|resolve host|Name or service|nodename", "correct the host in the URL"),
    (r"Connection refused|No such file or directory", "check the host and the port in the URL, and that the server runs"),
    (r"timeout|timed out|No route|unreachable", "check the host in the URL, the network and its firewalls"),
    (r"too many (clients|connections)|connection slots", "free a connection or raise max_connections; a dump needs three"),
    (r"SSL|certificate|tls", "check the ssl parameters in the URL"),
)


@attrs.frozen
class Names:
    """The ``application_name`` of the sessions of one run: the holder's, and that of its pg_dump processes."""

    holder: str
    dump: str

    @classmethod
    def of(cls, run: Run) -> Names:
        """Make names that no other run has, at most 63 bytes of ASCII long."""
        token = secrets.token_hex(3)
        tail = f"{run.id} {token} {run.pipeline}@{socket.gethostname()}".strip()
        return cls(*(re.sub(r"[^ -~]", "_", f"{head} {tail}")[:63] for head in ("pgsnap", "pgsnap-dump")))


def scrubbed(text: str, target: Target) -> str:
    """Return ``text`` on one line, without the target's password should some library have put it there."""
    password = target.password.reveal()
    line = " ".join(text.split())
    for secret in {password, quote(password, safe=""), " ".join(password.split())} if len(password) > 3 else ():
        line = line.replace(secret, "***")
    return line


@contextlib.contextmanager
def in_a_sentence(target: Target, doing: str, error: type[ProcessError] = DumpError) -> Iterator[None]:
    """Turn psycopg's errors into ``error`` with one sentence: the target refused ``doing``."""
    import psycopg

    try:
        yield
    except psycopg.Error as failure:
        raise error(f"{target.describe()} refused {doing}: {scrubbed(str(failure), target)}.") from None


def connect(
    target: Target, *, application_name: str, role: str | None = None, error: type[ProcessError] = DumpError
) -> Connection:
    """Open a connection in autocommit mode that a dead network ends within two minutes.

    Raises:
        error: it could not be opened, with where it went and what to do next.
    """
    import psycopg
    from psycopg import sql

    alive = {"keepalives_idle": "60", "keepalives_interval": "10", "keepalives_count": "6", "tcp_user_timeout": "60000"}
    parameters: dict[str, Any] = {**alive, **target.conninfo(), "application_name": application_name, "client_encoding": "utf8"}
    try:
        connection = psycopg.connect(**parameters, autocommit=True, prepare_threshold=None)
    except psycopg.Error as failure:
        said = re.sub(r"^connection (is bad|failed): | Is the server running .*?\?", "", scrubbed(str(failure), target))
        remedy = next((text for pattern, text in _CAUSES if re.search(pattern, said)), "check the URL")
        raise error(f"cannot connect to {target.describe()}: {said}; {remedy}.") from None
    with contextlib.ExitStack() as unless_settled:
        unless_settled.callback(connection.close)
        with in_a_sentence(target, "to begin a session", error):
            settle(connection)
            if role is not None:
                connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        unless_settled.pop_all()
    return connection


def settle(connection: Connection) -> None:
    """Turn off every timeout that the server, the database or the role may set. By SET: poolers drop start-up options."""
    version = connection.info.server_version
    connection.execute("SET statement_timeout = 0")
    connection.execute("SET lock_timeout = 0")
    connection.execute("SET idle_in_transaction_session_timeout = 0")
    if version >= 140000:
        connection.execute("SET idle_session_timeout = 0")
    if version >= 170000:
        connection.execute("SET transaction_timeout = 0")
