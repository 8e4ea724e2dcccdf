"""Describes a database by hashes, so that two can be compared: what the demo calls equal.

Every row of every table is read in a fixed order and hashed, without being held in memory; so are sequences, large objects,
definitions, rights, roles and settings. (The real fingerprint, taken in the dump's own snapshot, belongs to the drill.)
"""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
from psycopg import sql

USER_SCHEMA = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

TABLES = f"""
    SELECT n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND {USER_SCHEMA} ORDER BY 1, 2
"""
SEQUENCES = f"""
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND {USER_SCHEMA} ORDER BY 1, 2
"""
LISTS = {
    "large objects": "SELECT oid, lomowner::regrole::text, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1",
    "columns": f"""
        SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
            a.attgenerated, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {USER_SCHEMA}
        ORDER BY 1, 2, a.attnum""",
    "views": f"""
        SELECT n.nspname, c.relname, pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('v', 'm') AND {USER_SCHEMA} ORDER BY 1, 2""",
    "functions": f"""
        SELECT n.nspname, p.proname, pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE p.prokind IN ('f', 'p') AND {USER_SCHEMA} AND NOT EXISTS (SELECT FROM pg_depend e
            WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e') ORDER BY 1, 2, 3""",
    "indexes": f"""
        SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {USER_SCHEMA} ORDER BY 1""",
    "constraints": f"""
        SELECT r.conrelid::regclass::text, r.conname, pg_get_constraintdef(r.oid)
        FROM pg_constraint r JOIN pg_namespace n ON n.oid = r.connamespace
        WHERE r.contype IN ('c', 'f', 'p', 'u', 'x') AND {USER_SCHEMA} ORDER BY 1, 2""",
    "triggers": """
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2""",
    "policies": """
        SELECT schemaname, tablename, policyname, roles::text, cmd, qual, with_check FROM pg_policies ORDER BY 1, 2, 3""",
    "owners and rights": f"""
        SELECT n.nspname, c.relname, c.relkind::text, c.relowner::regrole::text,
            ARRAY(SELECT item::text FROM unnest(c.relacl) item ORDER BY 1),
            ARRAY(SELECT a.attname || ' ' || a.attacl::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL
                ORDER BY 1)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND {USER_SCHEMA} ORDER BY 1, 2""",
    "extensions": "SELECT extname, extversion FROM pg_extension ORDER BY 1",
    "comments": """
        SELECT classoid::regclass::text, obj_description(objoid, classoid::regclass::name) FROM pg_description
        WHERE objoid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend p
            WHERE p.classid = classoid AND p.objid = objoid AND p.deptype = 'e') ORDER BY 1, 2""",
    "database": """
        SELECT pg_encoding_to_char(encoding), datcollate, datctype, shobj_description(oid, 'pg_database'),
            ARRAY(SELECT item::text FROM unnest(coalesce(datacl, acldefault('d', datdba))) item ORDER BY 1)
        FROM pg_database WHERE datname = current_database()""",
    "settings": """
        SELECT coalesce(setrole::regrole::text, ''), setdatabase <> 0, setconfig FROM pg_db_role_setting
        WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
            AND (setrole = 0 OR setrole::regrole::text <> 'postgres') ORDER BY 1, 2""",
}
ROLES = """
    SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit,
        ARRAY(SELECT roleid::regrole::text FROM pg_auth_members m WHERE m.member = r.oid ORDER BY 1)
    FROM pg_roles r WHERE oid >= 16384 ORDER BY 1
"""


def describe(url: str, *, roles: bool = True) -> dict[str, tuple[int, str]]:
    """Return, for each table and each kind of thing, how many there are and a hash of all of them.

    Args:
        url: The database.
        roles: Compare the server's roles as well.
    """
    found: dict[str, tuple[int, str]] = {}
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute("SET LOCAL search_path = ''; SET LOCAL extra_float_digits = 1; SET LOCAL timezone = 'UTC'")
        connection.execute("SET LOCAL intervalstyle = 'postgres'; SET LOCAL datestyle = 'ISO'; SET LOCAL row_security = off")
        for schema, table, kind in connection.execute(TABLES).fetchall():
            found[f"{schema}.{table}"] = _rows(connection, schema, table, only=kind == "r")
        values = [
            (schema, name, *(connection.execute(_state_of(schema, name)).fetchone() or ()))
            for schema, name in connection.execute(SEQUENCES).fetchall()
        ]
        found["sequences"] = _hash(values)
        for title, query in (LISTS | ({"roles": ROLES} if roles else {})).items():
            found[title] = _hash(connection.execute(query.encode()).fetchall())
    return found


def _rows(connection: psycopg.Connection[Any], schema: str, table: str, *, only: bool) -> tuple[int, str]:
    query = sql.SQL('COPY (SELECT ROW(row__.*)::text COLLATE "C" FROM {} {} row__ ORDER BY 1) TO STDOUT').format(
        sql.SQL("ONLY" if only else ""), sql.Identifier(schema, table)
    )
    digest, count = hashlib.sha256(), 0
    with connection.cursor() as cursor, cursor.copy(query) as rows:
        for block in rows:
            digest.update(block)
            count += bytes(block).count(b"\n")
    return count, digest.hexdigest()


def _state_of(schema: str, name: str) -> sql.Composed:
    return sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, name))


def _hash(rows: list[tuple[Any, ...]]) -> tuple[int, str]:
    return len(rows), hashlib.sha256(repr(rows).encode()).hexdigest()
