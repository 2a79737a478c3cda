"""The demo: recordings of real training runs, the scripts that made them, and the report that `make demo` prints."""
