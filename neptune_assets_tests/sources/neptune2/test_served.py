"""What the real client logged to the real server, read back by the source, compared with what was logged."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import neptune
import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, LakeSettings, RunFilter
from neptune_assets.sources.neptune2 import SOURCE
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets.testing.sources import SourceCase, SourceContract, key, read
from neptune_assets_tests.support import client_live as logged
from neptune_assets_tests.support.server import Served, server_in_thread

SYSTEM = {"sys/", "source_code/", "monitoring/"}
FLEETING = {"sys/state", "sys/ping_time", "sys/running_time", "sys/monitoring_time", "sys/size"}
GIT = "source_code/git/"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("live")
    with server_in_thread(folder / "store") as running:
        logged.log_live(running, folder / "work")
        yield running


@pytest.fixture
def opened(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Neptune2]:
    monkeypatch.setenv("NEPTUNE_API_TOKEN", served.token)

    def make(filters: Filters | None = None, **settings: Any) -> Neptune2:
        return Neptune2(Neptune2Source.model_validate(settings), filters or Filters())

    return make


@pytest.fixture
def rows(opened: Callable[..., Neptune2]) -> dict[str, list[dict[str, Any]]]:
    return by_path(opened(), logged.FIRST)


def by_path(source: Neptune2, run_id: str, scope: Scope = Scope.RUNS) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for chunk in list(source.read(logged.PROJECT, [run_id], scope))[:-1]:
        for row in chunk.batch.to_pylist():  # type: ignore[union-attr]
            found.setdefault(row["attribute_path"], []).append(row)
    return found


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack(">d", value)


class TestContract(SourceContract):
    spec = SOURCE

    @pytest.fixture
    def case(self, opened: Callable[..., Neptune2]) -> SourceCase:
        return SourceCase(
            open=opened,
            roots=(),
            project=logged.PROJECT,
            run_ids=frozenset({logged.FIRST, logged.SECOND}),
            series_run=logged.FIRST,
            series="m/points",
            parameter="p/float",
        )


def test_single_values_are_exact(rows: dict[str, list[dict[str, Any]]]) -> None:
    columns = {bool: "bool", int: "int", float: "float", str: "string", datetime: "datetime"}
    for path, value in logged.SINGLES.items():
        (row,) = rows[path]
        kind = columns[type(value)]
        assert row["attribute_type"] == kind
        found = row[f"{kind}_value"]
        assert bits(found) == bits(value) if isinstance(value, float) else found == value, path
    (tags,) = rows["sys/tags"]
    assert set(tags["string_set_value"]) == logged.TAGS


def test_points_have_their_steps_moments_and_bits(rows: dict[str, list[dict[str, Any]]]) -> None:
    found = [(bits(row["float_value"]), row["step"], row["timestamp"]) for row in rows["m/points"]]
    assert found == [(bits(value), Decimal(str(step)), moment) for value, step, moment in logged.POINTS]
    assert [row["float_value"] for row in rows["m/many"]] == [number / 7 for number in range(logged.MANY)]
    assert [row["step"] for row in rows["m/many"]] == [Decimal(number) for number in range(logged.MANY)]
    texts = [(row["string_value"], row["step"]) for row in rows["m/texts"]]
    assert texts == [(text, Decimal(str(step))) for text, step in logged.TEXTS]
    images = [(row["step"], row["timestamp"]) for row in rows["i/images"]]
    assert images == [(Decimal(str(step)), logged.NEW_YORK_TWICE[1]) for step in logged.PICTURES]


def test_files_come_with_their_bytes_and_extensions(
    opened: Callable[..., Neptune2], rows: dict[str, list[dict[str, Any]]]
) -> None:
    source = opened()

    def contents(path: str) -> dict[str, bytes]:
        (row,) = rows[path]
        members = source.files(logged.PROJECT, logged.FIRST, row["file_value"]["path"])
        return {member.relative_path: member.open().read() for member in members}

    for path, (content, extension) in logged.FILES.items():
        ((name, found),) = contents(path).items()
        assert found == content
        if extension:
            assert name == f"{path.rsplit('/', 1)[-1]}.{extension}"
    assert contents("f/set") == logged.MEMBERS
    (listing,) = contents("a/tracked").values()
    assert b'"filePath": "a.txt"' in listing
    assert b'"filePath": "deep/b.txt"' in listing


def test_git_information_arrives(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert rows[f"{GIT}commit/message"][0]["string_value"].strip() == "Begin"
    assert len(rows[f"{GIT}commit/commit_id"][0]["string_value"]) == 40
    assert rows[f"{GIT}commit/author_email"][0]["string_value"] == "ann@example.com"
    assert rows[f"{GIT}dirty"][0]["bool_value"] in {True, False}


def test_trashed_runs_come_only_if_wanted(opened: Callable[..., Neptune2]) -> None:
    everything = opened(Filters(runs=RunFilter(trashed=True))).runs(logged.PROJECT)
    assert {info.run_id: info.trashed for info in everything} == {
        logged.FIRST: False,
        logged.SECOND: False,
        logged.TRASHED: True,
    }


def test_times_filter_and_queries_are_left_to_the_server(opened: Callable[..., Neptune2]) -> None:
    infos = opened().runs(logged.PROJECT)
    first = min(info.created_at for info in infos if info.created_at is not None)
    later = (first + timedelta(milliseconds=1)).isoformat()
    found = opened(Filters(runs=RunFilter(created_since=later))).runs(logged.PROJECT)
    assert [info.run_id for info in found] == [logged.SECOND]
    found = opened(query="(`p/float`:float > 1) OR (`p/float`:float = 99)").runs(logged.PROJECT)
    assert [info.run_id for info in found] == [logged.SECOND]


def test_what_is_read_is_what_the_client_shows(
    opened: Callable[..., Neptune2], rows: dict[str, list[dict[str, Any]]], served: Served
) -> None:
    opening = neptune.init_run(with_id=logged.FIRST, project=logged.PROJECT, api_token=served.token, mode="read-only")
    with opening as run:
        for path in logged.SINGLES:
            value = run[path].fetch()
            (row,) = rows[path]
            found = row[f"{row['attribute_type']}_value"]
            assert bits(found) == bits(value) if isinstance(value, float) else found == value, path
        for path, column in (("m/points", "float_value"), ("m/many", "float_value"), ("m/texts", "string_value")):
            frame = run[path].fetch_values(progress_bar=False, include_timestamp=False)
            assert [(float(row["step"]), repr(row[column])) for row in rows[path]] == [
                (step, repr(value)) for step, value in zip(frame["step"], frame["value"].tolist(), strict=True)
            ], path


def test_artifact_files_are_copied_from_directories_that_settings_name(
    opened: Callable[..., Neptune2], served: Served, tmp_path: Path
) -> None:
    work = served.store.parent / "work"
    source = opened(artifact_roots=[str(work)])
    result = read(source, logged.PROJECT, [logged.FIRST])
    (reference,) = (
        row["file_value"]["path"] for row in result.rows[logged.FIRST] if row["attribute_path"] == "a/tracked/files"
    )
    members = source.files(logged.PROJECT, logged.FIRST, reference)
    assert {member.relative_path: member.open().read() for member in members} == {"a.txt": b"a", "deep/b.txt": b"bb"}
    assert not result.ends[logged.FIRST].notes
    elsewhere = read(opened(artifact_roots=[str(tmp_path)]), logged.PROJECT, [logged.FIRST])
    (note,) = elsewhere.ends[logged.FIRST].notes
    assert "2 of 2 files" in note.message
    assert "a/tracked/files" not in {row["attribute_path"] for row in elsewhere.rows[logged.FIRST]}


def test_a_lake_is_filled_once_and_then_only_with_what_changed(opened: Callable[..., Neptune2], tmp_path: Path) -> None:
    settings = LakeSettings(root=str(tmp_path / "lake"))
    for scope, ids in (
        (Scope.RUNS, [logged.FIRST, logged.SECOND]),
        (Scope.MODELS, [logged.MODEL]),
        (Scope.MODEL_VERSIONS, list(logged.VERSIONS)),
    ):
        report = LakeWriter(settings, opened(), scope).write_project(logged.PROJECT)
        assert (sorted(report.new), report.failed, report.partial) == (ids, {}, [])
        again = LakeWriter(settings, opened(), scope).write_project(logged.PROJECT)
        assert (sorted(again.skipped), again.new, again.changed) == (ids, [], [])
        project = Lake(settings).project(logged.PROJECT, scope)
        assert all(record.complete for record in project.records().values())
    version = Lake(settings).project(logged.PROJECT, Scope.MODEL_VERSIONS).run(logged.VERSIONS[0])
    values = {row["attribute_path"]: row for batch in version.batches() for row in batch.to_pylist()}
    assert values["sys/stage"]["string_value"] == "production"
    assert values["sys/model_id"]["string_value"] == logged.MODEL
    assert version.open_file(values["model/binary"]["file_value"]["path"]).read() == b"weights 1"


def test_reading_twice_gives_the_same(opened: Callable[..., Neptune2]) -> None:
    def once() -> list[str]:
        result = read(opened(points_per_page=100), logged.PROJECT, [logged.FIRST])
        return sorted(key(row) for row in result.rows[logged.FIRST] if row["attribute_path"] not in FLEETING)

    assert once() == once()
