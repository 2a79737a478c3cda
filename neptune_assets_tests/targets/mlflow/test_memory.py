from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from neptune_assets.schema import SCHEMA, STEP_TYPE, TIME_TYPE
from neptune_assets_tests.conformance.targets import PROJECT
from neptune_assets_tests.support.lake_factory import make_lake
from neptune_assets_tests.targets.mlflow.place import MlflowPlace
from neptune_assets_tests.targets.mlflow.postgres_place import PostgresPlace

LOAD = """
import json, re, sys
from pathlib import Path
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets_tests.conformance.targets import PROJECT
from neptune_assets_tests.targets.mlflow.{module} import {place}
place = {place}(Path(sys.argv[1]))
settings = LakeSettings(root=str(place.root / "lake"))
report = load_project(Lake(settings).project(PROJECT), place.open, Ledger(settings, "mlflow", PROJECT))
# Not ru_maxrss: that begins with what the parent had.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([report.failed, report.points, peak // 1024]))
"""


def rows(series: int, points: int) -> pa.Table:
    count = series * points
    step = pa.array([Decimal(place) for place in range(points)], STEP_TYPE)
    columns = {
        "project_id": pa.repeat(PROJECT, count),
        "run_id": pa.repeat("R-1", count),
        "attribute_path": pa.array([f"m/{number:03d}" for number in range(series)]).take(
            pa.array([place // points for place in range(count)])
        ),
        "attribute_type": pa.repeat("float_series", count),
        "step": pa.concat_arrays([step] * series),
        "timestamp": pa.array([1_700_000_000_000 + place for place in range(count)]).cast(TIME_TYPE),
        "float_value": pa.array([place / 7 for place in range(count)]),
    }
    return pa.table(
        [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in SCHEMA], SCHEMA
    )


def peak(place_class: type[MlflowPlace], root: Path, points: int) -> tuple[int, int]:
    """Load one run of ten series of this length in a process of its own; return its points and its peak in MB."""
    place = place_class(root)
    script = LOAD.format(module=place_class.__module__.rpartition(".")[2], place=place_class.__name__)
    make_lake(place.root / "lake", {PROJECT: {"R-1": rows(10, points)}})
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failed, loaded, megabytes = json.loads(done.stdout.splitlines()[-1])
    assert not failed
    assert place.query("SELECT count(*), sum(value) FROM metrics")[0] == (
        10 * points,
        pytest.approx(sum(range(10 * points)) / 7),
    )
    return loaded, megabytes


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("place_class", [MlflowPlace, PostgresPlace])
def test_a_million_points_take_no_more_memory_than_a_tenth(place_class: type[MlflowPlace], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small_points, small = peak(place_class, tmp_path / "small", 10_000)
    large_points, large = peak(place_class, tmp_path / "large", 100_000)
    print(f"{place_class.__name__}: {small} MB for {small_points:,} points, {large} MB for {large_points:,}")
    assert (small_points, large_points) == (100_000, 1_000_000)
    assert large < 500
    assert large < small + 80
