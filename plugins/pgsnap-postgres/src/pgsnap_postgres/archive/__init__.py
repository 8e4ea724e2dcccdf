"""What pg_dump wrote, read without a server: the table of contents, whether it is whole, selections, SQL statements."""
