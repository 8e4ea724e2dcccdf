"""How the database is reached: its URL, what the client programs are given, sessions, and poolers in between."""
