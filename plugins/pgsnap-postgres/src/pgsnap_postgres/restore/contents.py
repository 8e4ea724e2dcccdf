"""What is in a database: a database that is to be filled must be empty, and one that is not is described, not touched.

Empty means: no object that somebody has made, in any schema and of any kind, and no large object. Objects are
told from those of ``initdb`` by their oid (16384 and above, ``FirstNormalObjectId`` of ``access/transam.h``).
What belongs to an extension does not count, since hosted databases come with some; such a database is not
dropped later, though.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pgsnap_postgres.connection.connect import Connection

__all__ = ["Contents", "look_inside", "missing_relations"]

_RELATIONS = """
    SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
            WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' ELSE 'type' END AS kind, 'pg_class' AS catalog, c.oid
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND nspname !~ '^pg_(toast|temp_|toast_temp_)'
    UNION ALL SELECT 'schema', 'pg_namespace', oid FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT 'type', 'pg_type', oid FROM pg_type
        WHERE typrelid = 0 AND typcategory <> 'A' AND typtype IN ('b', 'd', 'e', 'r', 'p')
    UNION ALL SELECT 'large object', 'pg_largeobject', oid FROM pg_largeobject_metadata"""
_KINDS = {
    "pg_proc": "function",
    "pg_event_trigger": "event trigger",
    "pg_publication": "publication",
    "pg_foreign_data_wrapper": "foreign-data wrapper",
    "pg_foreign_server": "foreign server",
    "pg_language": "language",
    "pg_collation": "collation",
    "pg_conversion": "conversion",
    "pg_operator": "operator",
    "pg_opclass": "operator class",
    "pg_cast": "cast",
    "pg_am": "access method",
    "pg_ts_config": "text search configuration",
    "pg_ts_dict": "text search dictionary",
    "pg_default_acl": "default privilege",
}
_QUERY = f"""
    WITH found AS ({_RELATIONS} {" ".join(f"UNION ALL SELECT '{k}', '{c}', oid FROM {c}" for c, k in _KINDS.items())})
    SELECT kind, count(*) FROM found
    WHERE (oid >= 16384 OR kind = 'large object') AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.deptype IN ('e', 'i')
        AND d.classid = ('pg_catalog.' || catalog)::regclass AND d.objid = found.oid
        AND (d.deptype = 'e' OR kind IN ('function', 'type')))
    GROUP BY kind ORDER BY array_position(ARRAY['table', 'view', 'materialized view', 'sequence', 'function', 'large object'],
        kind) NULLS LAST, kind"""


@attrs.frozen
class Contents:
    """The objects of a database that somebody has made, by kind, and its extensions but for plpgsql."""

    objects: Mapping[str, int]
    extensions: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.objects

    def __str__(self) -> str:
        named = [f"{count} {kind if count == 1 else _plural(kind)}" for kind, count in self.objects.items()]
        return ", ".join(named) or "nothing"


def _plural(kind: str) -> str:
    return kind[:-1] + "ies" if kind.endswith("y") else kind + "s"


def look_inside(connection: Connection) -> Contents:
    """Count what is in the database that ``connection`` is connected to."""
    objects = connection.execute(_QUERY.encode()).fetchall()
    extensions = connection.execute("SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1").fetchall()
    return Contents({str(kind): int(count) for kind, count in objects}, tuple(row[0] for row in extensions))


def missing_relations(connection: Connection, names: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of ``(schema, name)`` that the database has no relation for."""
    rows = connection.execute("SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace")
    return sorted(names - {(row[0], row[1]) for row in rows})
