from __future__ import annotations

import math
import struct
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from neptune_assets.errors import LakeError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import SummarySettings
from neptune_assets.summary import rows as rows_module
from neptune_assets.summary.columns import TABLES, columns
from neptune_assets.summary.tables import summarize
from neptune_assets_tests.support import lake_factory as make

SETTINGS = SummarySettings(memory_mb=128)
INF = float("inf")
NAN = float("nan")


def tables(lake: Lake, project_id: str = "ws/p") -> dict[str, list[dict[str, Any]]]:
    with summarize(lake.project(project_id), SETTINGS, lake.settings) as summary:
        return {name: reader.read_all().to_pylist() for name, reader in summary.tables()}


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_metrics_are_what_plain_python_says(tmp_path: Path) -> None:
    logged = {
        "a": ([1.0, 0.5, 0.25], [0, 1, 2]),
        "A": ([2.0], [7]),
        "not in order": ([3.0, 1.0, 2.0], [2, 0, 1]),
        "fractions": ([1.0, 2.0], ["0.000001", "999999999999.999999"]),
        "far": ([1.0, 2.0, -0.0, 4.0], ["999999999999.999998", "999999999999.999999", "999999999999.999997", 5]),
        "far below": ([1.0, -0.0, 3.0], ["-999999999999.999998", "-999999999999.999999", "-999999999999.999997"]),
        "negative steps": ([1.0, 2.0], [-3, "-2.5"]),
        "nan first and last": ([NAN, 4.0, NAN], [0, 1, 2]),
        "only nan": ([NAN, NAN], [0, 1]),
        "infinities": ([INF, 1.0, -INF, INF], [0, 1, 2, 3]),
        "huge": ([1.7e308, 1.7e308, 1.6e308], [0, 1, 2]),
        "tiny": ([5e-324, 5e-324], [0, 1]),
        "minus zero": ([-0.0], [0]),
        'it\'s "quoted" | `x` <b>': ([0.1, 0.2], [0, 1]),
        "n\nul\x00": ([1.0], [0]),
        "l" * 1500: ([1.0], [0]),
        "long": ([math.sin(i) for i in range(5000)], list(range(5000))),
    }
    rows = [row for path, (values, steps) in logged.items() for row in make.metric(path, values, steps)]
    lake = make.make_lake(tmp_path, {"ws/p": {"RUN-1": rows, "run-1": make.metric("a", [9.0])}})
    found = {(row["run_id"], row["attribute_path"]): row for row in tables(lake)["metrics"]}
    assert found.keys() == {("RUN-1", path) for path in logged} | {("run-1", "a")}
    assert found["run-1", "a"]["last_value"] == 9.0
    for path, (values, steps) in logged.items():
        row = found["RUN-1", path]
        exact = sorted((Decimal(str(step)), number) for number, step in enumerate(steps))
        finite = [value for value in values if math.isfinite(value)]
        assert row["count"] == len(values)
        assert row["nan_count"] == sum(map(math.isnan, values))
        assert row["positive_infinity_count"] == values.count(INF)
        assert row["negative_infinity_count"] == values.count(-INF)
        assert bits(row["first_value"]) == bits(values[exact[0][1]])
        assert bits(row["last_value"]) == bits(values[exact[-1][1]])
        assert row["min_value"] == (min(finite) if finite else None)
        assert row["max_value"] == (max(finite) if finite else None)
        if finite:
            mean = math.fsum(value / len(finite) for value in finite)
            assert row["mean_value"] == pytest.approx(mean, rel=1e-12, abs=1e-15)
        else:
            assert row["mean_value"] is None
        assert row["first_step"] == exact[0][0]
        assert row["last_step"] == exact[-1][0]
        assert row["first_time"] == make.START
        assert row["last_time"] == make.START + timedelta(seconds=len(values) - 1)


VALUES = st.lists(st.floats(width=64), min_size=1, max_size=20)


@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(min_size=1, max_size=5).filter(str.isprintable), VALUES, min_size=1, max_size=4))
def test_any_values_keep_their_counts_and_ends(tmp_path_factory, logged: dict[str, list[float]]) -> None:
    rows = [row for path, values in logged.items() for row in make.metric(path, values)]
    lake = make.make_lake(tmp_path_factory.mktemp("lake"), {"ws/p": {"r": rows}})
    found = {row["attribute_path"]: row for row in tables(lake)["metrics"]}
    assert found.keys() == logged.keys()
    for path, values in logged.items():
        row, finite = found[path], [value for value in values if math.isfinite(value)]
        assert row["count"] == len(values)
        assert (math.isnan(row["last_value"]) and math.isnan(values[-1])) or bits(row["last_value"]) == bits(values[-1])
        assert row["min_value"] == min(finite, default=None)
        assert row["max_value"] == max(finite, default=None)
        if finite:
            assert row["min_value"] <= row["mean_value"] <= row["max_value"]


def test_params_are_exact_in_their_column_and_as_text(tmp_path: Path) -> None:
    moment = datetime(2025, 6, 30, 23, 59, 59, 7000, tzinfo=UTC)
    logged: dict[str, tuple[Any, str]] = {
        "int/max": (2**63 - 1, "9223372036854775807"),
        "int/min": (-(2**63), "-9223372036854775808"),
        "int/odd": (2**53 + 1, "9007199254740993"),
        "bool": (True, "true"),
        "empty": ("", ""),
        "text": ("a,'b'\n\x00\"c\"", "a,'b'\n\x00\"c\""),
        "long": ("x" * 100_000, "x" * 100_000),
        "time": (moment, "2025-06-30T23:59:59.007Z"),
        "set": (["a", 'b"', "c,d"], '["a","b\\"","c,d"]'),
        "no set": ([], "[]"),
    }
    floats = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 123456789012345678.0, NAN, INF, -INF, 1 / 3]
    rows = make.params({name: value for name, (value, _) in logged.items()})
    rows += [make.param(f"float/{number}", value) for number, value in enumerate(floats)]
    found = {row["attribute_path"]: row for row in tables(make.make_lake(tmp_path, {"ws/p": {"r": rows}}))["params"]}
    assert len(found) == len(logged) + len(floats)
    for name, (value, text) in logged.items():
        row = found[name]
        column = f"{row['attribute_type']}_value"
        assert sorted(row[column]) == sorted(value) if isinstance(value, list) else row[column] == value
        assert len(row["text"]) == len(text) if isinstance(value, list) else row["text"] == text
        others = [key for key in row if key.endswith("_value") and key != column]
        assert all(row[key] is None for key in others)
    for number, value in enumerate(floats):
        row = found[f"float/{number}"]
        assert bits(row["float_value"]) == bits(value)
        assert math.isnan(float(row["text"])) if math.isnan(value) else bits(float(row["text"])) == bits(value)


def system(**values: Any) -> list[dict[str, Any]]:
    return make.params({f"sys/{name}": value for name, value in values.items()})


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


def test_attributes_count_runs_and_rows_by_type(tmp_path: Path) -> None:
    later = make.START + timedelta(days=1)
    runs = {
        "1": [*make.metric("x", [1.0, 2.0]), make.param("p", 1), *system(creation_time=make.START)],
        "2": [*make.metric("x", [1.0], start=later), make.param("p", "one"), *system(creation_time=later)],
        "3": [make.param("p", 2), make.param("P", 2)],
    }
    found = {
        (row["attribute_path"], row["attribute_type"]): row
        for row in tables(make.make_lake(tmp_path, {"ws/p": runs}))["attributes"]
    }
    counts = {key: (row["runs"], row["rows"]) for key, row in found.items()}
    expected = Counter((row["attribute_path"], row["attribute_type"]) for rows in runs.values() for row in rows)
    assert {key: rows for key, (_, rows) in counts.items()} == expected
    assert counts["x", "float_series"] == (2, 3)
    assert counts["p", "int"] == (2, 2)
    assert counts["p", "string"] == (1, 1)
    assert (found["x", "float_series"]["first_seen"], found["x", "float_series"]["last_seen"]) == (make.START, later)
    assert found["p", "string"]["first_seen"] == later
    assert found["P", "int"]["first_seen"] is None


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
    with pytest.raises(LakeError, match="1 rows in its parts, but 2"):
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
    with pytest.raises(LakeError, match="ws/p cannot be read"):
        summarize(lake.project("ws/p"), SETTINGS, lake.settings)
