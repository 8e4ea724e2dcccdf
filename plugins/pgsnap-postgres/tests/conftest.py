"""All fixtures come from pgsnap_postgres.testing, where the tests of the core and of other packages find them too."""

from __future__ import annotations

pytest_plugins = ["pgsnap_postgres.testing"]
