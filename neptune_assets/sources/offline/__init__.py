"""The offline source: recordings of neptune-scale and of neptune-client that never reached a server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from neptune_assets.plugins import SourceSpec
from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import Source

_RECORDED: Final = re.compile(r"\.neptune|run_operations\.sqlite3|data-\d+\.log")


def _open(settings: OfflineSource, filters: Filters) -> Source:
    from neptune_assets.sources.offline.source import Offline

    return Offline(settings, filters)


def _settings_at(path: Path) -> dict[str, list[str]] | None:
    """Read what is at or below a `.neptune` folder, or looks like what the clients write into one."""
    names = (name for _, folders, files in os.walk(path) for name in (*folders, *files))
    held = ".neptune" in path.resolve().parts or any(_RECORDED.fullmatch(name) for name in names)
    return {"paths": [str(path)]} if held else None


SOURCE = SourceSpec(
    name="offline",
    title="Recordings of Neptune's clients",
    settings=OfflineSource,
    paths=("paths", "search_files_in", "files_from"),
    requires=("neptune-api",),
    install="neptune-assets[offline]",
    open=_open,
    settings_at=_settings_at,
    model_registry=lambda _: True,
)
