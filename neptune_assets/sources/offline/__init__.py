"""The offline source: recordings of neptune-scale and of neptune-client that never reached a server."""
