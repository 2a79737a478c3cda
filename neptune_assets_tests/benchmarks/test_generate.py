from __future__ import annotations

import json

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from neptune_assets.settings import Filters
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets.sources.protocol import RunEnd
from neptune_assets_tests.benchmarks.generate import Shape, fingerprint, generate, main


def test_a_small_project_holds_what_was_asked_for_and_reads_without_a_complaint(tmp_path, capsys):
    given = ["--runs", "2", "--points", "30", "--series", "16", "--project", "w/p", "--out", str(tmp_path)]
    assert main(given) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["rows"] == 2 * (60 + 16 * 30 + 2 * 200 + 20 + 3)
    assert written["points"] == 2 * 16 * 30
    source = Export(ExportSource(data=str(tmp_path / "data"), files=str(tmp_path / "files")), Filters())
    assert source.projects() == ["w/p"]
    ids = [info.run_id for info in source.runs("w/p")]
    chunks = list(source.read("w/p", ids))
    assert sum(chunk.batch.num_rows for chunk in chunks if not isinstance(chunk, RunEnd)) == written["rows"]
    for end in (chunk for chunk in chunks if isinstance(chunk, RunEnd)):
        assert (end.errors, end.notes, end.repairs) == ((), (), {})
    assert source.problems("w/p") == []
    table = pq.ParquetFile(next((tmp_path / "data").rglob("*_part_0.parquet"))).read_row_group(1)
    assert table.num_rows == 16 * 30
    assert pc.min_max(table["step"].slice(0, 16)).as_py() == {"min": 0, "max": 0}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    shape = Shape(runs=1, points=10, series=8)
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        generate(tmp_path / name, Shape(**{**vars(shape), "seed": seed}))
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


def test_an_export_is_never_written_over(tmp_path):
    generate(tmp_path, Shape(runs=1, points=2))
    with pytest.raises(FileExistsError):
        generate(tmp_path, Shape(runs=1, points=2))
