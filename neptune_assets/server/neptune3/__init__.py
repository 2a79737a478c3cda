"""The protocol of Neptune 3.x, as neptune-scale writes and neptune-query reads it."""
