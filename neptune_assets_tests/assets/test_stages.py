"""The assets of one migration, materialized by Dagster itself: source, lake, summary, a load, checks and automation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from neptune_assets.build import build_defs, discover_projects
from neptune_assets.migration_settings import Settings
from neptune_assets_tests.support.export_factory import ExportFactory, run_v3

ONE, TWO = "ws/one", "ws/two"
TABLES = [f"summary/{name}" for name in ("projects", "runs", "attributes", "metrics", "params", "files", "lineage")]


@dataclass
class Outcome:
    """What one materialization said."""

    success: bool
    metadata: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    checks: dict[str, dg.AssetCheckEvaluation] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class Migration:
    """An export with two projects, its definitions and an instance of their own."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.export = ExportFactory(root)
        self.lake = root / "lake"
        self.settings = Settings.model_validate(
            {
                "source": {"export": {"data": str(self.export.data), "files": str(self.export.files)}},
                "lake": {"root": str(self.lake)},
                **changes,
            }
        )
        self.instance = dg.DagsterInstance.ephemeral()

    def defs(self) -> dg.Definitions:
        return build_defs(self.settings, discover_projects(self.settings), prefix="m")

    def materialize(self, *keys: str, project: str | None = ONE, config: dict[str, Any] | None = None) -> Outcome:
        defs = self.defs()
        result = dg.materialize(
            list(defs.assets or ()),  # type: ignore[arg-type]
            selection=dg.AssetSelection.assets(*(f"m/{key}" for key in keys)),
            partition_key=project,
            instance=self.instance,
            resources=defs.resources,
            run_config={"ops": {f"m__{key.replace('/', '__')}": {"config": config or {}} for key in keys if config}},
            raise_on_error=False,
        )
        outcome = Outcome(result.success)
        for event in result.get_asset_materialization_events():
            values = {name: value.value for name, value in event.materialization.metadata.items()}
            outcome.metadata["/".join(event.materialization.asset_key.path[1:])] = values
        for check in result.get_asset_check_evaluations():
            outcome.checks[f"{'/'.join(check.asset_key.path[1:])}:{check.check_name}"] = check
        for event in result.all_events:
            if event.event_type_value == "STEP_FAILURE":
                outcome.errors.append(event.step_failure_data.error_display_string)
        return outcome


@pytest.fixture
def migration(tmp_path: Path) -> Iterator[Migration]:
    made = Migration(tmp_path)
    for project in (ONE, TWO):
        for name in ("a", "b"):
            made.export.run(project, name, run_v3(name))
    yield made
    made.instance.dispose()


def test_projects_become_partitions(migration: Migration) -> None:
    graph = migration.defs().resolve_asset_graph()
    for key in ("lake/runs", "source/inventory", "summary/metrics"):
        partitions = graph.get(dg.AssetKey(["m", *key.split("/")])).partitions_def
        assert partitions is not None
        assert list(partitions.get_partition_keys()) == [ONE, TWO]


def test_groups_are_the_stages(migration: Migration) -> None:
    graph = migration.defs().resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        assert graph.get(key).group_name == key.path[1]
        assert graph.get(key).description


def test_a_second_materialization_reads_and_writes_nothing(migration: Migration) -> None:
    first = migration.materialize("lake/runs")
    assert first.success
    assert first.metadata["lake/runs"]["runs_new"] == 2
    parts = {path: path.stat().st_mtime_ns for path in migration.lake.rglob("*.parquet")}
    second = migration.materialize("lake/runs")
    assert second.metadata["lake/runs"]["runs_skipped"] == 2
    assert second.metadata["lake/runs"]["rows_written"] == 0
    assert {path: path.stat().st_mtime_ns for path in migration.lake.rglob("*.parquet")} == parts
    again = migration.materialize("lake/runs", config={"full_refresh": True})
    assert again.metadata["lake/runs"]["runs_skipped"] == 0


def test_the_inventory_says_what_will_be_read(migration: Migration) -> None:
    assert migration.materialize("source/inventory").metadata["source/inventory"]["runs_new"] == 2
    migration.materialize("lake/runs")
    migration.export.run(ONE, "c", run_v3("c"))
    counts = migration.materialize("source/inventory").metadata["source/inventory"]
    assert (counts["runs_new"], counts["runs_unchanged"]) == (1, 2)


def test_metadata_shows_counts_a_sample_and_a_picture(migration: Migration) -> None:
    metadata = migration.materialize("lake/runs").metadata["lake/runs"]
    rows = sum(
        value
        for name, value in metadata.items()
        if name.startswith("rows_")
        and name.split("_")[1] in {"float", "int", "string", "bool", "datetime", "file", "histogram"}
    )
    assert metadata["dagster/partition_row_count"] == metadata["rows_written"] == rows
    assert "| a |" in metadata["sample"]
    assert metadata["curves"].startswith("![metric curves](data:image/png;base64,iVBOR")


def test_summaries_and_the_database(migration: Migration) -> None:
    for project in (ONE, TWO):
        assert migration.materialize("lake/runs", project=project).success
        assert migration.materialize(*TABLES, project=project).success
    outcome = migration.materialize("summary/neptune_duckdb", project=None)
    assert outcome.checks["summary/neptune_duckdb:no_project_broken"].passed
    with duckdb.connect(str(migration.lake / "neptune.duckdb"), read_only=True) as con:
        assert con.sql("select project_id, run_id from runs order by all").fetchall() == [
            (ONE, "a"),
            (ONE, "b"),
            (TWO, "a"),
            (TWO, "b"),
        ]
        (points,) = con.execute("select count(*) from points").fetchall()
        (counted,) = con.execute('select sum("count")::bigint from metrics').fetchall()
        assert points == counted
        assert points[0] == 2 * 2 * 2 * 5  # projects, runs, metrics, steps


def test_a_partial_run_fails_its_check_and_is_named(migration: Migration) -> None:
    migration.export.part(ONE, "b").write_bytes(b"PAR1 torn")
    outcome = migration.materialize("lake/runs")
    assert outcome.success
    check = outcome.checks["lake/runs:complete"]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert outcome.checks["lake/runs:schema"].passed
    assert "b" in outcome.metadata["lake/runs"]["partial_runs"]
    migration.export.run(ONE, "b", run_v3("b"))
    healed = migration.materialize("lake/runs")
    assert healed.checks["lake/runs:complete"].passed


def test_a_stale_run_fails_its_check_and_is_named(migration: Migration) -> None:
    assert migration.materialize("lake/runs").checks["lake/runs:complete"].passed
    migration.export.part(ONE, "b").write_bytes(b"PAR1 torn")
    outcome = migration.materialize("lake/runs")
    assert outcome.success
    check = outcome.checks["lake/runs:complete"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "kept as it was" in str(check.metadata["reasons"])
    assert outcome.checks["lake/runs:schema"].passed
    assert "b" in outcome.metadata["lake/runs"]["stale_runs"]
    assert outcome.metadata["lake/runs"]["runs_partial"] == 0


def test_a_part_that_was_damaged_in_the_lake_is_written_anew(migration: Migration) -> None:
    assert migration.materialize("lake/runs").success
    part = next(path for path in migration.lake.rglob("*_part_0.parquet") if path.parent.parent.name == "data")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    outcome = migration.materialize("lake/runs")
    assert outcome.checks["lake/runs:schema"].passed
    assert len(part.read_bytes()) == len(whole)


def test_a_missing_source_is_one_clear_failure(migration: Migration) -> None:
    defs_settings = migration.settings.model_copy(deep=True)
    assert defs_settings.source.export is not None
    defs_settings.source.export.data = str(migration.lake / "nowhere")
    defs = build_defs(defs_settings, [ONE], prefix="m")
    result = dg.materialize(
        list(defs.assets or ()),  # type: ignore[arg-type]
        selection=dg.AssetSelection.assets("m/lake/runs"),
        partition_key=ONE,
        instance=migration.instance,
        resources=defs.resources,
        raise_on_error=False,
    )
    failures = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert len(failures) == 1, "an error that cannot heal was tried again"
    assert "nowhere" in failures[0].step_failure_data.error_display_string


def test_loads_verify_and_withhold(tmp_path: Path) -> None:
    migration = Migration(tmp_path, targets={"wandb": {"staging": str(tmp_path / "wandb")}})
    for name in ("a", "b"):
        migration.export.run(ONE, name, run_v3(name))
    migration.export.part(ONE, "b").write_bytes(b"")
    migration.materialize("lake/runs")
    outcome = migration.materialize("targets/wandb")
    assert outcome.success, outcome.errors
    metadata = outcome.metadata["targets/wandb"]
    assert (metadata["runs_loaded"], metadata["runs_withheld"], metadata["runs_failed"]) == (1, 1, 0)
    assert metadata["rows_in"] == metadata["rows_written"] + metadata["rows_mapped"] + metadata["rows_dropped"]
    assert outcome.checks["targets/wandb:load_verified"].passed
    assert migration.materialize("targets/wandb").metadata["targets/wandb"]["runs_skipped"] == 1


def test_a_load_that_fails_names_the_run_and_fails_the_asset(tmp_path: Path) -> None:
    blocked = tmp_path / "staging"
    blocked.write_text("a file where a directory must be", encoding="utf-8")
    migration = Migration(tmp_path, targets={"wandb": {"staging": str(blocked)}})
    migration.export.run(ONE, "a", run_v3("a"))
    migration.materialize("lake/runs")
    outcome = migration.materialize("targets/wandb")
    assert not outcome.success
    assert "staging" in "".join(outcome.errors)


def test_the_schedule_asks_for_every_project(migration: Migration) -> None:
    defs = migration.defs()
    (schedule,) = [item for item in defs.schedules or () if item.name == "m_backfill"]
    assert isinstance(schedule, dg.ScheduleDefinition)
    moment = datetime(2026, 3, 5, 3, 0, tzinfo=UTC)
    with dg.build_schedule_context(
        instance=migration.instance, scheduled_execution_time=moment, repository_def=defs.get_repository_def()
    ) as context:
        data = schedule.evaluate_tick(context)
    assert [request.partition_key for request in data.run_requests or ()] == [ONE, TWO]


def test_the_sensor_asks_only_for_what_grew(migration: Migration) -> None:
    defs = migration.defs()
    sensor = next(s for s in defs.sensors or () if s.name == "m_growth")
    repository = defs.get_repository_def()

    def tick(cursor: str | None) -> Any:
        return sensor.evaluate_tick(
            dg.build_sensor_context(instance=migration.instance, repository_def=repository, cursor=cursor)
        )

    first = tick(None)
    assert [request.partition_key for request in first.run_requests] == [ONE, TWO]
    assert not tick(first.cursor).run_requests
    migration.export.run(TWO, "c", run_v3("c"))
    grown = tick(first.cursor)
    assert [request.partition_key for request in grown.run_requests] == [TWO]
    assert json.loads(grown.cursor)[ONE] == json.loads(first.cursor)[ONE]
    migration.export.run("ws/three", "a", run_v3("a"))
    assert not tick(grown.cursor).run_requests, "a project without a partition cannot be asked for"


def test_automation_runs_downstream_once_for_changed_data(tmp_path: Path) -> None:
    migration = Migration(tmp_path)
    migration.export.run(ONE, "a", run_v3("a"))
    defs = migration.defs()
    instance = migration.instance

    def requested(cursor: Any) -> tuple[set[str], Any]:
        result = dg.evaluate_automation_conditions(defs=defs, instance=instance, cursor=cursor)
        found = [r.key for r in result.results if r.true_subset.size > 0]
        return {"/".join(key.path[1:]) for key in found if isinstance(key, dg.AssetKey)}, result.cursor

    nothing, cursor = requested(None)
    assert not nothing  # the lake is not there yet
    migration.materialize("source/inventory", "lake/runs")
    first, cursor = requested(cursor)
    assert {"summary/runs", "summary/metrics"} <= first
    migration.materialize(*TABLES)
    _, cursor = requested(cursor)
    migration.materialize("lake/runs", config={"full_refresh": True})
    same, cursor = requested(cursor)
    assert not {name for name in same if name != "summary/neptune_duckdb"}, "content did not change, nothing may run"
    migration.export.run(ONE, "b", run_v3("b"))
    migration.materialize("source/inventory", "lake/runs")
    changed, cursor = requested(cursor)
    assert "summary/runs" in changed
