"""What the demo's recordings become is the same as ever: digests, manifests, names and contents in each target.

Everything is read by readers that are not ours (json, pyarrow, sqlite3, sha256 of files) and compared with
`golden/demo.json`. What may differ from one load to the next (times of the load, random tokens, versions of packages)
is left out by name. Run this module to write the file anew, and only when a change of what is stored is wanted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock

from neptune_assets_tests.support.home import bring_home
from neptune_assets_tests.support.wandb_files import read_wandb

RECORDINGS = Path(__file__).parents[1] / "demo" / "recordings"
GOLDEN = Path(__file__).parent / "golden" / "demo.json"
SAVED = 1_795_229_826
"""Epoch seconds at which all files of the recordings were saved last."""
PROJECTS = ("demo/tabular", "demo/vision")
VARYING = {"generation", "committed_at", "written_at", "sum", "seconds", "sha256", "bytes", "bytes_written", "token"}
"""Fields of manifests and receipts that hold a time, a random token, or sizes that follow from versions of packages."""


def _kept(value: Any, depth: int = 0) -> Any:
    """Nothing that varies: a file's own sha256 and size are content, a part's are its encoding."""
    if isinstance(value, dict):
        left_out = VARYING if depth < 2 else VARYING - {"sha256"}
        return {key: _kept(item, depth + 1) for key, item in sorted(value.items()) if key not in left_out}
    if isinstance(value, list):
        return [_kept(item, depth) for item in value]
    return value


def _manifest(root: Path) -> list[Any]:
    """Records of the newest manifest of a project's runs."""
    (newest,) = root.glob("data/*/.manifest/*.jsonl")
    lines = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
    records = [line for line in lines if "run_id" in line]
    for record in records:
        for part in record["parts"]:
            del part["bytes"], part["sha256"]
    files = {record["run_id"]: record.pop("files", []) for record in records}
    return [{**_kept(record), "files": files[record["run_id"]]} for record in records]


def _rows(root: Path) -> dict[str, str]:
    """A sha256 of each part's rows, as Arrow reads them."""
    found = {}
    for part in sorted(root.glob("data/*/*.parquet")):
        rows = repr(pq.read_table(part).to_pylist())
        found[part.relative_to(root).as_posix()] = hashlib.sha256(rows.encode()).hexdigest()
    return found


def _summary(root: Path) -> dict[str, Any]:
    """Columns and rows of each table, without times of the migration."""
    found: dict[str, Any] = {}
    for file in sorted(root.glob("summary/*/*.parquet")):
        table = pq.read_table(file)
        columns = [name for name in table.column_names if not name.endswith("_at") or name == "created_at"]
        volatile = {"generation", "lake_bytes", "bytes", "file_bytes", "parquet_bytes", "location"}
        kept = table.select([name for name in columns if name not in volatile])
        text = repr(kept.to_pylist())
        found[file.parent.name] = {
            "schema": [f"{field.name}: {field.type}" for field in table.schema],
            "rows": table.num_rows,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
    return found


def _ledger(root: Path) -> dict[str, list[Any]]:
    """Receipts of each target."""
    found = {}
    for file in sorted(root.glob("targets/*/*.jsonl")):
        lines = [json.loads(line.split("\t#")[0]) for line in file.read_text(encoding="utf-8").splitlines() if line]
        found[file.parent.name] = sorted((_kept(line) for line in lines), key=lambda line: str(line["run_id"]))
    return found


def _mlflow(root: Path) -> dict[str, Any]:
    """Every table of MLflow that holds what was migrated, without times of the load and random ids."""
    own = {"mlflow.source.git.commit", "mlflow.user"}
    with sqlite3.connect(root / "mlflow.db") as store:
        query = {
            "experiments": "SELECT name, lifecycle_stage FROM experiments ORDER BY name",
            "runs": "SELECT run_uuid, name, status, start_time, end_time, lifecycle_stage FROM runs ORDER BY 1",
            "params": "SELECT run_uuid, key, value FROM params ORDER BY 1, 2",
            "tags": "SELECT run_uuid, key, value FROM tags ORDER BY 1, 2",
            "metrics": "SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics ORDER BY 1, 2, 3, 4, 5",
            "latest_metrics": "SELECT run_uuid, key, step, timestamp, value, is_nan FROM latest_metrics ORDER BY 1, 2",
        }
        rows = {name: store.execute(sql).fetchall() for name, sql in query.items()}
    assert rows["runs"], "nothing was loaded into MLflow"
    sums = {name: hashlib.sha256(repr(found).encode()).hexdigest() for name, found in rows.items()}
    return {
        "experiments": [list(row) for row in rows["experiments"]],
        "runs": [list(row) for row in rows["runs"]],
        "names": sorted({row[1] for name in ("params", "tags", "metrics") for row in rows[name]} - own),
        "rows": {name: len(found) for name, found in rows.items()},
        "sha256": sums,
    }


def _files(root: Path, below: str) -> dict[str, str]:
    """Sha256 of each file below a directory whose bytes are content and no encoding."""
    encoded = (".wandb", ".parquet", ".lock")
    found = {}
    for file in sorted((root / below).rglob("*")):
        if file.is_file():
            name = file.relative_to(root).as_posix()
            found[name] = "" if file.suffix in encoded else hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _without_load(name: str) -> str:
    """Name of an artifact without the directory that each load names anew."""
    store, project, run, _load, *path = name.split("/")
    return "/".join([store, project, run, *path])


def _wandb(root: Path) -> dict[str, Any]:
    """Records of each staged run by wandb's own classes, and its files."""
    staged = {}
    for log in sorted(root.rglob("*.wandb")):
        found = vars(read_wandb(log))
        staged[found["run"].run_id] = {
            "name": found["run"].display_name,
            "project": found["run"].project,
            "group": found["run"].run_group,
            "config": sorted(found["config"]),
            "history": sorted({key for row in found["history"] for key in row}),
            "records": len(found["numbers"]),
            "sha256": hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest(),
        }
    return {"runs": staged, "files": _files(root, "wandb")}


@contextmanager
def _recordings() -> Iterator[Path]:
    """The recordings at one path and of one time: what tracks a file says both, and so do digests."""
    place = Path("/tmp/neptune_assets_golden")
    with FileLock(f"{place}.lock"):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(RECORDINGS, place)
        for path in place.rglob("*"):
            os.utime(path, (SAVED, SAVED))
        yield place
        shutil.rmtree(place)


def facts(folder: Path) -> dict[str, Any]:
    """Take the recordings through every asset, and say what is stored where."""
    with _recordings() as recordings:
        return _facts(folder, recordings)


def _facts(folder: Path, recordings: Path) -> dict[str, Any]:
    found = {}
    for project in PROJECTS:
        place = folder / project.replace("/", "-")
        place.mkdir()
        source = {"paths": [str(recordings)], "project": PROJECTS[0], "search_files_in": [str(recordings / "client")]}
        root = bring_home(place, source, project).root
        found[project] = {
            "manifest": _manifest(root),
            "rows": _rows(root),
            "files": _files(root, "files"),
            "summary": _summary(root),
            "receipts": _ledger(root),
            "mlflow": _mlflow(root),
            "artifacts": {_without_load(name): sha256 for name, sha256 in _files(root, "mlartifacts").items()},
            "wandb": _wandb(root),
        }
    return json.loads(json.dumps(found, sort_keys=True))


def test_what_the_demo_becomes_is_the_same_as_ever(tmp_path: Path) -> None:
    found, golden = facts(tmp_path), json.loads(GOLDEN.read_text(encoding="utf-8"))
    for project in PROJECTS:
        for kind, wanted in golden[project].items():
            assert found[project][kind] == wanted, f"{kind} of {project}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(facts(Path(folder)), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {GOLDEN}\n")
