"""Speaks Neptune's own protocols over the lake and a store of its own: what clients log, and what they read back."""
