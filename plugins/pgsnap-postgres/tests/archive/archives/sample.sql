-- What the archives here were dumped from. Small, with each kind of block: rows that are narrow, a table with several pieces, an
-- empty one, large objects (one empty, one with an oid above 2^31).
CREATE TABLE "Ünus ""ual" (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);
INSERT INTO "Ünus ""ual" (note) SELECT 'row ' || n FROM generate_series(1, 5) n;
CREATE TABLE narrow (a integer);
INSERT INTO narrow SELECT n FROM generate_series(1, 20) n;
CREATE TABLE empty (a integer);
CREATE TABLE wide (a text);
INSERT INTO wide SELECT string_agg(md5(n::text), '') FROM generate_series(1, 30) n;
CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
SELECT lo_from_bytea(3000000001, 'a high oid'), lo_from_bytea(77, 'low'), lo_from_bytea(78, '');
