"""Tells a child process where to connect without a word on its command line.

psql, pg_dump, pg_dumpall and pg_restore take ``-d service=pgsnap`` and read everything, the password too, from the file
that ``PGSERVICEFILE`` names: a memory file inherited by the child (``/proc/self/fd/N``), or where there is none a
temporary file of mode 0600. A service file has one line for a value, without quoting; what no line can hold (a line break,
blanks at the end, more than about a thousand bytes) goes by the child's environment, which libpq reads next and which only
this user can see.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping

import attrs

from pgsnap_postgres.connection.url import Target

__all__ = ["SERVICE", "Service", "service_file"]

SERVICE = "service=pgsnap"
"""What to give as ``-d``."""

_LINE = 1000  # libpq reads lines of at most 1023 bytes before version 14
_VARIABLES = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
_ALIVE = {"keepalives_idle": "60", "keepalives_interval": "10", "keepalives_count": "6", "tcp_user_timeout": "60000"}


@attrs.frozen(kw_only=True)
class Service:
    """What a child needs to connect: give ``env`` and ``pass_fds`` to ``spawn`` and ``-d service=pgsnap`` to the program."""

    env: Mapping[str, str] = attrs.field(repr=False)
    pass_fds: tuple[int, ...] = ()


@contextlib.contextmanager
def service_file(target: Target, *, application_name: str = "pgsnap") -> Iterator[Service]:
    """Give what children need to connect to ``target``, as many as are started within the context."""
    values = {**_ALIVE, **target.conninfo(), "application_name": application_name}
    lines, env = ["[pgsnap]"], {}
    for key, value in values.items():
        line = f"{key}={value}"
        if key in _VARIABLES and (len(line.encode()) > _LINE or line != line.rstrip() or "\n" in line or "\r" in line):
            env[_VARIABLES[key]] = value
        elif value:
            lines.append(line)
    content = "\n".join([*lines, ""]).encode()
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
            descriptor = os.memfd_create("pgsnap-service", os.MFD_CLOEXEC)
            stack.callback(os.close, descriptor)
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, content)
            yield Service(env={**env, "PGSERVICEFILE": f"/proc/self/fd/{descriptor}"}, pass_fds=(descriptor,))
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="pgsnap-"))  # mode 0600
            file.write(content)
            file.flush()
            yield Service(env={**env, "PGSERVICEFILE": file.name})
