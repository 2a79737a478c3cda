"""W&B keeps every target's promises. Real lake, real files; read with a decoder that is not the target's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from neptune_assets.settings import LakeSettings
from neptune_assets.settings import WandbTarget as WandbSettings
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.transaction_log import LogWriter
from neptune_assets_tests.conformance.targets import Held, Place, TargetContract
from neptune_assets_tests.support.wandb_files import payloads, pb, read_wandb

OWN = {"_step", "_timestamp", "_runtime", "neptune_step"}


def number(value: Any) -> float:
    return float(value)


def held_run(directory: Path) -> tuple[str, str, Held]:
    """Everything one staged run holds, as (project, run id, content)."""
    (log,) = directory.glob("*.wandb")
    found = read_wandb(log)
    files = directory / "files"
    index = json.loads((files / "neptune_assets/index.json").read_text())
    origin = found.config["neptune_assets"]
    held = Held(found.run.run_id, found.summary["neptune_assets"]["digest"])
    if not (directory / "neptune_assets.json").exists():
        held.digest = None
    names = {item["key"]: (item["path"], item["type"]) for item in index["names"] if "key" in item}
    for item in index["names"]:
        if "config" in item:
            place: Any = found.config
            for part in item["config"]:
                place = place[part]
            held.params[item["path"]] = place
    times: dict[tuple[str, Decimal], int | None] = {}
    if (files / "neptune_assets/series.parquet").exists():
        for row in pq.read_table(files / "neptune_assets/series.parquet").to_pylist():
            if row["attribute_type"] == "float_series":
                stamp = row["timestamp"]
                times[row["attribute_path"], row["step"]] = None if stamp is None else round(stamp.timestamp() * 1000)
    for row in found.texts:
        exact = row.get("neptune_step")
        step = Decimal(exact) if exact else Decimal(row["_step"]) / origin["step_multiplier"]
        when = round(Decimal(row["_timestamp"]) * 1000)
        for key, text in row.items():
            if key in OWN:
                continue
            path, kind = names[key]
            value = json.loads(text)
            if kind == "float_series":
                own = times.get((path, step), when)
                held.points.setdefault(path, []).append((step, number(value), own))
            elif kind == "histogram_series":
                assert value["_type"] == "histogram"
                held.histograms.setdefault(path, []).append((step, value["bins"], value["values"]))
            elif kind == "string_series":
                assert value["_type"] == "table-file"
                table = json.loads((files / value["path"]).read_text(encoding="utf-8"), parse_float=Decimal)
                held.texts.setdefault(path, []).extend((Decimal(str(r[0])), r[2]) for r in table["data"])
    for item in index["files"]:
        if item["attribute_type"] == "string_series":
            continue
        name = item["member"] or ("" if item["step"] is None else str(Decimal(item["step"]) / 1_000_000))
        assert item["path"] in found.files
        held.files.setdefault(item["attribute_path"], {})[name] = (files / item["path"]).read_bytes()
    held.tags = {tag for tag in found.run.tags if not tag.startswith("group:")}
    held.group_tags = {tag.removeprefix("group:") for tag in found.run.tags if tag.startswith("group:")}
    held.failed = found.exit_code != 0
    held.description = found.run.notes or None
    held.start_ms = found.run.start_time.seconds * 1000 + found.run.start_time.nanos // 1_000_000
    held.parent = origin.get("parent")
    held.fork_step = Decimal(origin["fork_step"]) if "fork_step" in origin else None
    return origin["project_id"], origin["run_id"], held


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
    place_class = StagedPlace
    crash_points: ClassVar[Sequence[str]] = (
        "neptune_assets.targets.wandb.config:StagedProject.new",
        "neptune_assets.targets.wandb.transaction_log:LogWriter.append",
        "neptune_assets.targets.wandb.load:write_marker",
        "neptune_assets.targets.wandb.config:StagedProject.discard",
        "neptune_assets.targets.wandb.config:StagedProject.publish",
    )

    def held_param(self, kind: str, value: Any) -> Any:
        if kind == "float" and value != value:
            return "NaN"
        if kind == "float" and value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        if isinstance(value, datetime):
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
        return value
