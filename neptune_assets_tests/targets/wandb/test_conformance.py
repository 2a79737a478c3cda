"""W&B keeps every target's promises. Real lake, real files; read with a decoder that is not the target's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb import TARGET
from neptune_assets.targets.wandb.codec import LogWriter
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets_tests.conformance.targets import Held, Place, TargetContract
from neptune_assets_tests.support.wandb_files import payloads, pb
from neptune_assets_tests.support.wandb_held import OWN, held_run


class StagedPlace(Place):
    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> WandbTarget:
        return WandbTarget(WandbSettings(), LakeSettings(root=str(self.root / "lake")))

    def directories(self) -> list[Path]:
        return sorted((self.root / "lake" / "wandb").glob("*/offline-run-*"))

    def held(self, project_id: str) -> dict[str, list[Held]]:
        result: dict[str, list[Held]] = {}
        for directory in self.directories():
            project, run_id, held = held_run(directory)
            if project == project_id:
                result.setdefault(run_id, []).append(held)
        return result

    def damage(self, project_id: str, run_id: str) -> None:
        for directory in self.directories():
            if held_run(directory)[:2] == (project_id, run_id):
                (log,) = directory.glob("*.wandb")
                records = [pb.Record.FromString(payload) for payload in payloads(log.read_bytes())]
                log.unlink()
                rows = [record for record in records if record.WhichOneof("record_type") == "history"]
                for item in list(rows[3].history.item):
                    if item.nested_key[0] not in OWN:
                        rows[3].history.item.remove(item)
                with LogWriter(log) as writer:
                    for record in records:
                        writer.append(record.SerializeToString())

    def state(self) -> Any:
        root = self.root / "lake" / "wandb"
        return {
            str(path.relative_to(root)): (path.stat().st_mtime_ns, path.stat().st_ino)
            for path in root.rglob("*")
            if path.is_file()
        }


class TestWandb(TargetContract):
    spec = TARGET
    place_class = StagedPlace
    crash_points: ClassVar[Sequence[str]] = (
        "neptune_assets.targets.staged:StagedDirectories.new",
        "neptune_assets.targets.wandb.codec:LogWriter.append",
        "neptune_assets.targets.wandb.load:write_marker",
        "neptune_assets.targets.staged:StagedDirectories.discard",
        "neptune_assets.targets.staged:StagedDirectories.publish",
    )

    def held_param(self, kind: str, value: Any) -> Any:
        if kind == "float" and value != value:
            return "NaN"
        if kind == "float" and value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        if isinstance(value, datetime):
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
        return value
