"""Settings of the source `server`."""

from __future__ import annotations

from pydantic import Field

from neptune_assets.settings import Model


class ServerSource(Model):
    """What Neptune's clients logged to our own server (`make serve`), read from its store while it runs."""

    store: str = Field(description="The server's directory, as given to `--store`. It is only ever read.")
