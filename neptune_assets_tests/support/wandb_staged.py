"""Staging one run of rows and reading it back with a decoder that is not the target's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Receipt
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets_tests.support.lake_factory import (
    make_lake,
)
from neptune_assets_tests.support.wandb_files import WandbFile, read_wandb

PROJECT = "ws/proj"


class Staged:
    def __init__(self, directory: Path, receipt: Receipt) -> None:
        (log,) = directory.glob("*.wandb")
        self.directory, self.receipt, self.log = directory, receipt, log
        self.found: WandbFile = read_wandb(log)

    def series(self, key: str) -> list[tuple[Any, Any]]:
        return [(row["_step"], row[key]) for row in self.found.history if key in row]

    def file(self, path: str) -> bytes:
        return (self.directory / "files" / path).read_bytes()


def stage(root: Path, rows: Sequence[dict[str, Any]], lake: dict[str, Any] | None = None, **options: Any) -> Staged:
    settings = LakeSettings(root=str(root / "lake"), **(lake or {}))
    project = make_lake(root / "lake", {PROJECT: {"RUN-1": list(rows)}}, settings=settings).project(PROJECT)
    target = WandbTarget(WandbSettings(staging=str(root / "staged"), **options), settings)
    target.check()
    run = project.run("RUN-1")
    receipt = target.replace(run, target.plan(run))
    verdict = target.verify(run, receipt)
    assert verdict.ok, verdict.differences
    assert receipt.unbalanced() == {}
    assert dict(receipt.rows_in) == dict(run.record.rows)
    (directory,) = (root / "staged").glob("*/offline-run-*")
    return Staged(directory, receipt)


def picture(color: str, size: tuple[int, int] = (4, 3)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()
