from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from neptune_assets.errors import SettingsError
from neptune_assets.schema import SCHEMA
from neptune_assets.settings import Filters
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import RunInfo


def selection(**filters: object) -> Selection:
    return Selection(Filters.model_validate(filters))


def run(run_id: str, **values: object) -> RunInfo:
    return RunInfo(run_id=run_id, fingerprint="f", **values)  # type: ignore[arg-type]


def test_everything_is_kept_if_nothing_is_said() -> None:
    assert selection().project("a/b")
    assert selection().run(run("x", archived=True))
    assert selection().attribute("metrics/loss", "float_series")


def test_trash_is_left_out_unless_asked_for() -> None:
    assert not selection().run(run("x", trashed=True))
    assert selection(runs={"trashed": True}).run(run("x", trashed=True))
    assert not selection(runs={"archived": False}).run(run("x", archived=True))


def test_projects_by_list_and_patterns() -> None:
    kept = selection(projects={"only": ["a/b", "a/c"], "exclude": ["c$"]})
    assert [key for key in ("a/b", "a/c", "a/d") if kept.project(key)] == ["a/b"]
    assert [key for key in ("a/b", "x/b") if selection(projects={"include": ["^a/"]}).project(key)] == ["a/b"]


def test_runs_by_ids_file_and_patterns(tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("RUN-1\n\n  RUN-2 \n", encoding="utf-8")
    kept = selection(runs={"ids": ["RUN-3"], "ids_file": str(ids), "exclude": ["2"]})
    assert [r for r in ("RUN-1", "RUN-2", "RUN-3", "RUN-4") if kept.run(run(r))] == ["RUN-1", "RUN-3"]


def test_a_missing_ids_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.txt"):
        selection(runs={"ids_file": str(tmp_path / "gone.txt")})


def test_since_is_inclusive_and_until_exclusive() -> None:
    kept = selection(runs={"created_since": "2025-01-01", "created_until": "2025-02-01T00:00:00+01:00"})
    moments = {
        "before": datetime(2024, 12, 31, 23, 59, tzinfo=UTC),
        "first": datetime(2025, 1, 1, tzinfo=UTC),
        "inside": datetime(2025, 1, 31, 22, 59, tzinfo=UTC),
        "end": datetime(2025, 1, 31, 23, 0, tzinfo=UTC),
    }
    assert [name for name, moment in moments.items() if kept.run(run(name, created_at=moment))] == ["first", "inside"]
    assert kept.run(run("unknown time"))


def test_rows_are_filtered_by_path_and_class() -> None:
    rows = [("a/loss", "float_series"), ("a/lr", "float"), ("b/loss", "float_series"), ("a/log", "string_series")]
    batch = pa.RecordBatch.from_pylist([{"attribute_path": p, "attribute_type": t} for p, t in rows], schema=SCHEMA)
    kept = selection(attributes={"include": ["^a/"], "exclude": ["lr$"], "classes": ["metrics", "parameters"]})
    assert kept.batch(batch)["attribute_path"].to_pylist() == ["a/loss"]
    assert [(p, t) for p, t in rows if kept.attribute(p, t)] == [("a/loss", "float_series")]
    assert selection().batch(batch) is batch
