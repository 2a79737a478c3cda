"""Directories that a target makes aside and puts in their place as a whole, for targets that keep a run as files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from neptune_assets import durable


class StagedDirectories:
    """The directories below ``path``, each made below ``scratch`` first, which is on the same file system."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch

    def sweep(self) -> None:
        """Remove what a load that died left behind; whoever calls this is the only one to load this project."""
        if self._scratch.is_dir():
            shutil.rmtree(self._scratch)

    def new(self) -> Path:
        """Return an empty directory to stage a run in, out of sight of whatever reads the finished ones."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="run-", dir=self._scratch))

    def publish(self, staged: Path, name: str, earlier: Iterable[Path]) -> Path:
        """Put a staged directory in the place of the ``earlier`` ones of its run; return where it is now.

        Between the renames there is none, and the next load stages the run again; there is never a mix.
        """
        durable.sync_tree(staged)
        durable.make_directory(self.path)
        target = self.path / name
        for old in earlier:
            self.discard(old)
        durable.rename(staged, target)
        return target

    def discard(self, directory: Path) -> None:
        """Remove a directory so that it is gone at once, however long deleting takes."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        away = Path(tempfile.mkdtemp(prefix="old-", dir=self._scratch))
        directory.rename(away / directory.name)
        # After a power cut it must not be there again with half of its files, nor beside its successor.
        durable.sync(self.path)
        shutil.rmtree(away)
