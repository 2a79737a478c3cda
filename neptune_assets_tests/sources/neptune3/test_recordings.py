"""The same recordings of neptune-scale, once read from disk and once sent to the server and read from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import AttributeFilter, Filters, LakeSettings
from neptune_assets.sources.neptune3.source import Neptune3
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.protocol import Source
from neptune_assets_tests.sources.neptune3.conftest import Open
from neptune_assets_tests.support.scale_recorder import HOSTILE_RUN, PROJECT
from neptune_assets_tests.support.server import Served
from neptune_assets_tests.support.wire_logging import WireLogger

SERVER_MADE = [
    "sys/id",
    "sys/modification_time",
    "sys/ping_time",
    "sys/archived",
    "sys/trashed",
    "sys/owner",
    "sys/diagnostics/project_uuid",
    "sys/diagnostics/run_uuid",
    "sys/experiment/name",
    "sys/experiment/is_head",
    "sys/forking/depth",
]
"""Attributes that only a server gives."""


def brought_home(source: Source, root: Path, project: str) -> dict[str, RunRecord]:
    settings = LakeSettings(root=str(root))
    report = LakeWriter(settings, source).write_project(project)
    assert not report.failed
    return Lake(settings).project(project).records()


def without(names: list[str]) -> Filters:
    return Filters(attributes=AttributeFilter(exclude=[f"^{name}$" for name in names]))


@pytest.fixture(scope="module", autouse=True)
def sent(served: Served, everything: Path, family: Path) -> None:
    logger = WireLogger(served, PROJECT)
    logger.replay(everything)
    logger.replay(family)


def test_the_lake_is_the_same(everything: Path, family: Path, open_source: Open, tmp_path: Path) -> None:
    filters = without([*SERVER_MADE, "sys/tags", "sys/creation_time"])
    offline = Offline(OfflineSource(paths=[str(everything), str(family)]), filters)
    expected = brought_home(offline, tmp_path / "offline", PROJECT)
    found = brought_home(open_source(filters), tmp_path / "server", PROJECT)
    assert HOSTILE_RUN in expected
    assert set(found) == set(expected)
    for run_id, record in expected.items():
        assert found[run_id].attributes == record.attributes, run_id
        assert found[run_id].rows == record.rows, run_id
        assert found[run_id].digest == record.digest, run_id


def test_what_the_server_adds_is_named(everything: Path, family: Path, open_source: Open) -> None:
    offline: Source = Offline(OfflineSource(paths=[str(everything), str(family)]), Filters())
    server: Neptune3 = open_source()
    for info in server.runs(PROJECT):
        added = paths(server, info.run_id) - paths(offline, info.run_id)
        assert {path for path, _ in added} <= {*SERVER_MADE, "sys/tags", "sys/creation_time"}, info.run_id


def paths(source: Source, run_id: str) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for chunk in source.read(PROJECT, [run_id]):
        if hasattr(chunk, "batch"):
            columns = (chunk.batch["attribute_path"].to_pylist(), chunk.batch["attribute_type"].to_pylist())
            found.update(zip(*columns, strict=True))
    return found
