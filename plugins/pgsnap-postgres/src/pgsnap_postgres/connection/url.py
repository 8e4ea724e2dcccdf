"""Reads a database's URL, so that libpq never has to: its errors repeat the whole URL, password and all.

What an application has in ``DATABASE_URL`` is often not what libpq takes: a driver in the scheme
(``postgresql+asyncpg``), parameters of other libraries (``pgbouncer``, ``connection_limit``), a blank or a quote around
it. These are dropped, each with a note. What cannot be understood is refused with a sentence that holds no part of the
URL but a parameter's name.

What the URL leaves out comes from the ``PG*`` variables, as with libpq, and is noted: psycopg and the child processes
then see the same, fully resolved target, whatever defaults were compiled into each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote

import attrs

from pgsnap import ConfigError, Secret

__all__ = ["Target", "parse_url"]

_EXAMPLE = "write it like postgresql://user:password@host:5432/database"
_ENCODE = "write it as %40 for @, %2F for /, %3F for ?, %23 for #, %25 for %, %3A for : and %20 for a blank"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LIBPQ = _words(
    """application_name channel_binding connect_timeout fallback_application_name gssdelegation gssencmode
    gsslib hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname load_balance_hosts
    max_protocol_version min_protocol_version options passfile require_auth requirepeer scram_client_key
    scram_server_key ssl_max_protocol_version ssl_min_protocol_version sslcert sslcertmode sslcompression sslcrl sslcrldir
    sslkey sslmode sslnegotiation sslpassword sslrootcert sslsni target_session_attrs tcp_user_timeout"""
)
_IDENTITY = frozenset({"host", "port", "dbname", "user", "password"})
_FOREIGN = _words(
    """autoload_models binary_parameters cached_statements charset client_encoding command_timeout connection_limit currentSchema
    default_query_exec_mode encoding max_inactive_connection_lifetime max_overflow pgbouncer pool pool_max_conns
    pool_min_conns pool_recycle pool_size pool_timeout prepareThreshold prepare_threshold prepared_statement_cache_size
    prepared_statements reconnect replication schema schema_search_path search_path server_settings serverVersion socket_timeout
    sslaccept ssldebug sslidentity statement_cache_capacity statement_cache_size statement_timeout supa timeout
    uselibpqcompat workaround"""
)
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""libpq's modes of TLS, the laxest first."""
_SSL = {"true": "require", "1": "require", "no-verify": "require", "false": "prefer", "0": "prefer"}
"""What other drivers write as ``ssl``, in libpq's words."""
_OTHER_DATABASES = _words("mysql mariadb sqlite mssql oracle mongodb redis cockroachdb http https file")
_VARIABLES = {
    "PGHOSTADDR": "hostaddr",
    "PGPASSFILE": "passfile",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLCRL": "sslcrl",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGCHANNELBINDING": "channel_binding",
    "PGREQUIREAUTH": "require_auth",
    "PGGSSENCMODE": "gssencmode",
    "PGKRBSRVNAME": "krbsrvname",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGCONNECT_TIMEOUT": "connect_timeout",
}
_SOCKETS = ("/var/run/postgresql", "/tmp", "/private/tmp")
_AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@attrs.frozen(kw_only=True)
class Target:
    """A database, resolved: nothing is left to a library's defaults except a password from ``.pgpass``.

    ``host`` is a name, an address or a socket's directory, or several with commas; ``port`` as many numbers; ``user`` is
    empty only where the system knows no name for its own user. ``params`` are libpq's other parameters. ``notes`` say, in
    whole sentences and without a secret, what was dropped or filled in.
    """

    host: str
    port: str
    dbname: str
    user: str
    password: Secret = attrs.field(default=Secret(""), repr=False)
    params: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def with_dbname(self, name: str) -> Target:
        """Return the same server and user with another database."""
        return attrs.evolve(self, dbname=name)

    def describe(self) -> str:
        """Return ``shop at db.example.com:5432 as app``: what may stand in a message."""
        where = f"{self.host} port {self.port}" if self.host.startswith("/") else f"{self.host}:{self.port}"
        return f"{_shown(self.dbname)} at {where}{' as ' + _shown(self.user) if self.user else ''}"

    def conninfo(self) -> dict[str, str]:
        """Return the parameters for ``psycopg.connect(**…)``. They hold the password: hand them on, never show them."""
        found = {"connect_timeout": "15", "options": "", **self.params}
        found |= {"host": self.host, "port": self.port, "dbname": self.dbname}
        if self.user:
            found["user"] = self.user
        if self.password:
            found["password"] = self.password.reveal()
        return found


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[\w.@+-]+", name) else repr(name)


def parse_url(text: str | Secret, environ: Mapping[str, str] | None = None) -> Target:
    """Return what a URL names, completed from ``environ`` (default: ``os.environ``) as libpq would.

    Raises:
        ConfigError: it cannot be understood. The message holds no part of the URL but the name of a parameter.
    """
    raw = text.reveal() if isinstance(text, Secret) else text
    variables = os.environ if environ is None else environ
    notes: list[str] = []
    rest = _after_scheme(_trimmed(raw, notes), notes)
    match = re.fullmatch(r"([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?(#.*)?", rest, re.DOTALL)
    assert match is not None
    authority, path, query, fragment = match[1], match[2] or "", match[3] or "", match[4]
    if "@" in path + query + (fragment or ""):
        raise ConfigError(
            "the database URL has an '@' after its first '/', '?' or '#': one of these characters in the user, the "
            f"password or a name is not encoded; {_ENCODE}."
        )
    if fragment:
        raise ConfigError(f"the database URL has a '#' that is not encoded; {_ENCODE}.")
    userinfo, at, hosts = authority.rpartition("@")
    user, colon, password = userinfo.partition(":")
    found = _parameters(query, notes)
    if at:
        found.setdefault("user", _decoded(user, "user"))
        if colon:
            found.setdefault("password", _decoded(password, "password"))
    host, port = _hosts(hosts)
    found.setdefault("host", host)
    found.setdefault("port", port)
    if "/" in path.strip("/"):
        raise ConfigError(f"the database's name in the URL has a '/' that is not encoded; {_ENCODE}.")
    found.setdefault("dbname", _decoded(path, "database's name"))
    return _resolved({key: value for key, value in found.items() if value}, variables, notes)


def _trimmed(raw: str, notes: list[str]) -> str:
    text = raw.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
        notes.append("Quotes around the database URL were dropped.")
    elif text != raw:
        notes.append("Blanks around the database URL were dropped.")
    if not text:
        raise ConfigError(f"the database URL is empty; {_EXAMPLE}.")
    if re.search(r"[\x00-\x20\x7f]", text):
        raise ConfigError(f"the database URL has a blank or a control character in it; {_ENCODE}.")
    return text


def _after_scheme(text: str, notes: list[str]) -> str:
    scheme, separator, rest = text.partition("://")
    kind, plus, driver = scheme.lower().removeprefix("jdbc:").partition("+")
    if not separator or kind not in ("postgres", "postgresql"):
        named = f"is of the scheme {kind!r}, which" if separator and kind in _OTHER_DATABASES else "as it is written"
        raise ConfigError(f"the database URL {named} is not a PostgreSQL URL; {_EXAMPLE}.")
    if plus and not re.fullmatch(r"[a-z0-9_]{1,40}", driver):
        raise ConfigError(f"the database URL has a scheme that cannot be read; {_EXAMPLE}.")
    if plus:
        notes.append("The driver in the scheme of the database URL was dropped.")
    return rest


def _decoded(text: str, what: str) -> str:
    """Undo percent-encoding; the value is never in the error."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ConfigError(f"the {what} in the database URL has a '%' that is not encoded; {_ENCODE}.")
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(f"the {what} in the database URL is not UTF-8 after decoding its %XX; correct it.") from None
    if "\0" in plain:
        raise ConfigError(f"the {what} in the database URL has a %00 in it, which PostgreSQL does not allow.")
    return plain


def _hosts(text: str) -> tuple[str, str]:
    """Split ``a:1,[::1]:2,c`` into ``a,::1,c`` and ``1,2,5432``; either is empty if nothing was said about it."""
    hosts, ports = [], []
    for part in text.split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]@]*)(?::(\d*))?", part)
        if match is None or (match[2] and not 0 < int(match[2]) < 65536):
            raise ConfigError(
                "the host or the port in the database URL cannot be read (the port must be a number from 1 to 65535); if "
                f"the password has a special character, {_ENCODE}."
            )
        hosts.append(_decoded(match[1].strip("[]"), "host"))
        ports.append(match[2] or "")
    if not any(ports):
        return ",".join(hosts), ""
    return ",".join(hosts), ",".join(port or "5432" for port in ports)


def _parameters(query: str, notes: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    foreign: list[str] = []
    modes: list[tuple[str, str]] = []
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if key in _FOREIGN:
            foreign.append(key)
        elif key in ("ssl", "sslmode"):
            modes.append((key, _mode(_decoded(value, f"parameter {key!r}"))))
        elif key == "service":
            raise ConfigError("the database URL names a 'service'; write the host, the port and the database instead.")
        elif key in _LIBPQ | _IDENTITY and equals:
            found[key] = _decoded(value, f"parameter {key!r}")
        else:
            close = get_close_matches(key, _LIBPQ | _IDENTITY, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "remove it."
            shown = repr(key) if re.fullmatch(r"[A-Za-z_]{1,40}", key) and equals else "that cannot be read"
            raise ConfigError(f"the database URL has a parameter {shown} which libpq does not know; {hint}")
    if foreign:
        names = ", ".join(sorted(set(foreign)))
        notes.append(f"Parameters of the database URL that are meant for another library were dropped: {names}.")
    if modes and {"ssl"} == {key for key, _ in modes}:
        found["ssl"] = "yes"
    if any(key == "ssl" for key, _ in modes):
        notes.append("The parameter 'ssl' of the database URL was read as libpq's 'sslmode'.")
    if modes:
        found["sslmode"] = _strictest({mode for _, mode in modes}, "the database URL", notes)
    return found


def _mode(value: str) -> str:
    """Return libpq's word for a mode of TLS that a URL gives."""
    mode = _SSL.get(value, value)
    if mode not in _MODES:
        shown = repr(value) if re.fullmatch(r"[A-Za-z_-]{1,20}", value) else "that cannot be read"
        raise ConfigError(f"the database URL has an sslmode {shown}; choose from {', '.join(_MODES)}.")
    return mode


def _strictest(modes: set[str], where: str, notes: list[str]) -> str:
    """Return the strictest of several modes: a second name of the setting must not undo what the first one demands."""
    strict = max(modes, key=_MODES.index)
    if len(modes) > 1:
        notes.append(f"{where[:1].upper()}{where[1:]} names several modes of TLS; the strictest, {strict}, is used.")
    return strict


def _resolved(found: dict[str, str], variables: Mapping[str, str], notes: list[str]) -> Target:
    for variable, key in {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGDATABASE": "dbname"}.items():
        if key not in found and (key != "host" or "hostaddr" not in found) and variables.get(variable):
            found[key] = variables[variable]
            notes.append(f"The database URL names no {key}; {variable} was used.")
    if "password" not in found and variables.get("PGPASSWORD"):
        found["password"] = variables["PGPASSWORD"]
    for variable, key in _VARIABLES.items():
        if variables.get(variable):
            found.setdefault(key, variables[variable])
    if found.pop("ssl", "") and variables.get("PGSSLMODE") in _MODES:  # another library's word does not undo libpq's own
        found["sslmode"] = _strictest({found["sslmode"], variables["PGSSLMODE"]}, "the environment or the URL", notes)
    user = found.pop("user", "") or _system_user()
    dbname = found.pop("dbname", "") or user
    if not dbname:
        raise ConfigError(f"the database URL names no database; {_EXAMPLE}.")
    port = found.pop("port", "5432")
    if not re.fullmatch(r"\d{1,5}(,\d{1,5})*", port):
        raise ConfigError("the port of the database is not a number; correct the URL, its 'port' parameter or PGPORT.")
    host = found.pop("host", "") or found.get("hostaddr", "")
    if not host:
        held = [d for d in _SOCKETS if Path(d, f".s.PGSQL.{port}").exists()]
        host = held[0] if held else _SOCKETS[0]
        notes.append(f"The database URL names no host; the socket in {host} is used.")
    if found.get("sslrootcert") == "system":  # wheels of psycopg and of PostgreSQL look elsewhere than the system does
        held = [p for p in (variables.get("SSL_CERT_FILE", ""), *_AUTHORITIES) if p and Path(p).exists()]
        if held:
            found |= {"sslrootcert": held[0], "sslmode": "verify-full"}
    password = Secret(found.pop("password", ""))
    return Target(host=host, port=port, dbname=dbname, user=user, password=password, params=found, notes=tuple(notes))


def _system_user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return ""
