"""The source `server`: what clients logged to our own server, read from its store while it runs."""
