"""Both suites of promises, kept by what is not ours. Run in an environment that has `toy-plugins` installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from toy_plugins import SOURCE, TARGET, ParquetFolderSettings
from toy_plugins.source import JsonLines

from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.targets.protocol import Target
from neptune_assets.testing.sources import SourceCase, SourceContract
from neptune_assets.testing.targets import Held, TargetContract

KINDS = {"float", "int", "string", "bool", "datetime", "string_set"}


class Nan(float):
    """A NaN that equals any other: parameters are compared with ==."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and other != other

    __hash__ = float.__hash__


class TestJsonLines(SourceContract):
    spec = SOURCE

    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        project = tmp_path / "lines" / "ws" / "p"
        (project / "files").mkdir(parents=True)
        (project / "files" / "model.bin").write_bytes(b"weights")
        rows = [
            {"attribute_path": "lr", "attribute_type": "float", "float_value": 0.1},
            {"attribute_path": "note", "attribute_type": "string", "string_value": "first"},
            {"attribute_path": "model", "attribute_type": "file", "file_value": {"path": "model.bin"}},
            {"attribute_path": "gone", "attribute_type": "file", "file_value": {"path": "gone.bin"}},
        ]
        for step in range(3):
            at = f"2025-01-01T00:00:0{step}+00:00"
            series = {"attribute_path": "loss", "attribute_type": "float_series", "step": str(step), "timestamp": at}
            rows.append({**series, "float_value": 1 / (step + 1)})
        for run_id, content in (("first", rows), ("second", rows[:1])):
            lines = [json.dumps(row) for row in content]
            (project / f"{run_id}.jsonl").write_text("\n".join(lines), encoding="utf-8")

        def opened(filters: Filters) -> JsonLines:
            return JsonLines(str(tmp_path / "lines"), filters)

        roots = (tmp_path / "lines",)
        return SourceCase(opened, roots, "ws/p", frozenset({"first", "second"}), "first", "loss", "lr")


class FolderPlace:
    def __init__(self, root: Path) -> None:
        self.root = root / "lake" / "parquet_folder"
        self.lake = LakeSettings(root=str(root / "lake"))

    def open(self) -> Target:
        return TARGET.open(ParquetFolderSettings(), self.lake, Scope.RUNS)

    def held(self, project_id: str) -> dict[str, list[Held]]:
        found: dict[str, list[Held]] = {}
        for pointer in self.root.glob("*/*.json"):
            entry = json.loads(pointer.read_bytes())
            if entry["project"] == project_id:
                found.setdefault(entry["run"], []).append(_held(pointer.parent / entry["folder"], entry))
        return found

    def damage(self, project_id: str, run_id: str) -> None:
        for pointer in self.root.glob("*/*.json"):
            entry = json.loads(pointer.read_bytes())
            if (entry["project"], entry["run"]) == (project_id, run_id):
                place = pointer.parent / entry["folder"] / "rows.parquet"
                rows = pq.read_table(place)
                first = pc.index(rows["attribute_type"], "float_series").as_py()
                pq.write_table(pa.concat_tables([rows.slice(0, first), rows.slice(first + 1)]), place)

    def state(self) -> Any:
        return {str(file): file.stat().st_mtime_ns for file in self.root.rglob("*") if file.is_file()}


def _held(folder: Path, entry: dict[str, Any]) -> Held:
    held = Held(entry["folder"], entry["digest"])
    rows = pq.read_table(folder / "rows.parquet")
    far = 253_402_300_800_000
    for name in ("timestamp", "datetime_value"):
        numbers = rows[name].cast(pa.int64())
        rows = rows.set_column(rows.schema.get_field_index(name), name, numbers)
    for row in rows.to_pylist():
        path, kind, step = row["attribute_path"], row["attribute_type"], row["step"]
        if kind in KINDS:
            value = row[f"{kind}_value"]
            if kind == "datetime" and value is not None and -62_135_596_800_000 <= value < far:
                value = datetime.fromtimestamp(value / 1000, tz=UTC)
            held.params[path] = sorted(value) if kind == "string_set" and value is not None else value
        elif kind == "float_series":
            value = float("nan") if row["float_value"] is None else row["float_value"]
            held.points.setdefault(path, []).append((step, value, row["timestamp"]))
        elif kind == "string_series":
            held.texts.setdefault(path, []).append((step, row["string_value"]))
        elif kind == "histogram_series":
            bins = row["histogram_value"]
            held.histograms.setdefault(path, []).append((step, bins["edges"], bins["values"]))
    for item in entry["files"]:
        kind = next(row for row in rows.to_pylist() if row["attribute_path"] == item["attribute"])["attribute_type"]
        key = "" if kind == "file" else item["path"]
        held.files.setdefault(item["attribute"], {})[key] = (folder / str(item["file"])).read_bytes()
    params = held.params
    held.tags = set(params.get("sys/tags") or ())
    held.group_tags = set(params.get("sys/group_tags") or ())
    held.failed = bool(params.get("sys/failed"))
    held.description = params.get("sys/description")
    created = params.get("sys/creation_time")
    held.start_ms = None if created is None else round(created.timestamp() * 1000)
    held.parent = params.get("sys/forking/parent")
    step = params.get("sys/forking/step")
    held.fork_step = None if step is None else type(next(iter(held.points.values()))[0][0])(str(step))
    return held


class TestParquetFolder(TargetContract):
    spec = TARGET
    place_class = FolderPlace
    crash_points: ClassVar[Sequence[str]] = ("neptune_assets.durable:sync", "neptune_assets.durable:write")

    def held_param(self, kind: str, value: Any) -> Any:
        if kind == "float" and value != value:
            return Nan()
        return sorted(value) if kind == "string_set" else value
