"""A running Neptune 2.x server as a source, read through neptune-client; it is only ever read."""
