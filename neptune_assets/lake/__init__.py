"""The lake: one directory of Parquet and one manifest a project, written run by run, read without ever being half.

Every path is in :mod:`layout`; what is true of a project is in :mod:`manifest`.
"""
