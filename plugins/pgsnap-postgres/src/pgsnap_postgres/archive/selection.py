"""Choose some of an archive's objects, with all they need: the list that ``pg_restore -L`` takes.

pg_restore's own ``-t`` restores a bare table: no default, no sequence, no key, no privileges, and a name that is not there
restores nothing, with exit status 0. Here the table of contents is followed instead, from the chosen tables and schemas:

- *up*: what an object depends on (its schema, types, functions, extensions, the parent of a partition), all the way;
- *down*: what is a part of a table (owned sequences, defaults, keys, indexes, statistics; partitions of a table that was chosen);
- *beside*: what says something about objects that are all there (data, comments, privileges, security labels);
- *if complete*: foreign keys, triggers, rules and policies, unless they refer to a table that is not there. Those are left out,
  and named.

A relation that something else needs, such as the table below a chosen view, comes whole, with its data. The list keeps the
archive's order, so that it works on an archive that comes out of a pipe.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

import attrs

from pgsnap import RestoreError

from .toc import Section, Toc, TocEntry

__all__ = ["Selection", "select"]

_RELATIONS = frozenset({"TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE"})
_ALWAYS = frozenset({"ENCODING", "STDSTRINGS", "SEARCHPATH"})
_NEVER = frozenset({"DATABASE", "DATABASE PROPERTIES"})  # the restore makes the database, from database.sql
_PARTS = frozenset({"DEFAULT", "CONSTRAINT", "CHECK CONSTRAINT"})  # tag: the table's name, a blank, its own
_NAMELESS_PARTS = frozenset({"INDEX", "STATISTICS", "SEQUENCE"})  # tag: its own name
_CONDITIONAL = {"FK CONSTRAINT": "foreign key", "TRIGGER": "trigger", "RULE": "rule", "POLICY": "policy"}
_BESIDE = frozenset(
    {
        "ACL",
        "CAST",
        "COMMENT",
        "INDEX ATTACH",
        "MATERIALIZED VIEW DATA",
        "ROW SECURITY",
        "SECURITY LABEL",
        "SEQUENCE OWNED BY",
        "SEQUENCE SET",
        "STATISTICS DATA",
        "TABLE ATTACH",
        "TABLE DATA",
        "TRANSFORM",
    }
)
_LARGE_OBJECTS = frozenset({"BLOB", "BLOBS", "BLOB METADATA"})
_PUBLICATIONS = frozenset({"PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA"})
_SECTIONS = ("pre-data", "data", "post-data")


@attrs.frozen(kw_only=True)
class Selection:
    """What is restored of an archive.

    Args:
        entries: The chosen entries, in the archive's order.
        also: Titles of relations that were not asked for and come because something chosen needs them.
        left_out: A sentence for each thing of the chosen tables that cannot come.
    """

    entries: tuple[TocEntry, ...]
    also: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The list for ``pg_restore -L``: one line for each entry, of which pg_restore reads the number before the semicolon."""
        return "".join(f"{_line(entry)}\n" for entry in self.entries)


def select(toc: Toc, tables: Sequence[str] = (), schemas: Sequence[str] = (), sections: Sequence[str] = ()) -> Selection:
    """Choose tables and whole schemas (both together add up), with what they need, of all or some sections.

    Args:
        toc: The archive's table of contents.
        tables: ``table`` or ``schema.table``, quoted as in SQL or as they are; also views and sequences. No patterns.
        schemas: Names of schemas, likewise.
        sections: Of ``pre-data``, ``data``, ``post-data``; empty: all.

    Raises:
        RestoreError: a name is not in the archive, or an unqualified one is there twice.
    """
    for section in sections:
        if section not in _SECTIONS:
            raise RestoreError(f"there is no section {section!r}; choose from {', '.join(_SECTIONS)}.")
    if not tables and not schemas:
        chosen = {entry.dump_id for entry in toc.entries}
        choice = None
    else:
        choice = _Choice(toc)
        choice.choose(tables, schemas)
        chosen = choice.chosen
    entries = tuple(
        entry
        for entry, section in _with_sections(toc)
        if entry.desc in _ALWAYS
        or (entry.dump_id in chosen and entry.desc not in _NEVER and (not sections or section in sections))
        if not (choice is None and _is_about_database(entry))
    )
    if choice is None:
        return Selection(entries=entries)
    return Selection(entries=entries, also=tuple(choice.also()), left_out=tuple(choice.left_out()))


def _line(entry: TocEntry) -> str:
    parts = (entry.desc, entry.namespace or "-", entry.tag, entry.owner)
    return re.sub(r"[\r\n]", " ", f"{entry.dump_id}; {entry.tableoid} {entry.oid} {' '.join(parts)}").rstrip()


def _is_about_database(entry: TocEntry) -> bool:
    return entry.desc in ("ACL", "COMMENT", "SECURITY LABEL") and entry.tag.startswith("DATABASE ")


def _is_about_schema(entry: TocEntry, name: str) -> bool:
    """Privileges of the schema ``public`` stand alone: the archive does not create it."""
    return entry.desc in ("ACL", "COMMENT", "SECURITY LABEL") and not entry.namespace and entry.tag == f"SCHEMA {name}"


def _with_sections(toc: Toc) -> Iterator[tuple[TocEntry, Section]]:
    """Each entry with its section; an entry of none (a comment, privileges) is in that of the entry before, as for pg_restore."""
    current: Section = "pre-data"
    for entry in toc.entries:
        if entry.section != "none":
            current = entry.section
        yield entry, current


class _Choice:
    """The walk through one table of contents."""

    def __init__(self, toc: Toc) -> None:
        self.chosen: set[int] = set()
        self._asked: set[int] = set()
        self._toc = toc
        self._entries = {entry.dump_id: entry for entry in toc.entries}
        self._relations = [entry for entry in toc.entries if entry.desc in _RELATIONS]
        self._parts: dict[int, list[int]] = {}
        self._conditional: list[tuple[TocEntry, TocEntry]] = []
        self._partitions: dict[int, list[int]] = {}
        for entry in toc.entries:
            if entry.desc == "TABLE ATTACH":  # depends on the partition and on its parent
                self._attach(entry)
            elif (table := self._belongs_to(entry)) is not None:
                if entry.desc in _CONDITIONAL and not entry.tag.endswith(" _RETURN"):  # a view that was split in two
                    self._conditional.append((entry, table))
                else:
                    self._parts.setdefault(table.dump_id, []).append(entry.dump_id)

    def _attach(self, entry: TocEntry) -> None:
        tables = list(dict.fromkeys(self._up(entry)))
        child = next((other for other in tables if (other.tag, other.namespace) == (entry.tag, entry.namespace)), None)
        for parent in tables:
            if child is not None and parent is not child and parent.relkind in ("p", ""):
                self._partitions.setdefault(parent.dump_id, []).append(child.dump_id)

    def _up(self, entry: TocEntry) -> Iterator[TocEntry]:
        """What an entry depends on; dump ids that are not in the archive are pg_dump's own marks."""
        for other in entry.dependencies:
            if (found := self._entries.get(other)) is not None:
                yield found

    def _belongs_to(self, entry: TocEntry) -> TocEntry | None:
        named = entry.desc in _PARTS or entry.desc in _CONDITIONAL
        if not named and entry.desc not in _NAMELESS_PARTS:
            return None
        tables = [other for other in self._up(entry) if other.desc in _RELATIONS and other is not entry]
        if named:
            tables = [other for other in tables if other.namespace == entry.namespace and entry.tag.startswith(f"{other.tag} ")]
            return max(tables, key=lambda other: len(other.tag), default=None)
        if entry.desc != "STATISTICS":  # which may be in another schema than its table
            tables = [other for other in tables if other.namespace == entry.namespace]
        return next((other for other in tables if other.desc != "SEQUENCE"), None)

    # --- names ---

    def choose(self, tables: Sequence[str], schemas: Sequence[str]) -> None:
        for name in schemas:
            self._choose_schema(name)
        for name in tables:
            self._ask(self._find_relation(name))
        self._settle()

    def _ask(self, entry: TocEntry) -> None:
        """Choose a relation that was asked for; of a partitioned table all partitions, too."""
        waiting = [entry.dump_id]
        while waiting:
            dump_id = waiting.pop()
            if dump_id not in self._asked:
                self._asked.add(dump_id)
                waiting += self._partitions.get(dump_id, ())
        self._add(self._asked)

    def _choose_schema(self, name: str) -> None:
        parts = _identifiers(name)
        wanted = parts[0] if parts is not None and len(parts) == 1 else name
        known = {entry.tag for entry in self._toc.entries if entry.desc == "SCHEMA"}
        known |= {entry.namespace for entry in self._toc.entries if entry.namespace}
        if wanted not in known:
            raise RestoreError(f"the backup has no schema {wanted!r}; {_suggest(wanted, known, 'schemas')}")
        members = []
        for entry in self._toc.entries:
            if entry.namespace == wanted and entry.desc in _RELATIONS:
                self._ask(entry)
            elif (
                (entry.desc == "SCHEMA" and entry.tag == wanted)
                or _is_about_schema(entry, wanted)
                or (
                    entry.namespace == wanted
                    and entry.desc not in _BESIDE
                    and entry.desc not in _CONDITIONAL
                    and entry.desc not in _PUBLICATIONS
                )
            ):
                members.append(entry.dump_id)
        self._add(members)

    def _find_relation(self, name: str) -> TocEntry:
        parts = _identifiers(name)
        found = []
        for entry in self._relations:
            names = {(name,), tuple(parts or ())}
            if (entry.tag,) in names or (entry.namespace, entry.tag) in names or f"{entry.namespace}.{entry.tag}" == name:
                found.append(entry)
        if len(found) == 1:
            return found[0]
        if found:
            ways = " or ".join(f'"{entry.namespace}"."{entry.tag}"' if "." in entry.tag else _name(entry) for entry in found)
            raise RestoreError(f"the backup has more than one table {name!r}; write {ways}.")
        known = [_name(entry) for entry in self._relations if entry.desc != "SEQUENCE"]
        raise RestoreError(f"the backup has no table {name!r}; {_suggest(name, known, 'tables')}")

    # --- the walk ---

    def _closure(self, dump_ids: Iterable[int]) -> set[int]:
        """These entries, what they need, and the parts of every relation among them, that are not chosen yet."""
        new: set[int] = set()
        waiting = list(dump_ids)
        while waiting:
            dump_id = waiting.pop()
            if dump_id in new or dump_id in self.chosen:
                continue
            entry = self._entries.get(dump_id)
            if entry is None or entry.desc in _NEVER:
                continue
            new.add(dump_id)
            waiting += entry.dependencies
            waiting += self._parts.get(dump_id, ())
        return new

    def _add(self, dump_ids: Iterable[int]) -> None:
        self.chosen |= self._closure(dump_ids)

    def _settle(self) -> None:
        """Add what is complete, and what stands beside, until nothing is added any more."""
        beside = [entry for entry in self._toc.entries if entry.desc in _BESIDE and not _is_about_database(entry)]
        while True:
            before = len(self.chosen)
            for entry, table in self._conditional:
                if table.dump_id in self.chosen and entry.dump_id not in self.chosen:
                    needed = self._closure([entry.dump_id])
                    if not any(self._entries[dump_id].desc in _RELATIONS for dump_id in needed):
                        self.chosen |= needed
            for entry in beside:
                needs = [other.dump_id for other in self._up(entry)]
                if needs and self.chosen.issuperset(needs):
                    self.chosen.add(entry.dump_id)
            if len(self.chosen) == before:
                return

    # --- the report ---

    def also(self) -> Iterator[str]:
        owned = {part for dump_id in self.chosen for part in self._parts.get(dump_id, ())}
        for entry in self._relations:
            if entry.dump_id in self.chosen - self._asked - owned:
                yield entry.title

    def left_out(self) -> Iterator[str]:
        for entry, table in self._conditional:
            if table.dump_id not in self.chosen or entry.dump_id in self.chosen:
                continue
            needed = self._closure([entry.dump_id])
            parts = {part for dump_id in needed for part in self._parts.get(dump_id, ())}
            missing = [other for other in self._relations if other.dump_id in needed - parts]
            own = entry.tag.removeprefix(f"{table.tag} ")
            yield (
                f"the {_CONDITIONAL[entry.desc]} {own} of {_name(table)} is left out: it refers to "
                f"{' and '.join(map(_name, missing))}, not restored here."
            )
        for entry in self._toc.entries:
            if entry.desc in _PUBLICATIONS and any(other.dump_id in self.chosen for other in self._up(entry)):
                yield f"the publication of {entry.tag!r} is left out: publications belong to whole databases."
        if any(entry.desc in _LARGE_OBJECTS for entry in self._toc.entries):
            yield "large objects are left out: the archive does not tell which table refers to them."


# --- names -----------------------------------------------------------------------------------------------------------


def _name(entry: TocEntry) -> str:
    return f"{entry.namespace}.{entry.tag}"


def _identifiers(name: str) -> list[str] | None:
    """The parts of a name that is quoted as in SQL (``"Odd Schema"."a.b"``, ``sales.orders``); None if it is not."""
    if not re.fullmatch(r'(?:"(?:[^"]|"")+"|[^".]+)(?:\.(?:"(?:[^"]|"")+"|[^".]+))?', name):
        return None
    parts = re.findall(r'"((?:[^"]|"")+)"|([^".]+)', name)
    return [quoted.replace('""', '"') if quoted else plain for quoted, plain in parts]


def _suggest(name: str, known: Iterable[str], what: str) -> str:
    names = sorted(known)
    by_folded: dict[str, str] = {}
    for full in names:
        by_folded.setdefault(full.casefold(), full)
        by_folded.setdefault(full.rpartition(".")[2].casefold(), full)
    wanted = name.casefold()
    last = wanted.rpartition(".")[2]
    close = [last] if last in by_folded else difflib.get_close_matches(wanted, by_folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {by_folded[close[0]]!r}?"
    some = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    return f"it has {len(names)} {what}: {some}." if names else f"it has no {what}."
