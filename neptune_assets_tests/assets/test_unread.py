"""Nothing that was found and could not be read stays green: the log, a check and the step's failure name each path."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from neptune_assets.build import build_defs, discover_projects
from neptune_assets.errors import SourceError
from neptune_assets.lake.reader import Lake
from neptune_assets.migration_settings import Settings
from neptune_assets.server.store.projects import Store
from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets_tests.support.export_factory import ExportFactory, run_v3

CASES = Path(__file__).resolve().parents[1] / "cases"
PROJECT = "team/scale"


@dataclass
class Told:
    """What a person sees of one materialization of the lake."""

    success: bool
    check: dg.AssetCheckEvaluation
    errors: str
    """What is logged as ERROR by the asset, and why the step failed."""


def settings(lake: Path, *paths: Path) -> Settings:
    source = {"offline": {"paths": [str(path) for path in paths], "project": PROJECT}}
    return Settings.model_validate({"source": source, "lake": {"root": str(lake)}})


def materialize(made: Settings, project: str) -> Told:
    defs = build_defs(made, [project], prefix="m")
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            list(defs.assets or ()),  # type: ignore[arg-type]
            selection=dg.AssetSelection.assets("m/lake/runs"),
            partition_key=project,
            instance=instance,
            resources=defs.resources,
            raise_on_error=False,
        )
        (check,) = [item for item in result.get_asset_check_evaluations() if item.check_name == "everything_read"]
        logged = [
            record.user_message
            for record in instance.all_logs(result.run_id)
            if record.level == logging.ERROR and record.dagster_event is None
        ]
        failures = [
            event.step_failure_data.error_display_string
            for event in result.all_events
            if event.event_type_value == "STEP_FAILURE"
        ]
    assert bool(failures) is not result.success
    return Told(result.success, check, "\n".join(logged + failures))


def fails_and_names(told: Told, path: Path) -> None:
    assert not told.success
    assert not told.check.passed
    assert told.check.severity is dg.AssetCheckSeverity.ERROR
    logged = [line for line in told.errors.splitlines() if line.startswith("Not read: ")]
    assert any(str(path) in line for line in logged)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CASES / "unread-recordings", tmp_path / "recordings"))


def test_a_recording_that_cannot_be_read_fails_the_check_and_the_step(recordings: Path, tmp_path: Path) -> None:
    told = materialize(settings(tmp_path / "lake", recordings), PROJECT)
    (broken,) = (recordings / "three").rglob("*.sqlite3")
    fails_and_names(told, broken)
    assert str(broken) in str(told.check.metadata["details"].value).replace("&#46;", ".").replace("&#95;", "_")


def test_all_is_green_once_it_is_gone(recordings: Path, tmp_path: Path) -> None:
    shutil.rmtree(recordings / "three")
    shutil.rmtree(recordings / "two")
    told = materialize(settings(tmp_path / "lake", recordings), PROJECT)
    assert told.success
    assert told.check.passed


def test_a_path_of_the_settings_that_is_missing_fails_beside_one_that_is_there(
    recordings: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "not there"
    told = materialize(settings(tmp_path / "lake", recordings / "one", missing), PROJECT)
    fails_and_names(told, missing)


@pytest.mark.parametrize(
    "left", ["run_operations.sqlite3-wal", "run_operations.sqlite3.gz", "run_operations.sqlite3.bak"]
)
def test_a_recording_of_which_another_file_is_left_fails(recordings: Path, tmp_path: Path, left: str) -> None:
    folder = recordings / "one" / "team_scale_job-5_1796072406124338699"
    folder.mkdir()
    (folder / left).write_bytes(b"some bytes")
    told = materialize(settings(tmp_path / "lake", recordings / "one"), PROJECT)
    fails_and_names(told, folder / left)


def test_a_folder_that_cannot_be_listed_fails(recordings: Path, tmp_path: Path) -> None:
    closed = recordings / "closed"
    closed.mkdir()
    made = settings(tmp_path / "lake", recordings / "one", closed)
    if os.geteuid() == 0:  # root reads everything: a folder deeper than any path can be stands for a closed one
        deep = closed
        here = os.open(closed, os.O_RDONLY)
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=here)
            below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
            deep = deep / ("d" * 250)
        os.close(here)
        fails_and_names(materialize(made, PROJECT), closed / ("d" * 250))
        return
    closed.chmod(0)
    try:
        fails_and_names(materialize(made, PROJECT), closed)
    finally:
        closed.chmod(0o700)


def test_a_log_without_a_name_fails(recordings: Path, tmp_path: Path) -> None:
    nameless = recordings / "one" / "some folder"
    nameless.mkdir()
    (nameless / "data-1.log").write_text('{"obj": {"type": "AssignFloat"}, "version": 1}')
    told = materialize(settings(tmp_path / "lake", recordings / "one"), PROJECT)
    fails_and_names(told, nameless)


def test_an_archive_with_recordings_beside_one_that_is_read_fails(recordings: Path, tmp_path: Path) -> None:
    archive = recordings / "one" / "older.tar.gz"
    shutil.copy(CASES / "offline-path-without-recordings" / "older.tar.gz", archive)
    with tarfile.open(recordings / "one" / "harmless.tar.gz", "w:gz") as harmless:
        harmless.add(__file__, "data set/file.py")
    told = materialize(settings(tmp_path / "lake", recordings / "one"), PROJECT)
    fails_and_names(told, archive)
    assert "harmless" not in told.errors


def test_a_run_whose_own_recording_is_unread_is_not_complete(recordings: Path, tmp_path: Path) -> None:
    (second,) = (recordings / "two").rglob("*.sqlite3")
    metadata = "UPDATE metadata SET version = 'v99'"
    subprocess.run([sys.executable, "-c", f"import sqlite3; c = sqlite3.connect({str(second)!r}); "
                    f"c.execute({metadata!r}); c.commit()"], check=True)  # fmt: skip
    made = settings(tmp_path / "lake", recordings / "one")
    assert materialize(made, PROJECT).success
    assert Lake(made.lake).project(PROJECT).records()["job-1"].complete
    both = settings(tmp_path / "lake", recordings / "one", recordings / "two")
    fails_and_names(materialize(both, PROJECT), second)
    record = Lake(made.lake).project(PROJECT).records()["job-1"]
    assert record.stale is not None  # the complete state of before was kept, and says what is missing
    assert str(second) in record.stale
    fresh = settings(tmp_path / "other lake", recordings / "one", recordings / "two")
    materialize(fresh, PROJECT)
    record = Lake(fresh.lake).project(PROJECT).records()["job-1"]
    assert not record.complete
    assert any(str(second) in issue.message for issue in record.errors)


def test_a_project_of_which_nothing_can_be_read_is_a_partition_that_fails(recordings: Path, tmp_path: Path) -> None:
    (second,) = (recordings / "two").rglob("*.sqlite3")
    change = "UPDATE metadata SET version = 'v99', project = 'team/other'"
    subprocess.run([sys.executable, "-c", f"import sqlite3; c = sqlite3.connect({str(second)!r}); "
                    f"c.execute({change!r}); c.commit()"], check=True)  # fmt: skip
    made = settings(tmp_path / "lake", recordings / "one", recordings / "two")
    assert discover_projects(made) == ["team/other", PROJECT]
    fails_and_names(materialize(made, "team/other"), second)
    assert materialize(made, PROJECT).success


def test_refreshing_says_that_a_path_holds_archives_only(tmp_path: Path) -> None:
    folder = CASES / "offline-path-without-recordings"
    with pytest.raises(SourceError) as raised:
        discover_projects(settings(tmp_path / "lake", folder))
    for name in ("neptune_backup.zip", "older.tar.gz"):
        assert str(folder / name) in str(raised.value)
    assert "No recording" in str(raised.value)
    assert "Unpack" in str(raised.value)


def test_refreshing_names_a_path_without_recordings(
    recordings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    unknown = tmp_path / "packed"
    unknown.mkdir()
    (unknown / "backup.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    assert discover_projects(settings(tmp_path / "lake", recordings / "one", tmp_path / "empty", unknown)) == [PROJECT]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(str(tmp_path / "empty") in line for line in warnings)
    assert any(str(unknown / "backup.7z") in line and "Unpack" in line for line in warnings)


def test_a_link_that_leads_nowhere_is_named(recordings: Path, tmp_path: Path) -> None:
    (recordings / "one" / "job-9").symlink_to(tmp_path / "not mounted")
    source = Offline(OfflineSource(paths=[str(recordings / "one")]), Filters())
    source.projects()
    (notice,) = source.problems()
    assert notice.notice
    assert str(recordings / "one" / "job-9") in notice.message


def test_a_project_of_a_store_that_cannot_be_opened_fails(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in (PROJECT, "team/other"):
        store.project(name, create=True)
    store.close()
    other = min((tmp_path / "store" / "projects").glob("*/*.sqlite3"))
    other.write_bytes(b"not a database" * 1000)
    for left in other.parent.glob(f"{other.name}-*"):
        left.unlink()
    source: dict[str, Any] = {"server": {"store": str(tmp_path / "store")}}
    made = Settings.model_validate({"source": source, "lake": {"root": str(tmp_path / "lake")}})
    (project,) = discover_projects(made)
    fails_and_names(materialize(made, project), other)


@pytest.mark.parametrize(
    "what",
    [
        "project of which no part can be read",
        "directory of Parquet files that are not named as parts",
        "Parquet file beside the projects",
        "run that the exporter failed on",
    ],
)
def test_what_an_export_holds_and_cannot_be_read_fails(tmp_path: Path, what: str) -> None:
    export = ExportFactory(tmp_path)
    export.run("ws/one", "a", run_v3("a"))
    if what.startswith("directory"):
        named = export.data / "ws_three" / "RUN-1.parquet"
        named.parent.mkdir()
        shutil.copy(export.part("ws/one", "a"), named)
    elif what.startswith("Parquet"):
        named = export.data / "RUN-1.parquet"
        shutil.copy(export.part("ws/one", "a"), named)
    elif what.startswith("project"):
        export.run("ws/two words", "b", run_v3("b"))
        part = export.part("ws/two words", "b")
        part.write_bytes(b"PAR1 torn")
        named = part.parent
    else:
        report = export.data / "neptune_exporter_errors.jsonl"
        report.write_text('{"project_id": "ws/one", "run_id": "lost", "exception": "HTTP 500"}\n')
        named = report
    source: dict[str, Any] = {"export": {"data": str(export.data), "files": str(export.files)}}
    made = Settings.model_validate({"source": source, "lake": {"root": str(tmp_path / "lake")}})
    told = materialize(made, "ws/one")
    assert not told.success
    assert not told.check.passed
    assert str(named) in told.errors
