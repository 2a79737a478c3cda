"""Answers from the lake: DuckDB tables for each project, one database over all of them, and pictures of the curves."""
