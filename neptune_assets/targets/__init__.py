"""Targets: where runs are loaded, one package each with the same files in it.

Belongs here: what every load does (:mod:`load`, :mod:`ledger`) and promises (:mod:`protocol`).
Does not: reading sources.
"""
