"""An export read in place from a store that is not the lake's, and another kind of secret for it.

Real s3fs, DuckDB and HTTP servers (moto, an emulator); the export's server is a process of its own and shares nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from moto.server import ThreadedMotoServer

from neptune_assets.errors import SettingsError
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.migration_settings import Settings
from neptune_assets.settings import StorageSettings, SummarySettings
from neptune_assets.sources.registry import open_source
from neptune_assets.summary.database import write_database, write_table
from neptune_assets.summary.sql import TwoStores, register_filesystems
from neptune_assets.summary.tables import summarize
from neptune_assets_tests.support.export_factory import CREATED, ExportFactory, file_row, point, run_v3

P, Q = "ws/p", "ws/q"
SECRET = "export-secret-0123456789"


@pytest.fixture(scope="module")
def lake_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def export_endpoint() -> Iterator[str]:
    code = (
        "import time; from moto.server import ThreadedMotoServer as S; s = S('127.0.0.1', 0, verbose=False); s.start();"
        "print(s.get_host_and_port()[1], flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        endpoint = f"http://127.0.0.1:{int(it.stdout.readline())}"
        for _ in range(100):
            try:
                urllib.request.urlopen(endpoint, timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield endpoint
        it.kill()


@pytest.fixture
def migration(
    lake_endpoint: str, export_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Settings of a lake on one server whose export lies on the other, in a bucket of the same name."""
    for name in ("LAKE_KEY", "LAKE_SECRET", "EXPORT_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("EXPORT_SECRET", SECRET)
    factory = ExportFactory(tmp_path)
    for project in (P, Q):
        factory.run(project, "r", [*run_v3("r"), [file_row("f", "r/f.bin")]])
        twice = [
            point("m", 1, 1.0, CREATED),
            point("m", 1, 2.0, CREATED.replace(hour=13)),
            point("m", 2, None, CREATED),
        ]
        factory.run(project, "repaired", [*run_v3("repaired"), twice])
        factory.file(project, "r/f.bin", b"bytes of the export")
    storage = {
        name: {
            "options": {"endpoint_url": endpoint},
            "secrets_env": {"key": f"{name.upper()}_KEY", "secret": f"{name.upper()}_SECRET"},
        }
        for name, endpoint in (("lake", lake_endpoint), ("export", export_endpoint))
    }
    for settings in storage.values():
        place = Storage("s3://data", StorageSettings.model_validate(settings))
        if not place.filesystem.exists("data"):
            place.filesystem.mkdir("data")
    place.filesystem.put(str(factory.directory / "exports"), "data/exports", recursive=True)
    return {
        "source": {
            "export": {
                "data": "s3://data/exports/data",
                "files": "s3://data/exports/files",
                "mode": "in_place",
                "storage": storage["export"],
            }
        },
        "lake": {"root": f"s3://data/{tmp_path.name}", "storage": storage["lake"]},
    }


def materialized(migration: dict[str, Any], project: str = P) -> Lake:
    # Anchored, as the component does it: the copy must know the storage too.
    settings = Settings.model_validate(migration).anchored(Path.cwd())
    report = LakeWriter(settings.lake, open_source(settings)).write_project(project)
    assert not report.failed
    assert report.partial == []
    return Lake(settings.lake)


def summarized(lake: Lake, project: str, *, filesystem: Any) -> dict[str, list[dict[str, Any]]]:
    found = {}
    with summarize(lake.project(project), SummarySettings(memory_mb=128), lake.settings) as summary:
        for name, reader in summary.tables():
            table = reader.read_all()
            write_table(table.to_reader(), lake.layout.summary(name, project), filesystem)
            found[name] = table.to_pylist()
    return found


def test_runs_are_read_where_they_lie(migration: dict[str, Any]) -> None:
    lake = materialized(migration)
    project = lake.project(P)
    assert {record.in_place for record in project.records().values()} != {None}
    assert not [path for path in lake.storage.walk(lake.storage.root) if path.endswith(".parquet") and "/data/" in path]
    for run in project.runs():
        assert run.content_digest() == run.record.digest
    with project.run("r").open_file("r/f.bin") as file:
        assert file.read() == b"bytes of the export"
    for path in lake.storage.walk(lake.storage.root):
        assert SECRET.encode() not in lake.storage.read(path)
    assert SECRET not in repr(lake.settings)
    copied = materialized({**migration, "source": {"export": {**migration["source"]["export"], "mode": "copy"}}})
    digests = {run_id: record.digest for run_id, record in project.records().items()}
    assert {run_id: record.digest for run_id, record in copied.project(P).records().items()} == digests


def test_the_summary_reads_both_stores(
    migration: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LakeProject, "statistics", lambda self: None)  # without them every row is scanned
    for project in (P, Q):
        lake = materialized(migration, project)
        tables = summarized(lake, project, filesystem=lake.storage.filesystem)
        metrics = {(row["run_id"], row["attribute_path"]): row for row in tables["metrics"]}
        assert (metrics["repaired", "m"]["count"], metrics["repaired", "m"]["nan_count"]) == (2, 1)
        assert metrics["repaired", "m"]["first_value"] == 2.0
        assert metrics["r", "metrics/acc"]["count"] == 5
    path = write_database(lake.settings, SummarySettings(database=str(tmp_path / "n.duckdb")))
    with duckdb.connect(str(path), read_only=True) as con:
        register_filesystems(con, lake.project(P))
        register_filesystems(con, lake.project(Q))
        counted = "SELECT project_id, count(*) FROM points WHERE attribute_path = 'metrics/acc' GROUP BY ALL ORDER BY 1"
        assert con.execute(counted).fetchall() == [(P, 10), (Q, 10)]
        assert con.execute("SELECT count(*) FROM runs").fetchall() == [(4,)]


def test_a_local_lake_over_an_export_elsewhere(
    migration: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = materialized({**migration, "lake": {"root": str(tmp_path / "lake")}})
    assert lake.project(P).run("r").content_digest() == lake.project(P).run("r").record.digest
    summarized(lake, P, filesystem=None)
    path = write_database(lake.settings, SummarySettings())
    with duckdb.connect(str(path), read_only=True) as con:
        register_filesystems(con, lake.project(P))
        assert con.execute("SELECT count(*) FROM points WHERE attribute_path = 'metrics/acc'").fetchall() == [(10,)]
    monkeypatch.delenv("EXPORT_SECRET")
    with pytest.raises(SettingsError, match="EXPORT_SECRET"):
        next(lake.project(P).run("r").batches())


def test_paths_below_the_lakes_root_are_the_lakes(tmp_path: Path) -> None:
    lake, export = Storage(str(tmp_path / "lake")), Storage(str(tmp_path / "export")).filesystem
    stores = TwoStores("file", lake, export)
    assert stores._of(f"file://{lake.root}/x.parquet") is lake.filesystem
    assert stores._of(f"{lake.root}2/x.parquet") is export
