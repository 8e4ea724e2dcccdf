"""Lists the tables that pg_dump will lock and read, with what the role lacks to do so.

pg_dump's patterns are psql's: letters outside double quotes are folded to lower case, ``*`` and ``?`` are wild, a dot
separates schema and name, and a name without a schema means what is visible in the search path. Which tables are chosen
follows pg_dump's own code (``selectDumpableTable``), so that the holder locks what pg_dump locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from pgsnap import DumpError
from pgsnap_postgres.options import DumpOptions

if TYPE_CHECKING:
    from psycopg import sql

    from pgsnap_postgres.connection.connect import Connection

__all__ = ["Table", "check_large_objects", "check_readable", "list_tables", "pattern_regex"]


@attrs.frozen
class Table:
    """A table (``r``), partitioned table (``p``) or sequence (``S``) that pg_dump reads; ``lacks`` is what the role lacks."""

    oid: int
    schema: str
    name: str
    kind: str
    lacks: str = attrs.field(default="", eq=False)

    @property
    def title(self) -> str:
        """``schema.name``, quoted where SQL needs it."""
        return ".".join(
            part if part.isidentifier() and part.islower() else '"' + part.replace('"', '""') + '"'
            for part in (self.schema, self.name)
        )


def pattern_regex(pattern: str) -> tuple[str, ...]:
    """Translate a psql pattern into regular expressions of PostgreSQL, one for each part between dots.

    As ``patternToSQLRegex`` of PostgreSQL's ``fe_utils/string_utils.c`` does it.
    """
    parts, text, quoted, at = [], "", False, 0
    while at < len(pattern):
        char = pattern[at]
        if char == '"':
            if quoted and pattern[at + 1 : at + 2] == '"':
                text += '"'
                at += 1
            else:
                quoted = not quoted
        elif not quoted and char == "*":
            text += ".*"
        elif not quoted and char == "?":
            text += "."
        elif not quoted and char == ".":
            parts.append(text)
            text = ""
        elif char == "$" or (quoted and char in "|*+?()[]{}.^\\") or (char == "[" and pattern[at + 1 : at + 2] == "]"):
            text += "\\" + char
        else:
            text += char if quoted else char.lower()
        at += 1
    return tuple(f"^({part})$" for part in (*parts, text))


def _any(conditions: list[sql.Composable]) -> sql.Composable:
    from psycopg import sql

    return sql.SQL("({})").format(sql.SQL(" OR ").join(conditions)) if conditions else sql.SQL("false")


def _matches(column: str, regex: str) -> sql.Composable:
    from psycopg import sql

    form = '{} OPERATOR(pg_catalog.~) {} COLLATE pg_catalog."default"'
    return sql.SQL(form).format(sql.SQL(column), sql.Literal(regex))


def _schemas(patterns: tuple[str, ...]) -> sql.Composable:
    return _any([_matches("n.nspname", pattern_regex(pattern)[-1]) for pattern in patterns])


def _tables(patterns: tuple[str, ...]) -> sql.Composable:
    from psycopg import sql

    conditions: list[sql.Composable] = []
    for pattern in patterns:
        *schema, name = pattern_regex(pattern)
        where = _matches("n.nspname", schema[-1]) if schema else sql.SQL("pg_catalog.pg_table_is_visible(c.oid)")
        conditions.append(sql.SQL("({} AND {})").format(where, _matches("c.relname", name)))
    return _any(conditions)


_QUERY = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       CASE WHEN c.relkind = 'S' THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
            ELSE pg_catalog.has_table_privilege(c.oid, 'SELECT') END,
       c.relkind <> 'S' AND NOT {unread} AND pg_catalog.row_security_active(c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND NOT {excluded}
  AND CASE WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                            AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e'
                            AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass)
           THEN {chosen}
           ELSE {configured} AND EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE c.oid = ANY (e.extconfig)) END
ORDER BY c.oid
"""


def list_tables(connection: Connection, options: DumpOptions) -> tuple[Table, ...]:
    """Return what pg_dump would lock and read with these options, as this session's role sees it."""
    from psycopg import sql

    if options.tables:
        chosen = configured = _tables(options.tables)
    else:
        if options.schemas:
            named = _schemas(options.schemas)
        else:
            named = sql.SQL("(n.nspname !~ '^pg_' AND n.nspname <> 'information_schema')")
        chosen = sql.SQL("({} AND NOT {})").format(named, _schemas(options.exclude_schemas))
        configured = sql.SQL("false" if options.schemas else "true")
    query = sql.SQL(_QUERY).format(
        unread=_tables(options.exclude_table_data),
        excluded=_tables(options.exclude_tables),
        chosen=chosen,
        configured=configured,
    )
    return tuple(_table(row) for row in connection.execute(query))


def _table(row: tuple[Any, ...]) -> Table:
    oid, schema, name, kind, usage, select, hidden = row
    lacks = ""
    if usage is False:
        lacks = "USAGE on its schema"
    elif select is False:
        lacks = "SELECT on it"
    elif hidden:
        lacks = "the rows that its row security hides"
    return Table(oid, schema, name, kind, lacks)


def check_readable(tables: tuple[Table, ...], role: str) -> None:
    """Raise DumpError that names the first table that cannot be dumped whole, and what to do."""
    lacking = [table for table in tables if table.lacks]
    if not lacking:
        return
    first = lacking[0]
    what = "sequence" if first.kind == "S" else "table"
    more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    if "row security" in first.lacks:
        raise DumpError(
            f"row security hides rows of the table {first.title}{more} from the role {role!r}; give it BYPASSRLS, dump as the "
            "owner, or name the table in exclude_table_data."
        )
    raise DumpError(
        f"the role {role!r} has no permission to read the {what} {first.title}{more}: it lacks {first.lacks}; GRANT that (or "
        "pg_read_all_data), or name it in exclude_tables."
    )


_HIDDEN_LARGE_OBJECTS = """
SELECT count(*), min(m.oid) FROM pg_catalog.pg_largeobject_metadata m
WHERE NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
  AND pg_catalog.current_setting('lo_compat_privileges') = 'off'
  AND NOT pg_catalog.pg_has_role(m.lomowner, 'USAGE')
  AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
                  AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))
"""


def check_large_objects(connection: Connection, options: DumpOptions, role: str) -> None:
    """Raise DumpError if there are large objects that are to be dumped and may not be read."""
    if not options.large_objects or options.schemas or options.tables:  # pg_dump leaves them out then
        return
    row = connection.execute(_HIDDEN_LARGE_OBJECTS.encode()).fetchone()
    if row is not None and row[0]:
        raise DumpError(
            f"the role {role!r} has no permission to read {row[0]} large objects, such as {row[1]}; GRANT SELECT ON LARGE "
            "OBJECT, dump as their owner, or set large_objects = false."
        )
