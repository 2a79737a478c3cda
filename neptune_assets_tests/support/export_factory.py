"""Writes directories as neptune-exporter does, independently of the package, with any defect a test wants.

Rows are plain dictionaries with the schema's column names; what is left out is null. The schema, names and layout are
spelled out here again on purpose: a mistake in the package must not repeat itself in what it is tested with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EXPORTER_SCHEMA = pa.schema(
    [
        pa.field("project_id", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("attribute_path", pa.string()),
        pa.field("attribute_type", pa.string()),
        pa.field("step", pa.decimal128(18, 6)),
        pa.field("timestamp", pa.timestamp("ms", tz="UTC")),
        pa.field("int_value", pa.int64()),
        pa.field("float_value", pa.float64()),
        pa.field("string_value", pa.string()),
        pa.field("bool_value", pa.bool_()),
        pa.field("datetime_value", pa.timestamp("ms", tz="UTC")),
        pa.field("string_set_value", pa.list_(pa.string())),
        pa.field("file_value", pa.struct([("path", pa.string())])),
        pa.field(
            "histogram_value",
            pa.struct([("type", pa.string()), ("edges", pa.list_(pa.float64())), ("values", pa.list_(pa.float64()))]),
        ),
    ]
)

CREATED = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)

Row = dict[str, Any]


def exported_name(original: str) -> str:
    """The exporter's name for an id."""
    kept = [letter if letter == "_" or letter == "-" or letter.isalnum() else "_" for letter in original]
    return "".join(kept) + "-" + hashlib.blake2b(original.encode("utf-8"), digest_size=8).hexdigest()


def parameter(path: str, kind: str, value: Any) -> Row:
    """A row of a parameter; a value of None makes it a phantom."""
    return {"attribute_path": path, "attribute_type": kind, f"{kind}_value": value}


def point(path: str, step: float | str | Decimal, value: Any, at: datetime | None, kind: str = "float_series") -> Row:
    """A row of a series of floats, strings or histograms."""
    return {
        "attribute_path": path,
        "attribute_type": kind,
        "step": Decimal(str(step)).quantize(Decimal("1.000000")),
        "timestamp": at,
        kind.replace("series", "value"): value,
    }


def file_row(path: str, reference: str | None, kind: str = "file", step: Any = None, at: datetime | None = None) -> Row:
    """A row that names a file, an artifact's list or a directory."""
    return {
        "attribute_path": path,
        "attribute_type": kind,
        "step": None if step is None else Decimal(str(step)).quantize(Decimal("1.000000")),
        "timestamp": at,
        "file_value": None if reference is None else {"path": reference},
    }


def system_rows_v3(run_id: str, short_id: str = "PRJ-1", created: datetime = CREATED) -> list[Row]:
    """The ``sys/`` rows that tell a 3.x run."""
    return [
        parameter("sys/id", "string", short_id),
        parameter("sys/custom_run_id", "string", run_id),
        parameter("sys/name", "string", "experiment"),
        parameter("sys/creation_time", "datetime", created),
        parameter("sys/modification_time", "datetime", created + timedelta(hours=1)),
        parameter("sys/archived", "bool", False),
    ]


def system_rows_v2(run_id: str, created: datetime = CREATED) -> list[Row]:
    """The ``sys/`` rows that tell a 2.x run."""
    return [
        parameter("sys/id", "string", run_id),
        parameter("sys/name", "string", "name"),
        parameter("sys/creation_time", "datetime", created),
        parameter("sys/modification_time", "datetime", created + timedelta(hours=1)),
        parameter("sys/trashed", "bool", False),
    ]


def run_v3(run_id: str, points: int = 5, created: datetime = CREATED) -> list[list[Row]]:
    """Row groups of an ordinary 3.x run, in the exporter's order: parameters, metrics step by step, series."""
    metrics = [
        point(path, step, step * scale, created + timedelta(seconds=step))
        for step in range(points)
        for path, scale in (("metrics/acc", 0.25), ("metrics/loss", -0.5))
    ]
    series = [
        point("logs", step, f"line {step}", created + timedelta(seconds=step), "string_series") for step in range(3)
    ] + [
        point(
            "hist",
            0,
            {"type": "COUNTING", "edges": [0.0, 1.0, 2.0], "values": [3.0, 4.0]},
            created + timedelta(seconds=1),
            "histogram_series",
        )
    ]
    parameters = [
        *system_rows_v3(run_id, created=created),
        parameter("p/lr", "float", 0.1),
        parameter("p/epochs", "int", 7),
        parameter("p/tags", "string_set", ["a", "b"]),
    ]
    return [parameters, metrics, series]


def run_v2(
    run_id: str, points: int = 5, created: datetime = CREATED, host_offset: timedelta = timedelta()
) -> list[list[Row]]:
    """Row groups of an ordinary 2.x run, attribute by attribute; series times are the exporting host's local time."""
    first = created + timedelta(seconds=3) + host_offset
    return [
        [*system_rows_v2(run_id, created), parameter("p/lr", "float", 0.1)],
        [
            point(path, step, float(step), first + timedelta(seconds=step))
            for path in ("m/a", "m/b")
            for step in range(points)
        ],
        [point("logs", step, f"line {step}", first + timedelta(seconds=step), "string_series") for step in range(2)],
    ]


def as_table(rows: Sequence[Row], project_id: str, run_id: str, schema: pa.Schema = EXPORTER_SCHEMA) -> pa.Table:
    """Rows as a table, with ids filled in where a row has none of its own."""
    return pa.Table.from_pylist([{"project_id": project_id, "run_id": run_id, **row} for row in rows], schema)


class ExportFactory:
    """One export being put together on disk: ``data``, ``files``, ``model_data``, ``model_files`` below a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "exports" / "data"
        self.files = directory / "exports" / "files"
        self.model_data = directory / "exports" / "model_data"
        self.model_files = directory / "exports" / "model_files"

    def project(self, project_id: str, scope: str = "runs") -> Path:
        """Directory of a project's parts."""
        if scope == "runs":
            return self.data / exported_name(project_id)
        return self.model_data / exported_name(project_id) / scope

    def part(self, project_id: str, run_id: str, number: int = 0, scope: str = "runs") -> Path:
        """Path of a part."""
        return self.project(project_id, scope) / f"{exported_name(run_id)}_part_{number}.parquet"

    def run(
        self,
        project_id: str,
        run_id: str,
        *parts: Sequence[Sequence[Row]] | pa.Table,
        scope: str = "runs",
        unfinished: bool = False,
    ) -> list[Path]:
        """Write a run: each part is a sequence of row groups (sequences of rows), or a table of any schema."""
        paths = []
        for number, content in enumerate(parts):
            path = self.part(project_id, run_id, number, scope)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, pa.Table):
                pq.write_table(content, path, compression="snappy")
            else:
                with pq.ParquetWriter(path, EXPORTER_SCHEMA, compression="snappy") as writer:
                    for rows in content:
                        writer.write_table(as_table(rows, project_id, run_id))
            paths.append(path.rename(f"{path}.tmp") if unfinished else path)
        return paths

    def file(self, project_id: str, relative: str, content: bytes, scope: str = "runs") -> Path:
        """Write a file below the project's files directory."""
        path = (self.files if scope == "runs" else self.model_files) / exported_name(project_id) / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def errors(self, entries: Iterable[Mapping[str, Any]], place: Path | None = None) -> Path:
        """Add lines to the exporter's error report, by default in the directory it was started in."""
        path = (place or self.directory) / "neptune_exporter_errors.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            for entry in entries:
                stream.write(json.dumps(entry) + "\n")
        return path
