"""The demo's report over a lake made from the demo's recordings by the real source, lake and summary.

The ledgers are written here, receipt by receipt, instead of by loads into MLflow and W&B: the report reads nothing else
of the targets, and loads have tests of their own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from neptune_assets.lake.layout import Layout, safe_name
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.migration_settings import Settings
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.registry import open_source
from neptune_assets.summary.database import write_database, write_table
from neptune_assets.summary.tables import summarize
from neptune_assets.targets.ledger import Entry, Ledger
from neptune_assets.targets.protocol import Dropped, Receipt

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = json.loads((ROOT / "demo" / "recordings" / "expected.json").read_text())
VISION, TABULAR = "demo/vision", "demo/tabular"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "lake"
    attributes = yaml.safe_load((ROOT / "neptune_assets" / "defs" / "demo" / "defs.yaml").read_text())["attributes"]
    attributes["lake"]["root"] = str(root)
    settings = Settings.model_validate(attributes).anchored(ROOT)
    source = open_source(settings)
    for project_id in source.projects():
        infos = source.runs(project_id)
        inventory = pa.table({"run_id": [i.run_id for i in infos], "size": [i.size_hint for i in infos]})
        path = root / "source" / "inventory" / f"{safe_name(project_id)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(inventory, path)
        written = LakeWriter(settings.lake, source).write_project(project_id)
        assert not written.partial
        assert not written.failed
        project = Lake(settings.lake).project(project_id)
        with summarize(project, settings.summary, settings.lake) as summary:
            for name, reader in summary.tables():
                write_table(reader, Layout(str(root)).summary(name, project_id))
        for target in ("mlflow", "wandb"):
            ledger = Ledger(settings.lake, target, project_id)
            for record in project.records().values():
                receipt = _receipt(project_id, record.run_id, record.digest, dict(record.rows))
                ledger.record(Entry(record.run_id, "T-1", record.digest, receipt, verified=True))
    write_database(settings.lake, settings.summary)
    return root


@pytest.fixture
def lake(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "lake"))


def _receipt(project_id: str, run_id: str, digest: str, rows: dict[str, int]) -> Receipt:
    written = {kind: count for kind, count in rows.items() if kind != "artifact"}
    dropped = [Dropped("artifact", "for the test", rows["artifact"])] if "artifact" in rows else []
    return Receipt(project_id, run_id, "T-1", digest, rows, written, {}, dropped)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Report = Callable[..., Done]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    monkeypatch.syspath_prepend(ROOT)
    from demo.report import main

    def run(lake: Path, *options: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["report.py", "--lake", str(lake), *options])
        code = main()
        return Done(code, *capsys.readouterr())

    return run


def _line(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if label in line]
    return line.partition(label)[2].split()


def test_a_whole_demo_is_reported_with_the_numbers_that_were_logged(whole: Path) -> None:
    command = [sys.executable, "demo/report.py", "--lake", str(whole)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    points = {
        project: sum(metric["count"] for run in runs.values() for metric in run["metrics"].values())
        for project, runs in EXPECTED.items()
    }
    numbers = [f"{points[TABULAR]:,}", f"{points[VISION]:,}", f"{sum(points.values()):,}"]
    assert _line(done.stdout, "  metric points logged") == numbers
    assert _line(done.stdout, "  metric points  ") == numbers
    runs = [str(len(EXPECTED[TABULAR])), str(len(EXPECTED[VISION])), str(sum(map(len, EXPECTED.values())))]
    assert _line(done.stdout, "runs listed") == runs
    assert _line(done.stdout, "runs complete") == runs
    assert "mlflow dropped 2 artifact: for the test" in done.stdout
    assert "make dev" in done.stdout
    assert not done.stderr


def test_other_targets_and_projects_that_are_not_there_are_missed(whole: Path, report: Report) -> None:
    done = report(whole, "--target", "elsewhere", "--project", "demo/none")
    assert done.returncode == 1
    assert "demo/none is not in the lake." in done.stderr
    assert f"run {next(iter(EXPECTED[VISION]))} is not loaded into elsewhere" in done.stderr


def test_an_empty_lake_is_told(tmp_path: Path, report: Report) -> None:
    done = report(tmp_path)
    assert done.returncode == 1
    assert "holds no project" in done.stderr


def _change_file(lake: Path) -> None:
    path = next(path for path in (lake / "files").rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"\0")


def _lose_part(lake: Path) -> None:
    next((lake / "data").rglob("*digits-rate*_part_0.parquet")).unlink()


def _cut_part(lake: Path) -> None:
    path = next((lake / "data").rglob("*digits-rate*_part_0.parquet"))
    pq.write_table(pq.read_table(path).slice(1), path)


def _lose_summary(lake: Path) -> None:
    shutil.rmtree(lake / "summary" / "params")


def _change_summary(lake: Path) -> None:
    path = Layout(str(lake)).summary("metrics", VISION)
    table = pq.read_table(path)
    at = table.schema.get_field_index("last_value")
    changed = pa.array([value if i else 0.123 for i, value in enumerate(table["last_value"].to_pylist())])
    pq.write_table(table.set_column(at, table.schema.field(at), changed), path)


def _lose_database(lake: Path) -> None:
    (lake / "neptune.duckdb").unlink()


def _list_one_run_more(lake: Path) -> None:
    path = lake / "source" / "inventory" / f"{safe_name(VISION)}.parquet"
    table = pq.read_table(path)
    more = pa.Table.from_pylist([{"run_id": "one-more", "size": 1}], schema=table.schema)
    pq.write_table(pa.concat_tables([table, more]), path)


def _edit_ledger(change: Callable[[Entry], Entry]) -> Callable[[Path], None]:
    def edit(lake: Path) -> None:
        ledger = Ledger(LakeSettings(root=str(lake)), "mlflow", VISION)
        ledger.record(change((ledger.entries() or {})["digits-rate-0.1"]))

    return edit


def _without_a_row(entry: Entry) -> Entry:
    assert entry.receipt is not None
    return replace(entry, receipt=replace(entry.receipt, written={**entry.receipt.written, "int": 0}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change_file, "is missing or has changed"),
        (_lose_part, "part_0.parquet"),
        (_cut_part, "has other rows in Parquet than in the manifest"),
        (_lose_summary, "summary table params is missing"),
        (_change_summary, "logged was"),
        (_lose_database, "neptune.duckdb is missing"),
        (_list_one_run_more, "run one-more is not in the lake"),
        (_edit_ledger(lambda entry: replace(entry, verified=None)), "is not verified in mlflow: not read back"),
        (_edit_ledger(lambda entry: replace(entry, verified=False, differences=("a", "b"))), "in mlflow: a; b"),
        (_edit_ledger(lambda entry: replace(entry, digest="0")), "has changed in the lake since it was loaded"),
        (_edit_ledger(lambda entry: replace(entry, receipt=None)), "is not loaded into mlflow"),
        (_edit_ledger(_without_a_row), "rows do not add up in mlflow"),
    ],
)
def test_damage_is_found_and_named(lake: Path, damage: Callable[[Path], None], message: str, report: Report) -> None:
    damage(lake)
    done = report(lake)
    assert done.returncode == 1
    assert message in done.stderr
