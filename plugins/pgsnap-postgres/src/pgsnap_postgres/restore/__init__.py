"""A restore: what it takes, into a new database or in place, roles, and the checks before anything is renamed."""
