"""judge: process ids tell the modes of a pooler apart. Recorded from PgBouncer 1.18 before PostgreSQL 17."""

from __future__ import annotations

import pytest

from pgsnap import DumpError
from pgsnap_postgres.connection.connect import connect
from pgsnap_postgres.connection.pooling import Pooling, detect_pooling, judge, refuse_transaction_pooler
from pgsnap_postgres.connection.url import parse_url
from pgsnap_postgres.server import Server


@pytest.mark.parametrize(
    ("pids", "expected"),
    [
        ((6320, 6320, 6321, 6320), "none"),
        ((911614398, 6320, 6321, 6320), "session"),
        ((-281709521, 6320, 6321, 6320), "session"),
        ((-1510315603, 6322, 6322, 6324), "transaction"),
        ((855901522, 6322, 6323, 6324), "transaction"),  # the second got another process, and so did the first
        ((855901522, 6322, 6322, 6322), "transaction"),
    ],
)
def test_modes_are_told_apart(pids: tuple[int, int, int, int], expected: Pooling) -> None:
    assert expected == judge(*pids)


def test_a_server_without_a_pooler_is_direct(server: Server) -> None:
    target = parse_url(server.url)
    with connect(target, application_name="one") as one, connect(target, application_name="two") as two:
        assert "none" == detect_pooling(one, two)


def test_transaction_mode_is_refused_with_the_reason() -> None:
    target = parse_url("postgres://u:S3cr3t@h/db", {})
    with pytest.raises(DumpError, match=r"db at h:5432 as u is a pooler in transaction mode.*give the URL of the server"):
        refuse_transaction_pooler("transaction", target)
    refuse_transaction_pooler("session", target)
    refuse_transaction_pooler("none", target)
