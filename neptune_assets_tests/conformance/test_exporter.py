"""neptune-exporter's own writer, reader and MLflow load, against our lake. Real peer, run with its own Python.

Fetches nothing: ``make conformance-exporter PEER_PYTHON=... PEER_SRC=...`` names a Python that has neptune-exporter's
dependencies and the ``src`` folder of its checkout. Comparisons read with raw pyarrow and sqlite3.
"""

from __future__ import annotations

import math
import os
import sqlite3
import struct
import subprocess
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets_tests.support import peer
from neptune_assets_tests.support.export_factory import EXPORTER_SCHEMA, Row, as_table, exported_name

pytestmark = pytest.mark.peer


@dataclass
class Places:
    """What the peer wrote, our lake made of it, and what the peer's reader found in that lake."""

    exports: Path
    lake: Path
    read: Path


def run_peer(*arguments: str, module: bool = True) -> str:
    python, source = os.environ.get("PEER_PYTHON", ""), os.environ.get("PEER_SRC", "")
    if not (Path(python).is_file() and (Path(source) / "neptune_exporter").is_dir()):
        pytest.fail("set PEER_PYTHON (a Python with neptune-exporter's dependencies) and PEER_SRC (its src folder)")
    root = Path(__file__).resolve().parents[2]
    command = [python, "-m", "neptune_assets_tests.support.peer"] if module else [python, "-c", MAIN]
    environment = {**os.environ, "PYTHONPATH": f"{source}:{root}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([*command, *arguments], env=environment, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


MAIN = "import sys; from neptune_exporter.main import main; sys.exit(main())"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("peer")
    made = Places(root / "exports", root / "lake", root / "read")
    run_peer("write", str(made.exports))
    settings = ExportSource(data=str(made.exports / "data"), files=str(made.exports / "files"))
    source = Export(settings, Filters())
    assert source.projects() == sorted(peer.contents())
    writer = LakeWriter(LakeSettings(root=str(made.lake)), source)
    for project_id in source.projects():
        report = writer.write_project(project_id)
        assert not report.failed
        assert report.partial == []
    run_peer("read", str(made.lake / "data"), str(made.read))
    return made


def plain(value: Any) -> Any:
    """A value that compares and hashes as its bits do; all NaN are one."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack(">d", value)
    if isinstance(value, dict):
        return tuple((name, plain(item)) for name, item in sorted(value.items()))
    return tuple(map(plain, value)) if isinstance(value, list) else value


def bag(table: pa.Table) -> Counter[Any]:
    """Rows regardless of their order; paths of files left out, because the lake names files anew."""
    found: Counter[Any] = Counter()
    for row in table.select(EXPORTER_SCHEMA.names).to_pylist():
        file = row.pop("file_value")
        found[(*map(plain, row.values()), file is None or file["path"] is None)] += 1
    return found


def expected(project_id: str, run_id: str) -> Counter[Any]:
    rows: list[Row] = [row for batch in peer.contents()[project_id][run_id] for row in batch]
    dropped = [*peer.PHANTOMS, peer.DUPLICATES[0]]
    rows = [{**row, "float_value": float("nan")} if row in peer.LOST_NAN else row for row in rows if row not in dropped]
    return bag(as_table(rows, project_id, run_id))


def runs() -> list[tuple[str, str]]:
    return [(project_id, run_id) for project_id, found in peer.contents().items() for run_id in found]


def test_the_peer_wrote_what_the_test_says(places: Places) -> None:
    for project_id, run_id in runs():
        parts = sorted((places.exports / "data" / exported_name(project_id)).glob(f"{exported_name(run_id)}_part_*"))
        written = pa.concat_tables(pq.read_table(part) for part in parts)
        raw = [row for batch in peer.contents()[project_id][run_id] for row in batch]
        assert bag(written) == bag(as_table(raw, project_id, run_id))
        assert len(parts) > 1 or run_id != "hostile", "rolling over was not tried"


@pytest.mark.parametrize(("project_id", "run_id"), runs())
def test_an_export_comes_out_equal_but_for_the_repairs(places: Places, project_id: str, run_id: str) -> None:
    folder = places.lake / "data" / exported_name(project_id)
    parts = sorted(folder.glob(f"{exported_name(run_id)}_part_*.parquet"))
    assert bag(pa.concat_tables(pq.read_table(part) for part in parts)) == expected(project_id, run_id)


def test_files_come_out_equal(places: Places) -> None:
    (part,) = (places.lake / "data" / exported_name(peer.HOSTILE)).glob("hostile-*_part_0.parquet")
    rows = [row for row in pq.read_table(part).to_pylist() if row["file_value"] is not None]
    folder = places.lake / "files" / exported_name(peer.HOSTILE)
    found = {row["attribute_path"]: (folder / row["file_value"]["path"]).read_bytes() for row in rows}
    assert found == dict(zip(("f/bytes", "f/empty", "pics"), peer.FILES.values(), strict=True))


@pytest.mark.parametrize(("project_id", "run_id"), runs())
def test_the_peers_reader_reads_our_lake(places: Places, project_id: str, run_id: str) -> None:
    found = []
    for file in places.read.iterdir():
        with pa.OSFile(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        if (table["project_id"][0].as_py(), table["run_id"][0].as_py()) == (project_id, run_id):
            found.append(table)
    (table,) = found
    assert table.schema.equals(EXPORTER_SCHEMA)
    assert bag(table) == expected(project_id, run_id)


def test_the_peers_load_into_mlflow_works_on_our_lake(places: Places, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    run_peer(
        *("load", "--loader", "mlflow", "--mlflow-tracking-uri", f"sqlite:///{database}", "--no-progress"),
        *("--data-path", str(places.lake / "data"), "--files-path", str(places.lake / "files")),
        *("--project-ids", peer.PLAIN, "--project-ids", peer.OLD, "--step-multiplier", "1"),
        *("--log-file", str(tmp_path / "load.log")),
        module=False,
    )
    (log,) = tmp_path.glob("load*.log")  # the peer puts the time into the name
    assert "ERROR" not in log.read_text()
    with closing(sqlite3.connect(database)) as db:
        metrics = Counter(
            db.execute(
                "SELECT p.value, m.key, m.step, m.value, m.timestamp FROM metrics m "
                "JOIN params p ON p.run_uuid = m.run_uuid AND p.key = 'sys/custom_run_id'"
            )
        )
        old = Counter(
            db.execute(
                "SELECT p.value, m.key, m.step, m.value FROM metrics m "
                "JOIN params p ON p.run_uuid = m.run_uuid AND p.key = 'sys/id' AND p.value LIKE 'OLD-%'"
            )
        )
        parameters = Counter(db.execute("SELECT key, value FROM params WHERE key LIKE 'p/%'"))
    wanted: Counter[Any] = Counter()
    for run_id, batches in peer.contents()[peer.PLAIN].items():
        for row in (row for batch in batches for row in batch if row["attribute_type"] == "float_series"):
            when = round(row["timestamp"].timestamp() * 1000)
            wanted[run_id, row["attribute_path"], int(row["step"]), row["float_value"], when] += 1
    assert metrics == wanted
    assert old == Counter(
        (run_id, path, step, float(step))
        for run_id in ("OLD-1", "OLD-2")
        for path in ("m/a", "m/b")
        for step in range(5)
    )
    # pandas makes the peer write whole numbers with a point
    assert parameters == {("p/lr", "0.1"): 5, ("p/epochs", "7.0"): 3, ("p/tags", "a,b"): 3}
