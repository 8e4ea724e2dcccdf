"""The server that is restored into: connecting to it, and what must be known of it before anything is changed.

A new database is made, renamed and dropped from the outside, so pgsnap connects to another one: ``postgres``,
else ``template1``. Where the role may enter only its own database, that one is used, and then only an empty
database can be filled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from pgsnap import RestoreError, Run
from pgsnap_postgres.connection.connect import connect
from pgsnap_postgres.connection.url import Target

if TYPE_CHECKING:
    from pgsnap_postgres.connection.connect import Connection

__all__ = ["Admin", "Existing", "ServerInfo", "cancelled_by", "enter", "existing_database", "sessions", "survey"]

_SETTINGS = b"""SELECT pg_catalog.set_config('search_path', '', false),
    pg_catalog.set_config('default_transaction_read_only', 'off', false)"""


def enter(target: Target, application_name: str) -> Connection:
    """Connect in autocommit mode, free of the timeouts and the read-only setting that a database or role may have.

    Raises:
        RestoreError: naming the target, without a secret.
    """
    connection = connect(target, application_name=application_name, error=RestoreError)
    connection.execute(_SETTINGS)
    return connection


class Admin:
    """A connection from which databases are made, renamed and dropped; it is opened anew when the network lost it."""

    def __init__(self, target: Target, application_name: str) -> None:
        self.target = target
        self._name = application_name
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        import psycopg

        if self._connection is not None:
            try:
                self._connection.execute("SELECT 1")
                return self._connection
            except psycopg.OperationalError:
                self._connection.close()
        self._connection = enter(self.target, self._name)
        return self._connection

    def close(self) -> None:
        """Close it, if it is open."""
        if self._connection is not None:
            self._connection.close()

    @classmethod
    def of(cls, target: Target, application_name: str) -> Admin:
        """Connect to the first database of the server that lets us in.

        Raises:
            RestoreError: none does; the error is that of the first.
        """
        names = [name for name in ("postgres", "template1") if name != target.dbname]
        first: RestoreError | None = None
        for name in [*names, target.dbname]:
            admin = cls(target.with_dbname(name), application_name)
            try:
                assert admin.connection
            except RestoreError as error:
                first = first or error
                if "FATAL" not in str(error) or "password" in str(error):
                    break  # no server there, or it does not know us: another database will not help
            else:
                return admin
        assert first is not None
        raise first


@attrs.frozen(kw_only=True)
class Existing:
    """A database that is there already."""

    name: str
    oid: int
    owner: str
    owned: bool
    """The current role may do what its owner may."""
    encoding: str
    locale: tuple[str, str]
    connectable: bool


@attrs.frozen(kw_only=True)
class ServerInfo:
    """What the server is, and what the current role may do on it."""

    version: str
    version_num: int
    role: str
    superuser: bool
    createdb: bool
    createrole: bool
    standby: bool
    pooled: bool
    lock_slots: int
    """How many locks all sessions together can hold, by the server's settings."""
    roles: Mapping[str, bool]
    """The roles, and whether the current one may give them ownership."""
    tablespaces: frozenset[str]
    extensions: Mapping[str, frozenset[str]]
    """The extensions that can be installed, with their versions."""

    @property
    def major(self) -> int:
        return self.version_num // 10000


def survey(connection: Connection) -> ServerInfo:
    """Look at the server; changes nothing."""
    version_num = connection.info.server_version
    row = connection.execute(
        """SELECT current_setting('server_version'), current_user, rolsuper, rolsuper OR rolcreatedb,
            rolsuper OR rolcreaterole, pg_is_in_recovery(), pg_backend_pid(), current_setting('max_locks_per_transaction')::int
            * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int)
        FROM pg_roles WHERE rolname = current_user"""
    ).fetchone()
    assert row is not None
    way = b"SET" if version_num >= 160000 else b"MEMBER"
    extensions: dict[str, set[str]] = {}
    for name, version in connection.execute("SELECT name, version FROM pg_available_extension_versions"):
        extensions.setdefault(name, set()).add(version)
    return ServerInfo(
        version=row[0].split()[0],
        version_num=version_num,
        role=row[1],
        superuser=row[2],
        createdb=row[3],
        createrole=row[4],
        standby=row[5],
        pooled=row[6] != connection.info.backend_pid,
        lock_slots=row[7],
        roles=dict(
            connection.execute(b"SELECT rolname, pg_has_role(current_user, oid, '" + way + b"') FROM pg_roles").fetchall()
        ),
        tablespaces=frozenset(name for (name,) in connection.execute("SELECT spcname FROM pg_tablespace")),
        extensions={name: frozenset(versions) for name, versions in extensions.items()},
    )


def existing_database(connection: Connection, name: str) -> Existing | None:
    """Return what is known of a database from the outside, or None if there is none of that name."""
    row = connection.execute(
        """SELECT datname, oid, pg_get_userbyid(datdba), pg_has_role(current_user, datdba, 'USAGE'),
            pg_encoding_to_char(encoding), datcollate, datctype, datallowconn AND datconnlimit <> -2
        FROM pg_database WHERE datname = %s""",
        [name],
    ).fetchone()
    if row is None:
        return None
    return Existing(
        name=row[0],
        oid=row[1],
        owner=row[2],
        owned=row[3],
        encoding=row[4],
        locale=(row[5], row[6]),
        connectable=row[7],
    )


def sessions(connection: Connection, database: str) -> list[tuple[str, str]]:
    """Return who else is connected to a database: ``(application_name, sentence)`` of each."""
    rows = connection.execute(
        """SELECT coalesce(application_name, ''), format('%%s%%s%%s (pid %%s)', coalesce(usename, 'somebody'),
            CASE WHEN application_name <> '' THEN ' with ' || application_name ELSE '' END,
            CASE WHEN client_addr IS NULL THEN '' ELSE ' from ' || host(client_addr) END, pid)
        FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid""",
        [database],
    )
    return [(row[0], row[1]) for row in rows]


@contextlib.contextmanager
def cancelled_by(run: Run, connection: Connection) -> Iterator[None]:
    """Have an abort of the run cancel what the connection is doing."""
    with run.on_abort(connection.cancel):
        yield
