"""Restores a backup: what must be known before anything is changed, then the one way or the other.

The default is a new database that is renamed at the end (``restore_new``): whatever fails, the target is as it
was. Where the role may not create databases, an existing empty one is filled in one transaction
(``into_empty``). Everything that can be foreseen is refused first: a server that is older than the backup's,
extensions and roles that are missing, a database that is not empty or in use. Roles and tablespaces come
before the database, since objects belong to them; if the restore fails, those it created are dropped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence

import attrs

from pgsnap import ConfigError, RestoreError, RestoreRequest, Run, Source, Unsupported
from pgsnap.components import format_duration, format_size
from pgsnap_postgres.archive.check import Toc, TocEntry
from pgsnap_postgres.archive.database_sql import owners as named_roles
from pgsnap_postgres.archive.selection import Selection
from pgsnap_postgres.clients import Clients
from pgsnap_postgres.connection.connect import scrubbed
from pgsnap_postgres.connection.url import Target, parse_url
from pgsnap_postgres.options import DumpOptions
from pgsnap_postgres.restore.contents import Contents, look_inside
from pgsnap_postgres.restore.globals_apply import Applied, Globals, apply_globals, read_globals, undo
from pgsnap_postgres.restore.plan import (
    choose,
    choose_clients,
    main_artifact,
    read_text,
    refuse_server,
    table_of_contents,
)
from pgsnap_postgres.restore.properties import Properties, read_properties
from pgsnap_postgres.restore.restore_in_place import InPlace, restore_in_place
from pgsnap_postgres.restore.restore_new import NewDatabase, restore_new
from pgsnap_postgres.restore.run_restore import RestoreInput
from pgsnap_postgres.restore.target import Admin, Existing, ServerInfo, enter, existing_database, survey

__all__ = ["restore"]

_OWNED = frozenset(
    {
        "AGGREGATE", "BLOB", "BLOB METADATA", "COLLATION", "CONVERSION", "DEFAULT ACL", "DOMAIN", "EVENT TRIGGER",
        "FOREIGN DATA WRAPPER", "FOREIGN TABLE", "FUNCTION", "MATERIALIZED VIEW", "OPERATOR", "OPERATOR CLASS",
        "OPERATOR FAMILY", "PROCEDURAL LANGUAGE", "PROCEDURE", "PUBLICATION", "SCHEMA", "SEQUENCE", "SERVER", "STATISTICS",
        "SUBSCRIPTION", "TABLE", "TEXT SEARCH CONFIGURATION", "TEXT SEARCH DICTIONARY", "TYPE", "VIEW",
    }
)  # fmt: skip
"""Kinds of entries for which pg_restore sets an owner."""
_MENTIONING = frozenset({"POLICY", "USER MAPPING"})
_PRIVILEGES = frozenset({"ACL", "DEFAULT ACL"})


def restore(dumper: DumpOptions, source: Source, request: RestoreRequest, run: Run) -> None:
    """Restore a backup into the database that ``request.target`` names. See ``Dumper.restore``."""
    import psycopg

    started = time.monotonic()
    target = parse_url(request.target)
    for note in target.notes:
        run.log.info("%s", note)
    _check_request(target, request)
    try:
        with contextlib.closing(Admin.of(target, f"pgsnap {source.id}")) as admin:
            plan = _Plan.make(dumper, source, request, run, target, admin)
            plan.check()
            size = format_size(source.size(plan.artifact))
            run.log.info("restoring %s (%s) into %s", plan.artifact, size, target.describe())
            _carry_out(plan)
    except psycopg.Error as error:
        run.check()
        said = scrubbed(str(error), target)
        raise RestoreError(f"the server of {target.describe()} ended the restore: {said}; see its log.") from None
    took = format_duration(time.monotonic() - started)
    run.log.debug("restored backup %s into %s in %s", source.id, target.describe(), took)


def _carry_out(plan: _Plan) -> None:
    applied = plan.bring_globals()
    whole = False
    try:
        plan.carry_out(applied)
        whole = True
    finally:
        if not whole and applied is not None:
            _take_back(plan.admin, applied, plan.run)


def _check_request(target: Target, request: RestoreRequest) -> None:
    if target.dbname in ("template0", "template1"):
        raise ConfigError(f"{target.dbname!r} is a template of the server and no place for a backup; name another database.")
    if request.jobs < 1:
        raise ConfigError(f"jobs = {request.jobs} is too few; give 1 or more.")
    if request.sections and "pre-data" not in request.sections:
        raise Unsupported(
            f"sections = {', '.join(request.sections)} cannot be restored without 'pre-data': a restore makes a new "
            "database, in which the tables must be made first."
        )


@attrs.frozen(kw_only=True)
class _Plan:
    """All that was learned before anything is changed."""

    source: Source
    request: RestoreRequest
    run: Run
    target: Target
    admin: Admin
    server: ServerInfo
    artifact: str
    toc: Toc | None
    selection: Selection | None
    clients: Clients
    globals: Globals | None
    properties: Properties
    existing: Existing | None
    contents: Contents | None

    @classmethod
    def make(cls, dumper: DumpOptions, source: Source, request: RestoreRequest, run: Run, target: Target, admin: Admin) -> _Plan:
        """Look at the backup and at the server; changes nothing."""
        facts = source.facts
        artifact, plain = main_artifact(source)
        server = survey(admin.connection)
        refuse_server(facts, server, target)
        toc = None if plain else table_of_contents(source, artifact)
        clients = choose_clients(dumper, facts, toc, server)
        names = source.artifacts
        existing = existing_database(admin.connection, target.dbname)
        return cls(
            source=source,
            request=request,
            run=run,
            target=target,
            admin=admin,
            server=server,
            artifact=artifact,
            toc=toc,
            selection=choose(toc, request, run),
            clients=clients,
            globals=read_globals(read_text(source, "globals.sql")) if request.globals and "globals.sql" in names else None,
            properties=read_properties(read_text(source, "database.sql")) if "database.sql" in names else Properties(),
            existing=existing,
            contents=None if existing is None else _look_into(target, existing),
        )

    @property
    def entries(self) -> tuple[TocEntry, ...]:
        """The entries of the archive that are restored; none for a plain dump."""
        if self.selection is not None:
            return self.selection.entries
        return self.toc.entries if self.toc is not None else ()

    def check(self) -> None:
        """Refuse what cannot work, before anything is changed.

        Raises:
            RestoreError: with what stands in the way, and the next step.
        """
        self._check_database()
        self._check_extensions()
        self._check_roles()

    def _check_database(self) -> None:
        name, server = self.target.dbname, self.server
        if self.existing is None:
            if not server.createdb:
                raise RestoreError(
                    f"there is no database {name!r}, and the role {server.role!r} may not create one; give it CREATEDB, or "
                    f"create an empty database {name!r} that belongs to it."
                )
            return
        if self.contents is not None and not self.contents.empty and not self.request.force:
            raise RestoreError(
                f"the database {name!r} is not empty: it has {self.contents}; restore under another name, or with force "
                f"(the command's --replace {name!r}) to have the new database take its place; the present one is then kept "
                "under another name."
            )
        replaced = self.contents is None or not self.contents.empty
        if replaced and (why := self.cannot_rename):
            raise RestoreError(f"the database {name!r} is not empty and cannot be replaced: {why}; restore under another name.")

    @property
    def cannot_rename(self) -> str:
        """Why no new database can take the place of the existing one; empty if it can."""
        assert self.existing is not None
        if not self.server.createdb:
            return f"the role {self.server.role!r} may not create databases"
        if not self.existing.owned:
            return f"it belongs to {self.existing.owner!r}, of whom {self.server.role!r} is no member"
        if self.admin.target.dbname == self.target.dbname:
            return "no other database of the server lets us in, and one cannot rename a database from within"
        return ""

    def _check_extensions(self) -> None:
        if self.toc is None:
            needed = {item["name"]: item.get("version", "") for item in self.source.facts.get("extensions", ())}
        else:
            versions = {item["name"]: item.get("version", "") for item in self.source.facts.get("extensions", ())}
            needed = {e.tag: versions.get(e.tag, "") for e in self.entries if e.desc == "EXTENSION"}
        missing = sorted(name for name in needed if name not in self.server.extensions)
        if missing:
            raise RestoreError(
                f"the target's server ({self.server.version}) lacks extensions that the backup needs: {', '.join(missing)}; "
                "install them there (CREATE EXTENSION is not needed) and try again."
            )
        for name, version in needed.items():
            if version and version not in self.server.extensions[name]:
                self.run.log.warning(
                    "the extension %s had version %s and is installed with the target's own, one of: %s",
                    name,
                    version,
                    ", ".join(sorted(self.server.extensions[name])),
                )

    def _check_roles(self) -> None:
        """Every role that gets objects or privileges must be there, or come with the globals."""
        owners: set[str] = set()
        if self.request.owners and self.toc is None:
            owners = set(self.source.facts.get("roles", ()))
        elif self.request.owners:
            owners = {entry.owner for entry in self.entries if entry.owner and entry.desc in _OWNED}
        coming = set(self.globals.roles) if self.globals is not None and self.server.createrole else set()
        missing = sorted((owners | self._mentioned()) - set(self.server.roles) - coming)
        if missing:
            why = ""
            if self.globals is not None and not self.server.createrole and set(missing) & set(self.globals.roles):
                why = f" (the role {self.server.role!r} may not create roles)"
            remedy = ", or leave owners and privileges out (owners = false, --no-owner)" if self.request.owners else ""
            raise RestoreError(
                "the backup's objects belong to roles, or are granted to roles, that the server lacks: "
                f"{_listed(missing)}{why}; create them{remedy}."
            )
        if self.toc is None:
            return  # the facts of a plain dump do not tell owners from those who were granted something
        foreign = sorted(role for role in owners if not self.server.roles.get(role, True) and not role.startswith("pg_"))
        if foreign:
            raise RestoreError(
                f"the role {self.server.role!r} cannot give objects to {_listed(foreign)}, because it is no member of it; "
                "GRANT it, restore as a superuser, or leave owners and privileges out (owners = false, --no-owner)."
            )

    def _mentioned(self) -> set[str]:
        """The roles that privileges and policies name."""
        if self.toc is None:
            return set()
        kinds = _MENTIONING | _PRIVILEGES if self.request.owners else _MENTIONING
        entries = [entry for entry in self.entries if entry.desc in kinds and not entry.tag.startswith("DATABASE ")]
        return set(named_roles(attrs.evolve(self.toc, entries=tuple(attrs.evolve(entry, owner="") for entry in entries))))

    def bring_globals(self) -> Applied | None:
        """Create missing roles and tablespaces; say what was done."""
        log = self.run.log
        if self.globals is None:
            return None
        if not self.server.createrole:
            missing = sorted(set(self.globals.roles) - set(self.server.roles))
            if missing:
                log.warning("the role %r may not create roles; left out: %s", self.server.role, ", ".join(missing))
            return None
        applied = apply_globals(self.admin.connection, self.globals)
        if applied.created:
            log.info("created roles: %s", ", ".join(applied.created))
        if applied.left_alone:
            log.info("roles that exist are left as they are: %s", ", ".join(applied.left_alone))
        if applied.tablespaces:
            log.info("created tablespaces: %s", ", ".join(applied.tablespaces))
        for sentence in applied.refused:
            log.warning("of the globals the server refused %s", sentence)
        closed = sorted(self.globals.login_without_password & set(applied.created))
        if closed:
            log.warning("the backup has no passwords for these roles, set them before they can log in: %s", ", ".join(closed))
        return applied

    def carry_out(self, applied: Applied | None) -> None:
        """Restore, in the way that the server allows."""
        content = self._content(applied)
        why = "" if self.existing is None else self.cannot_rename
        if self.existing is not None and why:
            restore_in_place(
                InPlace(
                    run=self.run,
                    server=self.server,
                    target=self.target,
                    content=content,
                    properties=self.properties,
                    existing=self.existing,
                    reason=why,
                )
            )
            return
        restore_new(
            NewDatabase(
                run=self.run,
                admin=self.admin,
                server=self.server,
                target=self.target,
                content=content,
                properties=self.properties,
                existing=self.existing,
                replace=self.contents is None or not self.contents.empty,
            )
        )

    def _content(self, applied: Applied | None) -> RestoreInput:
        facts, request = self.source.facts, self.request
        there = self.server.tablespaces | set(applied.tablespaces if applied is not None else ())
        lacking = {entry.tablespace for entry in self.entries if entry.tablespace} - there
        if lacking:
            self.run.log.warning(
                "the server lacks tablespaces, their objects go to the default one: %s", ", ".join(sorted(lacking))
            )
        jobs = request.jobs
        if jobs > 1 and self.toc is None:
            self.run.log.warning("a plain dump is restored by one connection; jobs = %d is not used", jobs)
            jobs = 1
        sections = request.sections or ("pre-data",)
        tables = {(e.namespace, e.tag) for e in self.entries if e.desc == "TABLE" and "pre-data" in sections}
        large = facts.get("large_objects", 0)
        return RestoreInput(
            source=self.source,
            artifact=self.artifact,
            clients=self.clients,
            toc=self.toc,
            listing=None if self.selection is None else self.selection.text,
            jobs=jobs,
            owners=request.owners,
            tablespaces=not lacking,
            objects=len(self.entries) if self.toc is not None else int(facts.get("objects", 0)),
            large_objects=0 if self.selection is not None and (request.tables or request.schemas) else int(large),
            tables=frozenset(tables),
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _look_into(target: Target, existing: Existing) -> Contents | None:
    """Return what is in the existing database, or None if nobody can connect to it."""
    if not existing.connectable:
        return None
    with contextlib.closing(enter(target, "pgsnap restore")) as connection:
        return look_inside(connection)


def _take_back(admin: Admin, applied: Applied, run: Run) -> None:
    """Drop the roles and tablespaces that this restore has created: it has failed."""
    import psycopg

    names: Collection[str] = (*applied.created, *applied.tablespaces)
    try:
        left = undo(admin.connection, applied)
    except (psycopg.Error, RestoreError) as error:
        left = [f"{', '.join(names)}: {' '.join(str(error).split())}"] if names else []
    for sentence in left:
        run.log.warning("what this restore had created stays on the server: %s", sentence)
