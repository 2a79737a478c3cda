"""`python -m neptune_assets.verify`: damage of every kind is named, with restic's exit statuses; repair heals it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from neptune_assets.build import build_defs
from neptune_assets.lake.lock import project_lock
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.verification import Subset, Verification, VerifiedRuns
from neptune_assets.migration_settings import Settings
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.verify import main
from neptune_assets_tests.support.export_factory import ExportFactory, run_v3
from neptune_assets_tests.support.lake_factory import file, forget_hashes, make_lake, metric, params

P = "ws/proj"
RUNS = [f"R-{number}" for number in range(12)]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    root = tmp_path / "lake"
    rows = {
        run: [*params({"n": number}), *metric("m", [number / 7] * 40), file("f", os.urandom(300), "a.bin")]
        for number, run in enumerate(RUNS)
    }
    make_lake(root, {P: rows})
    return root


def flip(path: Path, place: int = 70) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


def part_of(root: Path, run_id: str) -> Path:
    (part,) = (root / "data").rglob(f"{run_id}-*.parquet")
    return part


def file_of(root: Path, run_id: str) -> Path:
    (found,) = [path for path in (root / "files").rglob("*.bin") if path.parts[-3].startswith(f"{run_id}-")]
    return found


def report_of(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    status = main([str(root), "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def test_a_whole_lake_is_verified(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = report_of(lake, capsys, "--rows")
    assert status == 0
    assert (report["runs"], report["files"], report["rows"]) == (12, 12, 12 * 42)
    assert report["damaged"] == report["notes"] == []
    assert report["bytes"] == sum(
        path.stat().st_size for path in (*lake.rglob("*.bin"), *(lake / "data").rglob("*.parquet"))
    )
    assert report["verified_through"][f"{P} (runs)"] is not None


def test_every_kind_of_damage_is_named(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(part_of(lake, "R-3"))
    flip(file_of(lake, "R-5"))
    file_of(lake, "R-6").unlink()
    part_of(lake, "R-7").unlink()
    flip(next((lake / "statistics").rglob("series.parquet")))
    part_of(lake, "R-8").rename(part_of(lake, "R-8").with_name("R-8-0000_part_0.parquet"))
    status, report = report_of(lake, capsys)
    assert status == 1
    found = {(item["run"], item["kind"]) for item in report["damaged"]}
    assert found == {
        ("R-3", "part"),
        ("R-5", "file"),
        ("R-6", "file"),
        ("R-7", "part"),
        ("R-8", "part"),
        (None, "stray"),
        (None, "statistics"),
    }
    (manifest,) = lake.rglob(".manifest/*.jsonl")
    flip(manifest, 900)
    status, report = report_of(lake, capsys)
    assert status == 1
    assert [item["kind"] for item in report["damaged"]] == ["manifest"]
    assert "11 of its records are as they were written, 1 lines are not" in report["damaged"][0]["message"]


def test_an_older_manifest_that_was_put_back_is_found(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (old,) = lake.rglob(".manifest/*.jsonl")
    kept = old.read_bytes()
    make_lake(lake, {P: {"R-0": metric("m", [1.0]), "new": metric("m", [2.0])}})
    for path in lake.rglob(".manifest/*.jsonl"):
        path.unlink()
    old.write_bytes(kept)
    status, report = report_of(lake, capsys)
    assert status == 1
    assert {(item["run"], item["kind"]) for item in report["damaged"]} >= {("R-0", "part"), (None, "stray")}


def test_exit_statuses_are_those_of_restic(lake: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "nowhere")]) == 10
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 10
    assert main([str(lake), "--project", "ws/other"]) == 10
    assert main([str(lake), "--project", P]) == 0
    assert main([str(lake), "--read-data-subset", "0/3"]) == 1
    assert main([str(lake), "--repair"]) == 1
    opened = Lake(LakeSettings(root=str(lake)))
    with project_lock(Storage(str(lake)), opened.layout.manifest(P), P):
        assert main([str(lake)]) == 0
        assert main([str(lake), "--upgrade"]) == 11
    assert main([]) == 2


def test_fixed_parts_make_up_the_whole_and_shares_take_what_was_read_longest_ago(lake: Path) -> None:
    opened = Lake(LakeSettings(root=str(lake)))
    project = opened.project(P)
    runs = list(project.runs())
    parts = [Subset.parse(f"{number}/5").choose(runs, VerifiedRuns(project)) for number in range(1, 6)]
    assert sorted(run.run_id for part in parts for run in part) == sorted(RUNS)
    seen: list[set[str]] = []
    for _ in range(4):
        before = VerifiedRuns(project)
        todo = Subset.parse("25%").choose(runs, before)
        seen.append({run.run_id for run in todo})
        report = Verification(opened).run([(P, Scope.RUNS)], Subset.parse("25%"))
        assert report.runs == len(todo)
    assert set().union(*seen) == set(RUNS)
    assert report.verified_through[P, Scope.RUNS] is not None


def test_lakes_written_before_there_were_hashes_are_compared_by_rows_and_upgraded(
    lake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_hashes(lake)
    status, report = report_of(lake, capsys)
    assert status == 0
    assert "12 runs were written before parts were hashed" in report["notes"][0]
    status, report = report_of(lake, capsys, "--upgrade")
    assert status == 0
    assert report["notes"] == [f"{P} (runs): 12 runs gained hashes."]
    records = Lake(LakeSettings(root=str(lake))).project(P).records()
    assert all(record.hashed for record in records.values())
    forget_hashes(lake)
    raw = part_of(lake, "R-4").read_bytes()
    part_of(lake, "R-4").write_bytes(raw.replace(raw[300:340], bytes(40)))
    status, report = report_of(lake, capsys, "--upgrade")
    assert status == 1
    assert [item["run"] for item in report["damaged"]] == ["R-4"]
    assert not Lake(LakeSettings(root=str(lake))).project(P).records()["R-4"].hashed


@pytest.fixture
def migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    export = ExportFactory(tmp_path / "export")
    for number in range(4):
        export.run(P, f"R-{number}", run_v3(f"R-{number}", points=50 + number))
    # Imported packages stay in the process: each test needs a name of its own.
    package_name = f"healed_{os.urandom(4).hex()}"
    folder = tmp_path / package_name / "defs" / "mine"
    folder.mkdir(parents=True)
    for package in (folder.parents[1], folder.parent):
        (package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "{package_name}"\n', encoding="utf-8"
    )
    (folder / "defs.yaml").write_text(
        "type: neptune_assets.components.NeptuneMigration\nattributes:\n"
        f"  source: {{export: {{data: {tmp_path}/export/exports/data, files: {tmp_path}/export/exports/files}}}}\n"
        f"  lake: {{root: {tmp_path}/lake}}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return Settings.model_validate(
        {
            "source": {
                "export": {"data": f"{tmp_path}/export/exports/data", "files": f"{tmp_path}/export/exports/files"}
            },
            "lake": {"root": f"{tmp_path}/lake"},
        }
    )


def materialize(settings: Settings, asset: str, **config: Any) -> dg.ExecuteInProcessResult:
    defs = build_defs(settings, [P], prefix="m")
    return dg.materialize(
        list(defs.assets or ()),  # type: ignore[arg-type]
        selection=dg.AssetSelection.assets(asset),
        partition_key=P,
        resources=defs.resources,
        run_config={"ops": {asset.replace("/", "__"): {"config": config}}} if config else None,
        raise_on_error=False,
    )


def test_repair_reads_damaged_runs_and_lost_records_anew(
    migration: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert materialize(migration, "m/lake/runs").success
    root = tmp_path / "lake"
    before = {run.run_id: run.content_digest() for run in Lake(migration.lake).project(P).runs()}
    flip(part_of(root, "R-1"))
    status = main(["mine", "--root", str(tmp_path), "--repair", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0
    assert [item["run"] for item in report["damaged"]] == ["R-1"]
    assert report["still_damaged"] == []
    manifest = min(root.rglob(".manifest/*.jsonl"))
    lines = manifest.read_bytes().splitlines(keepends=True)
    flip(manifest, len(lines[0]) + 40)
    assert main(["mine", "--root", str(tmp_path)]) == 1
    capsys.readouterr()
    status = main(["mine", "--root", str(tmp_path), "--repair", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (status, report["still_damaged"]) == (0, [])
    assert "3 records of the manifest kept, 1 lost" in report["notes"][0]
    assert {run.run_id: run.content_digest() for run in Lake(migration.lake).project(P).runs()} == before
    assert main(["mine", "--root", str(tmp_path)]) == 0


def test_repair_says_what_the_source_no_longer_has(
    migration: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert materialize(migration, "m/lake/runs").success
    flip(part_of(tmp_path / "lake", "R-1"))
    for path in (tmp_path / "export").rglob("R-1-*.parquet"):
        path.unlink()
    assert main(["mine", "--root", str(tmp_path), "--repair"]) == 1
    said = capsys.readouterr().out
    assert "the source no longer has 1 damaged runs, such as R-1" in said
    assert "1 of it could not be repaired" in said


def test_the_asset_fails_where_the_lake_is_damaged_and_the_next_materialization_heals_it(
    migration: Settings, tmp_path: Path
) -> None:
    assert materialize(migration, "m/lake/runs").success
    result = materialize(migration, "m/lake/verified", everything=True)
    assert result.success
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["runs_verified"].value == 4
    assert str(event.materialization.metadata["verified_through"].value).startswith("20")
    flip(part_of(tmp_path / "lake", "R-2"))
    result = materialize(migration, "m/lake/verified", everything=True)
    assert not result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == ("intact", False, dg.AssetCheckSeverity.ERROR)
    assert "R-2" in str(check.description)
    assert materialize(migration, "m/lake/runs").success
    assert materialize(migration, "m/lake/verified", everything=True).success


def test_a_part_whose_footer_is_damaged_makes_the_step_fail_and_the_next_one_heal_it(
    migration: Settings, tmp_path: Path
) -> None:
    assert materialize(migration, "m/lake/runs").success
    part = part_of(tmp_path / "lake", "R-2")
    part.write_bytes(part.read_bytes()[:-4] + b"PAR0")
    result = materialize(migration, "m/lake/runs")
    assert not result.success
    (check,) = [item for item in result.get_asset_check_evaluations() if not item.passed]
    assert (check.check_name, check.severity) == ("schema", dg.AssetCheckSeverity.ERROR)
    assert "R-2" in str(check.description)
    assert materialize(migration, "m/lake/runs").success
    assert main([str(tmp_path / "lake")]) == 0
