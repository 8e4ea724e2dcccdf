"""Azurite, an emulator of Azure's blobs that Microsoft makes: ``nox -s azure`` fetches it by npm and names it in a variable."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import attrs
import pytest

from serving import free_port, serving

AZURITE = os.environ.get("PGSNAP_TEST_AZURITE", "")

collect_ignore_glob = [] if AZURITE else ["test_*.py"]
"""Without it there is nothing to test here, and nothing is reported as skipped."""

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Those that Azurite knows, out of its documentation."""


@attrs.frozen
class Account:
    """An account at an endpoint."""

    endpoint: str
    key: str = KEY

    @property
    def connection_string(self) -> str:
        parts = ["DefaultEndpointsProtocol=http", f"AccountName={ACCOUNT}", f"AccountKey={self.key}"]
        return ";".join([*parts, f"BlobEndpoint={self.endpoint}"])

    def make_container(self, name: str) -> str:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            client.create_container(name)
        return name


@pytest.fixture(scope="session")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """Its account, on a server of its own."""
    folder = tmp_path_factory.mktemp("azurite")
    port = free_port()
    argv = [AZURITE, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    # it knows the versions of the API up to its own release, and Azure's library asks for a newer one
    with serving([*argv, "--skipApiVersionCheck"], port, folder / "log"):
        yield Account(f"http://127.0.0.1:{port}/{ACCOUNT}")


@pytest.fixture
def container(account: Account) -> str:
    """The name of an empty container."""
    return account.make_container(f"c{secrets.token_hex(8)}")
