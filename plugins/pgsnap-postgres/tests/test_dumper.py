"""PgDump: its options are checked, it shows no secret, and it pickles."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

import pgsnap_postgres
from pgsnap import ConfigError, Registry, RestoreRequest, Run, Secret
from pgsnap_postgres import PgDump
from pgsnap_postgres.clients import Clients
from pgsnap_postgres.dump.dump import choose_compression, pg_dump_argv
from pgsnap_postgres.options import Compression


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "tar"}, "format = 'tar'.*custom, plain"),
        ({"globals": "maybe"}, "globals = 'maybe'.*auto, yes, no"),
        ({"compress": "bzip2"}, "compress = 'bzip2'.*zstd:N"),
        ({"compress": "zstd:99"}, "compress = 'zstd:99'.*1 to 22"),
        ({"compress": "gzip:x"}, "compress = 'gzip:x'"),
        ({"lock_timeout": 0}, "lock_timeout = 0.*0.1 to 86400"),
        ({"tables": ("a", " ")}, "tables has an empty pattern"),
    ],
)
def test_a_bad_option_is_refused_with_its_name_value_and_what_is_allowed(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PgDump(**options)


def test_compression_levels_have_defaults() -> None:
    assert ["zstd:1", "gzip:6", "lz4:1", "none"] == [str(Compression.parse(text)) for text in ("zstd", "gzip", "lz4", "none")]


def test_it_pickles_and_shows_no_password() -> None:
    dumper = PgDump(url=Secret("postgresql://u:S3cr3t@h/db"), tables=["a", "b"])
    assert dumper == pickle.loads(pickle.dumps(dumper))
    assert ("a", "b") == dumper.tables
    assert "S3cr3t" not in repr(dumper)


def test_without_a_url_only_a_dump_is_refused() -> None:
    """A recovery host needs no DATABASE_URL."""
    with pytest.raises(ConfigError, match="has no url; give"), PgDump().dump(Run()):
        pass
    assert ["error"] == [finding.level for finding in PgDump().preflight(Run())]


def test_describe_resolves_the_target_and_hides_the_password() -> None:
    request = RestoreRequest(target=Secret("postgres://me:S3cr3t@db.example.com/shop_copy"))
    assert "shop_copy at db.example.com:5432 as me" == PgDump().describe(request)


def test_the_plugin_gives_the_dumper() -> None:
    assert PgDump is Registry([("postgres", pgsnap_postgres)]).get("dump", "pg_dump")


def test_importing_the_plugin_loads_no_driver() -> None:
    code = "import sys, pgsnap_postgres; pgsnap_postgres.PgDump(); print([m for m in ('psycopg', 'fsspec') if m in sys.modules])"
    assert "[]\n" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("version", "compression", "expected"),
    [
        ("14.23", Compression("gzip", 6), "-Z6"),
        ("15.1", Compression("none"), "-Z0"),
        ("16.2", Compression("gzip", 9), "--compress=gzip:9"),
        ("17.1", Compression("zstd", 1), "--compress=zstd:1"),
        ("17.1", Compression("none"), "-Z0"),
    ],
)
def test_old_clients_are_never_given_a_method(version: str, compression: Compression, expected: str) -> None:
    """pg_dump 14 takes zstd:3 for 0 and exits with 0; 15 refuses none."""
    clients = Clients(Path("/nowhere"), version, "test")
    argv = pg_dump_argv(PgDump(), clients, compression, "1-2-3")
    assert [expected] == [word for word in argv if word.startswith(("-Z", "--compress"))]


def test_before_version_16_there_is_no_zstd_inside() -> None:
    assert Compression("none") == choose_compression(PgDump(), Clients(Path("/nowhere"), "15.3", "test"))
    assert Compression("none") == choose_compression(PgDump(format="plain"), Clients(Path("/nowhere"), "17.3", "test"))


def test_the_readme_documents_every_option() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    missing = [field.name for field in attrs.fields(PgDump) if f"| `{field.name}` |" not in readme]
    assert [] == missing
