"""Which readers people have understand the database and the lake's Parquet: each is installed and asked.

Installing them needs a package index, so these are among the long proofs. docs/readers.md says what they gave.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from neptune_assets.settings import SummarySettings
from neptune_assets.summary.database import write_database, write_table
from neptune_assets.summary.tables import summarize
from neptune_assets_tests.support import lake_factory as make

pytestmark = pytest.mark.slow

ROWS = [
    *make.params({"lr": 0.5, "n": 3, "sys/name": "n"}),
    *make.metric("loss", [1.0, 0.25, -0.0, float("inf")]),
    *make.texts("log", ["a", "b"]),
    *make.histograms("h", [([0.0, 1.0], [5.0])]),
]

DUCKDB = """
import duckdb, json, sys
with duckdb.connect(sys.argv[1], read_only=True) as con:
    rows = con.execute("SELECT step::DOUBLE, value FROM points WHERE isfinite(value) ORDER BY step").fetchall()
    print(json.dumps([rows, con.execute("SELECT runs, points FROM projects").fetchall(), duckdb.__version__]))
"""
PARQUET = {
    "polars": "polars.read_parquet(sys.argv[1]).to_dicts()",
    "pyarrow": "__import__('pyarrow.parquet').parquet.read_table(sys.argv[1]).to_pylist()",
    "pandas": "pandas.read_parquet(sys.argv[1]).to_dict('records')",
    "chdb": "[json.loads(line) for line in str(chdb.query(f\"SELECT * FROM file('{sys.argv[1]}', Parquet)\", "
    "'JSONEachRow')).splitlines()]",
    "fastparquet": "fastparquet.ParquetFile(sys.argv[1]).to_pandas().to_dict('records')",
}
READ = """
import json, sys
import {name}
rows = {expression}
points = [[float(row["step"]), float(row["float_value"])] for row in rows
          if row["attribute_type"] == "float_series" and row["float_value"] not in (None, "inf", float("inf"))]
print(json.dumps([sorted(points), len(rows)]))
"""
POINTS = [[0.0, 1.0], [1.0, 0.25], [2.0, -0.0]]


def installed(directory: Path, *packages: str) -> Path:
    """Make a virtual environment with these packages and return its Python."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages], check=True)
    return python


def asked(python: Path, code: str, path: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["1.0.0", "1.1.3", "1.2.2", "1.3.2", "1.4.4", "1.5.0"])
def test_every_duckdb_from_1_0_on_opens_the_database(tmp_path: Path, version: str) -> None:
    if sys.version_info >= (3, 13) and version in {"1.0.0"}:
        pytest.skip("there is no wheel of this version for this Python")
    lake = make.make_lake(tmp_path / "lake", {"ws/p": {"r": ROWS}})
    with summarize(lake.project("ws/p"), SummarySettings(memory_mb=128), lake.settings) as summary:
        for name, reader in summary.tables():
            write_table(reader, lake.layout.summary(name, "ws/p"))
    path = write_database(lake.settings, SummarySettings())
    answer = asked(installed(tmp_path / "venv", f"duckdb=={version}"), DUCKDB, path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [POINTS, [[1, 4]], version]


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("polars", ["polars"]),
        ("polars", ["polars==1.0.0"]),
        ("pyarrow", ["pyarrow"]),
        ("pyarrow", ["pyarrow==15.0.2", "numpy<2"]),
        ("pandas", ["pandas", "pyarrow"]),
        ("chdb", ["chdb"]),
        ("fastparquet", ["fastparquet"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value),
)
def test_these_read_the_parquet_of_the_lake(tmp_path: Path, name: str, packages: list[str]) -> None:
    lake = make.make_lake(tmp_path / "lake", {"ws/p": {"r": ROWS}})
    ((part,),) = lake.project("ws/p").parts().values()
    code = READ.format(name=name, expression=PARQUET[name])
    answer = asked(installed(tmp_path / "venv", *packages), code, part)
    if name == "fastparquet":
        # It does not know two of the encodings: it must say so, and it does.
        assert answer.returncode != 0, "fastparquet reads the lake now: say so in docs/readers.md"
        return
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [POINTS, len(ROWS)]
