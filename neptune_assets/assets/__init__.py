"""Thin Dagster wrappers, one module a stage, in the order of the data: source, lake, summary, targets.

Belongs here: keys, partitions, descriptions, metadata and checks. Does not belong here: how anything is read or
written; that is the stage's own package, which knows no Dagster.
"""
