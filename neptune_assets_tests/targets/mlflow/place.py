"""MLflow as the conformance suite sees it: raw SQL and raw files, nothing of the target's own code."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.report import LoadReport
from neptune_assets.testing.lakes import make_lake
from neptune_assets.testing.places import PROJECT
from neptune_assets_tests.conformance.targets import Held
from neptune_assets_tests.support.mlflow_server import migrated_database


class MlflowPlace:
    """The default: a SQLite file beside the lake, written directly."""

    options: Mapping[str, Any] = MappingProxyType({})
    arguments: Mapping[str, Any] = MappingProxyType({})
    """Of the target's constructor, besides its settings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "lake" / "mlflow.db"
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(migrated_database(), self.file)

    def open(self) -> Target:
        from neptune_assets.targets.mlflow.load import MlflowTarget as Opened

        lake = LakeSettings(root=str(self.root / "lake"))
        return Opened(MlflowSettings(**self.options), lake, **self.arguments)

    def query(self, sql: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self.file)) as db, db:
            return db.execute(sql, values).fetchall()

    def held(self, project_id: str) -> dict[str, list[Held]]:
        found: dict[str, list[Held]] = {}
        for uuid, uri, status, start in self.query(
            "SELECT run_uuid, artifact_uri, status, start_time FROM runs WHERE lifecycle_stage = 'active'"
        ):
            tags = dict(self.query("SELECT key, value FROM tags WHERE run_uuid = ?", uuid))
            if tags.get("neptune.project") == project_id:
                found.setdefault(tags["neptune.run_id"], []).append(self.one(uuid, uri, status, start, tags))
        return found

    def one(self, uuid: str, uri: str, status: str, start: int, tags: dict[str, str]) -> Held:
        held = Held(uuid, tags.get("neptune_assets.digest"))
        held.tags = {value for key, value in tags.items() if key.startswith("neptune.tag.")}
        held.group_tags = {value for key, value in tags.items() if key.startswith("neptune.group_tag.")}
        held.failed = status == "FAILED"
        held.description = tags.get("mlflow.note.content")
        held.start_ms = start
        held.parent = tags.get("neptune.parent")
        held.fork_step = Decimal(tags["neptune.fork_step"]) if "neptune.fork_step" in tags else None
        folder = self.folder(uri)
        names = folder / "neptune" / "names.json"
        if not names.exists():
            return held
        listing = json.loads(names.read_text())
        params = dict(self.query("SELECT key, value FROM params WHERE run_uuid = ?", uuid))
        apart: dict[str, list[Any]] = {}
        sidecar = folder / "neptune" / "points_apart.parquet"
        if sidecar.exists():
            kept = pq.read_table(sidecar)
            times = kept["timestamp"].cast(pa.int64())
            # Times beyond Python's are left out: what the sidecar has of them is compared elsewhere.
            odd = pc.or_(pc.less(times, -62_135_596_800_000), pc.greater_equal(times, 253_402_300_800_000))
            place = kept.schema.get_field_index("timestamp")
            none = pa.scalar(None, kept["timestamp"].type)
            for row in kept.set_column(place, "timestamp", pc.if_else(odd, none, kept["timestamp"])).to_pylist():
                apart.setdefault(row["attribute_path"], []).append(row)
        for item in listing["attributes"]:
            path = item["attribute"]
            match item["type"]:
                case "float_series":
                    held.points[path] = self.points(
                        uuid, item["metric"], listing["step_multiplier"], apart.get(path, [])
                    )
                case "string_series":
                    lines = (folder / item["artifact"]).read_bytes().decode().split("\n")[:-1]
                    rows = [json.loads(line, parse_float=Decimal, parse_int=Decimal) for line in lines]
                    held.texts[path] = [(row["step"], row["value"]) for row in rows]
                case "histogram_series":
                    lines = (folder / item["artifact"]).read_bytes().decode().split("\n")[:-1]
                    rows = [json.loads(line) for line in lines]
                    held.histograms[path] = [
                        (Decimal(str(row["step"])), row["histogram"]["edges"], row["histogram"]["values"])
                        for row in rows
                    ]
                case "file" | "artifact":
                    if (folder / item["artifact"]).exists():
                        held.files[path] = {"": (folder / item["artifact"]).read_bytes()}
                case "file_series" | "file_set":
                    base = folder / item["artifact"]
                    members = [file for file in base.rglob("*") if file.is_file()]
                    held.files[path] = {file.relative_to(base).as_posix(): file.read_bytes() for file in members}
                case _:
                    whole = item.get("artifact")
                    held.params[path] = (folder / whole).read_bytes().decode() if whole else params.get(item["param"])
        return held

    def folder(self, uri: str) -> Path:
        return Path(uri.removeprefix("file://"))

    def points(self, uuid: str, key: str, multiplier: int, apart: list[Any]) -> list[Any]:
        points = {
            Decimal(step) / multiplier: (float("nan") if is_nan else value, when)
            for step, value, when, is_nan in self.query(
                "SELECT step, value, timestamp, is_nan FROM metrics WHERE run_uuid = ? AND key = ?", uuid, key
            )
        }
        for row in apart:
            when = row["timestamp"]
            points[row["step"]] = (row["float_value"], None if when is None else round(when.timestamp() * 1000))
        return [(step, *points[step]) for step in sorted(points)]

    def damage(self, project_id: str, run_id: str) -> None:
        uuid = self.held(project_id)[run_id][0].target_id
        self.query("DELETE FROM metrics WHERE rowid = (SELECT max(rowid) FROM metrics WHERE run_uuid = ?)", uuid)

    def state(self) -> Any:
        tables = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics")
        rows = [sorted(self.query(f"SELECT * FROM {table}"), key=repr) for table in tables]
        files = sorted(
            (str(file), file.stat().st_mtime_ns)
            for file in (self.root / "lake" / "mlartifacts").rglob("*")
            if file.is_file()
        )
        return rows, files


def load(place: MlflowPlace, runs: dict[str, Any], **options: Any) -> LoadReport:
    place.options = options
    lake = place.root / "lake"
    make_lake(lake, {PROJECT: runs})
    settings = LakeSettings(root=str(lake))
    return load_project(Lake(settings).project(PROJECT), place.open, Ledger(settings, "mlflow", PROJECT))


def only(place: MlflowPlace, sql: str) -> Any:
    rows = place.query(sql)
    assert len(rows) == 1
    return rows[0]
