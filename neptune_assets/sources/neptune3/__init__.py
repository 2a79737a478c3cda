"""A running Neptune 3.x server as a source of runs."""
