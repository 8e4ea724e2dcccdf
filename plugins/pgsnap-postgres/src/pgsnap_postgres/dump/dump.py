"""Takes a dump: the body of ``DumpOptions.dump``.

An attempt locks the tables, exports the snapshot and starts pg_dump in it. Only when pg_dump's first bytes are here has it
all of its own locks; until then the attempt may be given up and begun anew, because a table changed, a lock was not to be
had, or a session that queued behind the holder stands between it and pg_dump. After that the dump cannot be blocked any
more, and pg_dump waits in its pipe until somebody pulls.

The artifacts are opened in order: the database, ``database.sql`` (from the table of contents that flowed by, or for plain format
from one that was taken first, in the same snapshot), ``globals.sql``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from pgsnap import Artifact, ConfigError, Dump, DumpError, Facts, Run
from pgsnap.components import escape_name
from pgsnap.streams import Stream, read_process, watch
from pgsnap_postgres.archive.check import Toc, check_archive
from pgsnap_postgres.archive.database_sql import database_sql, owners
from pgsnap_postgres.archive.plaintext import check_plain
from pgsnap_postgres.clients import Clients, find_clients
from pgsnap_postgres.connection.connect import Names, in_a_sentence
from pgsnap_postgres.connection.service import SERVICE, Service, service_file
from pgsnap_postgres.connection.sessions import Sessions, watch_sessions
from pgsnap_postgres.connection.url import Target, parse_url
from pgsnap_postgres.dump.globals_sql import Begun, begin_globals, take_globals
from pgsnap_postgres.dump.server_facts import read_facts
from pgsnap_postgres.dump.snapshot import Changed, Held, LockTimeout, hold
from pgsnap_postgres.options import Compression, DumpOptions

__all__ = ["choose_clients", "choose_compression", "dump", "pg_dump_argv"]

ATTEMPTS = 3
"""How often locks are tried for, ``lock_timeout`` seconds each."""
CHANGES = 20
"""How often a dump begins anew at most because somebody changed a table, or wanted to: each costs a fraction of a second."""


class _InTheWay(LockTimeout):
    """A session queued between the holder and pg_dump; it is let through by beginning again."""


def choose_clients(options: DumpOptions, major: int) -> Clients:
    """Return the programs for a server; of two installations of one major, the one that can compress as the options say."""
    need = ["pg_dump", "pg_dumpall"] if options.globals != "no" else ["pg_dump"]
    method = Compression.parse(options.compress).method if options.format == "custom" else None
    return find_clients(major, need=need, bindir=options.bindir, compression=method)


def choose_compression(options: DumpOptions, clients: Clients) -> Compression:
    """Return what pg_dump itself is to compress with: nothing for plain format, and where it lacks the method."""
    wanted = Compression.parse(options.compress)
    if options.format == "plain" or (clients.major < 16 and wanted.method != "gzip"):
        return Compression("none")
    return wanted if clients.supports_compression(wanted.method) else Compression("none")


def pg_dump_argv(options: DumpOptions, clients: Clients, compression: Compression, snapshot: str) -> list[str]:
    """Return pg_dump's command line. There is no secret in it, but names of schemas and tables from the options."""
    argv = [clients.pg_dump, "-d", SERVICE, "--no-password", f"--format={options.format}", f"--snapshot={snapshot}"]
    argv.append(f"--lock-wait-timeout={max(1, int(options.lock_timeout * 1000))}")
    if options.format == "custom":
        if compression.method == "none":
            argv.append("-Z0")
        else:
            argv.append(f"-Z{compression.level}" if clients.major < 16 else f"--compress={compression}")
    argv += [f"--schema={pattern}" for pattern in options.schemas]
    argv += [f"--exclude-schema={pattern}" for pattern in options.exclude_schemas]
    argv += [f"--table={pattern}" for pattern in options.tables]
    argv += [f"--exclude-table={pattern}" for pattern in options.exclude_tables]
    argv += [f"--exclude-table-data={pattern}" for pattern in options.exclude_table_data]
    if options.schemas or options.tables:
        argv.append("--strict-names")
    if not options.large_objects:
        argv.append("--no-blobs")
    if options.role is not None:
        argv.append(f"--role={options.role}")
    return argv


@contextlib.contextmanager
def dump(options: DumpOptions, run: Run) -> Iterator[Dump]:
    """Give the artifacts of one snapshot, which is held until the context is left. See ``DumpOptions.dump``."""
    if options.url is None:
        raise ConfigError("the dumper pg_dump has no url; give the database's URL to back it up.")
    target = parse_url(options.url)
    for note in target.notes:
        run.log.info("%s", note)
    names = Names.of(run)
    with contextlib.ExitStack() as stack:
        sessions = stack.enter_context(watch_sessions(target, names.holder, options.role))
        clients = choose_clients(options, sessions.connection.info.server_version // 10000)
        service = stack.enter_context(service_file(target, application_name=names.dump))
        taking = _Taking(options, target, clients, service, sessions, names, run)
        attempt = stack.enter_context(taking.begin())
        yield Dump(artifacts=attempt.artifacts(), facts=attempt.facts)


@attrs.frozen(eq=False)
class _Taking:
    """What all attempts of one dump share."""

    options: DumpOptions
    target: Target
    clients: Clients
    service: Service
    sessions: Sessions
    names: Names
    run: Run

    @contextlib.contextmanager
    def begin(self) -> Iterator[_Attempt]:
        """Try until an attempt holds, and keep that for as long as the context lasts."""
        timeouts = changes = 0
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    attempt = self._attempt(stack)
                except (Changed, _InTheWay) as error:
                    changes += 1
                    if changes >= CHANGES:
                        raise
                    self.run.log.info("the dump begins again: %s", error)
                except LockTimeout as error:
                    timeouts += 1
                    if timeouts >= ATTEMPTS:
                        raise
                    self.run.log.warning("%s This was attempt %d of %d.", error, timeouts, ATTEMPTS)
                else:
                    yield attempt
                    return
            self.run.check()
            time.sleep(min(0.05 * 2**changes, 2.0) if changes else float(timeouts))

    def _attempt(self, stack: contextlib.ExitStack) -> _Attempt:
        held = stack.enter_context(hold(self.options, self.target, self.sessions, self.names, self.run))
        compression = choose_compression(self.options, self.clients)
        attempt = _Attempt(self, held, compression)
        stack.callback(attempt.close)
        with in_a_sentence(self.target, "to be described"):
            attempt.facts.update(read_facts(held, self.options, self.clients, str(compression)))
        attempt.facts["artifact"] = attempt.main_name
        if self.options.format == "plain":
            attempt.take_toc()
        attempt.start()
        return attempt

    def circle_breaker(self, held: Held, found: list[str]) -> contextlib.AbstractContextManager[None]:
        """Watch until pg_dump has its locks; end it if it waits for somebody who waits for the holder."""
        import psycopg

        def look() -> None:
            with contextlib.suppress(psycopg.Error, DumpError):
                if not found and (who := held.in_circle()):
                    found.append(who)
                    self.sessions.terminate(self.names.dump)

        return watch(look, min(0.25, self.options.lock_timeout / 2), name="circle")


class _Attempt:
    """One snapshot, the pg_dump that reads it, and what is learned from the stream."""

    def __init__(self, taking: _Taking, held: Held, compression: Compression) -> None:
        self._taking, self._held, self._compression = taking, held, compression
        self._toc: Toc | None = None
        self._main: Stream | None = None
        self._source: Stream | None = None
        self._globals: Begun | None = None
        self.facts: Facts = {}

    @property
    def main_name(self) -> str:
        """The name of the main artifact."""
        return escape_name(self._taking.target.dbname) + (".sql" if self._taking.options.format == "plain" else ".dump")

    def artifacts(self) -> list[Artifact]:
        """Return the artifacts in their order."""
        compressed = self._compression.method != "none"
        found = [
            Artifact(name=self.main_name, open=self._open_main, compressed=compressed),
            Artifact(name="database.sql", open=self._database_sql),
        ]
        if self._taking.options.globals != "no":
            found.append(Artifact(name="globals.sql", open=self._globals_sql))
        return found

    def _read(self, argv: list[str]) -> Stream:
        """Run a client; whatever ends its stream early, its session on the server is ended too."""
        taking, service = self._taking, self._taking.service
        source = read_process(
            argv,
            start=taking.run.spawn,
            env=service.env,
            pass_fds=service.pass_fds,
            error=DumpError,
            on_stderr=lambda text: taking.run.log.warning("%s", text),
        )
        whole = False
        try:
            yield from source
            whole = True
        finally:
            source.close()
            if not whole:
                self._end_sessions()

    def _end_sessions(self) -> None:
        """A pg_dump that was killed leaves a server process queued for a lock, and everybody behind it."""
        import psycopg

        try:
            self._taking.sessions.terminate(self._taking.names.dump)
        except (psycopg.Error, DumpError) as error:
            self._taking.run.log.warning("could not end pg_dump's session on the server: %s", error)

    def _begun(self, begin: Callable[[], Any]) -> Any:
        """Run what waits for pg_dump's locks; turn its failure for want of a lock into LockTimeout."""
        circle: list[str] = []
        try:
            with self._taking.circle_breaker(self._held, circle):
                return begin()
        except DumpError as error:
            self._taking.run.check()
            said = error.stderr
            if circle:
                raise _InTheWay(
                    f"{circle[0]} waits for a table that the dump has locked, and pg_dump would wait behind it; run the backup "
                    "when it has ended."
                ) from None
            if "lock timeout" in said or "statement timeout" in said:
                raise LockTimeout(f"pg_dump could not lock a table in time: {said}; raise lock_timeout.") from None
            raise

    def start(self) -> None:
        """Start pg_dump and wait for its first bytes: then it has its locks."""
        taking = self._taking
        source = self._read(pg_dump_argv(taking.options, taking.clients, self._compression, self._held.snapshot))
        try:
            first = self._begun(lambda: next(source, b""))
        except BaseException:
            source.close()
            raise
        self._main, self._source = self._checked(first, source), source
        if self._taking.options.globals != "no":  # after pg_dump has its locks, and while it works
            with in_a_sentence(self._taking.target, "to give its roles"):
                self._globals = self._begin_globals()

    def _checked(self, first: bytes, source: Stream) -> Stream:
        def chunks() -> Iterator[bytes]:
            yield first
            yield from source

        try:
            if self._taking.options.format == "plain":
                yield from check_plain(chunks())
            else:
                yield from check_archive(chunks(), self._learn)
            self._finish_facts()
        finally:
            source.close()

    def close(self) -> None:
        """Stop pg_dump if nobody has read it to the end."""
        for stream in (self._main, self._source):  # a generator that was never begun frees nothing
            if stream is not None:
                stream.close()

        if self._globals is not None:
            self._globals.release()

    def _begin_globals(self) -> Begun:
        taking = self._taking
        options = taking.target.params.get("options", "")
        return begin_globals(taking.clients, taking.service, taking.sessions, taking.target.dbname, options, taking.run)

    def _open_main(self) -> Stream:
        assert self._main is not None
        return self._main

    def take_toc(self) -> Toc:
        """Read the table of contents from a dump of the definitions alone, in the same snapshot."""
        taking = self._taking
        options = attrs.evolve(taking.options, format="custom")
        none = type(self._compression)("none")
        argv = [*pg_dump_argv(options, taking.clients, none, self._held.snapshot), "--schema-only"]
        with contextlib.closing(self._read(argv)) as source:

            def whole() -> Toc:
                found: list[Toc] = []
                for _ in check_archive(source, found.append):
                    pass
                return found[0]

            toc: Toc = self._begun(whole)
        self._learn(toc)
        return toc

    def _learn(self, toc: Toc) -> None:
        self._toc = toc
        self.facts["objects"] = len(toc.entries)
        self.facts["roles"] = list(owners(toc))

    def _finish_facts(self) -> None:
        if self._held.queued:
            self._note(f"Up to {self._held.queued} sessions waited behind the dump's locks.")
        if self._held.lost:
            self._note("The connection that held the snapshot was lost during the dump; pg_dump ended well without it.")

    def _note(self, sentence: str) -> None:
        self.facts.setdefault("notes", []).append(sentence)

    def _database_sql(self) -> Stream:
        yield database_sql(self._toc or self.take_toc()).encode()

    def _globals_sql(self) -> Stream:
        taking = self._taking
        with in_a_sentence(taking.target, "to give its roles"):
            begun, self._globals = self._globals or self._begin_globals(), None
            needed, owners = taking.options.globals == "yes", self.facts.get("roles", ())
            taken = take_globals(begun, taking.sessions, taking.run, needed=needed, owners=owners)
        self.facts["globals"] = {"passwords": taken.passwords, "complete": taken.complete}
        self.facts["totals"]["roles"] = taken.roles
        for note in taken.notes:
            self._note(note)
        yield taken.text
