from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import LakeError
from neptune_assets.summary import rows as rows_module
from neptune_assets.summary.tables import TABLES, columns, summarize
from neptune_assets_tests.support import lake_factory as make
from neptune_assets_tests.support.summary_tables import SETTINGS, system, tables


def test_runs_say_what_sys_attributes_and_the_manifest_say(tmp_path: Path) -> None:
    created = datetime(2025, 3, 1, 12, tzinfo=UTC)
    full = [
        *system(
            id="P-1",
            custom_run_id="mine",
            name="experiment",
            description="d",
            creation_time=created,
            modification_time=created + timedelta(hours=2),
            ping_time=created + timedelta(hours=1),
            running_time=12.5,
            state="inactive",
            owner="me",
            failed=True,
            trashed=False,
            archived=True,
            tags=["b", "a"],
            group_tags=["g"],
        ),
        *make.metric("loss", [1.0, 2.0]),
        *make.texts("log", ["x", "y", "z"]),
        *make.histograms("h", [([0.0, 1.0], [5.0])]),
        make.file("model", b"12345", "m.bin"),
        make.file_set("code", {"a.py": b"1", "d/b.py": b"22"}),
    ]
    lake = make.make_lake(
        tmp_path,
        {"ws/p": {"full": full, "bare": [], "broken": make.metric("m", [1.0])}},
        partial={("ws/p", "broken"): "the server said no"},
    )
    found = tables(lake)
    runs = {row["run_id"]: row for row in found["runs"]}
    records = lake.project("ws/p").records()
    assert list(runs) == sorted(records)
    row = runs["full"]
    said = {
        "sys_id": "P-1",
        "custom_run_id": "mine",
        "name": "experiment",
        "description": "d",
        "created_at": created,
        "modified_at": created + timedelta(hours=2),
        "pinged_at": created + timedelta(hours=1),
        "running_seconds": 12.5,
        "run_state": "inactive",
        "owner": "me",
        "failed": True,
        "trashed": False,
        "archived": True,
        "group_tags": ["g"],
        "attributes": 15 + 3 + 2,
        "metrics": 1,
        "points": 2,
        "rows": 15 + 2 + 3 + 1 + 2,
        "files": 3,
        "file_bytes": 8,
        "lake_state": "complete",
        "errors": 0,
        "first_error": None,
        "in_place": False,
        "parent": None,
        "vanished_at": None,
        "digest": records["full"].digest,
    }
    assert {key: row[key] for key in said} == said
    assert sorted(row["tags"]) == ["a", "b"]
    on_disk = sum(Path(part).stat().st_size for part in lake.project("ws/p").parts()["full"])
    assert row["parquet_bytes"] == on_disk
    assert (runs["bare"]["rows"], runs["bare"]["attributes"], runs["bare"]["tags"]) == (0, 0, None)
    assert (runs["broken"]["lake_state"], runs["broken"]["errors"]) == ("partial", 1)
    assert "the server said no" in runs["broken"]["first_error"]
    (project,) = found["projects"]
    assert (project["runs"], project["complete_runs"], project["partial_runs"]) == (3, 2, 1)
    assert (project["points"], project["metrics"], project["attributes"]) == (3, 2, 15 + 3 + 2 + 1)
    assert (project["rows"], project["files"], project["file_bytes"]) == (15 + 2 + 3 + 1 + 2 + 1, 3, 8)
    assert project["first_created_at"] == project["last_created_at"] == created
    assert project["digest"] == lake.project("ws/p").digest


def test_files_lie_where_the_table_says(tmp_path: Path) -> None:
    contents = {
        ("single", None, None): b"one",
        ("set", None, "a b/ü.txt"): b"two",
        ("series", Decimal("1.5"), None): b"",
    }
    rows = [
        make.file("single", b"one", "x.txt"),
        make.file_set("set", {"a b/ü.txt": b"two"}),
        *make.files("series", [b""], steps=["1.5"]),
        make.file("gone", None, "x.txt"),
    ]
    found = tables(make.make_lake(tmp_path / "it's [x] %", {"ws/p": {"r": rows}}))["files"]
    assert {(row["attribute_path"], row["step"], row["member"]) for row in found} == set(contents)
    for row in found:
        content = contents[row["attribute_path"], row["step"], row["member"]]
        assert Path(row["location"]).read_bytes() == content
        assert (row["size"], row["sha256"]) == (len(content), sha256(content).hexdigest())


def fork(parent: str, step: Any) -> list[dict[str, Any]]:
    return [make.param("sys/forking/parent", parent), make.param("sys/forking/step", step)]


def test_lineage_of_forks_orphans_and_cycles(tmp_path: Path) -> None:
    chain = {f"c{number:03d}": fork(f"c{number - 1:03d}", number) for number in range(1, 40)}
    lake = make.make_lake(
        tmp_path,
        {
            "ws/p": {
                "root": [make.param("sys/id", "P-1")],
                "child": fork("root", 10),
                "grandchild": fork("child", 2.5),
                "by short id": fork("P-1", 1),
                "orphan": fork("nobody's", 3),
                "orphan's child": fork("orphan", 4),
                "self": fork("self", 1),
                "a": fork("b", 1),
                "b": fork("a", 1),
                "below the cycle": fork("a", 1),
                "no parent": [make.param("sys/forking/parent", "")],
                "c000": [],
                **chain,
            }
        },
    )
    found = {row["run_id"]: row for row in tables(lake)["lineage"]}
    shapes = {
        run_id: (row["parent_run_id"], row["depth"], row["root"], row["orphan"], row["cyclic"])
        for run_id, row in found.items()
    }
    assert shapes["root"] == (None, 0, "root", False, False)
    assert shapes["child"] == ("root", 1, "root", False, False)
    assert shapes["grandchild"] == ("child", 2, "root", False, False)
    assert shapes["by short id"] == ("root", 1, "root", False, False)
    assert shapes["orphan"] == (None, 0, "orphan", True, False)
    assert shapes["orphan's child"] == ("orphan", 1, "orphan", False, False)
    assert shapes["self"] == ("self", None, None, False, True)
    assert shapes["a"] == ("b", None, None, False, True)
    assert shapes["below the cycle"] == ("a", None, None, False, True)
    assert shapes["no parent"] == (None, 0, "no parent", False, False)
    assert shapes["c039"] == ("c038", 39, "c000", False, False)
    assert found["grandchild"]["fork_step"] == Decimal("2.5")
    assert found["child"]["fork_step"] == 10
    assert found["orphan"]["parent"] == "nobody's"
    assert len(found) == 51


def test_an_empty_project_has_every_table(tmp_path: Path) -> None:
    found = tables(make.make_lake(tmp_path, {"ws/p": {}}))
    (project,) = found.pop("projects")
    assert {name: rows for name, rows in found.items() if rows} == {}
    counts = ["runs", "complete_runs", "partial_runs", "vanished_runs", "attributes", "metrics", "points", "rows"]
    assert [project[name] for name in counts] == [0] * len(counts)


def test_streams_have_the_declared_columns_and_descriptions(tmp_path: Path) -> None:
    lake = make.make_lake(tmp_path, {"ws/p": {"r": make.metric("m", [1.0])}})
    with summarize(lake.project("ws/p"), SETTINGS, lake.settings) as summary:
        for name, reader in summary.tables():
            assert reader.schema.equals(TABLES[name].schema, check_metadata=True)
            assert [column for column, _, _ in columns(name)] == reader.schema.names
            assert all(text.endswith(".") for _, _, text in columns(name))


def test_many_runs_are_read_in_several_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_PARTS", 7)
    monkeypatch.setattr(rows_module, "MAX_ROWS", 100)
    lake = make.make_lake(tmp_path, {"ws/p": {f"r{n}": make.metric("m", [float(n)] * (n + 1)) for n in range(40)}})
    found = tables(lake)
    assert {row["run_id"]: (row["count"], row["mean_value"]) for row in found["metrics"]} == {
        f"r{n}": (n + 1, n) for n in range(40)
    }
    assert found["projects"][0]["points"] == 40 * 41 // 2


def test_a_part_that_lost_rows_is_an_error_and_leaves_no_scratch(tmp_path: Path) -> None:
    lake = make.make_lake(tmp_path / "lake", {"ws/p": {"r": make.metric("m", [1.0, 2.0])}})
    lake.settings.scratch = None
    (path,) = lake.project("ws/p").parts()["r"]
    table = pq.read_table(path)
    metadata = pq.read_schema(path).metadata
    pq.write_table(table.slice(1).replace_schema_metadata(metadata), path)
    scratch = tmp_path / "scratch"
    settings = lake.settings.model_copy(update={"scratch": str(scratch)})
    with pytest.raises(LakeError, match="1 rows by its footer instead of 2"):
        summarize(lake.project("ws/p"), SETTINGS, settings)
    assert list(scratch.iterdir()) == []


def test_a_part_of_another_commit_is_an_error(tmp_path: Path) -> None:
    lake = make.make_lake(tmp_path, {"ws/p": {"r": make.metric("m", [1.0, 2.0])}})
    before = lake.project("ws/p")
    make.make_lake(tmp_path, {"ws/p": {"r": make.metric("m", [3.0, 4.0])}})
    with pytest.raises(LakeError, match="materialized again"):
        summarize(before, SETTINGS, lake.settings)


def test_an_unreadable_part_names_its_project(tmp_path: Path) -> None:
    lake = make.make_lake(tmp_path, {"ws/p": {"r": make.metric("m", [1.0, 2.0])}})
    Path(lake.project("ws/p").parts()["r"][0]).write_bytes(b"nothing")
    with pytest.raises(LakeError, match=r"r-.*_part_0.parquet of run 'r' of 'ws/p' cannot be read"):
        summarize(lake.project("ws/p"), SETTINGS, lake.settings)
