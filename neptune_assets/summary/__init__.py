"""Summary: tables of a project by DuckDB, straight from the lake's Parquet, and the database over all projects.

SQL is in ``sql/``, one file a table; columns and their meaning are declared in :mod:`neptune_assets.summary.columns`.
"""
