r"""Feeds a backup to pg_restore or psql, so that it commits only what is whole, and says in plain words why one of them failed.

To both an early end of file looks like success. So they get the last chunk only when the source has ended
without an error, and they are killed before their pipe is closed if it fails
(``pgsnap.streams.process.feed_process``). A plain dump is never given to ``psql -1``: it may carry its own COMMIT,
and a cut one would be committed; where it must be one transaction, ``BEGIN`` goes before it, and ``COMMIT``
after its last byte was checked.

pg_restore 17 and later, and dumps by pg_dump 17 and later, begin with ``SET transaction_timeout``, which
servers before 17 do not know. There, pg_restore's script goes to psql without that line.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections.abc import Iterator

import attrs

from pgsnap import RestoreError, Run, Source
from pgsnap.streams import Chunks, Stream, drain, feed_process, read_process, through_process
from pgsnap_postgres.archive.check import Toc
from pgsnap_postgres.clients import Clients
from pgsnap_postgres.connection.service import SERVICE, Service, service_file
from pgsnap_postgres.connection.url import Target

__all__ = ["RestoreInput", "explain", "fill", "without_timeout_setting"]

_TIMEOUT = b"SET transaction_timeout = 0;\n"


@attrs.frozen(kw_only=True)
class RestoreInput:
    """What is restored, and with what: the same for any way into a database."""

    source: Source
    artifact: str
    clients: Clients
    toc: Toc | None
    """Of an archive; None for a plain dump."""
    listing: str | None = None
    """The list file of a selection; None: everything."""
    jobs: int = 1
    owners: bool = True
    tablespaces: bool = True
    objects: int = 0
    """How many objects are created at most: each takes a lock in a single transaction."""
    large_objects: int = 0
    tables: frozenset[tuple[str, str]] = frozenset()
    """Schema and name of the tables that must be there afterwards."""


def fill(content: RestoreInput, target: Target, server_major: int, run: Run, *, atomic: bool) -> None:
    """Restore into the database of ``target``, in one transaction if ``atomic``.

    Not atomic, a failure leaves the database half filled: the caller drops it. ``jobs`` count only then.

    Raises:
        RestoreError: the program failed.
        PgsnapError: the source failed; nothing was committed if ``atomic``.
    """
    old = server_major < 17
    name = f"pgsnap restore {content.source.id}"
    try:
        with service_file(target, application_name=name) as service:
            if content.toc is None:
                with contextlib.closing(content.source.open(content.artifact)) as stream:
                    script = without_timeout_setting(stream) if old else stream
                    _psql(content, script, service, run, atomic=atomic)
            elif old and content.clients.major >= 17:
                with contextlib.closing(_script(content, run)) as stream:
                    _psql(content, without_timeout_setting(stream), service, run, atomic=atomic)
            else:
                _pg_restore(content, service, run, atomic=atomic)
    except RestoreError as error:
        raise explain(error) from None


def _pg_restore(content: RestoreInput, service: Service, run: Run, *, atomic: bool) -> None:
    with _options(content) as options:
        argv = [content.clients.pg_restore, "--exit-on-error", "--no-password", "-d", SERVICE, *options]
        env, fds = service.env, service.pass_fds
        if not atomic and content.jobs > 1:
            with content.source.local(content.artifact) as path:
                argv += [f"--jobs={content.jobs}", str(path)]
                drain(read_process(argv, start=run.spawn, env=env, pass_fds=fds, error=RestoreError))
            return
        if atomic:
            argv.append("--single-transaction")
        elif content.clients.major >= 17:
            argv.append("--transaction-size=1000")
        with contextlib.closing(content.source.open(content.artifact)) as stream:
            partial = content.listing is not None
            feed_process(stream, argv, start=run.spawn, env=env, pass_fds=fds, error=RestoreError, partial=partial)


@contextlib.contextmanager
def _options(content: RestoreInput) -> Iterator[list[str]]:
    """Give pg_restore's options; a selection is a file that lasts as long as the context."""
    options = [] if content.owners else ["--no-owner", "--no-privileges"]
    if not content.tablespaces:
        options.append("--no-tablespaces")
    if content.listing is None:
        yield options
        return
    with tempfile.NamedTemporaryFile(prefix="pgsnap-", suffix=".list") as file:  # mode 0600
        file.write(content.listing.encode("utf-8", "surrogateescape"))
        file.flush()
        yield [*options, f"--use-list={file.name}"]


def _script(content: RestoreInput, run: Run) -> Stream:
    """Yield what pg_restore would do, as a script for psql."""
    with _options(content) as options:
        argv = [content.clients.pg_restore, "-f", "-", *options]
        if content.listing is not None:  # it stops reading early, which a filter must not
            with content.source.local(content.artifact) as path:
                yield from read_process([*argv, str(path)], start=run.spawn, error=RestoreError)
            return
        with contextlib.closing(content.source.open(content.artifact)) as stream:
            yield from through_process(stream, argv, start=run.spawn, error=RestoreError)


def without_timeout_setting(script: Chunks) -> Stream:
    """Drop the line that sets ``transaction_timeout``, which stands among the first lines of a script."""
    head = b""
    chunks = iter(script)
    for chunk in chunks:
        head += chunk
        if _TIMEOUT in head or len(head) > 65536:
            break
    yield head.replace(_TIMEOUT, b"", 1) if _TIMEOUT in head[:65536] else head
    yield from chunks


def _psql(content: RestoreInput, script: Chunks, service: Service, run: Run, *, atomic: bool) -> None:
    argv = [content.clients.psql, "-X", "-q", "--no-password", "-v", "ON_ERROR_STOP=1", "-d", SERVICE, "-f", "-"]
    if atomic:
        script = itertools.chain([b"BEGIN;\n"], script, [b"COMMIT;\n"])
    feed_process(script, argv, start=run.spawn, env=service.env, pass_fds=service.pass_fds, error=RestoreError)


# --- what they say ---------------------------------------------------------------------------------------------------

_RIGHTS = "restore as a role that may do this, or leave owners and privileges out (owners = false, --no-owner)."
_HINTS = (
    (r"invalid command \\\\?(un)?restrict", "this psql is older than the dump's: install the newest minor release of it."),
    (r"role \S+ does not exist", f"create that role or restore with the globals; or {_RIGHTS}"),
    (r"must be (owner|member|superuser|able to SET ROLE)|permission denied|Only roles with", _RIGHTS),
    (r"out of shared memory|max_locks_per_transaction", "raise max_locks_per_transaction on the server, and restart it."),
    (r"extension \S+ is not available|could not open extension", "install that extension on the target's server."),
    (r"No space left on device|could not extend file", "make room on the target's server."),
    (r"unsupported version \(\d", "install the client of the backup's version: see 'pgsnap show'."),
    (r"collation .* does not exist|locale", "install that locale on the target's server."),
)


_REPEATED = re.compile(r"(Command was: |STATEMENT: |LINE \d+: )(.*?)(?=\n(?:pg_restore|psql):|\Z)", re.DOTALL)
_SECRETIVE = re.compile("password|secret|user mapping|subscription", re.IGNORECASE)


def explain(error: RestoreError) -> RestoreError:
    """Return an error that says the next step, and whose text has no statement with a password in it."""
    text = _redacted(str(error)).rstrip()
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, text)), "")
    if hint:
        text = f"{text.rstrip('.')}; {hint}"
    return RestoreError(text, error.argv, error.status, _redacted(error.stderr))


def _redacted(text: str) -> str:
    """Cut away statements that pg_restore and psql repeat, where they may hold a secret."""

    def shown(match: re.Match[str]) -> str:
        return match[1] + "(left out: it may hold a password)" if _SECRETIVE.search(match[2]) else match[0]

    return _REPEATED.sub(shown, text)
