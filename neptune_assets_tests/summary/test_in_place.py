"""An export read in place and the same export copied have the same summary. Real engine, real exports on disk."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import Filters, LakeSettings, SummarySettings
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets.summary.database import write_database, write_table
from neptune_assets.summary.tables import summarize
from neptune_assets_tests.support.export_factory import (
    CREATED,
    EXPORTER_SCHEMA,
    ExportFactory,
    as_table,
    parameter,
    point,
    run_v2,
    run_v3,
)

SETTINGS = SummarySettings(memory_mb=128)


def odd_schema(rows: list[dict[str, Any]], run_id: str) -> pa.Table:
    """What other versions of the exporter wrote: wide decimals, microseconds, dictionaries, no histograms."""
    table = as_table(rows, "ws/p", run_id)
    for name, kind in {
        "step": pa.decimal128(38, 6),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "attribute_path": pa.dictionary(pa.int32(), pa.string()),
    }.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].cast(kind))
    return table.drop_columns(["histogram_value"])


@pytest.fixture
def export(tmp_path: Path) -> ExportFactory:
    factory = ExportFactory(tmp_path / "it's [an] export")
    factory.run("ws/p", "plain", run_v3("plain"))
    factory.run("ws/p", "two parts", run_v3("two parts"), [[point("late", 0, 1.0, CREATED)]])
    factory.run(
        "ws/p",
        "phantoms",
        [[*run_v3("phantoms")[0], parameter("ghost", "float", None), parameter("ghost", "string_set", None)]],
    )
    factory.run(
        "ws/p",
        "nan",
        [
            *run_v3("nan"),
            [point("lost", step, None if step % 2 else 1.0, CREATED + timedelta(seconds=step)) for step in range(5)],
        ],
    )
    doubled = [
        point("twice", 1, value, CREATED + timedelta(seconds=seconds))
        for value, seconds in [(1.0, 5), (2.0, 9), (3.0, 7)]
    ]
    tied = [point("tied", 1, value, CREATED) for value in (1.0, 2.0)]
    factory.run("ws/p", "doubles", [*run_v3("doubles"), doubled, tied], [tied, [point("tied", 1, 9.0, CREATED)]])
    odd = [row for rows in run_v3("odd") for row in rows if row["attribute_type"] != "histogram_series"]
    factory.run("ws/p", "odd", odd_schema(odd, "odd"))
    factory.run("ws/v2", "P-1", run_v2("P-1", host_offset=timedelta(hours=2)))
    factory.run("ws/v2", "P-2", run_v2("P-2", created=CREATED + timedelta(days=120), host_offset=timedelta(hours=2)))
    return factory


def lake_of(export: ExportFactory, root: Path, mode: str, zone: str) -> Lake:
    source = Export(ExportSource(data=str(export.data), mode=mode, source_tz=zone), Filters())
    settings = LakeSettings(root=str(root))
    for project_id in source.projects():
        LakeWriter(settings, source).write_project(project_id)
    lake = Lake(settings)
    for project_id in lake.projects():
        with summarize(lake.project(project_id), SETTINGS, settings) as summary:
            for name, reader in summary.tables():
                write_table(reader, lake.layout.summary(name, project_id))
    return lake


def contents(lake: Lake, leave_out_of_runs: str) -> dict[str, list[str]]:
    with duckdb.connect(str(write_database(lake.settings, SETTINGS)), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        return {
            view: sorted(
                map(repr, con.execute(f"SELECT * {leave_out_of_runs if view == 'runs' else ''} FROM {view}").fetchall())
            )
            for view in ("runs", "attributes", "metrics", "params", "lineage", "points", "strings", "histograms", "raw")
        }


@pytest.mark.parametrize("zone", ["UTC", "infer", "Europe/Warsaw"])
def test_in_place_and_copied_are_the_same(export: ExportFactory, tmp_path: Path, zone: str) -> None:
    copied = lake_of(export, tmp_path / "copied", "copy", zone)
    in_place = lake_of(export, tmp_path / "in place", "in_place", zone)
    records = in_place.project("ws/p").records()
    assert all(record.in_place is not None for record in records.values())
    repairs = {name for record in records.values() for name in record.repairs}
    assert {"phantom_rows", "nan_values", "conflicting_rows"} <= repairs
    storage = "EXCLUDE (parquet_bytes, in_place, committed_at)"
    found, expected = contents(in_place, storage), contents(copied, storage)
    assert all(found.values())
    for view, rows in expected.items():
        assert found[view] == rows, view


def test_repairs_are_what_was_logged(export: ExportFactory, tmp_path: Path) -> None:
    lake = lake_of(export, tmp_path / "lake", "in_place", "Europe/Warsaw")
    with duckdb.connect(str(write_database(lake.settings, SETTINGS)), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        values = [
            value
            for (value,) in con.execute(
                "SELECT value FROM points WHERE attribute_path = 'lost' ORDER BY step"
            ).fetchall()
        ]
        assert [math.isnan(value) for value in values] == [False, True, False, True, False]
        assert con.execute("SELECT * FROM params WHERE attribute_path = 'ghost'").fetchall() == []
        points = "SELECT attribute_path, step, value FROM points WHERE attribute_path IN ('twice', 'tied')"
        assert sorted(con.execute(points).fetchall()) == [("tied", Decimal(1), 9.0), ("twice", Decimal(1), 2.0)]
        # Logged three seconds after creation; Warsaw is one hour ahead of UTC in March and two in summer.
        first = con.execute(
            "SELECT run_id, first_time FROM metrics WHERE project_id = 'ws/v2' AND attribute_path = 'm/a'"
        )
        assert dict(first.fetchall()) == {
            "P-1": CREATED + timedelta(seconds=3, hours=1),
            "P-2": CREATED + timedelta(days=120, seconds=3),
        }


def test_the_schemas_agree() -> None:
    from neptune_assets.schema import SCHEMA

    assert EXPORTER_SCHEMA.equals(SCHEMA)
