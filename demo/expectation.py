"""Holds the lake's summary tables against what the training scripts say they logged (``recordings/expected.json``)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from neptune_assets.lake.layout import Layout

Json = dict[str, Any]


@dataclass
class Comparison:
    """How much was compared, and every difference in words. ``by_project`` counts metric points that were logged."""

    projects: list[str] = field(default_factory=list)
    by_project: dict[str, int] = field(default_factory=dict)
    metrics: int = 0
    values: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)


def compare(root: Path, expected: Path) -> Comparison:
    """Compare every metric, value and file of every run that the scripts logged; raises OSError without the file."""
    result = Comparison()
    for project_id, runs in json.loads(expected.read_text()).items():
        result.projects.append(project_id)
        tables = {name: Path(Layout(str(root.resolve())).summary(name, project_id)) for name in _TABLES}
        missing = [name for name, path in tables.items() if not path.is_file()]
        if missing:
            result.problems.append(f"{project_id}: no summary of {', '.join(missing)} to compare.")
            continue
        stored = {name: _rows(_TABLES[name], path) for name, path in tables.items()}
        for key, run in runs.items():
            run_id = _stored_id(key, {row["run_id"] for row in stored["runs"]})
            if run_id is None:
                result.problems.append(
                    f"{project_id}: run {key} ({run['name']}) was logged, but is not in the summary."
                )
                continue
            mine = {name: [row for row in rows if row["run_id"] == run_id] for name, rows in stored.items()}
            what = f"{project_id}: run {run_id}"
            _compare_run(what, run, mine["runs"][0], result)
            _compare_metrics(what, run["metrics"], mine["metrics"], result)
            _compare_values(what, run["parameters"], mine["params"], result)
            _compare_files(what, run, mine["files"], result)
            points = sum(metric["count"] for metric in run["metrics"].values())
            result.by_project[project_id] = result.by_project.get(project_id, 0) + points
    return result


_TABLES = {
    "runs": "SELECT run_id, name, parent, fork_step::DOUBLE fork_step, tags, group_tags, failed FROM read_parquet($1)",
    "metrics": "SELECT * EXCLUDE (first_time, last_time), first_step::DOUBLE AS step FROM read_parquet($1)",
    "params": "SELECT * REPLACE (epoch_ms(datetime_value) AS datetime_value) FROM read_parquet($1)",
    "files": "SELECT run_id, attribute_path, attribute_type, step::DOUBLE AS step, sha256 FROM read_parquet($1)",
}


def _rows(sql: str, path: Path) -> list[Json]:
    with duckdb.connect(":memory:") as connection:
        relation = connection.execute(sql, [str(path)])
        names = [column[0] for column in relation.description or []]
        return [dict(zip(names, row, strict=True)) for row in relation.fetchall()]


def _stored_id(key: str, run_ids: set[str]) -> str | None:
    """Runs of neptune-scale keep their id; offline runs of neptune-client are known by part of their container id."""
    if key in run_ids:
        return key
    return next((run_id for run_id in run_ids if run_id.removeprefix("OFFLINE-") in key.replace("-", "")), None)


def _compare_run(what: str, run: Json, row: Json, result: Comparison) -> None:
    for name in ("name", "parent", "fork_step"):
        if row[name] != run[name]:
            result.problems.append(f"{what}: {name} is {row[name]!r}, logged was {run[name]!r}.")
    for name in ("tags", "group_tags"):
        if not set(run[name]) <= set(row[name] or ()):
            result.problems.append(f"{what}: {name} are {row[name]!r}, logged were {run[name]!r}.")
    if bool(row["failed"]) is not run["failed"]:
        result.problems.append(f"{what}: failed is {row['failed']!r}, logged was {run['failed']!r}.")


def _compare_metrics(what: str, logged: Mapping[str, Json], rows: list[Json], result: Comparison) -> None:
    stored = {row["attribute_path"]: row for row in rows}
    if set(stored) != set(logged):
        result.problems.append(f"{what}: metrics differ: {sorted(set(stored) ^ set(logged))}.")
    for path in sorted(set(stored) & set(logged)):
        row, metric = stored[path], logged[path]
        pairs = {column: (row[column], _number(metric[name])) for column, name in _COLUMNS.items()}
        # A mean is exact to its last digits only if the order of the sum is known.
        finite = metric["count"] - metric["nan"] - metric["positive_infinity"] - metric["negative_infinity"]
        mean = metric["sum_of_finite"] / finite if finite else None
        if (mean is None) != (row["mean_value"] is None) or (mean is not None and not _close(mean, row["mean_value"])):
            result.problems.append(f"{what}: the mean of {path} is {row['mean_value']}, logged was {mean}.")
        if metric["first_step"] is not None:
            pairs["step"] = (row["step"], float(metric["first_step"]))
        for column, (found, wanted) in pairs.items():
            if repr(found) != repr(wanted):
                result.problems.append(f"{what}: {column} of {path} is {found!r}, logged was {wanted!r}.")
        result.metrics += 1


_COLUMNS = {
    "count": "count",
    "nan_count": "nan",
    "positive_infinity_count": "positive_infinity",
    "negative_infinity_count": "negative_infinity",
    "first_value": "first",
    "last_value": "last",
    "min_value": "smallest_finite",
    "max_value": "largest_finite",
}


def _compare_values(what: str, logged: Mapping[str, Any], rows: list[Json], result: Comparison) -> None:
    stored = {row["attribute_path"]: row for row in rows}
    for path, value in logged.items():
        row = stored.get(path)
        if row is None:
            result.problems.append(f"{what}: {path} is missing.")
            continue
        found = row[f"{row['attribute_type']}_value"]
        if isinstance(value, list):
            found = sorted(found)
        elif row["attribute_type"] == "datetime":
            value = round(datetime.fromisoformat(value).timestamp() * 1000)
        elif row["attribute_type"] == "float":
            value = _number(value)
        if repr(found) != repr(value):
            result.problems.append(f"{what}: {path} is {found!r}, logged was {value!r}.")
        result.values += 1


def _compare_files(what: str, run: Json, rows: list[Json], result: Comparison) -> None:
    stored: dict[str, list[str]] = {}
    for row in rows:
        if row["attribute_type"] != "artifact":  # of those, the lake holds a list of files, not the files
            stored.setdefault(row["attribute_path"], []).append(row["sha256"])
    logged: dict[str, list[str]] = {}
    for path, value in {**run["files"], **run["pictures"]}.items():
        kind_of_artifact = isinstance(value, dict) and "sha256" not in value and path not in stored
        if kind_of_artifact and "artifact" in run["attributes"]:
            continue
        items = value if isinstance(value, list) else [value] if "sha256" in value else list(value.values())
        logged[path] = [item["sha256"] for item in items]
    for path in sorted(set(stored) | set(logged)):
        if sorted(stored.get(path, [])) != sorted(logged.get(path, [])):
            result.problems.append(f"{what}: the files of {path} differ from those logged.")
        result.files += len(logged.get(path, []))


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in {"NaN", "Infinity", "-Infinity"} else value


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-300)
