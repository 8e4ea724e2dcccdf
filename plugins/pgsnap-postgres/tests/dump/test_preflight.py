"""preflight: what would fail or be missing is found before the run, with a remedy."""

from __future__ import annotations

import psycopg
import pytest

from pgsnap import Finding, Run
from pgsnap_postgres import PgDump
from pgsnap_postgres.server import Server
from pgsnap_postgres.testing import SHOP_OWNER, SHOP_OWNER_PASSWORD, SHOP_READER, MakeDatabase, database_name


def by_subject(findings: list[Finding]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in findings:
        found.setdefault(finding.subject, []).append(f"{finding.level}: {finding.text}")
    return found


def test_what_a_plain_owner_lacks_is_said(server: Server, shop_db: str) -> None:
    url = server.database_url(database_name(shop_db), user=SHOP_OWNER, password=SHOP_OWNER_PASSWORD)
    found = by_subject(list(PgDump(url=url).preflight(Run(encrypted=True))))
    assert ["info: The passwords of roles are left out, because this role may not read them."] == found["globals"]
    assert not any(text.startswith("error") for texts in found.values() for text in texts)


def test_every_table_that_cannot_be_read_is_an_error(server: Server, shop_db: str) -> None:
    findings = PgDump(url=shop_db, role=SHOP_READER).preflight(Run())
    errors = [finding for finding in findings if finding.level == "error"]
    assert errors
    assert {"tables", "large objects"} == {finding.subject for finding in errors}
    assert all(f"GRANT it to {SHOP_READER}" in finding.remedy for finding in errors if finding.subject == "tables")


def test_unlogged_and_foreign_tables_are_mentioned(server: Server, make_db: MakeDatabase) -> None:
    url = make_db(server)
    with psycopg.connect(url) as setup:
        setup.execute("CREATE UNLOGGED TABLE u (i int); CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w")
        setup.execute("CREATE FOREIGN TABLE f (i int) SERVER s")
    texts = " ".join(by_subject(list(PgDump(url=url).preflight(Run())))["tables"])
    assert "1 unlogged tables" in texts
    assert "1 foreign tables" in texts


def test_a_client_that_is_too_old_is_an_error_beside_the_others(server17: Server, server18: Server) -> None:
    found = by_subject(list(PgDump(url=server18.url, bindir=server17.bindir).preflight(Run())))
    assert found["database"][0].startswith("ok: Connected to postgres at 127.0.0.1")
    assert found["pg_dump"][0].startswith("error: ")
    assert "tables" in found


def test_passwords_inside_the_dump_are_warned_about_unless_something_encrypts(server: Server, make_db: MakeDatabase) -> None:
    """User mappings carry passwords of other servers."""
    url = make_db(server)
    with psycopg.connect(url) as setup:
        setup.execute("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w")
        setup.execute("CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (password 'S3cr3t')")
    words = "1 user mapping, which may carry passwords"
    assert words in " ".join(by_subject(list(PgDump(url=url).preflight(Run())))["passwords"])
    assert "passwords" not in by_subject(list(PgDump(url=url).preflight(Run(encrypted=True))))
    with PgDump(url=url).dump(Run()) as dump:
        assert any(words in note for note in dump.facts["notes"])


@pytest.mark.parametrize("compress", ["zstd:1", "none"])
def test_compression_that_the_client_lacks_is_said(server18: Server, compress: str) -> None:
    """The wheel of PostgreSQL 18 is built without zstd."""
    found = by_subject(list(PgDump(url=server18.url, compress=compress, bindir=server18.bindir).preflight(Run())))
    assert (compress != "none") == ("compress" in found)


def test_a_url_that_cannot_be_read_is_a_finding_without_its_password() -> None:
    findings = PgDump(url="mysql://u:S3cr3t@h/db").preflight(Run())
    assert ["error"] == [finding.level for finding in findings]
    assert "S3cr3t" not in repr(findings)
