"""A PostgreSQL server of its own for a test, a demo or a drill: it knows nothing of dumping."""

from pgsnap_postgres.server.throwaway import Server, throwaway_server

__all__ = ["Server", "throwaway_server"]
