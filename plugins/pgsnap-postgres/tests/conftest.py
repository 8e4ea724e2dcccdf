"""All fixtures come from pgsnap_postgres.testing, where the tests of the core and of other packages find them too.

pytest takes plugins from the top-level conftest.py only, so it is named there.
"""
