"""What the server knows of all runs and attributes, in DuckDB: from the lake and from the store, as one.

A table over ten thousand runs is answered from here and never touches points. Nothing here knows a wire protocol.
"""
