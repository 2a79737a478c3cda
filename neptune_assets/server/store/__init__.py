"""What clients logged: one SQLite database and one directory of file bytes for each project, and nothing of HTTP."""
