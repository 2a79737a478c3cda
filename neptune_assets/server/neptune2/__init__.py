"""The protocol of Neptune 2.x, as neptune-client speaks it."""
